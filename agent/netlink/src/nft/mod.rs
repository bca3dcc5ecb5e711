//! nf_tables without `nft`: tables, chains, sets and rules are written in one [`Transaction`],
//! listed by [`list`], and watched by [`Watch`].
//!
//! Numbers go in network order; what is a value of the packet (keys, comparisons) is given as the
//! bytes that the kernel compares. Everything written here can be listed by `nft` 1.0.6; names that
//! are words of its language (`all`, `fwd`, `snat`, `dnat`) are for the caller to avoid.

mod codec;
mod element;
pub mod expr;
pub mod list;
mod set;
mod transaction;
mod watch;

pub use element::{Data, Element, Span};
pub use expr::{Expr, Reg};
pub use set::{DataType, MapData, Set};
pub use transaction::Transaction;
pub use watch::{Change, NftEvent, Object, Watch};

use crate::attr::{Attr, Body};

/// The subsystem in the upper half of message types.
pub(crate) const SUBSYSTEM: u16 = 10 << 8;
/// Size of `struct nfgenmsg`.
pub(crate) const NFGENMSG: usize = 4;

pub(crate) const NEWTABLE: u16 = 0;
pub(crate) const GETTABLE: u16 = 1;
pub(crate) const DELTABLE: u16 = 2;
pub(crate) const NEWCHAIN: u16 = 3;
pub(crate) const GETCHAIN: u16 = 4;
pub(crate) const DELCHAIN: u16 = 5;
pub(crate) const NEWRULE: u16 = 6;
pub(crate) const GETRULE: u16 = 7;
pub(crate) const DELRULE: u16 = 8;
pub(crate) const NEWSET: u16 = 9;
pub(crate) const GETSET: u16 = 10;
pub(crate) const DELSET: u16 = 11;
pub(crate) const NEWSETELEM: u16 = 12;
pub(crate) const GETSETELEM: u16 = 13;
pub(crate) const DELSETELEM: u16 = 14;
pub(crate) const NEWGEN: u16 = 15;
pub(crate) const GETGEN: u16 = 16;
pub(crate) const NEWOBJ: u16 = 18;
pub(crate) const DELOBJ: u16 = 20;
pub(crate) const NEWFLOWTABLE: u16 = 22;
pub(crate) const DELFLOWTABLE: u16 = 24;

const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// The family of a table (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// Ingress and egress of a device.
    Netdev = 5,
    /// Bridges.
    Bridge = 7,
    /// IPv6.
    Ipv6 = 10,
}

/// Which table is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl<'a> Table<'a> {
    /// A table of family inet.
    pub const fn inet(name: &'a str) -> Self {
        Self {
            family: Family::Inet,
            name,
        }
    }
}

/// A hook of families inet, ip and ip6 (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Hook {
    /// Before the routing decision.
    Prerouting = 0,
    /// To this host.
    Input = 1,
    /// Through this host.
    Forward = 2,
    /// From this host.
    Output = 3,
    /// Behind the routing decision.
    Postrouting = 4,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Accepts and drops.
    Filter,
    /// Translates addresses; sees the first packet of a flow only.
    Nat,
    /// Packets that it changes are routed again (output).
    Route,
}

impl ChainType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Filter, Self::Nat, Self::Route]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Where a base chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// Its hook.
    pub hook: Hook,
    /// Lower ones see a packet first: raw is -300, conntrack -200, mangle -150, dstnat -100,
    /// filter 0, srcnat 100.
    pub priority: i32,
    /// What it is for.
    pub kind: ChainType,
    /// Whether packets that reach its end are dropped.
    pub drop: bool,
}

impl Base {
    /// A chain of type filter that accepts at its end.
    pub const fn filter(hook: Hook, priority: i32) -> Self {
        Self {
            hook,
            priority,
            kind: ChainType::Filter,
            drop: false,
        }
    }
}

