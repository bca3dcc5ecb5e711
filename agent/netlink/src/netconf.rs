//! Settings of the namespace that are sysctls, as netlink shows them: whether packets are forwarded.
//!
//! A file below `/proc/sys` tells nobody that it was written; the kernel's own notice of it does.

use crate::attr::{Attrs, get_u8};
use crate::batch::Batch;
use crate::error::Result;
use crate::prefix::{AF_INET, AF_INET6};
use crate::socket::{Message, Socket};

pub(crate) const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
/// `struct netconfmsg`, padded.
const NETCONFMSG: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
/// `NETCONFA_IFINDEX_ALL`: `conf/all`.
const ALL: i32 = -1;

/// Settings of one interface, of all (`conf/all`) or of new ones (`conf/default`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netconf {
    /// Of IPv6, else of IPv4.
    pub v6: bool,
    /// The interface; -1 for all, -2 for new ones.
    pub index: i32,
    /// Whether packets are forwarded; `None` if the message does not say.
    pub forwarding: Option<bool>,
}

impl Netconf {
    /// Whether it is `conf/all`: `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding`.
    pub fn is_of_all(&self) -> bool {
        self.index == ALL
    }
}

/// Whether the namespace forwards packets of a family.
pub fn forwarding(socket: &mut Socket, v6: bool) -> Result<bool> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETNETCONF, 0, |body| {
            body.raw(&[if v6 { AF_INET6 } else { AF_INET }, 0, 0, 0]);
            body.u32(NETCONFA_IFINDEX, ALL.cast_unsigned());
        });
    };
    socket.get(build, |message| {
        decode(&message)
            .filter(|conf| conf.v6 == v6 && conf.is_of_all())?
            .forwarding
    })
}

pub(crate) fn decode(message: &Message<'_>) -> Option<Netconf> {
    if message.kind != RTM_NEWNETCONF {
        return None;
    }
    let v6 = match get_u8(message.body, 0)? {
        AF_INET => false,
        AF_INET6 => true,
        _ => return None,
    };
    let (mut index, mut forwarding) = (None, None);
    for attr in Attrs::after(message.body, NETCONFMSG) {
        match attr.kind {
            NETCONFA_IFINDEX => index = attr.u32(),
            NETCONFA_FORWARDING => forwarding = attr.u32(),
            _ => {}
        }
    }
    Some(Netconf {
        v6,
        index: index?.cast_signed(),
        forwarding: forwarding.map(|on| on != 0),
    })
}
