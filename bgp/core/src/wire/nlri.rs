//! Prefixes on the wire: `<length, prefix>` (RFC 4271 section 4.3), with a path identifier before it where negotiated (RFC 7911).

use bytes::Bytes;

use crate::{ids::Family, prefix::Prefix};

/// NLRI of one family, checked once and then read as often as needed, without a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NlriBlock {
    family: Family,
    add_path: bool,
    bytes: Bytes,
}

/// Why bytes are no NLRI.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidNlri {
    /// A length over the family's number of bits.
    #[error("prefix length {0} is too long for the address family")]
    Length(u8),
    /// The field ends inside an element.
    #[error("the field ends inside a prefix")]
    Truncated,
}

impl NlriBlock {
    /// Checks every element of `bytes`. Bits past a prefix's length are allowed and ignored (RFC 4271 section 4.3).
    pub fn new(family: Family, add_path: bool, bytes: Bytes) -> Result<NlriBlock, InvalidNlri> {
        let max = if family == Family::Ipv4 { 32 } else { 128 };
        let mut rest: &[u8] = &bytes;
        while !rest.is_empty() {
            if add_path {
                rest = rest.get(4..).ok_or(InvalidNlri::Truncated)?;
            }
            let (&len, tail) = rest.split_first().ok_or(InvalidNlri::Truncated)?;
            if len > max {
                return Err(InvalidNlri::Length(len));
            }
            rest = tail
                .get(usize::from(len).div_ceil(8)..)
                .ok_or(InvalidNlri::Truncated)?;
        }
        Ok(NlriBlock {
            family,
            add_path,
            bytes,
        })
    }

    /// The family of all its prefixes.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many octets it is long.
    pub fn octets(&self) -> usize {
        self.bytes.len()
    }

    /// Its elements: path identifier (0 where none was negotiated) and prefix.
    pub fn iter(&self) -> NlriIter<'_> {
        NlriIter {
            family: self.family,
            add_path: self.add_path,
            rest: &self.bytes,
        }
    }
}

impl<'a> IntoIterator for &'a NlriBlock {
    type Item = (u32, Prefix);
    type IntoIter = NlriIter<'a>;

    fn into_iter(self) -> NlriIter<'a> {
        self.iter()
    }
}

/// Reads a [`NlriBlock`].
#[derive(Clone, Debug)]
pub struct NlriIter<'a> {
    family: Family,
    add_path: bool,
    rest: &'a [u8],
}

impl Iterator for NlriIter<'_> {
    type Item = (u32, Prefix);

    fn next(&mut self) -> Option<(u32, Prefix)> {
        let mut path_id = 0;
        if self.add_path {
            let (id, rest) = self.rest.split_first_chunk::<4>()?;
            path_id = u32::from_be_bytes(*id);
            self.rest = rest;
        }
        let (&len, rest) = self.rest.split_first()?;
        let octets = usize::from(len).div_ceil(8);
        let (bits, rest) = rest.split_at_checked(octets)?;
        self.rest = rest;
        let prefix = match self.family {
            Family::Ipv4 => {
                let mut a = [0; 4];
                a.get_mut(..octets)?.copy_from_slice(bits);
                Prefix::v4(a.into(), len)?
            }
            Family::Ipv6 => {
                let mut a = [0; 16];
                a.get_mut(..octets)?.copy_from_slice(bits);
                Prefix::v6(a.into(), len)?
            }
        };
        Some((path_id, prefix))
    }
}

/// Appends one element; `path_id` where negotiated.
pub fn put(out: &mut impl bytes::BufMut, path_id: Option<u32>, prefix: &Prefix) {
    if let Some(id) = path_id {
        out.put_u32(id);
    }
    out.put_u8(prefix.len());
    let octets = usize::from(prefix.len()).div_ceil(8);
    match *prefix {
        Prefix::V4 { addr, .. } => out.put_slice(&addr.to_be_bytes()[..octets]),
        Prefix::V6 { addr, .. } => out.put_slice(&addr.to_be_bytes()[..octets]),
    }
}

/// How many octets [`put`] will write.
pub fn encoded_len(path_id: Option<u32>, prefix: &Prefix) -> usize {
    path_id.map_or(0, |_| 4) + 1 + usize::from(prefix.len()).div_ceil(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read() {
        let prefixes: Vec<Prefix> = ["0.0.0.0/0", "10.0.0.0/8", "10.128.0.0/9", "1.2.3.4/32"]
            .iter()
            .map(|s| s.parse().unwrap())
            .collect();
        for add_path in [false, true] {
            let mut out = Vec::new();
            let mut expected = Vec::new();
            for (i, p) in prefixes.iter().enumerate() {
                let id = add_path.then_some(i as u32 + 7);
                let before = out.len();
                put(&mut out, id, p);
                assert_eq!(out.len() - before, encoded_len(id, p));
                expected.push((id.unwrap_or(0), *p));
            }
            let block = NlriBlock::new(Family::Ipv4, add_path, out.into()).unwrap();
            assert_eq!(block.iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn faults_are_named() {
        for (family, add_path, bytes, fault) in [
            (
                Family::Ipv4,
                false,
                &[33, 1, 2, 3, 4, 5][..],
                InvalidNlri::Length(33),
            ),
            (Family::Ipv4, false, &[24, 1, 2], InvalidNlri::Truncated),
            (Family::Ipv4, true, &[0, 0, 0], InvalidNlri::Truncated),
            (Family::Ipv4, true, &[0, 0, 0, 1], InvalidNlri::Truncated),
            (Family::Ipv6, false, &[129], InvalidNlri::Length(129)),
            (
                Family::Ipv6,
                false,
                &[64, 1, 2, 3, 4, 5, 6, 7],
                InvalidNlri::Truncated,
            ),
        ] {
            assert_eq!(
                NlriBlock::new(family, add_path, Bytes::copy_from_slice(bytes)),
                Err(fault)
            );
        }
    }

    #[test]
    fn host_bits_do_not_make_two_prefixes() {
        let block = NlriBlock::new(Family::Ipv4, false, Bytes::from_static(&[9, 10, 255])).unwrap();
        assert_eq!(block.iter().next().unwrap().1.to_string(), "10.128.0.0/9");
    }
}
