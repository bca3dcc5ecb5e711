//! A plan or a delta as an `nft -f` script, for people and for tests. The agent writes netlink, not text.

use super::{
    Action, Chain, Connecting, Field, Hook, IfaceMatch, Key, KeyType, LookupKey, Match, Name, Op,
    Plan, Rule, SetDef, Side, Verdict,
};
use crate::model::{Family, Proto};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// The script that replaces the table by this plan, atomically.
#[must_use]
pub fn plan(plan: &Plan) -> String {
    let table = &plan.table;
    let head =
        format!("add table inet {table}\ndelete table inet {table}\nadd table inet {table}\n");
    head + &ops(table, &plan.ops())
}

/// The script that applies these operations to the table.
#[must_use]
pub fn ops(table: &Name, ops: &[Op]) -> String {
    let mut out = String::new();
    let mut rest = ops;
    while let Some(op) = rest.first() {
        let run = rest
            .iter()
            .take_while(|next| same_run(op, next))
            .count()
            .max(1);
        let (now, later) = rest.split_at(run);
        let elements: Vec<_> = now.iter().filter_map(element).collect();
        match op {
            Op::AddElem(set, ..) => {
                out += &format!(
                    "add element inet {table} {set} {{ {} }}\n",
                    elements.join(", ")
                );
            }
            Op::DelElem(set, _) => {
                out += &format!(
                    "delete element inet {table} {set} {{ {} }}\n",
                    elements.join(", ")
                );
            }
            Op::AddSet(name, def) => {
                out += &format!("add {} inet {table} {name} {{ {def}; }}\n", def.kind())
            }
            Op::AddChain(name, chain) => {
                out += &format!("add chain inet {table} {name}{}\n", BaseOf(chain));
                for rule in &chain.rules {
                    out += &format!("add rule inet {table} {name} {rule}\n");
                }
            }
            Op::DelChain(name) => {
                out +=
                    &format!("flush chain inet {table} {name}\ndelete chain inet {table} {name}\n");
            }
            Op::DelSet(name) => out += &format!("delete set inet {table} {name}\n"),
        }
        rest = later;
    }
    out
}

/// Whether both are elements that one command can carry.
fn same_run(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::AddElem(x, ..), Op::AddElem(y, ..)) | (Op::DelElem(x, _), Op::DelElem(y, _)) => x == y,
        _ => false,
    }
}

fn element(op: &Op) -> Option<String> {
    match op {
        Op::AddElem(_, key, Some(verdict)) => Some(format!("{key} : {verdict}")),
        Op::AddElem(_, key, None) | Op::DelElem(_, key) => Some(key.to_string()),
        _ => None,
    }
}

impl SetDef {
    fn kind(&self) -> &'static str {
        if self.verdicts { "map" } else { "set" }
    }
}

impl Display for SetDef {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "type {}", self.key)?;
        f.write_str(if self.verdicts { " : verdict" } else { "" })?;
        f.write_str(if self.interval {
            "; flags interval"
        } else {
            ""
        })
    }
}

