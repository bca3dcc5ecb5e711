//! Routes of both families: by next hop, by nexthop object, and those that discard.
//!
//! A replacement is matched by the kernel on prefix, table, TOS and metric; with a metric of one's
//! own it cannot meet foreign routes.

use std::net::IpAddr;

use crate::attr::{Attr, Attrs, Body, get_u8, get_u16, get_u32, ip_from};
use crate::batch::{Batch, CREATE, EXCL, REPLACE};
use crate::error::{Error, Result};
use crate::prefix::{AF_INET, AF_INET6, Prefix, family, unspecified};
use crate::socket::{Message, Socket};

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

const RTM_F_CLONED: u32 = 0x200;
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTNH_F_ONLINK: u32 = 4;

/// Table main.
pub const MAIN: u32 = 254;
/// Table local.
pub const LOCAL: u32 = 255;

/// Where a route holds (`RT_SCOPE_*`); 0 for all IPv6 routes.
pub mod scope {
    /// Behind a gateway.
    pub const GLOBAL: u8 = 0;
    /// On a link.
    pub const LINK: u8 = 253;
    /// On this host.
    pub const HOST: u8 = 254;
    /// No destination exists; in a deletion: any.
    pub const NOWHERE: u8 = 255;
}

/// What a route does (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Kind {
    /// Forwards.
    #[default]
    Unicast,
    /// Delivers here.
    Local,
    /// Discards without a word.
    Blackhole,
    /// Discards and says that the destination is unreachable.
    Unreachable,
    /// Any other number.
    Other(u8),
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            other => Self::Other(other),
        }
    }
}

/// One way to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hop {
    /// The gateway, of either family; `None` on a link.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub oif: Option<u32>,
    /// The gateway is reachable on `oif` though no address there says so.
    pub onlink: bool,
    /// Share among several, 1 to 256; 0 is taken as 1.
    pub weight: u16,
}

/// Which way a route takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// None: blackhole and its like.
    Nothing,
    /// One next hop or interface.
    Hop(Hop),
    /// Several, in the route itself.
    Multipath(Vec<Hop>),
    /// A nexthop object or group by its id.
    Nexthop(u32),
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destination.
    pub prefix: Prefix,
    /// Where to.
    pub target: Target,
    /// What it does.
    pub kind: Kind,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// Table, 254 is main.
    pub table: u32,
    /// Metric; 0 means none for IPv4 and 1024 for IPv6.
    pub metric: u32,
    /// See [`scope`].
    pub scope: u8,
    /// Source address for packets that this host makes.
    pub source: Option<IpAddr>,
    /// `RTNH_F_*` and `RTM_F_*` as received (dead, linkdown, offload); not sent.
    pub flags: u32,
}

impl Route {
    /// A unicast route in table main without a metric. The scope follows from the target.
    pub fn new(prefix: Prefix, target: Target, protocol: u8) -> Self {
        let kind = if target == Target::Nothing {
            Kind::Blackhole
        } else {
            Kind::Unicast
        };
        let on_link = matches!(&target, Target::Hop(hop) if hop.gateway.is_none());
        let scope = match prefix.addr {
            IpAddr::V4(_) if on_link => scope::LINK,
            _ => scope::GLOBAL,
        };
        let (table, metric, source, flags) = (MAIN, 0, None, 0);
        Self {
            prefix,
            target,
            kind,
            protocol,
            table,
            metric,
            scope,
            source,
            flags,
        }
    }
}

/// What a listing is restricted to; the kernel filters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Only routes of this maker.
    pub protocol: Option<u8>,
    /// Only routes in this table.
    pub table: Option<u32>,
    /// Only routes over this interface.
    pub oif: Option<u32>,
}

/// Adds a route; `EEXIST` if there is one with the same prefix, table and metric.
pub fn add(batch: &mut Batch, route: &Route) {
    batch.push(RTM_NEWROUTE, CREATE | EXCL, |body| fill(body, route));
}

/// Adds a route or takes the place of the one with the same prefix, table and metric, *whoever
/// made it*.
pub fn replace(batch: &mut Batch, route: &Route) {
    batch.push(RTM_NEWROUTE, CREATE | REPLACE, |body| fill(body, route));
}

