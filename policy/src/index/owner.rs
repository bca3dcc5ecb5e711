//! Whose an address is, and what an attachment stands for.

use super::facts::Claim;
use super::{Facts, PodId};
use crate::group::{Candidate, Members};
use crate::model::{IfName, LocalPod, NamespaceMatch, Phase, PodFact};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What an attachment stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This pod.
    Pod(PodId),
    /// Something that no selector selects (no K8S arguments).
    Anonymous,
    /// A pod that is not known yet, or not any more: closed until it is.
    Waiting,
    /// A pod that has finished: closed.
    Finished,
}

/// The one who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The attachment, on this node.
    pub(crate) local: Option<IfName>,
    /// The pod, if it is one that selectors can see.
    pub(crate) pod: Option<PodId>,
}

impl Facts {
    pub(crate) fn standing(&self, local: &LocalPod) -> Standing {
        let Some(wanted) = &local.pod else {
            return Standing::Anonymous;
        };
        let Some(id) = self.pod_id(&wanted.key) else {
            return Standing::Waiting;
        };
        let Some(fact) = self.pod(id) else {
            return Standing::Waiting;
        };
        if wanted.uid.as_ref().is_some_and(|uid| *uid != fact.uid) || fact.host_network {
            return Standing::Waiting;
        }
        match fact.phase {
            Phase::Live => Standing::Pod(id),
            Phase::Finished => Standing::Finished,
        }
    }

    /// Who has the address.
    pub(crate) fn owner(&self, addr: IpAddr) -> Option<Owner> {
        let claims = self.claims(addr);
        let locals = claims.filter_map(|claim| match claim {
            Claim::Local(ifname) => self.local(&ifname),
            Claim::Pod(_) => None,
        });
        let standing = locals.map(|local| (local.ifname, self.standing(local)));
        let live = standing.filter(|(_, standing)| *standing != Standing::Finished);
        let best = live.min_by_key(|(ifname, standing)| (self.rank(*standing), *ifname));
        if let Some((ifname, standing)) = best {
            let pod = match standing {
                Standing::Pod(id) => Some(id),
                _ => None,
            };
            return Some(Owner {
                local: Some(ifname),
                pod,
            });
        }
        let pods = self.claims(addr).filter_map(|claim| match claim {
            Claim::Pod(id) => self.pod(id).map(|fact| (id, fact)),
            Claim::Local(_) => None,
        });
        let elsewhere = pods.filter(|(id, _)| !self.is_attached(*id));
        let newest = elsewhere.min_by_key(|(_, fact)| (Reverse(fact.created), &fact.key));
        newest.map(|(id, _)| Owner {
            local: None,
            pod: Some(id),
        })
    }

    /// The addresses that a pod would have if nobody else claimed them.
    pub(crate) fn addresses_of(&self, id: PodId) -> Vec<IpAddr> {
        let Some(fact) = self.pod(id) else {
            return Vec::new();
        };
        if !counts(fact) {
            return Vec::new();
        }
        let own = self
            .attached(&fact.key)
            .filter(|local| self.standing(local) == Standing::Pod(id));
        let attached: Vec<_> = own
            .flat_map(|local| local.addresses.iter().copied())
            .collect();
        if self.is_attached(id) {
            attached
        } else {
            fact.ips.clone()
        }
    }

    /// The owner of an address as selectors see it.
    pub(crate) fn candidate(&self, id: PodId) -> Option<Candidate<'_>> {
        let fact = self.pod(id)?;
        Some(Candidate {
            namespace: &fact.key.namespace,
            namespace_labels: self.namespace_labels(&fact.key.namespace),
            labels: &fact.labels,
            ports: &fact.ports,
        })
    }

    /// The addresses that may have elements in a set, found by namespace.
    pub(crate) fn candidates(&self, members: &Members) -> BTreeSet<IpAddr> {
        let mut out = BTreeSet::new();
        for term in members.terms() {
            let mut collect = |namespace: &str| {
                for id in self.pods_of(namespace) {
                    if self
                        .candidate(id)
                        .is_some_and(|pod| term.select.matches(pod))
                    {
                        out.extend(
                            self.addresses_of(id)
                                .into_iter()
                                .filter(|a| crate::model::Family::of(*a) == members.family()),
                        );
                    }
                }
            };
            match &term.select.namespaces {
                NamespaceMatch::Any => self.namespaces().for_each(|(name, _)| collect(name)),
                NamespaceMatch::Named(name) => collect(name),
                NamespaceMatch::Selected(selector) => {
                    let selected = self
                        .namespaces()
                        .filter(|(_, l)| l.is_some_and(|l| selector.matches(l)));
                    selected.for_each(|(name, _)| collect(name));
                }
            }
        }
        out
    }

    /// Whether an attachment of this node is the pod's: then its addresses count, not those that the API shows.
    fn is_attached(&self, id: PodId) -> bool {
        let Some(fact) = self.pod(id) else {
            return false;
        };
        self.attached(&fact.key)
            .any(|local| self.standing(local) == Standing::Pod(id))
    }

    /// Lower wins: pods, newest first; then the anonymous; then those that wait.
    fn rank(&self, standing: Standing) -> (u8, Reverse<i64>) {
        match standing {
            Standing::Pod(id) => (
                0,
                Reverse(self.pod(id).map_or(i64::MIN, |fact| fact.created)),
            ),
            Standing::Anonymous => (1, Reverse(0)),
            Standing::Waiting | Standing::Finished => (2, Reverse(0)),
        }
    }
}

fn counts(fact: &PodFact) -> bool {
    fact.phase == Phase::Live && !fact.host_network
}
