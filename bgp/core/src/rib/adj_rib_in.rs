//! The paths that peers have announced (Adj-RIB-In): one table per family for all peers, a list of paths for each prefix.
//!
//! The best path is the first of its list once decided. A path announced again unchanged ends here.

use std::collections::HashSet;

use super::{
    LOCAL, Rib, RibOutput, UnusableNextHop,
    attrs::{AttrId, LLGR_STALE_COMMUNITY},
    nexthop::Announcer,
    peers::PrefixList,
    prefixes::{BEST, DIRTY, NONE, PrefixIdx, Prefixes, WITHDRAWN},
};
use crate::{
    config::MaxPrefixAction,
    event::Negotiated,
    ids::{Family, FamilySet, PeerIdx},
    prefix::Prefix,
    wire::{attr::PathAttributes, nlri::NlriBlock},
};

/// A path.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    pub(crate) attr: AttrId,
    pub(crate) next: u32,
    pub(crate) path_id: u32,
    pub(crate) peer: PeerIdx,
    /// [`STALE`], and the number of a [`Rejection`].
    pub(crate) flags: u8,
}

/// Its peer has restarted and not announced it again yet.
pub(crate) const STALE: u8 = 0x80;
const REJECTION: u8 = 0x07;

/// Why a path is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Rejection {
    /// Our AS is in its AS_PATH more often than allowed (RFC 4271 section 9.1.2).
    OwnAs = 1,
    /// It began here (RFC 4456 section 8: ORIGINATOR_ID).
    OwnOriginator = 2,
    /// It has been in our cluster (RFC 4456 section 8: CLUSTER_LIST).
    OwnCluster = 3,
    /// Its next hop is one of our addresses (RFC 4271 section 6.3).
    OwnNextHop = 4,
    /// A filter refuses it.
    Filter = 5,
}

impl Rejection {
    fn from_flags(flags: u8) -> Option<Rejection> {
        match flags & REJECTION {
            1 => Some(Rejection::OwnAs),
            2 => Some(Rejection::OwnOriginator),
            3 => Some(Rejection::OwnCluster),
            4 => Some(Rejection::OwnNextHop),
            5 => Some(Rejection::Filter),
            _ => None,
        }
    }
}

impl Path {
    /// Why it is not used.
    pub(crate) fn rejection(&self) -> Option<Rejection> {
        Rejection::from_flags(self.flags)
    }
}

impl Rib {
    /// Takes an announcement.
    pub(crate) fn reach(&mut self, peer: PeerIdx, attrs: &PathAttributes, nlri: &NlriBlock) {
        let family = nlri.family();
        let Some(session) = self.session_with(peer, family) else {
            return;
        };
        let looped = self.rejection_by_attributes(peer, &session, attrs);
        let attr = self.attrs.intern(attrs, &mut self.next_hops);
        self.look_at_next_hop(peer, attr, looped, nlri);
        for (path_id, prefix) in nlri {
            let rejection = looped.or_else(|| self.rejection_by_filter(peer, &prefix));
            self.put_path(family, &prefix, peer, path_id, attr, rejection);
            if self.peers[usize::from(peer.0)].too_many {
                break;
            }
        }
        self.attrs.release(attr, &mut self.next_hops);
    }

    /// Says whose routes are not used for their next hop.
    fn look_at_next_hop(
        &mut self,
        peer: PeerIdx,
        attr: AttrId,
        rejection: Option<Rejection>,
        nlri: &NlriBlock,
    ) {
        let Some(epoch) = self.peers.get(usize::from(peer.0)).and_then(|p| p.epoch) else {
            return;
        };
        let announcer = || Announcer {
            peer,
            epoch,
            prefixes: u32::try_from(nlri.iter().count()).unwrap_or(u32::MAX),
        };
        let id = self.attrs.get(attr).next_hop;
        let next_hop = self.next_hops.get(id).global;
        match rejection {
            Some(Rejection::OwnNextHop) => {
                self.say_unusable(announcer(), next_hop, UnusableNextHop::Ours);
            }
            None if self.next_hops.is_unusable(id, announcer) => {
                self.say_unusable(announcer(), next_hop, UnusableNextHop::Unreachable);
            }
            _ => {}
        }
    }

