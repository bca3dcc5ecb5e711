//! Single stories, each about one thing that the RIB promises.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{attrs_via, negotiated, peer_config, shell::Shell, speaker};
use crate::{
    clock::Now,
    config::{FilterRef, MaxPrefix, MaxPrefixAction, PeerConfig, RangeConfig, SpeakerConfig},
    event::{DownReason, Negotiated, PeerEvent, PeerRestart},
    ids::{Asn, Epoch, Family, FamilySet, PeerIdx, PeerKey, RouterId},
    prefix::Prefix,
    rib::{Listing, Query, Rejection, Restarted, Rib, RibInput, RibOutput, Step},
    wire::attr::PathAttributes,
};

const ASN: u32 = 64512;

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn shell(config: &SpeakerConfig) -> Shell {
    Shell::new(Rib::new(Arc::new(config.clone()), Now(0)))
}

/// Brings up peer `idx` (10.0.0.`idx + 1`) in `asn`.
fn up_with(
    shell: &mut Shell,
    idx: u16,
    asn: u32,
    config: impl Fn(&mut PeerConfig),
    session: impl Fn(&mut Negotiated),
) {
    let last = idx as u8 + 1;
    let mut peer = peer_config(last, asn);
    config(&mut peer);
    let mut agreed = negotiated(&speaker(ASN), &peer, last);
    session(&mut agreed);
    shell.apply(RibInput::Peer(PeerIdx(idx), Arc::new(peer)));
    shell.up(PeerIdx(idx), Epoch(1), agreed);
}

fn up(shell: &mut Shell, idx: u16, asn: u32) {
    up_with(
        shell,
        idx,
        asn,
        |c| c.route_reflector_client = asn == ASN,
        |_| (),
    );
}

fn internal(idx: u16) -> PathAttributes {
    PathAttributes {
        local_pref: Some(100),
        ..attrs_via([10, 0, 0, idx as u8 + 1], &[])
    }
}

/// What a poll puts into logs: recipients and octets.
fn logged(shell: &mut Shell) -> Vec<String> {
    let mut out = Vec::new();
    while shell.rib.poll(shell.now, 100, &mut out) {}
    let chunks = out.into_iter().filter_map(|o| match o {
        RibOutput::Log { chunk, .. } => Some(chunk),
        _ => None,
    });
    let to = chunks.map(|c| match (c.skip, c.only) {
        (Some(skip), _) => format!("all but {}", skip.0),
        (None, Some(only)) => format!("only {:?}", only.iter().map(|p| p.0).collect::<Vec<_>>()),
        (None, None) => "all".to_owned(),
    });
    to.collect()
}

#[test]
fn a_best_path_that_moves_is_announced_to_one_and_withdrawn_from_the_other() {
    let mut s = shell(&speaker(ASN));
    for idx in 0..3 {
        up(&mut s, idx, ASN);
    }
    s.reach(PeerIdx(0), &internal(0), &[p("10.9.0.0/16")]);
    s.settle();
    let better = PathAttributes {
        local_pref: Some(200),
        ..internal(1)
    };
    s.reach(PeerIdx(1), &better, &[p("10.9.0.0/16")]);
    assert_eq!(logged(&mut s), ["only [1]", "all but 1"]);
    s.unreach(PeerIdx(1), &[p("10.9.0.0/16")]);
    assert_eq!(logged(&mut s), ["only [0]", "all but 0"]);
    s.unreach(PeerIdx(0), &[p("10.9.0.0/16")]);
    assert_eq!(logged(&mut s), ["all"]);
}

#[test]
fn a_flap_between_two_polls_says_nothing() {
    let mut s = shell(&speaker(ASN));
    up(&mut s, 0, ASN);
    up(&mut s, 1, ASN);
    s.reach(PeerIdx(0), &internal(0), &[p("10.9.0.0/16")]);
    s.settle();
    s.unreach(PeerIdx(0), &[p("10.9.0.0/16")]);
    s.reach(PeerIdx(0), &internal(0), &[p("10.9.0.0/16")]);
    s.reach(PeerIdx(1), &internal(1), &[p("10.8.0.0/16")]);
    s.unreach(PeerIdx(1), &[p("10.8.0.0/16")]);
    assert!(logged(&mut s).is_empty());
    s.reach(PeerIdx(0), &internal(0), &[p("10.9.0.0/16")]);
    assert!(
        logged(&mut s).is_empty(),
        "unchanged ends in the Adj-RIB-In"
    );
}

