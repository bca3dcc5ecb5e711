//! A transaction in the making: changes in any order, operations in the one that holds.

use super::{Chain, Key, Name, Op, Plan, Set, SetDef, Verdict};

/// Changes a plan and records what it did, by phase.
pub(crate) struct Transaction<'a> {
    plan: &'a mut Plan,
    /// Nobody will read the operations if not: a whole plan is asked for, and it may have as many as the cluster has pods.
    recording: bool,
    changed: bool,
    add_sets: Vec<Op>,
    add_chains: Vec<Op>,
    del_elements: Vec<Op>,
    add_elements: Vec<Op>,
    del_chains: Vec<Op>,
    del_sets: Vec<Op>,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(plan: &'a mut Plan, recording: bool) -> Self {
        Transaction {
            plan,
            recording,
            changed: false,
            add_sets: Vec::new(),
            add_chains: Vec::new(),
            del_elements: Vec::new(),
            add_elements: Vec::new(),
            del_chains: Vec::new(),
            del_sets: Vec::new(),
        }
    }

    pub(crate) fn plan(&self) -> &Plan {
        self.plan
    }

    /// Whether the plan is another one now.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    pub(crate) fn add_set(&mut self, name: Name, def: SetDef) {
        self.plan.sets.insert(name.clone(), Set::new(def));
        self.changed = true;
        if self.recording {
            self.add_sets.push(Op::AddSet(name, def));
        }
    }

    pub(crate) fn add_chain(&mut self, name: Name, chain: Chain) {
        self.plan.chains.insert(name.clone(), chain.clone());
        self.changed = true;
        if self.recording {
            self.add_chains.push(Op::AddChain(name, chain));
        }
    }

    /// The element is there afterwards, with this verdict.
    pub(crate) fn put(&mut self, name: &Name, key: Key, verdict: Option<Verdict>) {
        let Some(set) = self.plan.sets.get_mut(name) else {
            return;
        };
        let before = set.elements.insert(key.clone(), verdict.clone());
        if before.as_ref() == Some(&verdict) {
            return;
        }
        self.changed = true;
        if !self.recording {
            return;
        }
        if before.is_some() {
            self.del_elements
                .push(Op::DelElem(name.clone(), key.clone()));
        }
        self.add_elements
            .push(Op::AddElem(name.clone(), key, verdict));
    }

    /// Elements without verdicts are there afterwards.
    pub(crate) fn put_all(&mut self, name: &Name, keys: impl Iterator<Item = Key>) {
        let Some(set) = self.plan.sets.get_mut(name) else {
            return;
        };
        if !self.recording {
            self.changed |= set.elements.extend(keys);
            return;
        }
        for key in keys {
            if set.elements.insert(key.clone(), None).is_none() {
                self.changed = true;
                let op = Op::AddElem(name.clone(), key, None);
                self.add_elements.push(op);
            }
        }
    }

    /// The element is not there afterwards.
    pub(crate) fn remove(&mut self, name: &Name, key: &Key) {
        let Some(set) = self.plan.sets.get_mut(name) else {
            return;
        };
        if !set.elements.remove(key) {
            return;
        }
        self.changed = true;
        if self.recording {
            self.del_elements
                .push(Op::DelElem(name.clone(), key.clone()));
        }
    }

    pub(crate) fn del_chain(&mut self, name: Name) {
        self.plan.chains.remove(&name);
        self.changed = true;
        if self.recording {
            self.del_chains.push(Op::DelChain(name));
        }
    }

    pub(crate) fn del_set(&mut self, name: Name) {
        self.plan.sets.remove(&name);
        self.changed = true;
        if self.recording {
            self.del_sets.push(Op::DelSet(name));
        }
    }

    pub(crate) fn finish(self) -> impl Iterator<Item = Op> {
        let additions = self.add_sets.into_iter().chain(self.add_chains);
        let elements = self.del_elements.into_iter().chain(self.add_elements);
        additions
            .chain(elements)
            .chain(self.del_chains)
            .chain(self.del_sets)
    }
}
