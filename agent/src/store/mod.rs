//! The world as far as the agent knows it: objects, attachments, and what the kernel and the speaker showed.
//!
//! One owner on one thread; facts only, no conclusions (those are `desired`'s) and no I/O. A change comes back as
//! [`Dirty`]: what has to be thought over again.

pub mod observed;
mod pods;
mod sorted;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use selvage_cni::link::Attachment;
use selvage_policy::model::{NamespaceFact, PodFact, PodKey, PolicyKey};

pub use observed::{
    FaultCount, LastFault, Link, Observed, POD_LINK_GROUP, PeerState, PodInterface, PolicyState,
    RouteCounts, SessionState, StaleFamily, UnknownSources, UnusedFamily,
};

use crate::kernel::sysctl::Setting;
use crate::objects::{
    BgpConfiguration, BgpPeer, Interner, Key, Kind, NetworkPolicy, Node, NotEnforced, Object,
    PolicyKind, Secret, Shown,
};
use crate::source::{ObjectEvent, Origin, Problem};
use sweep::Sweep;

/// The world.
#[derive(Debug, Default)]
pub struct Store {
    nodes: BTreeMap<String, Arc<Node>>,
    namespaces: BTreeMap<String, Arc<NamespaceFact>>,
    pods: pods::Pods,
    shared: Interner,
    policies: BTreeMap<PolicyKey, Arc<NetworkPolicy>>,
    configuration: Option<Arc<BgpConfiguration>>,
    peers: BTreeMap<String, Arc<BgpPeer>>,
    secrets: BTreeMap<Key, Arc<Secret>>,
    problems: BTreeMap<Origin, Vec<Problem>>,
    not_enforced: BTreeMap<PolicyKind, Vec<NotEnforced>>,
    shown: BTreeMap<(Kind, Key), Shown>,
    attachments: BTreeMap<AttachmentId, Arc<Attachment>>,
    links: BTreeMap<u32, Link>,
    /// Of pods of another plugin; `None` until they have been read.
    pod_interfaces: Option<BTreeMap<String, PodInterface>>,
    /// Of IPv4 and IPv6.
    forwarding: [Option<bool>; 2],
    droppers: Vec<String>,
    sessions: BTreeMap<IpAddr, PeerState>,
    unknown_sources: UnknownSources,
    routes: RouteCounts,
    policy: PolicyState,
    lacking: BTreeMap<&'static str, String>,
    sysctls: Vec<Setting>,
    synced: BTreeSet<Kind>,
    sweeps: BTreeMap<Kind, Sweep>,
    reached: u64,
}

/// Container id and interface name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl AttachmentId {
    /// The id of an attachment.
    pub fn of(attachment: &Attachment) -> Self {
        AttachmentId {
            container: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
        }
    }
}

/// What a batch of facts touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Nodes, peers, configuration, secrets, links that are not of pods: the configuration of the speaker or of the plugin
    /// may differ now.
    pub bgp: bool,
    /// Nodes that are new, changed or gone.
    pub nodes: BTreeSet<String>,
    /// Pods that are new, changed or gone.
    pub pods: BTreeSet<PodKey>,
    /// Namespaces that are new, changed or gone.
    pub namespaces: BTreeSet<String>,
    /// Policies that are new, changed or gone.
    pub policies: BTreeSet<PolicyKey>,
    /// Attachments that are new, changed or gone.
    pub attachments: BTreeSet<AttachmentId>,
    /// The host's ends of attachments that are gone or that have another one now.
    pub detached: BTreeSet<String>,
    /// Interfaces of another plugin's pods, or their addresses.
    pub pod_interfaces: bool,
    /// Sessions, counts, problems: only views differ.
    pub views: bool,
    /// A kind was synced that was not before.
    pub synced: bool,
}

impl Dirty {
    /// Adds what another batch touched.
    pub fn merge(&mut self, other: Dirty) {
        self.bgp |= other.bgp;
        self.nodes.extend(other.nodes);
        if self.pods.is_empty() {
            // The usual case, and there may be many.
            self.pods = other.pods;
        } else {
            self.pods.extend(other.pods);
        }
        self.namespaces.extend(other.namespaces);
        self.policies.extend(other.policies);
        self.attachments.extend(other.attachments);
        self.detached.extend(other.detached);
        self.pod_interfaces |= other.pod_interfaces;
        self.views |= other.views;
        self.synced |= other.synced;
    }

    /// Whether the policy compiler has to be told.
    pub fn policy(&self) -> bool {
        !(self.nodes.is_empty()
            && self.pods.is_empty()
            && self.namespaces.is_empty()
            && self.policies.is_empty()
            && self.attachments.is_empty()
            && !self.pod_interfaces)
    }
}

