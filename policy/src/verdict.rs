//! Why a packet passes or does not: the policies themselves answer, not the plan.
//!
//! Both directions are judged for the pods that are the ends, wherever they run. A flow of this node is judged for
//! its own pods only: see [`Compiler::allowed`].

use crate::compiler::Compiler;
use crate::group::Candidate;
use crate::index::{PodId, Standing};
use crate::model::{
    Direction, Family, Peers, PodKey, Policy, PolicyKey, PortAtom, Ports, Proto, Rule,
};
use crate::ranges::PortRange;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A question: may this packet, the first of its flow, pass?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Who sends.
    pub source: End,
    /// Who receives, after any translation.
    pub destination: End,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, for TCP, UDP and SCTP.
    pub port: Option<u16>,
}

/// An end of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An address; if a pod has it, that pod is meant.
    Addr(IpAddr),
    /// A pod by name.
    Pod(PodKey),
}

/// A question that has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// A pod that the API does not have.
    #[error("pod {0} is not known")]
    UnknownPod(PodKey),
    /// The pod has no address, or none of the other end's family.
    #[error("pod {0} has no address that fits the other end")]
    NoAddress(PodKey),
    /// One end is IPv4, the other IPv6.
    #[error("{0} and {1} are not of one address family")]
    MixedFamilies(IpAddr, IpAddr),
}

/// The answer, with the reason for each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The source.
    pub source: Identity,
    /// The destination.
    pub destination: Identity,
    /// Whether the source may send it.
    pub egress: Decision,
    /// Whether the destination may get it.
    pub ingress: Decision,
}

impl Explanation {
    /// Whether both ends allow it.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }
}

/// An address and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The address.
    pub addr: IpAddr,
    /// The pod, if selectors see one there.
    pub pod: Option<PodKey>,
    /// The node that has the address itself.
    pub node: Option<Arc<str>>,
}

/// What one direction says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This end is no pod that policy applies to.
    NotAPod,
    /// Both ends are the same pod.
    SamePod,
    /// The other end is the pod's own node, to and from which traffic is always allowed.
    OwnNode,
    /// No policy of this direction selects the pod.
    NotIsolated,
    /// This rule allows it; the first by policy name and position, others may as well.
    Allowed {
        /// The policy.
        policy: PolicyKey,
        /// The rule's position in `ingress` or `egress`, from 0.
        rule: usize,
    },
    /// The pod is isolated and no rule of these policies allows it.
    Denied {
        /// The policies that isolate it, by name.
        policies: Vec<PolicyKey>,
    },
    /// An attachment of this node that waits for its pod, has finished or has lost the address: closed.
    Closed,
}

impl Decision {
    /// Whether it passes.
    #[must_use]
    pub fn allows(&self) -> bool {
        !matches!(self, Decision::Denied { .. } | Decision::Closed)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::NotAPod => f.write_str("allowed: no pod that policy applies to"),
            Decision::SamePod => f.write_str("allowed: a pod always reaches itself"),
            Decision::OwnNode => f.write_str("allowed: traffic between a pod and its node"),
            Decision::NotIsolated => {
                f.write_str("allowed: no policy selects the pod in this direction")
            }
            Decision::Allowed { policy, rule } => {
                write!(f, "allowed by NetworkPolicy {policy}, rule {rule}")
            }
            Decision::Denied { policies } => {
                let names: Vec<_> = policies.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "denied: isolated by NetworkPolicy {}, and no rule allows it",
                    names.join(", ")
                )
            }
            Decision::Closed => {
                f.write_str("denied: the interface is closed until its pod is known")
            }
        }
    }
}

/// A packet between addresses that are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) port: Option<u16>,
}

impl Packet {
    fn end(&self, direction: Direction) -> (IpAddr, IpAddr) {
        match direction {
            Direction::Ingress => (self.destination, self.source),
            Direction::Egress => (self.source, self.destination),
        }
    }
}

impl Compiler {
    /// Whether, and because of which policy and rule, a packet passes.
    ///
    /// # Errors
    /// The ends cannot be turned into two addresses of one family.
    pub fn why(&self, query: &Query) -> Result<Explanation, NoAnswer> {
        let (source, destination) = self.ends(&query.source, &query.destination)?;
        let packet = Packet {
            source,
            destination,
            protocol: query.protocol,
            port: query.port,
        };
        Ok(Explanation {
            source: self.identity(source),
            destination: self.identity(destination),
            egress: self.decide(Direction::Egress, &packet),
            ingress: self.decide(Direction::Ingress, &packet),
        })
    }

    /// What a direction says: for ingress the destination's, for egress the source's.
    pub(crate) fn decide(&self, direction: Direction, packet: &Packet) -> Decision {
        let (own, peer) = packet.end(direction);
        let Some(owner) = self.facts.owner(own) else {
            return Decision::NotAPod;
        };
        let closed = owner
            .local
            .and_then(|ifname| self.facts.local(&ifname))
            .is_some_and(|local| {
                matches!(
                    self.facts.standing(local),
                    Standing::Waiting | Standing::Finished
                )
            });
        // What a closed interface sends is dropped before anything else is asked; nothing else opens it either, but
        // the node itself is not filtered.
        if closed && (direction == Direction::Egress || own == peer) {
            return Decision::Closed;
        }
        if own == peer {
            return Decision::SamePod;
        }
        if self.is_own_node(owner.local.is_some(), owner.pod, peer) {
            return Decision::OwnNode;
        }
        if closed {
            return Decision::Closed;
        }
        match owner.pod {
            Some(id) => self.judge(direction, id, peer, packet),
            None => Decision::NotIsolated,
        }
    }

