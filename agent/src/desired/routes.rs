//! How learned routes go into the kernel, and what is sent nowhere.

use ipnet::IpNet;
use selvage_bgp_core::prefix::Prefix;

use super::{Local, prefix};
use crate::kernel::RoutePolicy;
use crate::store::Store;

/// How learned routes go into the kernel.
pub fn routes(store: &Store, local: &Local) -> RoutePolicy {
    let configuration = store
        .configuration()
        .map(|object| (**object).clone())
        .unwrap_or_default();
    RoutePolicy {
        metric: configuration.route_metric,
        ecmp_width: usize::from(configuration.maximum_paths),
        accept: local.kernel,
        ..RoutePolicy::default()
    }
}

/// Prefixes under which a blackhole belongs: every pod CIDR that we announce, so that unused pod addresses do not
/// loop between the node and the router that it announces them to. Sorted.
pub fn blackholes(store: &Store, local: &Local) -> Vec<Prefix> {
    if !local.kernel {
        return Vec::new();
    }
    announced_pod_cidrs(store, local)
        .into_iter()
        .filter_map(prefix)
        .collect()
}

/// The pod CIDRs of this node, if they are announced. Sorted.
pub(super) fn announced_pod_cidrs(store: &Store, local: &Local) -> Vec<IpNet> {
    if store
        .configuration()
        .is_some_and(|configuration| !configuration.advertise_pod_cidrs)
    {
        return Vec::new();
    }
    let mut cidrs = store
        .node(&local.node)
        .map(|node| node.pod_cidrs.clone())
        .unwrap_or_default();
    cidrs.sort();
    cidrs.dedup();
    cidrs
}