    /// Takes a withdrawal.
    pub(crate) fn unreach(&mut self, peer: PeerIdx, nlri: &NlriBlock) {
        let family = nlri.family();
        if self.session_with(peer, family).is_none() {
            return;
        }
        for (path_id, prefix) in nlri {
            if let Some(idx) = self.prefixes[family.index()].find(&prefix) {
                self.take_paths(family, idx, |p| p.peer == peer && p.path_id == path_id);
            }
        }
    }

    fn session_with(&self, peer: PeerIdx, family: Family) -> Option<std::sync::Arc<Negotiated>> {
        let peer = self.peers.get(usize::from(peer.0))?;
        let session = peer.session.as_ref()?;
        (session.families.contains(family) && !peer.too_many).then(|| session.clone())
    }

    fn rejection_by_attributes(
        &self,
        peer: PeerIdx,
        session: &Negotiated,
        attrs: &PathAttributes,
    ) -> Option<Rejection> {
        let config = self.peers[usize::from(peer.0)].config.as_ref()?;
        let allowed = usize::from(config.allow_own_as);
        let own = |asn| attrs.as_path.count(asn) > allowed;
        if own(self.config.asn) || own(session.local_asn) {
            return Some(Rejection::OwnAs);
        }
        if session.internal {
            if attrs.originator_id == Some(self.config.router_id) {
                return Some(Rejection::OwnOriginator);
            }
            let cluster = self.config.cluster_id.unwrap_or(self.config.router_id);
            if attrs.cluster_list.contains(&cluster) {
                return Some(Rejection::OwnCluster);
            }
        }
        let global = attrs.next_hop.global;
        let ours = global == session.local_addr || self.config.is_own_address(global);
        ours.then_some(Rejection::OwnNextHop)
    }

    fn rejection_by_filter(&self, peer: PeerIdx, prefix: &Prefix) -> Option<Rejection> {
        let import = &self.peers[usize::from(peer.0)].import;
        (!import.accepts(&self.config, prefix)).then_some(Rejection::Filter)
    }

    /// Stores a path, or what is new of it.
    pub(crate) fn put_path(
        &mut self,
        family: Family,
        prefix: &Prefix,
        peer: PeerIdx,
        path_id: u32,
        attr: AttrId,
        rejection: Option<Rejection>,
    ) {
        let prefixes = &mut self.prefixes[family.index()];
        let Some(idx) = prefixes.find_or_insert(prefix) else {
            return;
        };
        let flags = rejection.map_or(0, |r| r as u8);
        let mut at = prefixes.entry(idx).first;
        while at != NONE {
            let path = &self.paths[at];
            if path.peer == peer && path.path_id == path_id {
                // A stale path that is announced again counts anew.
                if path.flags & STALE == 0 || self.has_room(peer, family) {
                    self.replace_path(family, idx, at, attr, flags);
                }
                return;
            }
            at = path.next;
        }
        if !self.has_room(peer, family) {
            self.free_if_unused(family, idx);
            return;
        }
        self.attrs.retain(attr);
        self.insert_path(
            family,
            idx,
            Path {
                attr,
                next: NONE,
                path_id,
                peer,
                flags,
            },
        );
        if rejection.is_none() {
            self.mark(family, idx);
        }
    }

    fn insert_path(&mut self, family: Family, idx: PrefixIdx, mut path: Path) {
        let peer = path.peer;
        let entry = self.prefixes[family.index()].entry_mut(idx);
        let first = entry.first;
        let behind_best = entry.is(BEST);
        path.next = if behind_best {
            self.paths[first].next
        } else {
            first
        };
        let accepted = path.rejection().is_none();
        let at = self.paths.insert(path);
        if behind_best {
            self.paths[first].next = at;
        } else {
            entry.first = at;
        }
        let Some(peer) = self.peers.get_mut(usize::from(peer.0)) else {
            return;
        };
        let counts = &mut peer.counts[family.index()];
        counts.received += 1;
        counts.accepted += u32::from(accepted);
        let (prefixes, paths, own) = (&self.prefixes[family.index()], &self.paths, path.peer);
        peer.lists[family.index()].push(idx, counts.received, |i| {
            if !prefixes.is_used(i) {
                return false;
            }
            let mut at = prefixes.entry(i).first;
            while at != NONE {
                if paths[at].peer == own {
                    return true;
                }
                at = paths[at].next;
            }
            false
        });
    }

