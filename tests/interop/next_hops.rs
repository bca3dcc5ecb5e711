//! A node on two links whose neighbour is on the second one: what it is told to send our way goes over that link, in
//! both families, over a session of either family, and after the second link was renumbered.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use selvage_lab::cluster::object;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::{Cluster, Lab, Link, Netns, eventually_ok};
use selvage_netlink::route::{self, Filter};
use selvage_netlink::{Prefix, addr};
use serde_json::json;

use crate::harness::Case;
use crate::scene::{self, SOON, WITH_BIRD, prefix};

const PODS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];
/// RTPROT_BIRD.
const BIRD: u8 = 12;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "interop::next_hops_are_on_the_link_of_an_ipv4_session",
            WITH_BIRD,
            |lab| second_link(lab, true),
        ),
        Case::new(
            "interop::next_hops_are_on_the_link_of_an_ipv6_session",
            WITH_BIRD,
            |lab| second_link(lab, false),
        ),
        Case::new(
            "interop::a_family_without_a_next_hop_is_left_out_and_named",
            WITH_BIRD,
            left_out,
        ),
    ]
}

/// A node with its InternalIPs on one network, and on a second one beside a BIRD in AS 65001; one session between
/// the two, of the family of `v4`.
fn scene(lab: &Lab, side: &str, v4: bool) -> Result<(Cluster, Router, Netns)> {
    let mut cluster = scene::cluster(
        lab,
        &format!(
            "
networks:
  - {{name: rack, cidrs: [10.90.1.0/24, 'fd90:1::/64']}}
  - {{name: side, cidrs: {side}}}
nodes: [{{name: n1, networks: [rack, side], podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}]
"
        ),
    )?;
    let netns = lab.netns("tor")?;
    let link = cluster.link("side/n1")?.network().join(&netns)?;
    let of = |link: &Link| -> Result<IpAddr> {
        let mut addresses = link.addresses().iter().map(IpNet::addr);
        addresses
            .find(|address| address.is_ipv4() == v4)
            .context("no address of that family")
    };
    let mut speaker = Speaker::new(65001, [192, 0, 2, 99].into());
    speaker.addresses = link.addresses().iter().map(IpNet::addr).collect();
    let node = of(cluster.link("side/n1")?)?;
    let router = Router::start(
        Kind::Bird,
        &netns,
        speaker.neighbour(Neighbour::new(node, 64512)),
    )?;
    let tor = of(&link)?;
    // If the session ends, that is no slow machine's doing.
    let spec = json!({"address": tor, "asn": 65001, "timers": {"hold": "0s"}});
    cluster
        .objects()
        .write("tor", &object("BGPPeer", "tor", spec))?;
    cluster.start_node("n1")?;
    let agent = &mut cluster.node("n1")?.agent;
    agent.wait_established(tor, SOON)?;
    agent.wait_ready(2 * SOON)?;
    Ok((cluster, router, netns))
}

fn second_link(lab: &Lab, v4: bool) -> Result<()> {
    let (mut cluster, router, tor) = scene(lab, "[10.90.2.0/24, 'fd90:2::/64']", v4)?;
    let link = cluster.link("side/n1")?.clone();
    for (pods, address) in PODS.iter().zip(link.addresses()) {
        wait_next_hop(&router, &tor, prefix(pods)?, address.addr())?;
    }
    // The family that is not the session's is renumbered.
    let (pods, old, new) = match v4 {
        true => (PODS[1], link.ipv6()?, "fd90:2::77"),
        false => (PODS[0], link.ipv4()?, "10.90.2.77"),
    };
    let new: IpAddr = new.parse()?;
    change(&link, old, addr::delete)?;
    change(&link, new, addr::add)?;
    wait_next_hop(&router, &tor, prefix(pods)?, new)?;
    // Without any: nothing is announced that cannot be used; the session stays.
    change(&link, new, addr::delete)?;
    eventually_ok(SOON, "the other family is withdrawn", || {
        let routes = router.route(prefix(pods)?)?;
        ensure!(routes.is_none(), "{routes:?}");
        Ok(())
    })?;
    let agent = &cluster.node("n1")?.agent;
    eventually_ok(SOON, "status says why", || {
        let text = agent.ask(&["status"])?;
        ensure!(text.contains("to be the next hop"), "{text}");
        Ok(())
    })?;
    change(&link, old, addr::add)?;
    wait_next_hop(&router, &tor, prefix(pods)?, old)?;
    let peers = cluster.node("n1")?.agent.peers()?;
    ensure!(
        peers.iter().all(|peer| peer.up && peer.established == 1),
        "a session was reset: {peers:?}"
    );
    Ok(())
}

/// The neighbour's link has no IPv6 address: the session carries IPv4 alone, and `status` says why.
fn left_out(lab: &Lab) -> Result<()> {
    let (mut cluster, router, tor) = scene(lab, "[10.90.2.0/24]", true)?;
    let link = cluster.link("side/n1")?.clone();
    wait_next_hop(&router, &tor, prefix(PODS[0])?, link.ipv4()?)?;
    ensure!(router.route(prefix(PODS[1])?)?.is_none(), "an IPv6 route");
    let agent = &cluster.node("n1")?.agent;
    let said = "the interface of the session has no ipv6 address";
    for words in [&["status"][..], &["peers", "10.90.2.2"]] {
        let text = agent.ask(words)?;
        ensure!(text.contains(said), "{text}");
    }
    let peers = agent.json(&["peers"])?;
    let unused = peers.pointer("/0/unusedFamilies/0/family");
    ensure!(unused == Some(&json!("ipv6")), "{peers}");
    Ok(())
}

/// The router got the route with that next hop, believes it, and forwards by it.
fn wait_next_hop(router: &Router, netns: &Netns, to: IpNet, gateway: IpAddr) -> Result<()> {
    let what = format!("the router forwards to {to} by {gateway}");
    eventually_ok(SOON, &what, || {
        let learned = router.route(to)?.context("no route in BIRD")?;
        ensure!(learned.next_hop == Some(gateway), "{learned:?}");
        let filter = Filter {
            protocol: Some(BIRD),
            ..Filter::default()
        };
        let v6 = to.addr().is_ipv6();
        let routes = route::list(&mut netns.rtnetlink()?, v6, &filter)?;
        let wanted = Prefix::new(to.network(), to.prefix_len());
        let installed = routes.iter().find(|route| route.prefix == wanted);
        let installed = installed.context("not in the router's kernel")?;
        let text = format!("{installed:?}");
        ensure!(text.contains(&gateway.to_string()), "{text}");
        Ok(())
    })
}

/// Adds or deletes an address of the node's end of a link.
fn change(
    link: &Link,
    address: IpAddr,
    how: fn(&mut selvage_netlink::Batch, &addr::Address),
) -> Result<()> {
    let len = if address.is_ipv4() { 24 } else { 64 };
    let address = addr::Address::new(link.index(), Prefix::new(address, len));
    link.member()
        .rtnetlink()?
        .apply(|batch| how(batch, &address))?;
    Ok(())
}
