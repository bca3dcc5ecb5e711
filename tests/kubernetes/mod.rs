//! On a real Kubernetes, from the API server alone to a cluster with nodes.

mod cluster;
mod control_plane;
mod install;
mod selvage;
mod serving;
mod source;
mod statuses;
mod validation;

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

/// What a cluster needs with Selvage on it.
const SELVAGE: &[Need] = &[
    Need::Cluster,
    Need::Image,
    Need::System("openssl", "openssl"),
    Need::System("runc", "runc"),
    Need::System("nft", "nftables"),
];

pub fn cases() -> Vec<Case> {
    [
        control_plane::cases(),
        source::cases(),
        statuses::cases(),
        validation::cases(),
        cluster::cases(),
        install::cases(),
        selvage::cases(),
        serving::cases(),
    ]
    .concat()
}
