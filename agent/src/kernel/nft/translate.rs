//! The plan's words in nf_tables' words: sets, elements, and the expressions of rules.

use std::net::IpAddr;

use selvage_netlink::nft::{self, DataType, Expr, Reg, expr, list};
use selvage_policy::{
    model::Family,
    plan::{
        Action, Base, Chain, Connecting, Field, Hook, IfaceMatch, Key, KeyType, LookupKey, Match,
        Plan, Row, Rule, SetDef, Side, Verdict,
    },
};

use super::plan::{ChainPlan, LargeSet, MapKind, SetKind, TablePlan};

impl TablePlan for Plan {
    fn name(&self) -> &str {
        self.table.as_str()
    }

    fn chains(&self) -> Vec<(&str, ChainPlan)> {
        self.chains
            .iter()
            .map(|(name, one)| (name.as_str(), chain(one)))
            .collect()
    }

    fn sets(&self) -> Vec<(&str, SetKind)> {
        self.sets
            .iter()
            .map(|(name, set)| (name.as_str(), kind(&set.def)))
            .collect()
    }

    fn elements(&self, set: &str) -> Box<dyn Iterator<Item = list::ElementInfo> + '_> {
        let set = self.sets.get(set);
        Box::new(set.into_iter().flat_map(|set| {
            set.elements
                .iter()
                .map(|(key, verdict)| element(&key, verdict, set.def.interval))
        }))
    }

    fn large(&self, set: &str) -> Option<Box<dyn LargeSet>> {
        let row = self.sets.get(set)?.elements.row()?;
        Some(Box::new(row))
    }
}

impl LargeSet for Row {
    fn count(&self) -> usize {
        self.len()
    }

    fn place(&self, key: &[u8]) -> Option<usize> {
        Row::place(self, key)
    }
}

/// A chain with its rules.
pub fn chain(chain: &Chain) -> ChainPlan {
    ChainPlan {
        base: chain.base.as_ref().map(base),
        rules: chain.rules.iter().map(rule).collect(),
    }
}

/// What a set is.
pub fn kind(def: &SetDef) -> SetKind {
    SetKind {
        key: key_types(def.key),
        interval: def.interval,
        data: def.verdicts.then_some(MapKind::Verdict),
    }
}

/// An element as the kernel lists it.
pub fn element(key: &Key, verdict: Option<&Verdict>, interval: bool) -> list::ElementInfo {
    let (first, last) = span(key);
    list::ElementInfo {
        last: last.or_else(|| interval.then(|| first.clone())),
        key: first,
        data: verdict.map(|verdict| list::ElementData::Verdict(owned(verdict))),
    }
}

/// ESTABLISHED and RELATED.
const PASSING: u32 = expr::ct_state::ESTABLISHED | expr::ct_state::RELATED;

/// `RTN_LOCAL`: an address of the machine itself.
const RTN_LOCAL: u32 = 2;

/// Where the flags of a TCP header are,
const TCP_FLAGS: u32 = 13;
/// and the flag of the packet that begins a connection.
const TCP_SYN: u8 = 0x02;
/// Where the type of the first chunk of an SCTP packet is,
const SCTP_CHUNK: u32 = 12;
/// and the type of the one that begins an association.
const SCTP_INIT: u8 = 1;

/// The types of a key's fields.
pub fn key_types(key: KeyType) -> Vec<DataType> {
    key.fields()
        .into_iter()
        .map(|field| match field {
            Field::Ipv4 => DataType::IPV4_ADDR,
            Field::Ipv6 => DataType::IPV6_ADDR,
            Field::Proto => DataType::INET_PROTO,
            Field::Port => DataType::INET_SERVICE,
            Field::Ifname => DataType::IFNAME,
        })
        .collect()
}

/// The first key of an element and, of a range, the last.
pub fn span(key: &Key) -> (Vec<u8>, Option<Vec<u8>>) {
    let last = match key {
        Key::AddrRange(_, last) => Some(octets(*last)),
        Key::PortRange(_, last) => Some(last.to_be_bytes().to_vec()),
        _ => None,
    };
    (key.bytes(), last)
}

/// A base chain.
pub fn base(base: &Base) -> nft::Base {
    let hook = match base.hook {
        Hook::Prerouting => nft::Hook::Prerouting,
        Hook::Input => nft::Hook::Input,
        Hook::Forward => nft::Hook::Forward,
        Hook::Output => nft::Hook::Output,
    };
    nft::Base::filter(hook, base.priority)
}

/// The expressions of a rule: conditions, counter, log, action.
pub fn rule(rule: &Rule) -> Vec<Expr> {
    let mut out = Vec::new();
    for condition in &rule.matches {
        push_match(&mut out, condition);
    }
    if rule.counter {
        out.push(Expr::COUNTER);
    }
    if let Some(log) = &rule.log {
        out.push(Expr::Log {
            group: Some(log.group),
            prefix: log.prefix.clone(),
            snaplen: 0,
        });
    }
    match &rule.action {
        Action::Verdict(action) => out.push(Expr::Verdict(owned(action))),
        Action::Mark(bits) => out.extend([
            Expr::ct(expr::CtKey::MARK),
            Expr::Bitwise {
                sreg: Reg::FIRST,
                dreg: Reg::FIRST,
                mask: (!bits).to_ne_bytes().to_vec(),
                xor: bits.to_ne_bytes().to_vec(),
            },
            Expr::CtSet {
                sreg: Reg::FIRST,
                key: expr::CtKey::MARK,
            },
        ]),
        Action::Vmap { key, map } => {
            load(&mut out, *key);
            out.push(Expr::vmap(map.as_str()));
        }
    }
    out
}

