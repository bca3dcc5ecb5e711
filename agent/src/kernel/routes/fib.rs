//! What the route writer says to the kernel, as values, and the two who can carry it out: the
//! kernel itself, and the tests' model of it.

use std::sync::Arc;

use selvage_bgp_core::prefix::Prefix;
use selvage_netlink::{Error, Failure};

use crate::kernel::nexthops::Hop;

/// The first id of our nexthop objects.
pub const FIRST_HOP_ID: u32 = 0x5e10_0000;
/// The first id of our groups; a group cannot replace a single object, so their ids never mix.
pub const FIRST_GROUP_ID: u32 = 0x5e18_0000;
/// The last id of our range.
pub const LAST_ID: u32 = 0x5e1f_ffff;

/// What identifies a route of ours, beside the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteKey {
    /// The destination.
    pub prefix: Prefix,
    /// The table.
    pub table: u32,
    /// The metric.
    pub metric: u32,
}

/// A nexthop object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Nexthop {
    /// One way.
    Hop(Hop),
    /// The objects with these ids, all equal. The order is that of the hops: it decides which
    /// flow takes which, and must not depend on when an id was given.
    Group(Vec<u32>),
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Via {
    /// To the group of this id.
    Group(u32),
    /// Over these hops, in the route itself: for kernels without nexthop objects.
    Hops(Arc<[Hop]>),
    /// Nowhere.
    Blackhole,
}

/// One message to the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Create the object or replace it in place.
    PutNexthop(u32, Nexthop),
    /// Delete the object; routes that use it go with it.
    DropNexthop(u32),
    /// A new route. Refused with `EEXIST` if anybody has one of this key.
    AddRoute(RouteKey, Via),
    /// The route takes the place of ours of the same key.
    ReplaceRoute(RouteKey, Via),
    /// Delete ours of this key.
    DropRoute(RouteKey),
}

/// Nexthop objects as they were read.
#[derive(Clone, Default, Debug)]
pub struct Nexthops {
    /// Ours: in our range of ids and of our protocol.
    pub ours: Vec<(u32, Nexthop)>,
    /// The ids of all others.
    pub taken: Vec<u32>,
}

/// What the kernel has of ours.
#[derive(Clone, Default, Debug)]
pub struct Found {
    /// The objects.
    pub nexthops: Nexthops,
    /// The routes of our protocol in the table asked for; `None`: a target that we do not write.
    pub routes: Vec<(RouteKey, Option<Via>)>,
}

/// Carries out writes and reads back.
pub trait Fib {
    /// Writes all, in order; each stands alone. The failures are those of single messages, in
    /// order; after an error it is unknown what took effect.
    fn write(&mut self, writes: &[Write]) -> Result<Vec<Failure>, Error>;

    /// Reads what is ours: nexthop objects in our range, routes of our protocol in `table`.
    fn read(&mut self, table: u32) -> Result<Found, Error>;

    /// Reads the nexthop objects only.
    fn read_nexthops(&mut self) -> Result<Nexthops, Error>;
}
