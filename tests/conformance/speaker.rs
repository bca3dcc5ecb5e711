//! A BGP speaker of bytes: it says exactly what it is told to say, right or wrong.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Netns, eventually_ok};

use crate::scene::SOON;

pub const OPEN: u8 = 1;
pub const UPDATE: u8 = 2;
pub const NOTIFICATION: u8 = 3;
pub const KEEPALIVE: u8 = 4;

/// A message with a right header around any body.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
    [header(kind, length), body.to_vec()].concat()
}

/// A header with any length.
pub fn header(kind: u8, length: u16) -> Vec<u8> {
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind]].concat()
}

/// An OPEN without capabilities: IPv4 unicast, AS numbers of two octets.
pub fn open(asn: u16, hold: u16, id: [u8; 4]) -> Vec<u8> {
    message(
        OPEN,
        &[&[4][..], &asn.to_be_bytes(), &hold.to_be_bytes(), &id, &[0]].concat(),
    )
}

/// An OPEN without a hold time, with graceful restart of IPv4 unicast (RFC 4724 section 3); `restarting` is the R bit.
pub fn open_graceful(asn: u16, id: [u8; 4], restarting: bool) -> Vec<u8> {
    let ipv4_unicast = [1, 4, 0, 1, 0, 1];
    let graceful = [64, 6, u8::from(restarting) << 7, 120, 0, 1, 1, 0x80];
    let capabilities = [&ipv4_unicast[..], &graceful].concat();
    let length = capabilities.len() as u8;
    let fixed = [
        &[4][..],
        &asn.to_be_bytes(),
        &[0, 0],
        &id,
        &[length + 2, 2, length],
    ]
    .concat();
    message(OPEN, &[fixed, capabilities].concat())
}

/// An UPDATE with these attributes, announcing these IPv4 prefixes as they are on the wire.
pub fn update(attributes: &[u8], prefixes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(attributes.len()).unwrap_or(u16::MAX);
    message(
        UPDATE,
        &[&[0, 0][..], &length.to_be_bytes(), attributes, prefixes].concat(),
    )
}

/// ORIGIN, AS_PATH of this one AS, NEXT_HOP.
pub fn attributes(origin: u8, asn: u16, next_hop: Ipv4Addr) -> Vec<u8> {
    let [high, low] = asn.to_be_bytes();
    let path = [0x40, 2, 4, 2, 1, high, low];
    [
        &[0x40, 1, 1, origin][..],
        &path,
        &[0x40, 3, 4],
        &next_hop.octets(),
    ]
    .concat()
}

/// A connection to an agent.
pub struct Speaker {
    stream: TcpStream,
}

impl Speaker {
    /// Connects from `netns`.
    pub fn connect(netns: &Netns, to: IpAddr) -> Result<Speaker> {
        let to = SocketAddr::new(to, 179);
        let stream = netns.run(|| TcpStream::connect_timeout(&to, SOON).context("connect"))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        Ok(Speaker { stream })
    }

    /// Waits in `netns`, at an address of its own, until somebody connects.
    pub fn accept(netns: &Netns, at: IpAddr) -> Result<Speaker> {
        let listener = netns.run(|| TcpListener::bind((at, 179)).context("listen"))?;
        listener.set_nonblocking(true)?;
        let stream = eventually_ok(SOON, "a connection", || Ok(listener.accept()?.0))?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        Ok(Speaker { stream })
    }

    /// Waits longer for what comes.
    pub fn patience(&mut self, limit: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(limit))?)
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// The next message: its type and its body.
    pub fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut header = [0; 19];
        self.stream
            .read_exact(&mut header)
            .context("the connection ended")?;
        let (marker, rest) = header.split_at(16);
        ensure!(marker == [0xff; 16], "not a marker: {marker:?}");
        let [high, low, kind] = rest else {
            bail!("short")
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let mut body = vec![0; length.checked_sub(19).context("a length below 19")?];
        self.stream.read_exact(&mut body)?;
        Ok((*kind, body))
    }

    /// The next message of this type; others before it are passed over, but not a NOTIFICATION.
    pub fn expect(&mut self, wanted: u8) -> Result<Vec<u8>> {
        loop {
            match self.receive()? {
                (kind, body) if kind == wanted => return Ok(body),
                (NOTIFICATION, body) => bail!("NOTIFICATION {body:?}"),
                _ => {}
            }
        }
    }

    /// Code and subcode of the NOTIFICATION that ends the connection.
    pub fn notification(&mut self) -> Result<(u8, u8)> {
        match self.expect(NOTIFICATION)?[..] {
            [code, subcode, ..] => Ok((code, subcode)),
            ref body => bail!("a NOTIFICATION of {body:?}"),
        }
    }

    /// Says nothing wrong until the session is established.
    pub fn establish(&mut self, open: &[u8]) -> Result<()> {
        self.send(open)?;
        self.expect(OPEN)?;
        self.send(&message(KEEPALIVE, &[]))?;
        self.expect(KEEPALIVE)?;
        Ok(())
    }
}
