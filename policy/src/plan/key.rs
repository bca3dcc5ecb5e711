//! Names, key types and keys of sets, with the bytes that the kernel compares.

use crate::model::{Family, IfName, Proto};
use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The name of a table, set or chain: starts with a letter, then letters, digits and `_`; at most 32 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Callers pass what the type's documentation allows.
    pub(crate) fn new(name: impl Into<Arc<str>>) -> Self {
        Name(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Maps by name are asked with a plain text.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a pod's interface is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfaceMatch {
    /// `iifgroup`, `oifgroup`: meta load IIFGROUP or OIFGROUP; cmp eq, 4 bytes in host order.
    Group(u32),
    /// `iifname "prefix*"`: meta load IIFNAME or OIFNAME; cmp eq on the prefix's bytes without the final zero.
    Prefix(Arc<str>),
}

/// One part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ipv4_addr`, 4 bytes.
    Ipv4,
    /// `ipv6_addr`, 16 bytes.
    Ipv6,
    /// `inet_proto`, 1 byte.
    Proto,
    /// `inet_service`, 2 bytes, big endian.
    Port,
    /// `ifname`, 16 bytes.
    Ifname,
}

#[expect(clippy::len_without_is_empty, reason = "a length in bytes, never 0")]
impl Field {
    /// Its length in bytes, without the padding to 4 that it gets in a concatenation.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            Field::Ipv4 => 4,
            Field::Ipv6 | Field::Ifname => 16,
            Field::Proto => 1,
            Field::Port => 2,
        }
    }

    /// The number of nft's data type (`enum datatypes` of nftables), which sets carry so that `nft list` can print them.
    #[must_use]
    pub fn nft_type(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Proto => 12,
            Field::Port => 13,
            Field::Ifname => 41,
        }
    }

    fn of(family: Family) -> Field {
        match family {
            Family::V4 => Field::Ipv4,
            Family::V6 => Field::Ipv6,
        }
    }
}

/// The type of the keys of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// An address.
    Addr(Family),
    /// A port.
    Port,
    /// `inet_proto . inet_service`.
    ProtoPort,
    /// `ipv4_addr . inet_proto . inet_service`, or with ipv6_addr.
    AddrProtoPort(Family),
    /// `ifname . ipv4_addr`, or with ipv6_addr.
    IfnameAddr(Family),
    /// Two addresses.
    AddrPair(Family),
}

#[expect(clippy::len_without_is_empty, reason = "a length in bytes, never 0")]
impl KeyType {
    /// Its fields; one: a plain key, several: a concatenation.
    #[must_use]
    pub fn fields(self) -> Vec<Field> {
        match self {
            KeyType::Addr(f) => vec![Field::of(f)],
            KeyType::Port => vec![Field::Port],
            KeyType::ProtoPort => vec![Field::Proto, Field::Port],
            KeyType::AddrProtoPort(f) => vec![Field::of(f), Field::Proto, Field::Port],
            KeyType::IfnameAddr(f) => vec![Field::Ifname, Field::of(f)],
            KeyType::AddrPair(f) => vec![Field::of(f), Field::of(f)],
        }
    }

    /// The length of a key: fields of a concatenation are padded to 4 bytes each, a plain key is not padded.
    #[must_use]
    pub fn len(self) -> usize {
        match self.fields().as_slice() {
            [one] => one.len(),
            many => many.iter().map(|f| f.len().next_multiple_of(4)).sum(),
        }
    }

    /// nft's number for the type: that of the field, or six bits per field, first field highest.
    #[must_use]
    pub fn nft_type(self) -> u32 {
        self.fields()
            .into_iter()
            .fold(0, |id, f| id << 6 | f.nft_type())
    }
}

/// An element's key. Ordered by address first, so that all elements of an address stand together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An address.
    Addr(IpAddr),
    /// Addresses from first to last, in an interval set.
    AddrRange(IpAddr, IpAddr),
    /// Ports from first to last, in an interval set.
    PortRange(u16, u16),
    /// Protocol and port.
    ProtoPort(Proto, u16),
    /// Address, protocol, port.
    AddrProtoPort(IpAddr, Proto, u16),
    /// Interface name and address.
    IfnameAddr(IfName, IpAddr),
    /// Two addresses.
    AddrPair(IpAddr, IpAddr),
}

impl Key {
    /// The address that the element is about, if it is about one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Key::Addr(a)
            | Key::AddrProtoPort(a, ..)
            | Key::IfnameAddr(_, a)
            | Key::AddrPair(a, _) => Some(*a),
            Key::AddrRange(..) | Key::PortRange(..) | Key::ProtoPort(..) => None,
        }
    }

    /// The bytes that the kernel compares; for a range those of its first value.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        match self {
            Key::Addr(a) | Key::AddrRange(a, _) => push_addr(&mut out, *a),
            Key::PortRange(port, _) => out.extend(port.to_be_bytes()),
            Key::ProtoPort(proto, port) => push_proto_port(&mut out, *proto, *port),
            Key::AddrProtoPort(a, proto, port) => {
                push_addr(&mut out, *a);
                push_proto_port(&mut out, *proto, *port);
            }
            Key::IfnameAddr(name, a) => {
                out.extend(name.bytes());
                push_addr(&mut out, *a);
            }
            Key::AddrPair(a, b) => {
                push_addr(&mut out, *a);
                push_addr(&mut out, *b);
            }
        }
        out
    }

    /// For a range: the bytes of the value after its last, which the kernel wants as a second element with flag
    /// INTERVAL_END. `None` for a range that ends with the highest value there is (it needs no end), and for other keys.
    #[must_use]
    pub fn interval_end(&self) -> Option<Vec<u8>> {
        match self {
            Key::AddrRange(_, IpAddr::V4(last)) => {
                Some(u32::from(*last).checked_add(1)?.to_be_bytes().to_vec())
            }
            Key::AddrRange(_, IpAddr::V6(last)) => {
                Some(u128::from(*last).checked_add(1)?.to_be_bytes().to_vec())
            }
            Key::PortRange(_, last) => Some(last.checked_add(1)?.to_be_bytes().to_vec()),
            _ => None,
        }
    }
}

fn push_addr(out: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => out.extend(a.octets()),
        IpAddr::V6(a) => out.extend(a.octets()),
    }
}

fn push_proto_port(out: &mut Vec<u8>, proto: Proto, port: u16) {
    out.extend([proto.number(), 0, 0, 0]);
    out.extend(port.to_be_bytes());
    out.extend([0, 0]);
}
