//! The elements of a set. Sets of pods' addresses may be as large as the cluster, so they are kept without the room that
//! other kinds of keys and verdicts take: 5 to 30 bytes an element instead of 60 to 100.

use super::{Key, KeyType, SetDef, Verdict};
use crate::model::{Family, Proto};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Keys in ascending order; each has a verdict exactly in a map.
#[derive(Clone, Default)]
pub struct Elements(Form);

#[derive(Clone)]
enum Form {
    V4(BTreeSet<Ipv4Addr>),
    V6(BTreeSet<Ipv6Addr>),
    Ports4(BTreeSet<(Ipv4Addr, Proto, u16)>),
    Ports6(BTreeSet<(Ipv6Addr, Proto, u16)>),
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
        Elements(match def.key {
            _ if def.verdicts || def.interval => Form::default(),
            KeyType::Addr(Family::V4) => Form::V4(BTreeSet::new()),
            KeyType::Addr(Family::V6) => Form::V6(BTreeSet::new()),
            KeyType::AddrProtoPort(Family::V4) => Form::Ports4(BTreeSet::new()),
            KeyType::AddrProtoPort(Family::V6) => Form::Ports6(BTreeSet::new()),
            _ => Form::default(),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
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

    /// The verdict of a key, `Some(None)` in a set; `None`: there is no such element.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Option<&Verdict>> {
        let there = match (&self.0, key) {
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
        match &self.0 {
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
        let new = match (&mut self.0, &key, &verdict) {
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

    /// Takes an element out; whether it was there.
    pub(crate) fn remove(&mut self, key: &Key) -> bool {
        match (&mut self.0, key) {
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
        match (&self.0, addr) {
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
        let mut all = match std::mem::take(&mut self.0) {
            Form::Any(all) => all,
            other => {
                let other = Elements(other);
                let owned = |(key, verdict): (Key, Option<&Verdict>)| (key, verdict.cloned());
                other.iter().map(owned).collect()
            }
        };
        let before = all.insert(key, verdict);
        self.0 = Form::Any(all);
        before
    }
}

/// By content, however it is kept.
impl PartialEq for Elements {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Elements {}

impl fmt::Debug for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
