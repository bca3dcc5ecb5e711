//! AS_PATH as a value (RFC 4271 section 4.3, RFC 5065, RFC 6793).
//!
//! The value is the wire form with four-octet numbers, so that equality, hashing and encoding are those of bytes.
//! Every segment has a known type and at least one number.

use std::fmt;

use crate::ids::Asn;

/// An AS_PATH in its canonical wire form: segments of (type, count, four-octet numbers).
/// Valid by construction: whoever makes one has checked types and lengths.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct AsPath(pub(crate) Box<[u8]>);

/// The type of an AS_PATH segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum SegmentKind {
    /// Unordered: counts as one however many are in it.
    Set = 1,
    /// Ordered, the nearest first.
    Sequence = 2,
    /// Ordered, inside a confederation (RFC 5065).
    ConfedSequence = 3,
    /// Unordered, inside a confederation (RFC 5065).
    ConfedSet = 4,
}

impl SegmentKind {
    /// The kind with this number.
    pub fn from_octet(octet: u8) -> Option<SegmentKind> {
        match octet {
            1 => Some(SegmentKind::Set),
            2 => Some(SegmentKind::Sequence),
            3 => Some(SegmentKind::ConfedSequence),
            4 => Some(SegmentKind::ConfedSet),
            _ => None,
        }
    }

    /// Whether it belongs to a confederation.
    pub fn is_confed(self) -> bool {
        matches!(self, SegmentKind::ConfedSequence | SegmentKind::ConfedSet)
    }
}

/// One segment of an [`AsPath`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Its type.
    pub kind: SegmentKind,
    numbers: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Its numbers in their order.
    pub fn asns(&self) -> impl ExactSizeIterator<Item = Asn> + Clone + use<'a> {
        self.numbers
            .as_chunks::<4>()
            .0
            .iter()
            .map(|n| Asn(u32::from_be_bytes(*n)))
    }

    /// How many numbers it has: 1 to 255.
    pub fn count(&self) -> usize {
        self.numbers.len() / 4
    }
}

/// The most numbers that a segment holds: its count is one octet.
const SEGMENT_MAX: usize = 255;

impl AsPath {
    /// A path of AS_SEQUENCE segments only, the nearest first.
    pub fn from_sequence(asns: &[Asn]) -> AsPath {
        let mut path = Builder::default();
        path.sequence(asns.iter().copied());
        path.finish()
    }

    /// Its segments.
    pub fn segments(&self) -> Segments<'_> {
        Segments(&self.0)
    }

    /// Whether there is nothing in it: the route begins in the sender's own AS.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The wire form with four-octet numbers.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its length for the decision process: a set counts one, confederation segments nothing
    /// (RFC 4271 section 9.1.2.2, RFC 5065 section 5.3).
    pub fn path_length(&self) -> u32 {
        self.segments()
            .map(|s| match s.kind {
                SegmentKind::Sequence => s.count() as u32,
                SegmentKind::Set => 1,
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
            })
            .sum()
    }

    /// Whether `asn` is anywhere in it.
    pub fn contains(&self, asn: Asn) -> bool {
        self.segments().any(|s| s.asns().any(|a| a == asn))
    }

    /// How often `asn` is in it.
    pub fn count(&self, asn: Asn) -> usize {
        self.segments()
            .map(|s| s.asns().filter(|a| *a == asn).count())
            .sum()
    }

    /// The neighbouring AS, whose MEDs compare with each other (RFC 4271 section 9.1.2.2): the first of the leading
    /// AS_SEQUENCE, confederation segments aside. `None`: the path is empty or begins with a set.
    pub fn neighbor_as(&self) -> Option<Asn> {
        let first = self.segments().find(|s| !s.kind.is_confed())?;
        match first.kind {
            SegmentKind::Sequence => first.asns().next(),
            _ => None,
        }
    }

    /// The AS that the route begins in: the last of the path, if the last segment is a sequence.
    pub fn origin_as(&self) -> Option<Asn> {
        let last = self.segments().last()?;
        match last.kind {
            SegmentKind::Sequence => last.asns().last(),
            _ => None,
        }
    }

    /// The path with `asn` put in front `n` times (RFC 4271 section 5.1.2).
    pub fn prepend(&self, asn: Asn, n: usize) -> AsPath {
        let mut path = Builder::default();
        let mut segments = self.segments();
        match segments.clone().next() {
            Some(first) if first.kind == SegmentKind::Sequence => {
                path.sequence(std::iter::repeat_n(asn, n).chain(first.asns()));
                segments.next();
            }
            _ => path.sequence(std::iter::repeat_n(asn, n)),
        }
        path.bytes.extend_from_slice(segments.0);
        path.finish()
    }
}

/// Iterates the segments of an [`AsPath`].
#[derive(Clone, Debug)]
pub struct Segments<'a>(&'a [u8]);

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let ([kind, count], rest) = self.0.split_first_chunk::<2>()?;
        let (numbers, rest) = rest.split_at_checked(usize::from(*count) * 4)?;
        self.0 = rest;
        Some(Segment {
            kind: SegmentKind::from_octet(*kind)?,
            numbers,
        })
    }
}

