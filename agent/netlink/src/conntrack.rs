//! Tracked flows: listing, deleting and marking.
//!
//! Everything names the flow by its original tuple; a deletion without one would empty the table
//! and cannot be written here.

use std::net::IpAddr;

use crate::attr::{Attr, Attrs, Body, ip_from};
use crate::batch::Batch;
use crate::error::Result;
use crate::prefix::{AF_INET, AF_INET6, AF_UNSPEC, family};
use crate::socket::{Message, Socket};

const SUBSYSTEM: u16 = 1 << 8;
pub(crate) const CT_NEW: u16 = SUBSYSTEM;
const CT_GET: u16 = SUBSYSTEM | 1;
pub(crate) const CT_DELETE: u16 = SUBSYSTEM | 2;
const NFGENMSG: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_FILTER: u16 = 25;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// What of a tuple is compared (Linux 5.8): the source address,
const FILTER_SRC: u32 = 1;
/// or protocol and destination port.
const FILTER_PROTO_AND_DST_PORT: u32 = 1 << 3 | 1 << 5;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Packets went both ways (`IPS_SEEN_REPLY`).
pub const SEEN_REPLY: u32 = 0x2;
/// In the table, not only on the way into it (`IPS_CONFIRMED`).
pub const CONFIRMED: u32 = 0x8;
/// The source is translated.
pub const SNAT: u32 = 0x10;
/// The destination is translated.
pub const DNAT: u32 = 0x20;

/// What tells flows of one protocol apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// TCP, UDP, SCTP and what is like them.
    Ports {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Identifier.
        id: u16,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// A protocol without either.
    None,
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// From.
    pub src: IpAddr,
    /// To.
    pub dst: IpAddr,
    /// IP protocol.
    pub proto: u8,
    /// Ports.
    pub ports: Ports,
    /// Zone of this direction; 0 if none.
    pub zone: u16,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Flow {
    /// As it began.
    pub orig: Tuple,
    /// As answers come; differs from the reverse of `orig` by translation.
    pub reply: Tuple,
    /// `IPS_*`.
    pub status: u32,
    /// Mark.
    pub mark: u32,
    /// Zone; 0 is the default.
    pub zone: u16,
    /// The kernel's number, made of addresses in memory: another number is another flow, but a
    /// new flow with the same tuple can get the old one's.
    pub id: u32,
    /// Seconds until it is forgotten.
    pub timeout: u32,
    /// State of TCP (`TCP_CONNTRACK_*`: 3 is established).
    pub tcp_state: Option<u8>,
}

/// Which flows are listed; the kernel filters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only IPv6 or only IPv4.
    pub v6: Option<bool>,
    /// Only flows whose mark, under the mask, has this value: (value, mask).
    pub mark: Option<(u32, u32)>,
    /// Only flows that began to this port of this protocol. The kernel filters where `v6` says the family.
    pub to_port: Option<(u8, u16)>,
    /// Only flows that this address began: the source of the original tuple. The kernel filters by IPv4 addresses.
    pub begun_by: Option<IpAddr>,
    /// Only flows that this address answers, translated or not: the source of the reply tuple.
    pub answered_by: Option<IpAddr>,
}

impl Filter {
    /// The family that the kernel is told: an address or a port is compared by it only within one.
    fn family(&self) -> u8 {
        let of_address = self.begun_by.or(self.answered_by).map(family);
        let of_flag = self.v6.map(|v6| if v6 { AF_INET6 } else { AF_INET });
        of_address.or(of_flag).unwrap_or(AF_UNSPEC)
    }

    fn passes(&self, flow: &Flow) -> bool {
        let marked = |(value, mask)| flow.mark & mask == value & mask;
        let to_port = |(proto, port)| {
            let found = matches!(flow.orig.ports, Ports::Ports { dst, .. } if dst == port);
            flow.orig.proto == proto && found
        };
        self.mark.is_none_or(marked)
            && self.to_port.is_none_or(to_port)
            && self.begun_by.is_none_or(|addr| flow.orig.src == addr)
            && self.answered_by.is_none_or(|addr| flow.reply.src == addr)
    }
}