fn push_match(out: &mut Vec<Expr>, condition: &Match) {
    match condition {
        Match::Family(family) => out.extend(Expr::family(is_v6(*family))),
        Match::Iif(IfaceMatch::Group(group)) => out.extend(Expr::iif_group(*group)),
        Match::Oif(IfaceMatch::Group(group)) => out.extend(Expr::oif_group(*group)),
        Match::Iif(IfaceMatch::Prefix(prefix)) => {
            out.extend([Expr::meta(expr::Meta::IIFNAME), Expr::eq(prefix.as_bytes())]);
        }
        Match::Oif(IfaceMatch::Prefix(prefix)) => {
            out.extend([Expr::meta(expr::Meta::OIFNAME), Expr::eq(prefix.as_bytes())]);
        }
        Match::LocalSource => out.extend([
            Expr::Fib {
                dreg: Reg::FIRST,
                result: expr::FibResult::AddressType,
                flags: expr::fib::SADDR,
            },
            Expr::eq(RTN_LOCAL.to_ne_bytes()),
        ]),
        Match::Established => out.extend(Expr::ct_states(PASSING)),
        Match::New => out.extend(Expr::ct_states(expr::ct_state::NEW)),
        Match::Related => out.extend(Expr::ct_states(expr::ct_state::RELATED)),
        Match::NoBeginning(Connecting::Tcp) => out.extend([
            transport_byte(TCP_FLAGS),
            Expr::Bitwise {
                sreg: Reg::FIRST,
                dreg: Reg::FIRST,
                mask: vec![TCP_SYN],
                xor: vec![0],
            },
            Expr::eq([0]),
        ]),
        Match::NoBeginning(Connecting::Sctp) => {
            out.extend([transport_byte(SCTP_CHUNK), Expr::ne([SCTP_INIT])]);
        }
        Match::CtMark { mask, set: true } => out.extend(Expr::ct_mark_any(*mask)),
        Match::CtMark { mask, set: false } => {
            out.extend([
                Expr::ct(expr::CtKey::MARK),
                Expr::and(*mask),
                Expr::eq([0; 4]),
            ]);
        }
        Match::Proto(number) => out.extend(Expr::l4proto(*number)),
        Match::Dport { first, last } => {
            out.push(Expr::destination_port(Reg::FIRST));
            push_range(
                out,
                first.to_be_bytes().to_vec(),
                last.to_be_bytes().to_vec(),
            );
        }
        Match::Icmp6Type { first, last } => {
            out.push(transport_byte(0));
            push_range(out, vec![*first], vec![*last]);
        }
        Match::Addr { side, first, last } => {
            out.push(address(*side, first.is_ipv6(), Reg::FIRST));
            push_range(out, octets(*first), octets(*last));
        }
        Match::Lookup { key, set } => {
            load(out, *key);
            out.push(Expr::in_set(set.as_str(), false));
        }
    }
}

/// Loads a byte of the transport header.
fn transport_byte(offset: u32) -> Expr {
    Expr::Payload {
        dreg: Reg::FIRST,
        base: expr::PayloadBase::Transport,
        offset,
        len: 1,
    }
}

/// The first register is in the range, both ends included.
fn push_range(out: &mut Vec<Expr>, first: Vec<u8>, last: Vec<u8>) {
    if first == last {
        return out.push(Expr::eq(first));
    }
    let compare = |op, value| Expr::Cmp {
        sreg: Reg::FIRST,
        op,
        value,
    };
    out.push(compare(expr::CmpOp::Ge, first));
    out.push(compare(expr::CmpOp::Le, last));
}

/// Loads the parts of a key, each to the next register of four bytes.
fn load(out: &mut Vec<Expr>, key: LookupKey) {
    let proto = |dreg| Expr::Meta {
        dreg,
        key: expr::Meta::L4PROTO,
    };
    let slot = Reg::slot;
    match key {
        LookupKey::Addr(family, side) => out.push(address(side, is_v6(family), slot(0))),
        LookupKey::Dport => out.push(Expr::destination_port(slot(0))),
        LookupKey::ProtoDport => out.extend([proto(slot(0)), Expr::destination_port(slot(1))]),
        LookupKey::AddrProtoDport(family, side) => {
            let after = slots(family);
            out.extend([
                address(side, is_v6(family), slot(0)),
                proto(slot(after)),
                Expr::destination_port(slot(after + 1)),
            ]);
        }
        LookupKey::IifSource(family) => out.extend([
            Expr::meta(expr::Meta::IIFNAME),
            address(Side::Source, is_v6(family), slot(4)),
        ]),
        LookupKey::SourceDestination(family) => out.extend([
            address(Side::Source, is_v6(family), slot(0)),
            address(Side::Destination, is_v6(family), slot(slots(family))),
        ]),
    }
}

fn address(side: Side, v6: bool, dreg: Reg) -> Expr {
    match side {
        Side::Source => Expr::source(v6, dreg),
        Side::Destination => Expr::destination(v6, dreg),
    }
}

/// Registers that an address takes.
fn slots(family: Family) -> u8 {
    if is_v6(family) { 4 } else { 1 }
}

fn is_v6(family: Family) -> bool {
    family == Family::V6
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn owned(action: &Verdict) -> nft::Verdict {
    match action {
        Verdict::Accept => nft::Verdict::Accept,
        Verdict::Drop => nft::Verdict::Drop,
        Verdict::Return => nft::Verdict::Return,
        Verdict::Jump(chain) => nft::Verdict::Jump(chain.to_string()),
    }
}
