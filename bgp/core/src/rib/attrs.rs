//! Attribute sets, each stored once however many routes have it, as one string of octets with what the decision process
//! looks at beside it.

use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{
    arena::Arena,
    nexthop::{NextHopId, NextHops},
};
use crate::{
    ids::{Asn, IfIndex, RouterId},
    wire::attr::{AsPath, NextHop, Origin, PartialBits, PathAttributes, UnknownAttribute},
};

/// An attribute set in [`Attrs`].
pub(crate) type AttrId = u32;

/// LOCAL_PREF of a route that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// An attribute set as it is stored.
pub(crate) struct Attr {
    refs: u32,
    hash: u32,
    /// Where it points to.
    pub(crate) next_hop: NextHopId,
    /// LOCAL_PREF, or the default.
    pub(crate) local_pref: u32,
    /// MULTI_EXIT_DISC; without one 0, the lowest (RFC 4271 section 9.1.2.2 c).
    pub(crate) med: u32,
    /// The neighbouring AS; 0 without one.
    pub(crate) neighbor_as: u32,
    /// ORIGINATOR_ID; 0 without one.
    pub(crate) originator: u32,
    /// The length of the AS_PATH for the decision.
    pub(crate) as_path_len: u16,
    /// The length of the CLUSTER_LIST.
    pub(crate) cluster_len: u8,
    /// The well-known communities in it, and the origin in the lowest two bits.
    flags: u8,
    content: Box<[u8]>,
}

const NO_EXPORT: u8 = 4;
const NO_ADVERTISE: u8 = 8;
const LLGR_STALE: u8 = 16;
const NO_LLGR: u8 = 32;

/// The community of routes that are kept as a last resort (RFC 9494 section 3.2).
pub(crate) const LLGR_STALE_COMMUNITY: u32 = 0xffff_0006;
/// The community of routes that must not be kept so (RFC 9494 section 3.3).
const NO_LLGR_COMMUNITY: u32 = 0xffff_0007;

impl Attr {
    /// ORIGIN; the lower the better.
    pub(crate) fn origin(&self) -> u8 {
        self.flags & 3
    }

    /// NO_EXPORT or NO_EXPORT_SUBCONFED: not to external peers (RFC 1997; we are in no confederation).
    pub(crate) fn no_export(&self) -> bool {
        self.flags & NO_EXPORT != 0
    }

    /// LLGR_STALE: a last resort (RFC 9494).
    pub(crate) fn llgr_stale(&self) -> bool {
        self.flags & LLGR_STALE != 0
    }

    /// NO_LLGR: not to be kept as a last resort (RFC 9494).
    pub(crate) fn no_llgr(&self) -> bool {
        self.flags & NO_LLGR != 0
    }

    /// NO_ADVERTISE: not to anyone (RFC 1997).
    pub(crate) fn no_advertise(&self) -> bool {
        self.flags & NO_ADVERTISE != 0
    }
}

#[derive(Default)]
pub(crate) struct Attrs {
    slots: Arena<Attr>,
    table: HashTable<AttrId>,
    hasher: RandomState,
    buffer: Vec<u8>,
    content_octets: usize,
}

