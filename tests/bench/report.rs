//! Figures of several runs as a table.

use std::{collections::BTreeMap, fmt};

/// The figures of one run, by name, in the order in which they are shown.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// All runs of one bench.
pub(crate) struct Report {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<String>,
    values: BTreeMap<(String, &'static str), Vec<f64>>,
    failures: BTreeMap<String, String>,
}

impl Report {
    pub(crate) fn new(title: &str) -> Report {
        Report {
            title: title.to_owned(),
            columns: Vec::new(),
            rows: Vec::new(),
            values: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, row: &str, figures: Figures) {
        if !self.rows.iter().any(|r| r == row) {
            self.rows.push(row.to_owned());
        }
        for (name, value) in figures {
            if !self.columns.contains(&name) {
                self.columns.push(name);
            }
            self.values
                .entry((row.to_owned(), name))
                .or_default()
                .push(value);
        }
    }

    pub(crate) fn fail(&mut self, row: &str, why: &str) {
        if !self.rows.iter().any(|r| r == row) {
            self.rows.push(row.to_owned());
        }
        self.failures.insert(
            row.to_owned(),
            why.lines().next().unwrap_or_default().to_owned(),
        );
    }
}

fn number(v: f64) -> String {
    match v {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.1 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// A Markdown table of `median (minimum-maximum)`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n### {}\n", self.title)?;
        writeln!(f, "| | {} |", self.columns.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.columns.len()))?;
        for row in &self.rows {
            write!(f, "| {row} |")?;
            for column in &self.columns {
                let Some(values) = self.values.get(&(row.clone(), *column)) else {
                    write!(f, " |")?;
                    continue;
                };
                let mut sorted = values.clone();
                sorted.sort_by(f64::total_cmp);
                let median = number(sorted[sorted.len() / 2]);
                let (first, last) = (number(sorted[0]), number(sorted[sorted.len() - 1]));
                write!(f, " {median} ({first}-{last}) |")?;
            }
            writeln!(f)?;
        }
        for (row, why) in &self.failures {
            writeln!(f, "\n{row}: {why}")?;
        }
        Ok(())
    }
}
