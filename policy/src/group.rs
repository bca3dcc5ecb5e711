//! Pods with equal rules share a group: its rules in normal form, and the sets and the chain that enforce them.
//!
//! How a group is laid out depends on its rules alone, never on how many pods match them: so a pod that comes, goes or
//! changes its labels anywhere in the cluster touches elements only. Lookups per chain are bounded by the number of
//! *different port lists* in the rules, not by the number of policies, rules, peers or pods:
//!
//! | allowed | becomes |
//! |---|---|
//! | anybody on ports | a few inline matches, else a port set |
//! | pods on every port | one address set |
//! | pods on a few ports | one set of `address . protocol . port` for all such rules together |
//! | pods on many ports, or all pods of selected namespaces | an address set and the ports beside it |
//! | blocks | one range list per list of ports |

use crate::model::{Direction, Family, NamespaceMatch, PeerSelector, PortAtom, Proto};
use crate::plan::{Action, Chain, LookupKey, Match, Name, Rule, Side, Verdict};
use crate::ranges::{AddrRanges, PortRange, coalesce_ports};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

mod digest;
mod sets;

pub(crate) use sets::{Candidate, Content, Members, SetSpec, Shape};

/// Up to so many ports are multiplied with the peers; more stand beside them.
const FEW_PORTS: usize = 8;
/// Up to so many ranges of ports or addresses are matched inline; more make a set.
const FEW_RANGES: usize = 3;

/// Some pods, perhaps only those within a block (for a named port beside an ipBlock).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodTerm {
    pub(crate) select: PeerSelector,
    pub(crate) within: Option<AddrRanges>,
}

/// A list of ports in normal form; `None` is every packet of every protocol.
pub(crate) type PortList = Option<PortSpec>;

/// Numbers per protocol, disjoint and ascending, and names that the other end resolves.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortSpec {
    pub(crate) numbers: BTreeMap<Proto, Vec<PortRange>>,
    pub(crate) names: BTreeSet<(Proto, Arc<str>)>,
}

impl PortSpec {
    pub(crate) fn new(atoms: impl IntoIterator<Item = PortAtom>) -> Self {
        let mut spec = PortSpec::default();
        for atom in atoms {
            match atom {
                PortAtom::Number(proto, range) => {
                    spec.numbers.entry(proto).or_default().push(range)
                }
                PortAtom::Name(proto, name) => drop(spec.names.insert((proto, name))),
            }
        }
        spec.numbers
            .values_mut()
            .for_each(|ranges| *ranges = coalesce_ports(std::mem::take(ranges)));
        spec
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.names.is_empty()
    }

    /// What is in any of them.
    fn union(parts: Vec<PortSpec>) -> PortSpec {
        let mut union = PortSpec::default();
        for part in parts {
            for (proto, ranges) in part.numbers {
                union.numbers.entry(proto).or_default().extend(ranges);
            }
            union.names.extend(part.names);
        }
        let numbers = union.numbers.values_mut();
        numbers.for_each(|ranges| *ranges = coalesce_ports(std::mem::take(ranges)));
        union
    }

    fn numbers_only(&self) -> PortSpec {
        PortSpec {
            numbers: self.numbers.clone(),
            names: BTreeSet::new(),
        }
    }

    /// The single ports, if they are few.
    fn few(&self) -> Option<BTreeSet<(Proto, u16)>> {
        let count: usize = self
            .ranges()
            .map(|(_, r)| usize::from(r.last() - r.first()) + 1)
            .sum();
        let ports = || {
            self.ranges()
                .flat_map(|(proto, r)| (r.first()..=r.last()).map(move |port| (proto, port)))
        };
        (count <= FEW_PORTS).then(|| ports().collect())
    }

    fn ranges(&self) -> impl Iterator<Item = (Proto, PortRange)> + '_ {
        self.numbers
            .iter()
            .flat_map(|(proto, ranges)| ranges.iter().map(|r| (*proto, *r)))
    }
}

/// What the members of a group may do in one direction. Equal content, equal group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupSpec {
    direction: Direction,
    /// Anybody, on these ports; `Some(None)` would be no restriction at all.
    anybody: Option<PortList>,
    pods: BTreeMap<PortList, BTreeSet<PodTerm>>,
    blocks: BTreeMap<PortList, AddrRanges>,
}

/// Rules on their way to a group: collected as they come, brought into normal form once.
pub(crate) struct GroupRules<'a> {
    direction: Direction,
    everything: bool,
    anybody: Vec<PortSpec>,
    pods: BTreeMap<PortList, BTreeSet<PodTerm>>,
    blocks: BTreeMap<PortList, Vec<&'a AddrRanges>>,
}