/// Deletes a route: one that agrees in all that is given here, target included. `ESRCH` if there
/// is none.
pub fn delete(batch: &mut Batch, route: &Route) {
    batch.push(RTM_DELROUTE, 0, |body| fill(body, route));
}

/// Deletes a route whatever its target is, by prefix, table, metric and maker. A metric of 0
/// means any. `ESRCH` if there is none.
pub fn delete_any_target(batch: &mut Batch, prefix: Prefix, table: u32, metric: u32, protocol: u8) {
    batch.push(RTM_DELROUTE, 0, |body| {
        let scope = if prefix.addr.is_ipv4() {
            scope::NOWHERE
        } else {
            scope::GLOBAL
        };
        header(body, prefix, table, protocol, scope, 0, 0);
        attributes(body, prefix, table, metric);
    });
}

/// The routes of one family (`v6`) that pass the filter. A table that does not exist is empty.
pub fn list(socket: &mut Socket, v6: bool, filter: &Filter) -> Result<Vec<Route>> {
    let family = if v6 { AF_INET6 } else { AF_INET };
    let table = filter.table.unwrap_or_default();
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETROUTE, 0, |body| {
            let protocol = filter.protocol.unwrap_or_default();
            body.raw(&[
                family,
                0,
                0,
                0,
                short_table(table),
                protocol,
                0,
                0,
                0,
                0,
                0,
                0,
            ]);
            if table != 0 {
                body.u32(RTA_TABLE, table);
            }
            if let Some(oif) = filter.oif {
                body.u32(RTA_OIF, oif);
            }
        });
    };
    let wanted = |route: &Route| {
        filter
            .protocol
            .is_none_or(|protocol| route.protocol == protocol)
            && filter.table.is_none_or(|table| route.table == table)
            && route.flags & RTM_F_CLONED == 0
    };
    match socket.list(build, |message| decode(&message).filter(wanted)) {
        Err(error @ Error::Refused(_)) if error.is(rustix::io::Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}

/// The route that a packet to `destination` would take (`ENETUNREACH` if none): the entry of the
/// FIB that matches, with its prefix, maker and nexthop object. Routes of every maker count.
pub fn lookup(socket: &mut Socket, destination: IpAddr) -> Result<Route> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETROUTE, 0, |body| {
            let host = Prefix::host(destination);
            let [a, b, c, d] = RTM_F_FIB_MATCH.to_ne_bytes();
            body.raw(&[family(destination), host.len, 0, 0, 0, 0, 0, 0, a, b, c, d]);
            body.ip(RTA_DST, destination);
        });
    };
    socket.get(build, |message| decode(&message))
}

/// The route in an `RTM_NEWROUTE` or `RTM_DELROUTE`; `None` for anything else.
pub fn decode(message: &Message<'_>) -> Option<Route> {
    if message.kind != RTM_NEWROUTE && message.kind != RTM_DELROUTE {
        return None;
    }
    let body = message.body;
    let family = get_u8(body, 0)?;
    let flags = get_u32(body, 8)?;
    let mut route = Route {
        prefix: Prefix::new(unspecified(family)?, get_u8(body, 1)?),
        target: Target::Nothing,
        kind: Kind::from_number(get_u8(body, 7)?),
        protocol: get_u8(body, 5)?,
        table: u32::from(get_u8(body, 4)?),
        metric: 0,
        scope: get_u8(body, 6)?,
        source: None,
        flags,
    };
    let (mut hop, mut hops, mut id) = (
        Hop {
            weight: 1,
            ..Hop::default()
        },
        None,
        None,
    );
    hop.onlink = flags & RTNH_F_ONLINK != 0;
    for attr in Attrs::after(body, RTMSG) {
        match attr.kind {
            RTA_DST => {
                route.prefix.addr = attr.ip().filter(|ip| ip.is_ipv4() == (family == AF_INET))?
            }
            RTA_OIF => hop.oif = attr.u32(),
            RTA_GATEWAY | RTA_VIA => hop.gateway = gateway(&attr),
            RTA_PRIORITY => route.metric = attr.u32()?,
            RTA_PREFSRC => route.source = attr.ip(),
            RTA_TABLE => route.table = attr.u32()?,
            RTA_MULTIPATH => hops = Some(multipath(attr.value)),
            RTA_NH_ID => id = attr.u32(),
            _ => {}
        }
    }
    route.target = match (id, hops) {
        (Some(id), _) => Target::Nexthop(id),
        (None, Some(hops)) => Target::Multipath(hops),
        (None, None) if hop.oif.is_some() || hop.gateway.is_some() => Target::Hop(hop),
        (None, None) => Target::Nothing,
    };
    // The kernel names the loopback interface as that of IPv6 routes that discard.
    if matches!(route.kind, Kind::Blackhole | Kind::Unreachable) && id.is_none() {
        route.target = Target::Nothing;
    }
    Some(route)
}