    fn replace_path(&mut self, family: Family, idx: PrefixIdx, at: u32, attr: AttrId, flags: u8) {
        let path = &mut self.paths[at];
        let (old_attr, old_flags) = (path.attr, path.flags);
        path.flags = flags;
        if let Some(peer) = self.peers.get_mut(usize::from(path.peer.0)) {
            let counts = &mut peer.counts[family.index()];
            counts.stale -= u32::from(old_flags & STALE != 0);
            counts.stale += u32::from(flags & STALE != 0);
            counts.accepted -= u32::from(old_flags & REJECTION == 0);
            counts.accepted += u32::from(flags & REJECTION == 0);
        }
        if attr == old_attr && flags & REJECTION == old_flags & REJECTION {
            return;
        }
        path.attr = attr;
        self.attrs.retain(attr);
        self.attrs.release(old_attr, &mut self.next_hops);
        if flags & REJECTION == 0 || old_flags & REJECTION == 0 {
            self.mark(family, idx);
        }
    }

    /// Whether a peer may announce one more prefix (RFC 4271 section 6.7, RFC 4486). What is stale does not count: it is of an
    /// earlier session, and goes at End-of-RIB at the latest.
    fn has_room(&mut self, idx: PeerIdx, family: Family) -> bool {
        let Some(peer) = self.peers.get_mut(usize::from(idx.0)) else {
            return true;
        };
        let Some(max) = peer.config.as_ref().and_then(|c| c.max_prefix) else {
            return true;
        };
        let more = peer.counts[family.index()].fresh().saturating_add(1);
        let many = max.many();
        if let Some(epoch) = peer.epoch
            && more >= many
            && !peer.warned.contains(family)
        {
            peer.warned.insert(family);
            let warning = RibOutput::ManyPrefixes(idx, epoch, family, more);
            self.to_say.push(warning);
        }
        if more <= max.limit {
            return true;
        }
        match max.action {
            MaxPrefixAction::Warn => true,
            MaxPrefixAction::Discard => false,
            MaxPrefixAction::Reset { .. } => {
                peer.too_many = true;
                if let Some(epoch) = peer.epoch {
                    self.to_say.push(RibOutput::TooManyPrefixes(idx, epoch));
                }
                false
            }
        }
    }

    /// The limit of a peer is another one now: what it has announced in this session is judged by it.
    pub(crate) fn judge_limit(&mut self, idx: PeerIdx) {
        let peer = &mut self.peers[usize::from(idx.0)];
        peer.warned = FamilySet::NONE;
        let (Some(epoch), Some(config)) = (peer.epoch, &peer.config) else {
            return;
        };
        let Some(max) = config.max_prefix.filter(|_| peer.session.is_some()) else {
            return;
        };
        for family in Family::ALL {
            let peer = &mut self.peers[usize::from(idx.0)];
            let fresh = peer.counts[family.index()].fresh();
            if fresh >= max.many() {
                peer.warned.insert(family);
                let warning = RibOutput::ManyPrefixes(idx, epoch, family, fresh);
                self.to_say.push(warning);
            }
            if fresh <= max.limit {
                continue;
            }
            match max.action {
                MaxPrefixAction::Warn => {}
                MaxPrefixAction::Reset { .. } if peer.too_many => {}
                MaxPrefixAction::Reset { .. } => {
                    peer.too_many = true;
                    self.to_say.push(RibOutput::TooManyPrefixes(idx, epoch));
                }
                MaxPrefixAction::Discard => self.discard(idx, family, fresh - max.limit),
            }
        }
    }

    /// Removes so many paths of a peer that are not stale: the last ones in the order of the table.
    fn discard(&mut self, peer: PeerIdx, family: Family, mut surplus: u32) {
        let own = |p: &Path| p.peer == peer && p.flags & STALE == 0;
        for idx in self.prefixes_of(peer, family).into_iter().rev() {
            if surplus == 0 {
                return;
            }
            let here = self
                .paths_of(family, idx)
                .filter(|at| own(&self.paths[*at]));
            surplus = surplus.saturating_sub(here.count() as u32);
            self.take_paths(family, idx, own);
        }
    }

