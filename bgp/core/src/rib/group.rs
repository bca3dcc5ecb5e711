//! Update groups: peers that see us in the same way are sent the same bytes, written once.
//!
//! ```text
//!   dirty prefix ─► Group::update ─► log ─────────────┐
//!                                                     ├─► each member: its dump, then the log from where the dump began
//!   joiners ─► dump (the table, read piece by piece) ─┘
//! ```
//! A dump begins at a place of the log and may already hold what the log says later: read one after the other they end at
//! the table. Whoever joins while the log is still short against the dump plays the same dump, so that the work of writing
//! dumps is in proportion to the work of writing the log.
//!
//! A group's table is filled by its first dump: up to there [`Group::built`] says how far it is.

use std::collections::{BTreeSet, HashSet};

use super::{
    DumpId, RibOutput,
    adj_rib_in::Path,
    adj_rib_out::{AdjRibOut, Changes, Listed, NOTHING, Packer, Sent, WITHDREW},
    arena::Arena,
    attrs::{AttrId, Attrs},
    nexthop::NextHops,
    prefixes::{BEST, PrefixIdx, Prefixes},
    reflect::{Source, View},
    sync::Mark,
};
use crate::{
    clock::Now,
    ids::{Epoch, Family, FamilySet, GroupId, PeerIdx},
};

/// A log that is shorter than this, in octets, does not outdate a dump.
pub(crate) const SHORT_LOG: u64 = 64 << 10;
/// A dump larger than this is not kept for joiners who do not come.
pub(crate) const LARGE_DUMP: u64 = 256 << 10;

/// A peer that has yet to begin its stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joiner {
    pub(crate) peer: PeerIdx,
    pub(crate) epoch: Epoch,
    /// What was known at the join: all of it has to be decided first, so that it comes before End-of-RIB.
    pub(crate) known: Mark,
    /// It has been sent routes in this session, as a member of the group in this place: what it may still have of them
    /// and should not is withdrawn.
    pub(crate) from: Option<usize>,
}

/// A dump in the making.
struct Dump {
    id: DumpId,
    /// For these only (sorted), who come from that group; otherwise for all who join.
    private: Option<(Vec<PeerIdx>, usize)>,
    family: usize,
    cursor: PrefixIdx,
    log: u64,
}

/// The dump that joiners are given.
struct Latest {
    id: DumpId,
    /// Octets logged before it.
    logged: u64,
    octets: u64,
    complete: bool,
    used: Now,
}

pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) view: View,
    pub(crate) members: u32,
    /// Dumps and joiners that look at this group's table as the one they come from.
    pub(crate) pins: u32,
    pub(crate) out: AdjRibOut,
    /// Prefixes below are in the table; those from here on will be when the first dump gets there.
    built: [PrefixIdx; 2],
    pub(crate) joiners: Vec<Joiner>,
    changes: [Changes; 2],
    dump: Option<Dump>,
    latest: Option<Latest>,
    /// [`SHORT_LOG`], or less where a test shall see dumps that are outdated.
    short_log: u64,
    /// Peers that may not join by the latest dump, because of what the log says since that dump began: it has an End-of-RIB
    /// for them (or for an earlier peer in their place), or it announces a route of theirs, which they are not told of,
    /// instead of one that the dump holds.
    not_by_latest: HashSet<PeerIdx>,
    log_seq: u64,
    logged: u64,
    /// Withdrawn prefixes that are remembered: those of [`Listed::BeforeMark`], and those of [`Listed::SinceMark`]. A prefix
    /// whose withdrawals are on both sides of the mark is in both.
    withdrawn: [Vec<(Family, PrefixIdx)>; 2],
    /// The sweep mark: the length of the log at the last sweep.
    sweep_at: u64,
    /// Members whose End-of-RIB waits for the first synchronisation, by [`Family::index`].
    end_of_rib_to: [BTreeSet<PeerIdx>; 2],
    /// Prefixes that came to be remembered by a dump.
    pub(crate) remembered: Vec<(Family, PrefixIdx)>,
}

