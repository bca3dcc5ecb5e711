//! The store of facts, and which of them a change touches.

use super::{Dirty, PodId, PodTable};
use crate::model::{
    IfName, Labels, LocalPod, NamespaceFact, Phase, PodFact, PodKey, Policy, PolicyKey,
};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Somebody who says that an address is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Local(IfName),
    Pod(PodId),
}

/// Everything the compiler was told.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    namespaces: HashMap<Arc<str>, Namespace>,
    pods: PodTable,
    locals: BTreeMap<IfName, LocalPod>,
    attached: HashMap<PodKey, BTreeSet<IfName>>,
    /// Addresses that one pod claims and nobody else: nearly all that there are.
    sole4: HashMap<Ipv4Addr, PodId>,
    sole6: SoleIpv6,
    /// All the others; no address is in both.
    claims: HashMap<IpAddr, Vec<Claim>>,
    nodes: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

/// A namespace: known itself, or only by what is in it.
#[derive(Debug, Default)]
struct Namespace {
    labels: Option<Labels>,
    /// By name, which the pods themselves have.
    pods: Vec<PodId>,
    policies: BTreeMap<Arc<str>, Arc<Policy>>,
}

/// IPv6 addresses that one pod claims and nobody else, of pods that have no other one: the pod itself has the address.
#[derive(Default)]
struct SoleIpv6 {
    table: HashTable<SoleIpv6Claim>,
    hasher: DefaultHashBuilder,
}

struct SoleIpv6Claim {
    /// Of the address, so that a table that grows need not look at pods.
    hash: u32,
    pod: PodId,
}

impl SoleIpv6 {
    fn get(&self, addr: Ipv6Addr, pods: &PodTable) -> Option<PodId> {
        let hash = self.hash(addr);
        let found = self.table.find(spread(hash), is_of(hash, addr, pods));
        found.map(|claim| claim.pod)
    }

    fn take(&mut self, addr: Ipv6Addr, pods: &PodTable) -> Option<PodId> {
        let hash = self.hash(addr);
        let entry = self.table.find_entry(spread(hash), is_of(hash, addr, pods));
        entry.ok().map(|entry| entry.remove().0.pod)
    }

    /// The address must not be there. False if it is not the only one of the pod.
    fn put(&mut self, addr: Ipv6Addr, pod: PodId, pods: &PodTable) -> bool {
        if pods.get(pod).and_then(|fact| fact.ips.only_v6()) != Some(addr) {
            return false;
        }
        let hash = self.hash(addr);
        let claim = SoleIpv6Claim { hash, pod };
        self.table
            .insert_unique(spread(hash), claim, |claim| spread(claim.hash));
        true
    }

    fn hash(&self, addr: Ipv6Addr) -> u32 {
        let [a, b, c, d, ..] = self.hasher.hash_one(u128::from(addr)).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// The table looks at both ends of a hash.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

fn is_of(hash: u32, addr: Ipv6Addr, pods: &PodTable) -> impl Fn(&SoleIpv6Claim) -> bool {
    move |claim| {
        let only = || pods.get(claim.pod)?.ips.only_v6();
        claim.hash == hash && only() == Some(addr)
    }
}

impl fmt::Debug for SoleIpv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.table.iter().map(|claim| claim.pod);
        f.debug_list().entries(pods).finish()
    }
}

impl Facts {
    pub(crate) fn pod(&self, id: PodId) -> Option<&Arc<PodFact>> {
        self.pods.get(id)
    }

    pub(crate) fn pod_id(&self, key: &PodKey) -> Option<PodId> {
        self.place(key).ok().map(|(_, id)| id)
    }