    /// Takes out the paths of a prefix that `which` names.
    pub(crate) fn take_paths(
        &mut self,
        family: Family,
        idx: PrefixIdx,
        which: impl Fn(&Path) -> bool,
    ) {
        let mut before = NONE;
        let mut at = self.prefixes[family.index()].entry(idx).first;
        let mut changed = false;
        while at != NONE {
            let path = self.paths[at];
            if !which(&path) {
                before = at;
                at = path.next;
                continue;
            }
            let entry = self.prefixes[family.index()].entry_mut(idx);
            let was_best = before == NONE && entry.is(BEST);
            if before == NONE {
                entry.first = path.next;
                entry.set(BEST, false);
            } else {
                self.paths[before].next = path.next;
            }
            if let Some(peer) = self.peers.get_mut(usize::from(path.peer.0)) {
                let counts = &mut peer.counts[family.index()];
                counts.received -= 1;
                counts.accepted -= u32::from(path.flags & REJECTION == 0);
                counts.stale -= u32::from(path.flags & STALE != 0);
                counts.best -= u32::from(was_best);
                if counts.received == 0 {
                    peer.lists[family.index()].clear();
                }
            }
            changed |= path.flags & REJECTION == 0;
            self.attrs.release(path.attr, &mut self.next_hops);
            self.paths.free(at);
            at = path.next;
        }
        if changed {
            self.mark(family, idx);
        } else {
            self.free_if_unused(family, idx);
        }
    }

    /// The decision for this prefix has to be made again.
    pub(crate) fn mark(&mut self, family: Family, idx: PrefixIdx) {
        let entry = self.prefixes[family.index()].entry_mut(idx);
        if !entry.is(DIRTY) {
            entry.set(DIRTY, true);
            self.dirty.push_back(idx << 1 | family as u32);
            self.marked += 1;
        }
    }

    /// Frees a prefix that nothing is known of.
    pub(crate) fn free_if_unused(&mut self, family: Family, idx: PrefixIdx) {
        let prefixes: &mut Prefixes = &mut self.prefixes[family.index()];
        let entry = prefixes.entry(idx);
        if entry.first == NONE && !entry.is(DIRTY | WITHDRAWN) {
            prefixes.remove(idx);
        }
    }

    /// The places of a prefix's paths.
    pub(crate) fn paths_of(&self, family: Family, idx: PrefixIdx) -> impl Iterator<Item = u32> {
        let mut at = self.prefixes[family.index()].entry(idx).first;
        std::iter::from_fn(move || {
            let here = at;
            if here == NONE {
                return None;
            }
            at = self.paths[here].next;
            Some(here)
        })
    }

    /// The prefixes that a peer may have paths for.
    pub(crate) fn prefixes_of(&self, peer: PeerIdx, family: Family) -> Vec<PrefixIdx> {
        let prefixes = &self.prefixes[family.index()];
        let Some(known) = self.peers.get(usize::from(peer.0)) else {
            return Vec::new();
        };
        if known.counts[family.index()].received == 0 {
            return Vec::new();
        }
        let has = |idx: &PrefixIdx| {
            prefixes.is_used(*idx)
                && self
                    .paths_of(family, *idx)
                    .any(|at| self.paths[at].peer == peer)
        };
        match &known.lists[family.index()] {
            PrefixList::Some(list) => {
                let mut list: Vec<PrefixIdx> = list.iter().copied().filter(has).collect();
                list.sort_unstable();
                list.dedup();
                list
            }
            PrefixList::Any => (0..prefixes.end()).filter(has).collect(),
        }
    }

    /// Judges all paths of a peer again: its filters, or what they depend on, have changed.
    pub(crate) fn judge_again(&mut self, peer: PeerIdx) {
        let Some(session) = self.peers[usize::from(peer.0)].last.clone() else {
            return;
        };
        for family in Family::ALL {
            for idx in self.prefixes_of(peer, family) {
                let prefix = self.prefixes[family.index()].prefix(idx);
                let filtered = self.rejection_by_filter(peer, &prefix);
                let own: Vec<u32> = self
                    .paths_of(family, idx)
                    .filter(|at| self.paths[*at].peer == peer)
                    .collect();
                for at in own {
                    let path = self.paths[at];
                    let attrs = self.attrs.expand(path.attr);
                    let rejection = self
                        .rejection_by_attributes(peer, &session, &attrs)
                        .or(filtered);
                    let stale = path.flags & STALE;
                    let flags = rejection.map_or(0, |r| r as u8);
                    self.replace_path(family, idx, at, path.attr, flags);
                    self.paths[at].flags |= stale;
                    self.peers[usize::from(peer.0)].counts[family.index()].stale +=
                        u32::from(stale != 0);
                    if flags != path.flags & REJECTION {
                        self.mark(family, idx);
                    }
                }
            }
        }
    }

