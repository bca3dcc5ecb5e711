//! The ranges that addresses come from, as `host-local` is configured: the outer list gives one address each, the
//! inner lists are the pools to take it from.

use std::net::IpAddr;

use crate::spec::cidr::{from_bits, to_bits};
use crate::spec::field::Field;
use crate::spec::{Cidr, CniError};

/// A pool: the addresses `start` to `end` of a subnet, but for its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet; no host bits.
    pub subnet: Cidr,
    /// The first address that may be given.
    pub start: IpAddr,
    /// The last one.
    pub end: IpAddr,
    /// Never given to a container: other programs may take it for a router's.
    pub gateway: IpAddr,
}

impl Range {
    fn read(field: &Field<'_>) -> Result<Self, CniError> {
        let subnet = field
            .get("subnet")?
            .ok_or_else(|| field.invalid("subnet is missing"))?;
        let net = subnet.cidr()?;
        if net.addr() != net.first() {
            return Err(subnet.invalid(&format!(
                "host bits are set; the network is {}/{}",
                net.first(),
                net.prefix_len()
            )));
        }
        let longest = if net.is_v6() { 126 } else { 30 };
        if net.prefix_len() > longest {
            return Err(subnet.invalid(&format!(
                "too small to give addresses from; /{longest} is the smallest"
            )));
        }
        let first = from_bits(to_bits(net.first()) + 1, net.is_v6());
        // The last address of an IPv4 network is its broadcast address.
        let last = from_bits(to_bits(net.last()) - u128::from(!net.is_v6()), net.is_v6());
        let address = |key: &str, default: IpAddr| {
            let Some(field) = field.get(key)?.filter(|f| f.value() != "") else {
                return Ok(default);
            };
            let addr = field.addr()?;
            if net.contains(addr) {
                Ok(addr)
            } else {
                Err(field.invalid(&format!("{addr} is not in {net}")))
            }
        };
        let range = Self {
            subnet: net,
            start: address("rangeStart", first)?,
            end: address("rangeEnd", last)?,
            gateway: address("gateway", first)?,
        };
        if range.end < range.start {
            return Err(field.invalid(&format!(
                "rangeEnd {} is before rangeStart {}",
                range.end, range.start
            )));
        }
        Ok(range)
    }

    /// Whether the address may be given.
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv6() == self.subnet.is_v6() && self.start <= addr && addr <= self.end
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    /// How many addresses can be given, at most `u64::MAX`.
    fn size(&self) -> u64 {
        let all = to_bits(self.end) - to_bits(self.start);
        let size = all.saturating_add(u128::from(!self.contains(self.gateway)));
        u64::try_from(size).unwrap_or(u64::MAX)
    }
}

/// The pools of one address; all of one family, none overlapping another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    fn read(field: &Field<'_>) -> Result<Self, CniError> {
        let ranges: Vec<_> = field
            .list()?
            .iter()
            .map(Range::read)
            .collect::<Result<_, _>>()?;
        Self::new(ranges, field)
    }

    fn new(ranges: Vec<Range>, field: &Field<'_>) -> Result<Self, CniError> {
        let Some(first) = ranges.first() else {
            return Err(field.invalid("a list of ranges is empty"));
        };
        if ranges
            .iter()
            .any(|range| range.subnet.is_v6() != first.subnet.is_v6())
        {
            return Err(field.invalid("IPv4 and IPv6 belong into lists of their own"));
        }
        for (i, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().take(i).find(|other| other.overlaps(range)) {
                return Err(
                    field.invalid(&format!("{} and {} overlap", other.subnet, range.subnet))
                );
            }
        }
        Ok(Self { ranges })
    }

    /// The subnets of the ranges.
    pub fn subnets(&self) -> impl Iterator<Item = Cidr> + '_ {
        self.ranges.iter().map(|range| range.subnet)
    }

    /// The range that may give `addr`.
    pub fn range_of(&self, addr: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(addr))
    }

    /// Whether `addr` is the gateway of one of the subnets.
    pub fn has_gateway(&self, addr: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.gateway == addr)
    }

    /// How many addresses can be given at most.
    pub fn size(&self) -> u64 {
        self.ranges
            .iter()
            .fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// Every address once, beginning behind `last` and going round.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let at = last.and_then(|last| self.ranges.iter().position(|range| range.contains(last)));
        let rest = at
            .zip(last)
            .and_then(|(at, last)| self.ranges.get(at).map(|range| (range, to_bits(last))));
        let behind = rest.map(|(range, last)| Span {
            range,
            next: last.checked_add(1),
            end: to_bits(range.end),
        });
        let before = rest.map(|(range, last)| Span {
            range,
            next: Some(to_bits(range.start)),
            end: last,
        });
        let begin = at.map_or(0, |at| at + 1);
        let others = self
            .ranges
            .iter()
            .skip(begin)
            .chain(self.ranges.iter().take(at.unwrap_or(0)))
            .map(Span::whole);
        behind.into_iter().chain(others).chain(before).flatten()
    }

    fn overlaps<'a>(&'a self, other: &'a Self) -> Option<(&'a Range, &'a Range)> {
        let mut pairs = self
            .ranges
            .iter()
            .flat_map(|a| other.ranges.iter().map(move |b| (a, b)));
        pairs.find(|(a, b)| a.overlaps(b))
    }
}

