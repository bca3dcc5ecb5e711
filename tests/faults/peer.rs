//! Neighbours that misbehave: what they send is answered as RFC 4271 says, and nobody else feels it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Cluster, Lab, eventually_ok};
use serde_json::json;

use crate::conformance::speaker::{OPEN, Speaker, UPDATE, message, open};
use crate::harness::Case;
use crate::scene::{self, SOON, WITH_BIRD, other, prefix, wait_kernel_route};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::garbage_on_port_179", WITH_BIRD, garbage),
        Case::new("faults::half_a_message_and_then_nothing", WITH_BIRD, stall),
        Case::new(
            "faults::what_stalls_is_ended_by_the_clock",
            WITH_BIRD,
            stall_ends,
        ),
        Case::new("faults::a_neighbour_of_the_wrong_as", WITH_BIRD, wrong_as),
    ]
}

/// A node with a BIRD that is right, at 192.0.2.1, and a second router at 192.0.2.2 that runs nothing yet.
fn scene(lab: &Lab) -> Result<Cluster> {
    let mut cluster = scene::cluster(
        lab,
        "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
routers:
  - {name: tor, daemon: bird, asn: 65001, networks: [rack]}
  - {name: bad, daemon: bird, asn: 65002, networks: [rack]}
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}]
",
    )?;
    // The session of the neighbour that is right has no hold time: if it ends, that is no slow machine's doing.
    for (name, spec) in [
        (
            "tor",
            json!({"address": "192.0.2.1", "asn": 65001, "timers": {"hold": "0s"}}),
        ),
        ("bad", json!({"address": "192.0.2.2", "asn": 65009})),
    ] {
        cluster
            .objects()
            .write(name, &selvage_lab::cluster::object("BGPPeer", name, spec))?;
    }
    cluster.start_router("tor")?;
    cluster.start_node("n1")?;
    cluster.node("n1")?.agent.wait_ready(2 * SOON)?;
    cluster
        .node("n1")?
        .agent
        .wait_established("192.0.2.1".parse()?, SOON)?;
    Ok(cluster)
}

/// The neighbour that behaves still has its first session, and its routes come through.
fn others_are_fine(cluster: &mut Cluster, announced: &str) -> Result<()> {
    let node = cluster.netns("n1")?.clone();
    other(cluster, "tor")?.announce(prefix(announced)?)?;
    wait_kernel_route(&node, prefix(announced)?)?;
    let peers = cluster.node("n1")?.agent.peers()?;
    let tor = peers
        .iter()
        .find(|peer| peer.address.to_string() == "192.0.2.1")
        .context("no tor")?;
    ensure!(
        tor.up && tor.established == 1,
        "the session with a neighbour that is right ended for one that is wrong: {tor:?}"
    );
    Ok(())
}

fn connect(cluster: &Cluster) -> Result<TcpStream> {
    let to = SocketAddr::new(*cluster.addresses("n1").first().context("an address")?, 179);
    let stream = cluster
        .netns("bad")?
        .run(|| Ok(TcpStream::connect_timeout(&to, SOON)?))?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn garbage(lab: &Lab) -> Result<()> {
    let mut cluster = scene(lab)?;
    // What is wrong with a message, and its code, is tried in conformance; here it is rubbish on every side of a
    // session with somebody else.
    for length in [1, 19, 64, 5000, 100_000] {
        let mut stream = connect(&cluster)?;
        // It may be closed before all is written.
        let _ = stream.write_all(&vec![0x5a; length]);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // Somebody who is not configured at all is not talked to.
    let stranger = lab.netns("stranger")?;
    let link = cluster.link("rack/n1")?.network().join(&stranger)?;
    let to = SocketAddr::new(*cluster.addresses("n1").first().context("an address")?, 179);
    ensure!(link.addresses().len() == 2, "no address");
    let heard = stranger.run(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, SOON) else {
            return Ok(0);
        };
        stream.set_read_timeout(Some(SOON))?;
        let _ = stream.write_all(&[0; 512]);
        let mut all = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut all);
        Ok(all.len())
    })?;
    ensure!(heard <= 21, "a stranger was told {heard} bytes");
    let from = link.ipv4()?;
    let agent = &mut cluster.node("n1")?.agent;
    eventually_ok(SOON, "the stranger is named", || {
        let status = agent.json(&["status"])?;
        let source = status.pointer("/bgp/unknownSources/0");
        let source = source.with_context(|| status.to_string())?;
        ensure!(source["address"] == json!(from), "{source}");
        Ok(())
    })?;
    let text = agent.ask(&["status"])?;
    ensure!(
        text.contains(&format!("addresses that no BGPPeer has, last {from}")),
        "{text}"
    );
    let log = agent.process().output();
    ensure!(
        log.contains("no BGPPeer and no range has") && log.contains(&from.to_string()),
        "{log}"
    );
    others_are_fine(&mut cluster, "10.99.0.0/16")
}

