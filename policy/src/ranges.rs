//! Sets of addresses and of ports as sorted, disjoint, coalesced ranges.
//!
//! The kernel's interval sets refuse overlaps, and nft's auto-merge loses elements: so the arithmetic happens here.

use crate::model::Family;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// Addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrRanges {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl AddrRanges {
    /// A block without its exceptions. Host bits are masked; exceptions outside the block are without effect.
    #[must_use]
    pub fn block(cidr: IpNet, except: &[IpNet]) -> Self {
        let family = Family::of(cidr.addr());
        let holes = coalesce(
            except
                .iter()
                .filter(|e| Family::of(e.addr()) == family)
                .map(net_range)
                .collect(),
        );
        let ranges = subtract(vec![net_range(&cidr)], &holes);
        match family {
            Family::V4 => AddrRanges {
                v4: ranges,
                v6: Vec::new(),
            },
            Family::V6 => AddrRanges {
                v4: Vec::new(),
                v6: ranges,
            },
        }
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &AddrRanges) -> Self {
        let join = |a: &[_], b: &[_]| coalesce([a, b].concat());
        AddrRanges {
            v4: join(&self.v4, &other.v4),
            v6: join(&self.v6, &other.v6),
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
        let (ranges, value) = match addr {
            IpAddr::V4(a) => (&self.v4, u128::from(u32::from(a))),
            IpAddr::V6(a) => (&self.v6, u128::from(a)),
        };
        let after = ranges.partition_point(|(first, _)| *first <= value);
        after
            .checked_sub(1)
            .and_then(|i| ranges.get(i))
            .is_some_and(|(_, last)| value <= *last)
    }

    /// The ranges of a family, ascending, both ends included, no two touching.
    pub fn iter(&self, family: Family) -> impl ExactSizeIterator<Item = (IpAddr, IpAddr)> + '_ {
        let ranges = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        ranges
            .iter()
            .map(move |(first, last)| (addr(family, *first), addr(family, *last)))
    }
}

/// Ports as sorted, disjoint, coalesced ranges.
#[must_use]
pub fn coalesce_ports(ranges: impl IntoIterator<Item = PortRange>) -> Vec<PortRange> {
    let wide = ranges
        .into_iter()
        .map(|r| (u128::from(r.first), u128::from(r.last)))
        .collect();
    // The ends come from u16 values and coalescing invents none.
    coalesce(wide)
        .into_iter()
        .map(|(first, last)| PortRange {
            first: first as u16,
            last: last as u16,
        })
        .collect()
}

fn addr(family: Family, value: u128) -> IpAddr {
    match family {
        // IPv4 ranges are made of u32 values only.
        Family::V4 => Ipv4Addr::from(value as u32).into(),
        Family::V6 => Ipv6Addr::from(value).into(),
    }
}

fn net_range(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(n) => (
            u32::from(n.network()).into(),
            u32::from(n.broadcast()).into(),
        ),
        IpNet::V6(n) => (n.network().into(), n.broadcast().into()),
    }
}

fn coalesce(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut out: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => {
                previous.1 = previous.1.max(last)
            }
            _ => out.push((first, last)),
        }
    }
    out
}

/// `from` without `holes`, both coalesced.
fn subtract(from: Vec<(u128, u128)>, holes: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut out = Vec::new();
    for (mut first, last) in from {
        let mut used_up = false;
        for &(hole_first, hole_last) in holes {
            if hole_last < first || hole_first > last {
                continue;
            }
            if hole_first > first {
                out.push((first, hole_first - 1));
            }
            if hole_last >= last {
                used_up = true;
                break;
            }
            first = hole_last + 1;
        }
        if !used_up {
            out.push((first, last));
        }
    }
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
            let ranges = blocks.iter().fold(AddrRanges::default(), |all, (net, holes)| {
                all.union(&AddrRanges::block(*net, holes))
            });
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
            assert_eq!(ranges.union(&ranges), ranges);
        }
    }
}
