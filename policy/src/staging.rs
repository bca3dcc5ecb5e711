//! Large sets on their way into the plan.
//!
//! A new set of many elements is filled over several deltas, a portion in each, before any rule names the set: so no
//! transaction is long, and other pods' changes ride with the portions instead of waiting for the whole. The pods that
//! need the set keep the rules that they have, and a new pod stays closed, until the set is full, or until their rules
//! have changed so often meanwhile that they are not held back any longer.

use crate::model::IfName;
use crate::plan::{Key, Name};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The large sets that no rule names yet.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    sets: BTreeMap<Name, Staged>,
}

/// What a set still lacks, and who waits for it.
#[derive(Debug)]
struct Staged {
    left: Remainder,
    wanted: BTreeSet<IfName>,
}

/// What is still to be put into a set.
#[derive(Debug)]
pub(crate) enum Remainder {
    /// Elements that depend on no facts.
    Fixed(Vec<Key>),
    /// Whatever the owners of these addresses contribute by then.
    Of(Vec<IpAddr>),
}

impl Remainder {
    /// How many elements or addresses.
    pub(crate) fn len(&self) -> usize {
        match self {
            Remainder::Fixed(keys) => keys.len(),
            Remainder::Of(addresses) => addresses.len(),
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out the first of them, at most so many.
    fn take(&mut self, most: usize) -> Remainder {
        match self {
            Remainder::Fixed(keys) => Remainder::Fixed(take_end(keys, most)),
            Remainder::Of(addresses) => Remainder::Of(take_end(addresses, most)),
        }
    }

    /// The first is taken first, and it is taken from the end.
    fn reverse(&mut self) {
        match self {
            Remainder::Fixed(keys) => keys.reverse(),
            Remainder::Of(addresses) => addresses.reverse(),
        }
    }
}

fn take_end<T>(from: &mut Vec<T>, most: usize) -> Vec<T> {
    let start = from.len().saturating_sub(most);
    from.drain(start..).rev().collect()
}

impl Staging {
    /// Whether a set still lacks elements.
    pub(crate) fn is_filling(&self) -> bool {
        self.sets.values().any(|set| !set.left.is_empty())
    }

    /// Whether there is such a set, full or not.
    pub(crate) fn contains(&self, name: &Name) -> bool {
        self.sets.contains_key(name)
    }

    /// Whether the set is full, or was never here.
    pub(crate) fn is_full(&self, name: &Name) -> bool {
        self.sets.get(name).is_none_or(|set| set.left.is_empty())
    }

    /// A set that is to get these elements.
    pub(crate) fn add(&mut self, name: Name, mut left: Remainder) {
        left.reverse();
        let staged = Staged {
            left,
            wanted: BTreeSet::new(),
        };
        self.sets.insert(name, staged);
    }

    /// The attachment waits for the set.
    pub(crate) fn want(&mut self, name: &Name, ifname: IfName) {
        if let Some(set) = self.sets.get_mut(name) {
            set.wanted.insert(ifname);
        }
    }

    /// The attachment waits for none of the sets any more.
    pub(crate) fn unwant(&mut self, ifname: &IfName) {
        for set in self.sets.values_mut() {
            set.wanted.remove(ifname);
        }
    }

    /// The next elements, at most so many, and the attachments all of whose sets are full then.
    pub(crate) fn next(&mut self, most: usize) -> (Vec<(Name, Remainder)>, BTreeSet<IfName>) {
        let (mut out, mut room) = (Vec::new(), most);
        for (name, set) in &mut self.sets {
            let taken = set.left.take(room);
            if !taken.is_empty() {
                room -= taken.len();
                out.push((name.clone(), taken));
            }
        }
        let wanted = |full: bool| {
            let sets = self.sets.values();
            sets.filter(move |set| set.left.is_empty() == full)
                .flat_map(|set| set.wanted.iter().copied())
        };
        let mut ready: BTreeSet<IfName> = wanted(true).collect();
        for ifname in wanted(false) {
            ready.remove(&ifname);
        }
        (out, ready)
    }

    /// All that a set still lacks, for somebody who cannot wait.
    pub(crate) fn rest(&mut self, name: &Name) -> Option<Remainder> {
        let set = self.sets.get_mut(name)?;
        Some(set.left.take(usize::MAX))
    }

    /// Takes out the sets that nobody waits for.
    pub(crate) fn unwanted(&mut self) -> Vec<Name> {
        let sets = self.sets.iter();
        let unwanted: Vec<Name> = sets
            .filter(|(_, set)| set.wanted.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &unwanted {
            self.sets.remove(name);
        }
        unwanted
    }
}
