//! Whose an address is, and what an attachment stands for.

use super::facts::Claim;
use super::{Facts, PodId};
use crate::group::{Candidate, Members};
use crate::model::{
    Family, IfName, Labels, LocalPod, NamespaceMatch, PeerSelector, Phase, PodFact,
};
use hashbrown::HashSet;
use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

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
        if let Some(id) = self.sole(addr) {
            let pod = Some(id);
            return (!self.is_attached(id)).then_some(Owner { local: None, pod });
        }
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
        let mut addresses = Vec::new();
        self.each_address(id, |addr| addresses.push(addr));
        addresses
    }

    /// The same, one by one.
    pub(crate) fn each_address(&self, id: PodId, mut each: impl FnMut(IpAddr)) {
        let Some(fact) = self.pod(id).filter(|fact| counts(fact)) else {
            return;
        };
        let mut is_attached = false;
        for local in self.attached(&fact.key) {
            if self.standing(local) == Standing::Pod(id) {
                is_attached = true;
                local.addresses.iter().copied().for_each(&mut each);
            }
        }
        if !is_attached {
            fact.ips.iter().for_each(each);
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

    /// The addresses that may have elements in a set, ascending.
    pub(crate) fn candidates(&self, members: &Members) -> Vec<IpAddr> {
        let mut out = Vec::new();
        for term in members.terms() {
            self.each_selected(&term.select, |id| {
                self.each_address(id, |addr| {
                    if Family::of(addr) == members.family() {
                        out.push(addr);
                    }
                });
            });
        }
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The pods that a selector selects: found by namespace or by labels, whichever are fewer to look at.
    fn each_selected(&self, select: &PeerSelector, mut each: impl FnMut(PodId)) {
        let wanted = |labels: &Labels| select.pods.matches(labels);
        let mut of_namespace = |name: &str| {
            for id in self.pods_of(name) {
                if self.pod(id).is_some_and(|pod| wanted(&pod.labels)) {
                    each(id);
                }
            }
        };
        let is_selected = |labels: Option<&Labels>| match &select.namespaces {
            NamespaceMatch::Any => true,
            NamespaceMatch::Selected(selector) => labels.is_some_and(|l| selector.matches(l)),
            // By its name.
            NamespaceMatch::Named(_) => false,
        };
        if let NamespaceMatch::Named(name) = &select.namespaces {
            return of_namespace(name);
        }
        let namespaces = self.namespaces();
        let selected = namespaces.filter(|(_, labels)| is_selected(*labels));
        let selected: HashSet<&str> = selected.map(|(name, _)| &**name).collect();
        let in_namespaces: usize = selected.iter().map(|name| self.count_of(name)).sum();
        let labelled = || self.pods_by_labels().filter(|(labels, _)| wanted(labels));
        if select.pods.is_everything()
            || labelled().map(|(_, ids)| ids.len()).sum::<usize>() >= in_namespaces
        {
            return selected.into_iter().for_each(of_namespace);
        }
        for id in labelled().flat_map(|(_, ids)| ids.iter().copied()) {
            let is_there = |pod: &Arc<PodFact>| selected.contains(&*pod.key.namespace);
            if self.pod(id).is_some_and(is_there) {
                each(id);
            }
        }
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
    fn rank(&self, standing: Standing) -> (u8, Reverse<Option<u32>>) {
        match standing {
            Standing::Pod(id) => (0, Reverse(self.pod(id).map(|fact| fact.created))),
            Standing::Anonymous => (1, Reverse(None)),
            Standing::Waiting | Standing::Finished => (2, Reverse(None)),
        }
    }
}

fn counts(fact: &PodFact) -> bool {
    fact.phase == Phase::Live && !fact.host_network
}