/// A dump is shared by those who join later. What the log says since then about a route that has become the best one while
/// its own peer was away is not for that peer.
#[test]
fn a_peer_that_comes_back_does_not_join_by_a_dump_from_before_its_route_became_the_best() {
    let mut s = shell(&speaker(ASN));
    let prefix = p("10.9.0.0/16");
    up(&mut s, 0, ASN);
    s.settle();
    // The first dump gets old by this, and those who join from now on have a new one.
    let others: Vec<Prefix> = (0..40_000u32)
        .map(|n| Prefix::V4 {
            addr: 0x1400_0000 + (n << 8),
            len: 24,
        })
        .collect();
    s.reach(PeerIdx(0), &internal(0), &[prefix]);
    s.settle();
    up(&mut s, 1, ASN);
    let better = PathAttributes {
        local_pref: Some(200),
        ..internal(1)
    };
    s.reach(PeerIdx(1), &better, &[prefix]);
    s.reach(PeerIdx(1), &better, &others);
    s.settle();
    s.play_all();
    s.unreach(PeerIdx(1), &others);
    s.settle();
    up(&mut s, 2, ASN);
    s.settle();
    s.play_all();
    // Peer 0 restarts; meanwhile its route becomes the best one.
    let reason = DownReason::ConnectionLost;
    let keep_stale = FamilySet::ALL;
    let away = PeerEvent::Down { reason, keep_stale };
    s.members.remove(&PeerIdx(0));
    s.event(PeerIdx(0), Epoch(1), away);
    s.settle();
    s.unreach(PeerIdx(1), &[prefix]);
    s.settle();
    let session = negotiated(&speaker(ASN), &peer_config(1, ASN), 1);
    s.up(PeerIdx(0), Epoch(2), session);
    s.reach(PeerIdx(0), &internal(0), &[prefix]);
    s.settle();
    s.play_all();
    assert_eq!(s.members[&PeerIdx(0)].routes.get(&prefix), None);
}

/// B1: all dumps together cost no more than a few times the log.
#[test]
fn a_storm_of_joiners_shares_few_dumps() {
    let mut s = shell(&speaker(ASN));
    for idx in 0..2000u16 {
        let mut peer = peer_config(1, ASN);
        peer.route_reflector_client = true;
        let mut session = negotiated(&speaker(ASN), &peer, 1);
        session.peer_id = RouterId(1000 + u32::from(idx));
        session.peer_addr = IpAddr::from([10, 1, (idx >> 8) as u8, idx as u8]);
        let own = PathAttributes {
            next_hop: session.peer_addr.into(),
            ..internal(0)
        };
        s.apply(RibInput::Peer(PeerIdx(idx), Arc::new(peer)));
        s.up(PeerIdx(idx), Epoch(1), session);
        let prefix = format!("10.{}.{}.0/24", 100 + (idx >> 8), idx & 255);
        s.reach(PeerIdx(idx), &own, &[p(&prefix)]);
        s.poll(1000);
    }
    s.settle();
    assert!(s.dumps_begun <= 4, "{} dumps", s.dumps_begun);
    for idx in [0, 1, 999, 1999] {
        s.play(PeerIdx(idx), usize::MAX);
        let member = &s.members[&PeerIdx(idx)];
        assert_eq!((member.routes.len(), member.ends.len()), (1999, 2));
    }
}

#[test]
fn a_large_dump_is_given_up_when_nobody_joins() {
    let mut s = shell(&speaker(ASN));
    up(&mut s, 0, ASN);
    s.settle();
    for i in 0..4000u32 {
        let large = PathAttributes {
            communities: (0..20).map(|c| i << 8 | c).collect(),
            ..internal(0)
        };
        s.reach(
            PeerIdx(0),
            &large,
            &[Prefix::V4 {
                addr: i << 8,
                len: 24,
            }],
        );
    }
    s.settle();
    up(&mut s, 1, ASN);
    s.settle();
    let at = s.rib.deadline().unwrap();
    s.now = at;
    let mut out = Vec::new();
    s.rib.poll(s.now, 100, &mut out);
    assert!(matches!(out[..], [RibOutput::DumpRetired(_)]), "{out:?}");
}

#[test]
fn limits_on_prefixes() {
    let limited = |warn_at, action| {
        move |c: &mut PeerConfig| {
            c.max_prefix = Some(MaxPrefix {
                limit: 2,
                warn_at,
                action,
            });
        }
    };
    let reset = MaxPrefixAction::Reset { after: None };
    // Warned of once a session: at the number given, or when it is too many.
    for (warn_at, action, kept, told, warned) in [
        (None, MaxPrefixAction::Warn, 3, false, 3),
        (Some(2), MaxPrefixAction::Warn, 3, false, 2),
        (Some(1), MaxPrefixAction::Discard, 2, false, 1),
        (None, MaxPrefixAction::Discard, 2, false, 3),
        (Some(9), reset, 2, true, 3),
    ] {
        let mut s = shell(&speaker(ASN));
        up_with(&mut s, 0, 65001, limited(warn_at, action), |_| ());
        let list = [p("10.1.0.0/16"), p("10.2.0.0/16"), p("10.3.0.0/16")];
        s.reach(PeerIdx(0), &attrs_via([10, 0, 0, 1], &[65001]), &list);
        s.settle();
        let counts = s.rib.peer_counts(PeerIdx(0)).families[0];
        assert_eq!((counts.received, !s.too_many.is_empty()), (kept, told));
        assert_eq!(s.kernel.len(), kept as usize);
        s.reach(PeerIdx(0), &attrs_via([10, 0, 0, 2], &[65001]), &list[..2]);
        s.settle();
        let counts = s.rib.peer_counts(PeerIdx(0)).families[0];
        assert_eq!(counts.received, kept, "what is there may change");
        assert!(s.too_many.len() <= 1);
        assert_eq!(s.many, [(PeerIdx(0), warned)]);
    }
}