    /// Marks a peer's paths stale (RFC 4724 section 4.2). What was stale before stays so: whether it may is the session's to
    /// say, by DropStale.
    pub(crate) fn make_stale(&mut self, peer: PeerIdx, families: FamilySet) {
        for family in families.iter() {
            for idx in self.prefixes_of(peer, family) {
                let own: Vec<u32> = self
                    .paths_of(family, idx)
                    .filter(|at| self.paths[*at].peer == peer)
                    .filter(|at| self.paths[*at].flags & STALE == 0)
                    .collect();
                for at in own {
                    self.paths[at].flags |= STALE;
                    self.peers[usize::from(peer.0)].counts[family.index()].stale += 1;
                }
            }
        }
    }

    /// A peer's stale paths become a last resort: they get the community LLGR_STALE; those with NO_LLGR go (RFC 9494
    /// section 4.2).
    pub(crate) fn make_long_lived(&mut self, peer: PeerIdx, families: FamilySet) {
        for family in families.iter() {
            for idx in self.prefixes_of(peer, family) {
                let own: Vec<u32> = self
                    .paths_of(family, idx)
                    .filter(|at| self.paths[*at].peer == peer && self.paths[*at].flags & STALE != 0)
                    .collect();
                let mut gone = Vec::new();
                for at in own {
                    let path = self.paths[at];
                    let attr = self.attrs.get(path.attr);
                    if attr.no_llgr() {
                        gone.push(path.path_id);
                    } else if !attr.llgr_stale() {
                        self.mark_long_lived(family, idx, at);
                    }
                }
                if !gone.is_empty() {
                    let goes = |p: &Path| p.peer == peer && gone.contains(&p.path_id);
                    self.take_paths(family, idx, goes);
                }
            }
        }
    }

    fn mark_long_lived(&mut self, family: Family, idx: PrefixIdx, at: u32) {
        let path = self.paths[at];
        let mut attrs = self.attrs.expand(path.attr);
        let communities = attrs.communities.iter().copied();
        attrs.communities = communities.chain([LLGR_STALE_COMMUNITY]).collect();
        let attr = self.attrs.intern(&attrs, &mut self.next_hops);
        self.replace_path(family, idx, at, attr, path.flags);
        self.attrs.release(attr, &mut self.next_hops);
    }

    /// Removes a peer's stale paths.
    pub(crate) fn drop_stale(&mut self, peer: PeerIdx, families: FamilySet) {
        for family in families.iter() {
            let Some(known) = self.peers.get(usize::from(peer.0)) else {
                return;
            };
            if known.counts[family.index()].stale == 0 {
                continue;
            }
            for idx in self.prefixes_of(peer, family) {
                self.take_paths(family, idx, |p| p.peer == peer && p.flags & STALE != 0);
            }
        }
    }

    /// Removes all of a peer's paths in some families.
    pub(crate) fn drop_all(&mut self, peer: PeerIdx, families: FamilySet) {
        for family in families.iter() {
            for idx in self.prefixes_of(peer, family) {
                self.take_paths(family, idx, |p| p.peer == peer);
            }
        }
    }

    /// Originates what is configured, and no longer what was.
    pub(crate) fn originate(&mut self, old: &[Prefix], new: &[Prefix]) {
        let before: HashSet<&Prefix> = old.iter().collect();
        let now: HashSet<&Prefix> = new.iter().collect();
        for prefix in old.iter().filter(|p| !now.contains(p)) {
            let family = prefix.family();
            if let Some(idx) = self.prefixes[family.index()].find(prefix) {
                self.take_paths(family, idx, |p| p.peer == LOCAL);
            }
        }
        for prefix in new.iter().filter(|p| !before.contains(p)) {
            let family = prefix.family();
            let nowhere = match family {
                Family::Ipv4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
                Family::Ipv6 => std::net::IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED),
            };
            let attrs = PathAttributes::local(nowhere.into());
            let attr = self.attrs.intern(&attrs, &mut self.next_hops);
            self.put_path(family, prefix, LOCAL, 0, attr, None);
            self.attrs.release(attr, &mut self.next_hops);
        }
    }
}
