//! An address and a length, as routes, addresses and sets have them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address family numbers of the kernel.
pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// A prefix; bits of `addr` behind `len` may be set (an interface's address has them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address.
    pub addr: IpAddr,
    /// Bits that count: at most 32 or 128.
    pub len: u8,
}

impl Prefix {
    /// A prefix; a length beyond the family's is cut to it.
    pub fn new(addr: IpAddr, len: u8) -> Self {
        Self {
            addr,
            len: len.min(max_len(addr)),
        }
    }

    /// The prefix with this one address in it.
    pub fn host(addr: IpAddr) -> Self {
        Self {
            addr,
            len: max_len(addr),
        }
    }

    /// 0.0.0.0/0 or ::/0.
    pub fn default_of(v6: bool) -> Self {
        match v6 {
            true => Self {
                addr: Ipv6Addr::UNSPECIFIED.into(),
                len: 0,
            },
            false => Self {
                addr: Ipv4Addr::UNSPECIFIED.into(),
                len: 0,
            },
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

fn max_len(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

pub(crate) fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The unspecified address of a family that the kernel named.
pub(crate) fn unspecified(family: u8) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}
