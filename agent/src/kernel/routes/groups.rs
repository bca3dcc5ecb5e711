//! Nexthop objects and groups: which there should be, which there are, and their ids.
//!
//! One object per [`Hop`], counted by the groups that use it; one group per set of BGP next hops.
//! An id is never given to another object while the kernel may still have the old one. At start
//! the kernel's objects are adopted by content, so that routes keep pointing where they point.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::fib::{FIRST_GROUP_ID, FIRST_HOP_ID, LAST_ID, Nexthop, Nexthops, Write};
use crate::kernel::nexthops::Hop;

/// Objects and groups, wanted and present.
#[derive(Debug)]
pub struct Groups {
    want: BTreeMap<u32, Nexthop>,
    have: BTreeMap<u32, Nexthop>,
    hops: HashMap<Hop, HopUse>,
    /// Ids for which `want` and `have` may differ.
    dirty: BTreeSet<u32>,
    /// Hops that the kernel refused; they are left out of groups until the next attempt.
    broken: BTreeSet<u32>,
    /// What the kernel had when it was read and nobody here wants yet.
    orphans: HashMap<Nexthop, u32>,
    /// Ids that others have.
    taken: BTreeSet<u32>,
    next_hop_id: u32,
    next_group_id: u32,
}

#[derive(Debug)]
struct HopUse {
    id: u32,
    uses: u32,
}

impl Default for Groups {
    fn default() -> Self {
        Groups {
            want: BTreeMap::new(),
            have: BTreeMap::new(),
            hops: HashMap::new(),
            dirty: BTreeSet::new(),
            broken: BTreeSet::new(),
            orphans: HashMap::new(),
            taken: BTreeSet::new(),
            next_hop_id: FIRST_HOP_ID,
            next_group_id: FIRST_GROUP_ID,
        }
    }
}

impl Groups {
    /// The id of a hop's object, used once more: adopted, allocated or known. `None` when there
    /// are no ids left.
    pub fn take_hop(&mut self, hop: Hop) -> Option<u32> {
        if let Some(known) = self.hops.get_mut(&hop) {
            known.uses += 1;
            return Some(known.id);
        }
        let content = Nexthop::Hop(hop);
        let id = match self.orphan(&content) {
            Some(id) => id,
            None => self.allocate_hop()?,
        };
        self.hops.insert(hop, HopUse { id, uses: 1 });
        self.want.insert(id, content);
        self.dirty.insert(id);
        Some(id)
    }

    /// One use less of a hop's object; after the last one it is no longer wanted.
    pub fn release_hop(&mut self, hop: Hop) {
        let Some(known) = self.hops.get_mut(&hop) else {
            return;
        };
        known.uses -= 1;
        if known.uses == 0 {
            let id = known.id;
            self.hops.remove(&hop);
            self.broken.remove(&id);
            self.unwant(id);
        }
    }

    /// Lets the object of `from` lead over `to`, with all its uses: one message whatever points
    /// at it. Only where `to` has no object yet and the families are equal; returns whether it did.
    pub fn repoint_hop(&mut self, from: Hop, to: Hop) -> bool {
        let same_family = from.gateway.map(|g| g.is_ipv4()) == to.gateway.map(|g| g.is_ipv4());
        if !same_family || self.hops.contains_key(&to) {
            return false;
        }
        let Some(moved) = self.hops.remove(&from) else {
            return false;
        };
        self.broken.remove(&moved.id);
        self.want.insert(moved.id, Nexthop::Hop(to));
        self.dirty.insert(moved.id);
        self.hops.insert(to, moved);
        true
    }

    /// The id of a hop that has an object and was not refused by the kernel.
    pub fn usable_id(&self, hop: Hop) -> Option<u32> {
        let id = self.hops.get(&hop)?.id;
        (!self.broken.contains(&id)).then_some(id)
    }

    /// An id for a group with these members: that of an adopted one if there is one.
    pub fn take_group(&mut self, members: &[u32]) -> Option<u32> {
        let content = Nexthop::Group(members.to_vec());
        match self.orphan(&content) {
            Some(id) => Some(id),
            None => self.allocate_group(),
        }
    }

    /// The group shall have these members; none: it shall not be there. Returns whether
    /// that is new.
    pub fn set_group(&mut self, id: u32, members: Vec<u32>) -> bool {
        if members.is_empty() {
            return self.unwant(id);
        }
        let content = Nexthop::Group(members);
        if self.want.get(&id) == Some(&content) {
            return false;
        }
        self.want.insert(id, content);
        self.dirty.insert(id);
        true
    }

