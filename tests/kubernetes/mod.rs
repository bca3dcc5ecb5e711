//! On a real Kubernetes, from the API server alone to a cluster with nodes.

mod cluster;
mod control_plane;

use crate::harness::{Case, Need};

/// What an API server needs.
const CONTROL_PLANE: &[Need] = &[Need::ControlPlane, Need::System("openssl", "openssl")];

/// What a whole cluster needs.
const CLUSTER: &[Need] = &[
    Need::Cluster,
    Need::System("openssl", "openssl"),
    Need::System("runc", "runc"),
    Need::System("nft", "nftables"),
    Need::System("iptables-restore", "iptables"),
    Need::File("/usr/lib/cni/ptp", "containernetworking-plugins"),
];

pub fn cases() -> Vec<Case> {
    [control_plane::cases(), cluster::cases()].concat()
}