/// Part of a range, its gateway left out. `end` is inclusive.
struct Span<'a> {
    range: &'a Range,
    next: Option<u128>,
    end: u128,
}

impl<'a> Span<'a> {
    fn whole(range: &'a Range) -> Self {
        Self {
            range,
            next: Some(to_bits(range.start)),
            end: to_bits(range.end),
        }
    }
}

impl Iterator for Span<'_> {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        loop {
            let bits = self.next.filter(|&bits| bits <= self.end)?;
            self.next = bits.checked_add(1);
            let addr = from_bits(bits, self.range.subnet.is_v6());
            if addr != self.range.gateway {
                return Some(addr);
            }
        }
    }
}

/// The range sets of a configuration: `runtimeConfig.ipRanges`, `ipam.ranges`, and the older `ipam.subnet`.
pub fn read(root: &Field<'_>) -> Result<Vec<RangeSet>, CniError> {
    let mut sets = Vec::new();
    let runtime = root
        .get("runtimeConfig")?
        .map(|f| f.get("ipRanges"))
        .transpose()?
        .flatten();
    let ipam = root
        .get("ipam")?
        .ok_or_else(|| root.invalid("ipam is missing; without it a pod gets no address"))?;
    for list in [runtime, ipam.get("ranges")?].into_iter().flatten() {
        for set in list.list()? {
            sets.push(RangeSet::read(&set)?);
        }
    }
    if ipam.get("subnet")?.is_some() {
        sets.push(RangeSet::new(vec![Range::read(&ipam)?], &ipam)?);
    }
    if sets.is_empty() {
        return Err(ipam.invalid("no ranges: give ranges, [[{\"subnet\": \"10.1.0.0/24\"}]]"));
    }
    for (i, set) in sets.iter().enumerate() {
        if let Some((a, b)) = sets.iter().take(i).find_map(|other| other.overlaps(set)) {
            return Err(ipam.invalid(&format!("ranges: {} and {} overlap", a.subnet, b.subnet)));
        }
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sets(ipam: Value) -> Result<Vec<RangeSet>, CniError> {
        read(&Field::root(&json!({"ipam": ipam})))
    }

    fn texts(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(|l| l.parse().unwrap()))
            .map(|a| a.to_string())
            .collect()
    }

    #[test]
    fn the_gateway_and_both_ends_are_left_out() {
        let all = sets(json!({"subnet": "10.0.0.0/29"})).unwrap();
        assert_eq!(
            texts(&all[0], None),
            ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(all[0].size(), 5);
        let v6 =
            sets(json!({"ranges": [[{"subnet": "fd00::/125", "gateway": "fd00::7"}]]})).unwrap();
        assert_eq!(
            texts(&v6[0], None),
            [
                "fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6"
            ]
        );
    }

    #[test]
    fn round_and_round_over_several_ranges() {
        let json = json!({"ranges": [[
            {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.4", "rangeEnd": "10.0.0.6"},
            {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.9", "rangeEnd": "10.0.1.9"},
            {"subnet": "10.0.2.0/24", "rangeStart": "10.0.2.1", "rangeEnd": "10.0.2.2"}]]});
        let set = &sets(json).unwrap()[0];
        let whole = ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.1.9", "10.0.2.2"];
        assert_eq!(texts(set, None), whole);
        assert_eq!(
            texts(set, Some("10.9.9.9")),
            whole,
            "a last one from another configuration"
        );
        for last in whole {
            let got = texts(set, Some(last));
            let mut expected = whole.to_vec();
            expected.rotate_left(whole.iter().position(|&a| a == last).unwrap() + 1);
            assert_eq!(got, expected, "{last}");
        }
        assert_eq!(set.size(), 5);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let set =
            &sets(json!({"subnet": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125"})).unwrap()[0];
        assert_eq!(set.candidates(None).count(), 6);
        assert_eq!(set.candidates(Some(from_bits(u128::MAX, true))).count(), 6);
        assert_eq!(sets(json!({"subnet": "::/0"})).unwrap()[0].size(), u64::MAX);
    }

    #[test]
    fn refusals_name_the_range() {
        for (ipam, part) in [
            (json!({}), "no ranges"),
            (json!({"ranges": [[]]}), "ipam.ranges[0]"),
            (
                json!({"ranges": [[{}]]}),
                "ipam.ranges[0][0]: subnet is missing",
            ),
            (json!({"subnet": "10.0.0.1/24"}), "10.0.0.0/24"),
            (json!({"subnet": "10.0.0.0/31"}), "too small"),
            (json!({"subnet": "fd00::/127"}), "too small"),
            (json!({"subnet": "10.0.0.0"}), "ipam.subnet"),
            (
                json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}),
                "ipam.rangeStart",
            ),
            (
                json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
                "before",
            ),
            (
                json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}),
                "lists of their own",
            ),
            (
                json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]}),
                "overlap",
            ),
            (
                json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}),
                "overlap",
            ),
        ] {
            let error = sets(ipam.clone()).unwrap_err();
            assert!(
                error.code == 7 && error.message.contains(part),
                "{ipam}: {error}"
            );
        }
        assert_eq!(read(&Field::root(&json!({}))).unwrap_err().code, 7);
    }
}
