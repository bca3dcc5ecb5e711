//! The elements of a set. Sets of pods' addresses may be as large as the cluster, so they are kept without the room that
//! other kinds of keys and verdicts take: 5 to 30 bytes an element instead of 60 to 100.

use super::{Key, KeyType, SetDef, Verdict};
use crate::model::{Family, Proto};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Keys in ascending order; each has a verdict exactly in a map. A clone costs a reference count until one of both is
/// changed.
#[derive(Clone, Default)]
pub struct Elements(Arc<Form>);

type Ports<A> = (A, Proto, u16);

#[derive(Clone)]
enum Form {
    V4(BTreeSet<Ipv4Addr>),
    V6(BTreeSet<Ipv6Addr>),
    Ports4(BTreeSet<Ports<Ipv4Addr>>),
    Ports6(BTreeSet<Ports<Ipv6Addr>>),
    /// Everything else, and keys of another type than the set has.
    Any(BTreeMap<Key, Option<Verdict>>),
}

impl Default for Form {
    fn default() -> Self {
        Form::Any(BTreeMap::new())
    }
}

impl Elements {
    /// None yet, of a set of this kind.
    #[must_use]
    pub fn of(def: &SetDef) -> Self {
        Elements(Arc::new(match def.key {
            _ if def.verdicts || def.interval => Form::default(),
            KeyType::Addr(Family::V4) => Form::V4(BTreeSet::new()),
            KeyType::Addr(Family::V6) => Form::V6(BTreeSet::new()),
            KeyType::AddrProtoPort(Family::V4) => Form::Ports4(BTreeSet::new()),
            KeyType::AddrProtoPort(Family::V6) => Form::Ports6(BTreeSet::new()),
            _ => Form::default(),
        }))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &*self.0 {
            Form::V4(set) => set.len(),
            Form::V6(set) => set.len(),
            Form::Ports4(set) => set.len(),
            Form::Ports6(set) => set.len(),
            Form::Any(map) => map.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys of a set of pods' addresses in a row; `None` for any other set.
    #[must_use]
    pub fn row(&self) -> Option<Row> {
        Some(Row(match &*self.0 {
            Form::V4(set) => RowForm::V4(set.iter().copied().collect()),
            Form::V6(set) => RowForm::V6(set.iter().copied().collect()),
            Form::Ports4(set) => RowForm::Ports4(set.iter().copied().collect()),
            Form::Ports6(set) => RowForm::Ports6(set.iter().copied().collect()),
            Form::Any(_) => return None,
        }))
    }

    /// The verdict of a key, `Some(None)` in a set; `None`: there is no such element.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Option<&Verdict>> {
        let there = match (&*self.0, key) {
            (Form::V4(set), Key::Addr(IpAddr::V4(a))) => set.contains(a),
            (Form::V6(set), Key::Addr(IpAddr::V6(a))) => set.contains(a),
            (Form::Ports4(set), Key::AddrProtoPort(IpAddr::V4(a), proto, port)) => {
                set.contains(&(*a, *proto, *port))
            }
            (Form::Ports6(set), Key::AddrProtoPort(IpAddr::V6(a), proto, port)) => {
                set.contains(&(*a, *proto, *port))
            }
            (Form::Any(map), key) => return map.get(key).map(Option::as_ref),
            _ => false,
        };
        there.then_some(None)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (Key, Option<&Verdict>)> + '_> {
        match &*self.0 {
            Form::V4(set) => Box::new(set.iter().map(|a| (Key::Addr(IpAddr::V4(*a)), None))),
            Form::V6(set) => Box::new(set.iter().map(|a| (Key::Addr(IpAddr::V6(*a)), None))),
            Form::Ports4(set) => Box::new(
                set.iter()
                    .map(|(a, proto, port)| (Key::AddrProtoPort((*a).into(), *proto, *port), None)),
            ),
            Form::Ports6(set) => Box::new(
                set.iter()
                    .map(|(a, proto, port)| (Key::AddrProtoPort((*a).into(), *proto, *port), None)),
            ),
            Form::Any(map) => Box::new(
                map.iter()
                    .map(|(key, verdict)| (key.clone(), verdict.as_ref())),
            ),
        }
    }

    /// The keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.iter().map(|(key, _)| key)
    }

