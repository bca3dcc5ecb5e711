//! The work: decisions, the kernel's routes, the groups' logs and dumps; in slices.

use smallvec::SmallVec;

use super::{
    Rib, RibOutput, RouteChange, RouteOrigin,
    adj_rib_in::STALE,
    attrs::AttrId,
    decision::{self, Candidate, Candidates, Decision},
    group::Tables,
    loc_rib::RouteSetId,
    prefixes::{BEST, DIRTY, NONE, PrefixIdx, WITHDRAWN},
    source_of,
};
use crate::{
    clock::{Now, earlier},
    ids::{Family, PeerIdx},
    wire::attr::NextHop,
};

/// How long a large dump is kept for further joiners.
const KEEP_DUMP: std::time::Duration = std::time::Duration::from_secs(1);

/// Prefixes decided between two writes to the logs: enough to pack well, few enough to be held.
const BATCH: usize = 16 << 10;

impl Rib {
    /// Works on `budget` prefixes, or a few more, and appends what follows to `out`. Says whether there is more to do now;
    /// if not, it is to be called again after the next [`Rib::apply`] or at [`Rib::deadline`].
    pub fn poll(&mut self, now: Now, budget: usize, out: &mut Vec<RibOutput>) -> bool {
        let budget = budget.max(1);
        self.polled = now;
        out.append(&mut self.to_say);
        let searched = self.search_paths(budget.div_ceil(2));
        let decided = self.decide_some(budget.saturating_sub(searched).max(1), out);
        self.next_hops.flush(out);
        if self.dirty.is_empty() {
            for idx in std::mem::take(&mut self.reidentified) {
                self.peers[usize::from(idx.0)].reidentified = false;
            }
        }
        self.check_sync(now, out);
        // Joiners get on under any load.
        let rest = budget
            .saturating_sub(searched + decided)
            .max(budget.div_ceil(4));
        self.serve_joiners(now, rest, out);
        for group in self.groups.iter_mut().flatten() {
            group.retire_unused(now, KEEP_DUMP, out);
        }
        out.append(&mut self.to_say);
        self.has_work()
    }

    fn has_work(&self) -> bool {
        let mut groups = self.groups.iter().flatten();
        !self.dirty.is_empty()
            || self.search.is_some()
            || self.next_hops.has_changes()
            || groups.any(|g| g.is_dumping() || !g.joiners.is_empty())
    }

    /// When to poll again at the latest.
    pub fn deadline(&self) -> Option<Now> {
        let dumps = self
            .groups
            .iter()
            .flatten()
            .filter_map(|g| g.retire_at(KEEP_DUMP))
            .min();
        earlier(dumps, self.sync.deadline(self.polled))
    }

    /// Marks the prefixes that have paths by next hops which have changed.
    fn search_paths(&mut self, budget: usize) -> usize {
        if self.search.is_none() && self.next_hops.has_changes() {
            self.next_hops.begin_search();
            self.search = Some((0, 0));
        }
        let Some((mut at, mut idx)) = self.search.take() else {
            return 0;
        };
        let mut work = 0;
        while let Some(&family) = Family::ALL.get(at) {
            if idx >= self.prefixes[at].end() {
                (at, idx) = (at + 1, 0);
                continue;
            }
            if work >= budget {
                self.search = Some((at, idx));
                return work;
            }
            work += 1;
            let sought = self.prefixes[at].is_used(idx)
                && self.paths_of(family, idx).any(|p| {
                    let attr = self.attrs.get(self.paths[p].attr);
                    self.next_hops.is_sought(attr.next_hop)
                });
            if sought {
                self.mark(family, idx);
            }
            idx += 1;
        }
        self.searches_done += 1;
        self.sync.search_done(self.searches_done, self.marked);
        for group in self.groups.iter_mut().flatten() {
            group.search_done(self.searches_done, self.marked);
        }
        work
    }

    fn decide_some(&mut self, budget: usize, out: &mut Vec<RibOutput>) -> usize {
        let mut done = 0;
        let mut routes = Vec::new();
        let mut emptied = Vec::new();
        while done < budget && !self.dirty.is_empty() {
            for _ in 0..BATCH.min(budget - done) {
                let Some(next) = self.dirty.pop_front() else {
                    break;
                };
                let family = Family::ALL[(next & 1) as usize];
                self.decide_one(family, next >> 1, &mut routes);
                if self.prefixes[family.index()].entry(next >> 1).first == NONE {
                    emptied.push((family, next >> 1));
                }
                done += 1;
            }
            self.flush_groups(out);
            for (family, idx) in emptied.drain(..) {
                self.free_if_unused(family, idx);
            }
        }
        if self.dirty.is_empty() && self.dirty.capacity() > BATCH {
            self.dirty = Default::default();
        }
        if !routes.is_empty() {
            self.version += 1;
            out.push(RibOutput::Routes(routes));
        }
        done
    }

