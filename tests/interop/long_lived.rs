//! Long-lived graceful restart (RFC 9494) with BIRD, at its own timers: a dead link does not make it stay away, and its
//! routes are kept as a last resort.

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::cluster::object;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::{Cut, Lab, eventually_ok};
use serde_json::json;

use crate::harness::{Case, Need};
use crate::scene::{self, SOON, prefix, wait_kernel_route, wait_no_kernel_route};

const WITH_BIRD: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::Daemon(Kind::Bird),
];
const PODS: &str = "10.244.1.0/24";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "interop::a_bird_comes_back_at_once_after_a_dead_link",
            WITH_BIRD,
            dead_link,
        ),
        Case::new(
            "interop::routes_of_a_bird_that_stays_away_are_a_last_resort",
            WITH_BIRD,
            last_resort,
        ),
    ]
}

/// A switch swallows everything for longer than the hold time of both. A BIRD 2 that has lost a session so closes our
/// connections for a minute (`error wait time`), unless both ends understand long-lived graceful restart.
fn dead_link(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(
        lab,
        "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
routers: [{name: tor, daemon: bird, asn: 65001, networks: [rack]}]
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}]
",
    )?;
    let spec = json!({"address": "192.0.2.1", "asn": 65001});
    cluster
        .objects()
        .write("tor", &object("BGPPeer", "tor", spec))?;
    cluster.start(2 * SOON)?;
    let tor = "192.0.2.1".parse()?;
    let node = cluster.netns("n1")?.clone();
    let outside = prefix("10.99.0.0/16")?;
    scene::other(&mut cluster, "tor")?.announce(outside)?;
    wait_kernel_route(&node, outside)?;
    scene::other(&mut cluster, "tor")?.wait_route(prefix(PODS)?, SOON)?;
    let link = cluster.link("rack/n1")?.clone();
    link.cut(Cut::Drop)?;
    eventually_ok(2 * SOON, "both ends have noticed", || {
        let peers = cluster.node("n1")?.agent.peers()?;
        ensure!(!peers.iter().any(|peer| peer.up), "{peers:?}");
        let sessions = scene::other(&mut cluster, "tor")?.sessions()?;
        ensure!(!sessions.iter().any(|s| s.established), "{sessions:?}");
        Ok(())
    })?;
    let route = scene::other(&mut cluster, "tor")?.route(prefix(PODS)?)?;
    ensure!(route.is_some(), "BIRD has dropped our route");
    link.repair()?;
    cluster.node("n1")?.agent.wait_established(tor, SOON)?;
    eventually_ok(SOON, "routes are fresh again", || {
        let peers = cluster.node("n1")?.agent.json(&["peers"])?;
        ensure!(peers.pointer("/0/stale") == Some(&json!(false)), "{peers}");
        Ok(())
    })?;
    wait_kernel_route(&node, outside)?;
    Ok(())
}

/// A BIRD that is killed and does not come back in its restart time.
fn last_resort(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(
        lab,
        "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}]
",
    )?;
    let (node_address, node) = (
        cluster.link("rack/n1")?.ipv4()?,
        cluster.netns("n1")?.clone(),
    );
    let netns = lab.netns("tor")?;
    let tor = cluster.link("rack/n1")?.network().join(&netns)?.ipv4()?;
    let mut speaker = Speaker::new(65001, [192, 0, 2, 99].into());
    speaker.addresses = vec![tor];
    speaker.restart_time = 2;
    speaker.long_lived = Some(3600);
    let outside = prefix("10.99.0.0/16")?;
    let speaker = speaker
        .network(outside)
        .neighbour(Neighbour::new(node_address, 64512));
    let mut router = Router::start(Kind::Bird, &netns, speaker)?;
    let spec = |long_lived: bool| json!({"address": tor, "asn": 65001, "gracefulRestart": {"longLived": {"enabled": long_lived}}});
    cluster
        .objects()
        .write("tor", &object("BGPPeer", "tor", spec(true)))?;
    cluster.start_node("n1")?;
    wait_kernel_route(&node, outside)?;
    router.kill()?;
    eventually_ok(SOON, "its routes are a last resort", || {
        let agent = &cluster.node("n1")?.agent;
        let peers = agent.json(&["peers"])?;
        let long_lived = peers.pointer("/0/staleFamilies/0/longLived");
        ensure!(long_lived == Some(&json!(true)), "{peers}");
        let routes = agent.json(&["routes", "10.99.0.0/16"])?;
        ensure!(routes.to_string().contains("65535:6"), "{routes}");
        Ok(())
    })?;
    scene::kernel_route(&node, outside)?.context("the last resort is not in the kernel")?;
    router.restart()?;
    cluster.node("n1")?.agent.wait_established(tor, SOON)?;
    eventually_ok(SOON, "it is a route like any other", || {
        let routes = cluster
            .node("n1")?
            .agent
            .json(&["routes", "10.99.0.0/16"])?;
        match routes.to_string().contains("65535:6") {
            true => bail!("{routes}"),
            false => Ok(()),
        }
    })?;
    wait_kernel_route(&node, outside)?;
    // Switched off for this neighbour, from its next session on: gone after the restart time.
    cluster
        .objects()
        .write("tor", &object("BGPPeer", "tor", spec(false)))?;
    cluster.node("n1")?.agent.wait_synced()?;
    router.kill()?;
    router.restart()?;
    cluster.node("n1")?.agent.wait_established(tor, SOON)?;
    wait_kernel_route(&node, outside)?;
    router.kill()?;
    wait_no_kernel_route(&node, outside)
}
