//! Routes learned over BGP carry packets between pods, and go with the node that announced them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use selvage_lab::agent::Peer;
use selvage_lab::probe::flow::Flow;
use selvage_lab::{Cluster, Lab, eventually_ok, objects};
use selvage_netlink::route::Kind as RouteKind;
use selvage_netlink::{Prefix, addr};
use serde_json::json;

use crate::harness::Case;
use crate::scene::{
    self, OWN, SOON, TWO_NODES, WITH_BIRD, other, prefix, two_nodes, wait_kernel_route,
    wait_no_kernel_route, wait_reaches,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::pods_reach_each_other_across_nodes", OWN, across),
        Case::new("e2e::an_own_pod_cidr_is_a_blackhole", OWN, blackhole),
        Case::new("e2e::a_node_that_goes_takes_its_routes_with_it", OWN, goes),
        Case::new(
            "e2e::a_node_that_changes_its_address_is_followed",
            OWN,
            moves,
        ),
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

fn three_nodes(lab: &Lab) -> Result<Cluster> {
    let text = TWO_NODES.replace(
        "pods:",
        "  - {name: n3, networks: [rack], podCIDRs: [10.244.3.0/24, 'fd00:10:244:3::/64']}\npods:",
    );
    let mut cluster = scene::cluster(lab, &text)?;
    scene::without_hold_time(&cluster)?;
    cluster.start(2 * SOON)?;
    Ok(cluster)
}

/// A node has another address from now on; the session between the two others does not notice.
pub fn moves(lab: &Lab) -> Result<()> {
    let mut cluster = three_nodes(lab)?;
    let (n2, n3) = (address_of(&cluster, "n2")?, address_of(&cluster, "n3")?);
    let new: IpAddr = "192.0.2.99".parse()?;
    let before = session(&mut cluster, n2)?.context("no session with n2")?;
    ensure!(before.up, "{before:?}");
    let mut socket = cluster.netns("n3")?.rtnetlink()?;
    let mut own = addr::list(&mut socket)?.into_iter();
    let first = own.find(|own| own.prefix.addr == n3);
    let index = first.context("no interface has the address")?.index;
    let second = addr::Address::new(index, Prefix::new(new, 24));
    socket.apply(|batch| addr::add(batch, &second))?;

    let mut addresses = cluster.addresses("n3");
    addresses.retain(|address| *address != n3);
    addresses.push(new);
    let mut nodes = cluster.topology().nodes.iter();
    let node = nodes.find(|node| node.name.value == "n3");
    let node = objects::node(node.context("no n3")?, &addresses);
    cluster.objects().write("node-n3", &node)?;
    eventually_ok(SOON, "n1 speaks with the new address", || {
        let there = session(&mut cluster, new)?.context("not configured")?;
        ensure!(there.up, "{there:?}");
        ensure!(session(&mut cluster, n3)?.is_none(), "the old one is there");
        Ok(())
    })?;
    let watcher = cluster.netns("n1")?.clone();
    for pods in ["10.244.3.0/24", "fd00:10:244:3::/64"] {
        wait_kernel_route(&watcher, prefix(pods)?)?;
    }
    let after = session(&mut cluster, n2)?.context("no session with n2")?;
    ensure!(
        after.up && after.established == before.established,
        "{before:?} {after:?}"
    );
    Ok(())
}

fn address_of(cluster: &Cluster, node: &str) -> Result<IpAddr> {
    let mut addresses = cluster.addresses(node).into_iter();
    addresses.find(IpAddr::is_ipv4).context("no address")
}

/// What n1 says of a neighbour.
fn session(cluster: &mut Cluster, with: IpAddr) -> Result<Option<Peer>> {
    let peers = cluster.node("n1")?.agent.peers()?;
    Ok(peers.into_iter().find(|peer| peer.address == with))
}

/// First by its object, then by its end.
pub fn goes(lab: &Lab) -> Result<()> {
    let cluster = three_nodes(lab)?;
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
