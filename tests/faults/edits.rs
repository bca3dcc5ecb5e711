//! Policies are edited hundreds of times under new flows, agents restart, and tables are repaired: not one allowed packet
//! is lost, not one denied packet gets through. Every packet begins a flow, so every packet is judged.

use anyhow::{Context, Result, ensure};
use selvage_lab::probe::raw::NewFlows;
use selvage_lab::{Cluster, Lab, eventually, eventually_ok};
use serde_json::{Value, json};

use crate::harness::{Case, Need};
use crate::scene::{OWN, SOON, nft, two_nodes, wait_blocked};

pub fn cases() -> Vec<Case> {
    vec![
        Case::alone("faults::no_new_flow_is_judged_by_half_an_edit", OWN, edits),
        Case::alone(
            "faults::no_new_flow_is_judged_by_half_a_repair",
            &[
                Need::Own("selvage"),
                Need::Own("selvage-cni"),
                Need::System("nft", "nftables"),
            ],
            repairs,
        ),
    ]
}

/// Edits of each kind.
const EDITS: u32 = 60;
/// Restarts with other rules, and repairs.
const REPAIRS: u32 = 25;
/// New flows a second, of each stream.
const RATE: u32 = 500;

/// TCP ports that are allowed and denied, in and out.
const ALLOWED: u16 = 80;
const DENIED: u16 = 82;

fn write(cluster: &Cluster, name: &str, spec: Value) -> Result<()> {
    cluster.objects().write(
        name,
        &json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": spec,
        }),
    )
}

/// Blocks that hold every pod, and some that change with the edit.
fn blocks(edit: u32) -> Value {
    let others = (0..4).map(|n| format!("172.{}.{}.0/24", 16 + n, edit % 250));
    let all = ["10.244.0.0/16".to_owned(), "fd00:10:244::/48".to_owned()];
    let peers = all.into_iter().chain(others);
    peers
        .map(|cidr| json!({"ipBlock": {"cidr": cidr}}))
        .collect()
}

/// The allowed port, and some that change with the edit.
fn ports(edit: u32) -> Value {
    let others = (0..5).map(|n| json!({"port": 1000 + 10 * n + edit % 7}));
    std::iter::once(json!({"port": ALLOWED}))
        .chain(others)
        .collect()
}

/// Both directions of `web`, by these peers and ports.
fn both(peers: &Value, ports: &Value) -> Value {
    json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}],
        "egress": [{"to": peers, "ports": ports}],
    })
}

/// New flows between `web` and the client, in both directions and families.
struct Streams {
    allowed: Vec<NewFlows>,
    denied: Vec<NewFlows>,
}

impl Streams {
    fn start(cluster: &Cluster) -> Result<Streams> {
        let (web, client) = (
            cluster.netns("shop/web")?.clone(),
            cluster.netns("default/client")?.clone(),
        );
        let here = cluster.addresses("shop/web");
        let there = cluster.addresses("default/client");
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for (here, there) in here.into_iter().zip(there) {
            for (port, flows) in [(ALLOWED, &mut allowed), (DENIED, &mut denied)] {
                for (from, source, to, at) in
                    [(&client, there, &web, here), (&web, here, &client, there)]
                {
                    flows.push(NewFlows::start(from, source, to, (at, port).into(), RATE)?);
                }
            }
        }
        for flow in &allowed {
            eventually(SOON, "new flows come", || flow.heard() > 100)?;
        }
        Ok(Streams { allowed, denied })
    }

    /// Not one lost, not one let in.
    fn ensure_perfect(self) -> Result<()> {
        for flow in self.allowed {
            let (sent, heard) = flow.stop()?;
            ensure!(
                sent == heard,
                "{} of {sent} allowed flows lost",
                sent - heard
            );
        }
        for flow in self.denied {
            let (sent, heard) = flow.stop()?;
            ensure!(heard == 0, "{heard} of {sent} denied flows got through");
        }
        Ok(())
    }
}

fn edits(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    write(&cluster, "edited", both(&blocks(0), &ports(0)))?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    let streams = Streams::start(&cluster)?;
    let allowed = &streams.allowed;
    let pods = |edit: u32| json!([{"namespaceSelector": {}}, {"podSelector": {"matchLabels": {"edit": format!("e{edit}")}}}]);
    for edit in 0..EDITS {
        // What allows the flows is edited: blocks, ports, selectors.
        write(&cluster, "edited", both(&blocks(edit), &ports(0)))?;
        meet(allowed)?;
        write(&cluster, "edited", both(&blocks(0), &ports(edit)))?;
        meet(allowed)?;
        write(&cluster, "edited", both(&pods(edit), &ports(0)))?;
        meet(allowed)?;
        // Another policy for the same pod comes and goes.
        if edit % 2 == 0 {
            let other = [json!({"ipBlock": {"cidr": "192.0.2.0/28"}})];
            write(&cluster, "beside", both(&json!(other), &ports(edit)))?;
        } else {
            cluster.objects().remove("beside")?;
        }
        meet(allowed)?;
    }
    let agent = &cluster.node("n1")?.agent;
    agent.wait_synced()?;
    let status = agent.json(&["status"])?;
    let planned = status["policy"]["planned"].as_u64();
    ensure!(
        planned.is_some_and(|planned| planned > u64::from(EDITS)),
        "too few edits were seen one by one: {}",
        status["policy"]
    );
    streams.ensure_perfect()
}

/// The agent ends, the policy becomes another one for the same flows, and the agent starts: it finds a table that lacks
/// chains and has too many. Then somebody else adds rules that do nothing to its chains, which are taken away.
fn repairs(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    write(&cluster, "edited", both(&blocks(0), &ports(0)))?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    let streams = Streams::start(&cluster)?;
    for repair in 1..=REPAIRS {
        cluster.node("n1")?.agent.process().kill()?;
        write(&cluster, "edited", both(&blocks(repair), &ports(repair)))?;
        let agent = &mut cluster.node("n1")?.agent;
        agent.restart()?;
        agent.wait_synced()?;
        meet(&streams.allowed)?;
    }
    let node = cluster.netns("n1")?;
    for repair in 0..REPAIRS {
        let chain = ["forward", "prerouting", "output"][repair as usize % 3];
        let verb = ["add", "insert"][repair as usize % 2];
        nft(
            node,
            &[
                verb, "rule", "inet", "selvage", chain, "counter", "comment", "stranger",
            ],
        )?;
        eventually_ok(SOON, "the rule is taken away", || {
            let listed = nft(node, &["list", "table", "inet", "selvage"])?;
            ensure!(!listed.contains("stranger"), "{listed}");
            Ok(())
        })?;
        meet(&streams.allowed)?;
    }
    streams.ensure_perfect()
}

/// Some packets of the first flow have met the edit, or what was before it.
fn meet(flows: &[NewFlows]) -> Result<()> {
    let flow = flows.first().context("a flow")?;
    let before = flow.sent();
    eventually(SOON, "packets meet the edit", || flow.sent() > before + 10)?;
    Ok(())
}
