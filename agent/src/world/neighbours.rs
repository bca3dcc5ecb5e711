//! The neighbours as the speaker has told them: sessions by its I/O thread, numbers by its RIB.

use std::collections::BTreeMap;

use selvage_bgp::{
    Clock, PeerChange,
    core::{
        ids::{Epoch, FamilySet, PeerIdx},
        rib::PeerCounts,
    },
};

use crate::{
    bgp::{peer_state, unknown_sources},
    store::{Observed, PeerState},
};

/// A neighbour, by its place in the speaker's tables.
struct Neighbour {
    /// Without numbers.
    state: PeerState,
    /// Its present or last session.
    epoch: Epoch,
    /// The families that the session carries.
    families: FamilySet,
}

impl Neighbour {
    /// With its numbers. Those of an earlier session, or of an earlier owner of the place, do not count.
    fn counted(&self, counts: Option<&PeerCounts>) -> PeerState {
        let mut state = self.state.clone();
        if let Some(counts) = counts.filter(|counts| counts.epoch == self.epoch) {
            state.received = counts.families.map(|f| u64::from(f.accepted));
            state.advertised = counts.families.map(|f| u64::from(f.advertised));
            let complete = self.families.and(counts.end_of_rib) == self.families;
            state.end_of_rib = complete && self.families != FamilySet::NONE;
        }
        state
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Neighbours {
    all: BTreeMap<PeerIdx, Neighbour>,
    counts: BTreeMap<PeerIdx, PeerCounts>,
}

impl Neighbours {
    /// Takes in neighbours that have changed, in order.
    pub(super) fn changed(&mut self, clock: Clock, changes: Vec<PeerChange>) -> Vec<Observed> {
        let mut observed = Vec::new();
        for change in changes {
            match change {
                PeerChange::Gone(idx, key) => {
                    self.all.remove(&idx);
                    observed.push(Observed::PeerGone(key.addr));
                }
                PeerChange::Unknown(sources) => {
                    let sources = unknown_sources(clock, &sources);
                    observed.push(Observed::UnknownSources(sources));
                }
                PeerChange::Is(status) => {
                    let negotiated = status.session.negotiated.as_deref();
                    let neighbour = Neighbour {
                        state: peer_state(clock, &status),
                        epoch: status.session.epoch,
                        families: negotiated.map_or(FamilySet::NONE, |n| n.families),
                    };
                    let state = neighbour.counted(self.counts.get(&status.idx));
                    observed.push(Observed::Peer(Box::new(state)));
                    self.all.insert(status.idx, neighbour);
                }
            }
        }
        observed
    }

    /// Takes in numbers that have changed.
    pub(super) fn counted(&mut self, counts: Vec<(PeerIdx, PeerCounts)>) -> Vec<Observed> {
        let mut observed = Vec::new();
        for (idx, counts) in counts {
            if let Some(neighbour) = self.all.get(&idx) {
                let state = neighbour.counted(Some(&counts));
                observed.push(Observed::Peer(Box::new(state)));
            }
            if counts.epoch == Epoch::default() {
                // Nobody has had a session in this place.
                self.counts.remove(&idx);
            } else {
                self.counts.insert(idx, counts);
            }
        }
        observed
    }
}
