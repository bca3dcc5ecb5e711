//! Expressions: what rules are made of, in both directions.
//!
//! What is written and listed again compares equal, counters aside. The kernel evaluates the
//! expressions of a rule from left to right; a comparison that fails ends the rule.

use std::net::IpAddr;

use super::{DATA_VERDICT, Verdict, get_value, put_value};
use crate::attr::{Attr, Attrs, Body};

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// Flags of a translation that the kernel adds itself: there is an address, there is a port.
const NAT_DERIVED: u32 = 3;

/// A register: sixteen of four bytes. A value of more bytes takes those that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(u32);

impl Reg {
    /// The verdict register.
    pub const VERDICT: Self = Self(0);
    /// The first register, for what has one value.
    pub const FIRST: Self = Self(1);

    /// Register `slot`, 0 to 15, counted in four bytes; higher ones are taken as 15.
    pub const fn slot(slot: u8) -> Self {
        let slot = if slot > 15 { 15 } else { slot as u32 };
        if slot.is_multiple_of(4) {
            Self(1 + slot / 4)
        } else {
            Self(8 + slot)
        }
    }

    /// From the kernel's number, which names the registers that begin at sixteen bytes twice.
    fn from_number(number: u32) -> Self {
        match number {
            8 | 12 | 16 | 20 => Self(number / 4 - 1),
            other => Self(other),
        }
    }
}

/// Where an offset into a packet counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum PayloadBase {
    /// The link header.
    Link = 0,
    /// The IP header.
    Network = 1,
    /// The transport header.
    Transport = 2,
}

/// What about a packet is asked (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Meta(pub u32);

impl Meta {
    /// Packet mark, 4 bytes, host order.
    pub const MARK: Self = Self(3);
    /// Index of the input interface, 4 bytes, host order.
    pub const IIF: Self = Self(4);
    /// Index of the output interface.
    pub const OIF: Self = Self(5);
    /// Name of the input interface, 16 bytes.
    pub const IIFNAME: Self = Self(6);
    /// Name of the output interface, 16 bytes.
    pub const OIFNAME: Self = Self(7);
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10), 1 byte.
    pub const NFPROTO: Self = Self(15);
    /// Transport protocol, 1 byte.
    pub const L4PROTO: Self = Self(16);
    /// Link group of the input interface, 4 bytes, host order.
    pub const IIFGROUP: Self = Self(21);
    /// Link group of the output interface.
    pub const OIFGROUP: Self = Self(22);
}

/// What about a flow is asked (`NFT_CT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CtKey(pub u32);

impl CtKey {
    /// [`ct_state`], 4 bytes, host order.
    pub const STATE: Self = Self(0);
    /// 0 original, 1 reply, 1 byte.
    pub const DIRECTION: Self = Self(1);
    /// `IPS_*`, 4 bytes, host order.
    pub const STATUS: Self = Self(2);
    /// Mark, 4 bytes, host order.
    pub const MARK: Self = Self(3);
}

/// Bits of [`CtKey::STATE`].
pub mod ct_state {
    /// Belongs to no flow that can be.
    pub const INVALID: u32 = 1;
    /// Packets went both ways.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another flow (an ICMP error).
    pub const RELATED: u32 = 4;
    /// The first of a flow.
    pub const NEW: u32 = 8;
    /// Not tracked.
    pub const UNTRACKED: u32 = 64;
}

/// How values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CmpOp {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Ne = 1,
    /// Less, as bytes from the left.
    Lt = 2,
    /// Less or equal.
    Le = 3,
    /// Greater.
    Gt = 4,
    /// Greater or equal.
    Ge = 5,
}

/// What is asked of the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FibResult {
    /// The index of the output interface, 4 bytes; with [`fib::PRESENT`] 1 byte, 0 or 1.
    Oif = 1,
    /// Its name, 16 bytes.
    OifName = 2,
    /// `RTN_*` of the address, 4 bytes, host order: 1 unicast, 2 local.
    AddressType = 3,
}