/// What is kept of an earlier session is no announcement of the present one; what is announced again counts.
#[test]
fn stale_routes_do_not_count_towards_the_limit() {
    let prefixes = |from: u8| [from, from + 1, from + 2].map(|n| p(&format!("10.{n}.0.0/16")));
    let attrs = attrs_via([10, 0, 0, 1], &[65001]);
    let limit = |c: &mut PeerConfig| {
        c.max_prefix = Some(MaxPrefix {
            limit: 3,
            warn_at: None,
            action: MaxPrefixAction::Reset { after: None },
        });
    };
    let mut s = shell(&speaker(ASN));
    up_with(&mut s, 0, 65001, limit, |_| ());
    s.reach(PeerIdx(0), &attrs, &prefixes(0));
    let reason = DownReason::ConnectionLost;
    let keep_stale = FamilySet::ALL;
    s.event(PeerIdx(0), Epoch(1), PeerEvent::Down { reason, keep_stale });
    let again = negotiated(&speaker(ASN), &peer_config(1, 65001), 1);
    s.up(PeerIdx(0), Epoch(2), again);
    s.reach(PeerIdx(0), &attrs, &prefixes(10));
    s.settle();
    assert!(s.too_many.is_empty() && s.many.is_empty());
    assert_eq!(s.rib.peer_counts(PeerIdx(0)).families[0].received, 6);
    // One more, though its prefix is in the table already.
    s.reach(PeerIdx(0), &attrs, &prefixes(0)[..1]);
    s.settle();
    assert_eq!(s.too_many, [PeerIdx(0)]);
}

/// Whoever lists peers asks two threads, and tells by the session whose numbers these are.
#[test]
fn numbers_name_their_session() {
    let mut s = shell(&speaker(ASN));
    assert_eq!(s.rib.peer_counts(PeerIdx(0)).epoch, Epoch(0));
    up(&mut s, 0, ASN);
    assert_eq!(s.rib.peer_counts(PeerIdx(0)).epoch, Epoch(1));
    s.apply(RibInput::PeerGone(PeerIdx(0)));
    assert_eq!(s.rib.peer_counts(PeerIdx(0)).epoch, Epoch(0));
}

#[test]
fn a_limit_that_is_lowered_is_judged_anew() {
    let limit = |limit, action| {
        Some(MaxPrefix {
            limit,
            warn_at: None,
            action,
        })
    };
    let reset = MaxPrefixAction::Reset { after: None };
    for (action, kept, told) in [
        (MaxPrefixAction::Warn, 4, false),
        (MaxPrefixAction::Discard, 2, false),
        (reset, 4, true),
    ] {
        let mut s = shell(&speaker(ASN));
        up_with(
            &mut s,
            0,
            65001,
            |c| c.max_prefix = limit(4, action),
            |_| (),
        );
        let list: Vec<Prefix> = (0..4).map(|n| p(&format!("10.{n}.0.0/16"))).collect();
        s.reach(PeerIdx(0), &attrs_via([10, 0, 0, 1], &[65001]), &list);
        s.settle();
        assert!(s.many.is_empty() && s.too_many.is_empty());
        let mut lower = peer_config(1, 65001);
        lower.max_prefix = limit(2, action);
        s.apply(RibInput::Peer(PeerIdx(0), Arc::new(lower)));
        s.settle();
        assert_eq!(s.many, [(PeerIdx(0), 4)], "{action:?}");
        assert_eq!(!s.too_many.is_empty(), told, "{action:?}");
        let counts = s.rib.peer_counts(PeerIdx(0)).families[0];
        assert_eq!(counts.received, kept, "{action:?}");
        assert_eq!(s.kernel.len(), kept as usize, "{action:?}");
    }
}

/// Many addresses of services are originated and taken back one by one: the work is in proportion to their number. Nothing here
/// is timed: work that grows with the square of the number would take this test a quarter of an hour.
#[test]
fn many_networks_are_originated() {
    const NETWORKS: u32 = 300_000;
    let network = |n: u32| Prefix::V4 {
        addr: 0x0a00_0000 + n,
        len: 32,
    };
    let mut config = speaker(ASN);
    config.networks = (0..NETWORKS).map(network).collect();
    let mut s = shell(&config);
    s.settle();
    assert_eq!(s.kernel.len(), NETWORKS as usize);
    for n in 0..20 {
        config.networks[n] = network(NETWORKS + n as u32);
        s.apply(RibInput::Configure(Arc::new(config.clone())));
    }
    s.settle();
    assert_eq!(s.kernel.len(), NETWORKS as usize);
    assert!(s.kernel.contains_key(&network(NETWORKS)) && !s.kernel.contains_key(&network(0)));
}

