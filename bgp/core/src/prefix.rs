//! Address prefixes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::ids::Family;

/// An address prefix. Bits past the length are zero: every constructor sees to it, so that equal prefixes are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// An IPv4 prefix of length 0 to 32.
    V4 {
        /// The network address, host order.
        addr: u32,
        /// The length in bits.
        len: u8,
    },
    /// An IPv6 prefix of length 0 to 128.
    V6 {
        /// The network address, host order.
        addr: u128,
        /// The length in bits.
        len: u8,
    },
}

impl Prefix {
    /// The IPv4 prefix of `len` bits; `None` if `len` is over 32.
    pub fn v4(addr: Ipv4Addr, len: u8) -> Option<Prefix> {
        let mask = u32::MAX
            .checked_shl(32u32.checked_sub(len.into())?)
            .unwrap_or(0);
        Some(Prefix::V4 {
            addr: u32::from(addr) & mask,
            len,
        })
    }

    /// The IPv6 prefix of `len` bits; `None` if `len` is over 128.
    pub fn v6(addr: Ipv6Addr, len: u8) -> Option<Prefix> {
        let mask = u128::MAX
            .checked_shl(128u32.checked_sub(len.into())?)
            .unwrap_or(0);
        Some(Prefix::V6 {
            addr: u128::from(addr) & mask,
            len,
        })
    }

    /// The prefix of `len` bits of either family; `None` if `len` is too long for it.
    pub fn new(addr: IpAddr, len: u8) -> Option<Prefix> {
        match addr {
            IpAddr::V4(a) => Prefix::v4(a, len),
            IpAddr::V6(a) => Prefix::v6(a, len),
        }
    }

    /// The prefix that holds one address only.
    pub fn host(addr: IpAddr) -> Prefix {
        match addr {
            IpAddr::V4(a) => Prefix::V4 {
                addr: a.into(),
                len: 32,
            },
            IpAddr::V6(a) => Prefix::V6 {
                addr: a.into(),
                len: 128,
            },
        }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        match self {
            Prefix::V4 { .. } => Family::Ipv4,
            Prefix::V6 { .. } => Family::Ipv6,
        }
    }

    /// Its network address.
    pub fn addr(&self) -> IpAddr {
        match *self {
            Prefix::V4 { addr, .. } => Ipv4Addr::from(addr).into(),
            Prefix::V6 { addr, .. } => Ipv6Addr::from(addr).into(),
        }
    }

    /// Its length in bits. A prefix is never "empty": length zero is the default route.
    #[allow(
        clippy::len_without_is_empty,
        reason = "the length of a prefix is not a number of elements"
    )]
    pub fn len(&self) -> u8 {
        match *self {
            Prefix::V4 { len, .. } | Prefix::V6 { len, .. } => len,
        }
    }

    /// Whether it is the default route of its family.
    pub fn is_default(&self) -> bool {
        self.len() == 0
    }

    /// Whether every address of `other` is in this prefix.
    pub fn covers(&self, other: &Prefix) -> bool {
        match (*self, *other) {
            (Prefix::V4 { addr, len }, Prefix::V4 { addr: a, len: l }) => {
                l >= len && (u64::from(addr ^ a) >> (32 - u32::from(len))) == 0
            }
            (Prefix::V6 { addr, len }, Prefix::V6 { addr: a, len: l }) => {
                l >= len && (addr ^ a).checked_shr(128 - u32::from(len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Its two halves; `None` of a single address.
    pub fn halves(&self) -> Option<[Prefix; 2]> {
        match *self {
            Prefix::V4 { addr, len } if len < 32 => {
                Some([0, 1 << (31 - len)].map(|bit| Prefix::V4 {
                    addr: addr | bit,
                    len: len + 1,
                }))
            }
            Prefix::V6 { addr, len } if len < 128 => {
                Some([0, 1 << (127 - len)].map(|bit| Prefix::V6 {
                    addr: addr | bit,
                    len: len + 1,
                }))
            }
            _ => None,
        }
    }

    /// Whether `addr` is in this prefix.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.covers(&Prefix::host(addr))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an address prefix: expected ADDRESS/LENGTH, such as 10.0.0.0/8 or fd00::/64")]
pub struct InvalidPrefix;

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (addr, len) = s.split_once('/').ok_or(InvalidPrefix)?;
        let addr = addr.parse().map_err(|_| InvalidPrefix)?;
        let len = len.parse().map_err(|_| InvalidPrefix)?;
        Prefix::new(addr, len).ok_or(InvalidPrefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cut() {
        for (given, kept) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("fd00::1/64", "fd00::/64"),
            ("::1/0", "::/0"),
        ] {
            assert_eq!(p(given).to_string(), kept);
        }
    }

    #[test]
    fn covering() {
        for (outer, inner, yes) in [
            ("0.0.0.0/0", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("10.0.0.0/8", "11.0.0.0/16", false),
            ("10.0.0.1/32", "10.0.0.1/32", true),
            ("0.0.0.0/0", "::/0", false),
            ("::/0", "fd00::/64", true),
            ("fd00::/64", "fd00::1/128", true),
            ("fd00::/64", "fd00:0:0:1::1/128", false),
        ] {
            assert_eq!(p(outer).covers(&p(inner)), yes, "{outer} {inner}");
        }
    }

    #[test]
    fn too_long_or_garbled_is_refused() {
        for s in [
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0",
            "/8",
            "x/8",
            "10.0.0.0/-1",
        ] {
            assert!(s.parse::<Prefix>().is_err(), "{s}");
        }
    }
}
