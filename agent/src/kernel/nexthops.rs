//! How the kernel itself reaches a next hop: links, addresses and the routes of everybody else.
//!
//! The kernel refuses a gateway that is not on a link, so a BGP next hop is looked up in what the
//! kernel routes by without us: the longest prefix, then the lowest metric, our own protocol
//! ignored (a learned route must not resolve its own next hop). Always holds: what
//! [`Underlay::resolve`] returns are on-link hops over links that are up and have carrier.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use selvage_bgp_core::{ids::Family, prefix::Prefix, wire::attr::NextHop};

/// One way out of the machine: over `link`, to `gateway` or to the destination itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Hop {
    /// The interface index.
    pub link: u32,
    /// The neighbour that forwards; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A next hop, resolved.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resolution {
    /// The ways to it, sorted; empty: there is none.
    pub hops: Vec<Hop>,
    /// The distance for the decision process: 0 on a link of ours, else the route's metric, at least 1.
    pub metric: u32,
}

impl Resolution {
    /// The distance, or `None` if there is no way.
    pub fn reachable(&self) -> Option<u32> {
        (!self.hops.is_empty()).then_some(self.metric)
    }
}

/// A route that somebody else (the kernel, an administrator, another daemon) installed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnderlayRoute {
    /// The destination.
    pub prefix: Prefix,
    /// The metric; the lowest wins.
    pub metric: u32,
    /// Where it leads.
    pub target: Target,
}

/// Where a route of the underlay leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Over these hops.
    Hops(Vec<Hop>),
    /// To the nexthop object of this id.
    Object(u32),
    /// Nowhere: blackhole, unreachable, prohibit and the like.
    Reject,
}

/// What somebody else's nexthop object is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForeignNexthop {
    /// One hop.
    Hop(Hop),
    /// A group of the objects with these ids.
    Group(Vec<u32>),
    /// Packets are dropped.
    Reject,
}

/// The kernel's routing without our protocol.
#[derive(Debug, Default)]
pub struct Underlay {
    links: BTreeMap<u32, Link>,
    own: BTreeSet<IpAddr>,
    routes: BTreeMap<Prefix, Vec<UnderlayRoute>>,
    /// How many prefixes there are of each length, per family: only those lengths are looked up.
    lengths: [BTreeMap<u8, usize>; 2],
    nexthops: BTreeMap<u32, ForeignNexthop>,
}

/// A link as far as routes depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    up: bool,
    carrier: bool,
}

impl Underlay {
    /// A link is there; returns whether anything changed. When it goes down, IPv4 routes over it
    /// vanish without a notification, so they go here, too.
    pub fn set_link(&mut self, index: u32, up: bool, carrier: bool) -> bool {
        let link = Link { up, carrier };
        let before = self.links.insert(index, link);
        if !up && before.is_some_and(|b| b.up) {
            self.drop_routes_over(index);
        }
        before != Some(link)
    }

    /// A link is gone, with all routes over it; returns whether it was there.
    pub fn drop_link(&mut self, index: u32) -> bool {
        self.drop_routes_over(index);
        self.links.remove(&index).is_some()
    }

    /// Whether packets can leave over the link.
    pub fn usable(&self, link: u32) -> bool {
        self.links.get(&link).is_some_and(|l| l.up && l.carrier)
    }

    /// An address is ours; returns whether that is new.
    pub fn add_address(&mut self, addr: IpAddr) -> bool {
        self.own.insert(addr)
    }

    /// An address is no longer ours; returns whether it was.
    pub fn drop_address(&mut self, addr: IpAddr) -> bool {
        self.own.remove(&addr)
    }

    /// A nexthop object of somebody else is there.
    pub fn set_nexthop(&mut self, id: u32, nexthop: ForeignNexthop) {
        self.nexthops.insert(id, nexthop);
    }