#[test]
fn what_is_refused_and_why() {
    let own_as = attrs_via([10, 0, 0, 1], &[65001, ASN]);
    let twice = attrs_via([10, 0, 0, 1], &[65001, ASN, ASN]);
    let external = |a: &PathAttributes| (65001, a.clone());
    let from_here = PathAttributes {
        originator_id: Some(RouterId(1)),
        ..internal(0)
    };
    let cluster = PathAttributes {
        cluster_list: [RouterId(9), RouterId(1)].into(),
        ..internal(0)
    };
    let our_hop = attrs_via([10, 0, 0, 100], &[65001]);
    let good = attrs_via([10, 0, 0, 1], &[65001]);
    for (what, (asn, attrs), allow, prefix, rejected) in [
        ("good", external(&good), 0, "10.1.0.0/16", None),
        (
            "own AS",
            external(&own_as),
            0,
            "10.1.0.0/16",
            Some(Rejection::OwnAs),
        ),
        ("allowed once", external(&own_as), 1, "10.1.0.0/16", None),
        (
            "twice",
            external(&twice),
            1,
            "10.1.0.0/16",
            Some(Rejection::OwnAs),
        ),
        (
            "originator",
            (ASN, from_here),
            0,
            "10.1.0.0/16",
            Some(Rejection::OwnOriginator),
        ),
        (
            "cluster",
            (ASN, cluster),
            0,
            "10.1.0.0/16",
            Some(Rejection::OwnCluster),
        ),
        (
            "next hop",
            external(&our_hop),
            0,
            "10.1.0.0/16",
            Some(Rejection::OwnNextHop),
        ),
        (
            "default",
            external(&good),
            0,
            "0.0.0.0/0",
            Some(Rejection::Filter),
        ),
    ] {
        let mut s = shell(&speaker(ASN));
        up_with(&mut s, 0, asn, |c| c.allow_own_as = allow, |_| ());
        s.reach(PeerIdx(0), &attrs, &[p(prefix)]);
        s.settle();
        let page = s.rib.query(&Query::Prefix(p(prefix)));
        assert_eq!(page.rows[0].paths[0].rejected, rejected, "{what}");
        assert_eq!(s.kernel.is_empty(), rejected.is_some(), "{what}");
    }
}

#[test]
fn attributes_that_do_not_fit_are_withdrawn() {
    let mut s = shell(&speaker(ASN));
    up(&mut s, 0, ASN);
    up(&mut s, 1, ASN);
    s.reach(PeerIdx(0), &internal(0), &[p("10.9.0.0/16")]);
    s.settle();
    s.play_all();
    assert_eq!(s.members[&PeerIdx(1)].routes.len(), 1);
    let huge = PathAttributes {
        communities: (0..1200).collect(),
        ..internal(0)
    };
    s.reach(PeerIdx(0), &huge, &[p("10.9.0.0/16")]);
    s.settle();
    s.play_all();
    assert!(s.members[&PeerIdx(1)].routes.is_empty());
}

fn restart(restarting: bool) -> Option<PeerRestart> {
    Some(PeerRestart {
        restarting,
        notification: true,
        time: Duration::from_secs(120),
        families: FamilySet::ALL,
        forwarding: FamilySet::ALL,
        understands_long_lived: false,
        keeps_ours_long: false,
        long_lived: [None; 2],
    })
}

fn seconds(n: u64) -> Now {
    Now(0) + Duration::from_secs(n)
}

fn end_of_rib(s: &mut Shell, idx: u16) {
    for family in Family::ALL {
        s.event(PeerIdx(idx), Epoch(1), PeerEvent::EndOfRib(family));
    }
}

#[test]
fn synchronised_at_once_when_all_are_complete() {
    let mut s = shell(&speaker(ASN));
    s.apply(RibInput::Peer(PeerIdx(1), Arc::new(peer_config(2, ASN))));
    up_with(
        &mut s,
        0,
        ASN,
        |_| (),
        |n| n.graceful_restart = restart(false),
    );
    end_of_rib(&mut s, 0);
    s.settle();
    assert!(s.synced.is_empty(), "the other peer may come");
    up_with(
        &mut s,
        1,
        ASN,
        |_| (),
        |n| n.graceful_restart = restart(false),
    );
    s.event(PeerIdx(1), Epoch(1), PeerEvent::EndOfRib(Family::Ipv4));
    s.settle();
    assert_eq!(s.synced.len(), 1);
    end_of_rib(&mut s, 1);
    s.settle();
    assert_eq!(s.synced.len(), 2);
    assert_eq!(s.rib.deadline(), None);
}