    fn judge(&self, direction: Direction, id: PodId, peer: IpAddr, packet: &Packet) -> Decision {
        let Some(pod) = self.facts.pod(id) else {
            return Decision::NotIsolated;
        };
        let policies = self.facts.policies_of(&pod.key.namespace).map(|p| &**p);
        let isolating: Vec<&Policy> = policies
            .filter(|p| p.rules(direction).is_some() && p.pods.matches(&pod.labels))
            .collect();
        if isolating.is_empty() {
            return Decision::NotIsolated;
        }
        let candidate = |id| self.facts.candidate(id);
        let peer_pod = self
            .facts
            .owner(peer)
            .and_then(|owner| owner.pod)
            .and_then(candidate);
        let destination = match direction {
            Direction::Ingress => candidate(id),
            Direction::Egress => peer_pod,
        };
        for policy in &isolating {
            for (rule, spec) in policy
                .rules(direction)
                .unwrap_or_default()
                .iter()
                .enumerate()
            {
                if spec.allows_peer(peer, peer_pod) && spec.allows_port(packet, destination) {
                    return Decision::Allowed {
                        policy: policy.key.clone(),
                        rule,
                    };
                }
            }
        }
        Decision::Denied {
            policies: isolating.into_iter().map(|p| p.key.clone()).collect(),
        }
    }

    /// Whether the peer is the node that the pod runs on.
    fn is_own_node(&self, local: bool, pod: Option<PodId>, peer: IpAddr) -> bool {
        let bound = pod
            .and_then(|id| self.facts.pod(id))
            .and_then(|fact| fact.node.as_deref());
        let node = if local {
            Some(&*self.config.node)
        } else {
            bound
        };
        node.is_some_and(|node| self.facts.node_has(node, peer))
    }

    fn identity(&self, addr: IpAddr) -> Identity {
        let pod = self
            .facts
            .owner(addr)
            .and_then(|owner| owner.pod)
            .and_then(|id| self.facts.pod(id));
        let mut nodes = self
            .facts
            .nodes()
            .filter(|(_, addresses)| addresses.contains(&addr));
        Identity {
            addr,
            pod: pod.map(|fact| fact.key.clone()),
            node: nodes.next().map(|(name, _)| name.clone()),
        }
    }

    /// Addresses for both ends, IPv4 first if a choice is left.
    fn ends(&self, source: &End, destination: &End) -> Result<(IpAddr, IpAddr), NoAnswer> {
        let (from, to) = (self.addresses(source)?, self.addresses(destination)?);
        for family in Family::ALL {
            let of =
                |addresses: &[IpAddr]| addresses.iter().copied().find(|a| Family::of(*a) == family);
            if let (Some(from), Some(to)) = (of(&from), of(&to)) {
                return Ok((from, to));
            }
        }
        Err(match (source, destination) {
            (End::Addr(a), End::Addr(b)) => NoAnswer::MixedFamilies(*a, *b),
            (End::Pod(pod), End::Addr(_)) => NoAnswer::NoAddress(pod.clone()),
            (End::Pod(pod), End::Pod(_)) if from.is_empty() => NoAnswer::NoAddress(pod.clone()),
            (_, End::Pod(pod)) => NoAnswer::NoAddress(pod.clone()),
        })
    }

    fn addresses(&self, end: &End) -> Result<Vec<IpAddr>, NoAnswer> {
        match end {
            End::Addr(addr) => Ok(vec![*addr]),
            End::Pod(key) => {
                let id = self
                    .facts
                    .pod_id(key)
                    .ok_or_else(|| NoAnswer::UnknownPod(key.clone()))?;
                let host = self.facts.pod(id).filter(|fact| fact.host_network);
                Ok(host.map_or_else(
                    || self.facts.addresses_of(id),
                    |fact| fact.ips.iter().collect(),
                ))
            }
        }
    }
}

impl Rule {
    fn allows_peer(&self, addr: IpAddr, pod: Option<Candidate<'_>>) -> bool {
        match &self.peers {
            Peers::Any => true,
            Peers::Some { pods, blocks } => {
                blocks.contains(addr)
                    || pod.is_some_and(|pod| pods.iter().any(|select| select.matches(pod)))
            }
        }
    }

    fn allows_port(&self, packet: &Packet, destination: Option<Candidate<'_>>) -> bool {
        let Ports::Some(atoms) = &self.ports else {
            return true;
        };
        let Some(proto) = Proto::from_number(packet.protocol) else {
            return false;
        };
        atoms.iter().any(|atom| match atom {
            PortAtom::Number(p, range) => {
                *p == proto
                    && packet
                        .port
                        .map_or(*range == PortRange::ALL, |port| range.contains(port))
            }
            PortAtom::Name(p, name) => {
                let ports = destination.map(|pod| pod.ports).unwrap_or_default();
                *p == proto
                    && ports.iter().any(|own| {
                        own.protocol == proto && Some(own.port) == packet.port && own.name == *name
                    })
            }
        })
    }
}