impl Store {
    /// Takes in what a source said.
    pub fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Dirty {
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                ObjectEvent::Relist(kind) => {
                    let present = self.keys(kind);
                    self.sweeps.insert(kind, Sweep::new(present));
                }
                ObjectEvent::Applied(object) => {
                    if let Some(sweep) = self.sweeps.get_mut(&object.kind()) {
                        sweep.seen(object.key());
                    }
                    self.set(object, &mut dirty);
                }
                ObjectEvent::Pod(fact) => {
                    if let Some(sweep) = self.sweeps.get_mut(&Kind::Pod) {
                        sweep.seen_pod(&fact.key);
                    }
                    self.put_pod(fact, &mut dirty);
                }
                ObjectEvent::Deleted(kind, key) => self.forget(kind, &key, &mut dirty),
                ObjectEvent::Synced(kind) => {
                    for key in self
                        .sweeps
                        .remove(&kind)
                        .map(Sweep::unseen)
                        .unwrap_or_default()
                    {
                        self.forget(kind, &key, &mut dirty);
                    }
                    dirty.synced |= self.synced.insert(kind);
                }
                ObjectEvent::Reached(mark) => {
                    self.reached = self.reached.max(mark);
                    dirty.views = true;
                }
                ObjectEvent::Cleared(origin) => {
                    dirty.views |= self.problems.remove(&origin).is_some()
                }
                ObjectEvent::Invalid(problem) => {
                    if let Some(kind) = Kind::from_name(&problem.kind)
                        && let Some(sweep) = self.sweeps.get_mut(&kind)
                    {
                        sweep.seen(&problem.key);
                    }
                    self.problems
                        .entry(problem.origin())
                        .or_default()
                        .push(problem);
                    dirty.views = true;
                }
                ObjectEvent::NotEnforced(kind, policies) => {
                    let before = self.not_enforced.insert(kind, policies);
                    dirty.views |= before.as_ref() != self.not_enforced.get(&kind);
                }
                ObjectEvent::Shown(shown) => {
                    let id = (shown.kind, shown.key.clone());
                    if let Some(sweep) = self.sweeps.get_mut(&shown.kind) {
                        sweep.seen(&shown.key);
                    }
                    dirty.views |= self.shown.get(&id) != Some(&*shown);
                    self.shown.insert(id, *shown);
                }
            }
        }
        dirty
    }

    /// Takes in what the kernel or the speaker showed.
    pub fn observe(&mut self, observed: Observed) -> Dirty {
        let mut dirty = Dirty {
            views: true,
            ..Dirty::default()
        };
        match observed {
            Observed::Links(links) => {
                let counts = |links: &BTreeMap<u32, Link>| -> Vec<_> {
                    let own = links.iter().filter(|(_, link)| !link.is_pods());
                    own.map(|(index, link)| (*index, link.clone())).collect()
                };
                dirty.bgp = counts(&self.links) != counts(&links);
                self.links = links;
            }
            Observed::Link(index, link) => {
                let now = Some(&link).filter(|link| !link.is_pods()).cloned();
                let before = self.links.insert(index, link);
                dirty.bgp = before.filter(|link| !link.is_pods()) != now;
            }
            Observed::LinkGone(index) => {
                let gone = self.links.remove(&index);
                dirty.bgp = gone.is_some_and(|link| !link.is_pods());
            }
            Observed::PodInterfaces(interfaces) => {
                dirty.pod_interfaces = true;
                self.pod_interfaces = Some(interfaces);
            }
            Observed::Forwarding { ipv4, ipv6 } => self.forwarding = [ipv4, ipv6],
            Observed::Droppers(chains) => self.droppers = chains,
            Observed::Routes(counts) => self.routes = counts,
            Observed::Policy(state) => self.policy = state,
            Observed::Peer(state) => {
                self.sessions.insert(state.address, *state);
            }
            Observed::UnknownSources(found) => self.unknown_sources = found,
            Observed::PeerGone(address) => {
                self.sessions.remove(&address);
            }
            Observed::Lacking(name, what) => {
                self.lacking.insert(name, what);
            }
            Observed::NotLacking(name) => {
                self.lacking.remove(name);
            }
            Observed::Sysctls(wrong) => self.sysctls = wrong,
        }
        dirty
    }

    /// Takes in that a pod's interface exists.
    pub fn attach(&mut self, attachment: Attachment) -> Dirty {
        let mut dirty = Dirty::default();
        let id = AttachmentId::of(&attachment);
        let attachment = Arc::new(attachment);
        let before = self.attachments.insert(id.clone(), Arc::clone(&attachment));
        if before.as_ref() == Some(&attachment) {
            return dirty;
        }
        dirty.detached.extend(
            before
                .map(|before| before.host_if.clone())
                .filter(|name| *name != attachment.host_if),
        );
        dirty.attachments.insert(id);
        dirty
    }

    /// Takes in that a pod's interface goes away.
    pub fn detach(&mut self, id: &AttachmentId) -> Dirty {
        let mut dirty = Dirty::default();
        if let Some(gone) = self.attachments.remove(id) {
            dirty.detached.insert(gone.host_if.clone());
            dirty.attachments.insert(id.clone());
        }
        dirty
    }

    fn set(&mut self, object: Object, dirty: &mut Dirty) {
        match object {
            Object::Node(node) => {
                let name = node.meta.key.name.clone();
                if replace(&mut self.nodes, name.clone(), node) {
                    dirty.bgp = true;
                    dirty.nodes.insert(name);
                }
            }
            Object::Namespace(namespace) => {
                let name = namespace.meta.key.name.clone();
                let labels = namespace.meta.labels.clone();
                let fact = NamespaceFact {
                    name: name.as_str().into(),
                    labels,
                };
                if replace(&mut self.namespaces, name.clone(), Arc::new(fact)) {
                    dirty.namespaces.insert(name);
                }
            }
            Object::Pod(pod) => {
                let fact = pod.fact(&mut self.shared);
                self.put_pod(Arc::new(fact), dirty);
            }
            Object::NetworkPolicy(policy) => {
                let key = policy.policy.key.clone();
                if replace(&mut self.policies, key.clone(), policy) {
                    dirty.policies.insert(key);
                }
            }
            Object::BgpConfiguration(configuration) => {
                dirty.bgp |= self.configuration.as_ref() != Some(&configuration);
                self.configuration = Some(configuration);
            }
            Object::BgpPeer(peer) => {
                dirty.bgp |= replace(&mut self.peers, peer.meta.key.name.clone(), peer)
            }
            Object::Secret(secret) => {
                dirty.bgp |= replace(&mut self.secrets, secret.meta.key.clone(), secret)
            }
        }
    }

    fn put_pod(&mut self, fact: Arc<PodFact>, dirty: &mut Dirty) {
        let key = fact.key.clone();
        if self.pods.put(fact) {
            dirty.pods.insert(key);
        }
    }

    fn forget(&mut self, kind: Kind, key: &Key, dirty: &mut Dirty) {
        self.remove(kind, key, dirty);
        dirty.views |= self.shown.remove(&(kind, key.clone())).is_some();
        let origin = Origin::Api(kind.name().to_owned(), key.clone());
        dirty.views |= self.problems.remove(&origin).is_some();
    }

    fn remove(&mut self, kind: Kind, key: &Key, dirty: &mut Dirty) {
        match kind {
            Kind::Node => {
                if self.nodes.remove(&key.name).is_some() {
                    dirty.bgp = true;
                    dirty.nodes.insert(key.name.clone());
                }
            }
            Kind::Namespace => {
                if self.namespaces.remove(&key.name).is_some() {
                    dirty.namespaces.insert(key.name.clone());
                }
            }
            Kind::Pod => {
                let key = PodKey::new(key.namespace.as_str(), key.name.as_str());
                if self.pods.remove(&key) {
                    dirty.pods.insert(key);
                }
            }
            Kind::NetworkPolicy => {
                let key = PolicyKey::new(key.namespace.as_str(), key.name.as_str());
                if self.policies.remove(&key).is_some() {
                    dirty.policies.insert(key);
                }
            }
            Kind::BgpConfiguration => dirty.bgp |= self.configuration.take().is_some(),
            Kind::BgpPeer => dirty.bgp |= self.peers.remove(&key.name).is_some(),
            Kind::Secret => dirty.bgp |= self.secrets.remove(key).is_some(),
        }
    }

    /// All objects of a kind, those that were refused included.
    fn keys(&self, kind: Kind) -> BTreeSet<Key> {
        let mut keys = self.good_keys(kind);
        let shown = self.shown.keys().filter(|(of, _)| *of == kind);
        keys.extend(shown.map(|(_, key)| key.clone()));
        let refused = self.problems.keys().filter_map(|origin| match origin {
            Origin::Api(name, key) if name == kind.name() => Some(key.clone()),
            _ => None,
        });
        keys.extend(refused);
        keys
    }

    fn good_keys(&self, kind: Kind) -> BTreeSet<Key> {
        let cluster = |name: &String| Key::new("", name.as_str());
        match kind {
            Kind::Node => self.nodes.keys().map(cluster).collect(),
            Kind::Namespace => self.namespaces.keys().map(cluster).collect(),
            Kind::Pod => self
                .pods
                .iter()
                .map(|pod| Key::new(&*pod.key.namespace, &*pod.key.name))
                .collect(),
            Kind::NetworkPolicy => self
                .policies
                .keys()
                .map(|key| Key::new(&*key.namespace, &*key.name))
                .collect(),
            Kind::BgpConfiguration => self
                .configuration
                .iter()
                .map(|object| object.meta.key.clone())
                .collect(),
            Kind::BgpPeer => self.peers.keys().map(cluster).collect(),
            Kind::Secret => self.secrets.keys().cloned().collect(),
        }
    }
}

