//! Sessions between real peers: coming up, colliding, breaking, restarting.

use bytes::BytesMut;

use super::{network::Network, *};
use crate::{
    clock::Now,
    event::DownReason,
    ids::{Family, FamilySet, RouterId},
    session::{Input, State, Stop},
    wire::{
        header,
        pack::{EncodeOptions, write_end_of_rib, write_reach},
    },
};

fn up(network: &mut Network) -> Now {
    assert!(network.run_until(secs(10), Network::all_established));
    network.run(secs(6));
    assert!(network.all_established());
    network.now
}

/// External speakers at both ends; the identifiers decide collisions.
fn external() -> Network {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.start_all();
    network
}

fn internal() -> Network {
    let mut network = Network::pair((64512, 1), (64512, 2));
    network.start_all();
    network
}

/// The families of which node 0 keeps routes of an earlier session.
fn stale(network: &Network) -> FamilySet {
    let snapshot = network.slot(0).peer.snapshot(network.now);
    snapshot.stale.iter().map(|s| s.family).collect()
}

fn end_of_rib(network: &mut Network, node: usize) {
    let mut out = BytesMut::new();
    Family::ALL
        .iter()
        .for_each(|f| write_end_of_rib(&mut out, *f));
    network.inject(node, 0, &out);
    network.run(secs(1));
}

#[test]
fn both_sides_connect_at_once_and_one_session_is_left() {
    for (a, b) in [(1, 2), (2, 1)] {
        for delay in [0, 1, 5, 100, 400] {
            let mut network = Network::mesh(&[(64512, a), (64513, b)], delay);
            network.start_all();
            assert!(network.run_until(secs(10), Network::all_established));
            network.run(secs(30));
            for node in 0..2 {
                assert_eq!(
                    network.slot(node).words(Now::default()),
                    ["up"],
                    "{delay} ms"
                );
                assert_eq!(network.slot(node).peer.conns.len(), 1);
            }
        }
    }
}

#[test]
fn a_mesh_comes_up_and_stays() {
    let speakers: Vec<_> = (1..=5).map(|i| (64512, i)).collect();
    let mut network = Network::mesh(&speakers, 20);
    network.start_all();
    up(&mut network);
    network.run(secs(300));
    for node in &network.nodes {
        for slot in &node.slots {
            assert_eq!(slot.words(Now::default()), ["up"]);
            let n = slot.peer.negotiated().unwrap();
            assert!(n.internal && n.families == FamilySet::ALL);
        }
    }
}

#[test]
fn a_passive_peer_waits_and_two_of_them_never_meet() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(0, |_, p| p.passive = true);
    network.start_all();
    up(&mut network);
    assert!(!network.slot(0).peer.conns[0].outgoing);
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(0, |_, p| p.passive = true);
    network.configure(1, |_, p| p.passive = true);
    network.start_all();
    network.run(secs(60));
    assert_eq!(network.slot(0).peer.state(), State::Active);
}

#[test]
fn a_silent_link_ends_by_the_hold_time_and_keeps_routes_with_n() {
    let mut network = external();
    let at = up(&mut network);
    network.silent = true;
    network.run(secs(10));
    for node in 0..2 {
        assert_eq!(
            network.slot(node).words(at),
            ["down: sent notification: 4/0 hold timer expired; keeps {Ipv4, Ipv6}"]
        );
    }
    // It does not come back in the restart time.
    let at = network.now;
    network.run(secs(130));
    assert_eq!(network.slot(0).words(at), ["drop {Ipv4, Ipv6}"]);
    network.silent = false;
    network.run(secs(80));
    assert!(network.all_established());
}

/// RFC 9494: after the restart time for as long as both want, the one who wants less decides.
#[test]
fn what_is_kept_is_a_last_resort_after_the_restart_time() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    for (node, time) in [(0, 600), (1, 300)] {
        network.configure(node, |s, _| {
            s.graceful_restart.long_lived = Some(secs(time))
        });
    }
    network.start_all();
    let at = up(&mut network);
    network.silent = true;
    network.run(secs(10));
    assert_eq!(
        network.slot(0).words(at),
        ["down: sent notification: 4/0 hold timer expired; keeps {Ipv4, Ipv6}"]
    );
    let long_lived = |network: &Network| {
        let stale = network.slot(0).peer.snapshot(network.now).stale;
        stale.iter().map(|s| s.long_lived).collect::<Vec<_>>()
    };
    assert_eq!(long_lived(&network), [false, false]);
    let at = network.now;
    network.run(secs(130));
    assert_eq!(network.slot(0).words(at), ["long-lived {Ipv4, Ipv6}"]);
    assert_eq!(long_lived(&network), [true, true]);
    let at = network.now;
    network.run(secs(280));
    assert!(network.slot(0).words(at).is_empty());
    network.run(secs(20));
    assert_eq!(network.slot(0).words(at), ["drop {Ipv4, Ipv6}"]);
    assert_eq!(long_lived(&network), []);
}

