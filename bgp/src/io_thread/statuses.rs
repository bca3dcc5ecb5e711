//! Neighbours as others see them: told when they change, so that nobody has to ask.

use std::{collections::BTreeSet, time::Duration};

use selvage_bgp_core::{
    clock::Now,
    ids::{PeerIdx, PeerKey},
};

use super::IoThread;
use crate::speaker::{PeerChange, PeerSink, PeerStatus};

/// Between two tellings of changes that are neither a session's beginning nor its end, at least.
const PERIOD: Duration = Duration::from_secs(1);

/// Changes that have not been told yet.
pub(super) struct Changed {
    sink: PeerSink,
    peers: BTreeSet<PeerIdx>,
    gone: Vec<(PeerIdx, PeerKey)>,
    /// When they are told.
    due: Option<Now>,
    /// When some were told last.
    last: Option<Now>,
    /// How many connections of nobody who is configured have been told.
    unknown: u64,
}

impl Changed {
    pub(super) fn new(sink: PeerSink) -> Changed {
        Changed {
            sink,
            peers: BTreeSet::new(),
            gone: Vec::new(),
            due: None,
            last: None,
            unknown: 0,
        }
    }

    pub(super) fn deadline(&self) -> Option<Now> {
        self.due
    }

    /// Something of the peer is another. `at_once`: a session has come up or gone down, or the peer is new.
    pub(super) fn note(&mut self, now: Now, peer: PeerIdx, at_once: bool) {
        self.peers.insert(peer);
        self.schedule(now, at_once);
    }

    fn schedule(&mut self, now: Now, at_once: bool) {
        let rested = self.last.map_or(now, |last| (last + PERIOD).max(now));
        let at = if at_once { now } else { rested };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// The peer is gone; its place may be used again in this very turn.
    pub(super) fn note_gone(&mut self, now: Now, peer: PeerIdx, key: PeerKey) {
        self.peers.remove(&peer);
        self.gone.push((peer, key));
        self.due = Some(now);
    }
}

impl IoThread {
    /// Tells what has changed, if that is due.
    pub(super) fn tell_changed(&mut self) {
        let now = self.clock.now();
        let connections = self.unknown.sources.connections;
        let unknown = connections != self.changed.unknown;
        if unknown {
            self.changed.schedule(now, false);
        }
        if self.changed.due.is_none_or(|at| at > now) {
            return;
        }
        self.changed.due = None;
        self.changed.last = Some(now);
        let gone = std::mem::take(&mut self.changed.gone);
        let mut changes: Vec<PeerChange> = gone
            .into_iter()
            .map(|(idx, key)| PeerChange::Gone(idx, key))
            .collect();
        for idx in std::mem::take(&mut self.changed.peers) {
            if let Some(slot) = self.peers.get(idx) {
                let status = PeerStatus::of(now, idx, slot);
                changes.push(PeerChange::Is(Box::new(status)));
            }
        }
        if unknown {
            self.changed.unknown = connections;
            let sources = self.unknown.sources.clone();
            changes.push(PeerChange::Unknown(sources));
        }
        (self.changed.sink)(changes);
    }
}
