//! Capabilities (RFC 5492 and those that define them).
//!
//! A capability that we do not know, or whose value we cannot read where that does no harm, is kept as bytes and has no effect.

use bytes::BufMut;
use nom::{
    IResult, Parser,
    bytes::complete::take,
    combinator::all_consuming,
    multi::{length_data, many0},
    number::complete::{be_u8, be_u16, be_u24, be_u32},
};

use crate::ids::{Asn, Family};

/// A capability in an OPEN. Numbers of families that we do not carry are kept as they are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Capability {
    /// 1: a family (RFC 4760).
    MultiProtocol {
        /// The address family number.
        afi: u16,
        /// The subsequent address family.
        safi: u8,
    },
    /// 2: ROUTE-REFRESH (RFC 2918).
    RouteRefresh,
    /// 6: messages of up to 65535 octets (RFC 8654).
    ExtendedMessage,
    /// 64: graceful restart (RFC 4724).
    GracefulRestart(Restart),
    /// 65: four-octet AS numbers, and the sender's own (RFC 6793).
    FourOctetAs(Asn),
    /// 69: several paths (RFC 7911).
    AddPath(Vec<AddPath>),
    /// 70: begin and end of a refresh are marked (RFC 7313).
    EnhancedRefresh,
    /// 71: long-lived graceful restart (RFC 9494).
    LongLivedRestart(Vec<LongLivedFamily>),
    /// Any other, or one with an unexpected value.
    Other {
        /// Its number (IANA "Capability Codes").
        code: u8,
        /// Its value, 255 octets at most.
        value: Vec<u8>,
    },
}

/// The longest time in [`LongLivedFamily`], in seconds: 24 bits.
pub const MAX_LONG_LIVED_TIME: u32 = 0x00ff_ffff;

/// The graceful restart capability (RFC 4724 section 3, RFC 8538 section 2).
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Restart {
    /// R: the sender has just restarted.
    pub restarting: bool,
    /// N: routes are kept over a NOTIFICATION, too.
    pub notification: bool,
    /// How long a restart takes, in seconds; 12 bits.
    pub time: u16,
    /// The families.
    pub families: Vec<RestartFamily>,
}

/// A family in [`Restart`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RestartFamily {
    /// The address family number.
    pub afi: u16,
    /// The subsequent address family.
    pub safi: u8,
    /// F: forwarding state was kept.
    pub forwarding: bool,
}

/// A family in [`Capability::LongLivedRestart`] (RFC 9494 section 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LongLivedFamily {
    /// The address family number.
    pub afi: u16,
    /// The subsequent address family.
    pub safi: u8,
    /// F: forwarding state was kept.
    pub forwarding: bool,
    /// How long others shall keep the sender's routes as stale, after the restart time; in seconds, 24 bits.
    pub time: u32,
}

/// A family in [`Capability::AddPath`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddPath {
    /// The address family number.
    pub afi: u16,
    /// The subsequent address family.
    pub safi: u8,
    /// 1: the sender can receive several paths; 2: it can send them; 3: both.
    pub mode: u8,
}

impl Capability {
    /// The capability of a family.
    pub fn family(family: Family) -> Capability {
        Capability::MultiProtocol {
            afi: family.afi(),
            safi: family.safi(),
        }
    }

    /// Its number (IANA "Capability Codes").
    pub fn code(&self) -> u8 {
        match self {
            Capability::MultiProtocol { .. } => 1,
            Capability::RouteRefresh => 2,
            Capability::ExtendedMessage => 6,
            Capability::GracefulRestart(_) => 64,
            Capability::FourOctetAs(_) => 65,
            Capability::AddPath(_) => 69,
            Capability::EnhancedRefresh => 70,
            Capability::LongLivedRestart(_) => 71,
            Capability::Other { code, .. } => *code,
        }
    }

    /// Appends code, length and value.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u8(self.code());
        let at = out.len();
        out.put_u8(0);
        match self {
            Capability::MultiProtocol { afi, safi } => {
                out.put_u16(*afi);
                out.put_u8(0);
                out.put_u8(*safi);
            }
            Capability::RouteRefresh
            | Capability::ExtendedMessage
            | Capability::EnhancedRefresh => {}
            Capability::GracefulRestart(r) => {
                let flags = u16::from(r.restarting) << 15 | u16::from(r.notification) << 14;
                out.put_u16(flags | r.time & 0x0fff);
                for f in r.families.iter().take(63) {
                    out.put_u16(f.afi);
                    out.put_u8(f.safi);
                    out.put_u8(u8::from(f.forwarding) << 7);
                }
            }
            Capability::FourOctetAs(asn) => out.put_u32(asn.0),
            Capability::AddPath(families) => {
                for f in families.iter().take(63) {
                    out.put_u16(f.afi);
                    out.put_u8(f.safi);
                    out.put_u8(f.mode);
                }
            }
            Capability::LongLivedRestart(families) => {
                for f in families.iter().take(36) {
                    out.put_u16(f.afi);
                    out.put_u8(f.safi);
                    out.put_u8(u8::from(f.forwarding) << 7);
                    out.put_uint(u64::from(f.time.min(MAX_LONG_LIVED_TIME)), 3);
                }
            }
            Capability::Other { value, .. } => out.put_slice(value.get(..255).unwrap_or(value)),
        }
        let len = out.len() - at - 1;
        if let Some(octet) = out.get_mut(at) {
            *octet = len as u8;
        }
    }
}

