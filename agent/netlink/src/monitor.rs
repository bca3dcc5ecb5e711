//! What others change: notifications about links, addresses, routes, nexthops and neighbours.
//!
//! The descriptor of a [`Monitor`] is polled by the caller. Lost notifications are an event of
//! their own, after which everything is read again. Subscribe first, then list: so nothing is
//! missed in between.

use std::os::fd::{AsFd, BorrowedFd};

use crate::addr::{self, Address};
use crate::error::Result;
use crate::link::{self, Link};
use crate::neigh::{self, Neighbour};
use crate::netconf::{self, Netconf};
use crate::nexthop::{self, Nexthop};
use crate::route::{self, Route};
use crate::socket::{Event, Message, Protocol, Socket};

/// What to be told of (`RTNLGRP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Group {
    /// Links.
    Link = 1,
    /// Neighbours.
    Neighbour = 3,
    /// IPv4 addresses.
    Ipv4Address = 5,
    /// IPv4 routes.
    Ipv4Route = 7,
    /// IPv6 addresses.
    Ipv6Address = 9,
    /// IPv6 routes.
    Ipv6Route = 11,
    /// Settings of IPv4: forwarding.
    Ipv4Netconf = 24,
    /// Settings of IPv6: forwarding.
    Ipv6Netconf = 25,
    /// Nexthop objects.
    Nexthop = 32,
}

impl Group {
    /// Everything that the route writer needs: all but neighbours.
    pub const ROUTING: [Self; 6] = [
        Self::Link,
        Self::Ipv4Address,
        Self::Ipv4Route,
        Self::Ipv6Address,
        Self::Ipv6Route,
        Self::Nexthop,
    ];
}

/// A change in the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteEvent {
    /// A link is new or changed; carrier and administrative state included.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// An address is new or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new or took another's place.
    Route(Route),
    /// A route is gone. The kernel tells neither for routes that go with their device.
    RouteGone(Route),
    /// A nexthop object is new or changed.
    Nexthop(Nexthop),
    /// A nexthop object is gone. Not told when its device lost the carrier.
    NexthopGone(Nexthop),
    /// A neighbour is new or changed.
    Neighbour(Neighbour),
    /// A neighbour is gone.
    NeighbourGone(Neighbour),
    /// Settings were changed.
    Netconf(Netconf),
    /// Notifications were lost: read everything again.
    Overrun,
}

impl RouteEvent {
    /// The event that a notification tells; `None` if it is of another kind or damaged.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        Some(match message.kind {
            link::RTM_NEWLINK => Self::Link(link::decode(message)?),
            link::RTM_DELLINK => Self::LinkGone(link::decode(message)?),
            addr::RTM_NEWADDR => Self::Address(addr::decode(message)?),
            addr::RTM_DELADDR => Self::AddressGone(addr::decode(message)?),
            route::RTM_NEWROUTE => Self::Route(route::decode(message)?),
            route::RTM_DELROUTE => Self::RouteGone(route::decode(message)?),
            nexthop::RTM_NEWNEXTHOP => Self::Nexthop(nexthop::decode(message)?),
            nexthop::RTM_DELNEXTHOP => Self::NexthopGone(nexthop::decode(message)?),
            netconf::RTM_NEWNETCONF => Self::Netconf(netconf::decode(message)?),
            neigh::RTM_NEWNEIGH => Self::Neighbour(neigh::decode(message)?),
            neigh::RTM_DELNEIGH => Self::NeighbourGone(neigh::decode(message)?),
            _ => return None,
        })
    }
}

/// A subscribed socket.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes in the calling thread's namespace.
    pub fn open(groups: &[Group]) -> Result<Self> {
        Self::with(Socket::open(Protocol::Route)?, groups)
    }

    /// Subscribes in another namespace.
    pub fn open_in(netns: BorrowedFd<'_>, groups: &[Group]) -> Result<Self> {
        Self::with(Socket::open_in(netns, Protocol::Route)?, groups)
    }

    fn with(socket: Socket, groups: &[Group]) -> Result<Self> {
        for &group in groups {
            socket.join(group as u32)?;
        }
        Ok(Self { socket })
    }

    /// Hands on the events of at most `limit` datagrams that are there, without waiting, each with
    /// the port of the socket that caused it (0: the kernel; compare with [`Socket::port`]).
    /// Returns the number of datagrams: less than `limit` means that no more were there.
    pub fn receive(
        &mut self,
        limit: usize,
        mut handle: impl FnMut(RouteEvent, u32),
    ) -> Result<usize> {
        self.socket.receive(limit, |event| match event {
            Event::Overrun => handle(RouteEvent::Overrun, 0),
            Event::Message(message) => {
                if let Some(event) = RouteEvent::decode(&message) {
                    handle(event, message.port);
                }
            }
        })
    }

    /// The socket, to set its buffer.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