/// A node whose host does not answer either is dead, and what it carried is dead with it.
#[test]
fn in_one_as_a_host_that_does_not_answer_keeps_nothing() {
    let mut network = internal();
    let at = up(&mut network);
    network.silent = true;
    network.run(secs(10));
    let kept = "down: sent notification: 4/0 hold timer expired; keeps {Ipv4, Ipv6}";
    assert_eq!(network.slot(0).words(at), [kept]);
    let at = network.now;
    network.run(secs(10));
    assert_eq!(network.slot(0).words(at), ["drop {Ipv4, Ipv6}"]);
    // One that refuses is alive, and forwards: it is waited for.
    let mut network = internal();
    let at = up(&mut network);
    network.silent = true;
    let down = |network: &Network| network.slot(0).peer.state() != State::Established;
    assert!(network.run_until(secs(10), down));
    network.silent = false;
    network.kill(1, true);
    network.run(secs(60));
    assert_eq!(network.slot(0).words(at), [kept]);
}

#[test]
fn a_killed_peer_is_waited_for_and_its_routes_stay_until_end_of_rib() {
    let mut network = external();
    let at = up(&mut network);
    network.kill(1, true);
    network.run(secs(20));
    assert_eq!(
        network.slot(0).words(at),
        ["down: connection closed by the peer; keeps {Ipv4, Ipv6}"]
    );
    let at = network.now;
    network.boot(1, true);
    network.start(1);
    up(&mut network);
    let restart = network
        .slot(0)
        .peer
        .negotiated()
        .unwrap()
        .graceful_restart
        .unwrap();
    assert!(restart.restarting && restart.notification);
    assert_eq!(restart.forwarding, FamilySet::ALL);
    assert_eq!(network.slot(0).words(at), ["up"]);
    assert_eq!(stale(&network), FamilySet::ALL);
    end_of_rib(&mut network, 1);
    assert_eq!(
        network.slot(0).words(at),
        ["up", "end of ipv4", "end of ipv6"]
    );
    assert_eq!(stale(&network), FamilySet::NONE);
}

#[test]
fn what_comes_back_without_its_routes_loses_them_at_once() {
    // A cold start: no F bit.
    let mut network = external();
    up(&mut network);
    network.kill(1, true);
    network.run(secs(2));
    let at = network.now;
    network.boot(1, false);
    network.start(1);
    up(&mut network);
    assert_eq!(network.slot(0).words(at), ["up", "drop {Ipv4, Ipv6}"]);
    // Back, but without IPv6.
    let mut network = external();
    up(&mut network);
    network.kill(1, true);
    let at = network.now;
    network.configure(1, |_, p| p.families = FamilySet::from_iter([Family::Ipv4]));
    network.boot(1, true);
    network.start(1);
    up(&mut network);
    let words = network.slot(0).words(at);
    assert_eq!(words[1..], ["up", "drop {Ipv6}"]);
}

#[test]
fn who_never_finishes_loses_what_is_stale() {
    let mut network = external();
    up(&mut network);
    network.reset_connections();
    let at = up(&mut network);
    network.run(secs(400));
    assert_eq!(network.slot(0).words(at), ["drop {Ipv4, Ipv6}"]);
    // The time is a setting.
    let mut network = external();
    network.configure(0, |s, _| s.graceful_restart.stale_path_time = secs(12));
    network.start(0);
    up(&mut network);
    network.reset_connections();
    let at = up(&mut network);
    network.run(secs(4));
    assert_eq!(network.slot(0).words(at), [""; 0]);
    network.run(secs(4));
    assert_eq!(network.slot(0).words(at), ["drop {Ipv4, Ipv6}"]);
}

#[test]
fn a_second_restart_before_the_end_drops_what_was_stale() {
    let mut network = external();
    up(&mut network);
    network.reset_connections();
    let at = up(&mut network);
    network.reset_connections();
    let words = network.slot(0).words(at);
    assert_eq!(words[0], "drop {Ipv4, Ipv6}");
    assert!(words[1].starts_with("down: connection closed"));
}

#[test]
fn a_second_restart_in_one_as_drops_nothing() {
    let mut network = internal();
    up(&mut network);
    network.reset_connections();
    let at = up(&mut network);
    network.reset_connections();
    let words = network.slot(0).words(at);
    assert!(words[0].starts_with("down: connection closed"), "{words:?}");
    assert!(words[0].ends_with("keeps {Ipv4, Ipv6}"), "{words:?}");
    // And never back: all of it goes in the end.
    network.kill(1, true);
    network.run(secs(400));
    let words = network.slot(0).words(at);
    assert_eq!(words.last().map(String::as_str), Some("drop {Ipv4, Ipv6}"));
}

