//! Whatever happens to the agent or to its rules: not one allowed packet is lost, not one denied packet gets through.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use selvage_lab::deadline::patience;
use selvage_lab::probe::flow::{Account, Flow};
use selvage_lab::{Cluster, Lab, eventually, eventually_ok};
use serde_json::Value;

use crate::harness::{Case, Need};
use crate::scene::{OWN, SOON, is_blocked, nft, two_nodes, wait_blocked, wait_reaches};

const WITH_NFT: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("nft", "nftables"),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "faults::nothing_denied_passes_while_agents_end_and_start",
            OWN,
            ends,
        ),
        Case::new(
            "faults::an_agent_killed_in_the_middle_of_a_mass_change",
            OWN,
            mass_change,
        ),
        Case::new(
            "faults::allowed_flows_live_through_a_flush",
            WITH_NFT,
            flushed,
        ),
        Case::new(
            "faults::policies_change_under_flows_that_they_do_not_concern",
            OWN,
            unconcerned,
        ),
        Case::new("faults::files_written_in_place_and_by_halves", OWN, halves),
    ]
}

/// UDP 5000 and TCP 80 of `web` for the client; everything else is denied.
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]
      ports: [{protocol: UDP, port: 5000}, {protocol: UDP, port: 5001}, {protocol: TCP, port: 80}]
";
/// One per family.
const ALLOWED: [u16; 2] = [5000, 5001];
const DENIED: [u16; 2] = [5002, 5003];
/// How long packets may be under way.
const DRAIN: Duration = Duration::from_secs(2);
/// Datagrams a second.
const RATE: u32 = 1000;

/// Datagrams from the client to `web` in both families, allowed ones and denied ones.
struct Traffic {
    allowed: Vec<Flow>,
    denied: Vec<Flow>,
}

impl Traffic {
    fn start(cluster: &Cluster) -> Result<Traffic> {
        let (from, to) = (cluster.netns("default/client")?, cluster.netns("shop/web")?);
        let flows = |ports: [u16; 2]| -> Result<Vec<Flow>> {
            let addresses = cluster.addresses("shop/web").into_iter();
            addresses
                .zip(ports)
                .map(|(address, port)| Flow::start(from, to, SocketAddr::new(address, port), RATE))
                .collect()
        };
        let traffic = Traffic {
            allowed: flows(ALLOWED)?,
            denied: flows(DENIED)?,
        };
        traffic.go_on(20)?;
        Ok(traffic)
    }

    /// So many more packets of each flow are sent, and of each allowed one received.
    fn go_on(&self, more: u64) -> Result<()> {
        for flow in &self.allowed {
            let before = flow.received();
            eventually(SOON, "allowed packets come", || {
                flow.received() >= before + more
            })?;
        }
        for flow in &self.denied {
            let before = flow.sent();
            eventually(SOON, "denied packets are sent", || {
                flow.sent() >= before + more
            })?;
        }
        Ok(())
    }

    fn stop(self) -> Result<(Vec<Account>, Vec<Account>)> {
        let stop = |flows: Vec<Flow>, drain| -> Result<Vec<Account>> {
            flows.into_iter().map(|flow| flow.stop(drain)).collect()
        };
        Ok((
            stop(self.allowed, DRAIN)?,
            stop(self.denied, Duration::ZERO)?,
        ))
    }

    /// Not one lost, not one let in.
    fn ensure_perfect(self) -> Result<()> {
        let (allowed, denied) = self.stop()?;
        ensure!(
            allowed.iter().all(|account| account.lost == 0),
            "allowed packets were lost: {allowed:?}"
        );
        ensure!(
            denied.iter().all(|account| account.received == 0),
            "denied packets got through: {denied:?}"
        );
        Ok(())
    }
}

/// Two nodes, the policy in force, traffic under way.
fn scene(lab: &Lab) -> Result<(Cluster, Traffic)> {
    let cluster = two_nodes(lab)?;
    cluster.objects().write_text("policy", POLICY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let traffic = Traffic::start(&cluster)?;
    Ok((cluster, traffic))
}

fn synced(cluster: &mut Cluster, node: &str) -> Result<()> {
    cluster.node(node)?.agent.wait_synced()
}

/// Killed, killed again as soon as it lives, stopped; on the pod's node and on the client's.
pub fn ends(lab: &Lab) -> Result<()> {
    let (mut cluster, traffic) = scene(lab)?;
    for node in ["n1", "n2"] {
        for _ in 0..2 {
            let agent = &mut cluster.node(node)?.agent;
            agent.process().kill()?;
            traffic.go_on(50)?;
            agent.restart()?;
            // In the middle of its start.
            agent.process().kill()?;
            let socket = agent.run_dir().join("selvage.sock");
            let _ = std::fs::remove_file(&socket);
            agent.restart()?;
            agent.process().wait_path(&socket, SOON)?;
            agent.process().kill()?;
            agent.restart()?;
            synced(&mut cluster, node)?;
            traffic.go_on(50)?;
        }
        let agent = &mut cluster.node(node)?.agent;
        let status = agent.process().stop(SOON)?;
        ensure!(status.success(), "SIGTERM: {status}");
        traffic.go_on(50)?;
        agent.restart()?;
        synced(&mut cluster, node)?;
        cluster
            .node(node)?
            .agent
            .ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
    }
    traffic.go_on(50)?;
    traffic.ensure_perfect()
}

/// So many policies for the same pod; none of them allows what is denied.
fn many(number: usize) -> String {
    let mut text = String::new();
    for n in 0..number {
        let (high, low) = (n / 200, n % 200);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: many-{n}, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress:
    - from: [{{ipBlock: {{cidr: 10.{high}.{low}.0/24}}}}, {{podSelector: {{matchLabels: {{number: n{n}}}}}}}]
      ports: [{{protocol: UDP, port: {port}, endPort: 6000}}]
",
            port = 5002 + n % 7
        );
    }
    text
}