/// Spreads the stored half of a hash over the bits that the table looks at.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Attrs {
    /// The id of `attrs`, with one reference for the caller.
    pub(crate) fn intern(&mut self, attrs: &PathAttributes, next_hops: &mut NextHops) -> AttrId {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        put(&mut buffer, attrs);
        let hash = self.hasher.hash_one(&buffer[..]) as u32;
        let slots = &self.slots;
        let found = self.table.find(spread(hash), |&id| {
            slots[id].hash == hash && *slots[id].content == *buffer
        });
        let id = match found {
            Some(&id) => {
                self.slots[id].refs += 1;
                id
            }
            None => {
                let attr = new_attr(attrs, hash, &buffer, next_hops);
                self.content_octets += buffer.len();
                let id = self.slots.insert(attr);
                let slots = &self.slots;
                self.table
                    .insert_unique(spread(hash), id, |&id| spread(slots[id].hash));
                id
            }
        };
        self.buffer = buffer;
        id
    }

    /// One more reference.
    pub(crate) fn retain(&mut self, id: AttrId) {
        self.slots[id].refs += 1;
    }

    /// One reference less; the last one frees.
    pub(crate) fn release(&mut self, id: AttrId, next_hops: &mut NextHops) {
        let attr = &mut self.slots[id];
        attr.refs -= 1;
        if attr.refs > 0 {
            return;
        }
        let hash = attr.hash;
        let content = std::mem::take(&mut attr.content);
        self.content_octets -= content.len();
        next_hops.release(attr.next_hop);
        if let Ok(entry) = self.table.find_entry(spread(hash), |&i| i == id) {
            entry.remove();
        }
        self.slots.free(id);
        if self.slots.in_use() == 0 {
            self.table = HashTable::new();
        }
    }

    /// The stored set.
    pub(crate) fn get(&self, id: AttrId) -> &Attr {
        &self.slots[id]
    }

    /// All of its content.
    pub(crate) fn expand(&self, id: AttrId) -> PathAttributes {
        read(&self.slots[id].content)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.in_use()
    }

    /// Octets of memory held.
    pub(crate) fn octets(&self) -> usize {
        self.slots.octets() + self.table.capacity() * 5 + self.content_octets + self.len() * 8
    }
}

fn new_attr(attrs: &PathAttributes, hash: u32, content: &[u8], next_hops: &mut NextHops) -> Attr {
    let mut flags = attrs.origin as u8;
    for community in &attrs.communities {
        flags |= match community {
            0xffff_ff01 | 0xffff_ff03 => NO_EXPORT,
            0xffff_ff02 => NO_ADVERTISE,
            &LLGR_STALE_COMMUNITY => LLGR_STALE,
            &NO_LLGR_COMMUNITY => NO_LLGR,
            _ => 0,
        };
    }
    Attr {
        refs: 1,
        hash,
        next_hop: next_hops.acquire(&attrs.next_hop),
        local_pref: attrs.local_pref.unwrap_or(DEFAULT_LOCAL_PREF),
        med: attrs.med.unwrap_or(0),
        neighbor_as: attrs.as_path.neighbor_as().map_or(0, |a| a.0),
        originator: attrs.originator_id.map_or(0, |r| r.0),
        as_path_len: attrs.as_path.path_length().try_into().unwrap_or(u16::MAX),
        cluster_len: attrs.cluster_list.len().try_into().unwrap_or(u8::MAX),
        flags,
        content: content.into(),
    }
}

// The stored form: two octets that say what is there, then what is there in a fixed order; lists with their number of
// elements in two octets (an attribute has less than 65536 octets).
const HAS_MED: u16 = 1 << 2;
const HAS_LOCAL_PREF: u16 = 1 << 3;
const HAS_ATOMIC: u16 = 1 << 4;
const HAS_AGGREGATOR: u16 = 1 << 5;
const HAS_COMMUNITIES: u16 = 1 << 6;
const HAS_EXT: u16 = 1 << 7;
const HAS_LARGE: u16 = 1 << 8;
const HAS_ORIGINATOR: u16 = 1 << 9;
const HAS_CLUSTERS: u16 = 1 << 10;
const HAS_UNKNOWN: u16 = 1 << 11;
const NEXT_HOP_V6: u16 = 1 << 12;
const HAS_LINK_LOCAL: u16 = 1 << 13;
const HAS_PARTIAL: u16 = 1 << 14;

