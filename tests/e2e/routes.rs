//! Routes learned over BGP carry packets between pods, and go with the node that announced them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use selvage_lab::Lab;
use selvage_lab::daemon::Kind;
use selvage_lab::probe::flow::Flow;
use selvage_netlink::route::Kind as RouteKind;
use serde_json::json;

use crate::harness::{Case, Need};
use crate::scene::{
    self, OWN, SOON, TWO_NODES, other, prefix, two_nodes, wait_kernel_route, wait_no_kernel_route,
    wait_reaches,
};

const WITH_BIRD: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::Daemon(Kind::Bird),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::pods_reach_each_other_across_nodes", OWN, across),
        Case::new("e2e::an_own_pod_cidr_is_a_blackhole", OWN, blackhole),
        Case::new("e2e::a_node_that_goes_takes_its_routes_with_it", OWN, goes),
        Case::new(
            "e2e::a_pod_is_reached_from_the_top_of_rack",
            WITH_BIRD,
            from_outside,
        ),
        Case::new("e2e::a_pod_that_goes_frees_its_addresses", OWN, pod_goes),
    ]
}

pub fn across(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    wait_reaches(&cluster, "default/client", "shop/web", None)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    wait_reaches(&cluster, "shop/web", "default/client", Some(80))?;
    wait_reaches(&cluster, "n2", "shop/web", Some(80))?;
    for address in cluster.addresses("shop/web") {
        let (from, to) = (cluster.netns("default/client")?, cluster.netns("shop/web")?);
        let flow = Flow::start(from, to, SocketAddr::new(address, 5000), 200)?;
        selvage_lab::eventually(SOON, "packets come", || flow.received() >= 100)?;
        let account = flow.stop(SOON)?;
        ensure!(
            account.lost == 0 && account.duplicates == 0,
            "{address}: {account:?}"
        );
    }
    Ok(())
}

/// An unused pod address does not loop between node and router.
fn blackhole(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    for pods in ["10.244.1.0/24", "fd00:10:244:1::/64"] {
        let own = wait_kernel_route(cluster.netns("n1")?, prefix(pods)?)?;
        ensure!(own.kind == RouteKind::Blackhole, "{own:?}");
        let learned = wait_kernel_route(cluster.netns("n2")?, prefix(pods)?)?;
        ensure!(learned.kind == RouteKind::Unicast, "{learned:?}");
    }
    Ok(())
}

/// First by its object, then by its end.
pub fn goes(lab: &Lab) -> Result<()> {
    let text = TWO_NODES.replace(
        "pods:",
        "  - {name: n3, networks: [rack], podCIDRs: [10.244.3.0/24, 'fd00:10:244:3::/64']}\npods:",
    );
    let mut cluster = scene::cluster(lab, &text)?;
    cluster.start(2 * SOON)?;
    let watcher = cluster.netns("n1")?.clone();
    for pods in ["10.244.2.0/24", "10.244.3.0/24", "fd00:10:244:3::/64"] {
        wait_kernel_route(&watcher, prefix(pods)?)?;
    }
    cluster.objects().remove("node-n3")?;
    for pods in ["10.244.3.0/24", "fd00:10:244:3::/64"] {
        wait_no_kernel_route(&watcher, prefix(pods)?)?;
    }
    ensure!(
        scene::kernel_route(&watcher, prefix("10.244.2.0/24")?)?.is_some(),
        "another node's route went too"
    );
    Ok(())
}

fn from_outside(lab: &Lab) -> Result<()> {
    let text = format!(
        "{TWO_NODES}\nrouters: [{{name: tor, daemon: bird, asn: 65001, networks: [rack]}}]\n"
    );
    let mut cluster = scene::cluster(lab, &text)?;
    let peer = json!({"address": "192.0.2.1", "asn": 65001});
    cluster
        .objects()
        .write("tor", &selvage_lab::cluster::object("BGPPeer", "tor", peer))?;
    cluster.start(2 * SOON)?;
    wait_reaches(&cluster, "tor", "shop/web", Some(80))?;
    wait_reaches(&cluster, "tor", "default/client", None)?;
    // Nodes do not pass on among eBGP what they have from each other.
    let router = other(&mut cluster, "tor")?;
    let paths = router.routes()?;
    let pods = prefix("10.244.1.0/24")?;
    ensure!(
        paths.iter().filter(|path| path.prefix == pods).count() == 1,
        "a node is transit: {paths:?}"
    );
    Ok(())
}

pub fn pod_goes(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let before = cluster.addresses("shop/web");
    let from = cluster.netns("default/client")?.clone();
    cluster.stop_pod("shop/web")?;
    let node = cluster.netns("n1")?.clone();
    let mut socket = node.rtnetlink()?;
    let left = selvage_netlink::link::list(&mut socket)?;
    ensure!(
        !left.iter().any(|link| link.name.starts_with("sv")),
        "an interface is left: {left:?}"
    );
    for address in before {
        let answer = scene::attempt(&from, address, Some(80))?;
        ensure!(!answer.is_yes(), "{address} still answers");
    }
    cluster.start_pod("shop/web").context("a second time")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    Ok(())
}
