//! Conntrack entries that are lost: somebody deletes them or empties the table. What a policy has cut stays cut, and
//! what it allows goes on, whatever `nf_conntrack_tcp_loose` says.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::probe::Answer;
use selvage_lab::probe::tcp::{End, Pair};
use selvage_lab::probe::udp::Talk;
use selvage_lab::{Cluster, Lab, Netns, eventually_ok};
use selvage_netlink::conntrack::{self, Filter, Flow, Ports};
use selvage_netlink::{Batch, Protocol, Socket};

use crate::harness::Case;
use crate::scene::{ATTEMPT, OWN, SOON, two_nodes};

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "faults::flows_whose_conntrack_entries_are_lost",
        OWN,
        lost,
    )]
}

/// TCP ports of `web`: allowed by the policy; cut by it; cut by it after the entry was lost.
const ALLOWED: u16 = 8080;
const DENIED: u16 = 8081;
const LOST_BEFORE: u16 = 8082;
/// UDP ports of `web`, where echo servers are.
const ALLOWED_UDP: u16 = 80;
const DENIED_UDP: u16 = 81;

/// `web` takes in, or the client sends out, what goes to the allowed ports alone.
const POLICIES: [&str; 2] = [
    "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{ports: [{protocol: TCP, port: 8080}, {protocol: UDP, port: 80}]}]
",
    "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only, namespace: default}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{ports: [{protocol: TCP, port: 8080}, {protocol: UDP, port: 80}]}]
",
];

/// How entries are lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Those of the trial's flows are deleted one by one.
    Deleted,
    /// The whole table is emptied.
    Flushed,
}

fn lost(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    for (policy, loose, loss) in [
        (0, "1", Loss::Deleted),
        (1, "1", Loss::Flushed),
        (0, "0", Loss::Flushed),
        (1, "0", Loss::Deleted),
    ] {
        let what = || format!("policy {policy}, tcp_loose {loose}, {loss:?}");
        for node in ["n1", "n2"] {
            // Somebody sets it while the agent runs.
            let netns = cluster.netns(node)?;
            netns.set_sysctl("net/netfilter/nf_conntrack_tcp_loose", loose)?;
        }
        for address in cluster.addresses("shop/web") {
            let at = |port| SocketAddr::new(address, port);
            round(&cluster, POLICIES[policy], loss, at)
                .with_context(|| format!("{}, {address}", what()))?;
        }
    }
    Ok(())
}