/// Flags of a look-up in the routing table.
pub mod fib {
    /// Of the source address.
    pub const SADDR: u32 = 1;
    /// Of the destination address.
    pub const DADDR: u32 = 2;
    /// With the packet's mark.
    pub const MARK: u32 = 4;
    /// Only over the input interface.
    pub const IIF: u32 = 8;
    /// Only over the output interface.
    pub const OIF: u32 = 16;
    /// Only whether there is a result.
    pub const PRESENT: u32 = 32;
}

/// Which address a translation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NatKind {
    /// The source.
    Source = 0,
    /// The destination.
    Destination = 1,
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// To here.
        dreg: Reg,
        /// From here.
        base: PayloadBase,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// Loads what is known about the packet.
    Meta {
        /// To here.
        dreg: Reg,
        /// What.
        key: Meta,
    },
    /// Sets what is known about the packet (mark).
    MetaSet {
        /// From here.
        sreg: Reg,
        /// What.
        key: Meta,
    },
    /// Goes on if the comparison holds.
    Cmp {
        /// What is compared.
        sreg: Reg,
        /// How.
        op: CmpOp,
        /// With what.
        value: Vec<u8>,
    },
    /// Goes on if the value is in the range, or outside of it.
    Range {
        /// What is compared.
        sreg: Reg,
        /// Outside.
        outside: bool,
        /// First value.
        from: Vec<u8>,
        /// Last value.
        to: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// From here.
        sreg: Reg,
        /// To here.
        dreg: Reg,
        /// As long as the value.
        mask: Vec<u8>,
        /// As long as the value.
        xor: Vec<u8>,
    },
    /// Loads a constant.
    Immediate {
        /// To here.
        dreg: Reg,
        /// The constant.
        value: Vec<u8>,
    },
    /// Ends with a verdict.
    Verdict(Verdict),
    /// Goes on if the value is in the set (or is not); with `dreg` loads what it is mapped to.
    /// [`Reg::VERDICT`] makes a verdict map of it.
    Lookup {
        /// Name of the set or map.
        set: String,
        /// The value.
        sreg: Reg,
        /// Where to, for a map.
        dreg: Option<Reg>,
        /// Goes on if the value is not in the set.
        inverted: bool,
    },
    /// Loads what is known about the flow.
    Ct {
        /// To here.
        dreg: Reg,
        /// What.
        key: CtKey,
        /// 0 original, 1 reply, for the keys that have two.
        direction: Option<u8>,
    },
    /// Sets what is known about the flow (mark).
    CtSet {
        /// From here.
        sreg: Reg,
        /// What.
        key: CtKey,
    },
    /// Counts; the values are those at the start, and as listed.
    Counter {
        /// Packets.
        packets: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Copies the packet to an NFLOG group, or writes a line to the kernel's log.
    Log {
        /// NFLOG group; `None` is the kernel's log.
        group: Option<u16>,
        /// At most 127 bytes.
        prefix: String,
        /// Bytes of the packet; 0 is all of it.
        snaplen: u32,
    },
    /// Goes on below a rate, or above it.
    Limit {
        /// Per unit.
        rate: u64,
        /// Unit in seconds: 1, 60, 3600, …
        unit: u64,
        /// Beyond the rate at once.
        burst: u32,
        /// Counts bytes, not packets.
        bytes: bool,
        /// Goes on above the rate.
        over: bool,
    },
    /// Asks the routing table.
    Fib {
        /// To here.
        dreg: Reg,
        /// What.
        result: FibResult,
        /// See [`fib`].
        flags: u32,
    },
    /// Takes the output interface's address as the source.
    Masquerade {
        /// `NF_NAT_RANGE_*`: 4 random ports, 16 fully random.
        flags: u32,
    },
    /// Changes address and port.
    Nat {
        /// Which.
        kind: NatKind,
        /// Whether IPv6.
        v6: bool,
        /// The new address.
        addr: Option<Reg>,
        /// The new port.
        port: Option<Reg>,
        /// `NF_NAT_RANGE_*`.
        flags: u32,
    },
    /// The packet's flow is not tracked.
    NoTrack,
    /// One that this crate does not know, as listed; its attributes as they are.
    Other {
        /// Name.
        name: String,
        /// Attributes.
        data: Vec<u8>,
    },
}