/// The tables that a group reads.
pub(crate) struct Tables<'a> {
    pub(crate) prefixes: &'a [Prefixes; 2],
    pub(crate) paths: &'a Arena<Path>,
    pub(crate) attrs: &'a mut Attrs,
    pub(crate) next_hops: &'a mut NextHops,
    pub(crate) source: &'a dyn Fn(PeerIdx) -> Source,
    /// Whether a peer is in the group in this place.
    pub(crate) is_in: &'a dyn Fn(PeerIdx, usize) -> bool,
}

impl Group {
    /// An empty group. A log of up to `short_log` octets does not outdate a dump.
    pub(crate) fn new(id: GroupId, view: View, short_log: u64) -> Group {
        Group {
            id,
            view,
            members: 0,
            pins: 0,
            out: AdjRibOut::new(),
            built: [0; 2],
            joiners: Vec::new(),
            changes: Default::default(),
            dump: None,
            latest: None,
            short_log,
            not_by_latest: HashSet::new(),
            log_seq: 0,
            logged: 0,
            withdrawn: Default::default(),
            sweep_at: 0,
            end_of_rib_to: Default::default(),
            remembered: Vec::new(),
        }
    }

    /// A prefix has been decided. `reidentified`: what was sent for it is of a peer that is now another one.
    /// Says whether the group has to remember a withdrawal.
    pub(crate) fn update(
        &mut self,
        place: usize,
        family: Family,
        idx: PrefixIdx,
        best: Option<(AttrId, PeerIdx)>,
        reidentified: bool,
        tables: &mut Tables<'_>,
    ) -> bool {
        if idx >= self.built[family.index()] {
            return false;
        }
        let new = self.allowed(family, best, tables);
        let old = self.out.get(family, idx);
        if old.announced() == new && !reidentified {
            return false;
        }
        match (old.announced(), new) {
            (None, None) => false,
            (Some((attr, _)), None) => {
                self.changes[family.index()].withdraw(idx);
                self.note_withdrawn(family, idx);
                tables.attrs.release(attr, tables.next_hops);
                true
            }
            (before, Some((attr, source))) => {
                let changes = &mut self.changes[family.index()];
                changes.announce(source, attr, idx);
                if before.is_some_and(|(_, s)| s != source) {
                    if (tables.is_in)(source, place) {
                        changes.withdraw_from(source, idx);
                    } else if self.latest.is_some() {
                        self.not_by_latest.insert(source);
                    }
                }
                self.out.set(
                    family,
                    idx,
                    Sent {
                        attr,
                        source,
                        listed: old.listed,
                    },
                );
                tables.attrs.retain(attr);
                if let Some((attr, _)) = before {
                    tables.attrs.release(attr, tables.next_hops);
                }
                false
            }
        }
    }

    /// A withdrawal is on its way to the members. The prefix is remembered until two sweeps after that: members that have
    /// not read the withdrawal, and are given a private dump instead of it, are told there.
    fn note_withdrawn(&mut self, family: Family, idx: PrefixIdx) {
        let sent = Sent {
            attr: WITHDREW,
            source: PeerIdx(0),
            listed: Listed::SinceMark,
        };
        let before = self.out.set(family, idx, sent);
        if before.listed != Listed::SinceMark {
            self.withdrawn[1].push((family, idx));
        }
    }

    fn allowed(
        &self,
        family: Family,
        best: Option<(AttrId, PeerIdx)>,
        tables: &Tables<'_>,
    ) -> Option<(AttrId, PeerIdx)> {
        best.filter(|(attr, peer)| {
            self.view
                .announces(family, (tables.source)(*peer), tables.attrs.get(*attr))
        })
    }

