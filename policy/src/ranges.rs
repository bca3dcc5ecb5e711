//! Sets of addresses and of ports as sorted, disjoint, coalesced ranges.
//!
//! The kernel's interval sets refuse overlaps, and nft's auto-merge loses elements: so the arithmetic happens here.

use crate::model::Family;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Ports from `first` to `last`, both included; `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: PortRange = PortRange {
        first: 0,
        last: u16::MAX,
    };

    /// The range; `None` if it is empty.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(PortRange { first, last })
    }

    /// One port.
    #[must_use]
    pub fn one(port: u16) -> Self {
        PortRange {
            first: port,
            last: port,
        }
    }

    /// First port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// Last port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is inside.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// Addresses of both families; a clone costs two reference counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrRanges {
    v4: Arc<[(u32, u32)]>,
    v6: Arc<[(u128, u128)]>,
}

impl AddrRanges {
    /// A block without its exceptions. Host bits are masked; exceptions outside the block are without effect.
    #[must_use]
    pub fn block(cidr: IpNet, except: &[IpNet]) -> Self {
        match Family::of(cidr.addr()) {
            Family::V4 => AddrRanges {
                v4: without(cidr, except, v4_range).into(),
                v6: Arc::default(),
            },
            Family::V6 => AddrRanges {
                v4: Arc::default(),
                v6: without(cidr, except, v6_range).into(),
            },
        }
    }

    /// What is in any of them: sorted once, however many there are.
    #[must_use]
    pub fn union<'a>(parts: impl IntoIterator<Item = &'a AddrRanges>) -> Self {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else {
            return AddrRanges::default();
        };
        let Some(second) = parts.next() else {
            return first.clone();
        };
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for part in [first, second].into_iter().chain(parts) {
            v4.extend_from_slice(&part.v4);
            v6.extend_from_slice(&part.v6);
        }
        AddrRanges {
            v4: coalesce(v4).into(),
            v6: coalesce(v6).into(),
        }
    }

    /// Whether nothing is inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether the address is inside.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => is_within(&self.v4, a.to_bits()),
            IpAddr::V6(a) => is_within(&self.v6, a.to_bits()),
        }
    }

    /// How many ranges of a family there are.
    #[must_use]
    pub fn count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.len(),
            Family::V6 => self.v6.len(),
        }
    }

    /// The ranges of a family, ascending, both ends included, no two touching.
    pub fn iter(&self, family: Family) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        let (v4, v6): (&[_], &[_]) = match family {
            Family::V4 => (&self.v4, &[]),
            Family::V6 => (&[], &self.v6),
        };
        let v4 = v4
            .iter()
            .map(|(a, b)| (Ipv4Addr::from(*a).into(), Ipv4Addr::from(*b).into()));
        let v6 = v6
            .iter()
            .map(|(a, b)| (Ipv6Addr::from(*a).into(), Ipv6Addr::from(*b).into()));
        v4.chain(v6)
    }

    /// The part of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> Self {
        match family {
            Family::V4 => AddrRanges {
                v4: self.v4.clone(),
                v6: Arc::default(),
            },
            Family::V6 => AddrRanges {
                v4: Arc::default(),
                v6: self.v6.clone(),
            },
        }
    }
}

/// Ports as sorted, disjoint, coalesced ranges.
#[must_use]
pub fn coalesce_ports(ranges: impl IntoIterator<Item = PortRange>) -> Vec<PortRange> {
    let ends = ranges.into_iter().map(|r| (r.first, r.last)).collect();
    coalesce(ends)
        .into_iter()
        .map(|(first, last)| PortRange { first, last })
        .collect()
}

/// A number that ranges are made of.
trait Value: Copy + Ord {
    /// The next one; `None` behind the last.
    fn next(self) -> Option<Self>;
    /// The one before; `None` in front of the first.
    fn previous(self) -> Option<Self>;
}

macro_rules! value {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn previous(self) -> Option<Self> {
                self.checked_sub(1)
            }
        }
    )*};
}

value!(u16, u32, u128);

fn v4_range(net: &IpNet) -> Option<(u32, u32)> {
    match net {
        IpNet::V4(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
        IpNet::V6(_) => None,
    }
}

fn v6_range(net: &IpNet) -> Option<(u128, u128)> {
    match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some((net.network().to_bits(), net.broadcast().to_bits())),
    }
}

/// A block without its exceptions, by the ends that `range` gives for those of its family.
fn without<T: Value>(
    cidr: IpNet,
    except: &[IpNet],
    range: impl Fn(&IpNet) -> Option<(T, T)>,
) -> Vec<(T, T)> {
    let holes = coalesce(except.iter().filter_map(&range).collect());
    range(&cidr).map_or_else(Vec::new, |whole| subtract(whole, &holes))
}

fn is_within<T: Value>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= value);
    after
        .checked_sub(1)
        .and_then(|i| ranges.get(i))
        .is_some_and(|(_, last)| value <= *last)
}

fn coalesce<T: Value>(mut ranges: Vec<(T, T)>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(previous) if previous.1.next().is_none_or(|next| first <= next) => {
                previous.1 = previous.1.max(last);
            }
            _ => out.push((first, last)),
        }
    }
    out
}

/// One range without `holes`, which are coalesced.
fn subtract<T: Value>((mut first, last): (T, T), holes: &[(T, T)]) -> Vec<(T, T)> {
    let mut out = Vec::new();
    let begin = holes.partition_point(|(_, hole_last)| *hole_last < first);
    for &(hole_first, hole_last) in holes.iter().skip(begin) {
        if hole_first > last {
            break;
        }
        if hole_first > first
            && let Some(before) = hole_first.previous()
        {
            out.push((first, before));
        }
        match hole_last.next() {
            Some(next) if next <= last => first = next,
            _ => return out,
        }
    }
    out.push((first, last));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Blocks within 10.0.0.0/24, so that they meet.
    fn net() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 24..=32_u8).prop_map(|(last, len)| {
            IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), len).expect("a length")
        })
    }

    proptest! {
        #[test]
        fn ranges_hold_what_their_blocks_hold(
            blocks in vec((net(), vec(net(), 0..4)), 0..5),
            ports in vec((0..300_u16, 0..300_u16), 0..6),
        ) {
            let parts: Vec<_> = blocks.iter().map(|(net, holes)| AddrRanges::block(*net, holes)).collect();
            let ranges = AddrRanges::union(&parts);
            for last in 0..=255 {
                let addr = IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
                let expected = blocks.iter().any(|(net, holes)| {
                    net.trunc().contains(&addr) && !holes.iter().any(|hole| hole.trunc().contains(&addr))
                });
                prop_assert_eq!(ranges.contains(addr), expected);
            }
            for pair in ranges.iter(Family::V4).collect::<Vec<_>>().windows(2) {
                prop_assert!(addr_value(pair[0].1) + 1 < addr_value(pair[1].0), "{:?}", pair);
            }
            let ports: Vec<_> = ports.into_iter().filter_map(|(a, b)| PortRange::new(a, b)).collect();
            let joined = coalesce_ports(ports.clone());
            for port in 0..=300 {
                let inside = |all: &[PortRange]| all.iter().any(|r| r.contains(port));
                prop_assert_eq!(inside(&joined), inside(&ports));
            }
        }
    }

    fn addr_value(addr: IpAddr) -> u32 {
        match addr {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(_) => panic!("IPv4 only"),
        }
    }

    #[test]
    fn the_whole_family() {
        for (cidr, first, last) in [
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let net: IpNet = cidr.parse().expect("a CIDR");
            let ranges = AddrRanges::block(net, &[]);
            let ends = (
                first.parse().expect("an address"),
                last.parse().expect("an address"),
            );
            assert_eq!(
                ranges.iter(Family::of(net.addr())).collect::<Vec<_>>(),
                [ends]
            );
            assert!(AddrRanges::block(net, &[net]).is_empty());
            assert_eq!(AddrRanges::union([&ranges, &ranges]), ranges);
        }
    }
}
