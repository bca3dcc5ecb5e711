//! RFC 4271 section 6 (errors and their codes), RFC 6608 (unexpected messages), RFC 7606 (what does not end a session).

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Cluster, Lab, Netns, eventually_ok};
use serde_json::json;

use super::speaker::{KEEPALIVE, OPEN, Speaker, UPDATE, attributes, header, message, open, update};
use crate::e2e::control::http;
use crate::harness::Case;
use crate::scene::{
    self, OWN, SOON, kernel_route, prefix, wait_kernel_route, wait_no_kernel_route,
};

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
            "conformance::survived_faults_are_counted_logged_and_shown",
            OWN,
            survived,
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

/// A node, and neighbours for which it waits, each with its namespace: 192.0.2.101 and on. One per mistake, for a speaker
/// rests longer after each mistake of the same neighbour.
struct Scene {
    cluster: Cluster,
    node: IpAddr,
    neighbours: Vec<Netns>,
}

impl Scene {
    fn new(lab: &Lab, count: u8) -> Result<Scene> {
        let text = "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}]
";
        let mut cluster = scene::cluster(lab, text)?;
        let mut neighbours = Vec::new();
        for number in 0..count {
            let (name, address) = (format!("peer{number}"), hop(number));
            let spec = json!({"address": address, "asn": ASN, "passive": true});
            cluster
                .objects()
                .write(&name, &selvage_lab::cluster::object("BGPPeer", &name, spec))?;
            let netns = lab.netns(&name)?;
            cluster
                .link("rack/n1")?
                .network()
                .join_with(&netns, &[prefix(&format!("{address}/24"))?])?;
            neighbours.push(netns);
        }
        cluster.start_node("n1")?;
        cluster
            .node("n1")?
            .agent
            .ask(&["wait", "--for", "synced", "--timeout", "30s"])?;
        let node = *cluster.addresses("n1").first().context("an address")?;
        Ok(Scene {
            cluster,
            node,
            neighbours,
        })
    }

    fn kernel(&self) -> Result<&Netns> {
        self.cluster.netns("n1")
    }

    /// A connection of the neighbour of this number.
    fn connect(&self, number: u8) -> Result<Speaker> {
        let netns = self
            .neighbours
            .get(usize::from(number))
            .context("no such neighbour")?;
        Speaker::connect(netns, self.node)
    }

    /// An established session with the neighbour of this number.
    fn session(&self, number: u8, hold: u16) -> Result<Speaker> {
        let mut speaker = self.connect(number)?;
        speaker.establish(&open(ASN, hold, ID))?;
        Ok(speaker)
    }
}

fn hop(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 101 + number)
}

fn ends_with(what: &str, mut speaker: Speaker, wanted: (u8, u8), bytes: &[u8]) -> Result<()> {
    speaker.send(bytes)?;
    let found = speaker.notification().with_context(|| what.to_owned())?;
    ensure!(
        found == wanted,
        "{what}: answered with {found:?}, wanted {wanted:?}"
    );
    Ok(())
}

fn before_established(lab: &Lab) -> Result<()> {
    let version = [&[9][..], &ASN.to_be_bytes(), &[0, 9], &ID, &[0]].concat();
    // An optional parameter of type 1 (authentication) is deprecated, and none but capabilities is known.
    let parameter = [&[4][..], &ASN.to_be_bytes(), &[0, 9], &ID, &[3, 1, 1, 0]].concat();
    let table: [(&str, Vec<u8>, (u8, u8)); 12] = [
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
        (
            "a KEEPALIVE before the OPEN",
            message(KEEPALIVE, &[]),
            (5, 1),
        ),
    ];
    let scene = Scene::new(lab, 13)?;
    for (number, (what, bytes, wanted)) in (0..).zip(&table) {
        ends_with(what, scene.connect(number)?, *wanted, bytes)?;
    }
    let mut speaker = scene.connect(12)?;
    speaker.send(&open(ASN, 9, ID))?;
    speaker.expect(OPEN)?;
    let early = update(&attributes(0, ASN, hop(12)), &[24, 10, 9, 9]);
    ends_with("an UPDATE before the KEEPALIVE", speaker, (5, 2), &early)
}

fn established(lab: &Lab) -> Result<()> {
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
            update(&attributes(0, ASN, hop(3)), &[33, 10, 9, 9, 0, 0]),
            (3, 10),
        ),
    ];
    let scene = Scene::new(lab, 4)?;
    for (number, (what, bytes, wanted)) in (0..).zip(&table) {
        ends_with(what, scene.session(number, 9)?, *wanted, bytes)?;
    }
    Ok(())
}

