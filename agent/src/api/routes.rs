//! Routes as the RIB and the kernel have them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Which routes, and which page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteQuestion {
    /// A prefix, or an address: then the routes that hold it.
    pub prefix: Option<String>,
    /// Only what this neighbour sent.
    pub received: Option<IpAddr>,
    /// Only what is announced to this neighbour.
    pub advertised: Option<IpAddr>,
    /// `next` of the page before.
    pub after: Option<String>,
    /// How many prefixes at most; 0: as the daemon likes.
    pub limit: usize,
}

/// Some routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoutePage {
    /// The prefixes of this page, in no order.
    pub rows: Vec<RouteView>,
    /// Where the next page begins; absent on the last one.
    pub next: Option<String>,
    /// Version of the table; pages of different versions may miss or repeat a prefix.
    pub version: u64,
}

/// A prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// As in `10.244.1.0/24`.
    pub prefix: String,
    /// Its paths, the best first.
    pub paths: Vec<PathView>,
    /// What the kernel has: `installed`, `unresolved`, `failed: …`; absent if it does not matter.
    pub kernel: Option<String>,
}

/// One way to a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathView {
    /// The neighbour that it came from; absent for our own.
    pub peer: Option<IpAddr>,
    /// Next hops.
    pub next_hops: Vec<String>,
    /// AS_PATH as in `65001 {64512 64513}`.
    pub as_path: String,
    /// `igp`, `egp` or `incomplete`.
    pub origin: String,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Communities as in `64512:100`.
    pub communities: Vec<String>,
    /// The best one.
    pub best: bool,
    /// Used beside the best one.
    pub multipath: bool,
    /// Kept from an earlier session.
    pub stale: bool,
    /// The step of the decision that chose or refused it (RFC 4271 section 9.1.2.2).
    pub reason: String,
}