fn put(out: &mut Vec<u8>, a: &PathAttributes) {
    let mut has = a.origin as u16;
    for (present, bit) in [
        (a.med.is_some(), HAS_MED),
        (a.local_pref.is_some(), HAS_LOCAL_PREF),
        (a.atomic_aggregate, HAS_ATOMIC),
        (a.aggregator.is_some(), HAS_AGGREGATOR),
        (!a.communities.is_empty(), HAS_COMMUNITIES),
        (!a.ext_communities.is_empty(), HAS_EXT),
        (!a.large_communities.is_empty(), HAS_LARGE),
        (a.originator_id.is_some(), HAS_ORIGINATOR),
        (!a.cluster_list.is_empty(), HAS_CLUSTERS),
        (!a.unknown.is_empty(), HAS_UNKNOWN),
        (a.next_hop.global.is_ipv6(), NEXT_HOP_V6),
        (a.next_hop.link_local.is_some(), HAS_LINK_LOCAL),
        (!a.partial.is_empty(), HAS_PARTIAL),
    ] {
        if present {
            has |= bit;
        }
    }
    out.extend(has.to_ne_bytes());
    match a.next_hop.global {
        IpAddr::V4(a) => out.extend(a.octets()),
        IpAddr::V6(a) => out.extend(a.octets()),
    }
    if let Some((addr, interface)) = a.next_hop.link_local {
        out.extend(addr.octets());
        out.extend(interface.0.to_ne_bytes());
    }
    for n in [a.med, a.local_pref, a.originator_id.map(|r| r.0)]
        .into_iter()
        .flatten()
    {
        out.extend(n.to_ne_bytes());
    }
    if let Some((asn, addr)) = a.aggregator {
        out.extend(asn.0.to_ne_bytes());
        out.extend(addr.octets());
    }
    let path = a.as_path.as_bytes();
    put_count(out, path.len());
    out.extend(path);
    if !a.communities.is_empty() {
        put_count(out, a.communities.len());
        out.extend(a.communities.iter().flat_map(|c| c.to_ne_bytes()));
    }
    if !a.ext_communities.is_empty() {
        put_count(out, a.ext_communities.len());
        out.extend(a.ext_communities.iter().flatten());
    }
    if !a.large_communities.is_empty() {
        put_count(out, a.large_communities.len());
        out.extend(
            a.large_communities
                .iter()
                .flatten()
                .flat_map(|c| c.to_ne_bytes()),
        );
    }
    if !a.cluster_list.is_empty() {
        put_count(out, a.cluster_list.len());
        out.extend(a.cluster_list.iter().flat_map(|c| c.0.to_ne_bytes()));
    }
    if !a.unknown.is_empty() {
        put_count(out, a.unknown.len());
        for u in &a.unknown {
            out.extend([u.flags, u.code]);
            put_count(out, u.value.len());
            out.extend(&u.value);
        }
    }
    if !a.partial.is_empty() {
        out.push(a.partial.octet());
    }
}

fn put_count(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u16).to_ne_bytes());
}

/// Reads what [`put`] wrote.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => [0; N],
        }
    }

    fn slice(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.array())
    }

    fn count(&mut self) -> usize {
        u16::from_ne_bytes(self.array()).into()
    }

    fn list<T>(&mut self, present: bool, element: impl Fn(&mut Self) -> T) -> Box<[T]> {
        if !present {
            return Box::default();
        }
        (0..self.count()).map(|_| element(self)).collect()
    }
}

