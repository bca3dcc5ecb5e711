//! On a real Kubernetes, from the API server alone to a cluster with nodes.

mod control_plane;

use crate::harness::{Case, Need};

/// What an API server needs.
const CONTROL_PLANE: &[Need] = &[Need::ControlPlane, Need::System("openssl", "openssl")];

pub fn cases() -> Vec<Case> {
    control_plane::cases()
}
