//! Filters that change while a session is up: what was let in once comes again, by ROUTE-REFRESH where the other side
//! has not kept it; and no route is out of a kernel for a moment while either side restarts.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use selvage_lab::daemon::{Kind, Router};
use selvage_lab::process::output_of;
use selvage_lab::{Cluster, Lab, Netns, cluster, eventually_ok};
use selvage_netlink::monitor::Group;
use selvage_netlink::{Monitor, Prefix, RouteEvent};
use serde_json::{Value, json};

use crate::harness::Case;
use crate::scene::{
    self, SOON, WITH_BIRD, WITH_FRR, WITH_GOBGP, other, prefix, wait_kernel_route,
    wait_no_kernel_route,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("interop::bird_asks_for_a_refresh", WITH_BIRD, |lab| {
            asked(lab, "bird")
        }),
        Case::new("interop::frr_asks_for_a_refresh", WITH_FRR, |lab| {
            asked(lab, "frr")
        }),
        Case::new(
            "interop::a_filter_changes_without_a_reset_of_bird",
            WITH_BIRD,
            |lab| filtered(lab, "bird"),
        ),
        Case::new(
            "interop::a_filter_changes_without_a_reset_of_frr",
            WITH_FRR,
            |lab| filtered(lab, "frr"),
        ),
        Case::new(
            "interop::a_filter_changes_without_a_reset_of_gobgp",
            WITH_GOBGP,
            |lab| filtered(lab, "gobgp"),
        ),
        Case::new(
            "interop::bird_loses_no_route_for_a_moment",
            WITH_BIRD,
            |lab| gapless(lab, "bird"),
        ),
        Case::new(
            "interop::frr_loses_no_route_for_a_moment",
            WITH_FRR,
            |lab| gapless(lab, "frr"),
        ),
        Case::new(
            "interop::gobgp_costs_no_route_for_a_moment",
            WITH_GOBGP,
            |lab| gapless(lab, "gobgp"),
        ),
    ]
}

const PODS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];
const OUTSIDE: [&str; 2] = ["10.99.0.0/16", "fd99::/48"];

/// A router that runs `daemon` in the AS of the nodes, with a password, and a node.
fn pair(lab: &Lab, daemon: &str) -> Result<Cluster> {
    let text = format!(
        "
networks: [{{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}}]
routers: [{{name: tor, daemon: {daemon}, asn: 64512, networks: [rack], password: selvage}}]
nodes:
  - {{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}
"
    );
    let mut cluster = scene::cluster(lab, &text)?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "tor", "namespace": "selvage-system"},
        "stringData": {"password": "selvage"},
    });
    cluster.objects().write("secret", &secret)?;
    write_peer(&cluster, json!({}))?;
    cluster.start(2 * SOON)?;
    for pods in PODS {
        other(&mut cluster, "tor")?.wait_route(prefix(pods)?, SOON)?;
    }
    for to in OUTSIDE {
        other(&mut cluster, "tor")?.announce(prefix(to)?)?;
        wait_kernel_route(cluster.netns("n1")?, prefix(to)?)?;
    }
    Ok(cluster)
}