impl<'a> GroupRules<'a> {
    pub(crate) fn new(direction: Direction) -> Self {
        GroupRules {
            direction,
            everything: false,
            anybody: Vec::new(),
            pods: BTreeMap::new(),
            blocks: BTreeMap::new(),
        }
    }

    pub(crate) fn allow_anybody(&mut self, ports: PortList) {
        match ports {
            None => self.everything = true,
            Some(ports) => self.anybody.push(ports),
        }
    }

    pub(crate) fn allow_pods(&mut self, ports: PortList, term: PodTerm) {
        self.pods.entry(ports).or_default().insert(term);
    }

    pub(crate) fn allow_blocks(&mut self, ports: PortList, blocks: &'a AddrRanges) {
        self.blocks.entry(ports).or_default().push(blocks);
    }

    pub(crate) fn finish(self) -> GroupSpec {
        let ports = |specs: Vec<PortSpec>| (!specs.is_empty()).then(|| PortSpec::union(specs));
        let blocks = self.blocks.into_iter();
        GroupSpec {
            direction: self.direction,
            anybody: if self.everything {
                Some(None)
            } else {
                ports(self.anybody).map(Some)
            },
            pods: self.pods,
            blocks: blocks
                .map(|(ports, parts)| (ports, AddrRanges::union(parts)))
                .collect(),
        }
    }
}

impl GroupSpec {
    /// Whether every packet is allowed.
    pub(crate) fn allows_everything(&self) -> bool {
        self.anybody == Some(None)
    }

    /// The names of the chains that enforce it, IPv4 and IPv6.
    pub(crate) fn chain_names(&self) -> [Name; 2] {
        let prefix = match self.direction {
            Direction::Ingress => "in",
            Direction::Egress => "eg",
        };
        let content = digest::hex(self);
        Family::ALL.map(|family| Name::new(format!("{prefix}{}_{content}", family.digit())))
    }

    /// The chain and the sets that it uses.
    pub(crate) fn layout(&self, family: Family) -> Layout {
        let mut layout = Layout::new(self.direction, family);
        if let Some(ports) = &self.anybody {
            layout.allow(&[], ports);
        }
        let (every_port, listed): (Vec<_>, Vec<_>) =
            self.pods.iter().partition(|(ports, _)| ports.is_none());
        for (_, terms) in every_port {
            layout.allow_members(terms.clone(), &None);
        }
        self.layout_listed(&mut layout, listed);
        for (ports, blocks) in &self.blocks {
            layout.allow_blocks(blocks, ports);
        }
        layout.finish()
    }

    /// Pods with a list of ports: merged where that stays small, else address sets with the ports beside them.
    fn layout_listed(&self, layout: &mut Layout, listed: Vec<(&PortList, &BTreeSet<PodTerm>)>) {
        let mut merged: BTreeMap<PodTerm, BTreeSet<Shape>> = BTreeMap::new();
        let mut beside: BTreeMap<PortSpec, BTreeSet<PodTerm>> = BTreeMap::new();
        for (ports, terms) in listed {
            let Some(ports) = ports else { continue };
            let few = ports.few();
            for term in terms {
                let mut shapes: BTreeSet<_> = ports
                    .names
                    .iter()
                    .map(|(proto, name)| Shape::Named(*proto, name.clone()))
                    .collect();
                match &few {
                    Some(few) if !term.is_broad() => {
                        shapes.extend(few.iter().map(|(proto, port)| Shape::Port(*proto, *port)));
                    }
                    _ if ports.numbers.is_empty() => {}
                    _ => drop(
                        beside
                            .entry(ports.numbers_only())
                            .or_default()
                            .insert(term.clone()),
                    ),
                }
                if !shapes.is_empty() {
                    merged.entry(term.clone()).or_default().extend(shapes);
                }
            }
        }
        if !merged.is_empty() {
            let merged = merged
                .into_iter()
                .map(|(term, shapes)| (term, shapes.into_iter().collect()));
            layout.allow_merged(merged.collect());
        }
        for (ports, terms) in beside {
            layout.allow_members(terms, &Some(ports));
        }
    }
}

impl PodTerm {
    /// Whether it may well be most of the cluster.
    fn is_broad(&self) -> bool {
        let one = matches!(self.select.namespaces, NamespaceMatch::Named(_));
        !one && self.select.pods.is_everything() && self.within.is_none()
    }
}

/// The chain of a group in one family, and what its rules look up.
#[derive(Debug)]
pub(crate) struct Layout {
    direction: Direction,
    family: Family,
    pub(crate) chain: Chain,
    pub(crate) sets: BTreeMap<Name, SetSpec>,
}

impl Layout {
    fn new(direction: Direction, family: Family) -> Self {
        Layout {
            direction,
            family,
            chain: Chain::default(),
            sets: BTreeMap::new(),
        }
    }

