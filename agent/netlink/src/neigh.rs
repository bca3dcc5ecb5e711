//! Neighbour entries.

use std::net::IpAddr;

use crate::attr::{Attrs, Body, get_u8, get_u16, get_u32};
use crate::batch::{Batch, CREATE, EXCL, REPLACE};
use crate::error::Result;
use crate::link::Mac;
use crate::prefix::{AF_UNSPEC, family};
use crate::socket::{Message, Socket};

pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

/// Resolved and confirmed lately.
pub const REACHABLE: u16 = 0x02;
/// Resolution failed.
pub const FAILED: u16 = 0x20;
/// Set by hand, never expires.
pub const PERMANENT: u16 = 0x80;

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub index: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its hardware address, if known.
    pub mac: Option<Mac>,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
}

impl Neighbour {
    /// A permanent entry.
    pub fn permanent(index: u32, addr: IpAddr, mac: Mac) -> Self {
        Self {
            index,
            addr,
            mac: Some(mac),
            state: PERMANENT,
            flags: 0,
        }
    }
}

/// Adds an entry; `EEXIST` if one is there.
pub fn add(batch: &mut Batch, neighbour: &Neighbour) {
    batch.push(RTM_NEWNEIGH, CREATE | EXCL, |body| fill(body, neighbour));
}

/// Adds an entry or overwrites the one that is there.
pub fn replace(batch: &mut Batch, neighbour: &Neighbour) {
    batch.push(RTM_NEWNEIGH, CREATE | REPLACE, |body| fill(body, neighbour));
}

/// Removes an entry; `ENOENT` if it is not there.
pub fn delete(batch: &mut Batch, index: u32, addr: IpAddr) {
    let neighbour = Neighbour {
        index,
        addr,
        mac: None,
        state: 0,
        flags: 0,
    };
    batch.push(RTM_DELNEIGH, 0, |body| fill(body, &neighbour));
}

/// The entries of all interfaces, both families.
pub fn list(socket: &mut Socket) -> Result<Vec<Neighbour>> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETNEIGH, 0, |body| {
            let mut header = [0; NDMSG];
            if let Some(family) = header.first_mut() {
                *family = AF_UNSPEC;
            }
            body.raw(&header);
        });
    };
    socket.list(build, |message| decode(&message))
}

/// The entry in an `RTM_NEWNEIGH` or `RTM_DELNEIGH`; `None` for anything else, forwarding
/// entries of bridges included.
pub fn decode(message: &Message<'_>) -> Option<Neighbour> {
    if message.kind != RTM_NEWNEIGH && message.kind != RTM_DELNEIGH {
        return None;
    }
    let body = message.body;
    let (mut addr, mut mac) = (None, None);
    for attr in Attrs::after(body, NDMSG) {
        match attr.kind {
            NDA_DST => addr = attr.ip(),
            NDA_LLADDR => mac = attr.value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour {
        index: get_u32(body, 4)?,
        addr: addr?,
        mac,
        state: get_u16(body, 8)?,
        flags: get_u8(body, 10)?,
    })
}

fn fill(body: &mut Body<'_>, neighbour: &Neighbour) {
    let [a, b, c, d] = neighbour.index.to_ne_bytes();
    let [low, high] = neighbour.state.to_ne_bytes();
    body.raw(&[
        family(neighbour.addr),
        0,
        0,
        0,
        a,
        b,
        c,
        d,
        low,
        high,
        neighbour.flags,
        0,
    ]);
    body.ip(NDA_DST, neighbour.addr);
    if let Some(Mac(octets)) = neighbour.mac {
        body.bytes(NDA_LLADDR, &octets);
    }
}
