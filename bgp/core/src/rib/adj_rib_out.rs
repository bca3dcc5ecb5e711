//! What an update group has been sent, and the packing of changes into messages.
//!
//! For each prefix the best path's attributes *as received* and their source are kept. What goes on the wire follows from
//! the two and the group's view, so that nothing is stored twice.

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    Chunk,
    arena::Column,
    attrs::{AttrId, Attrs},
    prefixes::{PrefixIdx, Prefixes},
    reflect::{Source, View},
};
use crate::{
    ids::{Family, FamilySet, PeerIdx},
    wire::update,
};

/// What was last sent for a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sent {
    /// The attributes as we received them; or [`NOTHING`], [`WITHDREW`].
    pub(crate) attr: AttrId,
    /// Where they came from; that member is not sent them.
    pub(crate) source: PeerIdx,
    /// Whether the group remembers a withdrawal of the prefix, which may have been announced since.
    pub(crate) listed: Listed,
}

/// The list of a group's withdrawn prefixes that a prefix is in; the later one if it is in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listed {
    /// No withdrawal is remembered.
    No,
    /// All withdrawals were logged before the last sweep mark.
    BeforeMark,
    /// A withdrawal was logged, or written into a private dump, since the last sweep mark.
    SinceMark,
}

/// Never announced.
pub(crate) const NOTHING: AttrId = u32::MAX;
/// Announced, then withdrawn; a member that lags may not know yet.
pub(crate) const WITHDREW: AttrId = u32::MAX - 1;

impl Sent {
    /// Nothing was ever sent.
    pub(crate) const EMPTY: Sent = Sent {
        attr: NOTHING,
        source: PeerIdx(0),
        listed: Listed::No,
    };

    /// The attributes and their source, if the prefix is announced.
    pub(crate) fn announced(self) -> Option<(AttrId, PeerIdx)> {
        (self.attr < WITHDREW).then_some((self.attr, self.source))
    }
}

/// A group's Adj-RIB-Out.
pub(crate) struct AdjRibOut {
    columns: [Column<Sent>; 2],
    /// How many prefixes are announced, per family.
    pub(crate) count: [u32; 2],
    /// Of those, how many come from which peer.
    by_source: Vec<[u32; 2]>,
}

impl AdjRibOut {
    /// Nothing sent.
    pub(crate) fn new() -> Self {
        AdjRibOut {
            columns: [Column::new(Sent::EMPTY), Column::new(Sent::EMPTY)],
            count: [0; 2],
            by_source: Vec::new(),
        }
    }

    /// What was sent for a prefix.
    pub(crate) fn get(&self, family: Family, idx: PrefixIdx) -> Sent {
        self.columns[family.index()].get(idx)
    }

    /// Notes what is sent; gives what was before. References to attributes are the caller's to count.
    pub(crate) fn set(&mut self, family: Family, idx: PrefixIdx, sent: Sent) -> Sent {
        let old = self.get(family, idx);
        self.columns[family.index()].set(idx, sent);
        if let Some((_, source)) = old.announced() {
            self.count[family.index()] -= 1;
            if let Some(n) = self.by_source.get_mut(usize::from(source.0)) {
                n[family.index()] -= 1;
            }
        }
        if let Some((_, source)) = sent.announced() {
            self.count[family.index()] += 1;
            if source != super::LOCAL {
                let at = usize::from(source.0);
                if at >= self.by_source.len() {
                    self.by_source.resize(at + 1, [0; 2]);
                }
                self.by_source[at][family.index()] += 1;
            }
        }
        old
    }

    /// How many prefixes a member has been sent.
    pub(crate) fn sent_to(&self, member: PeerIdx, family: Family) -> u32 {
        let own = self.by_source.get(usize::from(member.0));
        self.count[family.index()] - own.map_or(0, |n| n[family.index()])
    }

    /// One past the largest prefix number that something was sent for.
    pub(crate) fn end(&self, family: Family) -> PrefixIdx {
        self.columns[family.index()].end()
    }

    /// Octets of memory held.
    pub(crate) fn octets(&self) -> usize {
        self.columns.iter().map(Column::octets).sum::<usize>() + self.by_source.capacity() * 8
    }
}

/// Changes of one family on their way into chunks. Each prefix is in it once: announced to all but its source, and withdrawn
/// from all, or from its source only.
#[derive(Default)]
pub(crate) struct Changes {
    announce: Vec<(PeerIdx, AttrId, PrefixIdx)>,
    withdraw: Vec<PrefixIdx>,
    withdraw_from: Vec<(PeerIdx, PrefixIdx)>,
}

impl Changes {
    /// All members but `source` are told.
    pub(crate) fn announce(&mut self, source: PeerIdx, attr: AttrId, idx: PrefixIdx) {
        self.announce.push((source, attr, idx));
    }