    fn flush_groups(&mut self, out: &mut Vec<RibOutput>) {
        let Rib {
            peers,
            groups,
            prefixes,
            paths,
            attrs,
            next_hops,
            packer,
            ..
        } = self;
        let tables = Tables {
            prefixes,
            paths,
            attrs,
            next_hops,
            source: &|peer| source_of(peers, peer),
            is_in: &|_, _| false,
        };
        for group in groups.iter_mut().flatten() {
            group.flush(packer, &tables, out);
        }
    }

    /// Decides one prefix and tells groups and kernel.
    fn decide_one(&mut self, family: Family, idx: PrefixIdx, routes: &mut Vec<RouteChange>) {
        let entry = *self.prefixes[family.index()].entry(idx);
        let old_best = (entry.is(BEST)).then(|| self.paths[entry.first].peer);
        let decision = self.decision(family, idx);
        let best = decision.as_ref().map(|d| d.best.path);
        if let Some(best) = best {
            self.move_to_front(family, idx, best);
        }
        let route = match &decision {
            Some(d) => self.route_set(d),
            None => NONE,
        };
        let entry = self.prefixes[family.index()].entry_mut(idx);
        entry.set(DIRTY, false);
        entry.set(BEST, best.is_some());
        let old_route = std::mem::replace(&mut entry.route, route);
        if route != old_route {
            routes.push(RouteChange {
                prefix: self.prefixes[family.index()].prefix(idx),
                set: (route != NONE).then(|| self.route_sets.get(route).clone()),
            });
        }
        if old_route != NONE {
            self.route_sets.release(old_route);
        }
        let best = best.map(|at| (self.paths[at].attr, self.paths[at].peer));
        self.count_best(family, old_best, best.map(|b| b.1));
        self.tell_groups(family, idx, best);
    }

    fn count_best(&mut self, family: Family, old: Option<PeerIdx>, new: Option<PeerIdx>) {
        for (peer, change) in [(old, -1i32), (new, 1)] {
            let peer = peer.and_then(|p| self.peers.get_mut(usize::from(p.0)));
            if let Some(peer) = peer {
                let best = &mut peer.counts[family.index()].best;
                *best = best.wrapping_add_signed(change);
            }
        }
    }

    fn tell_groups(&mut self, family: Family, idx: PrefixIdx, best: Option<(AttrId, PeerIdx)>) {
        let Rib {
            peers,
            groups,
            prefixes,
            paths,
            attrs,
            next_hops,
            ..
        } = self;
        let peers: &[super::Peer] = peers;
        let known = |peer: PeerIdx| peers.get(usize::from(peer.0));
        let reidentified = best.is_some_and(|(_, p)| known(p).is_some_and(|p| p.reidentified));
        let mut withdrawn = false;
        let mut tables = Tables {
            prefixes,
            paths,
            attrs,
            next_hops,
            source: &|peer| source_of(peers, peer),
            is_in: &|peer, place| known(peer).is_some_and(|p| p.group == Some(place)),
        };
        for (place, group) in groups.iter_mut().enumerate() {
            if let Some(group) = group {
                withdrawn |= group.update(place, family, idx, best, reidentified, &mut tables);
            }
        }
        if withdrawn {
            prefixes[family.index()].entry_mut(idx).set(WITHDRAWN, true);
        }
    }

    fn move_to_front(&mut self, family: Family, idx: PrefixIdx, best: u32) {
        let entry = self.prefixes[family.index()].entry_mut(idx);
        let first = entry.first;
        if first == best {
            return;
        }
        entry.first = best;
        let mut at = first;
        while at != NONE {
            let next = self.paths[at].next;
            if next == best {
                self.paths[at].next = self.paths[best].next;
                break;
            }
            at = next;
        }
        self.paths[best].next = first;
    }

    /// The best path of a prefix as of now.
    pub(crate) fn decision(&self, family: Family, idx: PrefixIdx) -> Option<Decision> {
        let entry = *self.prefixes[family.index()].entry(idx);
        let mut set = Candidates::new();
        let mut at = entry.first;
        while at != NONE {
            let path = self.paths[at];
            if path.flags & !STALE == 0 {
                let incumbent = entry.is(BEST) && at == entry.first;
                set.extend(self.candidate(at, incumbent));
            }
            at = path.next;
        }
        decision::decide(set)
    }

