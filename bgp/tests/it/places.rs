//! Neighbours of a range that come, and go for good: a later one takes the place that an earlier one has left.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use selvage_bgp::{
    Handle, PeerChange, PeerStatus, RouteEvent,
    core::{
        ids::{Epoch, PeerIdx, PeerKey},
        prefix::Prefix,
        session::{State, Stop},
        wire::header,
    },
};

use crate::{
    neighbour::{LIMIT, Neighbour, open},
    space::{in_space, reflector, start, start_told},
};

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, n)
}

/// What neighbour `n` announces.
fn network(n: u8) -> Prefix {
    format!("10.{n}.0.0/16").parse().unwrap()
}

/// Neighbour `n` with a session. It has no graceful restart, so that nothing is kept of it when its connection ends, and
/// no hold time, so that a slow machine does not end it.
fn client(n: u8) -> Neighbour {
    let mut neighbour = Neighbour::connect(address(n), None);
    let mut open = open(address(n));
    open.hold_time = 0;
    open.capabilities.retain(|c| c.code() != 64);
    neighbour.write(&[open.encode(), header::keepalive()].concat());
    neighbour.announce(&[network(n)]);
    neighbour
}

/// Place and session of neighbour `n`, once `wanted` is true of it.
fn wait(
    handle: &Handle,
    n: u8,
    wanted: impl Fn(Option<&PeerStatus>) -> bool,
) -> Option<(PeerIdx, Epoch)> {
    let key = PeerKey::from(std::net::IpAddr::from(address(n)));
    let end = Instant::now() + LIMIT;
    loop {
        let peers = handle.peers().unwrap();
        let peer = peers.iter().find(|p| p.config.key == key);
        if wanted(peer) {
            return peer.map(|p| (p.idx, p.session.epoch));
        }
        assert!(Instant::now() < end, "neighbour {n} is {peer:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_up(peer: Option<&PeerStatus>) -> bool {
    peer.is_some_and(|p| p.session.state == State::Established)
}

#[test]
fn whoever_comes_into_the_place_of_another_is_heard_and_told() {
    in_space(|| {
        let (speaker, ..) = start(reflector());
        let handle = speaker.handle();
        let mut stays = client(2);
        let mut epochs = vec![wait(&handle, 2, is_up).unwrap().1];
        let mut place = None;
        // Several in a row, each with as many sessions as the one before.
        for n in 3..8 {
            let mut comes = client(n);
            comes.read_until_announced(&network(2));
            stays.read_until_announced(&network(n));
            let (idx, epoch) = wait(&handle, n, is_up).unwrap();
            assert_eq!(*place.get_or_insert(idx), idx, "the place is taken again");
            epochs.push(epoch);
            drop(comes);
            wait(&handle, n, |peer| peer.is_none());
        }
        assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
        speaker.stop(Stop::Restart);
    });
}

/// A neighbour of a range that makes one fault after the other is left alone for longer each time: the speaker remembers
/// it beyond its pause.
#[test]
fn a_neighbour_of_a_range_is_remembered_for_its_faults() {
    in_space(|| {
        let mut config = reflector();
        config.limits.idle_hold = Duration::from_millis(20);
        let (speaker, ..) = start(config);
        let handle = speaker.handle();
        let mut place = None;
        for _ in 0..3 {
            let mut faulty = Neighbour::connect(address(2), None);
            faulty.write(&[0; header::HEADER]);
            let (told, _) = faulty.read_to_end();
            let told = told.map(|n| (n.code, n.subcode));
            assert_eq!(told, Some((1, 1)), "the marker is not all ones");
            let paused = |peer: &PeerStatus| peer.session.state == State::Idle;
            let found = wait(&handle, 2, |peer| peer.is_none_or(|peer| !paused(peer)));
            let (idx, _) = found.expect("the neighbour is forgotten with its pause");
            assert_eq!(*place.get_or_insert(idx), idx);
        }
        speaker.stop(Stop::Restart);
    });
}

/// Nobody has to ask: sessions and numbers are told when they change, each with the number of its session.
#[test]
fn neighbours_and_their_numbers_are_told_as_they_change() {
    in_space(|| {
        let (speaker, _, events, changes) = start_told(reflector());
        let is_up = |change: &PeerChange| match change {
            PeerChange::Is(peer) => peer.session.state == State::Established,
            _ => false,
        };
        let (mut place, mut last) = (None, None);
        for n in 2..5 {
            let comes = client(n);
            let up = std::iter::from_fn(|| changes.recv_timeout(LIMIT).ok()).find(is_up);
            let Some(PeerChange::Is(peer)) = up else {
                panic!("neighbour {n} is not told");
            };
            assert_eq!(
                peer.config.key,
                PeerKey::from(std::net::IpAddr::from(address(n)))
            );
            assert_eq!(*place.get_or_insert(peer.idx), peer.idx);
            assert_ne!(last.replace(peer.session.epoch), Some(peer.session.epoch));
            let counted = std::iter::from_fn(|| events.recv_timeout(LIMIT).ok())
                .filter_map(|event| match event {
                    RouteEvent::Peers(counts) => Some(counts),
                    _ => None,
                })
                .flatten()
                .find(|(idx, counts)| {
                    let this = *idx == peer.idx && counts.epoch == peer.session.epoch;
                    this && counts.families[0].received == 1
                });
            assert!(
                counted.is_some(),
                "the routes of neighbour {n} are not counted"
            );
            drop(comes);
            let gone = std::iter::from_fn(|| changes.recv_timeout(LIMIT).ok())
                .find(|change| matches!(change, PeerChange::Gone(idx, _) if *idx == peer.idx));
            assert!(gone.is_some(), "the end of neighbour {n} is not told");
        }
        // What is told after a barrier was decided after it.
        speaker.handle().barrier(7).unwrap();
        let passed = std::iter::from_fn(|| events.recv_timeout(LIMIT).ok())
            .any(|event| event == RouteEvent::Barrier(7));
        assert!(passed);
        assert!(speaker.handle().pulses().len() == 2);
        speaker.stop(Stop::Restart);
    });
}