/// Short ways to write what is often needed. Each loads into the first register and compares.
impl Expr {
    /// Loads what is known about the packet.
    pub const fn meta(key: Meta) -> Self {
        Self::Meta {
            dreg: Reg::FIRST,
            key,
        }
    }

    /// Compares the first register for equality.
    pub fn eq(value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp {
            sreg: Reg::FIRST,
            op: CmpOp::Eq,
            value: value.into(),
        }
    }

    /// Compares the first register for inequality.
    pub fn ne(value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp {
            sreg: Reg::FIRST,
            op: CmpOp::Ne,
            value: value.into(),
        }
    }

    /// The packet's family.
    pub fn family(v6: bool) -> [Self; 2] {
        [
            Self::meta(Meta::NFPROTO),
            Self::eq([if v6 { 10 } else { 2 }]),
        ]
    }

    /// The transport protocol.
    pub fn l4proto(number: u8) -> [Self; 2] {
        [Self::meta(Meta::L4PROTO), Self::eq([number])]
    }

    /// The link group of the input interface.
    pub fn iif_group(group: u32) -> [Self; 2] {
        [Self::meta(Meta::IIFGROUP), Self::eq(group.to_ne_bytes())]
    }

    /// The link group of the output interface.
    pub fn oif_group(group: u32) -> [Self; 2] {
        [Self::meta(Meta::OIFGROUP), Self::eq(group.to_ne_bytes())]
    }

    /// One of these states of the flow.
    pub fn ct_states(states: u32) -> [Self; 3] {
        [Self::ct(CtKey::STATE), Self::and(states), Self::ne([0; 4])]
    }

    /// A bit of the flow's mark that is set, of these.
    pub fn ct_mark_any(bits: u32) -> [Self; 3] {
        [Self::ct(CtKey::MARK), Self::and(bits), Self::ne([0; 4])]
    }

    /// Loads what is known about the flow.
    pub const fn ct(key: CtKey) -> Self {
        Self::Ct {
            dreg: Reg::FIRST,
            key,
            direction: None,
        }
    }

    /// Masks the four bytes in the first register, in the host's order.
    pub fn and(mask: u32) -> Self {
        let mask = mask.to_ne_bytes().to_vec();
        Self::Bitwise {
            sreg: Reg::FIRST,
            dreg: Reg::FIRST,
            mask,
            xor: vec![0; 4],
        }
    }

    /// Loads the source address.
    pub const fn source(v6: bool, dreg: Reg) -> Self {
        let (offset, len) = if v6 { (8, 16) } else { (12, 4) };
        Self::Payload {
            dreg,
            base: PayloadBase::Network,
            offset,
            len,
        }
    }

    /// Loads the destination address.
    pub const fn destination(v6: bool, dreg: Reg) -> Self {
        let (offset, len) = if v6 { (24, 16) } else { (16, 4) };
        Self::Payload {
            dreg,
            base: PayloadBase::Network,
            offset,
            len,
        }
    }

    /// Loads the source port of TCP, UDP or SCTP.
    pub const fn source_port(dreg: Reg) -> Self {
        Self::Payload {
            dreg,
            base: PayloadBase::Transport,
            offset: 0,
            len: 2,
        }
    }

    /// Loads the destination port of TCP, UDP or SCTP.
    pub const fn destination_port(dreg: Reg) -> Self {
        Self::Payload {
            dreg,
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
        }
    }

    /// The first register is in a set, or not.
    pub fn in_set(set: impl Into<String>, inverted: bool) -> Self {
        Self::Lookup {
            set: set.into(),
            sreg: Reg::FIRST,
            dreg: None,
            inverted,
        }
    }

