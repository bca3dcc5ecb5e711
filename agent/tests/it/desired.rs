//! The speaker that follows from objects: a table of worlds and of what each node makes of them.

use std::path::Path;

use selvage::desired::{self, Local};
use selvage::source::{ObjectEvent, yaml};
use selvage::store::Store;
use selvage_bgp_core::config::MaxPrefixAction;

const NODES: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {rack: a}}, spec: {podCIDRs: [10.244.1.0/24, 'fd00:1::/64']}, status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {rack: b}}, spec: {podCIDRs: [10.244.2.0/24]}, status: {addresses: [{type: InternalIP, address: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n3}, status: {addresses: [{type: InternalIP, address: 'fd00::3'}]}}
---
";

fn peer(name: &str, created: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: selvage.io/v1alpha1, kind: BGPPeer, metadata: {{name: {name}, creationTimestamp: '{created}'}}, spec: {{{spec}}}}}\n---\n"
    )
}

fn configuration(spec: &str) -> String {
    format!(
        "{{apiVersion: selvage.io/v1alpha1, kind: BGPConfiguration, metadata: {{name: default}}, spec: {{{spec}}}}}\n---\n"
    )
}

/// `address asn [flags]` for each neighbour, then the conditions that say that something is wrong.
fn speaker(node: &str, objects: &str) -> (desired::Speaker, Vec<String>) {
    let contents = yaml::read(Path::new("world.yaml"), &(NODES.to_owned() + objects));
    assert!(contents.problems.is_empty(), "{:?}", contents.problems);
    let mut store = Store::default();
    store.apply(
        contents
            .objects
            .into_iter()
            .map(|(object, _)| ObjectEvent::Applied(object)),
    );
    let speaker = desired::bgp(&store, &Local::new(node));
    let mut lines: Vec<String> = Vec::new();
    for config in &speaker.config.peers {
        let secret = if config.password.is_some() {
            " md5"
        } else {
            ""
        };
        lines.push(format!("{} {:?}{secret}", config.key.addr, config.asn));
    }
    for range in &speaker.config.ranges {
        let policy = if range.template.require_policy {
            " policy-required"
        } else {
            ""
        };
        lines.push(format!(
            "{} {:?}{policy} {:?}",
            range.prefix, range.template.asn, range.template.import
        ));
    }
    let bad = speaker
        .conditions
        .iter()
        .filter(|condition| condition.is_bad());
    lines.extend(bad.map(|condition| format!("! {} {}", condition.key, condition.name)));
    (speaker, lines)
}

#[test]
fn neighbours() {
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let tor = "address: 192.0.2.1, asn: 65001";
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: selvage-system}, stringData: {password: x}}\n---\n";
    let cases: &[(&str, &str, String, &[&str])] = &[
        (
            "nothing at all is a mesh",
            "n1",
            String::new(),
            &["10.0.0.2 Internal", "fd00::3 Internal"],
        ),
        (
            "no family in common is no session",
            "n2",
            String::new(),
            &["10.0.0.1 Internal"],
        ),
        (
            "a node that nobody knows has no mesh",
            "n9",
            String::new(),
            &[],
        ),
        (
            "the mesh is turned off by name",
            "n1",
            configuration("nodeMesh: {mode: 'off'}"),
            &[],
        ),
        (
            "a peer does not end the mesh",
            "n2",
            peer("tor", old, tor),
            &["10.0.0.1 Internal", "192.0.2.1 Exactly(AS65001)"],
        ),
        (
            "only selected nodes",
            "n2",
            peer(
                "tor",
                old,
                &format!("{tor}, nodeSelector: {{matchLabels: {{rack: a}}}}"),
            ),
            &["10.0.0.1 Internal"],
        ),
        (
            "explicit replaces mesh",
            "n2",
            peer("x", old, "address: 10.0.0.1, asn: 65009"),
            &["10.0.0.1 Exactly(AS65009)"],
        ),
        (
            "a node is no neighbour of itself",
            "n2",
            peer("x", old, "address: 10.0.0.2, asn: internal"),
            &["10.0.0.1 Internal"],
        ),
        (
            "older wins, whatever the names",
            "n2",
            peer("a", new, "address: 192.0.2.1, asn: 65002") + &peer("b", old, tor),
            &[
                "10.0.0.1 Internal",
                "192.0.2.1 Exactly(AS65001)",
                "! a Conflict",
            ],
        ),
        (
            "without its password there is no session",
            "n2",
            peer(
                "x",
                old,
                "address: 10.0.0.1, asn: internal, passwordSecretRef: {name: s}",
            ),
            &["! x PasswordMissing"],
        ),
        (
            "with it there is",
            "n2",
            secret.to_owned()
                + &peer(
                    "x",
                    old,
                    "address: 10.0.0.1, asn: internal, passwordSecretRef: {name: s}",
                ),
            &["10.0.0.1 Internal md5"],
        ),
        (
            "an external range needs a policy",
            "n9",
            peer(
                "r",
                old,
                "range: 10.0.0.0/8, asn: external, export: [accept-all]",
            ),
            &[
                "10.0.0.0/8 External policy-required []",
                "! r PolicyMissing",
            ],
        ),
        (
            "an internal one does not",
            "n9",
            peer("r", old, "range: 10.0.0.0/8, asn: internal"),
            &["10.0.0.0/8 Internal [Default]"],
        ),
        (
            "our own number is internal",
            "n9",
            peer("r", old, "range: 10.0.0.0/8, asn: 64512"),
            &["10.0.0.0/8 Exactly(AS64512) [Default]"],
        ),
    ];
    for (name, node, objects, expected) in cases {
        let (_, lines) = speaker(node, objects);
        assert_eq!(lines, *expected, "{name}");
    }
}

