//! The plan: what table `inet selvage` should hold, as data.
//!
//! Always true: the same facts give the same plan, byte for byte; every name starts with a letter and is short
//! enough for nft's parser; rules of a chain never change after the chain was added (group chains are named by
//! their content, base chains depend on the configuration only), so a change is made of sets, chains and elements.
//!
//! # How an applier reads it
//! Each [`Match`] is a fixed sequence of nf_tables expressions, given at the variant. `Family` guards every rule
//! that loads a network header and `Proto` every rule that loads a single port; a concat key with `meta l4proto` in it
//! guards itself. Where a rule has several matches they stand in this order and all hold.

pub(crate) mod build;
mod delta;
mod diff;
mod elements;
mod key;
pub(crate) mod order;
pub mod text;

pub use delta::{Delta, Gen, Misfit, Op};
pub use diff::diff;
pub use elements::{Elements, Row};
pub use key::{Field, IfaceMatch, Key, KeyType, Name};

use crate::model::{Family, Proto};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The whole table at one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Table name, family inet.
    pub table: Name,
    /// Sets and verdict maps by name.
    pub sets: BTreeMap<Name, Set>,
    /// Chains by name.
    pub chains: BTreeMap<Name, Chain>,
}

/// A named set or verdict map with its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What it is.
    pub def: SetDef,
    /// Its elements; the verdict is present exactly in a map.
    pub elements: Elements,
}

impl Set {
    /// A set without elements.
    #[must_use]
    pub fn new(def: SetDef) -> Self {
        let elements = Elements::of(&def);
        Set { def, elements }
    }
}

/// What a set is, without its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetDef {
    /// Type of its keys.
    pub key: KeyType,
    /// Elements map to verdicts (NFT_SET_MAP, data type verdict).
    pub verdicts: bool,
    /// Elements are ranges (NFT_SET_INTERVAL); only with single-field keys, so an rbtree.
    pub interval: bool,
}

/// A base chain or a chain to jump to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where it hooks in; type filter, policy accept.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// The names of the sets, maps and chains that its rules use.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.rules.iter().flat_map(|rule| {
            let sets = rule.matches.iter().filter_map(|m| match m {
                Match::Lookup { set, .. } => Some(set),
                _ => None,
            });
            let target = match &rule.action {
                Action::Vmap { map, .. } => Some(map),
                Action::Verdict(Verdict::Jump(chain)) => Some(chain),
                Action::Verdict(_) | Action::Mark(_) => None,
            };
            sets.chain(target)
        })
    }
}

/// A hook and a priority; the chain type is filter, its policy accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The hook.
    pub hook: Hook,
    /// The priority, lower first.
    pub priority: i32,
}

/// A netfilter hook of the inet family; the values are NF_INET_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// Prerouting.
    Prerouting = 0,
    /// Local input.
    Input = 1,
    /// Forward.
    Forward = 2,
    /// Local output.
    Output = 3,
}

/// All matches, then what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, in order.
    pub matches: Vec<Match>,
    /// Count packets and bytes after the matches.
    pub counter: bool,
    /// Log after the counter: to this NFLOG group with this prefix (at most 127 bytes).
    pub log: Option<Log>,
    /// What happens then.
    pub action: Action,
}

/// `log group N prefix "…"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// NFLOG group.
    pub group: u16,
    /// Prefix.
    pub prefix: String,
}

