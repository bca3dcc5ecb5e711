//! RFC 4271 section 6 (errors and their codes), RFC 6608 (unexpected messages), RFC 7606 (what does not end a session).

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Cluster, Lab, Netns, eventually_ok};
use serde_json::json;

use super::speaker::{KEEPALIVE, OPEN, Speaker, UPDATE, attributes, header, message, open, update};
use crate::harness::Case;
use crate::scene::{self, OWN, SOON, prefix, wait_kernel_route, wait_no_kernel_route};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "conformance::a_wrong_header_or_open_has_its_code",
            OWN,
            before_established,
        ),
        Case::new(
            "conformance::a_wrong_message_in_a_session_has_its_code",
            OWN,
            established,
        ),
        Case::new(
            "conformance::a_bad_attribute_withdraws_and_the_session_stays",
            OWN,
            treat_as_withdraw,
        ),
        Case::new(
            "conformance::silence_ends_with_the_hold_time",
            OWN,
            hold_time,
        ),
    ]
}

const ASN: u16 = 65002;
const ID: [u8; 4] = [192, 0, 2, 9];
const HOP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// A node that waits for a neighbour at 192.0.2.9, and the namespace of that neighbour.
fn scene(lab: &Lab) -> Result<(Cluster, Netns, IpAddr)> {
    let text = "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}]
";
    let mut cluster = scene::cluster(lab, text)?;
    let spec = json!({"address": HOP, "asn": ASN, "passive": true});
    cluster.objects().write(
        "peer",
        &selvage_lab::cluster::object("BGPPeer", "peer", spec),
    )?;
    let netns = lab.netns("peer")?;
    cluster
        .link("rack/n1")?
        .network()
        .join_with(&netns, &[prefix("192.0.2.9/24")?])?;
    cluster.start_node("n1")?;
    cluster.node("n1")?.agent.wait_ready(2 * SOON)?;
    let node = *cluster.addresses("n1").first().context("an address")?;
    Ok((cluster, netns, node))
}

/// The speaker may rest a moment after an error: then the connection is refused or ends without a word.
fn ends_with(
    what: &str,
    netns: &Netns,
    node: IpAddr,
    wanted: (u8, u8),
    say: impl Fn(&mut Speaker) -> Result<()>,
) -> Result<()> {
    eventually_ok(2 * SOON, what, || {
        let mut speaker = Speaker::connect(netns, node)?;
        say(&mut speaker)?;
        match speaker.notification()? {
            found if found == wanted => Ok(()),
            found => bail!("answered with {found:?}, wanted {wanted:?}"),
        }
    })
}

fn before_established(lab: &Lab) -> Result<()> {
    let (_cluster, netns, node) = scene(lab)?;
    let version = [&[9][..], &ASN.to_be_bytes(), &[0, 9], &ID, &[0]].concat();
    // An optional parameter of type 1 (authentication) is deprecated, and none but capabilities is known.
    let parameter = [&[4][..], &ASN.to_be_bytes(), &[0, 9], &ID, &[3, 1, 1, 0]].concat();
    let table: [(&str, Vec<u8>, (u8, u8)); 11] = [
        ("no marker", vec![b'x'; 64], (1, 1)),
        ("a length below 19", header(OPEN, 18), (1, 2)),
        ("a length above 4096", header(OPEN, 4097), (1, 2)),
        ("an OPEN of 28 octets", message(OPEN, &[4; 9]), (1, 2)),
        ("a KEEPALIVE with a body", message(KEEPALIVE, &[0]), (1, 2)),
        ("a type that is not", header(77, 19), (1, 3)),
        ("version 9", message(OPEN, &version), (2, 1)),
        ("another AS", open(65003, 9, ID), (2, 2)),
        ("identifier 0.0.0.0", open(ASN, 9, [0; 4]), (2, 3)),
        (
            "an unknown optional parameter",
            message(OPEN, &parameter),
            (2, 4),
        ),
        ("a hold time of one second", open(ASN, 1, ID), (2, 6)),
    ];
    for (what, bytes, wanted) in table {
        ends_with(what, &netns, node, wanted, |speaker| speaker.send(&bytes))?;
    }
    ends_with(
        "a KEEPALIVE before the OPEN",
        &netns,
        node,
        (5, 1),
        |speaker| speaker.send(&message(KEEPALIVE, &[])),
    )?;
    ends_with(
        "an UPDATE before the KEEPALIVE",
        &netns,
        node,
        (5, 2),
        |speaker| {
            speaker.send(&open(ASN, 9, ID))?;
            speaker.expect(OPEN)?;
            speaker.send(&update(&attributes(0, ASN, HOP), &[24, 10, 9, 9]))
        },
    )
}

