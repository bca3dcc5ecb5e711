//! What a set or map is, without its elements.

use super::comment;
use crate::attr::Body;

const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;

const FLAG_CONSTANT: u32 = 0x2;
pub(crate) const FLAG_INTERVAL: u32 = 0x4;
pub(crate) const FLAG_MAP: u32 = 0x8;
pub(crate) const FLAG_CONCAT: u32 = 0x80;
/// The data type of verdict maps.
pub(crate) const TYPE_VERDICT: u32 = 0xffff_ff00;

const UDATA_KEY_BYTE_ORDER: u8 = 0;
const UDATA_DATA_BYTE_ORDER: u8 = 1;
pub(crate) const UDATA_COMMENT: u8 = 7;

/// A type of key or data: the kernel knows its length, `nft` knows its number and prints by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataType {
    /// `nft`'s number of the type.
    pub number: u32,
    /// Length in bytes, without padding.
    pub len: u32,
    /// Whether the bytes are in the order of the host.
    pub host_order: bool,
}

impl DataType {
    /// An IPv4 address, 4 bytes.
    pub const IPV4_ADDR: Self = Self::network(7, 4);
    /// An IPv6 address, 16 bytes.
    pub const IPV6_ADDR: Self = Self::network(8, 16);
    /// A hardware address, 6 bytes.
    pub const ETHER_ADDR: Self = Self::network(9, 6);
    /// A transport protocol, 1 byte.
    pub const INET_PROTO: Self = Self::network(12, 1);
    /// A port, 2 bytes.
    pub const INET_SERVICE: Self = Self::network(13, 2);
    /// A mark, 4 bytes in the host's order.
    pub const MARK: Self = Self::host(19, 4);
    /// The index of an interface, 4 bytes in the host's order.
    pub const IFACE_INDEX: Self = Self::host(20, 4);
    /// A link group, 4 bytes in the host's order.
    pub const DEVGROUP: Self = Self::host(35, 4);
    /// The name of an interface, 16 bytes filled with zeros.
    pub const IFNAME: Self = Self::host(41, 16);

    const fn network(number: u32, len: u32) -> Self {
        Self {
            number,
            len,
            host_order: false,
        }
    }

    const fn host(number: u32, len: u32) -> Self {
        Self {
            number,
            len,
            host_order: true,
        }
    }

    fn padded(self) -> u32 {
        self.len.next_multiple_of(4)
    }

    /// libnftables' numbers: 1 host, 2 big endian.
    fn byte_order(self) -> u32 {
        if self.host_order { 1 } else { 2 }
    }
}

/// What a map maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapData<'a> {
    /// Verdicts.
    Verdict,
    /// Values; several types form a concatenation.
    Value(&'a [DataType]),
}

/// A set or a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Set<'a> {
    /// Name, at most 255 bytes.
    pub name: &'a str,
    /// Type of the keys. Several form a concatenation: each field is padded to four bytes.
    pub key: &'a [DataType],
    /// Elements are ranges: a tree for one field (each change costs a walk over the set), a
    /// per-field structure for a concatenation (deleting is expensive).
    pub interval: bool,
    /// What it maps to, if it is a map.
    pub data: Option<MapData<'a>>,
    /// Elements cannot change any more after its transaction.
    pub constant: bool,
    /// The greatest number of elements; helps the kernel to choose.
    pub size: Option<u32>,
    /// A text for people.
    pub comment: Option<&'a str>,
}

impl<'a> Set<'a> {
    /// A plain hash set.
    pub const fn hash(name: &'a str, key: &'a [DataType]) -> Self {
        let (data, size, comment) = (None, None, None);
        Self {
            name,
            key,
            interval: false,
            data,
            constant: false,
            size,
            comment,
        }
    }

    /// A set of ranges.
    pub const fn ranges(name: &'a str, key: &'a [DataType]) -> Self {
        Self {
            interval: true,
            ..Self::hash(name, key)
        }
    }

    /// A map to verdicts.
    pub const fn verdicts(name: &'a str, key: &'a [DataType]) -> Self {
        Self {
            data: Some(MapData::Verdict),
            ..Self::hash(name, key)
        }
    }

    /// A map to values.
    pub const fn map(name: &'a str, key: &'a [DataType], data: &'a [DataType]) -> Self {
        Self {
            data: Some(MapData::Value(data)),
            ..Self::hash(name, key)
        }
    }

    /// Whether the key has several fields.
    pub fn is_concat(&self) -> bool {
        self.key.len() > 1
    }

    /// Length of a key in bytes, padding of a concatenation included.
    pub fn key_len(&self) -> u32 {
        length(self.key)
    }

    /// The kernel's flags for it.
    pub fn flags(&self) -> u32 {
        let mut flags = 0;
        for (on, flag) in [
            (self.constant, FLAG_CONSTANT),
            (self.interval, FLAG_INTERVAL),
            (self.data.is_some(), FLAG_MAP),
            // Only ranges are kept field by field; for a hash the key is one string of bytes.
            (self.interval && self.is_concat(), FLAG_CONCAT),
        ] {
            if on {
                flags |= flag;
            }
        }
        flags
    }

    pub(crate) fn encode(&self, body: &mut Body<'_>, table: &str, id: u32) {
        body.text(SET_TABLE, table);
        body.text(SET_NAME, self.name);
        body.be32(SET_FLAGS, self.flags());
        body.be32(SET_KEY_TYPE, number(self.key));
        body.be32(SET_KEY_LEN, self.key_len());
        match self.data {
            Some(MapData::Verdict) => {
                body.be32(SET_DATA_TYPE, TYPE_VERDICT);
                body.be32(SET_DATA_LEN, 0);
            }
            Some(MapData::Value(types)) => {
                body.be32(SET_DATA_TYPE, number(types));
                body.be32(SET_DATA_LEN, length(types));
            }
            None => {}
        }
        body.nest(SET_DESC, |body| self.encode_desc(body));
        body.be32(SET_ID, id);
        let mut user_data = Vec::new();
        self.encode_user_data(&mut user_data);
        body.bytes(SET_USERDATA, &user_data);
    }

    fn encode_desc(&self, body: &mut Body<'_>) {
        if let Some(size) = self.size {
            body.be32(1, size);
        }
        // The kernel refuses fields without the flag, and the flag without fields.
        if !self.interval || !self.is_concat() {
            return;
        }
        body.nest(2, |body| {
            for field in self.key {
                body.nest(1, |body| body.be32(1, field.len));
            }
        });
    }

    /// Without the byte orders `nft` prints integers backwards.
    fn encode_user_data(&self, user_data: &mut Vec<u8>) {
        let mut order = |kind, types: &[DataType]| {
            let [first, ..] = types else { return };
            user_data.extend_from_slice(&[kind, 4]);
            user_data.extend_from_slice(&first.byte_order().to_ne_bytes());
        };
        order(UDATA_KEY_BYTE_ORDER, self.key);
        if let Some(MapData::Value(types)) = self.data {
            order(UDATA_DATA_BYTE_ORDER, types);
        }
        if let Some(text) = self.comment {
            comment(user_data, UDATA_COMMENT, text);
        }
    }
}

/// `nft`'s number for a type or a concatenation: six bits per field, the first one highest.
pub(crate) fn number(types: &[DataType]) -> u32 {
    types
        .iter()
        .fold(0, |number, field| number << 6 | field.number)
}

fn length(types: &[DataType]) -> u32 {
    match types {
        [one] => one.len,
        many => many.iter().map(|field| field.padded()).sum(),
    }
}