    /// A nexthop object of somebody else is gone, and the routes that use it with it.
    pub fn drop_nexthop(&mut self, id: u32) {
        self.nexthops.remove(&id);
        self.retain_routes(|route| route.target != Target::Object(id));
    }

    /// A route was added; with `replace` it takes the place of all of that prefix and metric.
    pub fn add_route(&mut self, route: UnderlayRoute, replace: bool) {
        let routes = self.routes.entry(route.prefix).or_default();
        if routes.is_empty() {
            *self.lengths[route.prefix.family().index()]
                .entry(route.prefix.len())
                .or_default() += 1;
        }
        if replace {
            routes.retain(|r| r.metric != route.metric);
        }
        if !routes.contains(&route) {
            routes.push(route);
        }
    }

    /// A route was removed. An IPv6 multipath route loses its hops one by one.
    pub fn drop_route(&mut self, gone: &UnderlayRoute) {
        let Some(routes) = self.routes.get_mut(&gone.prefix) else {
            return;
        };
        if let Some(at) = routes.iter().position(|r| r == gone) {
            routes.remove(at);
        } else if let Target::Hops(hops) = &gone.target {
            for route in routes.iter_mut().filter(|r| r.metric == gone.metric) {
                if let Target::Hops(of_route) = &mut route.target {
                    of_route.retain(|hop| !hops.contains(hop));
                }
            }
            routes.retain(|r| !matches!(&r.target, Target::Hops(hops) if hops.is_empty()));
        }
        if routes.is_empty() {
            self.forget(gone.prefix);
        }
    }

    /// Forgets everything, before a new reading.
    pub fn clear(&mut self) {
        *self = Underlay::default();
    }

    /// How the kernel reaches `next_hop`. A link-local address stands for itself; an address of
    /// our own is no next hop.
    pub fn resolve(&self, next_hop: &NextHop) -> Resolution {
        if let Some((addr, link)) = next_hop.link_local {
            let hop = Hop {
                link: link.0,
                gateway: Some(addr.into()),
            };
            let hops = if self.usable(link.0) {
                vec![hop]
            } else {
                vec![]
            };
            return Resolution { hops, metric: 0 };
        }
        self.resolve_addr(next_hop.global)
    }

    /// As [`resolve`](Self::resolve), for an address alone.
    pub fn resolve_addr(&self, addr: IpAddr) -> Resolution {
        if self.own.contains(&addr) {
            return Resolution::default();
        }
        let Some(candidates) = self.longest_match(addr) else {
            return Resolution::default();
        };
        let mut best: Option<(u32, Vec<Hop>)> = None;
        for route in candidates {
            let mut hops = Vec::new();
            self.expand(&route.target, &mut hops, 0);
            hops.retain(|hop| self.usable(hop.link));
            if hops.is_empty() {
                continue;
            }
            match &mut best {
                Some((metric, _)) if *metric <= route.metric => {}
                _ => best = Some((route.metric, hops)),
            }
        }
        let Some((metric, mut hops)) = best else {
            return Resolution::default();
        };
        let on_link = hops.iter().all(|hop| hop.gateway.is_none());
        for hop in &mut hops {
            hop.gateway = hop.gateway.or(Some(addr));
        }
        hops.sort_unstable();
        hops.dedup();
        let metric = if on_link { 0 } else { metric.max(1) };
        Resolution { hops, metric }
    }

    fn longest_match(&self, addr: IpAddr) -> Option<&[UnderlayRoute]> {
        let lengths = &self.lengths[Family::of(&addr).index()];
        lengths
            .keys()
            .rev()
            .filter_map(|len| self.routes.get(&Prefix::new(addr, *len)?))
            .map(Vec::as_slice)
            .next()
    }

    fn expand(&self, target: &Target, hops: &mut Vec<Hop>, depth: u8) {
        match target {
            Target::Hops(of_route) => hops.extend(of_route),
            Target::Reject => {}
            Target::Object(id) => match self.nexthops.get(id) {
                Some(ForeignNexthop::Hop(hop)) => hops.push(*hop),
                // The kernel allows no groups of groups; the depth ends whatever it may show us.
                Some(ForeignNexthop::Group(ids)) if depth == 0 => {
                    for id in ids {
                        self.expand(&Target::Object(*id), hops, 1);
                    }
                }
                _ => {}
            },
        }
    }

