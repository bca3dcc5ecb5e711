//! The reconcilers: what should be, what the kernel has, and the difference written.
//!
//! ```text
//!   rib ── RouteChange, Synced ──► routes ───► nexthop objects, groups, routes      (thread `routes`)
//!    ▲                              │  ▲
//!    └── Reachability ── nexthops ◄─┘  └── links, addresses, other protocols' routes
//!   compiler ── Delta, Plan ─────► nft ──────► table `inet selvage`                 (thread `nft`)
//!    ▲                              │
//!    └── Done ◄─────────────────────┴────────► conntrack: flows to cut
//!   watch ── links, addresses ───► store
//!   pod-routes ── host routes of another plugin's pods ───► store
//! ```
//!
//! Each reconciler owns its part of the kernel and a mirror of it. It lists what carries our mark,
//! compares and writes the difference: first what is added, then what is removed; what is not ours
//! is never touched. Each is a synchronous core that is told everything, the time included, and a
//! thin thread around it that waits for its [`Inbox`](crate::inbox::Inbox) and the kernel's
//! notifications together. Objects of the configuration are not known here.

pub mod conntrack;
pub mod host_ports;
pub mod masquerade;
pub mod nexthops;
pub mod nft;
pub mod open;
pub mod pod_routes;
pub mod retry;
pub mod routes;
pub mod sysctl;
pub mod watch;

pub use crate::store::POD_LINK_GROUP;

/// The routing protocol number of what BGP taught us, and of the blackholes under our prefixes.
pub const PROTOCOL_BGP: u8 = 85;
/// The routing protocol number of the routes to local pods, which are written when an interface is opened.
pub const PROTOCOL_POD: u8 = 86;
/// The metric of learned routes unless told otherwise.
pub const ROUTE_METRIC: u32 = 1085;
/// The metric of the blackholes: behind everything that anybody else may have for the same prefix.
pub const BLACKHOLE_METRIC: u32 = 65085;
/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// How learned routes go into the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoutePolicy {
    /// The routing table.
    pub table: u32,
    /// The metric of learned routes; with table and protocol it is what tells ours from others'.
    pub metric: u32,
    /// At most so many next hops per route; at least 1.
    pub ecmp_width: usize,
    /// Whether learned routes are installed at all.
    pub accept: bool,
}

impl Default for RoutePolicy {
    fn default() -> Self {
        RoutePolicy {
            table: TABLE_MAIN,
            metric: ROUTE_METRIC,
            ecmp_width: 16,
            accept: true,
        }
    }
}

/// How a thread ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Another process takes over: finish what is queued, leave everything in place.
    Graceful,
    /// The node leaves service: as `Graceful` here; who announces has withdrawn before.
    Drain,
    /// At once, whatever is queued.
    Now,
}
