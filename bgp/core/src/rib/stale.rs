//! Sessions that come and go: what stays of a peer's routes meanwhile (RFC 4724), and its place in an update group.

use std::sync::Arc;

use super::{
    LOCAL, Rib, RibOutput,
    group::{Group, Joiner},
    peers::{Identity, Peer},
    prefixes::{PrefixIdx, WITHDRAWN},
    reflect::View,
};
use crate::{
    clock::Now,
    event::{FromPeer, Negotiated, PeerEvent},
    filter::FilterChain,
    ids::{Epoch, Family, FamilySet, GroupId, PeerIdx},
};

impl Rib {
    /// Takes an event of a session. One of a session that is no more is ignored.
    pub(crate) fn event(&mut self, now: Now, from: FromPeer) {
        let FromPeer { peer, epoch, event } = from;
        if let PeerEvent::Up(session) = event {
            return self.up(now, peer, epoch, session);
        }
        let Some(known) = self.peers.get_mut(usize::from(peer.0)) else {
            return;
        };
        // Stale routes are dropped after their session, by whatever session is the latest one.
        if let PeerEvent::DropStale(families) = event {
            if known.epoch.is_none_or(|e| e <= epoch) {
                self.drop_stale(peer, families);
            }
            return;
        }
        if let PeerEvent::Unanswered = event {
            if let Some(config) = &known.config {
                self.sync.unanswered(&config.key);
            }
            return;
        }
        if let PeerEvent::LongLived(families) = event {
            if known.epoch.is_none_or(|e| e <= epoch) {
                self.make_long_lived(peer, families);
            }
            return;
        }
        if !known.is_up_in(epoch) {
            return;
        }
        match event {
            PeerEvent::Reach { attrs, nlri } => self.reach(peer, &attrs, &nlri),
            PeerEvent::Unreach(nlri) => self.unreach(peer, &nlri),
            PeerEvent::EndOfRib(family) => {
                known.end_of_rib.insert(family);
                if let Some(config) = &known.config {
                    self.sync.end_of_rib(&config.key, family);
                }
                self.drop_stale(peer, FamilySet::from_iter([family]));
            }
            PeerEvent::Refresh(_) => self.send_again(peer),
            PeerEvent::Down { keep_stale, .. } => self.down(peer, keep_stale),
            PeerEvent::Up(_)
            | PeerEvent::LongLived(_)
            | PeerEvent::DropStale(_)
            | PeerEvent::Unanswered => {}
        }
    }

    fn up(&mut self, now: Now, idx: PeerIdx, epoch: Epoch, session: Arc<Negotiated>) {
        let Some(peer) = self.peers.get(usize::from(idx.0)) else {
            return;
        };
        let Some(config) = peer.config.clone() else {
            return;
        };
        if peer.epoch.is_some_and(|e| e >= epoch) {
            return;
        }
        if peer.session.is_some() {
            self.down(idx, FamilySet::NONE);
        }
        let identity = Identity {
            internal: session.internal,
            router_id: session.peer_id,
            address: session.peer_addr,
        };
        // Stale routes are those of the peer as it was: another one has none.
        let before = self.peers[usize::from(idx.0)].identity;
        if before.is_some_and(|b| b != identity) {
            self.drop_all(idx, FamilySet::ALL);
            if !self.dirty.is_empty() {
                self.peers[usize::from(idx.0)].reidentified = true;
                self.reidentified.push(idx);
            }
        }
        let gone = Family::ALL
            .into_iter()
            .filter(|f| !session.families.contains(*f));
        self.drop_all(idx, gone.collect());
        let peer = &mut self.peers[usize::from(idx.0)];
        peer.import = FilterChain::new(&config.import, config.require_policy, !session.internal);
        peer.identity = Some(identity);
        peer.epoch = Some(epoch);
        peer.last = Some(session.clone());
        peer.session = Some(session.clone());
        peer.end_of_rib = FamilySet::NONE;
        peer.too_many = false;
        peer.warned = FamilySet::NONE;
        peer.up_at = now;
        self.sync.up(now, (idx, epoch), &config.key, &session);
        self.regroup(idx);
    }

    fn down(&mut self, idx: PeerIdx, keep_stale: FamilySet) {
        let peer = &mut self.peers[usize::from(idx.0)];
        peer.session = None;
        peer.end_of_rib = FamilySet::NONE;
        let gone = Family::ALL.into_iter().filter(|f| !keep_stale.contains(*f));
        self.drop_all(idx, gone.collect());
        self.make_stale(idx, keep_stale);
        self.leave(idx);
    }

    /// Frees the place of a peer. Only what describes announcements that are yet to be taken back stays until the next
    /// poll has done so: whose routes they were.
    pub(crate) fn peer_gone(&mut self, idx: PeerIdx) {
        let Some(peer) = self.peers.get(usize::from(idx.0)) else {
            return;
        };
        if peer.session.is_some() {
            self.down(idx, FamilySet::NONE);
        }
        self.drop_all(idx, FamilySet::ALL);
        let peer = &mut self.peers[usize::from(idx.0)];
        *peer = Peer {
            identity: peer.identity,
            reidentified: peer.reidentified,
            ..Peer::default()
        };
    }