#[test]
fn a_restart_that_nobody_noticed() {
    let mut network = external();
    let at = up(&mut network);
    network.kill(1, false);
    network.boot(1, true);
    network.start(1);
    assert!(network.run_until(secs(5), Network::all_established));
    assert_eq!(
        network.slot(0).words(at),
        [
            "down: connection closed by the peer; keeps {Ipv4, Ipv6}",
            "up"
        ]
    );
    // A cold start has no restart bit, and is a restart all the same: it is not refused until the hold time ends.
    let mut network = external();
    let at = up(&mut network);
    network.kill(1, false);
    network.boot(1, false);
    network.start(1);
    let hold = network.slot(0).peer.negotiated().unwrap().hold;
    assert!(network.run_until(hold - secs(1), |n| n.slot(0).words(at).len() == 3));
    assert_eq!(
        network.slot(0).words(at),
        [
            "down: connection closed by the peer; keeps {Ipv4, Ipv6}",
            "up",
            "drop {Ipv4, Ipv6}"
        ]
    );
}

#[test]
fn who_does_not_replace_a_session_that_works() {
    // Somebody with another identifier.
    let mut network = external();
    let at = up(&mut network);
    network.run(secs(6));
    network.kill(1, false);
    network.configure(1, |s, _| s.router_id = RouterId(99));
    network.start(1);
    network.run(secs(2));
    assert!(network.slot(0).words(at).is_empty());
    // Anybody, where graceful restart was not negotiated.
    let mut network = external();
    network.configure(0, |_, p| p.graceful_restart = false);
    network.start(0);
    let at = up(&mut network);
    network.run(secs(6));
    network.kill(1, false);
    network.boot(1, false);
    network.start(1);
    network.run(secs(2));
    assert!(network.slot(0).words(at).is_empty());
}

#[test]
fn ways_to_stop() {
    for (how, remote, local) in [
        (
            Stop::Shutdown("bye".into()),
            "received notification: 6/9 hard reset (6/2 administrative shutdown) \"bye\"; keeps {}",
            "sent notification: 6/9 hard reset (6/2 administrative shutdown) \"bye\"; keeps {}",
        ),
        (
            Stop::Removed,
            "received notification: 6/9 hard reset (6/3 peer de-configured); keeps {}",
            "removed from the configuration; keeps {}",
        ),
        (
            Stop::Restart,
            "connection closed by the peer; keeps {Ipv4, Ipv6}",
            "local restart; keeps {Ipv4, Ipv6}",
        ),
    ] {
        let mut network = external();
        let at = up(&mut network);
        network.stop(1, &how);
        network.run(secs(1));
        assert_eq!(network.slot(0).words(at), [format!("down: {remote}")]);
        assert_eq!(network.slot(1).words(at), [format!("down: {local}")]);
        assert_eq!(network.slot(1).peer.state(), State::Idle);
        // And nothing comes back until somebody starts it.
        network.run(secs(30));
        assert_eq!(network.slot(1).peer.state(), State::Idle);
        network.start(1);
        up(&mut network);
    }
}

#[test]
fn without_graceful_restart_nothing_stays() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(1, |_, p| p.graceful_restart = false);
    network.start_all();
    let at = up(&mut network);
    network.reset_connections();
    assert_eq!(
        network.slot(0).words(at),
        ["down: connection closed by the peer; keeps {}"]
    );
}

#[test]
fn a_removed_peer_leaves_nothing_stale() {
    let mut network = external();
    up(&mut network);
    network.kill(1, true);
    network.run(secs(1));
    let at = network.now;
    network.stop(0, &Stop::Removed);
    assert_eq!(network.slot(0).words(at), ["drop {Ipv4, Ipv6}"]);
}

#[test]
fn refresh_reaches_the_other_side() {
    let mut network = external();
    let at = up(&mut network);
    network.input(0, 0, Input::RequestRefresh);
    network.run(secs(1));
    assert_eq!(network.slot(1).words(at), ["refresh ipv4", "refresh ipv6"]);
}

