//! What people see: colour where it helps and is wanted, columns that line up.

use std::io::IsTerminal;

/// Where text for people goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Screen {
    colour: bool,
}

impl Screen {
    /// Without colour, as for a file.
    pub const PLAIN: Screen = Screen { colour: false };

    /// Colour on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Screen {
            colour: stream.is_terminal() && !unwanted && !dumb,
        }
    }

    /// Whether colour is used.
    pub fn coloured(&self) -> bool {
        self.colour
    }

    /// As it should be.
    pub fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// As it should not be.
    pub fn bad(&self, text: &str) -> String {
        self.paint("31", text)
    }

    /// On the way.
    pub fn warn(&self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Of less weight.
    pub fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Of more weight.
    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Lines up cells under their headings; two spaces between, none at the end of a line.
    pub fn table<const N: usize>(&self, headings: [&str; N], rows: &[[String; N]]) -> String {
        let mut widths = headings.map(width);
        for row in rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        let mut text = self.line(&headings.map(|heading| self.dim(heading)), &widths);
        for row in rows {
            text.push_str(&self.line(row, &widths));
        }
        text
    }

    fn line<const N: usize>(&self, cells: &[String; N], widths: &[usize; N]) -> String {
        let mut line = String::new();
        for (cell, widest) in cells.iter().zip(widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(widest.saturating_sub(width(cell)) + 2));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// Columns on a terminal: characters without colour codes.
fn width(text: &str) -> usize {
    let mut count = 0;
    let mut in_code = false;
    for character in text.chars() {
        match character {
            '\x1b' => in_code = true,
            'm' if in_code => in_code = false,
            _ if in_code => {}
            _ => count += 1,
        }
    }
    count
}

/// `45s`, `3m12s`, `2h05m`, `3d04h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_colour() {
        let rows = [
            ["a".to_owned(), "b".to_owned()],
            ["long one".to_owned(), String::new()],
        ];
        assert_eq!(
            Screen::PLAIN.table(["X", "Y"], &rows),
            "X         Y\na         b\nlong one\n"
        );
        let screen = Screen { colour: true };
        let rows = [
            [screen.good("a"), "b".to_owned()],
            ["long one".to_owned(), "c".to_owned()],
        ];
        let text = screen.table(["X", "Y"], &rows);
        let second: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(second, ["\u{1b}[32ma\u{1b}[0m         b", "long one  c"]);
    }

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m01s"),
            (7_500, "2h05m"),
            (273_600, "3d04h"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
