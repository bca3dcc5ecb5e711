//! Long-lived graceful restart (RFC 9494) with others at their own timers: a dead link does not make them stay away, and routes are
//! kept as a last resort on both sides.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::cluster::object;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::{Cluster, Cut, Lab, eventually_ok};
use serde_json::json;

use crate::harness::Case;
use crate::scene::{
    self, SOON, WITH_BIRD, WITH_FRR, WITH_GOBGP, prefix, wait_kernel_route, wait_no_kernel_route,
};

const PODS: &str = "10.244.1.0/24";
const OUTSIDE: &str = "10.99.0.0/16";

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
            |lab| last_resort(lab, Kind::Bird),
        ),
        Case::new(
            "interop::routes_of_a_frr_that_stays_away_are_a_last_resort",
            WITH_FRR,
            |lab| last_resort(lab, Kind::Frr),
        ),
        Case::new(
            "interop::routes_of_a_gobgp_that_stays_away_are_a_last_resort",
            WITH_GOBGP,
            |lab| last_resort(lab, Kind::Gobgp),
        ),
        Case::new(
            "interop::routes_of_an_agent_that_stays_away_are_a_last_resort_of_bird",
            WITH_BIRD,
            |lab| helper(lab, Kind::Bird),
        ),
        Case::new(
            "interop::routes_of_an_agent_that_stays_away_are_a_last_resort_of_frr",
            WITH_FRR,
            |lab| helper(lab, Kind::Frr),
        ),
        Case::new(
            "interop::routes_of_an_agent_that_stays_away_are_a_last_resort_of_gobgp",
            WITH_GOBGP,
            |lab| helper(lab, Kind::Gobgp),
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
    let outside = prefix(OUTSIDE)?;
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

/// A node, and a daemon of another autonomous system. `times`: in how many seconds it restarts, and for how long its routes are a
/// last resort after that, where it is told so.
fn pair(lab: &Lab, kind: Kind, times: (u16, Option<u32>)) -> Result<(Cluster, Router)> {
    let cluster = scene::cluster(
        lab,
        "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}]
",
    )?;
    let node_address = cluster.link("rack/n1")?.ipv4()?;
    let netns = lab.netns("tor")?;
    let tor = cluster.link("rack/n1")?.network().join(&netns)?.ipv4()?;
    let mut speaker = Speaker::new(65001, [192, 0, 2, 99].into());
    speaker.addresses = vec![tor];
    (speaker.restart_time, speaker.long_lived) = times;
    let speaker = speaker
        .network(prefix(OUTSIDE)?)
        .neighbour(Neighbour::new(node_address, 64512));
    let router = Router::start(kind, &netns, speaker)?;
    Ok((cluster, router))
}

fn address(router: &Router) -> Result<IpAddr> {
    let addresses = &router.speaker().addresses;
    addresses.first().copied().context("an address")
}

fn write_peer(cluster: &Cluster, router: &Router, long_lived: bool) -> Result<()> {
    let spec = json!({"address": address(router)?, "asn": 65001,
        "gracefulRestart": {"longLived": {"enabled": long_lived}}});
    cluster
        .objects()
        .write("tor", &object("BGPPeer", "tor", spec))
}

/// How long a daemon may take to be back after it has lost a session, with its own timers: GoBGP waits half a minute.
fn patience(kind: Kind) -> Duration {
    match kind {
        Kind::Gobgp => 3 * SOON,
        Kind::Bird | Kind::Frr => SOON,
    }
}

/// A daemon that is killed and does not come back in its restart time.
fn last_resort(lab: &Lab, kind: Kind) -> Result<()> {
    let (mut cluster, mut router) = pair(lab, kind, (2, Some(3600)))?;
    let node = cluster.netns("n1")?.clone();
    let (tor, outside) = (address(&router)?, prefix(OUTSIDE)?);
    write_peer(&cluster, &router, true)?;
    cluster.start_node("n1")?;
    wait_kernel_route(&node, outside)?;
    router.kill()?;
    eventually_ok(SOON, "its routes are a last resort", || {
        let agent = &cluster.node("n1")?.agent;
        let peers = agent.json(&["peers"])?;
        let long_lived = peers.pointer("/0/staleFamilies/0/longLived");
        ensure!(long_lived == Some(&json!(true)), "{peers}");
        let routes = agent.json(&["routes", OUTSIDE])?;
        ensure!(routes.to_string().contains("65535:6"), "{routes}");
        Ok(())
    })?;
    scene::kernel_route(&node, outside)?.context("the last resort is not in the kernel")?;
    router.restart()?;
    cluster
        .node("n1")?
        .agent
        .wait_established(tor, patience(kind))?;
    eventually_ok(SOON, "it is a route like any other", || {
        let routes = cluster.node("n1")?.agent.json(&["routes", OUTSIDE])?;
        match routes.to_string().contains("65535:6") {
            true => bail!("{routes}"),
            false => Ok(()),
        }
    })?;
    wait_kernel_route(&node, outside)?;
    // Switched off for this neighbour, from its next session on: gone after the restart time.
    write_peer(&cluster, &router, false)?;
    cluster.node("n1")?.agent.wait_synced()?;
    router.kill()?;
    router.restart()?;
    cluster
        .node("n1")?
        .agent
        .wait_established(tor, patience(kind))?;
    wait_kernel_route(&node, outside)?;
    router.kill()?;
    wait_no_kernel_route(&node, outside)
}

/// An agent that is killed and does not come back in its restart time: the other side keeps its routes for the time that the agent
/// has announced. BIRD does so without a word in its configuration.
fn helper(lab: &Lab, kind: Kind) -> Result<()> {
    let told = (kind != Kind::Bird).then_some(3600);
    let (mut cluster, router) = pair(lab, kind, (120, told))?;
    let (node, pods) = (cluster.link("rack/n1")?.ipv4()?, prefix(PODS)?);
    let configure = |cluster: &Cluster, time: &str| {
        let restart = json!({"restartTime": "2s", "longLived": {"staleTime": time}});
        let settings = json!({"gracefulRestart": restart});
        let settings = object("BGPConfiguration", "default", settings);
        cluster.objects().write("settings", &settings)
    };
    let is_last_resort = || -> Result<bool> {
        let kept = router.last_resorts()?;
        Ok(kept.iter().any(|route| route.prefix == pods))
    };
    configure(&cluster, "10m")?;
    write_peer(&cluster, &router, true)?;
    cluster.start_node("n1")?;
    router.wait_route(pods, SOON)?;
    ensure!(!is_last_resort()?, "a fresh route is no last resort");
    cluster.node("n1")?.agent.process().kill()?;
    eventually_ok(SOON, "our route is a last resort", || {
        let routes = router.routes()?;
        ensure!(is_last_resort()?, "{routes:?}");
        Ok(())
    })?;
    let best = router.route(pods)?;
    ensure!(best.is_some(), "nothing better is there");
    configure(&cluster, "3s")?;
    cluster.node("n1")?.agent.restart()?;
    router.wait_established(node, patience(kind))?;
    // Until our End-of-RIB, BIRD goes on with the stale time of the session before.
    cluster.node("n1")?.agent.wait_ready(SOON)?;
    eventually_ok(SOON, "our route is fresh again", || {
        let best = router.route(pods)?.context("it is gone")?;
        ensure!(!is_last_resort()?, "{best:?}");
        let sessions = router.sessions()?;
        ensure!(!sessions.iter().any(|s| s.stale), "{sessions:?}");
        Ok(())
    })?;
    cluster.node("n1")?.agent.process().kill()?;
    router.wait_no_route(pods, SOON)
}
