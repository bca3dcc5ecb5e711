//! A NetworkPolicy after lowering: nothing in it can be wrong any more.

use super::{Proto, Selector};
use crate::ranges::{AddrRanges, PortRange};
use std::fmt;
use std::sync::Arc;

/// Namespace and name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Its namespace, and that of the pods it selects.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PolicyKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        PolicyKey {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Into the pod or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Traffic to the pod; peers are sources.
    Ingress,
    /// Traffic from the pod; peers are destinations.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

/// A valid NetworkPolicy. `None` in a direction: it does not isolate its pods there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which one.
    pub key: PolicyKey,
    /// The pods of its namespace that it applies to.
    pub pods: Selector,
    /// What may come in.
    pub ingress: Option<Vec<Rule>>,
    /// What may go out.
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules of a direction; `None` if it does not isolate there.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Any of the peers on any of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who.
    pub peers: Peers,
    /// On which ports.
    pub ports: Ports,
}

/// The other end of allowed traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Anybody.
    Any,
    /// Pods and addresses; with none of either: nobody.
    Some {
        /// Pods by selectors.
        pods: Vec<PeerSelector>,
        /// The union of the blocks, exceptions taken out per block.
        blocks: AddrRanges,
    },
}

/// The ports of allowed traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every packet, whatever its protocol.
    Any,
    /// One of these.
    Some(Vec<PortAtom>),
}

/// One element of a list of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortAtom {
    /// Numbers, both ends included.
    Number(Proto, PortRange),
    /// A name, resolved on the destination pod.
    Name(Proto, Arc<str>),
}

/// Pods by namespace and labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSelector {
    /// In which namespaces.
    pub namespaces: NamespaceMatch,
    /// Which of their pods.
    pub pods: Selector,
}

/// A namespace by name, or several by label, or all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceMatch {
    /// This one: the policy's own.
    Named(Arc<str>),
    /// All that the selector selects; one that is not known itself, only by its pods, is never among them.
    Selected(Selector),
    /// All, known or not: no peer says so, but a named port without peers means whoever exposes it.
    Any,
}
