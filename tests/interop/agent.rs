//! Our agent with BIRD, FRR and GoBGP, as top of rack (eBGP) and as a neighbour of its own AS (iBGP): sessions with and
//! without a password, routes of both families both ways and into the kernel, withdrawal.

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Cluster, Lab, eventually_ok};
use serde_json::json;

use crate::harness::Case;
use crate::scene::{
    self, SOON, WITH_BIRD, WITH_FRR, WITH_GOBGP, kernel_route, other, prefix, wait_kernel_route,
    wait_no_kernel_route,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("interop::bird_as_top_of_rack", WITH_BIRD, |lab| {
            top_of_rack(lab, "bird")
        }),
        Case::new("interop::frr_as_top_of_rack", WITH_FRR, |lab| {
            top_of_rack(lab, "frr")
        }),
        Case::new("interop::gobgp_as_top_of_rack", WITH_GOBGP, |lab| {
            top_of_rack(lab, "gobgp")
        }),
        Case::new(
            "interop::bird_keeps_routes_of_an_agent_that_restarts",
            WITH_BIRD,
            |lab| keeps(lab, "bird"),
        ),
        Case::new(
            "interop::frr_keeps_routes_of_an_agent_that_restarts",
            WITH_FRR,
            |lab| keeps(lab, "frr"),
        ),
        Case::new(
            "interop::gobgp_keeps_routes_of_an_agent_that_restarts",
            WITH_GOBGP,
            |lab| keeps(lab, "gobgp"),
        ),
        Case::new(
            "interop::a_bird_that_is_killed_is_helped",
            WITH_BIRD,
            |lab| helps(lab, "bird"),
        ),
        Case::new(
            "interop::an_frr_that_is_killed_is_helped",
            WITH_FRR,
            |lab| helps(lab, "frr"),
        ),
        Case::new(
            "interop::a_gobgp_that_is_killed_is_helped",
            WITH_GOBGP,
            |lab| helps(lab, "gobgp"),
        ),
        Case::new("interop::bird_as_internal_neighbour", WITH_BIRD, |lab| {
            internal(lab, "bird")
        }),
        Case::new("interop::frr_as_internal_neighbour", WITH_FRR, |lab| {
            internal(lab, "frr")
        }),
        Case::new("interop::gobgp_as_internal_neighbour", WITH_GOBGP, |lab| {
            internal(lab, "gobgp")
        }),
    ]
}

/// A router that runs `daemon` in `asn`, and a node with a `BGPPeer` for it.
fn pair(lab: &Lab, daemon: &str, asn: u32, password: Option<&str>) -> Result<Cluster> {
    let key = password
        .map(|password| format!(", password: {password}"))
        .unwrap_or_default();
    let text = format!(
        "
networks: [{{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}}]
routers: [{{name: tor, daemon: {daemon}, asn: {asn}, networks: [rack]{key}}}]
nodes:
  - {{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}
"
    );
    let mut cluster = scene::cluster(lab, &text)?;
    let mut spec = json!({"address": "192.0.2.1", "asn": asn});
    if let Some(password) = password {
        spec["passwordSecretRef"] = json!({"name": "tor", "key": "password"});
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "tor", "namespace": "selvage-system"},
            "stringData": {"password": password},
        });
        cluster.objects().write("secret", &secret)?;
    }
    cluster
        .objects()
        .write("tor", &selvage_lab::cluster::object("BGPPeer", "tor", spec))?;
    cluster.start(2 * SOON)?;
    Ok(cluster)
}

fn top_of_rack(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon, 65001, Some("selvage"))?;
    exchange(&mut cluster, &[64512])
}

fn internal(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon, 64512, None)?;
    exchange(&mut cluster, &[])
}