#[test]
fn a_dead_peer_is_waited_for_ten_seconds_and_a_silent_one_twenty() {
    for (with_silent, synced_at) in [(false, 10), (true, 20)] {
        let mut s = shell(&speaker(ASN));
        s.apply(RibInput::Peer(PeerIdx(2), Arc::new(peer_config(3, ASN))));
        up_with(
            &mut s,
            0,
            ASN,
            |_| (),
            |n| n.graceful_restart = restart(false),
        );
        end_of_rib(&mut s, 0);
        if with_silent {
            up_with(
                &mut s,
                1,
                ASN,
                |_| (),
                |n| n.graceful_restart = restart(false),
            );
        }
        let mut rounds = 0;
        s.settle();
        while s.synced.is_empty() {
            s.now = s.rib.deadline().unwrap();
            s.settle();
            rounds += 1;
            assert!(rounds < 10, "deadlines lead somewhere");
        }
        assert_eq!(s.now, seconds(synced_at));
        assert_eq!(s.synced.len(), 2);
    }
}

/// Steps from deadline to deadline up to `end`, until `done`; the seconds that it took.
fn wait(s: &mut Shell, end: u64, done: impl Fn(&Shell) -> bool) -> Option<u64> {
    loop {
        s.settle();
        s.play_all();
        if done(s) {
            return Some(s.now.since(Now(0)).as_secs());
        }
        let next = s.rib.deadline().filter(|at| *at <= seconds(end));
        s.now = next?;
    }
}

fn ends(s: &Shell, idx: u16) -> usize {
    s.members[&PeerIdx(idx)].ends.len()
}

/// A speaker that has restarted after sessions with these neighbours: by address, or all by a range.
fn restarted(by_range: bool, before: Option<&[u8]>) -> Shell {
    let mut config = speaker(ASN);
    config.networks = vec![p("10.244.0.0/24")];
    let neighbours = (1..=3).map(|last| Arc::new(peer_config(last, ASN)));
    if by_range {
        config.ranges = vec![RangeConfig {
            prefix: p("10.0.0.0/24"),
            template: Arc::new(peer_config(0, ASN)),
        }];
    } else {
        config.peers = neighbours.collect();
    }
    let key = |last: &u8| PeerKey::from(IpAddr::from([10, 0, 0, *last]));
    let mut s = shell(&config);
    s.rib.restarted(Restarted {
        before: before.map(|list| list.iter().map(key).collect()),
        restart_time: Duration::from_secs(120),
    });
    s
}

fn client_up(s: &mut Shell, idx: u16, gr: Option<PeerRestart>) {
    let reflect = |c: &mut PeerConfig| c.route_reflector_client = true;
    up_with(s, idx, ASN, reflect, |n| n.graceful_restart = gr);
}

#[test]
fn after_a_restart_routes_go_out_as_they_come_and_end_of_rib_when_all_are_back() {
    for by_range in [false, true] {
        let mut s = restarted(by_range, Some(&[1, 2]));
        client_up(&mut s, 0, restart(false));
        end_of_rib(&mut s, 0);
        s.settle();
        s.play_all();
        let own = s.members[&PeerIdx(0)].routes.len();
        assert_eq!(own, 1, "what we originate is announced at once");
        // The other one is away for longer than we wait for anybody who was not there before.
        assert_eq!(wait(&mut s, 30, |s| ends(s, 0) > 0), None);
        s.now = seconds(30);
        client_up(&mut s, 1, restart(false));
        s.reach(PeerIdx(1), &internal(1), &[p("10.9.0.0/16")]);
        s.settle();
        s.play_all();
        assert_eq!(s.members[&PeerIdx(0)].routes.len(), 2);
        assert_eq!((ends(&s, 0), ends(&s, 1)), (0, 0));
        end_of_rib(&mut s, 1);
        s.settle();
        s.play_all();
        assert_eq!((ends(&s, 0), ends(&s, 1)), (2, 2));
        let first = &s.members[&PeerIdx(0)].ends[&Family::Ipv4];
        assert_eq!(first.len(), 2, "End-of-RIB comes last");
        assert_eq!(s.synced.len(), 2);
        assert_eq!(s.rib.deadline(), None);
        // Whoever comes now is told at once.
        client_up(&mut s, 2, restart(false));
        s.settle();
        s.play_all();
        assert_eq!(ends(&s, 2), 2);
    }
}

#[test]
fn who_is_away_for_the_whole_restart_time_is_waited_for_no_longer() {
    for before in [Some(&[1, 2][..]), None] {
        let mut s = restarted(true, before);
        client_up(&mut s, 0, restart(false));
        end_of_rib(&mut s, 0);
        assert_eq!(wait(&mut s, 500, |s| ends(s, 0) == 2), Some(120));
        assert_eq!(s.synced.len(), 2);
    }
}

