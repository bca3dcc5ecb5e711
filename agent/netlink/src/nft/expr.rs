//! Expressions: what rules are made of, in both directions.
//!
//! What is written and listed again compares equal, counters aside. The kernel evaluates the
//! expressions of a rule from left to right; a comparison that fails ends the rule.

use std::net::IpAddr;

use super::Verdict;
/// A register: sixteen of four bytes. A value of more bytes takes those that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(pub(super) u32);

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
    pub(super) fn from_number(number: u32) -> Self {
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
