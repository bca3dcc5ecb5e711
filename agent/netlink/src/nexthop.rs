//! Nexthop objects: what a route points at by number, so that many routes change in one message.
//!
//! A group and a single nexthop never take each other's place under one id. The kernel removes
//! objects, emptied groups and their routes without a notification when a device loses its
//! carrier; so a link event means reading them again.

use crate::attr::{Attrs, Body, get_u8, get_u32};
use crate::batch::{Batch, CREATE, REPLACE};
use crate::error::Result;
use crate::prefix::{AF_INET, AF_INET6, AF_UNSPEC, family};
use crate::route::Hop;
use crate::socket::{Message, Socket};

pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHMSG: usize = 8;
const GROUP_ENTRY: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const RTNH_F_ONLINK: u32 = 4;

/// A member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The id of a single nexthop.
    pub id: u32,
    /// Share, 1 to 256 (the kernels of before 6.12 know no more); 0 is taken as 1.
    pub weight: u16,
}

/// What a nexthop object is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A gateway or an interface.
    Hop(Hop),
    /// Several, hashed by flow.
    Group(Vec<Member>),
    /// Discards.
    Blackhole,
}

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Nexthop {
    /// Its number in the namespace.
    pub id: u32,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// Whether its family is IPv6; of no meaning for a group.
    pub v6: bool,
    /// What it is.
    pub kind: Kind,
    /// `RTNH_F_*` as received.
    pub flags: u32,
}

/// Creates or changes a single nexthop; routes and groups that use it follow. `v6` counts where
/// there is no gateway. Refused with `ENETDOWN` if the device is down, and with `EINVAL` if a group
/// has this id, or the gateway is on no link.
pub fn replace_hop(batch: &mut Batch, id: u32, protocol: u8, hop: &Hop, v6: bool) {
    let family = hop
        .gateway
        .map_or(if v6 { AF_INET6 } else { AF_INET }, family);
    let flags = if hop.onlink { RTNH_F_ONLINK } else { 0 };
    batch.push(RTM_NEWNEXTHOP, CREATE | REPLACE, |body| {
        header(body, family, protocol, flags);
        body.u32(NHA_ID, id);
        if let Some(gateway) = hop.gateway {
            body.ip(NHA_GATEWAY, gateway);
        }
        if let Some(oif) = hop.oif {
            body.u32(NHA_OIF, oif);
        }
    });
}

/// Creates or changes a group. Its members must exist; there must be one at least, and none twice.
pub fn replace_group(batch: &mut Batch, id: u32, protocol: u8, members: &[Member]) {
    batch.push(RTM_NEWNEXTHOP, CREATE | REPLACE, |body| {
        header(body, AF_UNSPEC, protocol, 0);
        body.u32(NHA_ID, id);
        body.enclose(NHA_GROUP, |body| {
            for member in members {
                let [a, b, c, d] = member.id.to_ne_bytes();
                let weight = u8::try_from(member.weight.max(1) - 1).unwrap_or(u8::MAX);
                body.raw(&[a, b, c, d, weight, 0, 0, 0]);
            }
        });
    });
}

/// Creates or changes a nexthop that discards. Needs the loopback interface up (`ENETDOWN`).
pub fn replace_blackhole(batch: &mut Batch, id: u32, protocol: u8, v6: bool) {
    batch.push(RTM_NEWNEXTHOP, CREATE | REPLACE, |body| {
        header(body, if v6 { AF_INET6 } else { AF_INET }, protocol, 0);
        body.u32(NHA_ID, id);
        body.flag(NHA_BLACKHOLE);
    });
}

/// Deletes an object: the routes over it go, too, and it leaves its groups. `ENOENT` if there is
/// none.
pub fn delete(batch: &mut Batch, id: u32) {
    batch.push(RTM_DELNEXTHOP, 0, |body| {
        header(body, AF_UNSPEC, 0, 0);
        body.u32(NHA_ID, id);
    });
}

/// All objects of the namespace, single ones and groups, whoever made them.
pub fn list(socket: &mut Socket) -> Result<Vec<Nexthop>> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETNEXTHOP, 0, |body| header(body, AF_UNSPEC, 0, 0));
    };
    socket.list(build, |message| decode(&message))
}

/// One object; `ENOENT` if there is none.
pub fn get(socket: &mut Socket, id: u32) -> Result<Nexthop> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETNEXTHOP, 0, |body| {
            header(body, AF_UNSPEC, 0, 0);
            body.u32(NHA_ID, id);
        });
    };
    socket.get(build, |message| decode(&message))
}

/// The object in an `RTM_NEWNEXTHOP` or `RTM_DELNEXTHOP`; `None` for anything else.
pub fn decode(message: &Message<'_>) -> Option<Nexthop> {
    if message.kind != RTM_NEWNEXTHOP && message.kind != RTM_DELNEXTHOP {
        return None;
    }
    let body = message.body;
    let flags = get_u32(body, 4)?;
    let (mut id, mut group, mut blackhole) = (None, None, false);
    let mut hop = Hop {
        onlink: flags & RTNH_F_ONLINK != 0,
        weight: 1,
        ..Hop::default()
    };
    for attr in Attrs::after(body, NHMSG) {
        match attr.kind {
            NHA_ID => id = attr.u32(),
            NHA_GROUP => group = Some(members(attr.value)),
            NHA_BLACKHOLE => blackhole = true,
            NHA_OIF => hop.oif = attr.u32(),
            NHA_GATEWAY => hop.gateway = attr.ip(),
            _ => {}
        }
    }
    let kind = match group {
        Some(members) => Kind::Group(members),
        None if blackhole => Kind::Blackhole,
        None => Kind::Hop(hop),
    };
    let v6 = get_u8(body, 0)? == AF_INET6;
    Some(Nexthop {
        id: id?,
        protocol: get_u8(body, 2)?,
        v6,
        kind,
        flags,
    })
}

fn members(bytes: &[u8]) -> Vec<Member> {
    let entries = bytes.chunks_exact(GROUP_ENTRY);
    entries
        .filter_map(|entry| {
            // The second byte holds the high part of the weight since 6.12, and 0 before.
            let weight = u16::from_le_bytes([get_u8(entry, 4)?, get_u8(entry, 5)?]);
            Some(Member {
                id: get_u32(entry, 0)?,
                weight: weight.saturating_add(1),
            })
        })
        .collect()
}

/// `struct nhmsg`.
fn header(body: &mut Body<'_>, family: u8, protocol: u8, flags: u32) {
    let [a, b, c, d] = flags.to_ne_bytes();
    body.raw(&[family, 0, protocol, 0, a, b, c, d]);
}
