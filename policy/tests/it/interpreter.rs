//! What the kernel would do with a packet, given a plan.

use selvage_policy::model::{Family, IfName, Proto};
use selvage_policy::plan::{
    Action, Chain, Hook, IfaceMatch, Key, LookupKey, Match, Name, Plan, Rule, Set, Side, Verdict,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An interface as rules see it.
#[derive(Clone, Debug)]
pub struct Interface {
    pub name: String,
    pub group: u32,
}

/// A packet at a hook.
#[derive(Clone, Debug)]
pub struct Packet {
    pub iif: Option<Interface>,
    pub oif: Option<Interface>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Bytes 2 and 3 behind the network header, whatever the protocol makes of them.
    pub port: u16,
    /// First byte behind the network header.
    pub kind: u8,
    pub established: bool,
    pub related: bool,
    /// A packet with which a connection of its protocol begins; true where the protocol has none.
    pub begins: bool,
    pub mark: u32,
    /// The source address is one of the node's own.
    pub local_source: bool,
}

/// Whether the packet survives a hook.
pub fn passes(plan: &Plan, hook: Hook, packet: &Packet) -> bool {
    judge(plan, hook, packet).0
}

/// Whether the packet survives a hook, and the mark of its flow afterwards.
pub fn judge(plan: &Plan, hook: Hook, packet: &Packet) -> (bool, u32) {
    let mut chains: Vec<_> = plan
        .chains
        .values()
        .filter_map(|c| c.base.map(|base| (base, c)))
        .filter(|(base, _)| base.hook == hook)
        .collect();
    chains.sort_by_key(|(base, _)| base.priority);
    let mut packet = packet.clone();
    let passes = chains
        .into_iter()
        .all(|(_, chain)| run(plan, chain, &mut packet, 0) != Some(false));
    (passes, packet.mark)
}

/// `Some(true)` accepted, `Some(false)` dropped, `None` the chain came to its end or returned.
fn run(plan: &Plan, chain: &Chain, packet: &mut Packet, depth: usize) -> Option<bool> {
    assert!(depth < 16, "the kernel's jump stack");
    for rule in &chain.rules {
        assert_guards(rule);
        if !rule.matches.iter().all(|m| matches(plan, m, packet)) {
            continue;
        }
        let verdict = match &rule.action {
            Action::Verdict(verdict) => Some(verdict.clone()),
            Action::Mark(bits) => {
                packet.mark |= bits;
                None
            }
            Action::Vmap { key, map } => key_of(*key, packet)
                .and_then(|key| lookup(plan, map, &key))
                .flatten(),
        };
        match verdict {
            None => {}
            Some(Verdict::Accept) => return Some(true),
            Some(Verdict::Drop) => return Some(false),
            Some(Verdict::Return) => return None,
            Some(Verdict::Jump(name)) => {
                let target = plan.chains.get(&name).expect("a chain to jump to");
                if let Some(verdict) = run(plan, target, packet, depth + 1) {
                    return Some(verdict);
                }
            }
        }
    }
    None
}

fn matches(plan: &Plan, condition: &Match, packet: &Packet) -> bool {
    match condition {
        Match::Family(family) => Family::of(packet.source) == *family,
        Match::Iif(wanted) => is_interface(wanted, packet.iif.as_ref()),
        Match::Oif(wanted) => is_interface(wanted, packet.oif.as_ref()),
        Match::LocalSource => packet.local_source,
        Match::Established => packet.established || packet.related,
        Match::New => !packet.established && !packet.related,
        Match::Related => packet.related,
        Match::NoBeginning(_) => !packet.begins,
        Match::CtMark { mask, set } => (packet.mark & mask != 0) == *set,
        Match::Proto(number) => packet.protocol == *number,
        Match::Dport { first, last } => (*first..=*last).contains(&packet.port),
        Match::Icmp6Type { first, last } => (*first..=*last).contains(&packet.kind),
        Match::Addr { side, first, last } => (*first..=*last).contains(&address(packet, *side)),
        Match::Lookup { key, set } => {
            key_of(*key, packet).is_some_and(|key| lookup(plan, set, &key).is_some())
        }
    }
}

fn is_interface(wanted: &IfaceMatch, interface: Option<&Interface>) -> bool {
    interface.is_some_and(|i| match wanted {
        IfaceMatch::Group(group) => i.group == *group,
        IfaceMatch::Prefix(prefix) => i.name.starts_with(&**prefix),
    })
}

fn address(packet: &Packet, side: Side) -> IpAddr {
    match side {
        Side::Source => packet.source,
        Side::Destination => packet.destination,
    }
}

/// The key that a packet gives; `None` if no element can equal it.
fn key_of(key: LookupKey, packet: &Packet) -> Option<Key> {
    let proto = Proto::from_number(packet.protocol);
    match key {
        LookupKey::Addr(_, side) => Some(Key::Addr(address(packet, side))),
        LookupKey::Dport => Some(Key::PortRange(packet.port, packet.port)),
        LookupKey::ProtoDport => Some(Key::ProtoPort(proto?, packet.port)),
        LookupKey::AddrProtoDport(_, side) => Some(Key::AddrProtoPort(
            address(packet, side),
            proto?,
            packet.port,
        )),
        LookupKey::IifSource(_) => {
            let name: IfName = packet.iif.as_ref()?.name.parse().ok()?;
            Some(Key::IfnameAddr(name, packet.source))
        }
        LookupKey::SourceDestination(_) => Some(Key::AddrPair(packet.source, packet.destination)),
    }
}

/// `None`: no such element.
fn lookup(plan: &Plan, set: &Name, key: &Key) -> Option<Option<Verdict>> {
    let set = plan.sets.get(set).expect("a set to look up");
    if !set.def.interval {
        return set.elements.get(key).map(Option::<&Verdict>::cloned);
    }
    let hit = |element: &Key| match (element, key) {
        (Key::AddrRange(first, last), Key::Addr(a)) => first <= a && a <= last,
        (Key::PortRange(first, last), Key::PortRange(port, _)) => first <= port && port <= last,
        _ => panic!("{element:?} in an interval set asked for {key:?}"),
    };
    set.elements
        .iter()
        .find(|(element, _)| hit(element))
        .map(|(_, verdict)| verdict.cloned())
}

/// Every load of a header stands behind its guard.
fn assert_guards(rule: &Rule) {
    let keys = rule.matches.iter().map(Some).chain([None]);
    let (mut family, mut proto) = (None, false);
    for condition in keys {
        let key = match condition {
            Some(Match::Family(f)) => {
                family = Some(*f);
                continue;
            }
            Some(Match::Proto(_)) => {
                proto = true;
                continue;
            }
            Some(Match::Addr { first, last, .. }) => {
                assert_eq!(
                    (family, family),
                    (Some(Family::of(*first)), Some(Family::of(*last))),
                    "{rule:?}"
                );
                continue;
            }
            Some(Match::Dport { .. } | Match::Icmp6Type { .. } | Match::NoBeginning(_)) => {
                assert!(proto, "{rule:?}");
                continue;
            }
            Some(Match::Lookup { key, .. }) => *key,
            None => match &rule.action {
                Action::Vmap { key, .. } => *key,
                Action::Verdict(_) | Action::Mark(_) => continue,
            },
            Some(_) => continue,
        };
        match key {
            LookupKey::Addr(f, _)
            | LookupKey::AddrProtoDport(f, _)
            | LookupKey::IifSource(f)
            | LookupKey::SourceDestination(f) => {
                assert_eq!(family, Some(f), "{rule:?}");
            }
            LookupKey::Dport => assert!(proto, "{rule:?}"),
            LookupKey::ProtoDport => {}
        }
    }
}

/// What must hold in every plan: types fit, names are readable, ranges are disjoint and apart, nothing is there that
/// nothing uses.
pub fn assert_sound(plan: &Plan) {
    let used: BTreeSet<_> = plan.chains.values().flat_map(Chain::names).collect();
    assert!(plan.sets.keys().all(|name| used.contains(name)), "{used:?}");
    let verdicts = plan
        .sets
        .values()
        .flat_map(|set| set.elements.values())
        .flatten();
    let jumps: BTreeSet<_> = verdicts
        .filter_map(|v| {
            if let Verdict::Jump(to) = v {
                Some(to)
            } else {
                None
            }
        })
        .collect();
    let mut groups = plan.chains.iter().filter(|(_, chain)| chain.base.is_none());
    assert!(groups.all(|(name, _)| jumps.contains(name)), "{jumps:?}");
    for (name, set) in &plan.sets {
        assert_name(name);
        assert!(
            set.elements
                .keys()
                .all(|key| key.bytes().len() == set.def.key.len()),
            "{name}: {set:?}"
        );
        assert!(
            set.elements
                .values()
                .all(|v| v.is_some() == set.def.verdicts),
            "{name}"
        );
        assert_disjoint(name, set);
    }
    for (name, chain) in &plan.chains {
        assert_name(name);
        for rule in &chain.rules {
            assert_guards(rule);
            let lookups = rule.matches.iter().filter_map(|m| match m {
                Match::Lookup { key, set } => Some((*key, set)),
                _ => None,
            });
            let vmap = match &rule.action {
                Action::Vmap { key, map } => Some((*key, map)),
                Action::Verdict(_) | Action::Mark(_) => None,
            };
            for (key, set) in lookups.chain(vmap) {
                assert_eq!(key.key_type(), plan.sets[set].def.key, "{rule:?}");
            }
        }
    }
}

fn assert_name(name: &Name) {
    let text = name.as_str();
    assert!(
        text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_lowercase()),
        "{text}"
    );
    assert!(
        text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
        "{text}"
    );
}

fn assert_disjoint(name: &Name, set: &Set) {
    if !set.def.interval {
        return;
    }
    let ends: Vec<_> = set
        .elements
        .keys()
        .map(|key| (key.bytes(), key.interval_end()))
        .collect();
    for pair in ends.windows(2) {
        let [(_, end), (next, _)] = pair else {
            unreachable!()
        };
        assert!(
            end.as_ref().is_some_and(|end| end < next),
            "{name}: ranges touch in {set:?}"
        );
    }
}