fn stall(lab: &Lab) -> Result<()> {
    let mut cluster = scene(lab)?;
    let mut held = Vec::new();
    for length in [1, 10, 18, 25] {
        let mut stream = connect(&cluster)?;
        let open = open(65009, 9, [192, 0, 2, 2]);
        stream.write_all(&open[..length])?;
        held.push(stream);
    }
    for announced in ["10.98.0.0/16", "10.99.0.0/16"] {
        others_are_fine(&mut cluster, announced)?;
    }
    Ok(())
}

/// Half a message, then nothing: before the session and in it. The clock ends both, and says so on the wire.
fn stall_ends(lab: &Lab) -> Result<()> {
    const HOLD_TIMER_EXPIRED: (u8, u8) = (4, 0);
    let mut cluster = scene(lab)?;
    let spec =
        json!({"address": "192.0.2.2", "asn": 65009, "timers": {"hold": "3s", "keepalive": "1s"}});
    cluster
        .objects()
        .write("bad", &selvage_lab::cluster::object("BGPPeer", "bad", spec))?;
    let agent = &cluster.node("n1")?.agent;
    agent.wait_synced()?;
    let to = *cluster.addresses("n1").first().context("an address")?;
    let from = cluster.netns("bad")?.clone();
    let hello = open(65009, 3, [192, 0, 2, 2]);
    let half_update = &message(UPDATE, &[0; 40])[..30];
    let mut speaker = Speaker::connect(&from, to)?;
    speaker.establish(&hello)?;
    speaker.send(half_update)?;
    let said = speaker.notification()?;
    ensure!(said == HOLD_TIMER_EXPIRED, "in the session: {said:?}");
    // Half an OPEN; the agent's own attempts are refused meanwhile.
    let mut speaker = eventually_ok(SOON, "a connection after the pause", || {
        let mut speaker = Speaker::connect(&from, to)?;
        speaker.expect(OPEN)?;
        Ok(speaker)
    })?;
    speaker.send(&hello[..25])?;
    speaker.patience(3 * SOON)?;
    let said = speaker.notification()?;
    ensure!(said == HOLD_TIMER_EXPIRED, "before the session: {said:?}");
    others_are_fine(&mut cluster, "10.99.0.0/16")
}

fn wrong_as(lab: &Lab) -> Result<()> {
    let mut cluster = scene(lab)?;
    cluster.start_router("bad")?;
    eventually_ok(SOON, "the wrong AS is named", || {
        let peers = cluster.node("n1")?.agent.peers()?;
        let bad = peers
            .iter()
            .find(|peer| peer.address.to_string() == "192.0.2.2")
            .context("no such peer")?;
        ensure!(!bad.up, "a neighbour of the wrong AS is up");
        match &bad.last_error {
            Some(error) if error.to_lowercase().contains("as") => Ok(()),
            other => bail!("{other:?}"),
        }
    })?;
    // The other side is told, too.
    eventually_ok(SOON, "BIRD was told", || {
        let sessions = other(&mut cluster, "bad")?.sessions()?;
        match sessions.iter().find(|session| session.state.contains("AS")) {
            Some(_) => Ok(()),
            None => bail!("{sessions:?}"),
        }
    })?;
    others_are_fine(&mut cluster, "10.99.0.0/16")
}