/// Both ways, both families, in the kernel, and back to nothing; then the node's own prefixes go.
fn exchange(cluster: &mut Cluster, as_path: &[u32]) -> Result<()> {
    let node = cluster.netns("n1")?.clone();
    let tor_address = "192.0.2.1".parse()?;
    let node_addresses = cluster.addresses("n1");
    cluster
        .node("n1")?
        .agent
        .wait_established(tor_address, SOON)?;
    let router = other(cluster, "tor")?;
    router.wait_established("192.0.2.2".parse()?, SOON)?;

    for pods in ["10.244.1.0/24", "fd00:10:244:1::/64"] {
        let route = router.wait_route(prefix(pods)?, SOON)?;
        let wanted = node_addresses
            .iter()
            .find(|a| a.is_ipv4() == route.prefix.addr().is_ipv4());
        ensure!(
            route.as_path == as_path && route.next_hop.as_ref() == wanted,
            "{route:?}, wanted {wanted:?}"
        );
    }

    let outside = [prefix("10.99.0.0/16")?, prefix("fd99::/48")?];
    for to in outside {
        router.announce(to)?;
        wait_kernel_route(&node, to)?;
    }
    for to in outside {
        router.withdraw(to)?;
        wait_no_kernel_route(&node, to)?;
    }

    // Without its podCIDRs, the node announces nothing any more; the session stays.
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1", "uid": "node-n1"},
        "spec": {},
        "status": {"addresses": node_addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect::<Vec<_>>()},
    });
    cluster.objects().write("node-n1", &object)?;
    let router = other(cluster, "tor")?;
    for pods in ["10.244.1.0/24", "fd00:10:244:1::/64"] {
        router.wait_no_route(prefix(pods)?, SOON)?;
    }
    let sessions = router.sessions()?;
    let session = sessions.first().context("no session")?;
    ensure!(
        session.established,
        "withdrawing ended the session: {session:?}"
    );
    Ok(())
}

const PODS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// How long a daemon may take to be back after it has lost a session, with its own timers: GoBGP waits half a minute.
fn patience(daemon: &str) -> std::time::Duration {
    match daemon {
        "gobgp" => 3 * SOON,
        _ => SOON,
    }
}

/// RFC 4724 with the other daemon as the helper: killed and stopped, its routes stay there until it is back.
fn keeps(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon, 65001, None)?;
    let node = "192.0.2.2".parse()?;
    for pods in PODS {
        other(&mut cluster, "tor")?.wait_route(prefix(pods)?, SOON)?;
    }
    for killed in [true, false] {
        let agent = &mut cluster.node("n1")?.agent;
        if killed {
            agent.process().kill()?;
        } else {
            agent.process().stop(SOON)?;
        }
        let router = other(&mut cluster, "tor")?;
        eventually_ok(SOON, "the router sees it go", || {
            match router.sessions()?.first() {
                Some(session) if session.established => bail!("{session:?}"),
                _ => Ok(()),
            }
        })?;
        for pods in PODS {
            router
                .route(prefix(pods)?)?
                .with_context(|| format!("{pods} went with the agent, killed: {killed}"))?;
        }
        cluster.node("n1")?.agent.restart()?;
        let router = other(&mut cluster, "tor")?;
        router.wait_established(node, patience(daemon))?;
        eventually_ok(SOON, "fresh routes take the place of stale ones", || {
            let sessions = router.sessions()?;
            ensure!(
                !sessions.iter().any(|session| session.stale),
                "{sessions:?}"
            );
            for pods in PODS {
                let route = router
                    .route(prefix(pods)?)?
                    .with_context(|| format!("{pods} is gone"))?;
                ensure!(!route.stale, "{route:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// RFC 4724 with our agent as the helper: the kernel keeps the routes of a daemon that was killed until it is back.
fn helps(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon, 65001, None)?;
    let kernel = cluster.netns("n1")?.clone();
    let outside = [prefix("10.99.0.0/16")?, prefix("fd99::/48")?];
    let router = other(&mut cluster, "tor")?;
    for to in outside {
        router.announce(to)?;
        wait_kernel_route(&kernel, to)?;
    }
    router.kill()?;
    let tor = "192.0.2.1".parse()?;
    eventually_ok(SOON, "the agent sees it go", || {
        let peers = cluster.node("n1")?.agent.peers()?;
        ensure!(!peers.iter().any(|peer| peer.up), "{peers:?}");
        Ok(())
    })?;
    for to in outside {
        kernel_route(&kernel, to)?.with_context(|| format!("{to} went with the daemon"))?;
    }
    other(&mut cluster, "tor")?.restart()?;
    cluster
        .node("n1")?
        .agent
        .wait_established(tor, patience(daemon))?;
    cluster
        .node("n1")?
        .agent
        .ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
    for to in outside {
        wait_kernel_route(&kernel, to)?;
    }
    Ok(())
}
