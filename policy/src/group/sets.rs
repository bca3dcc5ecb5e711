//! The sets that groups look up, named by what they should contain: groups that need the same set share it.

use super::{PodTerm, digest};
use crate::model::{Family, Labels, NamedPort, NamespaceMatch, Proto};
use crate::plan::{Key, KeyType, Name, SetDef};
use crate::ranges::{AddrRanges, PortRange};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A set by its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SetSpec {
    /// Addresses of pods; the elements follow the facts.
    Members(Members),
    /// Ranges of addresses, fixed.
    Blocks(Family, AddrRanges),
    /// Protocols and ports, fixed.
    Ports(BTreeSet<(Proto, u16)>),
    /// Ranges of ports of a protocol that the rule names, fixed.
    PortRanges(Vec<PortRange>),
}

/// What the elements of a set of members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Content {
    /// Addresses.
    Addresses,
    /// Addresses with protocol and port.
    AddressPorts,
}

/// Which pods, and what each of them contributes per address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Members {
    family: Family,
    content: Content,
    terms: BTreeMap<PodTerm, Vec<Shape>>,
}

/// One element that a pod contributes for an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Shape {
    /// The address.
    Address,
    /// The address with this port.
    Port(Proto, u16),
    /// The address with whatever number the pod gives this name.
    Named(Proto, Arc<str>),
}

/// A pod as selectors see it.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) namespace: &'a str,
    /// `None` while the namespace is not known: then no namespace selector selects it.
    pub(crate) namespace_labels: Option<&'a Labels>,
    pub(crate) labels: &'a Labels,
    pub(crate) ports: &'a [NamedPort],
}

impl SetSpec {
    pub(crate) fn members(
        family: Family,
        content: Content,
        terms: BTreeMap<PodTerm, Vec<Shape>>,
    ) -> Self {
        SetSpec::Members(Members {
            family,
            content,
            terms,
        })
    }

    pub(crate) fn name(&self) -> Name {
        let (prefix, family) = match self {
            SetSpec::Members(Members {
                family,
                content: Content::Addresses,
                ..
            }) => ("p", Some(family)),
            SetSpec::Members(Members {
                family,
                content: Content::AddressPorts,
                ..
            }) => ("m", Some(family)),
            SetSpec::Blocks(family, _) => ("b", Some(family)),
            SetSpec::Ports(_) => ("q", None),
            SetSpec::PortRanges(_) => ("r", None),
        };
        let family = family.map(|f| f.digit().to_string()).unwrap_or_default();
        Name::new(format!("{prefix}{family}_{}", digest::hex(self)))
    }

    pub(crate) fn def(&self) -> SetDef {
        let (key, interval) = match self {
            SetSpec::Members(Members {
                family,
                content: Content::Addresses,
                ..
            }) => (KeyType::Addr(*family), false),
            SetSpec::Members(Members { family, .. }) => (KeyType::AddrProtoPort(*family), false),
            SetSpec::Blocks(family, _) => (KeyType::Addr(*family), true),
            SetSpec::Ports(_) => (KeyType::ProtoPort, false),
            SetSpec::PortRanges(_) => (KeyType::Port, true),
        };
        SetDef {
            key,
            verdicts: false,
            interval,
        }
    }

    /// Of a set whose elements follow the facts: whose.
    pub(crate) fn as_members(&self) -> Option<&Members> {
        match self {
            SetSpec::Members(members) => Some(members),
            _ => None,
        }
    }

    /// The elements of a set that depends on no facts.
    pub(crate) fn fixed(&self) -> Vec<Key> {
        match self {
            SetSpec::Members(_) => Vec::new(),
            SetSpec::Blocks(family, ranges) => ranges
                .iter(*family)
                .map(|(a, b)| Key::AddrRange(a, b))
                .collect(),
            SetSpec::Ports(ports) => ports
                .iter()
                .map(|(proto, port)| Key::ProtoPort(*proto, *port))
                .collect(),
            SetSpec::PortRanges(ranges) => ranges
                .iter()
                .map(|r| Key::PortRange(r.first(), r.last()))
                .collect(),
        }
    }
}

impl Members {
    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// The terms, so that an index can look for candidates instead of asking every pod.
    pub(crate) fn terms(&self) -> impl Iterator<Item = &PodTerm> {
        self.terms.keys()
    }

    /// What the owner of an address contributes to the set, a key perhaps twice. Nobody else contributes elements of that
    /// address.
    pub(crate) fn elements<'a>(
        &'a self,
        addr: IpAddr,
        owner: Candidate<'a>,
    ) -> impl Iterator<Item = Key> + 'a {
        let matching = self
            .terms
            .iter()
            .filter(move |(term, _)| term.matches(addr, owner));
        matching
            .flat_map(move |(_, shapes)| shapes.iter().flat_map(move |s| s.keys(addr, owner.ports)))
    }
}

impl PodTerm {
    /// Whether the pod at this address is meant.
    pub(crate) fn matches(&self, addr: IpAddr, pod: Candidate<'_>) -> bool {
        self.select.matches(pod)
            && self
                .within
                .as_ref()
                .is_none_or(|ranges| ranges.contains(addr))
    }
}

impl crate::model::PeerSelector {
    /// Whether the pod is selected.
    pub(crate) fn matches(&self, pod: Candidate<'_>) -> bool {
        let namespace = match &self.namespaces {
            NamespaceMatch::Any => true,
            NamespaceMatch::Named(name) => **name == *pod.namespace,
            NamespaceMatch::Selected(selector) => {
                pod.namespace_labels.is_some_and(|l| selector.matches(l))
            }
        };
        namespace && self.pods.matches(pod.labels)
    }
}

impl Shape {
    fn keys<'a>(&'a self, addr: IpAddr, ports: &'a [NamedPort]) -> impl Iterator<Item = Key> + 'a {
        let direct = match self {
            Shape::Address => Some(Key::Addr(addr)),
            Shape::Port(proto, port) => Some(Key::AddrProtoPort(addr, *proto, *port)),
            Shape::Named(..) => None,
        };
        let named = ports.iter().filter_map(move |port| match self {
            Shape::Named(proto, name) if port.protocol == *proto && port.name == *name => {
                Some(Key::AddrProtoPort(addr, *proto, port.port))
            }
            _ => None,
        });
        direct.into_iter().chain(named)
    }
}
