//! `BGPNodeStatus`: what one node has to say about itself, one object per node, called as the node is.
//!
//! Written by the agents, on transitions only; nobody reads it but people and programs. Nothing in it changes by
//! itself: no ages, no counters of routes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many neighbours are listed; a mesh of thousands would make an object of a megabyte.
pub const MOST_NEIGHBORS: usize = 32;

/// The `status`; there is no spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpNodeStatusStatus {
    /// Autonomous system of the node.
    pub asn: u32,
    /// Its BGP identifier.
    #[serde(rename = "routerID")]
    pub router_id: String,
    /// What it announces.
    pub networks: Vec<String>,
    /// Its sessions in numbers.
    pub sessions: SessionTotals,
    /// Its neighbours, those that are not up first, then those that a BGPPeer names; at most 32.
    pub neighbors: Vec<NeighborStatus>,
    /// What is wrong, the worst first; at most 16.
    pub wrong: Vec<String>,
}

/// Sessions in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionTotals {
    /// Sessions that should be there, and those that came from a range.
    pub configured: u32,
    /// Sessions that are Established.
    pub established: u32,
}

/// One neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NeighborStatus {
    /// Its address.
    pub address: String,
    /// Where it is configured: `mesh`, `range`, or `BGPPeer NAME`.
    pub origin: String,
    /// Whether the session is Established.
    pub up: bool,
    /// Its autonomous system, or what is expected of it.
    pub asn: String,
    /// Families in use.
    pub families: Vec<String>,
}
