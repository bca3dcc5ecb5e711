//! Somebody flushes the ruleset.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use selvage_lab::daemon::find_program;
use selvage_lab::probe::Answer;
use selvage_lab::probe::tcp::Conversation;
use selvage_lab::process::output_of;
use selvage_lab::{Cluster, Lab, eventually_ok};

use crate::harness::{Case, Need};
use crate::scene::{ATTEMPT, SOON, two_nodes, wait_blocked, wait_reaches};

const NEEDS: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("nft", "nftables"),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::a_flushed_ruleset_is_repaired", NEEDS, flushed),
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
    let mut command = Command::new(find_program("nft").context("nft")?);
    command.args(words);
    output_of(cluster.netns("n1")?, command)
}

fn flushed(lab: &Lab) -> Result<()> {
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

/// The agent is held while the table is gone, so that the window is certain.
fn window(lab: &Lab) -> Result<()> {
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
    cluster
        .node("n1")?
        .agent
        .ask(&["wait", "--for", "synced", "--timeout", "30s"])?;
    let text = nft(&cluster, &["list", "table", "inet", "theirs"])?;
    ensure!(text.contains("counter"), "{text}");
    Ok(())
}
