//! Attributes: length, type, value, padded to four bytes (`linux/netlink.h`).
//!
//! [`Body`] writes into a batch; [`Attrs`] reads what came from the kernel. Reading never panics:
//! a length that does not fit ends the iteration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Set in the type of an attribute that contains attributes.
pub const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Writes the inside of one message.
#[derive(Debug)]
pub struct Body<'a> {
    pub(crate) bytes: &'a mut Vec<u8>,
    pub(crate) overflow: &'a mut bool,
}

impl Body<'_> {
    /// Appends bytes as they are (a fixed header), padded to four.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Appends an attribute with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + HEADER) else {
            *self.overflow = true;
            return;
        };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// An attribute without a value.
    pub fn flag(&mut self, kind: u16) {
        self.bytes(kind, &[]);
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// Two bytes in the host's order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Four bytes in the host's order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Two bytes in network order, as netfilter has them.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Four bytes in network order, as netfilter has them.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Eight bytes in network order, as netfilter has them.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string, terminated by a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let Ok(length) = u16::try_from(value.len() + 1 + HEADER) else {
            *self.overflow = true;
            return;
        };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    /// An address of 4 or 16 bytes.
    pub fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }

    /// An attribute that contains what `fill` writes, marked as nested.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Body<'_>)) {
        self.enclose(kind | NESTED, fill);
    }

    /// As [`nest`](Self::nest), without the mark, for the attributes that do not expect it.
    pub fn enclose(&mut self, kind: u16, fill: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(&mut Body {
            bytes: self.bytes,
            overflow: self.overflow,
        });
        let Ok(length) = u16::try_from(self.bytes.len() - start) else {
            *self.overflow = true;
            return;
        };
        if let Some(field) = self.bytes.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self.pad();
    }

    /// Bytes written so far in the batch, for callers that split long lists.
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// One attribute as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// The type, without the nested and byte-order marks.
    pub kind: u16,
    /// The value, without padding.
    pub value: &'a [u8],
}

/// Reads attributes one after the other; ends at the first that does not fit.
#[derive(Debug, Clone)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// Reads the attributes in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads what follows a fixed header of `header` bytes; nothing if it is shorter.
    pub fn after(bytes: &'a [u8], header: usize) -> Self {
        Self {
            rest: bytes.get(header.next_multiple_of(4)..).unwrap_or_default(),
        }
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let length = usize::from(get_u16(self.rest, 0)?);
        let kind = get_u16(self.rest, 2)? & TYPE_MASK;
        let value = self.rest.get(HEADER..length)?;
        self.rest = self
            .rest
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Attr { kind, value })
    }
}

impl<'a> Attr<'a> {
    /// The attributes inside.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.value)
    }

    /// One byte.
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// Two bytes in the host's order.
    pub fn u16(&self) -> Option<u16> {
        get_u16(self.value, 0)
    }

    /// Four bytes in the host's order.
    pub fn u32(&self) -> Option<u32> {
        get_u32(self.value, 0)
    }

    /// Two bytes in network order.
    pub fn be16(&self) -> Option<u16> {
        self.u16().map(u16::from_be)
    }

    /// Four bytes in network order.
    pub fn be32(&self) -> Option<u32> {
        self.u32().map(u32::from_be)
    }

    /// Eight bytes in network order.
    pub fn be64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.get(..8)?.try_into().ok()?))
    }

    /// A string up to its zero byte; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        let end = self
            .value
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(self.value.len());
        String::from_utf8_lossy(self.value.get(..end).unwrap_or_default()).into_owned()
    }

    /// Whether it is this string, compared without a copy.
    pub fn is_text(&self, wanted: &str) -> bool {
        let text = self
            .value
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default();
        text == wanted.as_bytes()
    }

    /// An address of exactly 4 or 16 bytes.
    pub fn ip(&self) -> Option<IpAddr> {
        ip_from(self.value)
    }
}

/// An address from exactly 4 or 16 bytes.
pub(crate) fn ip_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|octets| Ipv6Addr::from(octets).into())
}

pub(crate) fn get_u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}
