//! Neighbours that misbehave: what they send is answered as RFC 4271 says, and nobody else feels it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::daemon::Kind;
use selvage_lab::{Cluster, Lab, eventually_ok};
use serde_json::json;

use crate::harness::{Case, Need};
use crate::scene::{self, SOON, other, prefix, wait_kernel_route};

const WITH_BIRD: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::Daemon(Kind::Bird),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::garbage_on_port_179", WITH_BIRD, garbage),
        Case::new("faults::half_a_message_and_then_nothing", WITH_BIRD, stall),
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
    for (name, address, asn) in [("tor", "192.0.2.1", 65001), ("bad", "192.0.2.2", 65009)] {
        let spec = json!({"address": address, "asn": asn});
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

/// The neighbour that behaves still has its session, and its routes come through.
fn others_are_fine(cluster: &mut Cluster, announced: &str) -> Result<()> {
    let node = cluster.netns("n1")?.clone();
    other(cluster, "tor")?.announce(prefix(announced)?)?;
    wait_kernel_route(&node, prefix(announced)?)?;
    let peers = cluster.node("n1")?.agent.peers()?;
    let tor = peers
        .iter()
        .find(|peer| peer.address.to_string() == "192.0.2.1")
        .context("no tor")?;
    ensure!(tor.up && tor.established == 1, "{tor:?}");
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

/// Code and subcode of the NOTIFICATION with which the speaker ends the connection.
fn notification(stream: &mut TcpStream) -> Result<(u8, u8)> {
    loop {
        let mut header = [0; 19];
        stream
            .read_exact(&mut header)
            .context("no NOTIFICATION before the end")?;
        ensure!(header[..16] == [0xff; 16], "not a marker: {header:?}");
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length.checked_sub(19).context("length")?];
        stream.read_exact(&mut body)?;
        if let (3, [code, subcode, ..]) = (header[18], &body[..]) {
            return Ok((*code, *subcode));
        }
    }
}

fn header(kind: u8, length: u16) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend(length.to_be_bytes());
    bytes.push(kind);
    bytes
}

fn garbage(lab: &Lab) -> Result<()> {
    let mut cluster = scene(lab)?;
    let cases: [(&str, Vec<u8>, (u8, u8)); 4] = [
        ("no marker", vec![b'x'; 64], (1, 1)),
        ("a length that cannot be", header(1, 5), (1, 2)),
        ("a type that is not", header(77, 19), (1, 3)),
        (
            "a version that is not",
            [header(1, 29), vec![9, 0xfd, 0xea, 0, 9, 192, 0, 2, 2, 0]].concat(),
            (2, 1),
        ),
    ];
    for (what, bytes, wanted) in cases {
        // A connection of the speaker's own may win a collision: then the next one is heard.
        eventually_ok(SOON, what, || {
            let mut stream = connect(&cluster)?;
            stream.write_all(&bytes)?;
            match notification(&mut stream)? {
                found if found == wanted => Ok(()),
                found => bail!("{what}: answered with {found:?}, wanted {wanted:?}"),
            }
        })?;
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
    others_are_fine(&mut cluster, "10.99.0.0/16")
}

fn stall(lab: &Lab) -> Result<()> {
    let mut cluster = scene(lab)?;
    let mut held = Vec::new();
    for length in [1, 10, 18, 25] {
        let mut stream = connect(&cluster)?;
        let open = [header(1, 29), vec![4, 0xfd, 0xf1, 0, 9, 192, 0, 2, 2, 0]].concat();
        stream.write_all(&open[..length])?;
        held.push(stream);
    }
    for announced in ["10.98.0.0/16", "10.99.0.0/16"] {
        others_are_fine(&mut cluster, announced)?;
    }
    Ok(())
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