    /// Writes what has changed to the log.
    pub(crate) fn flush(
        &mut self,
        packer: &mut Packer,
        tables: &Tables<'_>,
        out: &mut Vec<RibOutput>,
    ) {
        for family in Family::ALL {
            let changes = &mut self.changes[family.index()];
            if changes.is_empty() {
                continue;
            }
            let (group, seq, logged) = (self.id, &mut self.log_seq, &mut self.logged);
            packer.pack(
                family,
                &self.view,
                &tables.prefixes[family.index()],
                tables.attrs,
                tables.source,
                changes,
                &mut |chunk| {
                    *seq += 1;
                    *logged += chunk.bytes.len() as u64;
                    out.push(RibOutput::Log { group, chunk });
                },
            );
        }
        if let Some(latest) = &self.latest
            && latest.complete
            && !latest.is_fresh(self.logged, self.short_log)
        {
            self.retire(out);
        }
    }

    fn retire(&mut self, out: &mut Vec<RibOutput>) {
        if let Some(latest) = self.latest.take() {
            out.push(RibOutput::DumpRetired(latest.id));
        }
    }

    /// When the latest dump, if it is a large one, is given up unless somebody joins.
    pub(crate) fn retire_at(&self, keep: std::time::Duration) -> Option<Now> {
        let latest = self.latest.as_ref()?;
        (latest.complete && latest.octets > LARGE_DUMP).then(|| latest.used + keep)
    }

    /// Gives the latest dump up if its time is over.
    pub(crate) fn retire_unused(
        &mut self,
        now: Now,
        keep: std::time::Duration,
        out: &mut Vec<RibOutput>,
    ) {
        if self.retire_at(keep).is_some_and(|at| at <= now) {
            self.retire(out);
        }
    }

    /// Lets those joiners begin who may: `decided` prefixes have been decided so far. In the families of `held` their
    /// End-of-RIB waits for [`Group::say_end_of_rib`]. Gives them back.
    pub(crate) fn admit(
        &mut self,
        now: Now,
        decided: u64,
        held: FamilySet,
        next_dump: &mut u64,
        out: &mut Vec<RibOutput>,
    ) -> Vec<Joiner> {
        let mut joined = Vec::new();
        if let Some(latest) = &mut self.latest
            && latest.is_fresh(self.logged, self.short_log)
        {
            joined.extend(self.joiners.extract_if(.., |j| {
                j.known.is_decided(decided)
                    && j.from.is_none()
                    && !self.not_by_latest.contains(&j.peer)
            }));
            if !joined.is_empty() {
                latest.used = now;
                let id = latest.id;
                self.begin(&joined, id, out);
            }
        }
        if self.dump.is_none()
            && let Some(first) = self.joiners.iter().find(|j| j.known.is_decided(decided))
        {
            let from = first.from;
            let started: Vec<Joiner> = self
                .joiners
                .extract_if(.., |j| j.known.is_decided(decided) && j.from == from)
                .collect();
            let id = DumpId(*next_dump);
            *next_dump += 1;
            let log = self.log_seq;
            let mut members: Vec<PeerIdx> = started.iter().map(|j| j.peer).collect();
            members.sort_unstable();
            if from.is_none() {
                self.retire(out);
                self.not_by_latest.clear();
                self.latest = Some(Latest {
                    id,
                    logged: self.logged,
                    octets: 0,
                    complete: false,
                    used: now,
                });
            }
            self.dump = Some(Dump {
                id,
                private: from.map(|place| (members, place)),
                family: 0,
                cursor: 0,
                log,
            });
            self.begin(&started, id, out);
            joined.extend(started);
        }
        let members: BTreeSet<PeerIdx> = joined.iter().map(|j| j.peer).collect();
        for family in held.iter() {
            self.end_of_rib_to[family.index()].extend(&members);
        }
        let now = Family::ALL.into_iter().filter(|f| !held.contains(*f));
        self.log_end_of_rib(now.collect(), &members, out);
        joined
    }

    /// The first synchronisation of a family is over: the End-of-RIB that waited for it is said.
    pub(crate) fn say_end_of_rib(&mut self, family: Family, out: &mut Vec<RibOutput>) {
        let members = std::mem::take(&mut self.end_of_rib_to[family.index()]);
        self.log_end_of_rib(FamilySet::from_iter([family]), &members, out);
    }

