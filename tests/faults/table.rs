//! Somebody flushes the ruleset.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use selvage_lab::daemon::find_program;
use selvage_lab::probe::Answer;
use selvage_lab::probe::tcp::{self, Conversation};
use selvage_lab::process::output_of;
use selvage_lab::{Cluster, Lab, eventually_ok};
use serde_json::json;

use crate::harness::{Case, Need};
use crate::scene::{self, ATTEMPT, SOON, two_nodes, wait_blocked, wait_reaches};

const NEEDS: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("nft", "nftables"),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::a_flushed_ruleset_is_repaired", NEEDS, flushed),
        Case::new("faults::every_table_of_ours_is_healed", NEEDS, |lab| {
            every_table(lab, true)
        }),
        Case::new(
            "faults::tables_beside_the_policy_are_healed_without_it",
            NEEDS,
            |lab| every_table(lab, false),
        ),
        Case::new("faults::no_flow_of_the_open_window_lives_on", NEEDS, window),
        Case::new("faults::what_others_own_is_left_alone", NEEDS, foreign),
    ]
}

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

fn nft(cluster: &Cluster, words: &[&str]) -> Result<String> {
    scene::nft(cluster.netns("n1")?, words)
}

pub fn flushed(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    for words in [
        &["flush", "ruleset"][..],
        &["delete", "table", "inet", "selvage"],
        &["flush", "table", "inet", "selvage"],
    ] {
        nft(&cluster, words)?;
        eventually_ok(SOON, "the table is back", || {
            match nft(&cluster, &["list", "table", "inet", "selvage"])? {
                text if text.contains("hook forward") && text.contains("drop") => Ok(()),
                text => bail!("{text}"),
            }
        })?;
        wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    }
    Ok(())
}

/// A damage to one table, as `nft` is told it.
const DAMAGES: [&str; 16] = [
    "delete table inet selvage",
    "flush chain inet selvage forward",
    "flush chain inet selvage prerouting",
    "flush map inet selvage in4; flush map inet selvage in6",
    "insert rule inet selvage forward accept",
    "add rule inet selvage forward accept",
    "add chain inet selvage forward { policy drop; }",
    "delete table inet selvage-nat",
    "flush table inet selvage-nat",
    "flush set inet selvage-nat pods4",
    "insert rule inet selvage-nat postrouting accept",
    "delete table inet selvage-cni",
    "flush table inet selvage-cni",
    "flush map inet selvage-cni hostports4; flush map inet selvage-cni hostports6",
    "add chain inet selvage-cni prerouting { policy drop; }",
    "flush ruleset",
];

/// Outside of the cluster, behind n2.
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const HOST_PORT: u16 = 8080;

/// Each table is damaged alone; packets show that it is whole again, and its listing that it is as it was.
fn every_table(lab: &Lab, policy: bool) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.stop_pod("shop/web")?;
    let n1 = cluster.node("n1")?;
    n1.kubelet.configuration()["ipMasq"] = json!(true);
    n1.kubelet.configuration()["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp"}],
    });
    if !policy {
        n1.agent.process().stop(SOON)?;
        n1.agent.restart_with(&["--features", "bgp,kernel,cni"])?;
        n1.agent.wait_ready(SOON)?;
        // Rules stay when an agent ends; without the feature nobody is there for new pods.
        nft(&cluster, &["delete table inet selvage"])?;
    }
    outside(&cluster)?;
    cluster.start_pod("shop/web")?;
    cluster.objects().write_text("deny", ONLY_80)?;
    serves(&cluster, policy)?;
    let before = listing(&cluster)?;
    for damage in DAMAGES {
        if !policy && before.iter().all(|(table, _)| !damage.contains(table)) {
            continue;
        }
        nft(&cluster, &[damage]).with_context(|| damage.to_owned())?;
        eventually_ok(SOON, &format!("healed: {damage}"), || {
            let now = listing(&cluster)?;
            ensure!(now == before, "{now:?}\nbefore:\n{before:?}");
            Ok(())
        })?;
        serves(&cluster, policy).with_context(|| damage.to_owned())?;
    }
    let repaired = &cluster.node("n1")?.agent.json(&["status"])?["policy"]["repaired"];
    if policy {
        ensure!(
            repaired.as_u64() >= Some(DAMAGES.len() as u64),
            "status counts {repaired} repairs"
        );
    }
    Ok(())
}

/// All may reach port 80 of `web`, and nobody port 81.
const ONLY_80: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-80, namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
";