    /// Whether routes shall point at the group.
    pub fn wants(&self, id: u32) -> bool {
        self.want.contains_key(&id)
    }

    /// Whether an object with this id is wanted, or was in the kernel when it was read last.
    pub fn knows(&self, id: u32) -> bool {
        self.want.contains_key(&id) || self.have.contains_key(&id)
    }

    /// Number of wanted groups and single objects.
    pub fn counts(&self) -> (usize, usize) {
        let groups = self.want.range(FIRST_GROUP_ID..).count();
        (groups, self.want.len() - groups)
    }

    /// The objects to create or replace, single ones first.
    pub fn puts(&self) -> impl Iterator<Item = Write> {
        self.dirty.iter().filter_map(|id| {
            let want = self.want.get(id)?;
            (self.have.get(id) != Some(want)).then(|| Write::PutNexthop(*id, want.clone()))
        })
    }

    /// The objects to delete, groups first.
    pub fn drops(&self) -> impl Iterator<Item = u32> {
        self.dirty
            .iter()
            .rev()
            .copied()
            .filter(|id| !self.want.contains_key(id) && self.have.contains_key(id))
    }

    /// The kernel has it.
    pub fn acknowledge_put(&mut self, id: u32, nexthop: &Nexthop) {
        self.have.insert(id, nexthop.clone());
        if self.want.get(&id) == Some(nexthop) {
            self.dirty.remove(&id);
        }
    }

    /// The kernel has it no longer.
    pub fn acknowledge_drop(&mut self, id: u32) {
        self.have.remove(&id);
        if !self.want.contains_key(&id) {
            self.dirty.remove(&id);
        }
    }

    /// The kernel refused this hop: groups do without it until [`mend`](Self::mend).
    /// Returns whether that is new.
    pub fn mark_broken(&mut self, id: u32) -> bool {
        id < FIRST_GROUP_ID && self.broken.insert(id)
    }

    /// Whether the kernel refused any.
    pub fn any_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Forgets which hops were refused; returns whether there were any.
    pub fn mend(&mut self) -> bool {
        let any = !self.broken.is_empty();
        self.dirty.append(&mut self.broken);
        any
    }

    /// Forgets which ids were touched and are as they should be.
    pub fn prune(&mut self) {
        let (want, have) = (&self.want, &self.have);
        self.dirty.retain(|id| want.get(id) != have.get(id));
    }

    /// Whether any hop leads over the link, as it should be or as the kernel has it.
    pub fn uses_link(&self, link: u32) -> bool {
        let over = |nexthop: &Nexthop| matches!(nexthop, Nexthop::Hop(hop) if hop.link == link);
        let present = self
            .have
            .range(..FIRST_GROUP_ID)
            .any(|(_, nexthop)| over(nexthop));
        present || self.hops.keys().any(|hop| hop.link == link)
    }

    /// Takes over what the kernel has. Returns the groups that were there and are gone.
    pub fn observe(&mut self, found: Nexthops) -> Vec<u32> {
        self.taken = found.taken.into_iter().collect();
        let found: BTreeMap<u32, Nexthop> = found.ours.into_iter().collect();
        let gone = self
            .have
            .keys()
            .filter(|id| **id >= FIRST_GROUP_ID && !found.contains_key(id))
            .copied()
            .collect();
        self.have = found;
        // The lowest id of several with the same content, whatever order they came in.
        let unwanted = self
            .have
            .iter()
            .rev()
            .filter(|(id, _)| !self.want.contains_key(id));
        self.orphans = unwanted
            .map(|(id, nexthop)| (nexthop.clone(), *id))
            .collect();
        self.dirty = self
            .want
            .keys()
            .chain(self.have.keys())
            .copied()
            .filter(|id| self.want.get(id) != self.have.get(id))
            .collect();
        gone
    }

    fn unwant(&mut self, id: u32) -> bool {
        self.want.remove(&id).is_some() && {
            self.dirty.insert(id);
            true
        }
    }

    /// An object that the kernel has and nobody here asked for yet, with this content.
    fn orphan(&mut self, content: &Nexthop) -> Option<u32> {
        let id = self.orphans.remove(content)?;
        let free = self.have.get(&id) == Some(content) && !self.want.contains_key(&id);
        free.then_some(id)
    }

    fn allocate_hop(&mut self) -> Option<u32> {
        let id = self.free(self.next_hop_id, FIRST_HOP_ID, FIRST_GROUP_ID - 1)?;
        self.next_hop_id = if id + 1 < FIRST_GROUP_ID {
            id + 1
        } else {
            FIRST_HOP_ID
        };
        Some(id)
    }