    /// A member leaves: no End-of-RIB waits for it.
    pub(crate) fn end_of_rib_is_moot(&mut self, member: PeerIdx) {
        for waiting in &mut self.end_of_rib_to {
            waiting.remove(&member);
        }
    }

    fn log_end_of_rib(
        &mut self,
        families: FamilySet,
        members: &BTreeSet<PeerIdx>,
        out: &mut Vec<RibOutput>,
    ) {
        let families = families.and(self.view.families);
        if members.is_empty() || families.is_empty() {
            return;
        }
        self.not_by_latest.extend(members);
        self.log_seq += 1;
        out.push(RibOutput::Log {
            group: self.id,
            chunk: super::adj_rib_out::end_of_rib(families, members),
        });
    }

    fn begin(&self, joiners: &[Joiner], dump: DumpId, out: &mut Vec<RibOutput>) {
        for j in joiners {
            out.push(RibOutput::Join {
                peer: j.peer,
                epoch: j.epoch,
                group: self.id,
                dump,
            });
        }
    }

    /// Whether a dump is being written.
    pub(crate) fn is_dumping(&self) -> bool {
        self.dump.is_some()
    }

    /// Whether a peer plays a dump that is being written for members from another group.
    pub(crate) fn is_in_private_dump(&self, peer: PeerIdx) -> bool {
        let private = self.dump.as_ref().and_then(|d| d.private.as_ref());
        private.is_some_and(|(members, _)| members.binary_search(&peer).is_ok())
    }

    /// A search is over, and has marked what it found.
    pub(crate) fn search_done(&mut self, search: u64, marked: u64) {
        for joiner in &mut self.joiners {
            joiner.known.search_done(search, marked);
        }
    }

    /// Where the members of the dump being written come from.
    pub(crate) fn dump_from(&self) -> Option<usize> {
        let (_, place) = self.dump.as_ref()?.private.as_ref()?;
        Some(*place)
    }

    /// Writes more of a dump, `budget` prefixes at most, and says how many that were. `from` is the table that its players
    /// come from, if that is another group's.
    pub(crate) fn dump_more(
        &mut self,
        budget: usize,
        from: Option<&AdjRibOut>,
        packer: &mut Packer,
        tables: &mut Tables<'_>,
        out: &mut Vec<RibOutput>,
    ) -> usize {
        let Some(mut dump) = self.dump.take() else {
            return 0;
        };
        let mut work = 0;
        let mut changes = Changes::default();
        while let Some(&family) = Family::ALL.get(dump.family)
            && work < budget
        {
            let end = tables.prefixes[dump.family].end();
            let stop = end.min(dump.cursor.saturating_add((budget - work) as u32));
            work += (stop.saturating_sub(dump.cursor)) as usize;
            for idx in dump.cursor..stop {
                if idx >= self.built[dump.family] {
                    self.build(family, idx, tables);
                }
                let sent = self.out.get(family, idx);
                if let Some((attr, source)) = sent.announced() {
                    changes.announce(source, attr, idx);
                }
                if let Some((members, _)) = &dump.private {
                    let before = from.unwrap_or(&self.out).get(family, idx);
                    match sent.announced() {
                        None if before.attr != NOTHING => {
                            changes.withdraw(idx);
                            self.remember(family, idx);
                        }
                        Some((_, source)) if members.binary_search(&source).is_ok() => {
                            changes.withdraw_from(source, idx);
                        }
                        _ => {}
                    }
                }
            }
            dump.cursor = stop.max(dump.cursor);
            self.built[dump.family] = self.built[dump.family].max(dump.cursor);
            let mut octets = 0;
            packer.pack(
                family,
                &self.view,
                &tables.prefixes[dump.family],
                tables.attrs,
                tables.source,
                &mut changes,
                &mut |chunk| {
                    octets += chunk.bytes.len() as u64;
                    let dump = dump.id;
                    out.push(RibOutput::Dump { dump, chunk });
                },
            );
            if let Some(latest) = &mut self.latest
                && latest.id == dump.id
            {
                latest.octets += octets;
            }
            if dump.cursor >= end {
                self.built[dump.family] = PrefixIdx::MAX;
                dump.family += 1;
                dump.cursor = 0;
            }
        }
        if dump.family < Family::ALL.len() {
            self.dump = Some(dump);
            return work;
        }
        out.push(RibOutput::DumpEnd {
            dump: dump.id,
            log: dump.log,
        });
        if dump.private.is_some() {
            out.push(RibOutput::DumpRetired(dump.id));
        }
        let logged = self.logged;
        if let Some(latest) = &mut self.latest
            && latest.id == dump.id
        {
            latest.complete = true;
            if !latest.is_fresh(logged, self.short_log) {
                self.retire(out);
            }
        }
        work
    }