    /// The verdict that the first register is mapped to.
    pub fn vmap(map: impl Into<String>) -> Self {
        let dreg = Some(Reg::VERDICT);
        Self::Lookup {
            set: map.into(),
            sreg: Reg::FIRST,
            dreg,
            inverted: false,
        }
    }

    /// A counter that starts at 0.
    pub const COUNTER: Self = Self::Counter {
        packets: 0,
        bytes: 0,
    };

    /// Accepts.
    pub const ACCEPT: Self = Self::Verdict(Verdict::Accept);

    /// Drops.
    pub const DROP: Self = Self::Verdict(Verdict::Drop);

    /// Jumps to a chain.
    pub fn jump(chain: impl Into<String>) -> Self {
        Self::Verdict(Verdict::Jump(chain.into()))
    }

    /// Loads an address.
    pub fn load_addr(addr: IpAddr, dreg: Reg) -> Self {
        let value = match addr {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self::Immediate { dreg, value }
    }
}

impl Expr {
    /// The kernel's name of the expression.
    pub fn name(&self) -> &str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Counter { .. } => "counter",
            Self::Log { .. } => "log",
            Self::Limit { .. } => "limit",
            Self::Fib { .. } => "fib",
            Self::Masquerade { .. } => "masq",
            Self::Nat { .. } => "nat",
            Self::NoTrack => "notrack",
            Self::Other { name, .. } => name,
        }
    }

    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        body.nest(LIST_ELEM, |body| {
            body.text(EXPR_NAME, self.name());
            body.nest(EXPR_DATA, |body| self.encode_data(body));
        });
    }

    fn encode_data(&self, body: &mut Body<'_>) {
        match self {
            Self::Payload {
                dreg,
                base,
                offset,
                len,
            } => {
                put(
                    body,
                    &[(1, dreg.0), (2, *base as u32), (3, *offset), (4, *len)],
                );
            }
            Self::Meta { dreg, key } => put(body, &[(2, key.0), (1, dreg.0)]),
            Self::MetaSet { sreg, key } => put(body, &[(2, key.0), (3, sreg.0)]),
            Self::Cmp { sreg, op, value } => {
                put(body, &[(1, sreg.0), (2, *op as u32)]);
                put_value(body, 3, value);
            }
            Self::Range {
                sreg,
                outside,
                from,
                to,
            } => {
                put(body, &[(1, sreg.0), (2, u32::from(*outside))]);
                put_value(body, 3, from);
                put_value(body, 4, to);
            }
            Self::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                put(body, &[(1, sreg.0), (2, dreg.0), (3, mask.len() as u32)]);
                put_value(body, 4, mask);
                put_value(body, 5, xor);
            }
            Self::Immediate { dreg, value } => {
                put(body, &[(1, dreg.0)]);
                put_value(body, 2, value);
            }
            Self::Verdict(verdict) => {
                put(body, &[(1, Reg::VERDICT.0)]);
                body.nest(2, |body| verdict.encode(body));
            }
            Self::Lookup {
                set,
                sreg,
                dreg,
                inverted,
            } => {
                body.text(1, set);
                put(body, &[(2, sreg.0)]);
                put_some(body, 3, dreg.map(|dreg| dreg.0));
                put(body, &[(5, u32::from(*inverted))]);
            }
            Self::Ct {
                dreg,
                key,
                direction,
            } => {
                put(body, &[(2, key.0), (1, dreg.0)]);
                if let Some(direction) = direction {
                    body.u8(3, *direction);
                }
            }
            Self::CtSet { sreg, key } => put(body, &[(2, key.0), (4, sreg.0)]),
            Self::Counter { packets, bytes } => {
                body.be64(1, *bytes);
                body.be64(2, *packets);
            }
            Self::Log {
                group,
                prefix,
                snaplen,
            } => {
                if let Some(group) = group {
                    body.be16(1, *group);
                    put_some(body, 3, Some(*snaplen).filter(|&bytes| bytes != 0));
                }
                if !prefix.is_empty() {
                    body.text(2, prefix);
                }
            }
            Self::Limit {
                rate,
                unit,
                burst,
                bytes,
                over,
            } => {
                body.be64(1, *rate);
                body.be64(2, *unit);
                put(
                    body,
                    &[(3, *burst), (4, u32::from(*bytes)), (5, u32::from(*over))],
                );
            }
            Self::Fib {
                dreg,
                result,
                flags,
            } => {
                put(body, &[(1, dreg.0), (2, *result as u32), (3, *flags)]);
            }
            Self::Masquerade { flags } => {
                put_some(body, 1, Some(*flags).filter(|&flags| flags != 0));
            }
            Self::Nat {
                kind,
                v6,
                addr,
                port,
                flags,
            } => {
                put(body, &[(1, *kind as u32), (2, if *v6 { 10 } else { 2 })]);
                put_some(body, 3, addr.map(|reg| reg.0));
                put_some(body, 5, port.map(|reg| reg.0));
                put_some(body, 7, Some(*flags).filter(|&flags| flags != 0));
            }
            Self::NoTrack => {}
            Self::Other { data, .. } => body.raw(data),
        }
    }

    /// All expressions of a rule, from what is inside of `NFTA_RULE_EXPRESSIONS`.
    pub(crate) fn decode_list(attr: &Attr<'_>) -> Vec<Self> {
        attr.nested()
            .filter(|attr| attr.kind == LIST_ELEM)
            .filter_map(|a| Self::decode(&a))
            .collect()
    }

    fn decode(attr: &Attr<'_>) -> Option<Self> {
        let (mut name, mut data): (_, &[u8]) = (None, &[]);
        for attr in attr.nested() {
            match attr.kind {
                EXPR_NAME => name = Some(attr.text()),
                EXPR_DATA => data = attr.value,
                _ => {}
            }
        }
        let name = name?;
        let known = Self::decode_data(&name, &Fields(data));
        Some(known.unwrap_or_else(|| Self::Other {
            name,
            data: data.to_vec(),
        }))
    }

    fn decode_data(name: &str, fields: &Fields<'_>) -> Option<Self> {
        Some(match name {
            "payload" => Self::Payload {
                dreg: fields.reg(1)?,
                base: match fields.be32(2)? {
                    0 => PayloadBase::Link,
                    1 => PayloadBase::Network,
                    2 => PayloadBase::Transport,
                    _ => return None,
                },
                offset: fields.be32(3)?,
                len: fields.be32(4)?,
            },
            "meta" => match (fields.reg(1), fields.reg(3)) {
                (Some(dreg), _) => Self::Meta {
                    dreg,
                    key: Meta(fields.be32(2)?),
                },
                (None, sreg) => Self::MetaSet {
                    sreg: sreg?,
                    key: Meta(fields.be32(2)?),
                },
            },
            "cmp" => Self::Cmp {
                sreg: fields.reg(1)?,
                op: cmp_op(fields.be32(2)?)?,
                value: fields.value(3)?,
            },
            "range" => Self::Range {
                sreg: fields.reg(1)?,
                outside: fields.be32(2)? == 1,
                from: fields.value(3)?,
                to: fields.value(4)?,
            },
            // Shifts and what came later have another operation.
            "bitwise" if fields.be32(6).unwrap_or_default() == 0 => Self::Bitwise {
                sreg: fields.reg(1)?,
                dreg: fields.reg(2)?,
                mask: fields.value(4)?,
                xor: fields.value(5)?,
            },
            "immediate" => match fields.verdict(2) {
                Some(verdict) => Self::Verdict(verdict),
                None => Self::Immediate {
                    dreg: fields.reg(1)?,
                    value: fields.value(2)?,
                },
            },
            "lookup" => Self::Lookup {
                set: fields.get(1)?.text(),
                sreg: fields.reg(2)?,
                dreg: fields.reg(3),
                inverted: fields.be32(5).unwrap_or_default() & 1 != 0,
            },
            "ct" => match (fields.reg(1), fields.reg(4)) {
                (Some(dreg), _) => Self::Ct {
                    dreg,
                    key: CtKey(fields.be32(2)?),
                    direction: fields.get(3).and_then(|attr| attr.u8()),
                },
                (None, sreg) => Self::CtSet {
                    sreg: sreg?,
                    key: CtKey(fields.be32(2)?),
                },
            },
            "counter" => Self::Counter {
                packets: fields.get(2)?.be64()?,
                bytes: fields.get(1)?.be64()?,
            },
            "log" => Self::Log {
                group: fields.get(1).and_then(|attr| attr.be16()),
                prefix: fields.get(2).map(|attr| attr.text()).unwrap_or_default(),
                snaplen: fields.be32(3).unwrap_or_default(),
            },
            "limit" => Self::Limit {
                rate: fields.get(1)?.be64()?,
                unit: fields.get(2)?.be64()?,
                burst: fields.be32(3).unwrap_or_default(),
                bytes: fields.be32(4).unwrap_or_default() == 1,
                over: fields.be32(5).unwrap_or_default() & 1 != 0,
            },
            "fib" => Self::Fib {
                dreg: fields.reg(1)?,
                result: match fields.be32(2)? {
                    1 => FibResult::Oif,
                    2 => FibResult::OifName,
                    3 => FibResult::AddressType,
                    _ => return None,
                },
                flags: fields.be32(3)?,
            },
            "masq" if fields.get(2).is_none() => Self::Masquerade {
                flags: fields.be32(1).unwrap_or_default(),
            },
            "nat" => fields.nat()?,
            "notrack" => Self::NoTrack,
            _ => return None,
        })
    }
}

