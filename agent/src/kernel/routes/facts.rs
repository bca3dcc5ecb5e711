//! What the route writer tells others.

use std::net::IpAddr;

use selvage_bgp_core::{
    ids::{Family, FamilySet},
    prefix::Prefix,
};

/// Something that others have to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteEvent {
    /// For the RIB: how a watched next hop is reached now.
    Reachability {
        /// Which.
        next_hop: IpAddr,
        /// The distance; `None`: unreachable.
        metric: Option<u32>,
    },
    /// All that the RIB knew when it said that the family is synced is in the kernel, but for
    /// what the facts name as unresolved or failing. Once per family.
    InSync(Family),
    /// For the store: counts and what is wrong, whenever they changed.
    Facts(RouteFacts),
}

/// Counts and what is wrong.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RouteFacts {
    /// Learned routes in the kernel, by [`Family::index`].
    pub installed: [usize; 2],
    /// Blackholes under our own prefixes.
    pub blackholes: usize,
    /// Nexthop groups.
    pub groups: usize,
    /// Single nexthop objects.
    pub hops: usize,
    /// `NextHopUnresolved`: next hops that the kernel has no way to, sorted.
    pub unresolved: Vec<Unresolved>,
    /// How many routes the kernel refused; they are tried again.
    pub failing: usize,
    /// The first of them, sorted.
    pub failed: Vec<FailedRoute>,
    /// The families whose leftovers from before were removed.
    pub synced: FamilySet,
    /// Messages written so far.
    pub writes: u64,
    /// How often the kernel was read and compared.
    pub readings: u64,
    /// Routes of ours that others, or the kernel, had removed or changed.
    pub repairs: u64,
}

/// A next hop that nothing leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unresolved {
    /// The address.
    pub next_hop: IpAddr,
    /// Routes that want it and are not installed, or not over it.
    pub routes: u32,
}

/// A route that the kernel refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailedRoute {
    /// Where to.
    pub prefix: Prefix,
    /// Why, for people.
    pub reason: String,
}
