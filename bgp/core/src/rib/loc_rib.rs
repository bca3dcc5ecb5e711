//! What the kernel is told: where to send packets for a prefix. Equal answers are one value, counted by their users.

use std::{hash::BuildHasher, sync::Arc};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{RouteOrigin, RouteSet, arena::Arena};
use crate::wire::attr::NextHop;

/// A route set in [`RouteSets`].
pub(crate) type RouteSetId = u32;

struct Slot {
    set: RouteSet,
    refs: u32,
}

pub(crate) struct RouteSets {
    slots: Arena<Slot>,
    table: HashTable<RouteSetId>,
    hasher: RandomState,
    /// The one asked for last: mostly the one asked for next.
    last: Option<RouteSetId>,
}

impl Default for RouteSets {
    fn default() -> Self {
        RouteSets {
            slots: Arena::default(),
            table: HashTable::new(),
            hasher: RandomState::default(),
            last: None,
        }
    }
}

impl RouteSets {
    /// The set of `origin` and `next_hops` (sorted, without repetition), with one reference for the caller.
    pub(crate) fn intern(&mut self, origin: RouteOrigin, next_hops: &[NextHop]) -> RouteSetId {
        if let Some(last) = self.last
            && is(&self.slots[last].set, origin, next_hops)
        {
            self.slots[last].refs += 1;
            return last;
        }
        let hash = self.hasher.hash_one((origin, next_hops));
        let slots = &self.slots;
        let found = self
            .table
            .find(hash, |&id| is(&slots[id].set, origin, next_hops));
        let id = match found {
            Some(&id) => {
                self.slots[id].refs += 1;
                id
            }
            None => {
                let next_hops = next_hops.into();
                let set = RouteSet { origin, next_hops };
                let id = self.slots.insert(Slot { set, refs: 1 });
                let (slots, hasher) = (&self.slots, &self.hasher);
                self.table.insert_unique(hash, id, |&id| {
                    let set = &slots[id].set;
                    hasher.hash_one((set.origin, &set.next_hops[..]))
                });
                id
            }
        };
        self.last = Some(id);
        id
    }

    /// One reference less; the last one frees.
    pub(crate) fn release(&mut self, id: RouteSetId) {
        let slot = &mut self.slots[id];
        slot.refs -= 1;
        if slot.refs > 0 {
            return;
        }
        let hash = self
            .hasher
            .hash_one((slot.set.origin, &slot.set.next_hops[..]));
        slot.set.next_hops = Arc::default();
        if let Ok(entry) = self.table.find_entry(hash, |&i| i == id) {
            entry.remove();
        }
        self.slots.free(id);
        if self.last == Some(id) {
            self.last = None;
        }
    }

    /// The set itself.
    pub(crate) fn get(&self, id: RouteSetId) -> &RouteSet {
        &self.slots[id].set
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.in_use()
    }
}

fn is(set: &RouteSet, origin: RouteOrigin, next_hops: &[NextHop]) -> bool {
    set.origin == origin && *set.next_hops == *next_hops
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn equal_sets_are_one_until_the_last_user_goes() {
        let a: NextHop = IpAddr::from([10, 0, 0, 1]).into();
        let b: NextHop = IpAddr::from([10, 0, 0, 2]).into();
        let mut s = RouteSets::default();
        let one = s.intern(RouteOrigin::Ebgp, &[a, b]);
        let other = s.intern(RouteOrigin::Ebgp, &[a]);
        let third = s.intern(RouteOrigin::Ibgp, &[a]);
        assert_eq!(s.intern(RouteOrigin::Ebgp, &[a, b]), one);
        assert!(one != other && other != third);
        assert_eq!((*s.get(one).next_hops).len(), 2);
        s.release(one);
        s.release(one);
        assert_eq!(s.len(), 2);
        s.release(other);
        s.release(third);
        assert_eq!(s.len(), 0);
    }
}