/// Which address of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The source address: network header offset 12 (IPv4), 8 (IPv6).
    Source,
    /// The destination address: network header offset 16 (IPv4), 24 (IPv6).
    Destination,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `meta nfproto`: meta load NFPROTO; cmp eq 2 (IPv4) or 10 (IPv6), one byte.
    Family(Family),
    /// The packet came in by a pod's interface. See [`IfaceMatch`].
    Iif(IfaceMatch),
    /// The packet goes out by a pod's interface.
    Oif(IfaceMatch),
    /// `fib saddr type local`: fib load ADDRTYPE by SADDR; cmp eq 2 (RTN_LOCAL, host order, 4 bytes). The source address
    /// is one of the node's own, on whatever interface.
    LocalSource,
    /// `ct state established,related`: ct load STATE; bitwise and mask 0x06 (host order, 4 bytes); cmp neq 0.
    Established,
    /// `ct state new`: ct load STATE; bitwise and mask 0x08 (host order, 4 bytes); cmp neq 0.
    New,
    /// `ct state related`: ct load STATE; bitwise and mask 0x04 (host order, 4 bytes); cmp neq 0.
    Related,
    /// `ct mark & mask`: ct load MARK; bitwise and mask (host order); cmp neq 0 if `set`, else cmp eq 0.
    CtMark {
        /// Bits to look at.
        mask: u32,
        /// Whether one of them must be set, or none.
        set: bool,
    },
    /// `meta l4proto`: meta load L4PROTO; cmp eq, one byte.
    Proto(u8),
    /// `th dport`: payload load transport header offset 2, length 2; cmp eq if both are equal, else cmp gte first and
    /// cmp lte last (big endian). Always after [`Match::Proto`].
    Dport {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// No packet with which a connection begins. TCP without SYN, `tcp flags & syn == 0`: payload load transport header
    /// offset 13, length 1; bitwise and mask 0x02; cmp eq 0. SCTP with another first chunk than INIT, `@th,96,8 != 1`:
    /// payload load transport header offset 12, length 1; cmp neq 1. Always after [`Match::Proto`] of this protocol.
    NoBeginning(Connecting),
    /// `icmpv6 type`: payload load transport header offset 0, length 1; cmp gte first, cmp lte last. After `Proto(58)`.
    Icmp6Type {
        /// First type.
        first: u8,
        /// Last type.
        last: u8,
    },
    /// An address within a range: payload load (4 or 16 bytes); cmp eq if both ends are equal, else cmp gte, cmp lte.
    /// Always after [`Match::Family`].
    Addr {
        /// Which address.
        side: Side,
        /// First address.
        first: IpAddr,
        /// Last address, of the same family.
        last: IpAddr,
    },
    /// The key is an element of the set: load the parts of the key into consecutive 4-byte registers; lookup.
    Lookup {
        /// What is looked up.
        key: LookupKey,
        /// Where.
        set: Name,
    },
}

/// A protocol whose connections begin with a packet that nothing else begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connecting {
    /// SYN.
    Tcp,
    /// INIT.
    Sctp,
}

impl Connecting {
    /// The number of the protocol.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Connecting::Tcp => Proto::Tcp.number(),
            Connecting::Sctp => Proto::Sctp.number(),
        }
    }
}

/// What a rule looks up; each part is loaded to the next free 32-bit register boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupKey {
    /// `ip saddr`, `ip daddr` and the same for ip6.
    Addr(Family, Side),
    /// `th dport`, after [`Match::Proto`].
    Dport,
    /// `meta l4proto . th dport`.
    ProtoDport,
    /// `ip saddr . meta l4proto . th dport`; the port is the destination's in both directions.
    AddrProtoDport(Family, Side),
    /// `iifname . ip saddr`: 16 bytes of name, then the address.
    IifSource(Family),
    /// `ip saddr . ip daddr`.
    SourceDestination(Family),
}

impl LookupKey {
    /// The type of set that can be asked with it.
    #[must_use]
    pub fn key_type(self) -> KeyType {
        match self {
            LookupKey::Addr(family, _) => KeyType::Addr(family),
            LookupKey::Dport => KeyType::Port,
            LookupKey::ProtoDport => KeyType::ProtoPort,
            LookupKey::AddrProtoDport(family, _) => KeyType::AddrProtoPort(family),
            LookupKey::IifSource(family) => KeyType::IfnameAddr(family),
            LookupKey::SourceDestination(family) => KeyType::AddrPair(family),
        }
    }
}

/// What a rule does once it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Immediate verdict.
    Verdict(Verdict),
    /// Sets bits of the flow's mark and goes on with the next rule, `ct mark set ct mark or bits`: ct load MARK; bitwise
    /// mask !bits, xor bits (host order, 4 bytes); ct set MARK.
    Mark(u32),
    /// Lookup in a verdict map with destination register 0 (verdict); no element: next rule.
    Vmap {
        /// What is looked up.
        key: LookupKey,
        /// The verdict map.
        map: Name,
    },
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Accepted by this base chain (NF_ACCEPT, 1).
    Accept,
    /// Dropped (NF_DROP, 0).
    Drop,
    /// Back to the rule after the jump (NFT_RETURN, -5).
    Return,
    /// On to that chain, and back at its end (NFT_JUMP, -3).
    Jump(Name),
}
