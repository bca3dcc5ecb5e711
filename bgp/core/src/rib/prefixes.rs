//! The prefixes of one family, each with a small number of its own, the place of its paths and what is known of it.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::arena::Arena;
use crate::{ids::Family, prefix::Prefix};

/// A prefix in [`Prefixes`]. Used again after the prefix is gone.
pub(crate) type PrefixIdx = u32;

/// No path, no route set.
pub(crate) const NONE: u32 = u32::MAX;

/// What is kept for each prefix.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// Its first path, the best one if [`BEST`] is set.
    pub(crate) first: u32,
    /// The route set that the kernel was told.
    pub(crate) route: u32,
    /// [`DIRTY`], [`BEST`], [`WITHDRAWN`].
    pub(crate) flags: u8,
}

/// It waits for its decision.
pub(crate) const DIRTY: u8 = 1;
/// The first path is the best one.
pub(crate) const BEST: u8 = 2;
/// Some group remembers that it was withdrawn.
pub(crate) const WITHDRAWN: u8 = 4;
/// The place is not in use.
const FREE: u8 = 8;

impl Entry {
    /// Whether a flag is set.
    pub(crate) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears a flag.
    pub(crate) fn set(&mut self, flag: u8, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }
}

trait Key: Copy + Eq + Hash {
    fn of(prefix: &Prefix) -> Option<Self>;
    fn prefix(self) -> Prefix;
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyV4 {
    addr: u32,
    len: u8,
}

impl Hash for KeyV4 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.addr) << 8 | u64::from(self.len));
    }
}

impl Key for KeyV4 {
    fn of(prefix: &Prefix) -> Option<Self> {
        match *prefix {
            Prefix::V4 { addr, len } => Some(KeyV4 { addr, len }),
            Prefix::V6 { .. } => None,
        }
    }

    fn prefix(self) -> Prefix {
        Prefix::V4 {
            addr: self.addr,
            len: self.len,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyV6 {
    addr: [u32; 4],
    len: u8,
}

impl KeyV6 {
    fn addr(self) -> u128 {
        self.addr
            .iter()
            .fold(0, |a, word| a << 32 | u128::from(*word))
    }
}

impl Hash for KeyV6 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.addr());
        state.write_u8(self.len);
    }
}

impl Key for KeyV6 {
    fn of(prefix: &Prefix) -> Option<Self> {
        match *prefix {
            Prefix::V6 { addr, len } => Some(KeyV6 {
                addr: [96, 64, 32, 0].map(|shift| (addr >> shift) as u32),
                len,
            }),
            Prefix::V4 { .. } => None,
        }
    }

    fn prefix(self) -> Prefix {
        Prefix::V6 {
            addr: self.addr(),
            len: self.len,
        }
    }
}

struct Slot<K> {
    key: K,
    entry: Entry,
}

struct Map<K> {
    table: HashTable<PrefixIdx>,
    slots: Arena<Slot<K>>,
    hasher: RandomState,
}

impl<K: Key> Map<K> {
    fn new() -> Self {
        Map {
            table: HashTable::new(),
            slots: Arena::default(),
            hasher: RandomState::default(),
        }
    }

    fn find(&self, prefix: &Prefix) -> Option<PrefixIdx> {
        let key = K::of(prefix)?;
        let found = self
            .table
            .find(self.hasher.hash_one(key), |&i| self.slots[i].key == key);
        found.copied()
    }

    fn find_or_insert(&mut self, prefix: &Prefix) -> Option<PrefixIdx> {
        let key = K::of(prefix)?;
        let hash = self.hasher.hash_one(key);
        let slots = &self.slots;
        if let Some(&found) = self.table.find(hash, |&i| slots[i].key == key) {
            return Some(found);
        }
        let entry = Entry {
            first: NONE,
            route: NONE,
            flags: 0,
        };
        let idx = self.slots.insert(Slot { key, entry });
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.table
            .insert_unique(hash, idx, |&i| hasher.hash_one(slots[i].key));
        Some(idx)
    }

    fn remove(&mut self, idx: PrefixIdx) {
        let slot = &mut self.slots[idx];
        slot.entry.flags = FREE;
        let hash = self.hasher.hash_one(slot.key);
        if let Ok(found) = self.table.find_entry(hash, |&i| i == idx) {
            found.remove();
        }
        self.slots.free(idx);
        if self.slots.in_use() == 0 {
            self.table = HashTable::new();
        }
    }
}

