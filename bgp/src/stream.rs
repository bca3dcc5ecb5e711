//! What the members of update groups still have to be sent: one shared log a group, shared dumps for those who join, and
//! a position for each member. Bytes are held once, however many members there are, and freed behind the slowest.
//!
//! A member's stream is `dump` (a snapshot of the group's table), then the log from where the dump says. A dump that may
//! still be joined, and one that is still played, pins the log there.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use selvage_bgp_core::{
    ids::{GroupId, PeerIdx},
    rib::{Chunk, DumpId},
};

/// Octets of log that a group may hold back for its slowest member, before that member is made to start again.
pub(crate) const LOG_LIMIT: usize = 32 << 20;

/// Where a member is: the next chunk that it has not been given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Position {
    /// In a dump.
    Dump(DumpId, usize),
    /// In its group's log.
    Log(u64),
}

/// A member of an update group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) group: GroupId,
    pub(crate) at: Position,
}

#[derive(Default)]
struct Group {
    base: u64,
    log: VecDeque<Chunk>,
    octets: usize,
    /// The base that the RIB was last told of.
    told: u64,
    /// How many members and dumps need the log from a sequence number on.
    pins: BTreeMap<u64, u32>,
}

impl Group {
    fn end(&self) -> u64 {
        self.base + self.log.len() as u64
    }

    fn pin(&mut self, seq: u64) {
        *self.pins.entry(seq).or_default() += 1;
    }

