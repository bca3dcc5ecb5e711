//! UDP: one datagram and its echo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;

use super::Answer;
use crate::netns::Netns;

/// Sends one datagram from `netns` to an echo server and waits for its echo.
///
/// # Errors
/// When there is no socket to try with.
pub fn ask(netns: &Netns, to: SocketAddr, limit: Duration) -> Result<Answer> {
    netns.run(|| {
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(limit))?;
        let mut heard = [0; 8];
        let asked = socket
            .connect(to)
            .and_then(|()| socket.send(b"selvage?"))
            .and_then(|_| socket.recv(&mut heard));
        match asked {
            Ok(_) => Ok(Answer::Yes),
            Err(error) => Ok(Answer::from_error(error)?),
        }
    })
}
