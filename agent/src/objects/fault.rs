//! What is wrong with an object: always a field, a reason, and, where we know it, what to do.

use std::fmt;

use super::Key;

/// One fault in one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Field path as in `spec.timers.hold` or `spec.networks[1]`; empty for the object as a whole.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)
    }
}

/// An object that was refused: whose, and all its faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The `kind` field as written; empty if there was none.
    pub kind: String,
    /// Namespace and name as far as known.
    pub key: Key,
    /// At least one.
    pub faults: Vec<Fault>,
}

/// A sink for faults, so that one pass over an object finds all of them.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
}

impl Faults {
    /// Adds a fault without a hint.
    pub fn add(&mut self, path: impl Into<String>, reason: impl fmt::Display) {
        self.list.push(Fault {
            path: path.into(),
            reason: reason.to_string(),
            hint: None,
        });
    }

    /// Adds a fault and what to do about it.
    pub fn hinted(
        &mut self,
        path: impl Into<String>,
        reason: impl fmt::Display,
        hint: impl fmt::Display,
    ) {
        self.list.push(Fault {
            path: path.into(),
            reason: reason.to_string(),
            hint: Some(hint.to_string()),
        });
    }

    /// Adds a fault for a field that exists in the schema but that this version cannot serve.
    pub fn unimplemented(&mut self, path: impl Into<String>) {
        self.hinted(
            path,
            "not implemented in this version",
            "leave the field out; it is refused rather than ignored",
        );
    }

    /// The value, or the fault at `path`.
    pub fn take<T, E: fmt::Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(path, error);
                None
            }
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one of them is about this field.
    pub fn are_about(&self, path: &str) -> bool {
        self.list.iter().any(|fault| fault.path == path)
    }

    /// The faults found.
    pub fn into_list(self) -> Vec<Fault> {
        self.list
    }
}

/// The known name closest to a misspelt one, if it is close enough to be meant.
pub fn closest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| {
            (
                distance(&wrong.to_ascii_lowercase(), &name.to_ascii_lowercase()),
                name,
            )
        })
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance in bytes; inputs longer than 64 bytes count as far apart.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().max(b.len()) > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b) {
            let substituted = diagonal + usize::from(x != y);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn suggestions() {
        let known = ["asn", "address", "nodeSelector"];
        assert_eq!(closest("adress", known), Some("address"));
        assert_eq!(closest("ASN", known), Some("asn"));
        assert_eq!(closest("nodeselecter", known), Some("nodeSelector"));
        assert_eq!(closest("colour", known), None);
    }
}
