//! Path attributes as values.

mod as_path;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::ids::{Asn, IfIndex, RouterId};

pub(crate) use as_path::Builder as AsPathBuilder;
pub use as_path::{AsPath, Segment, SegmentKind, Segments};

/// Where a route came from (RFC 4271 section 5.1.1). The order is that of preference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp = 0,
    /// Learned by EGP.
    Egp = 1,
    /// By other means.
    Incomplete = 2,
}

/// Where to send packets for a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NextHop {
    /// The address announced.
    pub global: IpAddr,
    /// The link-local address that came with it, and the interface of the session (RFC 2545).
    pub link_local: Option<(Ipv6Addr, IfIndex)>,
}

impl From<IpAddr> for NextHop {
    fn from(global: IpAddr) -> Self {
        NextHop {
            global,
            link_local: None,
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.global.fmt(f)
    }
}

/// An attribute that we do not interpret, kept for passing on (optional transitive; RFC 4271 section 5).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct UnknownAttribute {
    /// The flags octet as it will be sent: the Partial bit is set already.
    pub flags: u8,
    /// The type code.
    pub code: u8,
    /// The value.
    pub value: Box<[u8]>,
}

/// The optional transitive attributes that we know and that somebody on the way did not (or added later): once set, their
/// Partial bit is never cleared (RFC 4271 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PartialBits(u8);

impl PartialBits {
    /// AGGREGATOR, COMMUNITIES, EXTENDED COMMUNITIES, AS4_PATH, AS4_AGGREGATOR, LARGE_COMMUNITY.
    const CODES: [u8; 6] = [7, 8, 16, 17, 18, 32];

    /// Sets the bit of the attribute with this code. Without effect for another than those that we know as optional transitive.
    pub fn insert(&mut self, code: u8) {
        if let Some(at) = Self::CODES.iter().position(|c| *c == code) {
            self.0 |= 1 << at;
        }
    }

    /// Whether the bit of the attribute with this code is set.
    pub fn contains(self, code: u8) -> bool {
        let at = Self::CODES.iter().position(|c| *c == code);
        at.is_some_and(|at| self.0 & 1 << at != 0)
    }

    /// Whether no bit is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// One octet; [`PartialBits::from_octet`] reads it.
    pub(crate) fn octet(self) -> u8 {
        self.0
    }

    /// What [`PartialBits::octet`] gave.
    pub(crate) fn from_octet(octet: u8) -> PartialBits {
        PartialBits(octet)
    }
}

/// The attributes of a route in one family: content only, compared and hashed as such.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PathAttributes {
    /// ORIGIN.
    pub origin: Origin,
    /// AS_PATH, AS4_PATH merged into it (RFC 6793 section 4.2.3).
    pub as_path: AsPath,
    /// NEXT_HOP, or that of MP_REACH_NLRI.
    pub next_hop: NextHop,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF; none on routes from external peers.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR, AS4_AGGREGATOR merged into it.
    pub aggregator: Option<(Asn, Ipv4Addr)>,
    /// COMMUNITIES (RFC 1997), in the order received.
    pub communities: Box<[u32]>,
    /// EXTENDED COMMUNITIES (RFC 4360).
    pub ext_communities: Box<[[u8; 8]]>,
    /// LARGE_COMMUNITY (RFC 8092).
    pub large_communities: Box<[[u32; 3]]>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator_id: Option<RouterId>,
    /// CLUSTER_LIST (RFC 4456), nearest first.
    pub cluster_list: Box<[RouterId]>,
    /// What is passed on without being understood, ascending by code.
    pub unknown: Box<[UnknownAttribute]>,
    /// The Partial bits of the attributes above.
    pub partial: PartialBits,
}

impl PathAttributes {
    /// The attributes of a route that we originate.
    pub fn local(next_hop: NextHop) -> PathAttributes {
        PathAttributes {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Box::default(),
            ext_communities: Box::default(),
            large_communities: Box::default(),
            originator_id: None,
            cluster_list: Box::default(),
            unknown: Box::default(),
            partial: PartialBits::default(),
        }
    }
}
