//! The agent ends in every way, and cables are pulled, while packets flow.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::agent::Peer;
use selvage_lab::{Agent, Cut, Lab, eventually, eventually_ok};

use crate::harness::Case;
use crate::scene::{
    self, OWN, SOON, flows, is_blocked, kernel_route, nothing_lost, prefix, two_nodes,
    wait_blocked, wait_kernel_route, wait_no_kernel_route, wait_reaches,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::kill_9_of_an_agent_loses_no_packet", OWN, |lab| {
            ends(lab, End::Killed)
        }),
        Case::new("faults::sigterm_of_an_agent_loses_no_packet", OWN, |lab| {
            ends(lab, End::Terminated)
        }),
        Case::new(
            "faults::policy_holds_while_the_agent_is_dead",
            OWN,
            closed_without_agent,
        ),
        Case::new("faults::a_second_agent_refuses", OWN, second),
        Case::new("faults::a_link_flap_keeps_the_session", OWN, flap),
        Case::new(
            "faults::a_link_flap_without_the_agent_is_made_good",
            OWN,
            flap_without_agent,
        ),
        Case::new(
            "faults::a_silent_link_withdraws_and_comes_back",
            OWN,
            silent,
        ),
    ]
}

const V4: &str = "10.244.1.0/24";
const V6: &str = "fd00:10:244:1::/64";

#[derive(Clone, Copy, PartialEq)]
enum End {
    Killed,
    Terminated,
}

fn peer(agent: &Agent, address: IpAddr) -> Result<Peer> {
    let peers = agent.peers()?;
    peers
        .iter()
        .find(|peer| peer.address == address)
        .cloned()
        .with_context(|| format!("{address} not in {peers:?}"))
}

/// The agent of n1, then that of n2, ends and starts again.
fn ends(lab: &Lab, how: End) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let flows = flows(&cluster)?;
    for (node, other) in [("n1", "n2"), ("n2", "n1")] {
        let address = *cluster.addresses(node).first().context("an address")?;
        let before = peer(&cluster.node(other)?.agent, address)?;
        let agent = &mut cluster.node(node)?.agent;
        match how {
            End::Killed => agent.process().kill()?,
            End::Terminated => {
                let status = agent.process().stop(SOON)?;
                ensure!(status.success(), "SIGTERM: {status}");
            }
        }
        eventually_ok(SOON, "the other node sees it go", || {
            match peer(&cluster.node(other)?.agent, address)? {
                peer if peer.up => bail!("{peer:?}"),
                _ => Ok(()),
            }
        })?;
        // Helper and the dead node's own kernel both keep forwarding.
        for pods in [V4, V6] {
            let route = kernel_route(cluster.netns("n2")?, prefix(pods)?)?;
            ensure!(
                route.is_some(),
                "n2 has no route to {pods} while the agent of {node} is away"
            );
        }
        cluster.node(node)?.agent.restart()?;
        eventually_ok(SOON, "the session is back", || {
            match peer(&cluster.node(other)?.agent, address)? {
                peer if peer.up && peer.established > before.established => Ok(()),
                peer => bail!("{peer:?}"),
            }
        })?;
        cluster
            .node(node)?
            .agent
            .ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
    }
    nothing_lost(flows)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

pub fn closed_without_agent(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.node("n1")?.agent.process().kill()?;
    is_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    wait_reaches(&cluster, "n1", "shop/web", Some(80))?;
    cluster.node("n1")?.agent.restart()?;
    cluster.node("n1")?.agent.wait_synced()?;
    is_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    // A change made while it was away counts.
    cluster.node("n1")?.agent.process().kill()?;
    cluster.objects().remove("deny")?;
    cluster.node("n1")?.agent.restart()?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

fn second(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let objects = cluster.objects().directory().to_owned();
    let netns = cluster.netns("n1")?.clone();
    let holder = cluster.node("n1")?.agent.process().pid();
    let mut second = Agent::start(&netns, "n1-again", &objects, &[])?;
    let status = second.process().wait_end(SOON)?;
    let output = second.process().output();
    ensure!(status.code() == Some(1), "ended with {status}: {output}");
    ensure!(
        output.contains(&holder.to_string()),
        "does not name {holder}: {output}"
    );
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

/// Shorter than the hold time: the kernel loses the routes, BGP nothing.
fn flap(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(lab, scene::TWO_NODES)?;
    scene::without_hold_time(&cluster)?;
    cluster.start(2 * SOON)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let (netns, n1) = (
        cluster.netns("n2")?.clone(),
        *cluster.addresses("n1").first().context("an address")?,
    );
    let before = peer(&cluster.node("n2")?.agent, n1)?;
    let link = cluster.link("rack/n2")?.clone();
    link.cut(Cut::Carrier)?;
    wait_no_kernel_route(&netns, prefix(V4)?)?;
    link.repair()?;
    for pods in [V4, V6] {
        wait_kernel_route(&netns, prefix(pods)?)?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let after = peer(&cluster.node("n2")?.agent, n1)?;
    ensure!(
        after.up && after.established == before.established,
        "{before:?} became {after:?}"
    );
    Ok(())
}

fn flap_without_agent(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let netns = cluster.netns("n2")?.clone();
    let link = cluster.link("rack/n2")?.clone();
    cluster.node("n2")?.agent.process().kill()?;
    link.cut(Cut::Carrier)?;
    wait_no_kernel_route(&netns, prefix(V4)?)?;
    link.repair()?;
    cluster.node("n2")?.agent.restart()?;
    for pods in [V4, V6] {
        wait_kernel_route(&netns, prefix(pods)?)?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

/// Only BGP can notice: after the hold time, and again when packets pass.
fn silent(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let link = cluster.link("rack/n1")?.clone();
    let watcher = cluster.netns("n2")?.clone();
    wait_kernel_route(&watcher, prefix(V4)?)?;
    link.cut(Cut::Drop)?;
    eventually(2 * SOON, "n2 sees the session end", || {
        cluster.sessions_with("n1").is_ok_and(|count| count == 0)
    })?;
    link.repair()?;
    eventually(2 * SOON, "the session is back", || {
        cluster.sessions_with("n1").is_ok_and(|count| count > 0)
    })?;
    for pods in [V4, V6] {
        wait_kernel_route(&watcher, prefix(pods)?)?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}
