//! UPDATE encoding: as many prefixes to a message as fit (RFC 4271 section 4.3, RFC 4760).

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};

use super::{
    attr::{NextHop, PathAttributes},
    attribute,
    header::{HEADER, MAX_MESSAGE, MessageType, put_message, set_u16},
    nlri,
};
use crate::{ids::Family, prefix::Prefix};

/// What the receiver has agreed to. Equal options and equal routes make equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EncodeOptions {
    /// AS numbers have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// Path identifiers precede the prefixes of this family (RFC 7911).
    pub add_path: bool,
    /// The largest message in octets: 4096, or 65535 (RFC 8654).
    pub max_message: usize,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions {
            four_octet_as: true,
            add_path: false,
            max_message: MAX_MESSAGE,
        }
    }
}

/// Why routes cannot be announced. They must be withdrawn from the peer instead (RFC 4271 section 9.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unencodable {
    /// The attributes leave no place for a prefix.
    #[error("the path attributes do not fit into a message")]
    TooLarge,
    /// The next hop is not of the family.
    #[error("the next hop is not of the address family")]
    NextHop,
}

/// What an UPDATE has besides attributes and NLRI: two length fields.
const UPDATE_FIXED: usize = HEADER + 4;
/// MP_UNREACH_NLRI up to its prefixes: flags, code, two octets of length, AFI, SAFI.
const MP_UNREACH_FIXED: usize = 4 + 3;
/// MP_REACH_NLRI up to its prefixes, without the next hop: as above, next hop length, reserved.
const MP_REACH_FIXED: usize = 4 + 3 + 2;

/// Appends UPDATEs that announce all of `nlri` with `attrs`. IPv4 goes into the classic fields, IPv6 into MP_REACH_NLRI,
/// which comes first (RFC 7606 section 5.1). Prefixes of another family are left out. Nothing is written for no prefixes.
///
/// # Errors
/// [`Unencodable`], before anything is written or taken from `nlri`.
pub fn write_reach(
    out: &mut BytesMut,
    family: Family,
    attrs: &PathAttributes,
    opts: &EncodeOptions,
    nlri: &mut impl Iterator<Item = (u32, Prefix)>,
) -> Result<(), Unencodable> {
    let mut encoded = BytesMut::with_capacity(256);
    attribute::put_all(&mut encoded, attrs, family, opts);
    let next_hop = match (family, attrs.next_hop.global) {
        (Family::Ipv4, IpAddr::V4(_)) => None,
        (Family::Ipv6, IpAddr::V6(_)) => Some(&attrs.next_hop),
        _ => return Err(Unencodable::NextHop),
    };
    let mp = next_hop.map_or(0, |n| MP_REACH_FIXED + next_hop_len(n));
    let fixed = UPDATE_FIXED + mp + encoded.len();
    if fixed + longest_prefix(family, opts) > opts.max_message {
        return Err(Unencodable::TooLarge);
    }
    let mut queue = Queue::new(family, opts, nlri);
    while !queue.is_empty() {
        let room = opts.max_message - fixed;
        put_message(out, MessageType::Update, |out| {
            out.put_u16(0);
            let attrs_at = out.len();
            out.put_u16(0);
            match next_hop {
                Some(next_hop) => {
                    put_mp(out, 14, family, |out| {
                        put_next_hop(out, next_hop);
                        out.put_u8(0);
                        queue.fill(out, room);
                    });
                    out.extend_from_slice(&encoded);
                    let len = out.len() - attrs_at - 2;
                    set_u16(out, attrs_at, len);
                }
                None => {
                    out.extend_from_slice(&encoded);
                    set_u16(out, attrs_at, encoded.len());
                    queue.fill(out, room);
                }
            }
        });
    }
    Ok(())
}

