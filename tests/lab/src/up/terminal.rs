//! What is printed: aligned, in colour on a terminal unless NO_COLOR or `--no-color` says otherwise.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How a piece of text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Name,
}

/// Standard output.
pub struct Terminal {
    colour: bool,
    /// Lines may be drawn over.
    live: bool,
    /// Columns.
    pub width: usize,
}

/// Columns of a step: what it is, what came of it. With how long it took, a line has eighty.
const WHAT: usize = 22;
const CAME: usize = 42;

impl Terminal {
    pub fn new(no_color: bool) -> Terminal {
        let live = io::stdout().is_terminal() && env::var("TERM").is_ok_and(|term| term != "dumb");
        let quiet = no_color || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let width = size.map_or(0, |size| usize::from(size.ws_col));
        Terminal {
            colour: live && !quiet,
            live,
            width: if width < 40 { 100 } else { width },
        }
    }

    pub fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Plain => return text.to_owned(),
            _ if !self.colour => return text.to_owned(),
            Look::Bold => "1",
            Look::Dim => "2",
            Look::Good => "32",
            Look::Bad => "1;31",
            Look::Name => "1;36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    pub fn line(&self, text: &str) {
        println!("{text}");
    }

    pub fn title(&self, text: &str, file: &str) {
        println!(
            "{}  {}",
            self.paint(Look::Bold, text),
            self.paint(Look::Dim, file)
        );
    }

    pub fn section(&self, text: &str) {
        println!("\n{}", self.paint(Look::Bold, text));
    }

    pub fn done(&self, text: &str) {
        println!("  {}", self.paint(Look::Good, text));
    }

    pub fn failed(&self, text: &str) {
        println!("  {}", self.paint(Look::Bad, text));
    }

    /// A remark below a row, broken where the terminal ends.
    pub fn remark(&self, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            for part in wrap(line.trim_end(), self.width.saturating_sub(INDENT)) {
                println!("{:INDENT$}{}", "", self.paint(Look::Dim, &part));
            }
        }
    }

    /// One row: a mark, what, what came of it, how long it took.
    pub fn row(&self, good: bool, what: &str, came: &str, took: Option<Duration>) {
        let mark = if good {
            self.paint(Look::Good, "✓")
        } else {
            self.paint(Look::Bad, "✗")
        };
        let time = took
            .map(|took| self.paint(Look::Dim, &format!("{:>9}", seconds(took))))
            .unwrap_or_default();
        let line = format!("  {mark} {what:<WHAT$} {came:<CAME$} {time}");
        println!("{}", line.trim_end());
    }

    /// Does `work` while a line shows that it is under way, then prints its row.
    pub fn step<T: Send>(
        &self,
        what: &str,
        work: impl FnOnce() -> Result<(T, String)> + Send,
    ) -> Result<T> {
        let start = Instant::now();
        let outcome = if self.live {
            self.watch(what, start, work)
        } else {
            work()
        };
        match outcome {
            Ok((value, came)) => {
                self.row(true, what, &came, Some(start.elapsed()));
                Ok(value)
            }
            Err(error) => {
                self.row(false, what, "failed", Some(start.elapsed()));
                Err(error)
            }
        }
    }

    fn watch<T: Send>(
        &self,
        what: &str,
        start: Instant,
        work: impl FnOnce() -> Result<(T, String)> + Send,
    ) -> Result<(T, String)> {
        let (finished, finish) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                // The first look comes late, so that what is quick does not flicker.
                while finish.recv_timeout(Duration::from_millis(100))
                    == Err(RecvTimeoutError::Timeout)
                {
                    let time = self.paint(
                        Look::Dim,
                        &format!("{:.1} s", start.elapsed().as_secs_f32()),
                    );
                    print!("\r\x1b[2K  … {what:<WHAT$} {time}");
                    let _ = io::stdout().flush();
                }
                print!("\r\x1b[2K");
            });
            let outcome = work();
            drop(finished);
            outcome
        })
    }
}

/// Columns before a remark.
const INDENT: usize = 6;

/// Breaks a line between words; what follows is two columns deeper than its beginning.
fn wrap(line: &str, width: usize) -> Vec<String> {
    let indent = line.len() - line.trim_start().len();
    let mut lines = Vec::new();
    let mut current = " ".repeat(indent);
    let mut is_empty = true;
    for word in line.split_whitespace() {
        if !is_empty && current.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut current, " ".repeat(indent + 2)));
            is_empty = true;
        }
        if !is_empty {
            current.push(' ');
        }
        current.push_str(word);
        is_empty = false;
    }
    lines.push(current);
    lines
}

/// A duration as a person reads it.
pub fn seconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_remarks_are_broken_between_words() {
        assert_eq!(
            wrap("  denied: isolated by two", 16),
            ["  denied:", "    isolated by", "    two"]
        );
        assert_eq!(wrap("short", 16), ["short"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
    }

    #[test]
    fn durations_are_short() {
        for (ms, text) in [
            (0.34, "0.3 ms"),
            (12.4, "12 ms"),
            (999.0, "999 ms"),
            (1250.0, "1.2 s"),
            (61_000.0, "61.0 s"),
        ] {
            assert_eq!(seconds(Duration::from_secs_f64(ms / 1e3)), text);
        }
    }
}
