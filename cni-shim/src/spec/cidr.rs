//! An address with a prefix length, as `10.1.2.3/24` is written: the host bits stay.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and the length of its network's prefix; the length is at most that of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    addr: IpAddr,
    len: u8,
}

impl Cidr {
    /// `None` if the length is longer than the address.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        (len <= width(addr)).then_some(Self { addr, len })
    }

    /// The address alone: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        Self {
            addr,
            len: width(addr),
        }
    }

    /// Whether it is one address alone.
    pub fn is_host(self) -> bool {
        self.len == width(self.addr)
    }

    /// All of a family: `0.0.0.0/0` or `::/0`.
    pub fn all(v6: bool) -> Self {
        let addr = if v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        Self { addr, len: 0 }
    }

    /// From `address/length`.
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, len) = text.split_once('/')?;
        if len.is_empty() || len.len() > 3 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Self::new(addr.parse().ok()?, len.parse().ok()?)
    }

    /// The address, host bits included.
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// The prefix length.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether it covers its whole family.
    pub fn is_default(self) -> bool {
        self.len == 0
    }

    /// Whether it is of IPv6.
    pub fn is_v6(self) -> bool {
        self.addr.is_ipv6()
    }

    /// The first address of the network.
    pub fn first(self) -> IpAddr {
        from_bits(to_bits(self.addr) & !self.host_mask(), self.is_v6())
    }

    /// The last address of the network.
    pub fn last(self) -> IpAddr {
        from_bits(to_bits(self.addr) | self.host_mask(), self.is_v6())
    }

    /// Whether `addr` lies in the network.
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv6() == self.is_v6() && to_bits(addr) & !self.host_mask() == to_bits(self.first())
    }

    fn host_mask(self) -> u128 {
        let host = u32::from(width(self.addr) - self.len);
        if host == 128 {
            u128::MAX
        } else {
            (1 << host) - 1
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// The address as a number, right-aligned for IPv4.
pub fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// The inverse of [`to_bits`]; for IPv4 only the low 32 bits count.
pub fn from_bits(bits: u128, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv6() { 128 } else { 32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        for good in [
            "10.1.2.3/24",
            "0.0.0.0/0",
            "::/0",
            "fd00::1/128",
            "1.2.3.4/32",
        ] {
            assert_eq!(Cidr::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "10.1.2.3",
            "10.1.2.3/33",
            "fd00::/129",
            "10.1.2/24",
            "10.1.2.3/",
            "10.1.2.3/+4",
            "/8",
            "a/8",
        ] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn bounds() {
        let net = Cidr::parse("10.1.2.77/26").unwrap();
        assert_eq!(
            (net.first().to_string(), net.last().to_string()),
            ("10.1.2.64".into(), "10.1.2.127".into())
        );
        assert!(
            net.contains("10.1.2.64".parse().unwrap())
                && !net.contains("10.1.2.128".parse().unwrap())
        );
        assert!(
            !net.contains("::a01:240".parse().unwrap()),
            "another family"
        );
        let all = Cidr::all(true);
        assert_eq!(all.last(), IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        assert!(
            all.contains("fe80::1".parse().unwrap()) && !all.contains("1.1.1.1".parse().unwrap())
        );
    }
}