fn fill(body: &mut Body<'_>, route: &Route) {
    let flags = match &route.target {
        Target::Hop(hop) if hop.onlink => RTNH_F_ONLINK,
        _ => 0,
    };
    let Route {
        prefix,
        table,
        protocol,
        ..
    } = *route;
    header(
        body,
        prefix,
        table,
        protocol,
        route.scope,
        route.kind.number(),
        flags,
    );
    attributes(body, prefix, table, route.metric);
    if let Some(source) = route.source {
        body.ip(RTA_PREFSRC, source);
    }
    match &route.target {
        Target::Nothing => {}
        Target::Nexthop(id) => body.u32(RTA_NH_ID, *id),
        Target::Hop(hop) => {
            fill_gateway(body, prefix.addr, hop.gateway);
            if let Some(oif) = hop.oif {
                body.u32(RTA_OIF, oif);
            }
        }
        Target::Multipath(hops) => body.enclose(RTA_MULTIPATH, |body| {
            hops.iter().for_each(|hop| fill_hop(body, prefix.addr, hop));
        }),
    }
}

fn header(
    body: &mut Body<'_>,
    prefix: Prefix,
    table: u32,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
) {
    let [a, b, c, d] = flags.to_ne_bytes();
    let family = family(prefix.addr);
    let table = short_table(table);
    body.raw(&[
        family, prefix.len, 0, 0, table, protocol, scope, kind, a, b, c, d,
    ]);
}

fn attributes(body: &mut Body<'_>, prefix: Prefix, table: u32, metric: u32) {
    if prefix.len != 0 {
        body.ip(RTA_DST, prefix.addr);
    }
    body.u32(RTA_TABLE, table);
    if metric != 0 {
        body.u32(RTA_PRIORITY, metric);
    }
}

fn fill_gateway(body: &mut Body<'_>, destination: IpAddr, gateway: Option<IpAddr>) {
    match gateway {
        Some(ip) if ip.is_ipv4() == destination.is_ipv4() => body.ip(RTA_GATEWAY, ip),
        Some(ip) => body.enclose(RTA_VIA, |via| {
            let family = u16::from(family(ip)).to_ne_bytes();
            via.bytes.extend_from_slice(&family);
            match ip {
                IpAddr::V4(v4) => via.bytes.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => via.bytes.extend_from_slice(&v6.octets()),
            }
        }),
        None => {}
    }
}

/// `struct rtnexthop` and its attributes.
fn fill_hop(body: &mut Body<'_>, destination: IpAddr, hop: &Hop) {
    let start = body.bytes.len();
    let [a, b, c, d] = hop.oif.unwrap_or_default().to_ne_bytes();
    let flags = if hop.onlink { RTNH_F_ONLINK as u8 } else { 0 };
    let weight = u8::try_from(hop.weight.max(1) - 1).unwrap_or(u8::MAX);
    body.raw(&[0, 0, flags, weight, a, b, c, d]);
    fill_gateway(body, destination, hop.gateway);
    let length = u16::try_from(body.bytes.len() - start).unwrap_or_default();
    if let Some(field) = body.bytes.get_mut(start..start + 2) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
}

