//! Addresses of interfaces.

use std::net::IpAddr;

use crate::attr::{Attrs, Body, get_u8, get_u32};
use crate::batch::{Batch, CREATE, EXCL, REPLACE};
use crate::error::Result;
use crate::prefix::{AF_UNSPEC, Prefix, family};
use crate::socket::{Message, Socket};

pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFADDR: usize = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// No duplicate address detection: usable at once (IPv6).
pub const NODAD: u32 = 0x2;
/// Duplicate address detection failed.
pub const DADFAILED: u32 = 0x8;
/// Duplicate address detection is under way.
pub const TENTATIVE: u32 = 0x40;
/// No route to the prefix is made.
pub const NOPREFIXROUTE: u32 = 0x200;

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address, with the length of its prefix.
    pub prefix: Prefix,
    /// The other end of a point-to-point link, where it differs.
    pub peer: Option<IpAddr>,
    /// `RT_SCOPE_*`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl Address {
    /// A global address; IPv6 without duplicate address detection.
    pub fn new(index: u32, prefix: Prefix) -> Self {
        let flags = if prefix.addr.is_ipv6() { NODAD } else { 0 };
        Self {
            index,
            prefix,
            peer: None,
            scope: 0,
            flags,
        }
    }
}

/// Adds an address; `EEXIST` if it is there.
pub fn add(batch: &mut Batch, address: &Address) {
    push(batch, RTM_NEWADDR, CREATE | EXCL, address);
}

/// Adds an address or changes its flags.
pub fn replace(batch: &mut Batch, address: &Address) {
    push(batch, RTM_NEWADDR, CREATE | REPLACE, address);
}

/// Removes an address; `EADDRNOTAVAIL` if it is not there.
pub fn delete(batch: &mut Batch, address: &Address) {
    push(batch, RTM_DELADDR, 0, address);
}

/// The addresses of all interfaces, both families.
pub fn list(socket: &mut Socket) -> Result<Vec<Address>> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETADDR, 0, |body| {
            body.raw(&[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0])
        });
    };
    socket.list(build, |message| decode(&message))
}

/// The address in an `RTM_NEWADDR` or `RTM_DELADDR`; `None` for anything else.
pub fn decode(message: &Message<'_>) -> Option<Address> {
    if message.kind != RTM_NEWADDR && message.kind != RTM_DELADDR {
        return None;
    }
    let body = message.body;
    let mut flags = u32::from(get_u8(body, 2)?);
    let (mut local, mut remote) = (None, None);
    for attr in Attrs::after(body, IFADDR) {
        match attr.kind {
            IFA_LOCAL => local = attr.ip(),
            IFA_ADDRESS => remote = attr.ip(),
            IFA_FLAGS => flags = attr.u32()?,
            _ => {}
        }
    }
    let addr = local.or(remote)?;
    Some(Address {
        index: get_u32(body, 4)?,
        prefix: Prefix::new(addr, get_u8(body, 1)?),
        peer: remote.filter(|&remote| remote != addr),
        scope: get_u8(body, 3)?,
        flags,
    })
}

fn push(batch: &mut Batch, kind: u16, flags: u16, address: &Address) {
    batch.push(kind, flags, |body| fill(body, address));
}

fn fill(body: &mut Body<'_>, address: &Address) {
    let Prefix { addr, len } = address.prefix;
    let [a, b, c, d] = address.index.to_ne_bytes();
    body.raw(&[family(addr), len, 0, address.scope, a, b, c, d]);
    body.ip(IFA_LOCAL, addr);
    body.ip(IFA_ADDRESS, address.peer.unwrap_or(addr));
    if let (IpAddr::V4(v4), 1..=30, None) = (addr, len, address.peer) {
        let broadcast = u32::from(v4) | (u32::MAX >> len);
        body.be32(IFA_BROADCAST, broadcast);
    }
    body.u32(IFA_FLAGS, address.flags);
}