    fn unpin(&mut self, seq: u64) {
        if let Some(n) = self.pins.get_mut(&seq) {
            *n -= 1;
            if *n == 0 {
                self.pins.remove(&seq);
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        let keep = self
            .pins
            .first_key_value()
            .map_or(self.end(), |(seq, _)| *seq);
        while self.base < keep {
            let Some(chunk) = self.log.pop_front() else {
                break;
            };
            self.octets -= chunk.bytes.len();
            self.base += 1;
        }
        if self.log.is_empty() && self.log.capacity() > 1024 {
            self.log.shrink_to(0);
        }
    }

    fn get(&self, seq: u64) -> Option<&Chunk> {
        self.log
            .get(usize::try_from(seq.checked_sub(self.base)?).ok()?)
    }
}

struct Dump {
    group: GroupId,
    chunks: Vec<Chunk>,
    /// Where its players go on, once it is complete.
    log: Option<u64>,
    /// What it pins of the log.
    pin: u64,
    players: u32,
    retired: bool,
}

/// All groups and dumps of the speaker.
#[derive(Default)]
pub(crate) struct Streams {
    groups: HashMap<GroupId, Group>,
    dumps: HashMap<DumpId, Dump>,
}

impl Streams {
    /// Appends to a group's log; nothing is kept if nobody will read it.
    pub(crate) fn log(&mut self, id: GroupId, chunk: Chunk) {
        let group = self.groups.entry(id).or_default();
        group.octets += chunk.bytes.len();
        group.log.push_back(chunk);
        if group.pins.is_empty() {
            group.trim();
        }
    }

    /// A member begins with `dump`, which may be new.
    pub(crate) fn join(&mut self, group: GroupId, id: DumpId) -> Member {
        let log = self.groups.entry(group).or_default();
        let dump = self.dumps.entry(id).or_insert_with(|| {
            let pin = log.end();
            log.pin(pin);
            Dump {
                group,
                chunks: Vec::new(),
                log: None,
                pin,
                players: 0,
                retired: false,
            }
        });
        dump.players += 1;
        Member {
            group,
            at: Position::Dump(id, 0),
        }
    }

    /// More of a dump; says whose.
    pub(crate) fn dump(&mut self, id: DumpId, chunk: Chunk) -> Option<GroupId> {
        let dump = self.dumps.get_mut(&id)?;
        dump.chunks.push(chunk);
        Some(dump.group)
    }

    /// The dump is complete; says whose.
    pub(crate) fn dump_end(&mut self, id: DumpId, log: u64) -> Option<GroupId> {
        let dump = self.dumps.get_mut(&id)?;
        dump.log = Some(log);
        if let Some(group) = self.groups.get_mut(&dump.group) {
            let old = dump.pin;
            dump.pin = log.max(old);
            group.pin(dump.pin);
            group.unpin(old);
        }
        Some(dump.group)
    }

    /// Nobody will join by it any more.
    pub(crate) fn retire(&mut self, id: DumpId) {
        if let Some(dump) = self.dumps.get_mut(&id) {
            dump.retired = true;
            self.free_dump(id);
        }
    }

    /// The group is no more.
    pub(crate) fn group_gone(&mut self, id: GroupId) {
        self.groups.remove(&id);
        self.dumps.retain(|_, d| d.group != id);
    }

    /// A member goes.
    pub(crate) fn leave(&mut self, member: Member) {
        match member.at {
            Position::Dump(id, _) => {
                if let Some(dump) = self.dumps.get_mut(&id) {
                    dump.players -= 1;
                    self.free_dump(id);
                }
            }
            Position::Log(seq) => {
                if let Some(group) = self.groups.get_mut(&member.group) {
                    group.unpin(seq);
                }
            }
        }
    }

    fn free_dump(&mut self, id: DumpId) {
        let Some(dump) = self.dumps.get(&id) else {
            return;
        };
        if !dump.retired || dump.players > 0 {
            return;
        }
        let (group, pin) = (dump.group, dump.pin);
        self.dumps.remove(&id);
        if let Some(group) = self.groups.get_mut(&group) {
            group.unpin(pin);
        }
    }

    /// The next chunk from `at` on that is for `peer`, and the position after it; without one, the position to wait at.
    pub(crate) fn next(&self, member: Member, peer: PeerIdx) -> (Option<&Bytes>, Position) {
        let mut at = member.at;
        loop {
            let chunk = match at {
                Position::Dump(id, i) => {
                    let Some(dump) = self.dumps.get(&id) else {
                        return (None, at);
                    };
                    match (dump.chunks.get(i), dump.log) {
                        (Some(chunk), _) => {
                            at = Position::Dump(id, i + 1);
                            chunk
                        }
                        (None, Some(log)) => {
                            at = Position::Log(log);
                            continue;
                        }
                        (None, None) => return (None, at),
                    }
                }
                Position::Log(seq) => {
                    let Some(chunk) = self.groups.get(&member.group).and_then(|g| g.get(seq))
                    else {
                        return (None, at);
                    };
                    at = Position::Log(seq + 1);
                    chunk
                }
            };
            if chunk.is_for(peer) {
                return (Some(&chunk.bytes), at);
            }
        }
    }

    /// Moves a member to a position that [`Streams::next`] gave.
    pub(crate) fn advance(&mut self, member: &mut Member, to: Position) {
        if member.at == to {
            return;
        }
        // Pin the new position before the old one is let go, so that nothing between is freed.
        if let (Position::Log(seq), Some(group)) = (to, self.groups.get_mut(&member.group)) {
            group.pin(seq);
        }
        match (member.at, to) {
            (Position::Dump(..), Position::Dump(..)) => {}
            _ => self.leave(*member),
        }
        member.at = to;
    }

    /// Whether the group's log is longer than one member may hold back, and this member is the one that holds it.
    pub(crate) fn is_laggard(&self, member: &Member) -> bool {
        let Some(group) = self.groups.get(&member.group) else {
            return false;
        };
        group.octets > LOG_LIMIT
            && match member.at {
                Position::Log(seq) => group
                    .pins
                    .first_key_value()
                    .is_some_and(|(first, _)| *first == seq),
                Position::Dump(id, _) => self.dumps.get(&id).is_some_and(|d| {
                    group
                        .pins
                        .first_key_value()
                        .is_some_and(|(f, _)| *f == d.pin)
                }),
            }
    }

    /// Octets held in logs and dumps.
    #[cfg(test)]
    pub(crate) fn octets(&self) -> usize {
        self.groups.values().map(|g| g.octets).sum::<usize>()
            + self
                .dumps
                .values()
                .flat_map(|d| &d.chunks)
                .map(|c| c.bytes.len())
                .sum::<usize>()
    }

    /// From which sequence number on the group's log may still be needed, if that is worth telling: everything has been
    /// sent, or a good piece since it was told last.
    pub(crate) fn passed(&mut self, id: GroupId) -> Option<u64> {
        let group = self.groups.get_mut(&id)?;
        let far = group.base - group.told;
        if far == 0 || (far < 256 && !group.log.is_empty()) {
            return None;
        }
        group.told = group.base;
        Some(group.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(0);

    fn chunk(byte: u8, skip: Option<u16>) -> Chunk {
        Chunk {
            bytes: Bytes::copy_from_slice(&[byte]),
            skip: skip.map(PeerIdx),
            only: None,
        }
    }

    fn drain(s: &mut Streams, m: &mut Member, peer: u16) -> Vec<u8> {
        let mut got = Vec::new();
        loop {
            let (bytes, at) = s.next(*m, PeerIdx(peer));
            let more = bytes.is_some();
            got.extend(bytes.into_iter().flatten());
            s.advance(m, at);
            if !more {
                return got;
            }
        }
    }

    #[test]
    fn a_member_gets_the_dump_then_the_log_without_its_own() {
        let mut s = Streams::default();
        let d = DumpId(1);
        let mut a = s.join(G, d);
        s.dump(d, chunk(1, None));
        assert_eq!(drain(&mut s, &mut a, 0), [1]);
        s.dump(d, chunk(2, Some(0)));
        s.dump(d, chunk(3, Some(1)));
        s.log(G, chunk(4, None));
        s.dump_end(d, 0);
        let mut b = s.join(G, d);
        s.log(G, chunk(5, Some(1)));
        assert_eq!(drain(&mut s, &mut a, 0), [3, 4, 5]);
        assert_eq!(drain(&mut s, &mut b, 1), [1, 2, 4]);
    }

    #[test]
    fn the_log_is_kept_for_a_dump_that_may_be_joined_and_freed_behind_the_slowest() {
        let mut s = Streams::default();
        let d = DumpId(1);
        let mut a = s.join(G, d);
        s.dump_end(d, 0);
        for i in 0..10 {
            s.log(G, chunk(i, None));
        }
        assert_eq!(drain(&mut s, &mut a, 0).len(), 10);
        let mut b = s.join(G, d);
        assert_eq!(s.octets(), 10);
        s.retire(d);
        assert_eq!(s.octets(), 10);
        assert_eq!(drain(&mut s, &mut b, 1).len(), 10);
        assert_eq!(s.octets(), 0);
        s.log(G, chunk(1, None));
        assert_eq!(drain(&mut s, &mut a, 0).len(), 1);
        assert_eq!(s.octets(), 1, "b has not read it yet");
        s.leave(b);
        assert_eq!(s.octets(), 0);
        s.leave(a);
        s.log(G, chunk(1, None));
        assert_eq!(s.octets(), 0, "nobody reads");
    }

    #[test]
    fn a_group_that_is_gone_takes_all_with_it() {
        let mut s = Streams::default();
        let a = s.join(G, DumpId(1));
        s.dump(DumpId(1), chunk(1, None));
        s.log(G, chunk(1, None));
        s.group_gone(G);
        assert_eq!(s.octets(), 0);
        assert_eq!(s.next(a, PeerIdx(0)).0, None);
        s.leave(a);
    }
}
