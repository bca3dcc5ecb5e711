//! UDP: datagrams and their echoes.

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
        let socket = bound(to)?;
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

/// Datagrams from one port to an echo server: one flow.
#[derive(Debug)]
pub struct Talk {
    socket: UdpSocket,
    said: u64,
}

impl Talk {
    /// A socket in `netns` that speaks to `to`; nothing is sent yet.
    ///
    /// # Errors
    /// When there is no way to `to`.
    pub fn open(netns: &Netns, to: SocketAddr) -> Result<Talk> {
        let socket = netns.run(|| {
            let socket = bound(to)?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        Ok(Talk { socket, said: 0 })
    }

    /// Says something new and waits for its echo.
    ///
    /// # Errors
    /// When the socket fails in a way that says nothing about the path.
    pub fn say(&mut self, limit: Duration) -> Result<Answer> {
        self.said += 1;
        let word = self.said.to_be_bytes();
        self.socket.set_read_timeout(Some(limit))?;
        if let Err(error) = self.socket.send(&word) {
            return Ok(Answer::from_error(error)?);
        }
        // Echoes of words whose time was over may come first.
        let mut heard = [0; 8];
        loop {
            match self.socket.recv(&mut heard) {
                Ok(_) if heard == word => return Ok(Answer::Yes),
                Ok(_) => {}
                Err(error) => return Ok(Answer::from_error(error)?),
            }
        }
    }
}

fn bound(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    Ok(UdpSocket::bind((any, 0))?)
}