fn read(content: &[u8]) -> PathAttributes {
    let mut r = Reader(content);
    let bits = u16::from_ne_bytes(r.array());
    let has = |bit| bits & bit != 0;
    let global = if has(NEXT_HOP_V6) {
        Ipv6Addr::from(r.array::<16>()).into()
    } else {
        Ipv4Addr::from(r.array::<4>()).into()
    };
    let link_local =
        has(HAS_LINK_LOCAL).then(|| (Ipv6Addr::from(r.array::<16>()), IfIndex(r.u32())));
    let med = has(HAS_MED).then(|| r.u32());
    let local_pref = has(HAS_LOCAL_PREF).then(|| r.u32());
    let originator_id = has(HAS_ORIGINATOR).then(|| RouterId(r.u32()));
    let aggregator = has(HAS_AGGREGATOR).then(|| (Asn(r.u32()), Ipv4Addr::from(r.array::<4>())));
    let as_path_len = r.count();
    PathAttributes {
        origin: match bits & 3 {
            0 => Origin::Igp,
            1 => Origin::Egp,
            _ => Origin::Incomplete,
        },
        as_path: AsPath(r.slice(as_path_len).into()),
        next_hop: NextHop { global, link_local },
        med,
        local_pref,
        atomic_aggregate: has(HAS_ATOMIC),
        aggregator,
        communities: r.list(has(HAS_COMMUNITIES), Reader::u32),
        ext_communities: r.list(has(HAS_EXT), Reader::array),
        large_communities: r.list(has(HAS_LARGE), |r| [r.u32(), r.u32(), r.u32()]),
        originator_id,
        cluster_list: r.list(has(HAS_CLUSTERS), |r| RouterId(r.u32())),
        unknown: r.list(has(HAS_UNKNOWN), |r| {
            let [flags, code] = r.array();
            let len = r.count();
            UnknownAttribute {
                flags,
                code,
                value: r.slice(len).into(),
            }
        }),
        partial: match has(HAS_PARTIAL) {
            true => PartialBits::from_octet(u8::from_ne_bytes(r.array())),
            false => PartialBits::default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attributes() -> impl Strategy<Value = PathAttributes> {
        let next_hop = prop_oneof![
            any::<[u8; 4]>().prop_map(|a| NextHop::from(IpAddr::from(a))),
            (any::<[u8; 16]>(), any::<Option<([u8; 16], u32)>>()).prop_map(|(a, l)| NextHop {
                global: IpAddr::from(a),
                link_local: l.map(|(a, i)| (Ipv6Addr::from(a), IfIndex(i))),
            }),
        ];
        let first = (
            0u8..3,
            proptest::collection::vec(any::<u32>(), 0..40),
            next_hop,
            any::<(Option<u32>, Option<u32>, bool, Option<(u32, [u8; 4])>)>(),
        );
        let rest = (
            any::<(Vec<u32>, Vec<[u8; 8]>, Vec<[u32; 3]>)>(),
            any::<(Option<u32>, Vec<u32>, Vec<(u8, u8, Vec<u8>)>, u8)>(),
        );
        (first, rest).prop_map(|((origin, path, next_hop, a), (c, d))| PathAttributes {
            origin: [Origin::Igp, Origin::Egp, Origin::Incomplete][usize::from(origin)],
            as_path: AsPath::from_sequence(&path.into_iter().map(Asn).collect::<Vec<_>>()),
            next_hop,
            med: a.0,
            local_pref: a.1,
            atomic_aggregate: a.2,
            aggregator: a.3.map(|(n, a)| (Asn(n), a.into())),
            communities: c.0.into(),
            ext_communities: c.1.into(),
            large_communities: c.2.into(),
            originator_id: d.0.map(RouterId),
            cluster_list: d.1.into_iter().map(RouterId).collect(),
            unknown: d
                .2
                .into_iter()
                .map(|(flags, code, value)| UnknownAttribute {
                    flags,
                    code,
                    value: value.into(),
                })
                .collect(),
            partial: PartialBits::from_octet(d.3),
        })
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read(a in attributes()) {
            let mut out = Vec::new();
            put(&mut out, &a);
            prop_assert_eq!(read(&out), a);
        }

        #[test]
        fn equal_content_is_one_and_the_last_reference_frees(sets in proptest::collection::vec(attributes(), 1..6)) {
            let (mut attrs, mut next_hops) = (Attrs::default(), NextHops::default());
            let mut ids = Vec::new();
            for set in sets.iter().chain(&sets) {
                ids.push(attrs.intern(set, &mut next_hops));
            }
            for (i, id) in ids.iter().enumerate() {
                prop_assert_eq!(&attrs.expand(*id), &sets[i % sets.len()]);
                prop_assert_eq!(*id, ids[i % sets.len()]);
            }
            for id in ids {
                attrs.release(id, &mut next_hops);
            }
            next_hops.flush(&mut Vec::new());
            prop_assert_eq!((attrs.len(), attrs.content_octets, next_hops.len()), (0, 0, 0));
        }
    }
}