    /// All members are told that the prefix is gone.
    pub(crate) fn withdraw(&mut self, idx: PrefixIdx) {
        self.withdraw.push(idx);
    }

    /// One member is told that the prefix is gone (from us).
    pub(crate) fn withdraw_from(&mut self, member: PeerIdx, idx: PrefixIdx) {
        self.withdraw_from.push((member, idx));
    }

    /// Whether there is nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.announce.is_empty() && self.withdraw.is_empty() && self.withdraw_from.is_empty()
    }
}

/// Octets of a chunk from which on another one is begun.
const CHUNK: usize = 32 << 10;
/// Octets that are copied out of the scratch buffer at once.
const BLOCK: usize = 256 << 10;

/// Writes chunks: messages into a scratch buffer, cut where the recipients change, copied out in blocks of the exact size.
#[derive(Default)]
pub(crate) struct Packer {
    scratch: BytesMut,
    cuts: Vec<(usize, Option<PeerIdx>, Option<Arc<[PeerIdx]>>)>,
    begun: usize,
}

impl Packer {
    /// Packs `changes` and empties them.
    pub(crate) fn pack(
        &mut self,
        family: Family,
        view: &View,
        prefixes: &Prefixes,
        attrs: &Attrs,
        source: &dyn Fn(PeerIdx) -> Source,
        changes: &mut Changes,
        emit: &mut dyn FnMut(Chunk),
    ) {
        let options = view.encoding(family);
        let nlri = |idx: &PrefixIdx| (PATH_ID, prefixes.prefix(*idx));
        if !changes.withdraw.is_empty() {
            let mut all = changes.withdraw.iter().map(nlri);
            update::write_unreach(&mut self.scratch, family, &options, &mut all);
            self.cut(None, None, emit);
        }
        // Stable: prefixes of one message stay in the order in which they came.
        changes.withdraw_from.sort_by_key(|c| c.0);
        for run in changes.withdraw_from.chunk_by(|a, b| a.0 == b.0) {
            let mut all = run.iter().map(|c| nlri(&c.1));
            update::write_unreach(&mut self.scratch, family, &options, &mut all);
            self.cut(None, run.first().map(|c| [c.0].into()), emit);
        }
        changes.announce.sort_by_key(|c| (c.0, c.1));
        for by_source in changes.announce.chunk_by(|a, b| a.0 == b.0) {
            let Some(&(peer, ..)) = by_source.first() else {
                continue;
            };
            let skip = (peer != super::LOCAL).then_some(peer);
            let from = source(peer);
            for run in by_source.chunk_by(|a, b| a.1 == b.1) {
                let Some(&(_, attr, _)) = run.first() else {
                    continue;
                };
                let sent = view.export(family, from, attrs.expand(attr));
                let mut all = run.iter().map(|c| nlri(&c.2));
                let written =
                    update::write_reach(&mut self.scratch, family, &sent, &options, &mut all);
                if written.is_err() {
                    // What cannot be announced must not stay as it was before (RFC 4271 section 9.2).
                    let mut all = run.iter().map(|c| nlri(&c.2));
                    update::write_unreach(&mut self.scratch, family, &options, &mut all);
                }
                if self.scratch.len() - self.begun >= CHUNK {
                    self.cut(skip, None, emit);
                }
            }
            self.cut(skip, None, emit);
        }
        changes.announce.clear();
        changes.withdraw.clear();
        changes.withdraw_from.clear();
        self.finish(emit);
    }

    fn cut(
        &mut self,
        skip: Option<PeerIdx>,
        only: Option<Arc<[PeerIdx]>>,
        emit: &mut dyn FnMut(Chunk),
    ) {
        if self.scratch.len() == self.begun {
            return;
        }
        self.cuts
            .push((self.scratch.len() - self.begun, skip, only));
        self.begun = self.scratch.len();
        if self.begun >= BLOCK {
            self.finish(emit);
        }
    }

    fn finish(&mut self, emit: &mut dyn FnMut(Chunk)) {
        let mut block = Bytes::copy_from_slice(&self.scratch);
        for (len, skip, only) in self.cuts.drain(..) {
            let bytes = block.split_to(len);
            emit(Chunk { bytes, skip, only });
        }
        self.scratch.clear();
        self.begun = 0;
    }
}

/// The path identifier of what we send where one is negotiated: the best path only.
const PATH_ID: u32 = 1;

/// The End-of-RIB markers of some families for some members.
pub(crate) fn end_of_rib(families: FamilySet, members: &BTreeSet<PeerIdx>) -> Chunk {
    let mut bytes = BytesMut::with_capacity(64);
    for family in families.iter() {
        update::write_end_of_rib(&mut bytes, family);
    }
    Chunk {
        bytes: bytes.freeze(),
        skip: None,
        only: Some(members.iter().copied().collect()),
    }
}