enum Maps {
    V4(Map<KeyV4>),
    V6(Map<KeyV6>),
}

macro_rules! of_family {
    ($self:expr, $map:ident => $do:expr) => {
        match $self {
            Maps::V4($map) => $do,
            Maps::V6($map) => $do,
        }
    };
}

/// All prefixes of one family.
pub(crate) struct Prefixes(Maps);

impl Prefixes {
    /// None yet.
    pub(crate) fn new(family: Family) -> Self {
        Prefixes(match family {
            Family::Ipv4 => Maps::V4(Map::new()),
            Family::Ipv6 => Maps::V6(Map::new()),
        })
    }

    /// The number of a prefix that is there.
    pub(crate) fn find(&self, prefix: &Prefix) -> Option<PrefixIdx> {
        of_family!(&self.0, map => map.find(prefix))
    }

    /// The number of a prefix, which is given one if it has none. `None`: it is of the other family.
    pub(crate) fn find_or_insert(&mut self, prefix: &Prefix) -> Option<PrefixIdx> {
        of_family!(&mut self.0, map => map.find_or_insert(prefix))
    }

    /// Frees a prefix.
    pub(crate) fn remove(&mut self, idx: PrefixIdx) {
        of_family!(&mut self.0, map => map.remove(idx));
    }

    /// The prefix with this number.
    pub(crate) fn prefix(&self, idx: PrefixIdx) -> Prefix {
        of_family!(&self.0, map => map.slots[idx].key.prefix())
    }

    /// What is kept for it.
    pub(crate) fn entry(&self, idx: PrefixIdx) -> &Entry {
        of_family!(&self.0, map => &map.slots[idx].entry)
    }

    /// What is kept for it, to be changed.
    pub(crate) fn entry_mut(&mut self, idx: PrefixIdx) -> &mut Entry {
        of_family!(&mut self.0, map => &mut map.slots[idx].entry)
    }

    /// Whether this number is that of a prefix.
    pub(crate) fn is_used(&self, idx: PrefixIdx) -> bool {
        idx < self.end() && !self.entry(idx).is(FREE)
    }

    /// One past the largest number.
    pub(crate) fn end(&self) -> PrefixIdx {
        of_family!(&self.0, map => map.slots.end())
    }

    /// How many prefixes there are.
    pub(crate) fn len(&self) -> usize {
        of_family!(&self.0, map => map.slots.in_use())
    }

    /// Octets of memory held.
    pub(crate) fn octets(&self) -> usize {
        // hashbrown keeps an eighth free: a number and a control octet for each place.
        of_family!(&self.0, map => map.slots.octets() + map.table.capacity() * 8 / 7 * 5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_used_again() {
        for (family, texts) in [
            (
                Family::Ipv4,
                [
                    "0.0.0.0/0",
                    "10.0.0.0/8",
                    "10.0.0.0/9",
                    "255.255.255.255/32",
                ],
            ),
            (
                Family::Ipv6,
                ["::/0", "fd00::/8", "fd00::/9", "1:2:3:4:5:6:7:8/128"],
            ),
        ] {
            let mut p = Prefixes::new(family);
            let list: Vec<Prefix> = texts.iter().map(|t| t.parse().unwrap()).collect();
            let numbers: Vec<_> = list.iter().map(|x| p.find_or_insert(x).unwrap()).collect();
            assert_eq!(numbers, [0, 1, 2, 3]);
            for (x, i) in list.iter().zip(&numbers) {
                assert_eq!((p.find(x), p.prefix(*i)), (Some(*i), *x));
            }
            p.remove(1);
            assert!(!p.is_used(1) && p.is_used(2));
            assert_eq!((p.find(&list[1]), p.len()), (None, 3));
            assert_eq!(p.find_or_insert(&list[1]), Some(1));
            assert!(p.is_used(1));
            for i in 0..4 {
                p.remove(i);
            }
            assert_eq!((p.len(), p.octets()), (0, 0));
        }
    }

    #[test]
    fn the_other_family_has_no_place() {
        let mut p = Prefixes::new(Family::Ipv4);
        assert_eq!(p.find_or_insert(&"::/0".parse().unwrap()), None);
    }

    #[test]
    fn an_ipv4_prefix_takes_twenty_octets() {
        assert_eq!(size_of::<Slot<KeyV4>>(), 20);
        assert_eq!(size_of::<Slot<KeyV6>>(), 32);
    }
}
