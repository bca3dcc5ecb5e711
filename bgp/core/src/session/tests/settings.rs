//! The table of `reconfigure`: every field, and whether a session survives its change.

use super::{network::Network, *};
use crate::{
    config::{FilterRef, MaxPrefix, MaxPrefixAction, Password},
    ids::{Family, FamilySet},
    session::Input,
};

type Change = fn(&mut SpeakerConfig, &mut PeerConfig);

#[test]
fn what_resets_a_session_and_what_does_not() {
    let other: std::net::IpAddr = "10.9.9.9".parse().unwrap();
    assert_eq!(other.to_string(), "10.9.9.9");
    // name, change, reset of an external session, of an internal one
    let cases: Vec<(&str, Change, bool, bool)> = vec![
        ("nothing", |_, _| {}, false, false),
        (
            "description",
            |_, p| p.description = "x".into(),
            false,
            false,
        ),
        (
            "import",
            |_, p| p.import = vec![FilterRef::RejectAll],
            false,
            false,
        ),
        (
            "export",
            |_, p| p.export = vec![FilterRef::RejectAll],
            false,
            false,
        ),
        (
            "require_policy",
            |_, p| p.require_policy = true,
            false,
            false,
        ),
        ("next_hop_self", |_, p| p.next_hop_self = true, false, false),
        (
            "next_hop_unchanged",
            |_, p| p.next_hop_unchanged = true,
            false,
            false,
        ),
        ("allow_own_as", |_, p| p.allow_own_as = 3, false, false),
        (
            "route_reflector_client",
            |_, p| p.route_reflector_client = true,
            false,
            false,
        ),
        (
            "max_prefix",
            |_, p| {
                p.max_prefix = Some(MaxPrefix {
                    limit: 9,
                    warn_at: None,
                    action: MaxPrefixAction::Warn,
                })
            },
            false,
            false,
        ),
        (
            "networks",
            |s, _| s.networks = vec!["10.0.0.0/8".parse().unwrap()],
            false,
            false,
        ),
        ("maximum_paths", |s, _| s.maximum_paths = 4, false, false),
        (
            "connected",
            |s, _| s.connected = vec!["10.0.0.0/8".parse().unwrap()],
            false,
            false,
        ),
        (
            "cluster_id",
            |s, _| s.cluster_id = Some(RouterId(9)),
            false,
            false,
        ),
        (
            "listen",
            |s, _| s.listen = vec!["0.0.0.0:179".parse().unwrap()],
            false,
            false,
        ),
        ("hold", |_, p| p.timers.hold = secs(90), false, false),
        (
            "keepalive",
            |_, p| p.timers.keepalive = secs(1),
            false,
            false,
        ),
        (
            "connect_retry",
            |_, p| p.timers.connect_retry = secs(9),
            false,
            false,
        ),
        (
            "send_hold",
            |_, p| p.timers.send_hold = secs(60),
            false,
            false,
        ),
        (
            "stale_path_time",
            |s, _| s.graceful_restart.stale_path_time = secs(60),
            false,
            false,
        ),
        (
            "graceful_restart of the peer",
            |_, p| p.graceful_restart = false,
            false,
            false,
        ),
        (
            "graceful_restart",
            |s, _| s.graceful_restart.enabled = false,
            false,
            false,
        ),
        ("port", |_, p| p.port = 1179, false, false),
        ("passive", |_, p| p.passive = true, false, false),
        (
            "asn: external",
            |_, p| p.asn = PeerAsn::External,
            false,
            true,
        ),
        (
            "asn: internal",
            |_, p| p.asn = PeerAsn::Internal,
            true,
            false,
        ),
        (
            "asn: another",
            |_, p| p.asn = PeerAsn::Exactly(Asn(7)),
            true,
            true,
        ),
        (
            "local_address as it is",
            |_, p| p.local_address = Some("10.0.0.1".parse().unwrap()),
            false,
            false,
        ),
        (
            "local_address",
            |_, p| p.local_address = Some("10.9.9.9".parse().unwrap()),
            true,
            true,
        ),
        (
            "families",
            |_, p| p.families = FamilySet::from_iter([Family::Ipv4]),
            true,
            true,
        ),
        (
            "no next hop for IPv6",
            |s, _| s.assume_reachable = false,
            false,
            false,
        ),
        (
            "another reason for the same families",
            |s, _| {
                s.assume_reachable = false;
                s.local_address = [None, Some("fd00::1".parse().unwrap())];
            },
            false,
            false,
        ),
        (
            "local_asn as it is",
            |s, p| p.local_asn = Some(s.asn),
            false,
            false,
        ),
        ("local_asn", |_, p| p.local_asn = Some(Asn(5)), true, true),
        ("asn of the speaker", |s, _| s.asn = Asn(5), true, true),
        ("router_id", |s, _| s.router_id = RouterId(77), true, true),
        (
            "password",
            |_, p| p.password = Password::new(b"secret"),
            true,
            true,
        ),
        ("multihop", |_, p| p.multihop = Some(4), true, false),
        ("ttl_security", |_, p| p.ttl_security = Some(1), true, true),
    ];
    for (name, change, external, internal) in cases {
        for (peer_asn, reset) in [(64513, external), (64512, internal)] {
            let mut network = Network::pair((64512, 1), (peer_asn, 2));
            network.start_all();
            assert!(network.run_until(secs(10), Network::all_established));
            network.run(secs(10));
            let mut s = (*network.nodes[0].speaker).clone();
            let mut p = (*network.slot(0).config).clone();
            change(&mut s, &mut p);
            let at = network.now;
            network.input(0, 0, Input::Configure(arc(s), arc(p)));
            let words = network.slot(0).words(at);
            let expected: &[&str] = match reset {
                true => {
                    &["down: sent notification: 6/6 other configuration change; keeps {Ipv4, Ipv6}"]
                }
                false => &[],
            };
            assert_eq!(words, expected, "{name}, AS {peer_asn}");
        }
    }
}

