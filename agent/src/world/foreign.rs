//! Pods that another plugin made: interfaces and addresses from the kernel, names from the Pods of this node.
//!
//! An interface is the Pod's that has one of its addresses in `status.podIPs`; all addresses behind the interface are that
//! Pod's then. An interface whose Pod is not known is closed: nothing comes in or goes out but what the node itself sends.
//! So a new pod has no network before its Pod has its address and the kernel its rules.
//!
//! The API tells addresses late. What it says of an address that has just changed its owner may be of the former one:
//!
//! * An interface stays closed until the flows of whoever had its addresses on another interface are gone.
//! * A Pod that was found behind another interface by the same address is not found by it again while some Pod of this
//!   node has no address yet: that one may be the new owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use selvage_policy::{
    Change,
    model::{IfName, LocalPod, Phase, PodFact, PodKey, PodRef, Uid},
};

use super::World;
use crate::store::{Dirty, Observed, PodInterface, Store};

/// The plugin's DEL comes before the end of the Pod: one without a route is not told of before it is without for so long.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// What is known of pods of another plugin.
#[derive(Default)]
pub(super) struct Foreign {
    /// Pods of this node that have, or will have, an interface of their own.
    pods: BTreeMap<PodKey, Arc<PodFact>>,
    /// Which of them say that an address is theirs.
    by_address: BTreeMap<IpAddr, BTreeSet<PodKey>>,
    /// Those that have no address yet.
    without_address: BTreeSet<PodKey>,
    /// The interface behind which a pod was found last.
    found: BTreeMap<PodKey, Place>,
    /// What the compiler was told, by interface.
    told: BTreeMap<IfName, LocalPod>,
    /// The addresses that were behind each interface that there is, by index.
    behind: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// Addresses whose flows of a former owner are being deleted, and the number by which that is told.
    leaving: BTreeMap<IpAddr, u64>,
    /// Addresses of `pods` that are behind no interface, and since when.
    unrouted: BTreeMap<(PodKey, IpAddr), Instant>,
    /// Something has changed since the interfaces were looked at last.
    stale: bool,
}

/// Where a pod was found.
struct Place {
    uid: Uid,
    index: u32,
    /// All addresses that were behind the interface while it was the pod's. Plugins take them away one by one, before the
    /// interface goes.
    addresses: BTreeSet<IpAddr>,
}

impl Foreign {
    /// Whether the interfaces have to be looked at again.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The flows of former owners are gone up to this number.
    pub(super) fn forgot(&mut self, number: u64) {
        let before = self.leaving.len();
        self.leaving.retain(|_, wanted| *wanted > number);
        self.stale |= self.leaving.len() != before;
    }

    /// The pods behind interfaces; `None` in the second place where nobody knows whose the interface is.
    pub(super) fn locals(&self) -> impl Iterator<Item = (&LocalPod, Option<&PodKey>)> {
        self.told.values().map(|local| {
            let key = local.pod.as_ref().map(|pod| &pod.key);
            (local, key.filter(|key| **key != nobody()))
        })
    }

    /// Addresses of Pods of this node that are behind no interface, for longer than the end of a pod takes.
    pub(super) fn unrouted(&self, now: Instant) -> impl Iterator<Item = (&PodKey, IpAddr)> {
        let old = self.unrouted.iter();
        let old = old.filter(move |(_, since)| **since + GRACE <= now);
        old.map(|((key, addr), _)| (key, *addr))
    }

    /// Takes note of the interfaces as they are now. Addresses that are behind another interface than before, or whose
    /// interface is gone. A route that is away for a moment, or an interface that is down, is no end of a pod.
    fn left(&mut self, now: &BTreeMap<String, PodInterface>) -> BTreeSet<IpAddr> {
        let places: BTreeMap<IpAddr, u32> = now
            .values()
            .flat_map(|interface| {
                let addresses = interface.addresses.iter();
                addresses.map(|addr| (*addr, interface.index))
            })
            .collect();
        let indices: BTreeSet<u32> = now.values().map(|interface| interface.index).collect();
        let mut left = BTreeSet::new();
        self.behind.retain(|index, addresses| {
            let is_left = |addr: &IpAddr| match places.get(addr) {
                Some(place) => place != index,
                None => !indices.contains(index),
            };
            addresses.retain(|addr| {
                let stays = !is_left(addr);
                if !stays {
                    left.insert(*addr);
                }
                stays
            });
            !addresses.is_empty()
        });
        for (addr, index) in places {
            self.behind.entry(index).or_default().insert(addr);
        }
        left
    }

    /// What the compiler has to be told.
    fn changes(&mut self, store: &Store, dirty: &Dirty, node: &str, now: Instant) -> Vec<Change> {
        for key in &dirty.pods {
            self.set(key, store.pod(key), node);
        }
        self.stale |= dirty.pod_interfaces;
        if !std::mem::take(&mut self.stale) {
            return Vec::new();
        }
        let none = BTreeMap::new();
        let mut locals = BTreeMap::new();
        for (name, interface) in store.pod_interfaces().unwrap_or(&none) {
            // A name that the compiler cannot take stays closed.
            let Ok(ifname) = name.parse::<IfName>() else {
                continue;
            };
            if !interface.addresses.is_empty() {
                locals.insert(ifname, self.local(ifname, interface));
            }
        }
        self.note_unrouted(&locals, now);
        let gone = self.told.keys().filter(|name| !locals.contains_key(*name));
        let mut changes: Vec<Change> = gone.copied().map(Change::LocalGone).collect();
        let new = locals
            .iter()
            .filter(|(name, local)| self.told.get(*name) != Some(*local));
        changes.extend(new.map(|(_, local)| Change::Local(local.clone())));
        self.told = locals;
        changes
    }