/// Reads the capabilities in the value of one optional parameter. `None`: the lengths contradict each other, or a
/// capability without which no session can be negotiated (families, AS number) has a wrong length.
pub fn decode_all(value: &[u8]) -> Option<Vec<Capability>> {
    let tlv = |i| -> IResult<&[u8], (u8, &[u8])> { (be_u8, length_data(be_u8)).parse(i) };
    let (_, all) = all_consuming(many0(tlv)).parse(value).ok()?;
    all.into_iter().map(|(code, v)| decode(code, v)).collect()
}

fn decode(code: u8, value: &[u8]) -> Option<Capability> {
    let whole = |parser: fn(&[u8]) -> IResult<&[u8], Capability>| {
        let (_, capability) = all_consuming(parser).parse(value).ok()?;
        Some(capability)
    };
    let known = match code {
        1 => return whole(multi_protocol),
        65 => return whole(four_octet_as),
        2 if value.is_empty() => Some(Capability::RouteRefresh),
        6 if value.is_empty() => Some(Capability::ExtendedMessage),
        70 if value.is_empty() => Some(Capability::EnhancedRefresh),
        64 => whole(graceful_restart),
        69 => whole(add_path),
        71 => whole(long_lived_restart),
        _ => None,
    };
    Some(known.unwrap_or_else(|| Capability::Other {
        code,
        value: value.to_vec(),
    }))
}

fn multi_protocol(i: &[u8]) -> IResult<&[u8], Capability> {
    (be_u16, take(1usize), be_u8)
        .map(|(afi, _, safi)| Capability::MultiProtocol { afi, safi })
        .parse(i)
}

fn four_octet_as(i: &[u8]) -> IResult<&[u8], Capability> {
    be_u32.map(|asn| Capability::FourOctetAs(Asn(asn))).parse(i)
}

fn graceful_restart(i: &[u8]) -> IResult<&[u8], Capability> {
    let family = (be_u16, be_u8, be_u8).map(|(afi, safi, flags)| RestartFamily {
        afi,
        safi,
        forwarding: flags & 0x80 != 0,
    });
    (be_u16, many0(family))
        .map(|(head, families)| {
            Capability::GracefulRestart(Restart {
                restarting: head & 0x8000 != 0,
                notification: head & 0x4000 != 0,
                time: head & 0x0fff,
                families,
            })
        })
        .parse(i)
}

fn long_lived_restart(i: &[u8]) -> IResult<&[u8], Capability> {
    let family = (be_u16, be_u8, be_u8, be_u24).map(|(afi, safi, flags, time)| LongLivedFamily {
        afi,
        safi,
        forwarding: flags & 0x80 != 0,
        time,
    });
    many0(family).map(Capability::LongLivedRestart).parse(i)
}

fn add_path(i: &[u8]) -> IResult<&[u8], Capability> {
    let family = (be_u16, be_u8, be_u8).map(|(afi, safi, mode)| AddPath { afi, safi, mode });
    many0(family).map(Capability::AddPath).parse(i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_captured() {
        for (bytes, capability) in [
            (&[1, 4, 0, 2, 0, 1][..], Capability::family(Family::Ipv6)),
            (&[2, 0], Capability::RouteRefresh),
            (&[6, 0], Capability::ExtendedMessage),
            (&[65, 4, 0, 1, 0, 0], Capability::FourOctetAs(Asn(65536))),
            (&[70, 0], Capability::EnhancedRefresh),
            (
                &[64, 6, 0xc0, 120, 0, 1, 1, 0x80],
                Capability::GracefulRestart(Restart {
                    restarting: true,
                    notification: true,
                    time: 120,
                    families: vec![RestartFamily {
                        afi: 1,
                        safi: 1,
                        forwarding: true,
                    }],
                }),
            ),
            (
                &[69, 4, 0, 1, 1, 3],
                Capability::AddPath(vec![AddPath {
                    afi: 1,
                    safi: 1,
                    mode: 3,
                }]),
            ),
            (
                &[71, 7, 0, 2, 1, 0x80, 0, 0x0e, 0x10],
                Capability::LongLivedRestart(vec![LongLivedFamily {
                    afi: 2,
                    safi: 1,
                    forwarding: true,
                    time: 3600,
                }]),
            ),
            (
                &[73, 2, 1, b'a'],
                Capability::Other {
                    code: 73,
                    value: vec![1, b'a'],
                },
            ),
        ] {
            assert_eq!(decode_all(bytes), Some(vec![capability.clone()]));
            let mut out = Vec::new();
            capability.put(&mut out);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn wrong_lengths() {
        for (bytes, readable) in [
            (&[1][..], false),
            (&[1, 4, 0, 1, 0], false),
            (&[1, 3, 0, 1, 0], false),
            (&[1, 5, 0, 1, 0, 1, 0], false),
            (&[65, 2, 0, 1], false),
            (&[65, 0], false),
            (&[2, 255], false),
            // Without effect, but no harm either.
            (&[2, 1, 0], true),
            (&[64, 1, 0], true),
            (&[64, 3, 0, 120, 0], true),
            (&[69, 3, 0, 1, 1], true),
            (&[71, 6, 0, 1, 1, 0, 0, 0], true),
            (&[71, 0], true),
            (&[75, 0], true),
        ] {
            assert_eq!(decode_all(bytes).is_some(), readable, "{bytes:?}");
        }
    }
}