/// The neighbour, with these fields besides.
fn write_peer(cluster: &Cluster, more: Value) -> Result<()> {
    let mut spec = json!({
        "address": "192.0.2.1",
        "asn": "internal",
        "passwordSecretRef": {"name": "tor", "key": "password"},
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    cluster
        .objects()
        .write("tor", &cluster::object("BGPPeer", "tor", spec))
}

/// How often the session was established.
fn established(cluster: &mut Cluster) -> Result<u64> {
    let peers = cluster.node("n1")?.agent.peers()?;
    let peer = peers.first().context("no neighbour")?;
    ensure!(peer.up, "{peer:?}");
    Ok(peer.established)
}

/// Whether the daemon takes what it is told, by its own configuration.
fn let_in(router: &Router, yes: bool) -> Result<()> {
    let run = |program: &str, words: &[&str]| {
        let mut command = Command::new(router.kind().program(program)?);
        command.current_dir(router.directory()).args(words);
        output_of(router.netns(), command)
    };
    match router.kind() {
        Kind::Bird => {
            let file = router.directory().join("bird.conf");
            let text = fs::read_to_string(&file)?;
            let (from, to) = match yes {
                true => ("import where false;", "import all;"),
                false => ("import all;", "import where false;"),
            };
            ensure!(text.contains(from), "{text}");
            fs::write(&file, text.replace(from, to))?;
            let answer = run("birdc", &["-s", "bird.ctl", "configure"])?;
            ensure!(answer.contains("Reconfigur"), "{answer}");
        }
        Kind::Frr => {
            let directory = router.directory().to_str().context("path")?;
            let mut words = vec!["--vty_socket", directory];
            let no = if yes { "no " } else { "" };
            let filters: Vec<String> = ["ipv4", "ipv6"]
                .iter()
                .flat_map(|family| {
                    [
                        format!("address-family {family} unicast"),
                        format!("{no}neighbor 192.0.2.2 route-map nothing in"),
                        "exit-address-family".to_owned(),
                    ]
                })
                .collect();
            words.extend([
                "-c",
                "configure terminal",
                "-c",
                "route-map nothing deny 10",
            ]);
            words.extend(["-c", "router bgp 64512"]);
            words.extend(filters.iter().flat_map(|line| ["-c", line]));
            run("vtysh", &words)?;
            // What it did not keep it has to ask for.
            let clear = [
                "--vty_socket",
                directory,
                "-c",
                "clear bgp ipv4 unicast * soft in",
            ];
            run("vtysh", &clear)?;
            let clear = [
                "--vty_socket",
                directory,
                "-c",
                "clear bgp ipv6 unicast * soft in",
            ];
            run("vtysh", &clear)?;
        }
        Kind::Gobgp => bail!("keeps what it refuses and never asks"),
    }
    Ok(())
}

fn asked(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon)?;
    let before = established(&mut cluster)?;
    for _ in 0..2 {
        let router = other(&mut cluster, "tor")?;
        let_in(router, false)?;
        for pods in PODS {
            router.wait_no_route(prefix(pods)?, SOON)?;
        }
        let_in(router, true)?;
        for pods in PODS {
            router.wait_route(prefix(pods)?, SOON)?;
        }
    }
    ensure!(
        established(&mut cluster)? == before,
        "the session was reset"
    );
    Ok(())
}

/// Our own filters, both directions.
fn filtered(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon)?;
    let node = cluster.netns("n1")?.clone();
    let before = established(&mut cluster)?;
    write_peer(&cluster, json!({"import": ["reject-all"]}))?;
    for to in OUTSIDE {
        wait_no_kernel_route(&node, prefix(to)?)?;
    }
    write_peer(&cluster, json!({"export": ["reject-all"]}))?;
    for to in OUTSIDE {
        wait_kernel_route(&node, prefix(to)?)?;
    }
    for pods in PODS {
        other(&mut cluster, "tor")?.wait_no_route(prefix(pods)?, SOON)?;
    }
    write_peer(&cluster, json!({}))?;
    for pods in PODS {
        other(&mut cluster, "tor")?.wait_route(prefix(pods)?, SOON)?;
    }
    ensure!(
        established(&mut cluster)? == before,
        "the session was reset"
    );
    Ok(())
}

/// Tells which routes were away, were it for a moment.
struct Watch {
    monitor: Monitor,
    prefixes: Vec<IpNet>,
}

impl Watch {
    fn start(netns: &Netns, prefixes: &[&str]) -> Result<Watch> {
        Ok(Watch {
            monitor: netns.run(|| Ok(Monitor::open(&[Group::Ipv4Route, Group::Ipv6Route])?))?,
            prefixes: prefixes
                .iter()
                .map(|text| prefix(text))
                .collect::<Result<_>>()?,
        })
    }

