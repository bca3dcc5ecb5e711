//! TCP: does a connection come about, does it still carry bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Answer;
use crate::netns::Netns;

/// Tries to connect from `netns` to `to`.
///
/// # Errors
/// When there is no socket to try with.
pub fn connect(netns: &Netns, to: SocketAddr, limit: Duration) -> Result<Answer> {
    netns.run(|| match TcpStream::connect_timeout(&to, limit) {
        Ok(_) => Ok(Answer::Yes),
        Err(error) => Answer::from_error(error).with_context(|| format!("connect to {to}")),
    })
}

/// A connection from `netns` to an echo server; it stays in the namespace whichever thread uses it.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    said: u64,
}

impl Conversation {
    /// Connects.
    ///
    /// # Errors
    /// When the connection does not come about.
    pub fn open(netns: &Netns, to: SocketAddr, limit: Duration) -> Result<Conversation> {
        let stream = netns.run(|| {
            TcpStream::connect_timeout(&to, limit).with_context(|| format!("connect to {to}"))
        })?;
        stream.set_nodelay(true)?;
        Ok(Conversation { stream, said: 0 })
    }

    /// Says something new and waits for its echo.
    ///
    /// # Errors
    /// When the connection broke in a way that says nothing about the path.
    pub fn say(&mut self, limit: Duration) -> Result<Answer> {
        self.said += 1;
        let word = self.said.to_be_bytes();
        self.stream.set_read_timeout(Some(limit))?;
        if let Err(error) = self.stream.write_all(&word) {
            return Ok(Answer::from_error(error)?);
        }
        // Echoes of words whose time was over may come first.
        let mut heard = [0; 8];
        loop {
            match self.stream.read_exact(&mut heard) {
                Ok(()) if heard == word => return Ok(Answer::Yes),
                Ok(()) => {}
                Err(error) => return Ok(Answer::from_error(error)?),
            }
        }
    }
}
