//! ICMP echo, both families, by the kernel's ping sockets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

use super::Answer;
use crate::netns::Netns;

const ECHO_REQUEST: u8 = 8; // RFC 792
const ECHO_REQUEST_V6: u8 = 128; // RFC 4443

/// One echo request from `netns`; the time it took when a reply came.
///
/// # Errors
/// When there is no socket to try with.
pub fn ping(netns: &Netns, to: IpAddr, limit: Duration) -> Result<(Answer, Duration)> {
    netns.run(|| {
        let (family, protocol, kind) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, ECHO_REQUEST),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, ECHO_REQUEST_V6),
        };
        let socket = socket_with(
            family,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(protocol),
        )
        .context("no ping socket (net.ipv4.ping_group_range)")?;
        let start = Instant::now();
        if let Err(error) = connect(&socket, &SocketAddr::new(to, 0)) {
            return Ok((Answer::from_error(error.into())?, start.elapsed()));
        }
        // A ping socket is a datagram socket; identifier and checksum are the kernel's.
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(limit))?;
        let request = [
            kind, 0, 0, 0, 0, 0, 0, 1, b's', b'e', b'l', b'v', b'a', b'g', b'e', b'?',
        ];
        let mut reply = [0; 64];
        let answer = match socket.send(&request).and_then(|_| socket.recv(&mut reply)) {
            Ok(_) => Answer::Yes,
            Err(error) => Answer::from_error(error)?,
        };
        Ok((answer, start.elapsed()))
    })
}