#[test]
fn who_was_not_there_before_holds_nobody_up() {
    let mut s = restarted(true, Some(&[1]));
    client_up(&mut s, 0, restart(false));
    end_of_rib(&mut s, 0);
    // A stranger, who says no End-of-RIB.
    client_up(&mut s, 1, restart(false));
    assert_eq!(wait(&mut s, 500, |s| ends(s, 0) == 2), Some(20));
}

#[test]
fn what_else_ends_the_wait_for_a_neighbour() {
    type Change = fn(&mut Shell);
    let ways: [(&str, u64, Change); 5] = [
        ("it has restarted, too, and waits for us", 0, |s| {
            client_up(s, 1, restart(true));
        }),
        (
            "it has no graceful restart, and says no End-of-RIB",
            3,
            |s| {
                client_up(s, 1, None);
            },
        ),
        ("its host does not answer", 10, |s| {
            s.apply(RibInput::Peer(PeerIdx(1), Arc::new(peer_config(2, ASN))));
            s.event(PeerIdx(1), Epoch(0), PeerEvent::Unanswered);
        }),
        ("it is not configured any more", 0, |s| {
            let mut config = speaker(ASN);
            config.peers = vec![Arc::new(peer_config(1, ASN))];
            s.apply(RibInput::Configure(Arc::new(config)));
        }),
        ("it has no family any more but one", 0, |s| {
            let v4 = |n: &mut Negotiated| {
                n.families = FamilySet::from_iter([Family::Ipv4]);
                n.graceful_restart = restart(false);
            };
            up_with(s, 1, ASN, |_| (), v4);
            s.event(PeerIdx(1), Epoch(1), PeerEvent::EndOfRib(Family::Ipv4));
        }),
    ];
    for (way, seconds, change) in ways {
        let mut s = restarted(false, Some(&[1, 2]));
        let mut config = speaker(ASN);
        config.peers = [1, 2].map(|last| Arc::new(peer_config(last, ASN))).into();
        s.apply(RibInput::Configure(Arc::new(config)));
        client_up(&mut s, 0, restart(false));
        end_of_rib(&mut s, 0);
        change(&mut s);
        assert_eq!(
            wait(&mut s, 500, |s| ends(s, 0) == 2),
            Some(seconds),
            "{way}"
        );
    }
}

/// A member that goes while its End-of-RIB waits, and comes back, is told once, and in its present session.
#[test]
fn end_of_rib_that_waits_is_for_the_session_that_is_there() {
    let mut s = restarted(true, Some(&[2]));
    client_up(&mut s, 0, restart(false));
    s.settle();
    let reason = DownReason::ConnectionLost;
    let keep_stale = FamilySet::NONE;
    s.members.remove(&PeerIdx(0));
    s.event(PeerIdx(0), Epoch(1), PeerEvent::Down { reason, keep_stale });
    s.settle();
    client_up(&mut s, 1, restart(false));
    end_of_rib(&mut s, 1);
    assert_eq!(wait(&mut s, 15, |s| ends(s, 1) == 2), Some(10));
    let session = negotiated(&speaker(ASN), &peer_config(1, ASN), 1);
    s.up(PeerIdx(0), Epoch(2), session);
    s.settle();
    s.play_all();
    assert_eq!(ends(&s, 0), 2);
}

/// The wait is over after its time, whatever else there is to do (house rule: bounded in time).
#[test]
fn steady_churn_does_not_put_the_first_synchronisation_off() {
    let mut s = shell(&speaker(ASN));
    client_up(&mut s, 0, restart(false));
    s.settle();
    s.now = seconds(20);
    let many: Vec<Prefix> = (0..64).map(|n| p(&format!("10.{n}.0.0/16"))).collect();
    let mut polls = 0;
    while s.synced.len() < 2 {
        // More than a poll decides.
        let better = PathAttributes {
            local_pref: Some(100 + polls),
            ..internal(0)
        };
        s.reach(PeerIdx(0), &better, &many);
        s.poll(8);
        polls += 1;
        assert!(polls < 100, "there is always something else");
    }
}

#[test]
fn what_is_stale_stays_over_a_second_restart_until_the_session_says_otherwise() {
    let mut s = shell(&speaker(ASN));
    up(&mut s, 0, ASN);
    s.reach(PeerIdx(0), &internal(0), &[p("10.8.0.0/16")]);
    s.settle();
    let down = || PeerEvent::Down {
        reason: DownReason::ConnectionLost,
        keep_stale: FamilySet::ALL,
    };
    let config = peer_config(1, ASN);
    for epoch in 2..4 {
        s.members.remove(&PeerIdx(0));
        s.event(PeerIdx(0), Epoch(epoch - 1), down());
        s.settle();
        assert_eq!(s.kernel.len(), 1, "session {epoch}");
        let counts = s.rib.peer_counts(PeerIdx(0)).families[0];
        assert_eq!((counts.received, counts.stale), (1, 1));
        s.up(
            PeerIdx(0),
            Epoch(epoch),
            negotiated(&speaker(ASN), &config, 1),
        );
        s.settle();
    }
    s.members.remove(&PeerIdx(0));
    s.event(PeerIdx(0), Epoch(3), PeerEvent::DropStale(FamilySet::ALL));
    s.event(PeerIdx(0), Epoch(3), down());
    s.settle();
    assert!(s.kernel.is_empty());
}