#[test]
fn what_the_speaker_is() {
    let (speaker, _) = self::speaker("n1", "");
    assert_eq!(speaker.config.asn.0, 64512);
    assert_eq!(speaker.config.router_id.to_string(), "10.0.0.1");
    let networks: Vec<String> = speaker
        .config
        .networks
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.244.1.0/24", "fd00:1::/64"]);
    assert_eq!(
        speaker.config.local_address,
        [
            Some("10.0.0.1".parse().unwrap()),
            Some("fd00::1".parse().unwrap())
        ]
    );
    assert!(speaker.config.graceful_restart.enabled && !speaker.config.assume_reachable);

    let (hashed, _) = self::speaker("n3", "");
    let (again, _) = self::speaker("n3", &configuration("routerId: hash"));
    assert_eq!(hashed.config.router_id, again.config.router_id);
    assert_ne!(hashed.config.router_id.0, 0);
    let (set, _) = self::speaker(
        "n3",
        &configuration("routerId: 1.2.3.4, advertise: {podCIDRs: false}, networks: [10.9.0.0/24]"),
    );
    assert_eq!(
        (set.config.router_id.to_string(), set.config.networks.len()),
        ("1.2.3.4".to_owned(), 1)
    );
}

/// The names of the first two have one FNV hash.
#[test]
fn a_router_id_that_two_nodes_have_is_said_and_can_be_set() {
    let node = |name: &str, annotation: &str| {
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, annotations: {{{annotation}}}}}, status: {{addresses: [{{type: InternalIP, address: 'fd00::{}'}}]}}}}\n---\n",
            &name[1..5]
        )
    };
    let said = |name: &str, annotation: &str, others: &str| {
        let objects = node("n512789", annotation) + &node("n749192", "") + others;
        let (speaker, lines) = speaker(name, &objects);
        let bad: Vec<String> = lines
            .into_iter()
            .filter(|line| line.starts_with('!'))
            .collect();
        let messages: Vec<String> = speaker.conditions.into_iter().map(|c| c.message).collect();
        (speaker.config.router_id, bad, messages)
    };
    let (one, bad, messages) = said("n512789", "", "");
    assert_eq!(bad, ["! n512789 RouterIDConflict"]);
    assert!(messages[0].contains("that of n749192, too"), "{messages:?}");
    let (other, bad, _) = said("n749192", "", "");
    assert_eq!(
        (other, bad),
        (one, vec!["! n749192 RouterIDConflict".into()])
    );
    // Nobody else is concerned.
    assert_eq!(said("n1", "", "").1, [""; 0]);
    let set = "selvage.io/router-id: 10.0.0.77";
    let (id, bad, _) = said("n512789", set, "");
    assert_eq!((id.to_string(), bad), ("10.0.0.77".into(), vec![]));
    assert_eq!(said("n749192", set, "").1, [""; 0]);
    // Another's address is no way out, nor is what is no address.
    let (_, bad, messages) = said("n512789", "selvage.io/router-id: 10.0.0.2", "");
    assert_eq!(bad, ["! n512789 RouterIDConflict"]);
    assert!(messages[0].contains("that of n2, too"), "{messages:?}");
    for wrong in ["0.0.0.0", "127.0.0.1", "'fd00::1'", "mine"] {
        let (id, bad, _) = said("n512789", &format!("selvage.io/router-id: {wrong}"), "");
        assert_eq!(id, one, "{wrong}");
        assert_eq!(bad, ["! n512789 BadRouterID", "! n512789 RouterIDConflict"]);
    }
    // One for all is a conflict as soon as there are two nodes.
    let (_, bad, messages) = said("n1", "", &configuration("routerId: 1.2.3.4"));
    assert_eq!(bad, ["! n1 RouterIDConflict"]);
    assert!(
        messages[0].contains("n2, n3, n512789 and 1 more"),
        "{messages:?}"
    );
}