    fn allocate_group(&mut self) -> Option<u32> {
        let id = self.free(self.next_group_id, FIRST_GROUP_ID, LAST_ID)?;
        self.next_group_id = if id < LAST_ID { id + 1 } else { FIRST_GROUP_ID };
        Some(id)
    }

    /// The next id from `from` on, round the range, that is neither wanted nor present. Ids given
    /// out lately come last, so that a late notification cannot be taken for a new object's.
    fn free(&self, from: u32, first: u32, last: u32) -> Option<u32> {
        (from..=last).chain(first..from).find(|id| {
            let used = self.want.contains_key(id) || self.have.contains_key(id);
            !used && !self.taken.contains(id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(link: u32) -> Hop {
        Hop {
            link,
            gateway: Some("10.0.0.1".parse().unwrap()),
        }
    }

    fn settle(groups: &mut Groups) {
        for write in groups.puts().collect::<Vec<_>>() {
            let Write::PutNexthop(id, nexthop) = write else {
                unreachable!()
            };
            groups.acknowledge_put(id, &nexthop);
        }
        for id in groups.drops().collect::<Vec<_>>() {
            groups.acknowledge_drop(id);
        }
    }

    #[test]
    fn hops_are_shared_and_counted() {
        let mut g = Groups::default();
        let id = g.take_hop(hop(1)).unwrap();
        assert_eq!(g.take_hop(hop(1)), Some(id));
        let group = g.take_group(&[id]).unwrap();
        g.set_group(group, vec![id]);
        assert_eq!(g.puts().count(), 2);
        settle(&mut g);
        assert_eq!(g.puts().count(), 0);
        g.release_hop(hop(1));
        assert_eq!(g.drops().count(), 0);
        g.set_group(group, vec![]);
        g.release_hop(hop(1));
        assert_eq!(g.drops().collect::<Vec<_>>(), [group, id]);
        settle(&mut g);
        assert_eq!((g.counts(), g.drops().count()), ((0, 0), 0));
        assert_ne!(
            g.take_hop(hop(2)),
            Some(id),
            "an id is not used again at once"
        );
    }

    #[test]
    fn what_the_kernel_has_is_adopted_by_content() {
        let mut g = Groups::default();
        let group_id = FIRST_GROUP_ID + 9;
        let (one, two) = (FIRST_HOP_ID + 5, FIRST_HOP_ID + 6);
        let ours = vec![
            (one, Nexthop::Hop(hop(1))),
            (two, Nexthop::Hop(hop(2))),
            (group_id, Nexthop::Group(vec![one, two])),
        ];
        let taken = vec![FIRST_HOP_ID];
        g.observe(Nexthops { ours, taken });
        assert_eq!(g.take_hop(hop(1)), Some(one));
        assert_eq!(g.take_hop(hop(2)), Some(two));
        assert_eq!(g.take_group(&[one, two]), Some(group_id));
        g.set_group(group_id, vec![one, two]);
        assert_eq!(g.puts().count(), 0, "nothing to write");
        assert_ne!(g.take_group(&[one, two]), Some(group_id), "it is in use");
        assert_eq!(
            g.take_hop(hop(3)),
            Some(FIRST_HOP_ID + 1),
            "the first is somebody else's"
        );
    }

    #[test]
    fn a_hop_is_repointed_in_place() {
        let mut g = Groups::default();
        let id = g.take_hop(hop(1)).unwrap();
        settle(&mut g);
        assert!(g.repoint_hop(hop(1), hop(2)));
        assert_eq!(
            g.puts().collect::<Vec<_>>(),
            [Write::PutNexthop(id, Nexthop::Hop(hop(2)))]
        );
        assert_ne!(g.take_hop(hop(3)), Some(id));
        assert!(!g.repoint_hop(hop(3), hop(2)), "it has an object already");
    }

    #[test]
    fn lost_objects_are_found() {
        let mut g = Groups::default();
        let id = g.take_hop(hop(1)).unwrap();
        let group = g.take_group(&[id]).unwrap();
        g.set_group(group, vec![id]);
        settle(&mut g);
        assert_eq!(g.observe(Nexthops::default()), [group]);
        assert_eq!(g.puts().count(), 2);
    }

    #[test]
    fn ids_wrap_and_end() {
        let mut g = Groups {
            next_group_id: LAST_ID,
            ..Groups::default()
        };
        let last = g.take_group(&[1]).unwrap();
        g.set_group(last, vec![1]);
        assert_eq!(last, LAST_ID);
        assert_eq!(g.take_group(&[1]), Some(FIRST_GROUP_ID));
    }
}
