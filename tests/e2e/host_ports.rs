//! A pod with a host port on a node with an agent: policy by source holds, on the way through the node as well.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use selvage_lab::probe::tcp::Conversation;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::{Cluster, Lab, Netns, eventually_ok};
use serde_json::{Value, json};

use crate::harness::{Case, Need};
use crate::scene::{ATTEMPT, SOON, nft, two_nodes};

const ALL: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("nft", "nftables"),
];

/// Of node n1, for port 80 of shop/web.
const PORT: u16 = 8080;

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "e2e::policy_by_source_holds_at_a_host_port",
        ALL,
        by_source,
    )]
}

fn by_source(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.stop_pod("shop/web")?;
    cluster.node("n1")?.kubelet.configuration()["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": PORT, "containerPort": 80, "protocol": "tcp"}],
    });
    cluster.start_pod("shop/web")?;
    let local = SocketAddr::from(([127, 0, 0, 1], PORT));
    wait(&cluster, "default/client", Answer::Yes)?;
    wait(&cluster, "n2", Answer::Yes)?;
    let mut old = conversations(cluster.netns("default/client")?, &at_node(&cluster))?;

    // What another pod may, and another node may not.
    cluster.objects().write("deny", &policy(json!([])))?;
    wait(&cluster, "default/client", Answer::Silence)?;
    for conversation in &mut old {
        eventually_ok(SOON, "the old connection is cut", || {
            match conversation.say(ATTEMPT)? {
                Answer::Yes => bail!("it still carries bytes"),
                _ => Ok(()),
            }
        })?;
    }
    let friend = json!([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}}]}]);
    cluster.objects().write("deny", &policy(friend))?;
    wait(&cluster, "default/client", Answer::Yes)?;
    wait(&cluster, "n2", Answer::Silence)?;

    // A pod that starts anew has no open moment. Its own node always reaches it.
    cluster.objects().write("deny", &policy(json!([])))?;
    wait(&cluster, "default/client", Answer::Silence)?;
    for _ in 0..5 {
        cluster.stop_pod("shop/web")?;
        cluster.start_pod("shop/web")?;
        for from in ["default/client", "n2"] {
            for to in at_node(&cluster) {
                let answer = tcp::connect(cluster.netns(from)?, to, ATTEMPT)?;
                ensure!(answer == Answer::Silence, "{from} to {to}: {answer:?}");
            }
        }
        for to in at_node(&cluster).into_iter().chain([local]) {
            let answer = tcp::connect(cluster.netns("n1")?, to, SOON)?;
            ensure!(answer == Answer::Yes, "the node to {to}: {answer:?}");
        }
    }

    // Somebody empties all tables: no pod has to start for the port to be there again.
    for alive in [true, false] {
        if !alive {
            cluster.node("n1")?.agent.process().kill()?;
        }
        nft(cluster.netns("n1")?, &["flush", "ruleset"])?;
        if !alive {
            cluster.node("n1")?.agent.restart()?;
        }
        for to in at_node(&cluster).into_iter().chain([local]) {
            let what = format!("the node to {to}, agent alive: {alive}");
            eventually_ok(SOON, &what, || {
                let answer = tcp::connect(cluster.netns("n1")?, to, ATTEMPT)?;
                ensure!(answer == Answer::Yes, "{answer:?}");
                Ok(())
            })?;
        }
        wait(&cluster, "default/client", Answer::Silence)?;
    }
    Ok(())
}

fn policy(ingress: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress},
    })
}

fn at_node(cluster: &Cluster) -> Vec<SocketAddr> {
    let addresses = cluster.addresses("n1");
    addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, PORT))
        .collect()
}

fn wait(cluster: &Cluster, from: &str, expected: Answer) -> Result<()> {
    let places = at_node(cluster);
    ensure!(places.len() == 2, "both families: {places:?}");
    for to in places {
        let what = format!("{from} to {to}: {expected:?}");
        eventually_ok(SOON, &what, || {
            match tcp::connect(cluster.netns(from)?, to, ATTEMPT)? {
                answer if answer == expected => Ok(()),
                other => bail!("{other:?}"),
            }
        })?;
    }
    Ok(())
}

fn conversations(from: &Netns, to: &[SocketAddr]) -> Result<Vec<Conversation>> {
    let mut open = Vec::new();
    for to in to {
        let mut conversation = Conversation::open(from, *to, SOON)?;
        ensure!(conversation.say(SOON)? == Answer::Yes, "{to} says nothing");
        open.push(conversation);
    }
    Ok(open)
}
