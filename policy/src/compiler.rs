//! The compiler: owns the facts and the only mirror of what was planned.
//!
//! ```text
//! Change ─► index::Facts ─► Dirty ─► rules ─► group ─► plan::order::Transaction ─► Plan (mirror)
//!                             │                                                  └► Op … ─► take_delta
//!                             └─ addresses ─► elements of the sets that exist
//! ```
//! Changes only mark; the plan catches up when it is asked for. So many changes become one delta, and what came and
//! went in between leaves no trace.

use crate::group::{Candidate, GroupSpec, Layout, Members, SetSpec};
use crate::index::{Dirty, Facts, Standing};
use crate::model::{
    Direction, Family, IfName, LocalPod, NamedPort, NamespaceFact, PodFact, PodKey, Policy,
    PolicyKey,
};
use crate::plan::build::{self, DispatchElements};
use crate::plan::order::Transaction;
use crate::plan::{Delta, Gen, IfaceMatch, Key, Name, Op, Plan};
use crate::rules;
use crate::staging::{Remainder, Staging};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// What does not change while the compiler lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the table, family inet: starts with a letter, then letters, digits and `_`.
    pub table: String,
    /// How interfaces of pods are recognised: by any of these, of which no two match the same interface; at least one.
    pub pod_interfaces: Vec<IfaceMatch>,
    /// Conntrack mark bit (or bits) of revoked flows; 0: established flows always pass.
    pub revoked_mark: u32,
    /// Conntrack mark bit (or bits) of flows whose beginning was not seen: each of their packets is judged by itself.
    /// Other bits than those of `revoked_mark`; 0: they pass like any established flow.
    pub unseen_mark: u32,
    /// The name of this node, for what is known about its addresses.
    pub node: Arc<str>,
    /// A new set of more elements than this is filled over several deltas, so many in each; at least 1.
    pub portion: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            table: "selvage".to_owned(),
            pod_interfaces: vec![IfaceMatch::default()],
            revoked_mark: 1 << 31,
            unseen_mark: 1 << 30,
            node: "".into(),
            // Some milliseconds of the kernel's time.
            portion: 2048,
        }
    }
}

/// A fact that is new, different or gone.
#[derive(Clone, Debug)]
pub enum Change {
    /// A pod as it is now; the store shares its own.
    Pod(Arc<PodFact>),
    /// A pod that the API does not have any more.
    PodGone(PodKey),
    /// A namespace as it is now.
    Namespace(NamespaceFact),
    /// A namespace that is gone.
    NamespaceGone(Arc<str>),
    /// A policy as it is now.
    Policy(Arc<Policy>),
    /// A policy that is gone.
    PolicyGone(PolicyKey),
    /// An attachment of this node as it is now.
    Local(LocalPod),
    /// An attachment that is gone.
    LocalGone(IfName),
    /// A node's addresses as they are now, of every kind (for [`Compiler::why`] and [`Compiler::allowed`] only).
    Node(Arc<str>, Vec<IpAddr>),
    /// A node that is gone.
    NodeGone(Arc<str>),
}

/// How far an attachment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalStatus {
    /// No such attachment was told.
    #[default]
    Unknown,
    /// Its pod is not known (or no longer, or under another UID): closed.
    Waiting,
    /// Its pod has finished: closed.
    Finished,
    /// One of its addresses belongs to another attachment: that address is closed.
    Shadowed,
    /// Large sets that its rules need are not full yet: closed until they are.
    Staged,
    /// Its dispatch is in the plan since this generation: enforced once that (or a later one) is in the kernel.
    Planned(Gen),
}

/// From facts to the plan. See the module.
#[derive(Debug)]
pub struct Compiler {
    pub(crate) config: Config,
    pub(crate) facts: Facts,
    dirty: Dirty,
    plan: Plan,
    /// What was done to the plan since the last delta, unless a whole plan was asked for meanwhile.
    pending: Vec<Op>,
    /// The plan is another one than that of the generation that was taken last.
    changed: bool,
    taken: Gen,
    locals: BTreeMap<IfName, Dispatched>,
    groups: BTreeMap<Name, Group>,
    sets: BTreeMap<Name, Shared>,
    staging: Staging,
    /// Attachments whose rules are not in force yet.
    waiting: BTreeMap<IfName, Waiting>,
}

