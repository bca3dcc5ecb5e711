//! Neighbours of a range that come, and go for good: a later one takes the place that an earlier one has left.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use selvage_bgp::{
    Handle, PeerStatus,
    core::{
        ids::{Epoch, PeerIdx, PeerKey},
        prefix::Prefix,
        session::{State, Stop},
        wire::header,
    },
};

use crate::{
    neighbour::{LIMIT, Neighbour, open},
    space::{in_space, reflector, start},
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