    fn side(&self) -> Side {
        match self.direction {
            Direction::Ingress => Side::Source,
            Direction::Egress => Side::Destination,
        }
    }

    /// Allowed traffic from a pod goes on to the destination's rules; allowed traffic to a pod is through.
    fn allowed(&self) -> Verdict {
        match self.direction {
            Direction::Ingress => Verdict::Accept,
            Direction::Egress => Verdict::Return,
        }
    }

    fn set(&mut self, spec: SetSpec) -> Name {
        let name = spec.name();
        self.sets.entry(name.clone()).or_insert(spec);
        name
    }

    fn push(&mut self, matches: Vec<Match>) {
        let action = Action::Verdict(self.allowed());
        self.chain.rules.push(Rule {
            matches,
            counter: false,
            log: None,
            action,
        });
    }

    /// One rule per port condition, each with the peer condition behind it.
    fn allow(&mut self, peer: &[Match], ports: &PortList) {
        for ports in self.port_conditions(ports) {
            // The network header is loaded in front of the port conditions only where there is a guard for it.
            let (guard, rest) = peer.split_at(usize::from(!peer.is_empty()));
            self.push([guard, &ports, rest].concat());
        }
    }

    fn allow_members(&mut self, terms: BTreeSet<PodTerm>, ports: &PortList) {
        let terms = terms
            .into_iter()
            .map(|term| (term, vec![Shape::Address]))
            .collect();
        let set = self.set(SetSpec::members(self.family, Content::Addresses, terms));
        let key = LookupKey::Addr(self.family, self.side());
        self.allow(
            &[Match::Family(self.family), Match::Lookup { key, set }],
            ports,
        );
    }

    fn allow_merged(&mut self, terms: BTreeMap<PodTerm, Vec<Shape>>) {
        let set = self.set(SetSpec::members(self.family, Content::AddressPorts, terms));
        let key = LookupKey::AddrProtoDport(self.family, self.side());
        self.push(vec![Match::Family(self.family), Match::Lookup { key, set }]);
    }

    fn allow_blocks(&mut self, blocks: &AddrRanges, ports: &PortList) {
        let (family, side) = (self.family, self.side());
        if blocks.count(family) > FEW_RANGES {
            let set = self.set(SetSpec::Blocks(family, blocks.of(family)));
            let key = LookupKey::Addr(family, side);
            return self.allow(&[Match::Family(family), Match::Lookup { key, set }], ports);
        }
        for (first, last) in blocks.iter(family) {
            self.allow(
                &[Match::Family(family), Match::Addr { side, first, last }],
                ports,
            );
        }
    }

    /// The alternatives of a list of ports: each a conjunction of matches.
    fn port_conditions(&mut self, ports: &PortList) -> Vec<Vec<Match>> {
        let Some(ports) = ports else {
            return vec![Vec::new()];
        };
        let ranges: Vec<_> = ports.ranges().collect();
        if ranges.len() <= FEW_RANGES {
            return ranges
                .into_iter()
                .map(|(proto, range)| inline(proto, range))
                .collect();
        }
        let mut out = Vec::new();
        let single = |(_, r): &(Proto, PortRange)| r.first() == r.last();
        let singles: BTreeSet<_> = ranges
            .iter()
            .filter(|r| single(r))
            .map(|(p, r)| (*p, r.first()))
            .collect();
        if !singles.is_empty() {
            let set = self.set(SetSpec::Ports(singles));
            out.push(vec![Match::Lookup {
                key: LookupKey::ProtoDport,
                set,
            }]);
        }
        for (proto, ranges) in &ports.numbers {
            let wide: Vec<_> = ranges
                .iter()
                .copied()
                .filter(|r| r.first() != r.last())
                .collect();
            match wide.as_slice() {
                [] => {}
                [one] => out.push(inline(*proto, *one)),
                _ => {
                    let set = self.set(SetSpec::PortRanges(wide));
                    let lookup = Match::Lookup {
                        key: LookupKey::Dport,
                        set,
                    };
                    out.push(vec![Match::Proto(proto.number()), lookup]);
                }
            }
        }
        out
    }

    fn finish(mut self) -> Self {
        let action = Action::Verdict(Verdict::Drop);
        self.chain.rules.push(Rule {
            matches: Vec::new(),
            counter: true,
            log: None,
            action,
        });
        self
    }
}

fn inline(proto: Proto, range: PortRange) -> Vec<Match> {
    let guard = Match::Proto(proto.number());
    if range == PortRange::ALL {
        return vec![guard];
    }
    vec![
        guard,
        Match::Dport {
            first: range.first(),
            last: range.last(),
        },
    ]
}
