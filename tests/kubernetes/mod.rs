//! On a real Kubernetes, from the API server alone to a cluster with nodes.

mod cluster;
mod control_plane;
mod install;
mod selvage;
mod serving;
mod source;
mod statuses;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use selvage_lab::kubernetes::Kubectl;

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
        cluster::cases(),
        install::cases(),
        selvage::cases(),
        serving::cases(),
    ]
    .concat()
}

/// The definitions of our kinds, as the manifests have them.
fn install_definitions(kubectl: &Kubectl) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/crds");
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        if text.contains("kind: CustomResourceDefinition") {
            kubectl.apply(&text)?;
        }
    }
    let all = [
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd",
        "--all",
    ];
    kubectl.run(&all)?;
    Ok(())
}