/// Makes an [`AsPath`]: the one place that cuts numbers into segments.
#[derive(Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// Appends numbers as AS_SEQUENCE, in as few segments as it takes. The first one takes the remainder, so that
    /// what is prepended later finds a segment to join.
    fn sequence(&mut self, asns: impl Iterator<Item = Asn>) {
        let asns: Vec<Asn> = asns.collect();
        let (head, tail) = asns.split_at(asns.len() % SEGMENT_MAX);
        self.segment(SegmentKind::Sequence, head.iter().copied());
        for chunk in tail.chunks(SEGMENT_MAX) {
            self.segment(SegmentKind::Sequence, chunk.iter().copied());
        }
    }

    /// Appends a segment of at most 255 numbers (what is more is left out); nothing if there are none.
    pub(crate) fn segment(&mut self, kind: SegmentKind, asns: impl Iterator<Item = Asn>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[kind as u8, 0]);
        let mut count = 0u8;
        for asn in asns.take(SEGMENT_MAX) {
            self.bytes.extend_from_slice(&asn.0.to_be_bytes());
            count += 1;
        }
        if count == 0 {
            self.bytes.truncate(start);
        } else if let Some(octet) = self.bytes.get_mut(start + 1) {
            *octet = count;
        }
    }

    /// The path, followed by `tail`: a sequence at its end and one at the beginning of `tail` become one where they fit.
    pub(crate) fn join(self, tail: &AsPath) -> AsPath {
        let head = AsPath(self.bytes.into());
        let mut segments = tail.segments();
        let (Some(last), Some(first)) = (head.segments().last(), segments.next()) else {
            return if head.is_empty() { tail.clone() } else { head };
        };
        let fits = last.count() + first.count() <= SEGMENT_MAX;
        if last.kind != SegmentKind::Sequence || first.kind != last.kind || !fits {
            return AsPath([head.as_bytes(), tail.as_bytes()].concat().into());
        }
        let mut joined = Builder {
            bytes: head.as_bytes()[..head.as_bytes().len() - 2 - last.numbers.len()].to_vec(),
        };
        joined.segment(last.kind, last.asns().chain(first.asns()));
        joined.bytes.extend_from_slice(segments.0);
        joined.finish()
    }

    /// The path.
    pub(crate) fn finish(self) -> AsPath {
        AsPath(self.bytes.into())
    }
}

impl fmt::Display for AsPath {
    /// As people write it: `65001 65002 {65003,65004} (65100)`; nothing for an empty path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.segments().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            let (open, between, close) = match segment.kind {
                SegmentKind::Sequence => ("", " ", ""),
                SegmentKind::Set => ("{", ",", "}"),
                SegmentKind::ConfedSequence => ("(", " ", ")"),
                SegmentKind::ConfedSet => ("[", ",", "]"),
            };
            f.write_str(open)?;
            for (i, asn) in segment.asns().enumerate() {
                if i > 0 {
                    f.write_str(between)?;
                }
                write!(f, "{asn}")?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

impl fmt::Debug for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(asns: &[u32]) -> AsPath {
        AsPath::from_sequence(&asns.iter().copied().map(Asn).collect::<Vec<_>>())
    }

    fn path(segments: &[(SegmentKind, &[u32])]) -> AsPath {
        let mut b = Builder::default();
        for (kind, asns) in segments {
            b.segment(*kind, asns.iter().copied().map(Asn));
        }
        b.finish()
    }

    #[test]
    fn lengths_neighbours_and_texts() {
        use SegmentKind::*;
        for (p, length, neighbor, origin, text) in [
            (path(&[]), 0, None, None, ""),
            (seq(&[1, 2, 3]), 3, Some(1), Some(3), "1 2 3"),
            (
                path(&[(Sequence, &[1, 2]), (Set, &[3, 4, 5])]),
                3,
                Some(1),
                None,
                "1 2 {3,4,5}",
            ),
            (path(&[(Set, &[3, 4])]), 1, None, None, "{3,4}"),
            (
                path(&[
                    (ConfedSequence, &[9, 8]),
                    (ConfedSet, &[7, 6]),
                    (Sequence, &[1]),
                ]),
                1,
                Some(1),
                Some(1),
                "(9 8) [7,6] 1",
            ),
        ] {
            assert_eq!(p.path_length(), length, "{text}");
            assert_eq!(p.neighbor_as(), neighbor.map(Asn), "{text}");
            assert_eq!(p.origin_as(), origin.map(Asn), "{text}");
            assert_eq!(p.to_string(), text);
        }
    }

    #[test]
    fn counting() {
        let p = path(&[
            (SegmentKind::Sequence, &[1, 1, 2]),
            (SegmentKind::Set, &[1, 3]),
        ]);
        assert_eq!(p.count(Asn(1)), 3);
        assert_eq!(p.count(Asn(4)), 0);
        assert!(p.contains(Asn(3)) && !p.contains(Asn(4)));
    }

    #[test]
    fn prepending_joins_the_first_sequence_until_it_is_full() {
        use SegmentKind::*;
        assert_eq!(seq(&[2]).prepend(Asn(1), 2), seq(&[1, 1, 2]));
        assert_eq!(seq(&[]).prepend(Asn(1), 1), seq(&[1]));
        assert_eq!(seq(&[2]).prepend(Asn(1), 0), seq(&[2]));
        assert_eq!(
            path(&[(Set, &[3])]).prepend(Asn(1), 1),
            path(&[(Sequence, &[1]), (Set, &[3])])
        );
        assert_eq!(
            path(&[(Sequence, &[2]), (Set, &[3])]).prepend(Asn(1), 1),
            path(&[(Sequence, &[1, 2]), (Set, &[3])])
        );
        for n in [254, 255, 256, 510, 511] {
            let long = seq(&vec![7; n]).prepend(Asn(1), 1);
            assert_eq!(long.path_length(), n as u32 + 1);
            assert_eq!(long.neighbor_as(), Some(Asn(1)));
            assert!(long.segments().all(|s| (1..=255).contains(&s.count())));
        }
    }
}