/// The flows that pass the filter.
pub fn list(socket: &mut Socket, filter: &Filter) -> Result<Vec<Flow>> {
    list_some(socket, filter, Some)
}

/// What `take` makes of the flows that pass the filter: of a large table only what is wanted is kept in memory. `take`
/// may see a flow twice, where the kernel's listing is begun again.
pub fn list_some<T>(
    socket: &mut Socket,
    filter: &Filter,
    mut take: impl FnMut(Flow) -> Option<T>,
) -> Result<Vec<T>> {
    let build = |batch: &mut Batch| request(batch, filter);
    socket.list(build, |message| {
        decode(&message)
            .filter(|flow| filter.passes(flow))
            .and_then(&mut take)
    })
}

/// The request for a listing. Kernels before 5.8 do not filter by port and address. By an IPv6 address the kernel is not
/// asked to filter: Linux 6.18 then leaves out exactly the flows that match (`ctnetlink_filter_match_tuple` takes the 0 of
/// `ipv6_addr_cmp` for a difference).
pub fn request(batch: &mut Batch, filter: &Filter) {
    let family = filter.family();
    batch.push(CT_GET, 0, |body| {
        body.raw(&[family, 0, 0, 0]);
        if let Some((value, mask)) = filter.mark {
            body.be32(CTA_MARK, value);
            body.be32(CTA_MARK_MASK, mask);
        }
        if family == AF_UNSPEC {
            return;
        }
        let mut orig = 0;
        if filter.to_port.is_some() {
            orig |= FILTER_PROTO_AND_DST_PORT;
        }
        let begun_by = filter.begun_by.filter(IpAddr::is_ipv4);
        let answered_by = filter.answered_by.filter(IpAddr::is_ipv4);
        if begun_by.is_some() {
            orig |= FILTER_SRC;
        }
        let reply = answered_by.map_or(0, |_| FILTER_SRC);
        if orig | reply == 0 {
            return;
        }
        body.nest(CTA_FILTER, |body| {
            for (kind, flags) in [
                (CTA_FILTER_ORIG_FLAGS, orig),
                (CTA_FILTER_REPLY_FLAGS, reply),
            ] {
                if flags != 0 {
                    body.u32(kind, flags);
                }
            }
        });
        if orig != 0 {
            body.nest(CTA_TUPLE_ORIG, |body| {
                if let Some(addr) = begun_by {
                    source(body, addr);
                }
                if let Some((proto, port)) = filter.to_port {
                    body.nest(CTA_TUPLE_PROTO, |body| {
                        body.u8(CTA_PROTO_NUM, proto);
                        body.be16(3, port);
                    });
                }
            });
        }
        if let Some(addr) = answered_by {
            body.nest(CTA_TUPLE_REPLY, |body| source(body, addr));
        }
    });
}

/// The source address of a tuple alone.
fn source(body: &mut Body<'_>, addr: IpAddr) {
    let kind = if addr.is_ipv4() { 1 } else { 3 };
    body.nest(CTA_TUPLE_IP, |body| body.ip(kind, addr));
}

/// Deletes a flow; the next packet begins a new one and meets the rules again. `ENOENT` if it is
/// gone, as a rule also when another flow took its tuple since it was listed.
pub fn delete(batch: &mut Batch, flow: &Flow) {
    push(batch, CT_DELETE, flow, |body| body.be32(CTA_ID, flow.id));
}

/// Sets the bits of the mark under `mask` to those of `value`, and leaves the others. `ENOENT` if
/// the flow is gone; another one that took its tuple since it was listed is marked.
pub fn set_mark(batch: &mut Batch, flow: &Flow, value: u32, mask: u32) {
    push(batch, CT_NEW, flow, |body| {
        body.be32(CTA_MARK, value & mask);
        body.be32(CTA_MARK_MASK, mask);
    });
}