fn multipath(mut rest: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some(length) = get_u16(rest, 0)
        .map(usize::from)
        .filter(|&l| l >= RTNEXTHOP)
    {
        let Some(entry) = rest.get(..length) else {
            break;
        };
        let mut hop = Hop {
            gateway: None,
            oif: get_u32(entry, 4).filter(|&oif| oif != 0),
            onlink: get_u8(entry, 2).is_some_and(|flags| u32::from(flags) & RTNH_F_ONLINK != 0),
            weight: u16::from(get_u8(entry, 3).unwrap_or_default()) + 1,
        };
        for attr in Attrs::after(entry, RTNEXTHOP) {
            if matches!(attr.kind, RTA_GATEWAY | RTA_VIA) {
                hop.gateway = gateway(&attr);
            }
        }
        hops.push(hop);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

fn gateway(attr: &Attr<'_>) -> Option<IpAddr> {
    match attr.kind {
        RTA_VIA => ip_from(attr.value.get(2..)?),
        _ => attr.ip(),
    }
}

/// The table in the header has eight bits; the attribute has the number.
fn short_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::socket::messages;

    fn prefixes(v6: bool) -> impl Strategy<Value = Prefix> {
        let v4 = (any::<u32>(), 0u8..=32).prop_map(|(bits, len)| {
            let bits = bits
                & u32::MAX
                    .checked_shl(32 - u32::from(len))
                    .unwrap_or_default();
            Prefix::new(std::net::Ipv4Addr::from(bits).into(), len)
        });
        let six = (any::<u128>(), 0u8..=128).prop_map(|(bits, len)| {
            let bits = bits
                & u128::MAX
                    .checked_shl(128 - u32::from(len))
                    .unwrap_or_default();
            Prefix::new(std::net::Ipv6Addr::from(bits).into(), len)
        });
        if v6 { six.boxed() } else { v4.boxed() }
    }

    fn hops() -> impl Strategy<Value = Hop> {
        (any::<Option<IpAddr>>(), 1u32.., any::<bool>(), 1u16..=256).prop_map(
            |(gateway, oif, onlink, weight)| Hop {
                gateway,
                oif: Some(oif),
                onlink,
                weight,
            },
        )
    }

    fn targets() -> impl Strategy<Value = Target> {
        prop_oneof![
            Just(Target::Nothing),
            any::<u32>().prop_map(Target::Nexthop),
            // A single hop has no weight on the wire.
            hops().prop_map(|hop| Target::Hop(Hop { weight: 1, ..hop })),
            proptest::collection::vec(hops(), 1..9).prop_map(Target::Multipath),
        ]
    }

    fn routes() -> impl Strategy<Value = Route> {
        let prefix = any::<bool>().prop_flat_map(prefixes);
        let numbers = (any::<u8>(), 1u32.., any::<u32>());
        let rest = (any::<Option<IpAddr>>(), targets());
        (prefix, numbers, rest).prop_map(|(prefix, (protocol, table, metric), (source, target))| {
            let route = Route::new(prefix, target, protocol);
            Route {
                table,
                metric,
                source,
                ..route
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(routes in proptest::collection::vec(routes(), 1..5)) {
            let mut batch = Batch::new();
            routes.iter().for_each(|route| replace(&mut batch, route));
            let read: Vec<_> = messages(batch.as_bytes())
                .filter_map(|message| decode(&message))
                .map(|route| Route { flags: 0, ..route })
                .collect();
            prop_assert_eq!(read, routes);
        }
    }

    #[test]
    fn a_route_by_nexthop_object_is_these_bytes() {
        let target = Target::Nexthop(0x5e18_0000);
        let prefix = Prefix::new("10.1.0.0".parse().unwrap(), 16);
        let route = Route {
            metric: 1085,
            ..Route::new(prefix, target, 85)
        };
        let mut batch = Batch::new();
        replace(&mut batch, &route);
        let mut wanted = Vec::new();
        // Length, type, flags (request, replace, create), sequence and port.
        wanted.extend_from_slice(&60u32.to_ne_bytes());
        wanted.extend_from_slice(&24u16.to_ne_bytes());
        wanted.extend_from_slice(&0x501u16.to_ne_bytes());
        wanted.extend_from_slice(&[0; 8]);
        wanted.extend_from_slice(&[2, 16, 0, 0, 254, 85, 0, 1, 0, 0, 0, 0]);
        let mut attribute = |kind: u16, value: [u8; 4]| {
            wanted.extend_from_slice(&8u16.to_ne_bytes());
            wanted.extend_from_slice(&kind.to_ne_bytes());
            wanted.extend_from_slice(&value);
        };
        attribute(1, [10, 1, 0, 0]);
        attribute(15, 254u32.to_ne_bytes());
        attribute(6, 1085u32.to_ne_bytes());
        attribute(30, 0x5e18_0000u32.to_ne_bytes());
        assert_eq!(batch.as_bytes(), wanted);
    }
}
