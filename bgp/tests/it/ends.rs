//! How connections end.

use std::net::Shutdown;

use selvage_bgp::{RouteEvent, core::session::Stop};
use socket2::SockRef;

use crate::{
    neighbour::{End, Neighbour, open},
    space::{in_space, reflector, start},
};

/// Data and the end of the stream in one segment make one event, and the data may fill less than the buffer.
#[test]
fn an_end_that_comes_together_with_the_last_bytes_is_seen() {
    in_space(|| {
        let (speaker, ..) = start(reflector());
        let from = [127, 0, 0, 2].into();
        let mut n = Neighbour::connect(from, None);
        let socket = SockRef::from(&n.stream);
        socket
            .send_with_flags(&open(from).encode(), libc::MSG_MORE)
            .unwrap();
        n.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(n.read_to_end(), (None, End::Closed));
        speaker.stop(Stop::Restart);
    });
}

/// Closing a socket with unread bytes resets the connection, and takes with it what has not been sent yet.
#[test]
fn a_notification_arrives_though_there_is_more_to_read() {
    in_space(|| {
        let mut config = reflector();
        config.networks = (0..=255)
            .flat_map(|a| (0..=127).map(move |b| format!("10.{a}.{b}.0/24").parse().unwrap()))
            .collect();
        let (speaker, ..) = start(config);
        let from = [127, 0, 0, 2].into();
        let mut n = Neighbour::connect(from, Some(2048));
        n.write(&[open(from).encode(), selvage_bgp::core::wire::header::keepalive()].concat());
        n.read_until(selvage_bgp::core::wire::header::MessageType::Update);
        // No marker, and much behind it.
        n.write(&[0; 200_000]);
        let (told, end) = n.read_to_end();
        assert_eq!(told.map(|n| (n.code, n.subcode)), Some((1, 1)));
        assert_eq!(end, End::Closed);
        speaker.stop(Stop::Restart);
    });
}

/// More neighbours than one batch of the table's work holds.
#[test]
fn a_graceful_end_takes_no_route_back() {
    in_space(|| {
        let (speaker, _, events) = start(reflector());
        let clients: Vec<Neighbour> = (0..700u16)
            .map(|i| {
                let [a, b] = (i + 2).to_be_bytes();
                let mut n = Neighbour::establish([127, 1, a, b].into());
                n.write(&announcement([10, a, b], [127, 1, a, b]));
                n
            })
            .collect();
        let mut announced = 0;
        while announced < clients.len() {
            if let RouteEvent::Changes(changes) = events.recv().unwrap() {
                announced += changes.iter().filter(|c| c.set.is_some()).count();
            }
        }
        speaker.stop(Stop::Restart);
        let withdrawn: usize = events
            .iter()
            .map(|e| match e {
                RouteEvent::Changes(c) => c.iter().filter(|c| c.set.is_none()).count(),
                _ => 0,
            })
            .sum();
        assert_eq!(withdrawn, 0);
        drop(clients);
    });
}

/// An UPDATE of one /24.
fn announcement(prefix: [u8; 3], next_hop: [u8; 4]) -> Vec<u8> {
    let mut attributes = vec![0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4];
    attributes.extend(next_hop);
    attributes.extend([0x40, 5, 4, 0, 0, 0, 100]);
    let mut body = vec![0, 0, 0, attributes.len() as u8];
    body.extend(attributes);
    body.push(24);
    body.extend(prefix);
    let mut message = vec![0xff; 16];
    message.extend((body.len() as u16 + 19).to_be_bytes());
    message.push(2);
    message.extend(body);
    message
}