fn treat_as_withdraw(lab: &Lab) -> Result<()> {
    let mut scene = Scene::new(lab, 1)?;
    let kernel = scene.kernel()?.clone();
    let mut speaker = scene.session(0, 90)?;
    let to = prefix("10.9.9.0/24")?;
    let nlri = [24, 10, 9, 9];
    let good = attributes(0, ASN, hop(0));
    let without_hop = good.get(..good.len() - 7).context("attributes")?.to_vec();
    let broken: [(&str, Vec<u8>); 4] = [
        ("an ORIGIN that is not", attributes(9, ASN, hop(0))),
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
        wait_kernel_route(&kernel, to).with_context(|| format!("before {what}"))?;
        speaker.send(&update(&attributes, &nlri))?;
        wait_no_kernel_route(&kernel, to).with_context(|| what.to_owned())?;
    }
    // What may be dropped alone leaves the route: ATOMIC_AGGREGATE with a body.
    speaker.send(&update(
        &[good.clone(), vec![0x40, 6, 1, 0]].concat(),
        &nlri,
    ))?;
    wait_kernel_route(&kernel, to).context("an attribute that is discarded")?;
    let peers = scene.cluster.node("n1")?.agent.peers()?;
    ensure!(
        peers.iter().any(|peer| peer.up && peer.established == 1),
        "{peers:?}"
    );
    Ok(())
}

/// RFC 7606 section 6: what a session survives is counted by kind and shown with the last one; the log has the
/// prefixes and the whole message.
fn survived(lab: &Lab) -> Result<()> {
    let mut scene = Scene::new(lab, 2)?;
    let mut speaker = scene.session(0, 90)?;
    let good = attributes(0, ASN, hop(0));
    let nlri = [24, 10, 9, 9, 16, 10, 8];
    let discarded = [good.clone(), vec![0x40, 6, 1, 0]].concat();
    let ours = match scene.node {
        IpAddr::V4(node) => attributes(0, ASN, node),
        IpAddr::V6(node) => bail!("{node} is not IPv4"),
    };
    let unreachable = attributes(0, ASN, Ipv4Addr::new(198, 51, 100, 1));
    let messages = [
        update(&discarded, &nlri),
        update(&attributes(9, ASN, hop(0)), &nlri),
        update(&ours, &nlri),
        update(&unreachable, &nlri),
    ];
    for message in &messages {
        speaker.send(message)?;
    }
    // The other neighbour says it is of another AS.
    let refused = scene.connect(1)?;
    ends_with("another AS", refused, (2, 2), &open(65003, 9, ID))?;

    let agent = &mut scene.cluster.node("n1")?.agent;
    let wanted = json!([
        {"kind": "treatAsWithdraw", "messages": 2, "prefixes": 4},
        {"kind": "attributeDiscard", "messages": 1, "prefixes": 2},
        {"kind": "unusableNextHop", "messages": 1, "prefixes": 2},
    ]);
    eventually_ok(SOON, "the faults are counted", || {
        let peers = agent.json(&["peers", "192.0.2.101"])?;
        ensure!(peers.pointer("/0/faults") == Some(&wanted), "{peers}");
        Ok(())
    })?;
    let peers = agent.json(&["peers", "192.0.2.101"])?;
    let last = peers.pointer("/0/lastFault").context("no last fault")?;
    ensure!(
        last["kind"] == "unusableNextHop" && last["prefixes"] == 2,
        "{last}"
    );
    let text = agent.ask(&["peers", "192.0.2.101"])?;
    for said in [
        "treated as withdrawn in 2 messages, 4 prefixes",
        "198.51.100.1",
    ] {
        ensure!(text.contains(said), "{said}: {text}");
    }
    let text = agent.ask(&["peers", "192.0.2.102"])?;
    for said in ["says AS 65003, AS 65002 is configured", "correct `asn`"] {
        ensure!(text.contains(said), "{said}: {text}");
    }
    let (_, metrics) = http(agent.netns(), "/metrics")?;
    for line in [
        r#"selvage_bgp_peer_faults_total{kind="treatAsWithdraw",peer="192.0.2.101"} 2"#,
        r#"selvage_bgp_peer_fault_prefixes_total{kind="attributeDiscard",peer="192.0.2.101"} 2"#,
        r#"selvage_bgp_peer_faults_total{kind="openRefused",peer="192.0.2.102"} 1"#,
    ] {
        ensure!(metrics.contains(line), "{line}: {metrics}");
    }
    let log = agent.process().output();
    let invalid_origin = messages
        .get(1)
        .and_then(|m| m.get(19..))
        .context("a body")?;
    let hex: String = invalid_origin.iter().map(|o| format!("{o:02x}")).collect();
    for said in [
        &hex,
        "10.9.9.0/24, 10.8.0.0/16",
        "ORIGIN, code 3/6, 2 prefixes",
    ] {
        ensure!(log.contains(said), "{said} is not in the log:\n{log}");
    }
    Ok(())
}

fn hold_time(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, 1)?;
    let mut speaker = scene.session(0, 3)?;
    speaker.send(&update(&attributes(0, ASN, hop(0)), &[24, 10, 9, 9]))?;
    let to = prefix("10.9.9.0/24")?;
    eventually_ok(SOON, "its route is in the kernel", || {
        // Alive until then, however long it takes.
        speaker.send(&message(KEEPALIVE, &[]))?;
        kernel_route(scene.kernel()?, to)?.context("there is none")
    })?;
    let ended = speaker.notification()?;
    ensure!(ended == (4, 0), "ended with {ended:?}");
    // Without graceful restart negotiated, its routes go with it.
    wait_no_kernel_route(scene.kernel()?, to)
}
