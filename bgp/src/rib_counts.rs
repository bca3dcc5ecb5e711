//! The numbers of peers, told when they change, so that nobody has to ask the RIB and wait behind its work.

use std::time::Duration;

use selvage_bgp_core::{
    clock::Now,
    ids::PeerIdx,
    rib::{PeerCounts, Rib},
};

/// Between two looks at all peers, at least.
const PERIOD: Duration = Duration::from_secs(1);

/// What was told last, and when all peers are looked at again.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    told: Vec<PeerCounts>,
    last: Option<Now>,
    due: Option<Now>,
}

impl Counts {
    /// The table has worked: numbers may have changed.
    pub(crate) fn touch(&mut self, now: Now) {
        let rested = self.last.map_or(now, |last| (last + PERIOD).max(now));
        self.due.get_or_insert(rested);
    }

    /// When there is something to tell.
    pub(crate) fn deadline(&self) -> Option<Now> {
        self.due
    }

    /// The numbers that differ from those told last: of `at_once`, and of all peers when that is due.
    pub(crate) fn changes(
        &mut self,
        now: Now,
        rib: &Rib,
        at_once: &[PeerIdx],
    ) -> Vec<(PeerIdx, PeerCounts)> {
        let mut changes = Vec::new();
        if self.due.is_some_and(|at| at <= now) {
            self.due = None;
            self.last = Some(now);
            for idx in rib.peer_indices() {
                self.compare(rib, idx, &mut changes);
            }
        } else {
            for idx in at_once {
                self.compare(rib, *idx, &mut changes);
            }
        }
        changes
    }

    fn compare(&mut self, rib: &Rib, idx: PeerIdx, changes: &mut Vec<(PeerIdx, PeerCounts)>) {
        let at = usize::from(idx.0);
        if self.told.len() <= at {
            self.told.resize_with(at + 1, PeerCounts::default);
        }
        let counts = rib.peer_counts(idx);
        if let Some(told) = self.told.get_mut(at)
            && *told != counts
        {
            *told = counts;
            changes.push((idx, counts));
        }
    }
}