/// The flow in a message of the tracker; `None` for anything else.
pub fn decode(message: &Message<'_>) -> Option<Flow> {
    if message.kind != CT_NEW && message.kind != CT_DELETE {
        return None;
    }
    let (mut orig, mut reply) = (None, None);
    let (mut status, mut mark, mut zone, mut id, mut timeout) = (0, 0, 0, 0, 0);
    let mut tcp_state = None;
    for attr in Attrs::after(message.body, NFGENMSG) {
        match attr.kind {
            CTA_TUPLE_ORIG => orig = decode_tuple(&attr),
            CTA_TUPLE_REPLY => reply = decode_tuple(&attr),
            CTA_STATUS => status = attr.be32()?,
            CTA_MARK => mark = attr.be32()?,
            CTA_ZONE => zone = attr.be16()?,
            CTA_ID => id = attr.be32()?,
            CTA_TIMEOUT => timeout = attr.be32()?,
            CTA_PROTOINFO => tcp_state = decode_tcp_state(&attr),
            _ => {}
        }
    }
    let (orig, reply) = (orig?, reply?);
    Some(Flow {
        orig,
        reply,
        status,
        mark,
        zone,
        id,
        timeout,
        tcp_state,
    })
}

fn push(batch: &mut Batch, kind: u16, flow: &Flow, fill: impl FnOnce(&mut Body<'_>)) {
    batch.push(kind, 0, |body| {
        body.raw(&[family(flow.orig.src), 0, 0, 0]);
        body.nest(CTA_TUPLE_ORIG, |body| encode_tuple(body, &flow.orig));
        if flow.zone != 0 {
            body.be16(CTA_ZONE, flow.zone);
        }
        fill(body);
    });
}

fn encode_tuple(body: &mut Body<'_>, tuple: &Tuple) {
    let (src, dst) = if tuple.src.is_ipv4() { (1, 2) } else { (3, 4) };
    body.nest(CTA_TUPLE_IP, |body| {
        body.ip(src, tuple.src);
        body.ip(dst, tuple.dst);
    });
    body.nest(CTA_TUPLE_PROTO, |body| {
        body.u8(CTA_PROTO_NUM, tuple.proto);
        match tuple.ports {
            Ports::Ports { src, dst } => {
                body.be16(2, src);
                body.be16(3, dst);
            }
            Ports::Icmp { id, kind, code } => {
                let first = if tuple.proto == ICMPV6 { 7 } else { 4 };
                body.be16(first, id);
                body.u8(first + 1, kind);
                body.u8(first + 2, code);
            }
            Ports::None => {}
        }
    });
    if tuple.zone != 0 {
        body.be16(CTA_TUPLE_ZONE, tuple.zone);
    }
}

fn decode_tuple(attr: &Attr<'_>) -> Option<Tuple> {
    let (mut src, mut dst, mut proto, mut zone) = (None, None, None, 0);
    for attr in attr.nested() {
        match attr.kind {
            CTA_TUPLE_IP => {
                for attr in attr.nested() {
                    match attr.kind {
                        1 | 3 => src = ip_from(attr.value),
                        2 | 4 => dst = ip_from(attr.value),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => proto = decode_proto(&attr),
            CTA_TUPLE_ZONE => zone = attr.be16()?,
            _ => {}
        }
    }
    let (proto, ports) = proto?;
    Some(Tuple {
        src: src?,
        dst: dst?,
        proto,
        ports,
        zone,
    })
}

fn decode_proto(attr: &Attr<'_>) -> Option<(u8, Ports)> {
    let find = |kind: u16| attr.nested().find(|inner| inner.kind == kind);
    let proto = find(CTA_PROTO_NUM)?.u8()?;
    let icmp = |first: u16| {
        let (id, kind, code) = (find(first)?, find(first + 1)?, find(first + 2)?);
        Some(Ports::Icmp {
            id: id.be16()?,
            kind: kind.u8()?,
            code: code.u8()?,
        })
    };
    let ports = match proto {
        ICMP => icmp(4),
        ICMPV6 => icmp(7),
        _ => find(2).zip(find(3)).and_then(|(src, dst)| {
            Some(Ports::Ports {
                src: src.be16()?,
                dst: dst.be16()?,
            })
        }),
    };
    Some((proto, ports.unwrap_or(Ports::None)))
}

fn decode_tcp_state(attr: &Attr<'_>) -> Option<u8> {
    let tcp = attr.nested().find(|inner| inner.kind == 1)?;
    tcp.nested().find(|inner| inner.kind == 1)?.u8()
}
