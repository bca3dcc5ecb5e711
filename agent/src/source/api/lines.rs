//! Lines out of the pieces in which a body arrives.

/// A longer line is no object: etcd takes 1.5 MiB, and managed fields count in.
const LONGEST: usize = 16 << 20;

/// What has arrived and was not read yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where the line begins that comes next.
    start: usize,
    /// Up to where there is no end of a line.
    searched: usize,
}

/// A line without an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// Takes in a piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        // What one long line needed is not kept for ever.
        if self.bytes.is_empty() && self.bytes.capacity() > 1 << 20 {
            self.bytes = Vec::new();
        }
        self.bytes.extend_from_slice(piece);
        match self.bytes.len() > LONGEST {
            true => Err(TooLong),
            false => Ok(()),
        }
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.searched..)?;
        let Some(length) = memchr::memchr(b'\n', rest) else {
            self.searched = self.bytes.len();
            return None;
        };
        let (start, end) = (self.start, self.searched + length);
        self.start = end + 1;
        self.searched = self.start;
        self.bytes.get(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However it is cut, the lines are the same.
        #[test]
        fn pieces_do_not_matter(lines in proptest::collection::vec("[a-z]{0,9}", 0..20), cuts in proptest::collection::vec(1usize..7, 1..40)) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (mut reader, mut got, mut rest) = (Lines::default(), Vec::new(), text.as_bytes());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                rest = more;
                reader.push(piece).unwrap();
                while let Some(line) = reader.next() {
                    got.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(got, lines);
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        lines.push(b"half").unwrap();
        assert_eq!(lines.next(), None);
        let piece = vec![b'x'; 1 << 20];
        let end = (0..64).find(|_| lines.push(&piece).is_err());
        assert!(end.is_some());
    }
}