    /// A private dump withdraws a prefix, which may never have been in this table.
    fn remember(&mut self, family: Family, idx: PrefixIdx) {
        if self.out.get(family, idx).attr == NOTHING {
            self.remembered.push((family, idx));
        }
        self.note_withdrawn(family, idx);
    }

    /// Fills in one prefix as it was decided last. What else there may be to say of it follows in the log.
    fn build(&mut self, family: Family, idx: PrefixIdx, tables: &mut Tables<'_>) {
        let entry = *tables.prefixes[family.index()].entry(idx);
        if !entry.is(BEST) {
            return;
        }
        let path = &tables.paths[entry.first];
        if path.rejection().is_some() {
            return;
        }
        let best = Some((path.attr, path.peer));
        if let Some((attr, source)) = self.allowed(family, best, tables) {
            tables.attrs.retain(attr);
            self.out.set(
                family,
                idx,
                Sent {
                    attr,
                    source,
                    listed: Listed::No,
                },
            );
        }
    }

    /// All members are past `log`: forgets the prefixes whose last withdrawal was before the last mark, and makes a new
    /// mark. Gives the prefixes that are forgotten.
    pub(crate) fn sweep(&mut self, log: u64) -> Vec<(Family, PrefixIdx)> {
        if log < self.sweep_at || self.pins > 0 || self.dump.is_some() {
            return Vec::new();
        }
        self.sweep_at = self.log_seq;
        let mut forgotten = Vec::new();
        for (family, idx) in std::mem::take(&mut self.withdrawn[0]) {
            let sent = self.out.get(family, idx);
            if sent.listed == Listed::SinceMark {
                continue;
            }
            let now = match sent.announced() {
                Some(_) => Sent {
                    listed: Listed::No,
                    ..sent
                },
                None => Sent::EMPTY,
            };
            self.out.set(family, idx, now);
            forgotten.push((family, idx));
        }
        self.withdrawn.swap(0, 1);
        for &(family, idx) in &self.withdrawn[0] {
            let listed = Listed::BeforeMark;
            let sent = self.out.get(family, idx);
            self.out.set(family, idx, Sent { listed, ..sent });
        }
        forgotten
    }

    /// The group is no more: gives its references back, and the prefixes that it remembered as withdrawn.
    pub(crate) fn clear(
        &mut self,
        attrs: &mut Attrs,
        next_hops: &mut NextHops,
    ) -> Vec<(Family, PrefixIdx)> {
        let mut forgotten = Vec::new();
        for family in Family::ALL {
            for idx in 0..self.out.end(family) {
                let sent = self.out.get(family, idx);
                if let Some((attr, _)) = sent.announced() {
                    attrs.release(attr, next_hops);
                }
                if sent.listed != Listed::No {
                    forgotten.push((family, idx));
                }
            }
        }
        forgotten
    }
}

impl Latest {
    /// Whether the log since is short against it.
    fn is_fresh(&self, logged: u64, short_log: u64) -> bool {
        logged - self.logged <= short_log.max(self.octets)
    }
}