fn put(body: &mut Body<'_>, fields: &[(u16, u32)]) {
    fields
        .iter()
        .for_each(|&(kind, value)| body.be32(kind, value));
}

fn put_some(body: &mut Body<'_>, kind: u16, value: Option<u32>) {
    if let Some(value) = value {
        body.be32(kind, value);
    }
}

fn cmp_op(number: u32) -> Option<CmpOp> {
    use CmpOp::{Eq, Ge, Gt, Le, Lt, Ne};
    [Eq, Ne, Lt, Le, Gt, Ge]
        .into_iter()
        .find(|&op| op as u32 == number)
}

/// The attributes of one expression, found by type.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn get(&self, kind: u16) -> Option<Attr<'a>> {
        Attrs::new(self.0).find(|attr| attr.kind == kind)
    }

    fn be32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.be32()
    }

    fn reg(&self, kind: u16) -> Option<Reg> {
        self.be32(kind).map(Reg::from_number)
    }

    fn value(&self, kind: u16) -> Option<Vec<u8>> {
        get_value(&self.get(kind)?)
    }

    fn verdict(&self, kind: u16) -> Option<Verdict> {
        let data = self.get(kind)?;
        let verdict = data.nested().find(|attr| attr.kind == DATA_VERDICT)?;
        Verdict::decode(&verdict)
    }

    /// A range of addresses or ports is not ours.
    fn nat(&self) -> Option<Expr> {
        let (addr, port) = (self.reg(3), self.reg(5));
        if self.reg(4).is_some_and(|max| Some(max) != addr)
            || self.reg(6).is_some_and(|max| Some(max) != port)
        {
            return None;
        }
        let kind = match self.be32(1)? {
            0 => NatKind::Source,
            1 => NatKind::Destination,
            _ => return None,
        };
        let v6 = match self.be32(2)? {
            2 => false,
            10 => true,
            _ => return None,
        };
        Some(Expr::Nat {
            kind,
            v6,
            addr,
            port,
            flags: self.be32(7).unwrap_or_default() & !NAT_DERIVED,
        })
    }
}