#[test]
fn a_hold_time_alone_brings_its_keepalive() {
    let (speaker, _) = self::speaker(
        "n9",
        &peer(
            "x",
            "2026-01-01T00:00:00Z",
            "address: 192.0.2.1, asn: 65001, timers: {hold: 90s}",
        ),
    );
    let timers = speaker.config.peers[0].timers;
    assert_eq!(
        (
            timers.hold.as_secs(),
            timers.keepalive.as_secs(),
            timers.connect_retry.as_secs()
        ),
        (90, 30, 1)
    );
}

#[test]
fn limits_of_a_neighbour_are_settings() {
    let (speaker, _) = self::speaker(
        "n9",
        &[
            peer("a", "2026-01-01T00:00:00Z", "address: 192.0.2.1, asn: 65001"),
            peer(
                "b",
                "2026-01-01T00:00:00Z",
                "address: 192.0.2.2, asn: 65001, timers: {sendHold: 30s}, maxPrefix: {limit: 1, retryAfter: 7s}",
            ),
        ]
        .concat(),
    );
    let peers: Vec<_> = speaker.config.peers.iter().collect();
    let seconds: Vec<u64> = peers
        .iter()
        .map(|peer| peer.timers.send_hold.as_secs())
        .collect();
    assert!(
        seconds.contains(&480) && seconds.contains(&30),
        "{seconds:?}"
    );
    let after: Vec<_> = peers.iter().filter_map(|peer| peer.max_prefix).collect();
    let wanted = MaxPrefixAction::Reset {
        after: Some(std::time::Duration::from_secs(7)),
    };
    assert_eq!(after[0].action, wanted);
}

#[test]
fn blackholes_lie_under_what_is_announced() {
    let contents = yaml::read(Path::new("world.yaml"), NODES);
    let mut store = Store::default();
    store.apply(
        contents
            .objects
            .into_iter()
            .map(|(object, _)| ObjectEvent::Applied(object)),
    );
    let mut local = Local::new("n1");
    assert_eq!(desired::blackholes(&store, &local).len(), 2);
    local.kernel = false;
    assert!(desired::blackholes(&store, &local).is_empty());
}

/// Who comes by a range is shown with the object of the longest range that holds the address.
#[test]
fn a_neighbour_by_a_range_names_its_object() {
    let old = "2026-01-01T00:00:00Z";
    let objects = peer("wide", old, "range: 10.8.0.0/16, asn: internal")
        + &peer("narrow", old, "range: 10.8.9.0/24, asn: internal")
        + &peer("six", old, "range: 'fd08::/64', asn: internal");
    let (speaker, _) = speaker("n1", &objects);
    for (address, origin) in [
        ("10.8.1.1", "BGPPeer wide"),
        ("10.8.9.1", "BGPPeer narrow"),
        ("fd08::1", "BGPPeer six"),
        ("10.9.0.1", "range that is no more"),
    ] {
        let address = address.parse().unwrap();
        assert_eq!(speaker.origin(&address, false), origin, "{address}");
    }
}
