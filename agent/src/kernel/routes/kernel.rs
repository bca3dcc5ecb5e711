//! The kernel behind the route writer: one socket for requests, one for notifications.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use rustix::io::Errno;
use selvage_bgp_core::prefix::Prefix;
use selvage_netlink::{
    Batch, Error, Failure, Protocol, Socket, addr, link,
    monitor::{Group, Monitor, RouteEvent as Notification},
    nexthop, route,
};

use super::{
    fib::{FIRST_HOP_ID, Fib, Found, LAST_ID, Nexthop, Nexthops, RouteKey, Via, Write},
    table::RouteTable,
};
use crate::kernel::{
    PROTOCOL_BGP, TABLE_MAIN,
    nexthops::{ForeignNexthop, Hop, Target, Underlay, UnderlayRoute},
    retry::Retry,
};

/// So many messages are encoded at once; between two such portions notifications are read.
const PORTION: usize = 4096;
/// Datagrams read in one go.
const DATAGRAMS: usize = 4096;

/// The kernel of the namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    monitor: Monitor,
    batch: Batch,
    /// Notifications that came while we wrote.
    backlog: Vec<Notice>,
    /// When the underlay is read again.
    reading: Retry,
}

/// What somebody else did.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Notice {
    /// A link is new or changed.
    Link {
        /// Its index.
        index: u32,
        /// Administratively up.
        up: bool,
        /// With carrier.
        running: bool,
    },
    /// A link is gone.
    LinkGone(u32),
    /// An address of ours is there.
    Address(IpAddr),
    /// An address is gone. Routes that had it as their source went without a word.
    AddressGone(IpAddr),
    /// A route of another protocol.
    Route(UnderlayRoute),
    /// It is gone.
    RouteGone(UnderlayRoute),
    /// A route of our protocol was put by somebody else.
    OursReplaced(RouteKey),
    /// A route of our protocol was removed by somebody else.
    OursGone(RouteKey),
    /// A nexthop object of somebody else.
    Nexthop(u32, ForeignNexthop),
    /// It is gone.
    NexthopGone(u32),
    /// A nexthop object of ours was changed or removed by somebody else.
    OurNexthop,
    /// Notifications were lost.
    Overrun,
}