    fn drop_routes_over(&mut self, link: u32) {
        for routes in self.routes.values_mut() {
            for route in routes.iter_mut() {
                if let Target::Hops(hops) = &mut route.target {
                    hops.retain(|hop| hop.link != link);
                }
            }
        }
        self.retain_routes(|route| !matches!(&route.target, Target::Hops(hops) if hops.is_empty()));
    }

    fn retain_routes(&mut self, keep: impl Fn(&UnderlayRoute) -> bool) {
        let mut emptied = Vec::new();
        for (prefix, routes) in &mut self.routes {
            routes.retain(&keep);
            if routes.is_empty() {
                emptied.push(*prefix);
            }
        }
        for prefix in emptied {
            self.forget(prefix);
        }
    }

    fn forget(&mut self, prefix: Prefix) {
        self.routes.remove(&prefix);
        let lengths = &mut self.lengths[prefix.family().index()];
        if let Some(count) = lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use selvage_bgp_core::ids::IfIndex;

    use super::*;

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn hop(link: u32, gateway: Option<&str>) -> Hop {
        Hop {
            link,
            gateway: gateway.map(ip),
        }
    }

    fn route(prefix: &str, metric: u32, hops: &[Hop]) -> UnderlayRoute {
        UnderlayRoute {
            prefix: prefix.parse().unwrap(),
            metric,
            target: Target::Hops(hops.to_vec()),
        }
    }

    /// eth0 (2) with 10.0.0.0/24 and fd00::/64, eth1 (3) with the default route, eth2 (4) without carrier.
    fn underlay() -> Underlay {
        let mut u = Underlay::default();
        u.set_link(2, true, true);
        u.set_link(3, true, true);
        u.set_link(4, true, false);
        u.add_address(ip("10.0.0.1"));
        for r in [
            route("10.0.0.0/24", 0, &[hop(2, None)]),
            route("fd00::/64", 256, &[hop(2, None)]),
            route("0.0.0.0/0", 100, &[hop(3, Some("192.0.2.1"))]),
            route("10.4.0.0/24", 0, &[hop(4, None)]),
            route(
                "10.5.0.0/16",
                20,
                &[hop(2, Some("10.0.0.7")), hop(3, Some("192.0.2.7"))],
            ),
            route("10.6.0.0/16", 20, &[hop(4, Some("10.4.0.7"))]),
            route("10.6.0.0/16", 30, &[hop(2, Some("10.0.0.8"))]),
        ] {
            u.add_route(r, false);
        }
        u.add_route(
            UnderlayRoute {
                prefix: "10.7.0.0/16".parse().unwrap(),
                metric: 0,
                target: Target::Reject,
            },
            false,
        );
        u
    }

    #[test]
    fn resolution_follows_the_longest_prefix_and_the_lowest_usable_metric() {
        let u = underlay();
        for (addr, hops, metric) in [
            ("10.0.0.9", vec![hop(2, Some("10.0.0.9"))], Some(0)),
            ("fd00::9", vec![hop(2, Some("fd00::9"))], Some(0)),
            ("fd01::9", vec![], None),
            ("10.0.0.1", vec![], None), // our own
            ("10.9.9.9", vec![hop(3, Some("192.0.2.1"))], Some(100)),
            ("10.4.0.9", vec![], None), // no carrier: not by the default route instead
            (
                "10.5.0.9",
                vec![hop(2, Some("10.0.0.7")), hop(3, Some("192.0.2.7"))],
                Some(20),
            ),
            ("10.6.0.9", vec![hop(2, Some("10.0.0.8"))], Some(30)),
            ("10.7.0.9", vec![], None), // rejected
        ] {
            let r = u.resolve_addr(ip(addr));
            assert_eq!((&r.hops, r.reachable()), (&hops, metric), "{addr}");
        }
    }

    #[test]
    fn link_local_next_hops_stand_for_themselves() {
        let u = underlay();
        let with = |link| NextHop {
            global: ip("fd01::9"),
            link_local: Some(("fe80::9".parse().unwrap(), IfIndex(link))),
        };
        assert_eq!(u.resolve(&with(2)).hops, [hop(2, Some("fe80::9"))]);
        assert_eq!(u.resolve(&with(4)).reachable(), None);
        assert_eq!(u.resolve(&with(9)).reachable(), None);
    }

    #[test]
    fn links_take_their_routes_with_them() {
        let mut u = underlay();
        assert!(u.set_link(2, true, false));
        assert_eq!(u.resolve_addr(ip("10.0.0.9")).reachable(), None);
        assert_eq!(
            u.resolve_addr(ip("10.5.0.9")).hops,
            [hop(3, Some("192.0.2.7"))]
        );
        assert!(u.set_link(2, true, true));
        assert_eq!(u.resolve_addr(ip("10.0.0.9")).reachable(), Some(0));
        // Down: IPv4 routes vanish silently, and the less specific one shows.
        assert!(u.set_link(2, false, false));
        assert_eq!(
            u.resolve_addr(ip("10.0.0.9")).hops,
            [hop(3, Some("192.0.2.1"))]
        );
        assert!(u.drop_link(3));
        assert_eq!(u.resolve_addr(ip("10.0.0.9")).reachable(), None);
        assert!(!u.drop_link(3));
    }

    #[test]
    fn foreign_nexthop_objects_are_followed() {
        let mut u = underlay();
        let via = UnderlayRoute {
            prefix: "10.8.0.0/16".parse().unwrap(),
            metric: 20,
            target: Target::Object(7),
        };
        u.add_route(via, false);
        assert_eq!(u.resolve_addr(ip("10.8.0.1")).reachable(), None);
        u.set_nexthop(1, ForeignNexthop::Hop(hop(2, Some("10.0.0.5"))));
        u.set_nexthop(2, ForeignNexthop::Hop(hop(4, Some("10.4.0.5"))));
        u.set_nexthop(7, ForeignNexthop::Group(vec![1, 2, 7]));
        assert_eq!(
            u.resolve_addr(ip("10.8.0.1")).hops,
            [hop(2, Some("10.0.0.5"))]
        );
        u.drop_nexthop(7);
        assert_eq!(
            u.resolve_addr(ip("10.8.0.1")).hops,
            [hop(3, Some("192.0.2.1"))]
        );
    }

    #[test]
    fn routes_are_replaced_and_removed_by_prefix_metric_and_hop() {
        let mut u = underlay();
        u.add_route(route("10.0.0.0/24", 0, &[hop(3, None)]), true);
        assert_eq!(
            u.resolve_addr(ip("10.0.0.9")).hops,
            [hop(3, Some("10.0.0.9"))]
        );
        u.drop_route(&route("10.5.0.0/16", 20, &[hop(2, Some("10.0.0.7"))]));
        assert_eq!(
            u.resolve_addr(ip("10.5.0.9")).hops,
            [hop(3, Some("192.0.2.7"))]
        );
        u.drop_route(&route("10.5.0.0/16", 20, &[hop(3, Some("192.0.2.7"))]));
        assert_eq!(
            u.resolve_addr(ip("10.5.0.9")).hops,
            [hop(3, Some("192.0.2.1"))]
        );
        u.drop_route(&route("0.0.0.0/0", 100, &[hop(3, Some("192.0.2.1"))]));
        assert_eq!(u.resolve_addr(ip("10.5.0.9")).reachable(), None);
        u.drop_route(&route("0.0.0.0/0", 100, &[hop(3, Some("192.0.2.1"))]));
    }
}