    /// The verdicts, in the order of the keys.
    pub fn values(&self) -> impl Iterator<Item = Option<&Verdict>> + '_ {
        self.iter().map(|(_, verdict)| verdict)
    }

    /// Puts an element in its place; what was there before.
    pub(crate) fn insert(&mut self, key: Key, verdict: Option<Verdict>) -> Option<Option<Verdict>> {
        let new = match (Arc::make_mut(&mut self.0), &key, &verdict) {
            (Form::V4(set), Key::Addr(IpAddr::V4(a)), None) => set.insert(*a),
            (Form::V6(set), Key::Addr(IpAddr::V6(a)), None) => set.insert(*a),
            (Form::Ports4(set), Key::AddrProtoPort(IpAddr::V4(a), proto, port), None) => {
                set.insert((*a, *proto, *port))
            }
            (Form::Ports6(set), Key::AddrProtoPort(IpAddr::V6(a), proto, port), None) => {
                set.insert((*a, *proto, *port))
            }
            _ => return self.insert_any(key, verdict),
        };
        (!new).then_some(None)
    }

    /// Puts elements without verdicts in their places; whether that changes something.
    pub(crate) fn extend(&mut self, keys: impl Iterator<Item = Key>) -> bool {
        let before = self.len();
        let others = match Arc::make_mut(&mut self.0) {
            Form::V4(set) => bulk(set, keys, |key| match key {
                Key::Addr(IpAddr::V4(a)) => Some(*a),
                _ => None,
            }),
            Form::V6(set) => bulk(set, keys, |key| match key {
                Key::Addr(IpAddr::V6(a)) => Some(*a),
                _ => None,
            }),
            Form::Ports4(set) => bulk(set, keys, |key| match key {
                Key::AddrProtoPort(IpAddr::V4(a), proto, port) => Some((*a, *proto, *port)),
                _ => None,
            }),
            Form::Ports6(set) => bulk(set, keys, |key| match key {
                Key::AddrProtoPort(IpAddr::V6(a), proto, port) => Some((*a, *proto, *port)),
                _ => None,
            }),
            Form::Any(_) => keys.collect(),
        };
        for key in others {
            self.insert(key, None);
        }
        self.len() != before
    }

    /// Takes an element out; whether it was there.
    pub(crate) fn remove(&mut self, key: &Key) -> bool {
        match (Arc::make_mut(&mut self.0), key) {
            (Form::V4(set), Key::Addr(IpAddr::V4(a))) => set.remove(a),
            (Form::V6(set), Key::Addr(IpAddr::V6(a))) => set.remove(a),
            (Form::Ports4(set), Key::AddrProtoPort(IpAddr::V4(a), proto, port)) => {
                set.remove(&(*a, *proto, *port))
            }
            (Form::Ports6(set), Key::AddrProtoPort(IpAddr::V6(a), proto, port)) => {
                set.remove(&(*a, *proto, *port))
            }
            (Form::Any(map), key) => map.remove(key).is_some(),
            _ => false,
        }
    }

    /// The elements of an address in a set of pods' addresses.
    pub(crate) fn of_address(&self, addr: IpAddr) -> Vec<Key> {
        let (first, last) = ((Proto::Tcp, 0), (Proto::Sctp, u16::MAX));
        let key = |proto, port| Key::AddrProtoPort(addr, proto, port);
        match (&*self.0, addr) {
            (Form::V4(set), IpAddr::V4(a)) if set.contains(&a) => vec![Key::Addr(addr)],
            (Form::V6(set), IpAddr::V6(a)) if set.contains(&a) => vec![Key::Addr(addr)],
            (Form::Ports4(set), IpAddr::V4(a)) => set
                .range((a, first.0, first.1)..=(a, last.0, last.1))
                .map(|(_, proto, port)| key(*proto, *port))
                .collect(),
            (Form::Ports6(set), IpAddr::V6(a)) => set
                .range((a, first.0, first.1)..=(a, last.0, last.1))
                .map(|(_, proto, port)| key(*proto, *port))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Puts an element in its place in the form that holds every key.
    fn insert_any(&mut self, key: Key, verdict: Option<Verdict>) -> Option<Option<Verdict>> {
        if !matches!(*self.0, Form::Any(_)) {
            let owned = |(key, verdict): (Key, Option<&Verdict>)| (key, verdict.cloned());
            self.0 = Arc::new(Form::Any(self.iter().map(owned).collect()));
        }
        match Arc::make_mut(&mut self.0) {
            Form::Any(all) => all.insert(key, verdict),
            _ => None,
        }
    }
}

/// Puts those that fit into a set and gives back the others. A tree that is made of all its values at once has no room to
/// spare, where one that is filled in ascending order is half empty.
fn bulk<T: Ord>(
    set: &mut BTreeSet<T>,
    keys: impl Iterator<Item = Key>,
    fit: impl Fn(&Key) -> Option<T>,
) -> Vec<Key> {
    let (mut values, mut others) = (Vec::new(), Vec::new());
    for key in keys {
        match fit(&key) {
            Some(value) => values.push(value),
            None => others.push(key),
        }
    }
    if set.is_empty() {
        *set = values.into_iter().collect();
    } else {
        set.extend(values);
    }
    others
}

/// The keys of a set in a row, ascending, each found by the bytes that the kernel shows.
#[derive(Clone, Debug)]
pub struct Row(RowForm);

#[derive(Clone, Debug)]
enum RowForm {
    V4(Vec<Ipv4Addr>),
    V6(Vec<Ipv6Addr>),
    Ports4(Vec<Ports<Ipv4Addr>>),
    Ports6(Vec<Ports<Ipv6Addr>>),
}

impl Row {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            RowForm::V4(row) => row.len(),
            RowForm::V6(row) => row.len(),
            RowForm::Ports4(row) => row.len(),
            RowForm::Ports6(row) => row.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in the row a key is; `None` if it is not there.
    #[must_use]
    pub fn place(&self, key: &[u8]) -> Option<usize> {
        match &self.0 {
            RowForm::V4(row) => row.binary_search(&v4(key)?).ok(),
            RowForm::V6(row) => row.binary_search(&v6(key)?).ok(),
            RowForm::Ports4(row) => row.binary_search(&with_port(key, v4)?).ok(),
            RowForm::Ports6(row) => row.binary_search(&with_port(key, v6)?).ok(),
        }
    }
}

fn v4(key: &[u8]) -> Option<Ipv4Addr> {
    key.try_into().ok().map(|octets: [u8; 4]| octets.into())
}

fn v6(key: &[u8]) -> Option<Ipv6Addr> {
    key.try_into().ok().map(|octets: [u8; 16]| octets.into())
}

/// The address, the protocol and the port, each padded to four bytes.
fn with_port<A>(key: &[u8], address: impl Fn(&[u8]) -> Option<A>) -> Option<Ports<A>> {
    let (addr, [proto, 0, 0, 0, high, low, 0, 0]) = key.split_last_chunk::<8>()? else {
        return None;
    };
    let port = u16::from_be_bytes([*high, *low]);
    Some((address(addr)?, Proto::from_number(*proto)?, port))
}

/// By content, however it is kept.
impl PartialEq for Elements {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Elements {}

impl fmt::Debug for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: KeyType) -> Elements {
        Elements::of(&SetDef {
            key,
            verdicts: false,
            interval: false,
        })
    }

    /// Each key is found by the bytes that the kernel shows, and nothing else is. Many at once make the same set.
    #[test]
    fn keys_as_the_kernel_shows_them() {
        let v4 = |n: u32| IpAddr::from(Ipv4Addr::from(n * 7));
        let v6 = |n: u32| IpAddr::from(Ipv6Addr::from(u128::from(n * 7) << 64));
        let ports = |addr| Key::AddrProtoPort(addr, Proto::Udp, 53);
        for family in Family::ALL {
            let addr = |n| match family {
                Family::V4 => v4(n),
                Family::V6 => v6(n),
            };
            for (key_type, key) in [
                (
                    KeyType::Addr(family),
                    &(|n| Key::Addr(addr(n))) as &dyn Fn(u32) -> Key,
                ),
                (KeyType::AddrProtoPort(family), &|n| ports(addr(n))),
            ] {
                let mut elements = set(key_type);
                for n in (1..3000).rev() {
                    assert_eq!(elements.insert(key(n), None), None);
                }
                let mut other = set(key_type);
                assert!(other.extend((1..2000).map(key)));
                assert!(other.extend((1000..3000).map(key)));
                assert!(!other.extend((1..3000).map(key)));
                assert_eq!(elements, other);
                let row = elements.row().expect("a row");
                assert_eq!((row.len(), row.is_empty()), (2999, false));
                for (at, key) in elements.keys().enumerate() {
                    assert_eq!(row.place(&key.bytes()), Some(at));
                }
                assert_eq!(row.place(&key(3000).bytes()), None);
                let known = key(1).bytes();
                assert_eq!(row.place(&known[1..]), None);
                assert_eq!(row.place(&[&known[..], &[0]].concat()), None);
                if let KeyType::AddrProtoPort(_) = key_type {
                    for at in known.len() - 8..known.len() {
                        let mut other = known.clone();
                        other[at] ^= 1;
                        assert_eq!(row.place(&other), None, "{other:?}");
                    }
                }
            }
        }
        assert!(set(KeyType::ProtoPort).row().is_none());
    }

    /// A clone is a set of its own, though nothing was copied.
    #[test]
    fn a_clone_is_a_set_of_its_own() {
        let key = |last| Key::Addr(Ipv4Addr::new(10, 0, 0, last).into());
        let mut one = set(KeyType::Addr(Family::V4));
        one.insert(key(1), None);
        let other = one.clone();
        assert!(Arc::ptr_eq(&one.0, &other.0));
        one.insert(key(2), None);
        assert!(one.remove(&key(1)));
        assert_eq!(other.keys().collect::<Vec<_>>(), [key(1)]);
        assert_eq!(one.keys().collect::<Vec<_>>(), [key(2)]);
        // A key of another type fits as well.
        one.insert(Key::ProtoPort(Proto::Tcp, 1), None);
        assert!(one.extend([Key::ProtoPort(Proto::Tcp, 2)].into_iter()));
        assert_eq!((one.len(), other.len()), (3, 1));
    }
}