impl Kernel {
    /// Opens both sockets in the calling thread's network namespace and subscribes.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(Protocol::Route)?;
        let monitor = Monitor::open(&Group::ROUTING)?;
        monitor.socket().ignore_port(socket.port())?;
        Ok(Kernel {
            socket,
            monitor,
            batch: Batch::new(),
            backlog: Vec::new(),
            reading: Retry::default(),
        })
    }

    /// Whether this kernel has nexthop objects (Linux 5.3).
    pub fn has_objects(&mut self) -> Result<bool, Error> {
        match nexthop::list(&mut self.socket) {
            Ok(_) => Ok(true),
            Err(error) if error.is(Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads links, addresses, nexthop objects and the routes of all other protocols.
    pub fn read_underlay(&mut self) -> Result<Underlay, Error> {
        let mut underlay = Underlay::default();
        for link in link::list(&mut self.socket)? {
            underlay.set_link(link.index, link.is_up(), link.is_running());
        }
        for address in addr::list(&mut self.socket)? {
            underlay.add_address(address.prefix.addr);
        }
        match nexthop::list(&mut self.socket) {
            Ok(objects) => {
                for object in objects.iter().filter(|object| !is_ours(object)) {
                    underlay.set_nexthop(object.id, foreign_nexthop(object));
                }
            }
            Err(error) if error.is(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        let main = route::Filter {
            table: Some(TABLE_MAIN),
            ..route::Filter::default()
        };
        for v6 in [false, true] {
            for route in route::list(&mut self.socket, v6, &main)? {
                if route.protocol != PROTOCOL_BGP
                    && let Some(route) = underlay_route(&route)
                {
                    underlay.add_route(route, false);
                }
            }
        }
        Ok(underlay)
    }

    /// Whether notifications are waiting here and not in the socket.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// When [`Kernel::listen`] is to be called though nobody did anything.
    pub fn deadline(&self) -> Option<Instant> {
        self.reading.at()
    }

    /// Takes in what others did since the last call, and what could not be read then.
    pub fn listen(&mut self, table: &mut RouteTable) {
        let mut changed = false;
        // What vanishes without a word of its own can only be read.
        let mut reread = self.reading.is_due(Instant::now());
        for notice in self.notices() {
            reread |= matches!(notice, Notice::Overrun | Notice::AddressGone(IpAddr::V4(_)));
            changed |= tell(table, notice);
        }
        if reread {
            match self.read_underlay() {
                Ok(underlay) => {
                    *table.underlay() = underlay;
                    self.reading.done();
                }
                Err(error) => {
                    self.reading.failed(Instant::now());
                    tracing::warn!(%error, "routes: links and routes could not be read, trying again");
                }
            }
        }
        if changed || reread {
            table.underlay_changed();
        }
    }

    fn notices(&mut self) -> Vec<Notice> {
        if let Err(error) = self.drain(DATAGRAMS) {
            tracing::warn!(%error, "routes: notifications lost");
            self.backlog.push(Notice::Overrun);
        }
        std::mem::take(&mut self.backlog)
    }

    fn drain(&mut self, limit: usize) -> Result<(), Error> {
        let backlog = &mut self.backlog;
        self.monitor
            .receive(limit, |event, _| backlog.extend(notice(event)))?;
        Ok(())
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

impl Fib for Kernel {
    fn write(&mut self, writes: &[Write]) -> Result<Vec<Failure>, Error> {
        let mut failures = Vec::new();
        for (portion, writes) in writes.chunks(PORTION).enumerate() {
            self.batch.clear();
            writes
                .iter()
                .for_each(|write| encode(&mut self.batch, write));
            let report = self.socket.send_batch(&mut self.batch)?;
            failures.extend(report.failures.into_iter().map(|mut failure| {
                failure.index += portion * PORTION;
                failure
            }));
            self.drain(2 * PORTION)?;
        }
        Ok(failures)
    }

    fn read(&mut self, table: u32) -> Result<Found, Error> {
        let ours = route::Filter {
            protocol: Some(PROTOCOL_BGP),
            table: Some(table),
            oif: None,
        };
        let nexthops = self.read_nexthops()?;
        let mut routes = Vec::new();
        for v6 in [false, true] {
            let found = route::list(&mut self.socket, v6, &ours)?;
            routes.extend(
                found
                    .iter()
                    .filter_map(|route| Some((key(route)?, via(route)))),
            );
        }
        Ok(Found { nexthops, routes })
    }

    fn read_nexthops(&mut self) -> Result<Nexthops, Error> {
        let mut found = Nexthops::default();
        let objects = match nexthop::list(&mut self.socket) {
            Err(error) if error.is(Errno::OPNOTSUPP) => return Ok(found),
            other => other?,
        };
        for object in objects {
            match (is_ours(&object), &object.kind) {
                (true, nexthop::Kind::Hop(hop)) => {
                    found.ours.push((object.id, Nexthop::Hop(hop_of(hop))));
                }
                (true, nexthop::Kind::Group(members)) => {
                    let ids = members.iter().map(|member| member.id).collect();
                    found.ours.push((object.id, Nexthop::Group(ids)));
                }
                // Also one of our protocol that we never make: it stays, and its id is not used.
                _ => found.taken.push(object.id),
            }
        }
        Ok(found)
    }
}

/// Carries a notice to the table; returns whether the underlay changed.
fn tell(table: &mut RouteTable, notice: Notice) -> bool {
    match notice {
        Notice::Link { index, up, running } => {
            let changed = table.underlay().set_link(index, up, running);
            // Even if nothing changed in the end: the carrier may have been away in between.
            if table.uses_link(index) {
                table.nexthops_touched();
            }
            changed
        }
        Notice::LinkGone(index) => {
            if table.uses_link(index) {
                table.nexthops_touched();
            }
            table.underlay().drop_link(index)
        }
        Notice::Address(addr) => table.underlay().add_address(addr),
        Notice::AddressGone(addr) => table.underlay().drop_address(addr),
        Notice::Route(route) => {
            table.underlay().add_route(route, true);
            true
        }
        Notice::RouteGone(route) => {
            table.underlay().drop_route(&route);
            table.room_made(route.prefix);
            true
        }
        Notice::OursReplaced(key) => {
            if table.owns(key) {
                table.route_replaced(key);
            }
            false
        }
        Notice::OursGone(key) => {
            if table.owns(key) {
                table.route_lost(key);
            }
            false
        }
        // An object of ours that somebody else has replaced by one of another protocol, or has removed after that.
        Notice::Nexthop(id, _) | Notice::NexthopGone(id) if table.knows_nexthop(id) => {
            table.nexthops_touched();
            false
        }
        Notice::Nexthop(id, nexthop) => {
            table.underlay().set_nexthop(id, nexthop);
            true
        }
        Notice::NexthopGone(id) => {
            table.underlay().drop_nexthop(id);
            true
        }
        Notice::OurNexthop => {
            table.nexthops_touched();
            false
        }
        Notice::Overrun => {
            table.in_doubt();
            true
        }
    }
}

fn notice(event: Notification) -> Option<Notice> {
    Some(match event {
        Notification::Link(link) => Notice::Link {
            index: link.index,
            up: link.is_up(),
            running: link.is_running(),
        },
        Notification::LinkGone(link) => Notice::LinkGone(link.index),
        Notification::Address(address) => Notice::Address(address.prefix.addr),
        Notification::AddressGone(address) => Notice::AddressGone(address.prefix.addr),
        Notification::Route(route) if route.protocol == PROTOCOL_BGP => {
            Notice::OursReplaced(key(&route)?)
        }
        Notification::RouteGone(route) if route.protocol == PROTOCOL_BGP => {
            Notice::OursGone(key(&route)?)
        }
        Notification::Route(route) if route.table == TABLE_MAIN => {
            Notice::Route(underlay_route(&route)?)
        }
        Notification::RouteGone(route) if route.table == TABLE_MAIN => {
            Notice::RouteGone(underlay_route(&route)?)
        }
        Notification::Nexthop(object) | Notification::NexthopGone(object) if is_ours(&object) => {
            Notice::OurNexthop
        }
        Notification::Nexthop(object) => Notice::Nexthop(object.id, foreign_nexthop(&object)),
        Notification::NexthopGone(object) => Notice::NexthopGone(object.id),
        Notification::Overrun => Notice::Overrun,
        _ => return None,
    })
}

fn encode(batch: &mut Batch, write: &Write) {
    match write {
        Write::PutNexthop(id, Nexthop::Hop(hop)) => {
            nexthop::replace_hop(batch, *id, PROTOCOL_BGP, &netlink_hop(hop), false);
        }
        Write::PutNexthop(id, Nexthop::Group(ids)) => {
            let members: Vec<nexthop::Member> = ids
                .iter()
                .map(|id| nexthop::Member { id: *id, weight: 1 })
                .collect();
            nexthop::replace_group(batch, *id, PROTOCOL_BGP, &members);
        }
        Write::DropNexthop(id) => nexthop::delete(batch, *id),
        Write::AddRoute(key, via) => route::add(batch, &netlink_route(key, via)),
        Write::ReplaceRoute(key, via) => route::replace(batch, &netlink_route(key, via)),
        Write::DropRoute(key) => route::delete_any_target(
            batch,
            netlink_prefix(key.prefix),
            key.table,
            key.metric,
            PROTOCOL_BGP,
        ),
    }
}

fn netlink_route(key: &RouteKey, via: &Via) -> route::Route {
    let target = match via {
        Via::Group(id) => route::Target::Nexthop(*id),
        Via::Blackhole => route::Target::Nothing,
        Via::Hops(hops) => match hops.as_ref() {
            [one] => route::Target::Hop(netlink_hop(one)),
            several => route::Target::Multipath(several.iter().map(netlink_hop).collect()),
        },
    };
    let mut route = route::Route::new(netlink_prefix(key.prefix), target, PROTOCOL_BGP);
    route.table = key.table;
    route.metric = key.metric;
    route
}

fn netlink_hop(hop: &Hop) -> route::Hop {
    route::Hop {
        gateway: hop.gateway,
        oif: Some(hop.link),
        onlink: false,
        weight: 1,
    }
}

fn netlink_prefix(prefix: Prefix) -> selvage_netlink::Prefix {
    selvage_netlink::Prefix::new(prefix.addr(), prefix.len())
}

fn key(route: &route::Route) -> Option<RouteKey> {
    Some(RouteKey {
        prefix: Prefix::new(route.prefix.addr, route.prefix.len)?,
        table: route.table,
        metric: route.metric,
    })
}

fn via(route: &route::Route) -> Option<Via> {
    match (&route.target, route.kind) {
        (route::Target::Nexthop(id), route::Kind::Unicast) => Some(Via::Group(*id)),
        (route::Target::Nothing, route::Kind::Blackhole) => Some(Via::Blackhole),
        _ => None,
    }
}

fn is_ours(object: &nexthop::Nexthop) -> bool {
    object.protocol == PROTOCOL_BGP && (FIRST_HOP_ID..=LAST_ID).contains(&object.id)
}

fn underlay_route(route: &route::Route) -> Option<UnderlayRoute> {
    let target = match &route.target {
        route::Target::Hop(hop) if route.kind == route::Kind::Unicast => {
            Target::Hops(vec![hop_of(hop)])
        }
        route::Target::Multipath(hops) => Target::Hops(hops.iter().map(hop_of).collect()),
        route::Target::Nexthop(id) => Target::Object(*id),
        _ => Target::Reject,
    };
    Some(UnderlayRoute {
        prefix: Prefix::new(route.prefix.addr, route.prefix.len)?,
        metric: route.metric,
        target,
    })
}

fn hop_of(hop: &route::Hop) -> Hop {
    Hop {
        link: hop.oif.unwrap_or_default(),
        gateway: hop.gateway,
    }
}

fn foreign_nexthop(object: &nexthop::Nexthop) -> ForeignNexthop {
    match &object.kind {
        nexthop::Kind::Hop(hop) => ForeignNexthop::Hop(hop_of(hop)),
        nexthop::Kind::Group(members) => {
            ForeignNexthop::Group(members.iter().map(|member| member.id).collect())
        }
        nexthop::Kind::Blackhole => ForeignNexthop::Reject,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::RoutePolicy;

    /// After notifications were lost, and the kernel did not answer either.
    #[test]
    fn what_could_not_be_read_is_read_later() {
        let mut kernel = Kernel::open().unwrap();
        let underlay = kernel.read_underlay().unwrap();
        let objects = kernel.has_objects().unwrap();
        let mut table =
            RouteTable::start(RoutePolicy::default(), underlay, objects, &mut kernel).unwrap();
        assert_eq!(kernel.deadline(), None);
        // It knows no links.
        let other = Socket::open(Protocol::Netfilter).unwrap();
        let socket = std::mem::replace(&mut kernel.socket, other);
        kernel.backlog.push(Notice::Overrun);
        kernel.listen(&mut table);
        let again = kernel.deadline().expect("it is tried again");
        kernel.socket = socket;
        let limit = Instant::now() + Duration::from_secs(60);
        while kernel.deadline().is_some() {
            assert!(Instant::now() < limit, "not read again");
            std::thread::sleep(again.saturating_duration_since(Instant::now()));
            kernel.listen(&mut table);
        }
    }
}