/// How a rule or an element of a verdict map ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict<S = String> {
    /// The packet passes this hook's chain.
    Accept,
    /// The packet is discarded.
    Drop,
    /// On with the next rule.
    Continue,
    /// On with the next rule, leaving this one.
    Break,
    /// Back to the rule behind the jump, or to the base chain's policy.
    Return,
    /// Through another chain and back.
    Jump(S),
    /// Into another chain, not back.
    Goto(S),
}

impl<S: AsRef<str>> Verdict<S> {
    /// The same with the chain's name borrowed.
    pub fn as_ref(&self) -> Verdict<&str> {
        match self {
            Self::Accept => Verdict::Accept,
            Self::Drop => Verdict::Drop,
            Self::Continue => Verdict::Continue,
            Self::Break => Verdict::Break,
            Self::Return => Verdict::Return,
            Self::Jump(chain) => Verdict::Jump(chain.as_ref()),
            Self::Goto(chain) => Verdict::Goto(chain.as_ref()),
        }
    }

    /// Writes `NFTA_DATA_VERDICT` and what is inside.
    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Continue => (-1, None),
            Self::Break => (-2, None),
            Self::Jump(chain) => (-3, Some(chain.as_ref())),
            Self::Goto(chain) => (-4, Some(chain.as_ref())),
            Self::Return => (-5, None),
        };
        body.nest(DATA_VERDICT, |body| {
            body.be32(VERDICT_CODE, i32::cast_unsigned(code));
            if let Some(chain) = chain {
                body.text(VERDICT_CHAIN, chain);
            }
        });
    }
}

impl Verdict {
    pub(crate) fn decode(attr: &Attr<'_>) -> Option<Self> {
        let (mut code, mut chain) = (None, None);
        for attr in attr.nested() {
            match attr.kind {
                VERDICT_CODE => code = attr.be32(),
                VERDICT_CHAIN => chain = Some(attr.text()),
                _ => {}
            }
        }
        Some(match (code?.cast_signed(), chain) {
            (0, _) => Self::Drop,
            (1, _) => Self::Accept,
            (-1, _) => Self::Continue,
            (-2, _) => Self::Break,
            (-3, Some(chain)) => Self::Jump(chain),
            (-4, Some(chain)) => Self::Goto(chain),
            (-5, _) => Self::Return,
            _ => return None,
        })
    }
}

/// `NFTA_DATA_VALUE` and `NFTA_DATA_VERDICT`, which stand inside of every data attribute.
pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;

/// Writes a data attribute with plain bytes.
pub(crate) fn put_value(body: &mut Body<'_>, kind: u16, value: &[u8]) {
    body.nest(kind, |body| body.bytes(DATA_VALUE, value));
}

/// The bytes of a data attribute.
pub(crate) fn get_value(attr: &Attr<'_>) -> Option<Vec<u8>> {
    attr.nested()
        .find(|inner| inner.kind == DATA_VALUE)
        .map(|inner| inner.value.to_vec())
}

/// `struct nfgenmsg`.
pub(crate) fn header(body: &mut Body<'_>, family: u8, resource: u16) {
    let [high, low] = resource.to_be_bytes();
    body.raw(&[family, 0, high, low]);
}

/// A comment in the user data of a table (0), chain (0), rule (0) or set (7): type, length and
/// text with its zero byte, as libnftnl writes it. Cut to what the kernel and `nft` take.
pub(crate) fn comment(user_data: &mut Vec<u8>, kind: u8, text: &str) {
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    user_data.extend_from_slice(&[kind, text.len() as u8 + 1]);
    user_data.extend_from_slice(text.as_bytes());
    user_data.push(0);
}

/// The comment in user data.
pub(crate) fn find_comment(mut user_data: &[u8], kind: u8) -> Option<String> {
    while let [found, length, rest @ ..] = user_data {
        let value = rest.get(..usize::from(*length))?;
        if *found == kind {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        user_data = rest.get(usize::from(*length)..)?;
    }
    None
}