/// Reading.
impl Store {
    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<NamespaceFact>> {
        self.namespaces.values()
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Arc<NamespaceFact>> {
        self.namespaces.get(name)
    }

    /// All pods, by key.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodFact>> {
        self.pods.iter()
    }

    /// The pods that come after a key.
    pub fn pods_after(&self, key: Option<&PodKey>) -> impl Iterator<Item = &Arc<PodFact>> {
        self.pods.after(key)
    }

    /// A pod.
    pub fn pod(&self, key: &PodKey) -> Option<&Arc<PodFact>> {
        self.pods.get(key)
    }

    /// All policies, by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.policies.values()
    }

    /// The sysctls that are not as this node needs them.
    pub fn sysctls(&self) -> &[Setting] {
        &self.sysctls
    }

    /// Policies of a kind that this version does not enforce, by name.
    pub fn not_enforced(&self, kind: PolicyKind) -> &[NotEnforced] {
        self.not_enforced.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// A policy.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<NetworkPolicy>> {
        self.policies.get(key)
    }

    /// The speaker's configuration, if somebody wrote one.
    pub fn configuration(&self) -> Option<&Arc<BgpConfiguration>> {
        self.configuration.as_ref()
    }

    /// All peers, by name.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<BgpPeer>> {
        self.peers.values()
    }

    /// A secret.
    pub fn secret(&self, key: &Key) -> Option<&Arc<Secret>> {
        self.secrets.get(key)
    }

    /// All secrets, by key.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// What is wrong in the sources, by origin. There may be 100,000 of them: who tells of them takes the first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// How much is wrong in the sources.
    pub fn problem_count(&self) -> usize {
        self.problems.values().map(Vec::len).sum()
    }

    /// What is wrong with an object at the API server.
    pub fn problems_of(&self, kind: Kind, key: &Key) -> &[Problem] {
        let origin = Origin::Api(kind.name().to_owned(), key.clone());
        self.problems.get(&origin).map_or(&[], Vec::as_slice)
    }

    /// The statuses at the API server of objects of ours.
    pub fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.shown.values()
    }

    /// All attachments.
    pub fn attachments(&self) -> impl Iterator<Item = (&AttachmentId, &Arc<Attachment>)> {
        self.attachments.iter()
    }

    /// An attachment.
    pub fn attachment(&self, id: &AttachmentId) -> Option<&Arc<Attachment>> {
        self.attachments.get(id)
    }

    /// The links of this namespace, by index.
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// The interfaces of another plugin's pods, by name; `None` until they have been read.
    pub fn pod_interfaces(&self) -> Option<&BTreeMap<String, PodInterface>> {
        self.pod_interfaces.as_ref()
    }

    /// Who connects to the speaker without being configured.
    pub fn unknown_sources(&self) -> &UnknownSources {
        &self.unknown_sources
    }

    /// Whether packets of a family are certainly not forwarded.
    pub fn forwards_not(&self, v6: bool) -> bool {
        let [ipv4, ipv6] = self.forwarding;
        (if v6 { ipv6 } else { ipv4 }) == Some(false)
    }

    /// Forward chains of other programs that drop what their rules do not accept, as `ip filter FORWARD`.
    pub fn droppers(&self) -> &[String] {
        &self.droppers
    }

    /// The sessions, by address.
    pub fn sessions(&self) -> impl Iterator<Item = &PeerState> {
        self.sessions.values()
    }

    /// A session.
    pub fn session(&self, address: &IpAddr) -> Option<&PeerState> {
        self.sessions.get(address)
    }

    /// Routes in the kernel.
    pub fn routes(&self) -> RouteCounts {
        self.routes
    }

    /// Policy in the kernel.
    pub fn policy_state(&self) -> &PolicyState {
        &self.policy
    }

    /// What the kernel or its settings do not give.
    pub fn lacking(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.lacking
            .iter()
            .map(|(name, what)| (*name, what.as_str()))
    }

    /// Whether the source has delivered all kinds once.
    pub fn synced(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.synced.contains(kind))
    }

    /// The newest mark that the source has passed.
    pub fn reached(&self) -> u64 {
        self.reached
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Node => self.nodes.len(),
            Kind::Namespace => self.namespaces.len(),
            Kind::Pod => self.pods.len(),
            Kind::NetworkPolicy => self.policies.len(),
            Kind::BgpConfiguration => usize::from(self.configuration.is_some()),
            Kind::BgpPeer => self.peers.len(),
            Kind::Secret => self.secrets.len(),
        }
    }
}

/// Puts a value in its place; whether something changed.
fn replace<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, value: Arc<V>) -> bool {
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}
