//! Elements of sets and maps on the wire.

use super::set::Set;
use super::{Verdict, put_value};
use crate::attr::Body;

const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_KEY_END: u16 = 10;
const INTERVAL_END: u32 = 1;
const LIST_ELEM: u16 = 1;
/// The longest key: 64 bytes, as the kernel has it.
const KEY_MAX: usize = 64;

/// Which keys an element covers. A key of one field has its length, each field of a
/// concatenation is padded to four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Span<'a> {
    /// One key; in a set of ranges the range with this one key.
    One(&'a [u8]),
    /// All keys from the first to the last, both included; in a concatenation field by field.
    Range(&'a [u8], &'a [u8]),
}

/// What a key is mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Data<'a> {
    /// A verdict.
    Verdict(Verdict<&'a str>),
    /// A value.
    Value(&'a [u8]),
}

/// An element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Element<'a> {
    /// Its key or keys.
    pub span: Span<'a>,
    /// Present exactly in a map; not needed in a deletion.
    pub data: Option<Data<'a>>,
}

impl<'a> Element<'a> {
    /// One key of a set.
    pub const fn one(key: &'a [u8]) -> Self {
        Self {
            span: Span::One(key),
            data: None,
        }
    }

    /// A range of a set of ranges, both ends included.
    pub const fn range(first: &'a [u8], last: &'a [u8]) -> Self {
        Self {
            span: Span::Range(first, last),
            data: None,
        }
    }

    /// A key of a verdict map.
    pub const fn verdict(key: &'a [u8], verdict: Verdict<&'a str>) -> Self {
        Self {
            span: Span::One(key),
            data: Some(Data::Verdict(verdict)),
        }
    }

    /// A key of a map to values.
    pub const fn value(key: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            span: Span::One(key),
            data: Some(Data::Value(value)),
        }
    }

    pub(crate) fn encode(&self, body: &mut Body<'_>, set: &Set<'_>) {
        let (first, last) = match self.span {
            Span::One(key) => (key, key),
            Span::Range(first, last) => (first, last),
        };
        if !set.interval {
            return body.nest(LIST_ELEM, |body| self.encode_start(body, first));
        }
        if set.is_concat() {
            return body.nest(LIST_ELEM, |body| {
                self.encode_start(body, first);
                put_value(body, ELEM_KEY_END, last);
            });
        }
        body.nest(LIST_ELEM, |body| self.encode_start(body, first));
        // A range up to the highest key has no end.
        let mut end = [0; KEY_MAX];
        let Some(end) = successor(last, &mut end) else {
            return;
        };
        body.nest(LIST_ELEM, |body| {
            put_value(body, ELEM_KEY, end);
            body.be32(ELEM_FLAGS, INTERVAL_END);
        });
    }

    fn encode_start(&self, body: &mut Body<'_>, key: &[u8]) {
        put_value(body, ELEM_KEY, key);
        match self.data {
            None => {}
            Some(Data::Value(value)) => put_value(body, ELEM_DATA, value),
            Some(Data::Verdict(verdict)) => body.nest(ELEM_DATA, |body| verdict.encode(body)),
        }
    }
}

/// The next key in network order; `None` behind the highest, or if it is too long for a key.
fn successor<'b>(key: &[u8], buffer: &'b mut [u8; KEY_MAX]) -> Option<&'b [u8]> {
    let next = buffer.get_mut(..key.len())?;
    next.copy_from_slice(key);
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_range_is_the_next_key() {
        let cases: [(&[u8], Option<&[u8]>); 5] = [
            (&[10, 0, 0, 255], Some(&[10, 0, 1, 0])),
            (&[0, 0], Some(&[0, 1])),
            (&[0xff, 0xff], None),
            (&[0xfe, 0xff], Some(&[0xff, 0])),
            (&[], None),
        ];
        for (key, next) in cases {
            assert_eq!(successor(key, &mut [0; KEY_MAX]), next, "{key:?}");
        }
        assert_eq!(successor(&[1; KEY_MAX + 1], &mut [0; KEY_MAX]), None);
    }
}