/// An address on n2 that is neither a node's nor a pod's, and the way there.
fn outside(cluster: &Cluster) -> Result<()> {
    let n2 = cluster
        .addresses("n2")
        .into_iter()
        .find(IpAddr::is_ipv4)
        .context("an IPv4 address of n2")?;
    for (node, words) in [
        ("n2", format!("address add {OUTSIDE}/32 dev lo")),
        ("n1", format!("route add {OUTSIDE}/32 via {n2}")),
    ] {
        let mut command = Command::new(find_program("ip").context("ip")?);
        command.args(words.split(' '));
        output_of(cluster.netns(node)?, command)?;
    }
    Ok(())
}

/// Policy, masquerading and host ports do what they should, by packets.
fn serves(cluster: &Cluster, policy: bool) -> Result<()> {
    wait_reaches(cluster, "default/client", "shop/web", Some(80))?;
    if policy {
        wait_blocked(cluster, "default/client", "shop/web", Some(81))?;
    }
    for address in cluster.addresses("n1") {
        let to = SocketAddr::new(address, HOST_PORT);
        eventually_ok(SOON, &format!("the host port {to}"), || {
            let answer = tcp::connect(cluster.netns("default/client")?, to, ATTEMPT)?;
            ensure!(answer == Answer::Yes, "{answer:?}");
            Ok(())
        })?;
    }
    let node = cluster.addresses("n1");
    eventually_ok(SOON, "the world sees the node", || {
        let seen = source_seen(cluster)?;
        ensure!(node.contains(&seen), "it sees {seen}");
        Ok(())
    })
}

/// The source that a server outside of the cluster sees of a datagram from `web`.
fn source_seen(cluster: &Cluster) -> Result<IpAddr> {
    let server = cluster
        .netns("n2")?
        .run(|| Ok(UdpSocket::bind((OUTSIDE, 0))?))?;
    server.set_read_timeout(Some(SOON))?;
    let to = server.local_addr()?;
    cluster.netns("shop/web")?.run(|| {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(client.send_to(b"who am I?", to)?)
    })?;
    let (_, from) = server.recv_from(&mut [0; 16])?;
    Ok(from.ip())
}

/// Our tables of n1 as words in a fixed order, without what counters show.
fn listing(cluster: &Cluster) -> Result<Vec<(String, Vec<String>)>> {
    let mut tables = Vec::new();
    let all = nft(cluster, &["list", "tables"])?;
    for table in all
        .lines()
        .filter_map(|line| line.strip_prefix("table inet "))
    {
        // Somebody may delete it between the two listings.
        let text = nft(cluster, &["list", "table", "inet", table]).unwrap_or_default();
        let words = text.split_whitespace();
        let mut words: Vec<_> = words
            .filter(|word| word.parse::<u64>().is_err())
            .map(|word| word.trim_end_matches(',').to_owned())
            .collect();
        words.sort_unstable();
        tables.push((table.to_owned(), words));
    }
    tables.sort();
    Ok(tables)
}

/// The agent is held while the table is gone, so that the window is certain.
pub fn window(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.node("n1")?.agent.process().signal(Signal::STOP)?;
    nft(&cluster, &["flush", "ruleset"])?;
    let from = cluster.netns("default/client")?.clone();
    let mut conversations = Vec::new();
    for address in cluster.addresses("shop/web") {
        let mut conversation = Conversation::open(&from, SocketAddr::new(address, 80), SOON)?;
        ensure!(
            conversation.say(SOON)? == Answer::Yes,
            "the window is not open"
        );
        conversations.push(conversation);
    }
    cluster.node("n1")?.agent.process().signal(Signal::CONT)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    for conversation in &mut conversations {
        eventually_ok(SOON, "a flow of the window is cut", || {
            match conversation.say(ATTEMPT)? {
                Answer::Yes => bail!("it lives on"),
                _ => Ok(()),
            }
        })?;
    }
    wait_reaches(&cluster, "n1", "shop/web", Some(80))
}

fn foreign(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    nft(
        &cluster,
        &["add table inet theirs { chain c { type filter hook forward priority 5; counter; }; }"],
    )?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.node("n1")?.agent.process().kill()?;
    cluster.node("n1")?.agent.restart()?;
    cluster.node("n1")?.agent.wait_synced()?;
    let text = nft(&cluster, &["list", "table", "inet", "theirs"])?;
    ensure!(text.contains("counter"), "{text}");
    Ok(())
}