    /// Where a pod is in its namespace, and its number; or where it belongs.
    fn place(&self, key: &PodKey) -> Result<(usize, PodId), usize> {
        let pods = self.namespaces.get(&key.namespace);
        let pods = pods.map(|n| n.pods.as_slice()).unwrap_or_default();
        let order = |id: &PodId| {
            let name = self.pod(*id).map(|pod| &*pod.key.name);
            name.cmp(&Some(&*key.name))
        };
        // The API server gives them by name.
        if pods.last().is_some_and(|last| order(last).is_lt()) {
            return Err(pods.len());
        }
        let found = pods.binary_search_by(order)?;
        pods.get(found).map(|id| (found, *id)).ok_or(found)
    }

    /// All pods, in no particular order.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<PodFact>> {
        self.pods.iter()
    }

    /// Labels that pods have, with all pods that have exactly these.
    pub(crate) fn pods_by_labels(&self) -> impl Iterator<Item = (&Labels, &[PodId])> {
        self.pods.by_labels()
    }

    pub(crate) fn local(&self, ifname: &IfName) -> Option<&LocalPod> {
        self.locals.get(ifname)
    }

    pub(crate) fn locals(&self) -> impl Iterator<Item = &LocalPod> {
        self.locals.values()
    }

    /// The attachments that say they are for this pod.
    pub(crate) fn attached(&self, key: &PodKey) -> impl Iterator<Item = &LocalPod> {
        self.attached
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|name| self.locals.get(name))
    }

    /// The pod that alone claims an address.
    pub(crate) fn sole(&self, addr: IpAddr) -> Option<PodId> {
        match addr {
            IpAddr::V4(addr) => self.sole4.get(&addr).copied(),
            IpAddr::V6(addr) => self.sole6.get(addr, &self.pods),
        }
    }

    /// The claims of an address that is no [`sole`](Self::sole) pod's.
    pub(crate) fn claims(&self, addr: IpAddr) -> impl Iterator<Item = Claim> {
        self.claims.get(&addr).into_iter().flatten().copied()
    }

    /// All namespaces, in no particular order.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, Option<&Labels>)> {
        self.namespaces
            .iter()
            .map(|(name, namespace)| (name, namespace.labels.as_ref()))
    }

    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)?.labels.as_ref()
    }

    /// How many pods a namespace has.
    pub(crate) fn count_of(&self, namespace: &str) -> usize {
        self.namespaces.get(namespace).map_or(0, |n| n.pods.len())
    }

    pub(crate) fn pods_of(&self, namespace: &str) -> impl Iterator<Item = PodId> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|n| n.pods.iter().copied())
    }

    pub(crate) fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.namespaces.values().flat_map(|n| n.policies.values())
    }

    /// The policies of a namespace, by name.
    pub(crate) fn policies_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|n| n.policies.values())
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &Vec<IpAddr>)> {
        self.nodes.iter()
    }

    pub(crate) fn node_has(&self, node: &str, addr: IpAddr) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|addresses| addresses.contains(&addr))
    }

    pub(crate) fn set_pod(&mut self, fact: Arc<PodFact>, dirty: &mut Dirty) {
        let place = self.place(&fact.key);
        let known = place.ok().map(|(_, id)| id);
        if let Some(id) = known {
            if self.pod(id) == Some(&fact) {
                return;
            }
            self.touch(known, &fact.key, dirty);
            self.release_claims(id);
        }
        let (key, live) = (fact.key.clone(), fact.phase == Phase::Live);
        let claims = (live && !fact.host_network).then(|| fact.ips.clone());
        let id = self.pods.put(known, fact);
        if let Err(place) = place {
            let namespace = self.namespaces.entry_ref(&key.namespace).or_default();
            namespace.pods.insert(place, id);
        }
        for addr in claims.iter().flat_map(|ips| ips.iter()) {
            self.claim(addr, Claim::Pod(id));
        }
        self.touch(Some(id), &key, dirty);
    }

    pub(crate) fn remove_pod(&mut self, key: &PodKey, dirty: &mut Dirty) {
        let found = self.place(key).ok();
        self.touch(found.map(|(_, id)| id), key, dirty);
        let Some((place, id)) = found else {
            return;
        };
        self.release_claims(id);
        self.pods.remove(id);
        if let Some(namespace) = self.namespaces.get_mut(&key.namespace) {
            namespace.pods.remove(place);
        }
        self.forget_if_empty(&key.namespace);
        // Claimants of this node may follow from the pod, so they are looked at once more without it.
        self.touch(None, key, dirty);
    }

    pub(crate) fn set_namespace(&mut self, fact: NamespaceFact, dirty: &mut Dirty) {
        let namespace = self.namespaces.entry(fact.name.clone()).or_default();
        if namespace.labels.as_ref() == Some(&fact.labels) {
            return;
        }
        namespace.labels = Some(fact.labels);
        self.touch_namespace(&fact.name, dirty);
    }

    pub(crate) fn remove_namespace(&mut self, name: &Arc<str>, dirty: &mut Dirty) {
        if let Some(namespace) = self.namespaces.get_mut(name) {
            namespace.labels = None;
        }
        self.touch_namespace(name, dirty);
        self.forget_if_empty(name);
    }

    pub(crate) fn set_policy(&mut self, policy: Arc<Policy>, dirty: &mut Dirty) {
        let policies = &mut self
            .namespaces
            .entry(policy.key.namespace.clone())
            .or_default()
            .policies;
        let old = policies.insert(policy.key.name.clone(), policy.clone());
        if old.as_ref() == Some(&policy) {
            return;
        }
        old.iter()
            .chain([&policy])
            .for_each(|p| self.touch_selected(p, dirty));
    }

    pub(crate) fn remove_policy(&mut self, key: &PolicyKey, dirty: &mut Dirty) {
        let policies = self
            .namespaces
            .get_mut(&key.namespace)
            .map(|n| &mut n.policies);
        if let Some(old) = policies.and_then(|p| p.remove(&key.name)) {
            self.touch_selected(&old, dirty);
        }
        self.forget_if_empty(&key.namespace);
    }

    pub(crate) fn set_local(&mut self, local: LocalPod, dirty: &mut Dirty) {
        if self.locals.get(&local.ifname) == Some(&local) {
            return;
        }
        self.remove_local(&local.ifname, dirty);
        local
            .addresses
            .iter()
            .for_each(|addr| self.claim(*addr, Claim::Local(local.ifname)));
        if let Some(pod) = &local.pod {
            self.attached
                .entry(pod.key.clone())
                .or_default()
                .insert(local.ifname);
        }
        let ifname = local.ifname;
        self.locals.insert(ifname, local);
        self.touch_local(&ifname, dirty);
    }

    pub(crate) fn remove_local(&mut self, ifname: &IfName, dirty: &mut Dirty) {
        self.touch_local(ifname, dirty);
        let Some(local) = self.locals.remove(ifname) else {
            return;
        };
        for addr in &local.addresses {
            self.unclaim(*addr, Claim::Local(*ifname));
        }
        let Some(pod) = &local.pod else { return };
        if let Some(attached) = self.attached.get_mut(&pod.key) {
            attached.remove(ifname);
            if attached.is_empty() {
                self.attached.remove(&pod.key);
            }
        }
    }

    pub(crate) fn set_node(&mut self, name: Arc<str>, addresses: Vec<IpAddr>) {
        self.nodes.insert(name, addresses);
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    fn claim(&mut self, addr: IpAddr, claim: Claim) {
        if let (Claim::Pod(id), IpAddr::V4(addr4)) = (claim, addr)
            && !self.claims.contains_key(&addr)
            && *self.sole4.entry(addr4).or_insert(id) == id
        {
            return;
        }
        let sole = self.take_sole(addr);
        if let Claim::Pod(id) = claim
            && sole.is_none_or(|sole| sole == id)
            && !self.claims.contains_key(&addr)
            && self.put_sole(addr, id)
        {
            return;
        }
        let claims = self.claims.entry(addr).or_default();
        claims.extend(sole.map(Claim::Pod));
        if !claims.contains(&claim) {
            claims.push(claim);
        }
    }

    fn unclaim(&mut self, addr: IpAddr, claim: Claim) {
        match (self.take_sole(addr), claim) {
            (Some(sole), Claim::Pod(id)) if sole == id => return,
            (Some(sole), _) => {
                self.put_sole(addr, sole);
                return;
            }
            (None, _) => {}
        }
        let Some(claims) = self.claims.get_mut(&addr) else {
            return;
        };
        claims.retain(|c| *c != claim);
        let is_settled = match *claims.as_slice() {
            [] => true,
            [Claim::Pod(id)] => self.put_sole(addr, id),
            _ => false,
        };
        if is_settled {
            self.claims.remove(&addr);
        }
    }

    /// Takes note of a pod that alone claims an address, which nobody did. False: that is for the claims.
    fn put_sole(&mut self, addr: IpAddr, id: PodId) -> bool {
        match addr {
            IpAddr::V4(addr) => {
                self.sole4.insert(addr, id);
                true
            }
            IpAddr::V6(addr) => self.sole6.put(addr, id, &self.pods),
        }
    }

    fn take_sole(&mut self, addr: IpAddr) -> Option<PodId> {
        match addr {
            IpAddr::V4(addr) => self.sole4.remove(&addr),
            IpAddr::V6(addr) => self.sole6.take(addr, &self.pods),
        }
    }

    fn release_claims(&mut self, id: PodId) {
        let Some(fact) = self.pod(id).cloned() else {
            return;
        };
        for addr in fact.ips.iter() {
            self.unclaim(addr, Claim::Pod(id));
        }
    }

    fn forget_if_empty(&mut self, name: &str) {
        let empty =
            |n: &Namespace| n.labels.is_none() && n.pods.is_empty() && n.policies.is_empty();
        if self.namespaces.get(name).is_some_and(empty) {
            self.namespaces.remove(name);
        }
    }

    /// Attachments never are sole claimants.
    fn touch_addr(&self, addr: IpAddr, dirty: &mut Dirty) {
        dirty.touch(addr);
        for claim in self.claims(addr) {
            if let Claim::Local(ifname) = claim {
                dirty.locals.insert(ifname);
            }
        }
    }

    fn touch_pod(&self, key: &PodKey, dirty: &mut Dirty) {
        self.touch(self.pod_id(key), key, dirty);
    }

    /// The same with the number of the pod, if it is known.
    fn touch(&self, id: Option<PodId>, key: &PodKey, dirty: &mut Dirty) {
        if let Some(fact) = id.and_then(|id| self.pod(id)) {
            fact.ips
                .iter()
                .for_each(|addr| self.touch_addr(addr, dirty));
        }
        for local in self.attached(key) {
            dirty.locals.insert(local.ifname);
            local
                .addresses
                .iter()
                .for_each(|addr| self.touch_addr(*addr, dirty));
        }
    }

    fn touch_local(&self, ifname: &IfName, dirty: &mut Dirty) {
        dirty.locals.insert(*ifname);
        let Some(local) = self.local(ifname) else {
            return;
        };
        local
            .addresses
            .iter()
            .for_each(|addr| self.touch_addr(*addr, dirty));
        if let Some(pod) = &local.pod {
            self.touch_pod(&pod.key, dirty);
        }
    }

    fn touch_namespace(&self, name: &str, dirty: &mut Dirty) {
        for id in self.pods_of(name) {
            self.each_address(id, |addr| dirty.touch(addr));
        }
    }

    fn touch_selected(&self, policy: &Policy, dirty: &mut Dirty) {
        for local in self.locals() {
            let Some(pod) = &local.pod else { continue };
            let same_namespace = pod.key.namespace == policy.key.namespace;
            let fact = self.pod_id(&pod.key).and_then(|id| self.pod(id));
            if same_namespace && fact.is_some_and(|f| policy.pods.matches(&f.labels)) {
                dirty.locals.insert(local.ifname);
            }
        }
    }
}