/// Appends UPDATEs that withdraw all of `nlri`. Prefixes of another family are left out.
pub fn write_unreach(
    out: &mut BytesMut,
    family: Family,
    opts: &EncodeOptions,
    nlri: &mut impl Iterator<Item = (u32, Prefix)>,
) {
    let mut queue = Queue::new(family, opts, nlri);
    while !queue.is_empty() {
        put_message(out, MessageType::Update, |out| match family {
            Family::Ipv4 => {
                let at = out.len();
                out.put_u16(0);
                queue.fill(out, opts.max_message - UPDATE_FIXED);
                let len = out.len() - at - 2;
                set_u16(out, at, len);
                out.put_u16(0);
            }
            Family::Ipv6 => put_mp_unreach(out, family, |out| {
                queue.fill(out, opts.max_message - UPDATE_FIXED - MP_UNREACH_FIXED);
            }),
        });
    }
}

/// Appends the End-of-RIB marker of `family` (RFC 4724 section 2).
pub fn write_end_of_rib(out: &mut BytesMut, family: Family) {
    put_message(out, MessageType::Update, |out| match family {
        Family::Ipv4 => out.put_u32(0),
        Family::Ipv6 => put_mp_unreach(out, family, |_| ()),
    });
}

/// The body of an UPDATE that has MP_UNREACH_NLRI only.
fn put_mp_unreach(out: &mut BytesMut, family: Family, prefixes: impl FnOnce(&mut BytesMut)) {
    out.put_u16(0);
    let at = out.len();
    out.put_u16(0);
    put_mp(out, 15, family, prefixes);
    let len = out.len() - at - 2;
    set_u16(out, at, len);
}

/// An MP attribute, always with extended length, since it is mostly long and its length is known last.
fn put_mp(out: &mut BytesMut, code: u8, family: Family, rest: impl FnOnce(&mut BytesMut)) {
    out.put_slice(&[attribute::OPTIONAL | attribute::EXTENDED, code]);
    let at = out.len();
    out.put_u16(0);
    out.put_u16(family.afi());
    out.put_u8(family.safi());
    rest(out);
    let len = out.len() - at - 2;
    set_u16(out, at, len);
}

/// The octets of a next hop in MP_REACH_NLRI (RFC 2545 section 3).
fn next_hop_len(next_hop: &NextHop) -> usize {
    if next_hop.link_local.is_some() {
        32
    } else {
        16
    }
}

fn put_next_hop(out: &mut BytesMut, next_hop: &NextHop) {
    out.put_u8(next_hop_len(next_hop) as u8);
    match next_hop.global {
        IpAddr::V4(a) => out.put_slice(&a.to_ipv6_mapped().octets()),
        IpAddr::V6(a) => out.put_slice(&a.octets()),
    }
    if let Some((link_local, _)) = next_hop.link_local {
        out.put_slice(&link_local.octets());
    }
}

fn longest_prefix(family: Family, opts: &EncodeOptions) -> usize {
    let address = match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    };
    usize::from(opts.add_path) * 4 + 1 + address
}

/// Prefixes on their way into messages, with the one that did not fit into the last.
struct Queue<'a, I> {
    family: Family,
    add_path: bool,
    next: Option<(u32, Prefix)>,
    rest: &'a mut I,
}

impl<'a, I: Iterator<Item = (u32, Prefix)>> Queue<'a, I> {
    fn new(family: Family, opts: &EncodeOptions, rest: &'a mut I) -> Self {
        let mut queue = Queue {
            family,
            add_path: opts.add_path,
            next: None,
            rest,
        };
        queue.advance();
        queue
    }

    fn advance(&mut self) {
        let family = self.family;
        self.next = self.rest.find(|(_, p)| p.family() == family);
    }

    fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    /// Appends prefixes while they fit into `room` octets.
    fn fill(&mut self, out: &mut BytesMut, room: usize) {
        let limit = out.len() + room;
        while let Some((id, prefix)) = self.next {
            let id = self.add_path.then_some(id);
            if out.len() + nlri::encoded_len(id, &prefix) > limit {
                return;
            }
            nlri::put(out, id, &prefix);
            self.advance();
        }
    }
}