/// An attachment that waits for its rules.
#[derive(Debug)]
struct Waiting {
    /// The chains of its rules as they were when it was looked at last.
    wanted: Vec<Name>,
    /// What it gets once those chains are in the kernel; `None` while large sets are being filled.
    prepared: Option<Dispatched>,
    /// How often its rules have changed while it waited for large sets.
    changes: u32,
}

/// An attachment whose rules change before their large sets are full waits anew. When they have changed so often, their
/// sets are filled at once, whatever waits behind that.
const MOST_CHANGES: u32 = 8;

/// So many chains that nobody uses any more go although there is other work.
const MANY_UNUSED: usize = 256;

/// What an attachment has in the plan.
#[derive(Debug, Default)]
struct Dispatched {
    elements: DispatchElements,
    chains: Vec<Name>,
    status: LocalStatus,
}

#[derive(Debug)]
struct Group {
    users: usize,
    sets: Vec<Name>,
    /// The delta that adds its chain. Only a later one may send packets there: a packet that is on its way through the
    /// rules while a transaction is committed reads the maps as they are now and the chains as they were.
    since: Gen,
    /// The delta since which nobody uses it.
    unused: Gen,
}

#[derive(Debug)]
struct Shared {
    users: usize,
    members: Option<Members>,
}

impl Compiler {
    /// A compiler that knows nothing yet; its first delta makes the table.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let plan = build::base(&config);
        Compiler {
            pending: plan.ops(),
            changed: true,
            plan,
            config,
            facts: Facts::default(),
            dirty: Dirty::default(),
            taken: Gen::default(),
            locals: BTreeMap::new(),
            groups: BTreeMap::new(),
            sets: BTreeMap::new(),
            staging: Staging::default(),
            waiting: BTreeMap::new(),
        }
    }

    /// Takes note of a change. A fact that is told again unchanged costs a comparison.
    pub fn apply(&mut self, change: Change) {
        let (facts, dirty) = (&mut self.facts, &mut self.dirty);
        // A set that comes later is filled from the facts as they are then.
        dirty.without_sets = self.sets.is_empty();
        match change {
            Change::Pod(fact) => facts.set_pod(fact, dirty),
            Change::PodGone(key) => facts.remove_pod(&key, dirty),
            Change::Namespace(fact) => facts.set_namespace(fact, dirty),
            Change::NamespaceGone(name) => facts.remove_namespace(&name, dirty),
            Change::Policy(policy) => facts.set_policy(policy, dirty),
            Change::PolicyGone(key) => facts.remove_policy(&key, dirty),
            Change::Local(local) => facts.set_local(local, dirty),
            Change::LocalGone(ifname) => facts.remove_local(&ifname, dirty),
            Change::Node(name, addresses) => facts.set_node(name, addresses),
            Change::NodeGone(name) => facts.remove_node(&name),
        }
    }

    /// The generation that was taken last: that of the last delta or of the last [`Self::take_plan`].
    #[must_use]
    pub fn generation(&self) -> Gen {
        self.taken
    }

    /// The plan for all changes so far.
    pub fn plan(&mut self) -> &Plan {
        self.settle_whole(true);
        &self.plan
    }

    /// What changed since the last delta, in one transaction; `None` if nothing did. A change may take several: large sets
    /// are filled in portions, a chain is added before packets are sent there, and goes when nothing else is to be done.
    pub fn take_delta(&mut self) -> Option<Delta> {
        let portion = self.config.portion.max(1);
        self.dirty.locals.extend(self.waiting.keys().copied());
        self.settle(portion, true);
        // Elements may have vanished meanwhile: a portion without any is no reason to stop.
        while self.fill(portion, true) && self.pending.is_empty() {}
        let unused = self.groups.values().filter(|group| group.users == 0);
        if self.pending.is_empty() && self.waiting.is_empty() || unused.count() > MANY_UNUSED {
            self.collect(self.taken, true);
        }
        if self.pending.is_empty() {
            return None;
        }
        self.changed = false;
        let (from, to) = (self.taken, self.next());
        self.taken = to;
        Some(Delta {
            from,
            to,
            ops: std::mem::take(&mut self.pending),
        })
    }

    /// Whether the last delta holds a part only of what was told before: large sets are being filled, or attachments wait
    /// for chains that this delta adds. More deltas follow.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.staging.is_filling() || !self.waiting.is_empty()
    }

    /// The whole plan, for a start or a repair: deltas go on from its generation.
    pub fn take_plan(&mut self) -> (Gen, &Plan) {
        self.settle_whole(false);
        self.pending = Vec::new();
        if std::mem::take(&mut self.changed) {
            self.taken = self.next();
        }
        (self.taken, &self.plan)
    }

    /// The plan built from the facts alone, forgetting how they came: what [`Self::plan`] must always equal.
    #[must_use]
    pub fn full(&self) -> Plan {
        let mut fresh = Compiler::new(self.config.clone());
        let facts = &self.facts;
        for (name, labels) in facts.namespaces() {
            if let Some(labels) = labels {
                fresh.apply(Change::Namespace(NamespaceFact {
                    name: name.clone(),
                    labels: labels.clone(),
                }));
            }
        }
        facts
            .pods()
            .cloned()
            .for_each(|fact| fresh.apply(Change::Pod(fact)));
        facts
            .policies()
            .cloned()
            .for_each(|policy| fresh.apply(Change::Policy(policy)));
        facts
            .locals()
            .cloned()
            .for_each(|local| fresh.apply(Change::Local(local)));
        facts.nodes().for_each(|(name, addresses)| {
            fresh.apply(Change::Node(name.clone(), addresses.clone()))
        });
        fresh.settle_whole(false);
        fresh.plan
    }

    /// How far an attachment is, with all changes so far.
    pub fn status(&mut self, ifname: &IfName) -> LocalStatus {
        self.settle(self.config.portion.max(1), true);
        self.locals
            .get(ifname)
            .map_or(LocalStatus::Unknown, |local| local.status)
    }

    /// The addresses of all attachments of this node, closed ones, too: a flow that touches none of them is not ours.
    #[must_use]
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        let locals = self.facts.locals();
        locals
            .flat_map(|local| local.addresses.iter().copied())
            .collect()
    }

    fn next(&self) -> Gen {
        Gen(self.taken.0 + 1)
    }

    /// Brings the plan up to date, with no set left to be filled. `recording`: a delta may be asked for later.
    fn settle_whole(&mut self, recording: bool) {
        self.dirty.locals.extend(self.waiting.keys().copied());
        self.settle(usize::MAX, recording);
        self.fill(usize::MAX, recording);
        self.collect(Gen(u64::MAX), recording);
    }

    /// Takes over what a transaction did to the plan.
    fn record(pending: &mut Vec<Op>, changed: &mut bool, tx: Transaction<'_>) {
        *changed |= tx.has_changed();
        pending.extend(tx.finish());
    }

    /// Takes out what nobody uses or waits for since this delta, or an earlier one.
    fn collect(&mut self, since: Gen, recording: bool) {
        let waiting = self.waiting.values();
        let prepared = waiting.filter_map(|waiting| waiting.prepared.as_ref());
        let wanted: BTreeSet<&Name> = prepared.flat_map(|prepared| &prepared.chains).collect();
        let groups = self.groups.iter();
        let gone: Vec<Name> = groups
            .filter(|(name, group)| {
                group.users == 0 && group.unused <= since && !wanted.contains(name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        let mut tx = Transaction::new(&mut self.plan, recording);
        for name in gone {
            let group = self.groups.remove(&name);
            tx.del_chain(name);
            for set in group.map(|group| group.sets).unwrap_or_default() {
                let Some(shared) = self.sets.get_mut(&set) else {
                    continue;
                };
                shared.users -= 1;
                if shared.users == 0 && !self.staging.contains(&set) {
                    self.sets.remove(&set);
                    tx.del_set(set);
                }
            }
        }
        Compiler::record(&mut self.pending, &mut self.changed, tx);
    }

    /// Puts at most so many elements into large sets that no rule names yet. Attachments that waited for them only get
    /// their rules. False if there is nothing to fill.
    fn fill(&mut self, most: usize, recording: bool) -> bool {
        let (elements, ready) = self.staging.next(most);
        if elements.is_empty() && ready.is_empty() {
            return false;
        }
        let mut tx = Transaction::new(&mut self.plan, recording);
        for (name, some) in elements {
            let members = self.sets.get(&name).and_then(|set| set.members.as_ref());
            put_all(&self.facts, &mut tx, &name, members, some);
        }
        Compiler::record(&mut self.pending, &mut self.changed, tx);
        self.dirty.locals.extend(ready);
        self.settle(most, recording);
        true
    }

    /// Brings the plan up to date, but for attachments that need new sets of more than `largest` elements: those sets
    /// are begun, and the attachments wait.
    fn settle(&mut self, largest: usize, recording: bool) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.addresses.is_empty() && dirty.locals.is_empty() {
            return;
        }
        let next = self.next();
        let mut tx = Transaction::new(&mut self.plan, recording);
        let mut work = Work {
            facts: &self.facts,
            groups: &mut self.groups,
            sets: &mut self.sets,
            staging: &mut self.staging,
            largest,
            taken: self.taken,
            rules: BTreeMap::new(),
            found: BTreeMap::new(),
            tx: &mut tx,
        };
        for addr in &dirty.addresses {
            work.update_members(*addr);
        }
        let (mut gone, mut come) = (BTreeSet::new(), BTreeMap::new());
        let mut released = Vec::new();
        for ifname in dirty.locals {
            work.staging.unwant(&ifname);
            let before = self.waiting.remove(&ifname);
            let hurried = before.as_ref().is_some_and(|w| w.changes >= MOST_CHANGES);
            let new = match work.dispatch(ifname, next, hurried) {
                Outcome::Final(new) => new,
                Outcome::Staged {
                    mut waiting,
                    addresses,
                } => {
                    let (prepared, changes) = match before {
                        None => (None, 0),
                        Some(b) if b.wanted == waiting.wanted => (b.prepared, b.changes),
                        Some(b) => (b.prepared, b.changes + 1),
                    };
                    waiting.changes = changes;
                    let prepared =
                        prepared.filter(|p| p.is_of(&addresses) && work.is_in_kernel(&p.chains));
                    let old = self.locals.entry(ifname).or_default();
                    if old.elements.is_empty() {
                        old.status = LocalStatus::Staged;
                    }
                    let keeps =
                        prepared.is_none() && (old.elements.is_empty() || old.is_of(&addresses));
                    if let Some(prepared) = &prepared {
                        work.acquire(&prepared.chains);
                        waiting.changes = 0;
                    }
                    self.waiting.insert(ifname, waiting);
                    if keeps {
                        continue;
                    }
                    // Its rules have changed again while it waited for a transaction: it gets those that it waited for,
                    // or it would keep its former ones for as long as that goes on.
                    // If its addresses have changed it is closed until its rules are there.
                    Some(match prepared {
                        Some(prepared) => Dispatched {
                            status: prepared.planned(next),
                            ..prepared
                        },
                        None => Dispatched {
                            status: LocalStatus::Staged,
                            ..Dispatched::default()
                        },
                    })
                }
            };
            come.extend(
                new.iter()
                    .flat_map(|d| d.elements.iter())
                    .cloned()
                    .map(|(name, key, v)| ((name, key), v)),
            );
            let Some(old) = self.locals.remove(&ifname) else {
                self.locals.extend(new.map(|new| (ifname, new)));
                continue;
            };
            gone.extend(
                old.elements
                    .iter()
                    .map(|(name, key, _)| (name.clone(), key.clone())),
            );
            released.extend(old.chains.iter().cloned());
            if let Some(mut new) = new {
                new.keep_generation(&old);
                self.locals.insert(ifname, new);
            }
        }
        for place in gone.iter().filter(|place| !come.contains_key(*place)) {
            work.tx.remove(&place.0, &place.1);
        }
        for ((name, key), verdict) in come {
            work.tx.put(&name, key, verdict);
        }
        work.release(released, next);
        work.drop_unwanted();
        Compiler::record(&mut self.pending, &mut self.changed, tx);
        if !self.changed {
            // There will be no delta to wait for: what nobody has to be told is in the plan already.
            for local in self.locals.values_mut() {
                if local.status == LocalStatus::Planned(next) {
                    local.status = LocalStatus::Planned(self.taken);
                }
            }
        }
    }
}

/// What looking at an attachment came to.
enum Outcome {
    /// What it should have in the plan; `None` if it is gone.
    Final(Option<Dispatched>),
    /// It waits for large sets or for its chains, with what it has if these are still its addresses.
    Staged {
        waiting: Waiting,
        addresses: BTreeSet<IpAddr>,
    },
}

impl Dispatched {
    /// Whether the interface brings packets from exactly these addresses.
    fn is_of(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let sources = self.elements.iter().filter_map(|(_, key, _)| match key {
            Key::IfnameAddr(_, addr) => Some(*addr),
            _ => None,
        });
        sources.collect::<BTreeSet<_>>() == *addresses
    }

    /// Its status if it comes into the plan with this generation.
    fn planned(&self, next: Gen) -> LocalStatus {
        match self.status {
            LocalStatus::Planned(_) => LocalStatus::Planned(next),
            other => other,
        }
    }

    /// A dispatch that did not change is in the plan since it was made.
    fn keep_generation(&mut self, old: &Dispatched) {
        if let (LocalStatus::Planned(_), LocalStatus::Planned(since)) = (self.status, old.status)
            && self.elements == old.elements
        {
            self.status = LocalStatus::Planned(since);
        }
    }
}

/// One settling: facts are final, groups and sets follow.
struct Work<'a, 'p> {
    facts: &'a Facts,
    groups: &'a mut BTreeMap<Name, Group>,
    sets: &'a mut BTreeMap<Name, Shared>,
    staging: &'a mut Staging,
    /// Elements of the largest new set that is filled at once.
    largest: usize,
    /// The delta that was taken last.
    taken: Gen,
    /// Rules that were put together in this settling already: many pods are selected by the same policies.
    rules: BTreeMap<RulesKey<'a>, Option<Rc<Rules>>>,
    /// What new sets get that were looked at in this settling, until they are made.
    found: BTreeMap<Name, Remainder>,
    tx: &'a mut Transaction<'p>,
}

/// What the rules of a pod in a direction follow from: the policies that select it and, for ingress, its port names.
type RulesKey<'a> = (Direction, Vec<&'a PolicyKey>, &'a [NamedPort]);

/// The rules of pods, with the names of their chains, IPv4 and IPv6.
struct Rules {
    group: GroupSpec,
    chains: [Name; 2],
    layouts: [OnceCell<Layout>; 2],
}

impl Rules {
    fn new(group: GroupSpec) -> Self {
        Rules {
            chains: group.chain_names(),
            layouts: Default::default(),
            group,
        }
    }

    fn chain(&self, family: Family) -> &Name {
        let [v4, v6] = &self.chains;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    fn layout(&self, family: Family) -> &Layout {
        let [v4, v6] = &self.layouts;
        let layout = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        layout.get_or_init(|| self.group.layout(family))
    }
}

impl<'a> Work<'a, '_> {
    /// What an attachment should have in the plan; its groups are there afterwards.
    /// `hurried`: it does not wait for large sets any longer.
    fn dispatch(&mut self, ifname: IfName, next: Gen, hurried: bool) -> Outcome {
        let Some(local) = self.facts.local(&ifname) else {
            return Outcome::Final(None);
        };
        let closed = |status| {
            Outcome::Final(Some(Dispatched {
                status,
                ..Dispatched::default()
            }))
        };
        let pod = match self.facts.standing(local) {
            Standing::Pod(id) => self.facts.pod(id),
            Standing::Anonymous => None,
            Standing::Waiting => return closed(LocalStatus::Waiting),
            Standing::Finished => return closed(LocalStatus::Finished),
        };
        let [ingress, egress] = Direction::ALL.map(|d| pod.and_then(|pod| self.rules(pod, d)));
        let mut dispatched = Dispatched {
            status: LocalStatus::Planned(next),
            ..Dispatched::default()
        };
        let owned = |addr: &IpAddr| {
            self.facts
                .owner(*addr)
                .is_some_and(|o| o.local == Some(ifname))
        };
        let (own, foreign): (BTreeSet<_>, BTreeSet<_>) =
            local.addresses.iter().copied().partition(owned);
        if !foreign.is_empty() {
            dispatched.status = LocalStatus::Shadowed;
        }
        let families = Family::ALL
            .into_iter()
            .filter(|family| own.iter().any(|addr| Family::of(*addr) == *family));
        let needed: Vec<(&Rules, Family)> = families
            .flat_map(|family| {
                let both = [ingress.as_deref(), egress.as_deref()];
                both.into_iter().flatten().map(move |rules| (rules, family))
            })
            .collect();
        for family in Family::ALL {
            let addresses: Vec<_> = own.iter().filter(|a| Family::of(**a) == family).collect();
            if addresses.is_empty() {
                continue;
            }
            let [ingress, egress] = [&ingress, &egress]
                .map(|rules| rules.as_ref().map(|rules| rules.chain(family).clone()));
            dispatched
                .chains
                .extend(ingress.iter().chain(&egress).cloned());
            for addr in addresses {
                dispatched.elements.extend(build::dispatch_elements(
                    ifname,
                    *addr,
                    ingress.clone(),
                    egress.clone(),
                ));
            }
        }
        let waits = |prepared: Option<Dispatched>, wanted: Vec<Name>| Outcome::Staged {
            waiting: Waiting {
                wanted,
                prepared,
                changes: 0,
            },
            addresses: own,
        };
        // All at once is asked for.
        let whole = self.largest == usize::MAX;
        if !hurried && !whole && self.is_staged(ifname, &needed) {
            return waits(None, dispatched.chains);
        }
        for (rules, family) in &needed {
            self.prepare(rules, *family, next);
        }
        if !whole && !self.is_in_kernel(&dispatched.chains) {
            let wanted = dispatched.chains.clone();
            return waits(Some(dispatched), wanted);
        }
        self.acquire(&dispatched.chains);
        Outcome::Final(Some(dispatched))
    }

    /// Whether all these chains were added by a delta that was taken.
    fn is_in_kernel(&self, chains: &[Name]) -> bool {
        chains.iter().all(|name| {
            let group = self.groups.get(name);
            group.is_some_and(|group| group.since <= self.taken)
        })
    }

    /// The rules of a pod; `None` where it needs no chain.
    fn rules(&mut self, pod: &'a PodFact, direction: Direction) -> Option<Rc<Rules>> {
        let policies = self.facts.policies_of(&pod.key.namespace).map(|p| &**p);
        let selecting: Vec<&'a Policy> = policies
            .filter(|policy| policy.rules(direction).is_some() && policy.pods.matches(&pod.labels))
            .collect();
        let ports = match direction {
            Direction::Ingress => &*pod.ports,
            Direction::Egress => &[],
        };
        let key = (
            direction,
            selecting.iter().map(|policy| &policy.key).collect(),
            ports,
        );
        let make = || {
            let group = rules::allowed(selecting, direction, ports)
                .filter(|group| !group.allows_everything())?;
            Some(Rc::new(Rules::new(group)))
        };
        self.rules.entry(key).or_insert_with(make).clone()
    }

    /// Adds the chain and its sets, if they are not there.
    fn prepare(&mut self, rules: &Rules, family: Family, next: Gen) {
        let name = rules.chain(family).clone();
        if self.groups.contains_key(&name) {
            return;
        }
        let layout = rules.layout(family);
        for (name, spec) in &layout.sets {
            self.acquire_set(name, spec);
        }
        let group = Group {
            users: 0,
            sets: layout.sets.keys().cloned().collect(),
            since: next,
            unused: next,
        };
        self.groups.insert(name.clone(), group);
        self.tx.add_chain(name, layout.chain.clone());
    }

    /// One more user of chains that were prepared.
    fn acquire(&mut self, chains: &[Name]) {
        for name in chains {
            if let Some(group) = self.groups.get_mut(name) {
                group.users += 1;
            }
        }
    }

    fn acquire_set(&mut self, name: &Name, spec: &SetSpec) {
        let elements = match self.sets.get_mut(name) {
            Some(shared) => {
                shared.users += 1;
                self.staging.rest(name)
            }
            None => {
                self.tx.add_set(name.clone(), spec.def());
                let members = spec.as_members().cloned();
                self.sets.insert(name.clone(), Shared { users: 1, members });
                let found = self.found.remove(name);
                Some(found.unwrap_or_else(|| self.elements(spec)))
            }
        };
        if let Some(elements) = elements {
            put_all(self.facts, self.tx, name, spec.as_members(), elements);
        }
    }

    /// What a new set gets.
    fn elements(&self, spec: &SetSpec) -> Remainder {
        match spec {
            SetSpec::Members(members) => Remainder::Of(self.facts.candidates(members)),
            fixed => Remainder::Fixed(fixed.fixed()),
        }
    }

    /// Whether the attachment has to wait for large sets of these rules. Those that are not there yet are begun.
    fn is_staged(&mut self, ifname: IfName, rules: &[(&Rules, Family)]) -> bool {
        let mut staged = Vec::new();
        for (rules, family) in rules {
            if self.groups.contains_key(rules.chain(*family)) {
                continue;
            }
            for (name, spec) in &rules.layout(*family).sets {
                if !self.sets.contains_key(name) && !self.found.contains_key(name) {
                    self.begin(name, spec);
                }
                if self.staging.contains(name) {
                    staged.push(name);
                }
            }
        }
        let waits = staged.iter().any(|name| !self.staging.is_full(name));
        if waits {
            staged
                .into_iter()
                .for_each(|name| self.staging.want(name, ifname));
        }
        waits
    }

    /// Begins a set if it is large.
    fn begin(&mut self, name: &Name, spec: &SetSpec) {
        let elements = self.elements(spec);
        if elements.len() <= self.largest {
            self.found.insert(name.clone(), elements);
            return;
        }
        self.tx.add_set(name.clone(), spec.def());
        let members = spec.as_members().cloned();
        self.sets.insert(name.clone(), Shared { users: 0, members });
        self.staging.add(name.clone(), elements);
    }

    /// Large sets that nobody waits for any more are in use by now, or go.
    fn drop_unwanted(&mut self) {
        for name in self.staging.unwanted() {
            if self.sets.get(&name).is_some_and(|set| set.users == 0) {
                self.sets.remove(&name);
                self.tx.del_set(name);
            }
        }
    }

    /// Brings the elements of one address up to date in every set.
    fn update_members(&mut self, addr: IpAddr) {
        let (family, pod) = (Family::of(addr), candidate(self.facts, addr));
        for (name, shared) in self.sets.iter() {
            let members = shared.members.as_ref();
            let Some(members) = members.filter(|members| members.family() == family) else {
                continue;
            };
            let new = pod.map(|pod| members.elements(addr, pod));
            let new: Vec<Key> = new.into_iter().flatten().collect();
            let set = self.tx.plan().sets.get(name);
            let old = set.map(|set| set.elements.of_address(addr));
            for key in old.iter().flatten().filter(|key| !new.contains(*key)) {
                self.tx.remove(name, key);
            }
            for key in new {
                self.tx.put(name, key, None);
            }
        }
    }

    /// Chains that have one user less; those without any go later.
    fn release(&mut self, chains: Vec<Name>, next: Gen) {
        for name in chains {
            if let Some(group) = self.groups.get_mut(&name) {
                group.users -= 1;
                group.unused = next;
            }
        }
    }
}

/// The pod that has an address, as selectors see it.
fn candidate(facts: &Facts, addr: IpAddr) -> Option<Candidate<'_>> {
    let owner = facts.owner(addr).and_then(|owner| owner.pod);
    owner.and_then(|id| facts.candidate(id))
}

/// Puts elements into a set: fixed ones, or what the owners of addresses contribute now.
fn put_all(
    facts: &Facts,
    tx: &mut Transaction<'_>,
    name: &Name,
    members: Option<&Members>,
    elements: Remainder,
) {
    match (elements, members) {
        (Remainder::Fixed(keys), _) => tx.put_all(name, keys.into_iter()),
        (Remainder::Of(addresses), Some(members)) => {
            let owned = addresses.into_iter();
            let owned = owned.filter_map(|addr| Some((addr, candidate(facts, addr)?)));
            tx.put_all(
                name,
                owned.flat_map(|(addr, pod)| members.elements(addr, pod)),
            );
        }
        (Remainder::Of(_), None) => {}
    }
}