fn round(
    cluster: &Cluster,
    policy: &str,
    loss: Loss,
    at: impl Fn(u16) -> SocketAddr,
) -> Result<()> {
    let (from, to) = (cluster.netns("default/client")?, cluster.netns("shop/web")?);
    let pair = |port| Pair::open(from, to, at(port), SOON);
    let talk = |port| Talk::open(from, at(port));
    let (mut kept, mut cut, mut early) = (pair(ALLOWED)?, pair(DENIED)?, pair(LOST_BEFORE)?);
    let (mut kept_udp, mut cut_udp) = (talk(ALLOWED_UDP)?, talk(DENIED_UDP)?);
    for pair in [&mut kept, &mut cut, &mut early] {
        carries(pair)?;
    }
    for talk in [&mut kept_udp, &mut cut_udp] {
        ensure!(talk.say(SOON)? == Answer::Yes, "{talk:?} is not answered");
    }
    let nodes = [cluster.netns("n1")?, cluster.netns("n2")?];
    // Taken up by a packet of the server, so that the entry says that the server began.
    lose(&nodes, Loss::Deleted, &ports(&[&early])?)?;
    ensure!(
        early.say(End::Server, SOON)? == Answer::Yes,
        "what no policy denies does not go on"
    );
    cluster.objects().write_text("only", policy)?;
    // Only the server speaks: what the client says at last goes out at once, not when a lost word is said again.
    is_cut("cut by the policy", || cut.say(End::Server, ATTEMPT))?;
    is_cut("cut after its entry was lost", || {
        early.say(End::Client, ATTEMPT)
    })?;
    is_cut("UDP", || cut_udp.say(ATTEMPT))?;
    carries(&mut kept)?;
    let entries = ports(&[&kept, &cut])?;
    lose(&nodes, loss, &entries)?;
    // The server may send to the client: its lost word is sent again, and takes the flow up or passes without one. Later
    // words wait for an answer that must not come.
    let answer = cut.hear(End::Client, SOON)?;
    ensure!(answer == Answer::Yes, "the server's word: {answer:?}");
    for limit in [ATTEMPT, 2 * ATTEMPT] {
        let answer = cut.say(End::Client, limit)?;
        ensure!(answer == Answer::Silence, "it lives again: {answer:?}");
    }
    let answer = cut_udp.say(2 * ATTEMPT)?;
    ensure!(answer == Answer::Silence, "UDP lives again: {answer:?}");
    carries(&mut kept).context("allowed")?;
    lose(&nodes, loss, &entries)?;
    // The other one speaks first.
    for from in [End::Client, End::Server] {
        let answer = kept.say(from, SOON)?;
        ensure!(answer == Answer::Yes, "{from:?}, allowed: {answer:?}");
    }
    let answer = kept_udp.say(SOON)?;
    ensure!(answer == Answer::Yes, "UDP, allowed: {answer:?}");
    cluster.objects().remove("only")?;
    eventually_ok(SOON, "everything is allowed again", || {
        match Talk::open(from, at(DENIED_UDP))?.say(ATTEMPT)? {
            Answer::Yes => Ok(()),
            other => bail!("{other:?}"),
        }
    })
}

fn ports(pairs: &[&Pair]) -> Result<Vec<(u16, u16)>> {
    pairs.iter().map(|pair| pair.ports()).collect()
}

/// Both ends hear each other.
fn carries(pair: &mut Pair) -> Result<()> {
    for from in [End::Server, End::Client] {
        let answer = pair.say(from, SOON)?;
        ensure!(answer == Answer::Yes, "from the {from:?}: {answer:?}");
    }
    Ok(())
}

fn is_cut(what: &str, mut say: impl FnMut() -> Result<Answer>) -> Result<()> {
    eventually_ok(SOON, &format!("silence: {what}"), || match say()? {
        Answer::Silence => Ok(()),
        other => bail!("{other:?}"),
    })
}

/// Loses the entries of the connections between these ports, or all entries, on every node. Each node has at least one.
fn lose(nodes: &[&Netns], loss: Loss, ports: &[(u16, u16)]) -> Result<()> {
    let between = |flow: &Flow| {
        let found = |(client, server): &(u16, u16)| match flow.orig.ports {
            Ports::Ports { src, dst } => {
                (src, dst) == (*client, *server) || (src, dst) == (*server, *client)
            }
            _ => false,
        };
        ports.iter().any(found)
    };
    for node in nodes {
        let mut socket = Socket::open_in(node.open()?.as_fd(), Protocol::Netfilter)?;
        let listed = conntrack::list(&mut socket, &Filter::default())?;
        let ours: Vec<&Flow> = listed.iter().filter(|flow| between(flow)).collect();
        let loose = node.sysctl("net/netfilter/nf_conntrack_tcp_loose")? == "1";
        ensure!(!ours.is_empty() || !loose, "no entry on {}", node.name());
        let mut batch = Batch::new();
        match loss {
            Loss::Deleted => {
                for flow in ours {
                    conntrack::delete(&mut batch, flow);
                }
            }
            Loss::Flushed => {
                // IPCTNL_MSG_CT_DELETE without a tuple, of every family.
                batch.push(1 << 8 | 2, 0, |body| body.raw(&[0; 4]));
            }
        }
        if !batch.is_empty() {
            socket
                .send_batch(&mut batch)?
                .ignoring(rustix::io::Errno::NOENT)?;
        }
    }
    Ok(())
}