#[test]
fn passive_stops_attempts_and_its_end_starts_them() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(1, |_, p| p.passive = true);
    network.nodes[1].listening = false;
    network.start_all();
    network.run(secs(20));
    let with = |passive| {
        let mut p = neighbor(2, 64513);
        p.passive = passive;
        arc(p)
    };
    let s = network.nodes[0].speaker.clone();
    network.input(0, 0, Input::Configure(s.clone(), with(true)));
    network.nodes[1].listening = true;
    network.run(secs(20));
    assert!(network.slot(0).peer.conns.is_empty());
    network.input(0, 0, Input::Configure(s, with(false)));
    assert!(network.run_until(secs(5), Network::all_established));
}

/// The neighbour has found another address of ours than we would use ourselves. That is no reason to end its session
/// whenever anything changes.
#[test]
fn a_session_at_another_of_our_addresses_survives_unrelated_changes() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(0, |_, p| {
        p.passive = true;
        p.local_address = Some("10.9.9.9".parse().unwrap());
    });
    network.start_all();
    assert!(network.run_until(secs(10), Network::all_established));
    let at = network.now;
    let mut p = (*network.slot(0).config).clone();
    p.description = "x".into();
    let s = network.nodes[0].speaker.clone();
    network.input(0, 0, Input::Configure(s, arc(p)));
    assert!(network.slot(0).words(at).is_empty());
}

/// An address that goes and comes back, as those of a link that flaps do, ends no session.
#[test]
fn a_next_hop_of_the_other_family_goes_and_comes() {
    let with = |v6: Option<&str>| {
        let mut s = speaker(64512, 1);
        s.assume_reachable = false;
        s.local_address = [None, v6.map(|a| a.parse().unwrap())];
        arc(s)
    };
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(0, |s, _| *s = (*with(Some("fd00::1"))).clone());
    network.start_all();
    assert!(network.run_until(secs(10), Network::all_established));
    network.run(secs(10));
    let (at, p) = (network.now, network.slot(0).config.clone());
    for v6 in [None, Some("fd00::1"), Some("fd00::2"), None] {
        network.input(0, 0, Input::Configure(with(v6), p.clone()));
        assert!(network.slot(0).words(at).is_empty(), "{v6:?}");
    }
}

/// A family that was not offered needs a new session.
#[test]
fn a_first_next_hop_of_the_other_family_is_offered() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(0, |s, _| s.assume_reachable = false);
    network.start_all();
    assert!(network.run_until(secs(10), Network::all_established));
    network.run(secs(10));
    let (at, p) = (network.now, network.slot(0).config.clone());
    let mut s = (*network.nodes[0].speaker).clone();
    s.local_address = [None, Some("fd00::1".parse().unwrap())];
    network.input(0, 0, Input::Configure(arc(s), p));
    assert_eq!(network.slot(0).words(at).len(), 1);
    assert!(network.run_until(secs(10), Network::all_established));
    let session = network.slot(0).peer.negotiated().unwrap();
    assert!(session.families.contains(Family::Ipv6));
}

/// What waits for the next OPEN is shown, is told to those who watch the peer, and is over with the next session.
#[test]
fn settings_that_wait_for_the_next_session_are_shown() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.start_all();
    assert!(network.run_until(secs(10), Network::all_established));
    let shown = |network: &Network| {
        let peer = &network.slot(0).peer;
        (peer.snapshot(network.now).next_open, peer.outline())
    };
    let (before, told) = shown(&network);
    assert_eq!(before, None);
    let s = network.nodes[0].speaker.clone();
    let mut p = (*network.slot(0).config).clone();
    let present = p.timers.hold;
    p.timers.hold = present + secs(21);
    p.graceful_restart = false;
    network.input(0, 0, Input::Configure(s.clone(), arc(p.clone())));
    let (waiting, told_now) = shown(&network);
    let waiting = waiting.unwrap();
    assert_eq!(waiting.hold, present + secs(21));
    assert_eq!((waiting.restart_time, waiting.long_lived), (None, None));
    assert_ne!(told, told_now);
    // The running session keeps what was negotiated.
    assert_eq!(network.slot(0).peer.negotiated().unwrap().hold, present);
    p.ttl_security = Some(1);
    network.input(0, 0, Input::Configure(s, arc(p)));
    assert!(network.run_until(secs(10), Network::all_established));
    assert_eq!(shown(&network).0, None);
}