/// The number of the newest plan of n1; its agent may still be starting.
fn planned(cluster: &mut Cluster) -> Result<Value> {
    eventually_ok(SOON, "an answer", || {
        let agent = &cluster.node("n1")?.agent;
        let output = agent.command(&["status", "-o", "json"])?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        Ok(status["policy"]["planned"].clone())
    })
}

fn mass_change(lab: &Lab) -> Result<()> {
    let (mut cluster, traffic) = scene(lab)?;
    for (round, number) in [400, 10, 300, 0, 400, 1].into_iter().enumerate() {
        let before = planned(&mut cluster)?;
        cluster.objects().write_text("many", &many(number))?;
        // As soon as there is a new plan, or before it is made.
        if round % 2 == 0 {
            eventually_ok(SOON, "a new plan", || match planned(&mut cluster)? {
                planned if planned == before => bail!("{planned}"),
                _ => Ok(()),
            })?;
        }
        let agent = &mut cluster.node("n1")?.agent;
        agent.process().kill()?;
        agent.restart()?;
        traffic.go_on(20)?;
    }
    synced(&mut cluster, "n1")?;
    let status = cluster.node("n1")?.agent.json(&["status"])?;
    ensure!(
        status["policy"]["policies"] == 2 && status["policy"]["failure"].is_null(),
        "{}",
        status["policy"]
    );
    is_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    traffic.go_on(50)?;
    traffic.ensure_perfect()
}

/// How often the ruleset is flushed.
const FLUSHES: u64 = 3;

/// The window of somebody else's flush is shorter than a second, and no flow of it lives on.
pub fn flushed(lab: &Lab) -> Result<()> {
    let (cluster, traffic) = scene(lab)?;
    for _ in 0..FLUSHES {
        nft(cluster.netns("n1")?, &["flush", "ruleset"])?;
        wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
        // What got in soon is not more any longer: the rules come first, then the flows.
        eventually_ok(SOON, "flows of the window end", || {
            let received = || -> Vec<u64> { traffic.denied.iter().map(Flow::received).collect() };
            let seen = received();
            traffic.go_on(200)?;
            let later = received();
            ensure!(seen == later, "{seen:?}, {later:?}");
            Ok(())
        })?;
    }
    let (allowed, denied) = traffic.stop()?;
    // When somebody deletes the table, its maps lose their elements before its chains leave the hooks: what belongs to no
    // established flow is dropped until then, a millisecond at most on an ordinary machine.
    let window = FLUSHES * u64::from(patience());
    ensure!(
        allowed.iter().all(|account| account.lost <= window),
        "allowed packets were lost: {allowed:?}"
    );
    // At so many a second, each window is shorter than a second.
    ensure!(
        denied
            .iter()
            .all(|account| account.received < FLUSHES * u64::from(RATE)),
        "the windows were too long: {denied:?}"
    );
    Ok(())
}

/// Other policies, other pods, other labels: flows neither stop nor start by that.
fn unconcerned(lab: &Lab) -> Result<()> {
    let (mut cluster, traffic) = scene(lab)?;
    for round in 0..10 {
        cluster.objects().write_text("many", &many(round * 5))?;
        let mut client = cluster.pod("default/client")?.running.clone();
        client
            .pod
            .labels
            .insert("round".into(), format!("r{round}"));
        cluster.node("n2")?.kubelet.update(&client)?;
        synced(&mut cluster, "n1")?;
        traffic.go_on(20)?;
    }
    traffic.ensure_perfect()
}

/// An editor that does not rename: the file is empty for a moment, then half there, then there.
fn halves(lab: &Lab) -> Result<()> {
    let (mut cluster, traffic) = scene(lab)?;
    let path = cluster.objects().directory().join("policy.yaml");
    for cut in [POLICY.len() / 3, POLICY.len() / 2, POLICY.len() - 30] {
        std::fs::write(&path, &POLICY[..cut])?;
        synced(&mut cluster, "n1")?;
        traffic.go_on(50)?;
        std::fs::write(&path, POLICY)?;
        synced(&mut cluster, "n1")?;
        traffic.go_on(50)?;
    }
    traffic.ensure_perfect()
}