fn established(lab: &Lab) -> Result<()> {
    let (_cluster, netns, node) = scene(lab)?;
    let table: [(&str, Vec<u8>, (u8, u8)); 4] = [
        ("a second OPEN", open(ASN, 9, ID), (5, 3)),
        (
            "withdrawn routes longer than the message",
            message(UPDATE, &[0xff, 0xff, 0, 0]),
            (3, 1),
        ),
        (
            "attributes longer than the message",
            message(UPDATE, &[0, 0, 0xff, 0xff]),
            (3, 1),
        ),
        (
            "a prefix of 33 bits",
            update(&attributes(0, ASN, HOP), &[33, 10, 9, 9, 0, 0]),
            (3, 10),
        ),
    ];
    for (what, bytes, wanted) in table {
        ends_with(what, &netns, node, wanted, |speaker| {
            speaker.establish(&open(ASN, 9, ID))?;
            speaker.send(&bytes)
        })?;
    }
    Ok(())
}

/// A speaker in an established session, once the agent is willing.
fn session(netns: &Netns, node: IpAddr, hold: u16) -> Result<Speaker> {
    eventually_ok(2 * SOON, "a session", || {
        let mut speaker = Speaker::connect(netns, node)?;
        speaker.establish(&open(ASN, hold, ID))?;
        Ok(speaker)
    })
}

fn treat_as_withdraw(lab: &Lab) -> Result<()> {
    let (cluster, netns, node) = scene(lab)?;
    let kernel = cluster.netns("n1")?;
    let mut speaker = session(&netns, node, 90)?;
    let to = prefix("10.9.9.0/24")?;
    let nlri = [24, 10, 9, 9];
    let good = attributes(0, ASN, HOP);
    let without_hop = good.get(..good.len() - 7).context("attributes")?.to_vec();
    let broken: [(&str, Vec<u8>); 4] = [
        ("an ORIGIN that is not", attributes(9, ASN, HOP)),
        ("no NEXT_HOP", without_hop),
        (
            "a MED of three octets",
            [good.clone(), vec![0x80, 4, 3, 0, 0, 0]].concat(),
        ),
        (
            "communities of five octets",
            [good.clone(), vec![0xc0, 8, 5, 0, 0, 0, 0, 0]].concat(),
        ),
    ];
    for (what, attributes) in broken {
        speaker.send(&update(&good, &nlri))?;
        wait_kernel_route(kernel, to).with_context(|| format!("before {what}"))?;
        speaker.send(&update(&attributes, &nlri))?;
        wait_no_kernel_route(kernel, to).with_context(|| what.to_owned())?;
    }
    // What may be dropped alone leaves the route: ATOMIC_AGGREGATE with a body.
    speaker.send(&update(
        &[good.clone(), vec![0x40, 6, 1, 0]].concat(),
        &nlri,
    ))?;
    wait_kernel_route(kernel, to).context("an attribute that is discarded")?;
    let peers = cluster_peers(cluster)?;
    ensure!(
        peers.iter().any(|peer| peer.up && peer.established == 1),
        "{peers:?}"
    );
    Ok(())
}

fn cluster_peers(mut cluster: Cluster) -> Result<Vec<selvage_lab::agent::Peer>> {
    cluster.node("n1")?.agent.peers()
}

fn hold_time(lab: &Lab) -> Result<()> {
    let (cluster, netns, node) = scene(lab)?;
    let mut speaker = session(&netns, node, 3)?;
    speaker.send(&update(&attributes(0, ASN, HOP), &[24, 10, 9, 9]))?;
    let to = prefix("10.9.9.0/24")?;
    wait_kernel_route(cluster.netns("n1")?, to)?;
    let ended = speaker.notification()?;
    ensure!(ended == (4, 0), "ended with {ended:?}");
    // Without graceful restart negotiated, its routes go with it.
    wait_no_kernel_route(cluster.netns("n1")?, to)
}