    fn candidate(&self, at: u32, incumbent: bool) -> Option<Candidate> {
        let path = &self.paths[at];
        let attr = self.attrs.get(path.attr);
        let metric = self.next_hops.metric(attr.next_hop)?;
        let identity = self.identity(path.peer);
        let origin_kind = match identity {
            None => RouteOrigin::Local,
            Some(i) if i.internal => RouteOrigin::Ibgp,
            Some(_) => RouteOrigin::Ebgp,
        };
        let router_id = match attr.originator {
            0 => identity.map_or(0, |i| i.router_id.0),
            originator => originator,
        };
        Some(Candidate {
            path: at,
            llgr_stale: attr.llgr_stale(),
            origin_kind,
            local_pref: attr.local_pref,
            as_path_len: attr.as_path_len,
            origin: attr.origin(),
            med: attr.med,
            neighbor_as: attr.neighbor_as,
            metric,
            incumbent,
            router_id,
            cluster_len: attr.cluster_len,
            peer_address: identity.map_or(std::net::Ipv4Addr::UNSPECIFIED.into(), |i| i.address),
            path_id: path.path_id,
            next_hop: attr.next_hop,
        })
    }

    /// The paths that are used: the best one, and as many equal ones as are allowed, in the order of preference.
    pub(crate) fn multipath<'a>(
        &self,
        decision: &'a Decision,
    ) -> impl Iterator<Item = &'a Candidate> + use<'a> {
        let most = usize::from(self.config.maximum_paths.max(1));
        let mut equal: SmallVec<[&Candidate; 4]> = decision.equal.iter().collect();
        if equal.len() > most {
            equal.sort_by_key(|c| {
                let best = c.path == decision.best.path;
                (!best, c.router_id, c.cluster_len, c.peer_address, c.path_id)
            });
            equal.truncate(most);
        }
        equal.into_iter()
    }

    fn route_set(&mut self, decision: &Decision) -> RouteSetId {
        let mut next_hops: SmallVec<[NextHop; 4]> = SmallVec::new();
        let origin = decision.best.origin_kind;
        if origin != RouteOrigin::Local {
            next_hops.extend(
                self.multipath(decision)
                    .map(|c| *self.next_hops.get(c.next_hop)),
            );
            next_hops.sort_unstable();
            next_hops.dedup();
        }
        self.route_sets.intern(origin, &next_hops)
    }

    /// Lets joiners begin and writes dumps.
    fn serve_joiners(&mut self, now: Now, budget: usize, out: &mut Vec<RibOutput>) {
        let held = self.sync.held();
        let decided = self.decided();
        let mut left = budget;
        for place in 0..self.groups.len() {
            let Some(mut group) = self.groups.get_mut(place).and_then(Option::take) else {
                continue;
            };
            let mut unpin = Vec::new();
            loop {
                if !group.joiners.is_empty() {
                    let had_dump = group.is_dumping();
                    let joined = group.admit(now, decided, held, &mut self.next_dump, out);
                    // The dump holds one pin for all that come from another group by it.
                    let from = group.dump_from().filter(|_| !had_dump);
                    let mut pins = joined.iter().filter_map(|j| j.from);
                    if from.is_some() {
                        pins.next();
                    }
                    unpin.extend(pins);
                }
                if !group.is_dumping() || left == 0 {
                    break;
                }
                let from = group.dump_from();
                left = left.saturating_sub(self.dump_more(&mut group, left, out).max(1));
                if !group.is_dumping() {
                    unpin.extend(from);
                }
            }
            let remembered = std::mem::take(&mut group.remembered);
            self.groups[place] = Some(group);
            for (family, idx) in remembered {
                self.prefixes[family.index()]
                    .entry_mut(idx)
                    .set(WITHDRAWN, true);
            }
            for from in unpin {
                self.unpin(from);
            }
        }
        for idx in std::mem::take(&mut self.regroup_later) {
            self.regroup(idx);
        }
    }

    fn dump_more(
        &mut self,
        group: &mut super::Group,
        budget: usize,
        out: &mut Vec<RibOutput>,
    ) -> usize {
        let Rib {
            peers,
            groups,
            prefixes,
            paths,
            attrs,
            next_hops,
            packer,
            ..
        } = self;
        let from = group
            .dump_from()
            .and_then(|place| groups.get(place)?.as_deref())
            .map(|g| &g.out);
        let mut tables = Tables {
            prefixes,
            paths,
            attrs,
            next_hops,
            source: &|peer| source_of(peers, peer),
            is_in: &|_, _| false,
        };
        group.dump_more(budget, from, packer, &mut tables, out)
    }
}