    fn nothing_went(&mut self) -> Result<()> {
        let wanted: Vec<Prefix> = self
            .prefixes
            .iter()
            .map(|prefix| Prefix::new(prefix.network(), prefix.prefix_len()))
            .collect();
        let mut gone = Vec::new();
        let mut overrun = false;
        while self.monitor.receive(64, |event, _| match event {
            RouteEvent::RouteGone(route) if wanted.contains(&route.prefix) => gone.push(route),
            RouteEvent::Overrun => overrun = true,
            _ => {}
        })? == 64
        {}
        ensure!(!overrun, "notifications were lost");
        ensure!(gone.is_empty(), "gone for a moment: {gone:?}");
        Ok(())
    }
}

/// Killed, stopped, started again, first our agent, then the other daemon: kernels keep what they have.
fn gapless(lab: &Lab, daemon: &str) -> Result<()> {
    let mut cluster = pair(lab, daemon)?;
    let (node, tor) = (cluster.netns("n1")?.clone(), cluster.netns("tor")?.clone());
    let own: Vec<&str> = [&PODS[..], &OUTSIDE].concat();
    let mut ours = Watch::start(&node, &own)?;
    // GoBGP has no routes in the kernel: nothing can go there.
    let mut theirs = Watch::start(&tor, &PODS)?;
    for stopped in [false, true, false] {
        let agent = &mut cluster.node("n1")?.agent;
        match stopped {
            true => drop(agent.process().stop(SOON)?),
            false => agent.process().kill()?,
        }
        eventually_ok(SOON, "the router sees it go", || {
            let sessions = other(&mut cluster, "tor")?.sessions()?;
            ensure!(
                sessions.iter().all(|session| !session.established),
                "{sessions:?}"
            );
            Ok(())
        })?;
        let agent = &mut cluster.node("n1")?.agent;
        agent.restart()?;
        agent.wait_established("192.0.2.1".parse()?, SOON)?;
        agent.ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
        // Killed before the router has heard all of it, it would restart twice, and RFC 4724 has its routes go.
        eventually_ok(SOON, "the router has heard all of it again", || {
            let sessions = other(&mut cluster, "tor")?.sessions()?;
            ensure!(
                !sessions.iter().any(|session| session.stale),
                "{sessions:?}"
            );
            // Of FRR and GoBGP it is seen by the routes.
            for pods in PODS {
                let route = other(&mut cluster, "tor")?.route(prefix(pods)?)?;
                ensure!(
                    route.as_ref().is_some_and(|r| !r.stale),
                    "{pods}: {route:?}"
                );
            }
            Ok(())
        })?;
        ours.nothing_went()
            .with_context(|| format!("on the node, stopped: {stopped}"))?;
        theirs
            .nothing_went()
            .with_context(|| format!("on the router, stopped: {stopped}"))?;
    }
    // The other daemon dies: what it told the node stays in the node's kernel until it is told again.
    other(&mut cluster, "tor")?.kill()?;
    eventually_ok(SOON, "the agent sees it go", || {
        let peers = cluster.node("n1")?.agent.peers()?;
        ensure!(peers.iter().all(|peer| !peer.up), "{peers:?}");
        Ok(())
    })?;
    ours.nothing_went()?;
    other(&mut cluster, "tor")?.restart()?;
    let agent = &cluster.node("n1")?.agent;
    agent.wait_established("192.0.2.1".parse()?, SOON)?;
    agent.ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
    for to in OUTSIDE {
        wait_kernel_route(&node, prefix(to)?)?;
    }
    // FRR does not say that it has kept its forwarding state, GoBGP has none and is told its routes after its start.
    match other(&mut cluster, "tor")?.kind() {
        Kind::Bird => ours.nothing_went().context("when the router came back"),
        Kind::Frr | Kind::Gobgp => Ok(()),
    }
}
