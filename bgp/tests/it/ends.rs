//! How connections end.

use std::net::Shutdown;

use selvage_bgp::core::{
    session::Stop,
    wire::header::{self, MessageType},
};
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
        n.read_until(MessageType::Open);
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
        n.write(&[open(from).encode(), header::keepalive()].concat());
        n.read_until(MessageType::Update);
        // No marker, and much behind it.
        n.write(&[0; 200_000]);
        let (told, end) = n.read_to_end();
        assert_eq!(told.map(|n| (n.code, n.subcode)), Some((1, 1)));
        assert_eq!(end, End::Closed);
        speaker.stop(Stop::Restart);
    });
}