#[test]
fn what_came_with_an_older_session_is_ignored() {
    let mut s = shell(&speaker(ASN));
    up(&mut s, 0, 65001);
    let attrs = Arc::new(attrs_via([10, 0, 0, 1], &[65001]));
    let config = peer_config(1, 65001);
    s.up(PeerIdx(0), Epoch(2), negotiated(&speaker(ASN), &config, 1));
    let nlri = super::shell::block(Family::Ipv4, &[p("10.9.0.0/16")]);
    s.event(PeerIdx(0), Epoch(1), PeerEvent::Reach { attrs, nlri });
    s.event(
        PeerIdx(0),
        Epoch(1),
        PeerEvent::Down {
            reason: DownReason::ConnectionLost,
            keep_stale: FamilySet::NONE,
        },
    );
    s.reach(
        PeerIdx(0),
        &attrs_via([10, 0, 0, 1], &[65001]),
        &[p("10.8.0.0/16")],
    );
    s.settle();
    assert_eq!(s.kernel.keys().collect::<Vec<_>>(), [&p("10.8.0.0/16")]);
}

#[test]
fn listings_come_in_pages() {
    let mut config = speaker(ASN);
    config.networks = vec![p("10.244.0.0/24")];
    let mut s = shell(&config);
    up_with(
        &mut s,
        0,
        65001,
        |c| c.export = vec![FilterRef::AcceptAll],
        |_| (),
    );
    up_with(
        &mut s,
        1,
        65002,
        |c| c.export = vec![FilterRef::AcceptAll],
        |_| (),
    );
    let list: Vec<Prefix> = (1..=10).map(|i| p(&format!("10.{i}.0.0/16"))).collect();
    s.reach(PeerIdx(0), &attrs_via([10, 0, 0, 1], &[65001]), &list);
    s.reach(
        PeerIdx(1),
        &attrs_via([10, 0, 0, 2], &[65002, 7]),
        &list[..4],
    );
    s.settle();
    for (what, rows, paths) in [
        (Listing::All, 11, 15),
        (Listing::Best, 11, 11),
        (Listing::Received(PeerIdx(1)), 4, 4),
        (Listing::Advertised(PeerIdx(0)), 1, 1),
        (Listing::Advertised(PeerIdx(1)), 11, 11),
        (Listing::Advertised(PeerIdx(9)), 0, 0),
    ] {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = s.rib.query(&Query::Routes {
                what,
                family: Family::Ipv4,
                after,
                limit: 3,
            });
            assert!(page.rows.len() <= 3);
            all.extend(page.rows);
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(all.len(), rows, "{what:?}");
        assert_eq!(
            all.iter().map(|r| r.paths.len()).sum::<usize>(),
            paths,
            "{what:?}"
        );
    }
    let row = s.rib.query(&Query::Prefix(list[0])).rows.remove(0);
    assert_eq!(row.decided_by, Some(Step::AsPathLength));
    let best: Vec<_> = row.paths.iter().map(|p| (p.peer, p.best)).collect();
    assert_eq!(best, [(Some(PeerIdx(0)), true), (Some(PeerIdx(1)), false)]);
    let sent = s.rib.query(&Query::Routes {
        what: Listing::Advertised(PeerIdx(1)),
        family: Family::Ipv4,
        after: 1,
        limit: 1,
    });
    assert_eq!(
        sent.rows[0].paths[0].attrs.as_path.to_string(),
        "64512 65001"
    );
}

#[test]
fn equal_paths_share_the_traffic_as_far_as_allowed() {
    for (most, expected) in [(1, 1), (2, 2), (16, 3)] {
        let mut config = speaker(ASN);
        config.maximum_paths = most;
        let mut s = shell(&config);
        for idx in 0..4 {
            up(&mut s, idx, 65001 + u32::from(idx));
            let mut path = vec![65001 + u32::from(idx), 7];
            if idx == 3 {
                path.push(7);
            }
            let a = attrs_via([10, 0, 0, idx as u8 + 1], &path);
            s.reach(PeerIdx(idx), &a, &[p("10.9.0.0/16")]);
        }
        s.settle();
        assert_eq!(s.kernel[&p("10.9.0.0/16")].next_hops.len(), expected);
    }
}