impl Display for KeyType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, field) in self.fields().into_iter().enumerate() {
            f.write_str(if i > 0 { " . " } else { "" })?;
            f.write_str(match field {
                Field::Ipv4 => "ipv4_addr",
                Field::Ipv6 => "ipv6_addr",
                Field::Proto => "inet_proto",
                Field::Port => "inet_service",
                Field::Ifname => "ifname",
            })?;
        }
        Ok(())
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Key::Addr(a) => write!(f, "{a}"),
            Key::AddrRange(a, b) => range(f, a, b),
            Key::PortRange(a, b) => range(f, a, b),
            Key::ProtoPort(proto, port) => write!(f, "{proto} . {port}"),
            Key::AddrProtoPort(a, proto, port) => write!(f, "{a} . {proto} . {port}"),
            Key::IfnameAddr(name, a) => write!(f, "\"{name}\" . {a}"),
            Key::AddrPair(a, b) => write!(f, "{a} . {b}"),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        if self.counter {
            f.write_str("counter ")?;
        }
        if let Some(log) = &self.log {
            write!(f, "log prefix \"{}\" group {} ", log.prefix, log.group)?;
        }
        match &self.action {
            Action::Verdict(verdict) => verdict.fmt(f),
            Action::Mark(bits) => write!(f, "ct mark set ct mark or {bits:#x}"),
            Action::Vmap { key, map } => write!(f, "{key} vmap @{map}"),
        }
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Match::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Match::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Match::Iif(interface) => interface.fmt_as(f, 'i'),
            Match::Oif(interface) => interface.fmt_as(f, 'o'),
            Match::LocalSource => f.write_str("fib saddr type local"),
            Match::Established => f.write_str("ct state established,related"),
            Match::New => f.write_str("ct state new"),
            Match::Related => f.write_str("ct state related"),
            Match::NoBeginning(Connecting::Tcp) => f.write_str("tcp flags & syn == 0"),
            Match::NoBeginning(Connecting::Sctp) => f.write_str("@th,96,8 != 1"),
            Match::CtMark { mask, set } => write!(
                f,
                "ct mark and {mask:#x} {} 0",
                if *set { "!=" } else { "==" }
            ),
            Match::Proto(number) => match Proto::from_number(*number) {
                Some(proto) => write!(f, "meta l4proto {proto}"),
                None => write!(f, "meta l4proto {number}"),
            },
            Match::Dport { first, last } => {
                f.write_str("th dport ")?;
                range(f, first, last)
            }
            Match::Icmp6Type { first, last } => {
                f.write_str("icmpv6 type ")?;
                range(f, first, last)
            }
            Match::Addr { side, first, last } => {
                write!(f, "{} ", AddrOf(family(first), *side))?;
                range(f, first, last)
            }
            Match::Lookup { key, set } => write!(f, "{key} @{set}"),
        }
    }
}

impl IfaceMatch {
    fn fmt_as(&self, f: &mut Formatter<'_>, way: char) -> fmt::Result {
        match self {
            IfaceMatch::Group(group) => write!(f, "{way}ifgroup {group:#x}"),
            IfaceMatch::Prefix(prefix) => write!(f, "{way}ifname \"{prefix}*\""),
        }
    }
}

impl Display for LookupKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            LookupKey::Addr(family, side) => write!(f, "{}", AddrOf(family, side)),
            LookupKey::Dport => f.write_str("th dport"),
            LookupKey::ProtoDport => f.write_str("meta l4proto . th dport"),
            LookupKey::AddrProtoDport(family, side) => {
                write!(f, "{} . meta l4proto . th dport", AddrOf(family, side))
            }
            LookupKey::IifSource(family) => write!(f, "iifname . {}", AddrOf(family, Side::Source)),
            LookupKey::SourceDestination(family) => {
                write!(
                    f,
                    "{} . {}",
                    AddrOf(family, Side::Source),
                    AddrOf(family, Side::Destination)
                )
            }
        }
    }
}

struct AddrOf(Family, Side);

impl Display for AddrOf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.0, self.1) {
            (Family::V4, Side::Source) => "ip saddr",
            (Family::V4, Side::Destination) => "ip daddr",
            (Family::V6, Side::Source) => "ip6 saddr",
            (Family::V6, Side::Destination) => "ip6 daddr",
        })
    }
}

struct BaseOf<'a>(&'a Chain);

impl Display for BaseOf<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(base) = &self.0.base else {
            return Ok(());
        };
        let hook = match base.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
        };
        write!(
            f,
            " {{ type filter hook {hook} priority {}; policy accept; }}",
            base.priority
        )
    }
}

fn family(addr: &IpAddr) -> Family {
    Family::of(*addr)
}

fn range<T: Display + PartialEq>(f: &mut Formatter<'_>, first: &T, last: &T) -> fmt::Result {
    if first == last {
        write!(f, "{first}")
    } else {
        write!(f, "{first}-{last}")
    }
}