    /// Puts a peer into the group that its settings and session ask for.
    pub(crate) fn regroup(&mut self, idx: PeerIdx) {
        let Some(peer) = self.peers.get(usize::from(idx.0)) else {
            return;
        };
        let (Some(session), Some(config)) = (&peer.session, &peer.config) else {
            return;
        };
        let view = View::new(&self.config, config, session);
        let before = peer.group;
        let present = before.and_then(|at| self.groups.get(at)?.as_ref());
        if present.is_some_and(|g| g.view == view) {
            return;
        }
        if present.is_some_and(|g| g.is_in_private_dump(idx)) {
            // Only when that dump is written, the group knows all that the peer may have.
            self.regroup_later.push(idx);
            return;
        }
        let to = self.group_with(view);
        // One that has not begun its stream in the present group has routes of the group before, or none.
        let waiting = before
            .and_then(|at| self.groups.get(at)?.as_ref())
            .and_then(|g| g.joiners.iter().find(|j| j.peer == idx));
        let from = match waiting {
            Some(joiner) => joiner.from,
            None => before,
        };
        self.join(idx, to, from);
        if let Some(from) = before {
            if let Some(group) = self.group_mut(from) {
                group.members -= 1;
            }
            self.forget_joiners(from, idx);
            self.free_group_if_unused(from);
        }
    }

    /// Sends a peer the whole table again.
    pub(crate) fn send_again(&mut self, idx: PeerIdx) {
        let group = self.peers.get(usize::from(idx.0)).and_then(|p| p.group);
        let Some(place) = group else { return };
        let waits = self
            .group_mut(place)
            .is_some_and(|g| g.joiners.iter().any(|j| j.peer == idx));
        if !waits {
            self.join(idx, place, Some(place));
            if let Some(group) = self.group_mut(place) {
                group.members -= 1;
            }
        }
    }

    fn join(&mut self, idx: PeerIdx, place: usize, from: Option<usize>) {
        let known = self.mark_of_now();
        let Some(peer) = self.peers.get_mut(usize::from(idx.0)) else {
            return;
        };
        let Some(epoch) = peer.epoch else { return };
        peer.group = Some(place);
        let Some(Some(group)) = self.groups.get_mut(place) else {
            return;
        };
        group.members += 1;
        group.joiners.push(Joiner {
            peer: idx,
            epoch,
            known,
            from,
        });
        if let Some(from) = from.and_then(|at| self.group_mut(at)) {
            from.pins += 1;
        }
    }

    fn leave(&mut self, idx: PeerIdx) {
        let Some(place) = self
            .peers
            .get_mut(usize::from(idx.0))
            .and_then(|p| p.group.take())
        else {
            return;
        };
        self.forget_joiners(place, idx);
        if let Some(group) = self.group_mut(place) {
            group.members -= 1;
        }
        self.free_group_if_unused(place);
    }

    fn forget_joiners(&mut self, place: usize, idx: PeerIdx) {
        let Some(group) = self.group_mut(place) else {
            return;
        };
        group.end_of_rib_is_moot(idx);
        let gone: Vec<Joiner> = group.joiners.extract_if(.., |j| j.peer == idx).collect();
        for from in gone.iter().filter_map(|j| j.from) {
            self.unpin(from);
        }
    }

    /// A joiner or a dump no longer looks at this group's table.
    pub(crate) fn unpin(&mut self, place: usize) {
        if let Some(group) = self.group_mut(place) {
            group.pins -= 1;
        }
        self.free_group_if_unused(place);
    }

    fn group_with(&mut self, view: View) -> usize {
        let same = |g: &Option<Box<Group>>| g.as_ref().is_some_and(|g| g.view == view);
        if let Some(place) = self.groups.iter().position(same) {
            return place;
        }
        let group = Some(Box::new(Group::new(
            GroupId(self.next_group),
            view,
            self.short_log,
        )));
        self.next_group += 1;
        match self.groups.iter().position(Option::is_none) {
            Some(free) => {
                self.groups[free] = group;
                free
            }
            None => {
                self.groups.push(group);
                self.groups.len() - 1
            }
        }
    }

    pub(crate) fn group_mut(&mut self, place: usize) -> Option<&mut Group> {
        self.groups.get_mut(place)?.as_deref_mut()
    }

    fn free_group_if_unused(&mut self, place: usize) {
        let unused = self
            .group_mut(place)
            .is_some_and(|g| g.members == 0 && g.pins == 0);
        if !unused {
            return;
        }
        let Some(mut group) = self.groups.get_mut(place).and_then(Option::take) else {
            return;
        };
        let from = group.dump_from();
        let forgotten = group.clear(&mut self.attrs, &mut self.next_hops);
        self.to_say.push(RibOutput::GroupGone(group.id));
        self.forget_withdrawn(forgotten);
        if let Some(from) = from {
            self.unpin(from);
        }
    }

    /// All members of a group are past `log`.
    pub(crate) fn sweep(&mut self, group: GroupId, log: u64) {
        let mut groups = self.groups.iter_mut().flatten();
        if let Some(group) = groups.find(|g| g.id == group) {
            let forgotten = group.sweep(log);
            self.forget_withdrawn(forgotten);
        }
    }

    /// A group no longer remembers these withdrawals; where no other does, the prefix is free.
    fn forget_withdrawn(&mut self, forgotten: Vec<(Family, PrefixIdx)>) {
        for (family, idx) in forgotten {
            let withdrew = |g: &Group| g.out.get(family, idx).attr == super::adj_rib_out::WITHDREW;
            if !self.groups.iter().flatten().any(|g| withdrew(g)) {
                self.prefixes[family.index()]
                    .entry_mut(idx)
                    .set(WITHDRAWN, false);
                self.free_if_unused(family, idx);
            }
        }
    }

    /// Who a path's peer is, for the decision.
    pub(crate) fn identity(&self, peer: PeerIdx) -> Option<&Identity> {
        if peer == LOCAL {
            return None;
        }
        self.peers.get(usize::from(peer.0))?.identity.as_ref()
    }
}
