//! TCP: does a connection come about, does it still carry bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
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

/// Which end of a [`Pair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that connected.
    Client,
    /// The one that was connected to.
    Server,
}

/// A connection of which both ends are in hand: either may say something of its own accord.
#[derive(Debug)]
pub struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// Bytes that were said and heard: by the client to the server, and the other way.
    counts: [(usize, usize); 2],
}

impl Pair {
    /// Connects from `from` to `at`, an address of `to` at which nobody listens.
    ///
    /// # Errors
    /// When the connection does not come about.
    pub fn open(from: &Netns, to: &Netns, at: SocketAddr, limit: Duration) -> Result<Pair> {
        let listener = to.run(|| super::bind(at.port(), || TcpListener::bind(at)))?;
        let client = from.run(|| {
            TcpStream::connect_timeout(&at, limit).with_context(|| format!("connect to {at}"))
        })?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        Ok(Pair {
            client,
            server,
            counts: [(0, 0); 2],
        })
    }

    /// The ports: the client's and the server's.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ports(&self) -> Result<(u16, u16)> {
        let (client, server) = (self.client.local_addr()?, self.client.peer_addr()?);
        Ok((client.port(), server.port()))
    }

    /// One end says something new; `Yes` when everything that it has ever said is heard at the other.
    ///
    /// # Errors
    /// When the connection broke in a way that says nothing about the path.
    pub fn say(&mut self, from: End, limit: Duration) -> Result<Answer> {
        let [of_client, of_server] = &mut self.counts;
        let (mut speaker, mut listener, (said, heard)) = match from {
            End::Client => (&self.client, &self.server, of_client),
            End::Server => (&self.server, &self.client, of_server),
        };
        let word = [0x5e; 8];
        if let Err(error) = speaker.write_all(&word) {
            return Ok(Answer::from_error(error)?);
        }
        *said += word.len();
        listener.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 64];
        while heard < said {
            match listener.read(&mut buffer) {
                Ok(0) => return Ok(Answer::Refused),
                Ok(more) => *heard += more,
                Err(error) => return Ok(Answer::from_error(error)?),
            }
        }
        Ok(Answer::Yes)
    }

    /// Waits for anything that was said before and is not heard yet.
    ///
    /// # Errors
    /// When the connection broke in a way that says nothing about the path.
    pub fn hear(&mut self, at: End, limit: Duration) -> Result<Answer> {
        let [of_client, of_server] = &mut self.counts;
        let (mut listener, heard) = match at {
            End::Client => (&self.client, &mut of_server.1),
            End::Server => (&self.server, &mut of_client.1),
        };
        listener.set_read_timeout(Some(limit))?;
        match listener.read(&mut [0; 64]) {
            Ok(0) => Ok(Answer::Refused),
            Ok(more) => {
                *heard += more;
                Ok(Answer::Yes)
            }
            Err(error) => Ok(Answer::from_error(error)?),
        }
    }
}