#[test]
fn routes_arrive_and_a_malformed_message_ends_the_session() {
    let mut network = external();
    let at = up(&mut network);
    let mut attrs =
        crate::wire::attr::PathAttributes::local(std::net::IpAddr::from([10, 0, 0, 2]).into());
    attrs.as_path = crate::wire::attr::AsPath::from_sequence(&[Asn(64513)]);
    let route = ["172.16.0.0/12".parse().unwrap()];
    let mut out = BytesMut::new();
    let opts = EncodeOptions::default();
    write_reach(
        &mut out,
        Family::Ipv4,
        &attrs,
        &opts,
        &mut route.iter().map(|p| (0, *p)),
    )
    .unwrap();
    let mut wrong_as = attrs.clone();
    wrong_as.as_path = crate::wire::attr::AsPath::from_sequence(&[Asn(1)]);
    write_reach(
        &mut out,
        Family::Ipv4,
        &wrong_as,
        &opts,
        &mut route.iter().map(|p| (0, *p)),
    )
    .unwrap();
    network.inject(1, 0, &out);
    network.run(secs(1));
    assert_eq!(
        network.slot(0).words(at),
        [
            "reach [172.16.0.0/12] by 10.0.0.2",
            "unreach [172.16.0.0/12]"
        ]
    );
    let snapshot = network.slot(0).peer.snapshot(network.now);
    let faults = snapshot.faults;
    let withdrawn = faults.counts[crate::session::FaultKind::TreatAsWithdraw.index()];
    assert_eq!(withdrawn.messages, 1);
    let text = faults.last.unwrap().1.to_string();
    assert!(text.contains("AS_PATH"), "{text}");
    // Garbage after a good message.
    let at = network.now;
    let mut garbage = header::keepalive().to_vec();
    garbage.extend_from_slice(b"GET / HTTP/1.1\r\nHost: example\r\n");
    network.inject(1, 0, &garbage);
    network.run(secs(1));
    let words = network.slot(0).words(at);
    assert_eq!(
        words,
        ["down: sent notification: 1/1 connection not synchronized; keeps {Ipv4, Ipv6}"]
    );
    network.run(secs(10));
    assert!(network.all_established());
}

#[test]
fn the_wrong_neighbour_is_refused_ever_less_often_and_accepted_when_it_is_right() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.configure(0, |_, p| p.asn = crate::config::PeerAsn::Exactly(Asn(9)));
    network.start_all();
    network.run(secs(600));
    let snapshot = network.slot(0).peer.snapshot(network.now);
    assert_eq!(
        snapshot.last_error.unwrap().1.text,
        "sent notification: 2/2 bad peer AS: the neighbour says AS 64513, AS 9 is configured"
    );
    assert!(
        (5..60).contains(&snapshot.messages_out[0]),
        "{:?}",
        snapshot.messages_out
    );
    let mut right = (*network.slot(0).config).clone();
    right.asn = crate::config::PeerAsn::Exactly(Asn(64513));
    let speaker = network.nodes[0].speaker.clone();
    network.input(0, 0, Input::Configure(speaker, arc(right)));
    assert!(network.run_until(secs(70), Network::all_established));
}

#[test]
fn too_many_prefixes() {
    use crate::config::{MaxPrefix, MaxPrefixAction};
    for (after, back) in [(None, false), (Some(secs(30)), true)] {
        let mut network = Network::pair((64512, 1), (64513, 2));
        network.configure(0, |_, p| {
            p.max_prefix = Some(MaxPrefix {
                limit: 1,
                warn_at: None,
                action: MaxPrefixAction::Reset { after },
            });
        });
        network.start_all();
        let at = up(&mut network);
        network.input(0, 0, Input::TooManyPrefixes);
        network.run(secs(20));
        assert_eq!(
            network.slot(0).words(at),
            [
                "down: sent notification: 6/9 hard reset (6/1 maximum number of prefixes reached); keeps {}"
            ]
        );
        assert_eq!(network.slot(0).peer.state(), State::Idle);
        network.run(secs(60));
        assert_eq!(network.all_established(), back);
    }
}

#[test]
fn the_restart_bit_is_set_once_and_for_a_while() {
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.boot(1, true);
    network.start(1);
    network.run(secs(10));
    network.start(0);
    up(&mut network);
    let bits = |n: &Network| {
        let r = n
            .slot(0)
            .peer
            .negotiated()
            .unwrap()
            .graceful_restart
            .unwrap();
        (r.restarting, !r.forwarding.is_empty())
    };
    assert_eq!(bits(&network), (true, true));
    network.reset_connections();
    up(&mut network);
    assert_eq!(bits(&network), (false, true));
    // Nobody to talk to for longer than the restart time.
    let mut network = Network::pair((64512, 1), (64513, 2));
    network.boot(1, true);
    network.start(1);
    network.run(secs(200));
    network.start(0);
    up(&mut network);
    assert_eq!(bits(&network), (false, true));
}

#[test]
fn who_is_down_when_is_told() {
    let mut network = external();
    let at = up(&mut network);
    network.stop(1, &Stop::Shutdown(String::new()));
    network.run(secs(1));
    let snapshot = network.slot(0).peer.snapshot(network.now);
    let (when, reason) = snapshot.last_down.unwrap();
    assert!(when >= at && matches!(reason, DownReason::Received(n) if n.is_hard_reset()));
    assert_eq!(snapshot.established, 1);
    assert!(snapshot.messages_in[3] > 1 && snapshot.messages_in[2] == 1);
    assert!(snapshot.uptime.is_none() && snapshot.negotiated.is_none());
}