#[test]
fn our_number_in_the_session_is_ours_too() {
    let mut s = shell(&speaker(ASN));
    up_with(&mut s, 0, 65001, |c| c.local_asn = Some(Asn(65100)), |_| ());
    s.reach(
        PeerIdx(0),
        &attrs_via([10, 0, 0, 1], &[65001, 65100]),
        &[p("10.9.0.0/16")],
    );
    s.settle();
    assert!(s.kernel.is_empty());
}

#[test]
fn what_has_lost_its_next_hop_is_withdrawn_and_comes_back_with_it() {
    let with = |v6: Option<&str>| SpeakerConfig {
        networks: vec![p("10.244.0.0/24"), p("fd00:10::/64")],
        local_address: [None, v6.map(|a| a.parse().unwrap())],
        ..speaker(ASN)
    };
    let mut s = shell(&with(Some("fd00::1")));
    up(&mut s, 0, 65001);
    for (v6, routes) in [
        (Some("fd00::1"), 2),
        (None, 1),
        (Some("fd00::2"), 2),
        (None, 1),
    ] {
        s.apply(RibInput::Configure(Arc::new(with(v6))));
        s.settle();
        s.play_all();
        let member = &s.members[&PeerIdx(0)];
        assert_eq!(member.routes.len(), routes, "{v6:?}");
        let sent = member.routes.get(&p("fd00:10::/64"));
        let next_hop = sent.map(|a| a.next_hop.global.to_string());
        assert_eq!(next_hop.as_deref(), v6);
    }
}

/// RFC 9494 sections 4.2 and 4.3: after all others in the decision, with a community that only those are told who know it.
#[test]
fn a_last_resort_is_used_last_and_told_to_those_who_know_it() {
    let mut s = shell(&speaker(ASN));
    up_with(
        &mut s,
        0,
        65001,
        |_| (),
        |n| n.graceful_restart = restart(false),
    );
    up(&mut s, 1, 65002);
    let knows = |n: &mut Negotiated| {
        n.graceful_restart = restart(false).map(|r| PeerRestart {
            understands_long_lived: true,
            ..r
        });
    };
    up_with(&mut s, 2, ASN, |_| (), knows);
    up_with(&mut s, 3, ASN, |_| (), |_| ());
    let (alone, both, never) = (p("10.1.0.0/16"), p("10.2.0.0/16"), p("10.3.0.0/16"));
    s.reach(
        PeerIdx(0),
        &attrs_via([10, 0, 0, 1], &[65001]),
        &[alone, both],
    );
    let mut attrs = attrs_via([10, 0, 0, 1], &[65001]);
    attrs.communities = [0xffff_0007].into();
    s.reach(PeerIdx(0), &attrs, &[never]);
    s.reach(
        PeerIdx(1),
        &attrs_via([10, 0, 0, 2], &[65002, 7, 7]),
        &[both],
    );
    s.settle();
    let via = |s: &Shell, prefix| s.kernel.get(&prefix).map(|set| set.next_hops[0].global);
    assert_eq!(via(&s, both), Some([10, 0, 0, 1].into()));
    let down = PeerEvent::Down {
        reason: DownReason::ConnectionLost,
        keep_stale: FamilySet::ALL,
    };
    s.members.remove(&PeerIdx(0));
    s.event(PeerIdx(0), Epoch(1), down);
    s.settle();
    assert_eq!(s.kernel.len(), 3, "in the restart time nothing changes");
    s.event(PeerIdx(0), Epoch(1), PeerEvent::LongLived(FamilySet::ALL));
    s.settle();
    s.play_all();
    assert_eq!(via(&s, alone), Some([10, 0, 0, 1].into()));
    assert_eq!(via(&s, both), Some([10, 0, 0, 2].into()));
    assert_eq!(via(&s, never), None);
    let counts = s.rib.peer_counts(PeerIdx(0)).families[0];
    assert_eq!((counts.received, counts.stale), (2, 2));
    let told = |s: &Shell, idx, prefix| {
        let route = s.members[&PeerIdx(idx)].routes.get(&prefix).cloned();
        route.map(|a| a.communities.contains(&0xffff_0006))
    };
    assert_eq!(told(&s, 2, alone), Some(true));
    assert_eq!(told(&s, 3, alone), None);
    assert_eq!(told(&s, 3, both), Some(false));
    // Announced again it is a route like any other.
    let session = negotiated(&speaker(ASN), &peer_config(1, 65001), 1);
    s.up(PeerIdx(0), Epoch(2), session);
    s.reach(PeerIdx(0), &attrs_via([10, 0, 0, 1], &[65001]), &[alone]);
    s.settle();
    s.play_all();
    assert_eq!(told(&s, 3, alone), Some(false));
    s.event(PeerIdx(0), Epoch(2), PeerEvent::EndOfRib(Family::Ipv4));
    s.settle();
    assert_eq!(s.rib.peer_counts(PeerIdx(0)).families[0].received, 1);
}