    /// A pod as it is now.
    fn set(&mut self, key: &PodKey, fact: Option<&Arc<PodFact>>, node: &str) {
        let is_here = |fact: &&Arc<PodFact>| {
            let here = fact.node.as_deref() == Some(node);
            here && !fact.host_network && fact.phase == Phase::Live
        };
        let now = fact.filter(is_here);
        if self.pods.get(key) == now {
            return;
        }
        self.stale = true;
        if let Some(before) = self.pods.remove(key) {
            for addr in before.ips.iter() {
                if let Some(keys) = self.by_address.get_mut(&addr) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.by_address.remove(&addr);
                    }
                }
            }
        }
        self.without_address.remove(key);
        let Some(now) = now else {
            self.found.remove(key);
            return;
        };
        if now.ips.is_empty() {
            self.without_address.insert(key.clone());
        }
        for addr in now.ips.iter() {
            self.by_address.entry(addr).or_default().insert(key.clone());
        }
        self.pods.insert(key.clone(), Arc::clone(now));
    }

    /// What is behind an interface.
    fn local(&mut self, ifname: IfName, interface: &PodInterface) -> LocalPod {
        let owner = self.owner(interface);
        if let Some(owner) = &owner {
            let before = self.found.remove(&owner.key);
            let same = before.filter(|p| p.uid == owner.uid && p.index == interface.index);
            let mut place = same.unwrap_or_else(|| Place {
                uid: owner.uid.clone(),
                index: interface.index,
                addresses: BTreeSet::new(),
            });
            place.addresses.extend(&interface.addresses);
            self.found.insert(owner.key.clone(), place);
        }
        let pod = match &owner {
            Some(fact) => PodRef {
                key: fact.key.clone(),
                uid: Some(fact.uid.clone()),
            },
            None => PodRef {
                key: nobody(),
                uid: None,
            },
        };
        LocalPod {
            ifname,
            ifindex: interface.index,
            addresses: interface.addresses.iter().copied().collect(),
            pod: Some(pod),
        }
    }

    /// Whose an interface is, if that can be said.
    fn owner(&self, interface: &PodInterface) -> Option<Arc<PodFact>> {
        let leaving = |addr| self.leaving.contains_key(addr);
        if interface.addresses.iter().any(leaving) {
            return None;
        }
        let keys: BTreeSet<&PodKey> = interface
            .addresses
            .iter()
            .filter_map(|addr| self.by_address.get(addr))
            .flatten()
            .collect();
        let facts = keys.into_iter().filter_map(|key| self.pods.get(key));
        let known = facts.map(|fact| (self.was_elsewhere(fact, interface), fact));
        let sure = known.filter(|(elsewhere, _)| !elsewhere || self.without_address.is_empty());
        // One that was not behind another interface, then the newest.
        let best = sure.min_by_key(|(elsewhere, fact)| {
            (*elsewhere, std::cmp::Reverse(fact.created), &fact.key)
        });
        best.map(|(_, fact)| Arc::clone(fact))
    }

    /// Whether the pod was found behind another interface by all of the addresses that it has of this one.
    fn was_elsewhere(&self, fact: &PodFact, interface: &PodInterface) -> bool {
        let Some(place) = self.found.get(&fact.key) else {
            return false;
        };
        let mut own = fact
            .ips
            .iter()
            .filter(|addr| interface.addresses.contains(addr));
        place.uid == fact.uid
            && place.index != interface.index
            && own.all(|addr| place.addresses.contains(&addr))
    }

    fn note_unrouted(&mut self, locals: &BTreeMap<IfName, LocalPod>, now: Instant) {
        let routed: BTreeSet<IpAddr> = locals
            .values()
            .flat_map(|local| local.addresses.iter().copied())
            .collect();
        let before = std::mem::take(&mut self.unrouted);
        for (key, fact) in &self.pods {
            for addr in fact.ips.iter().filter(|addr| !routed.contains(addr)) {
                let place = (key.clone(), addr);
                let since = before.get(&place).copied().unwrap_or(now);
                self.unrouted.insert(place, since);
            }
        }
    }
}

/// Stands for a Pod that nobody has told of: no Pod has this name.
fn nobody() -> PodKey {
    PodKey::new("", "")
}

impl World {
    /// Whether pods of this node are known as far as the kernel shows them. Before that a plan would close all of them.
    pub(super) fn pods_are_read(&self) -> bool {
        !self.setup.pods.are_named() || self.store.pod_interfaces().is_some()
    }

    /// Has the flows deleted of pods whose addresses are on another interface now, or whose interface is gone.
    pub(super) fn addresses_left(&mut self, observed: &Observed) {
        let Observed::PodInterfaces(now) = observed else {
            return;
        };
        let left = self.foreign.left(now);
        if let Some(number) = self.forget(left.clone()) {
            let leaving = left.into_iter().map(|addr| (addr, number));
            self.foreign.leaving.extend(leaving);
        }
    }

    /// What the compiler has to be told of another plugin's pods.
    pub(super) fn foreign_changes(&mut self, dirty: &Dirty) -> Vec<Change> {
        if !self.setup.pods.are_named() {
            return Vec::new();
        }
        let node = &self.setup.local.node;
        self.foreign.changes(&self.store, dirty, node, self.now)
    }
}
