//! The first synchronisation: when the table is as complete as it will soon get.
//!
//! A family is synchronised when all peers that are Established within [`GATHER`] of the start have said End-of-RIB and the
//! next hops are known, or after [`LIMIT`] at the latest. It need not take that long: when all configured peers are there
//! and complete, that is it. After a restart announcements wait for it (RFC 4724 section 4.1, "deferral").

use std::time::Duration;

use super::{Rib, RibOutput};
use crate::{
    clock::{Now, earlier},
    ids::{Family, FamilySet},
};

/// Peers that come up later are not waited for.
const GATHER: Duration = Duration::from_secs(10);
/// Nobody is waited for any longer.
const LIMIT: Duration = Duration::from_secs(20);
/// A peer without graceful restart may never say End-of-RIB; it counts as complete after this time.
const NO_END_OF_RIB: Duration = Duration::from_secs(3);

pub(crate) struct InitialSync {
    start: Now,
    done: FamilySet,
    deferred: bool,
    /// A peer came up, which may have to be waited for.
    last_up: Option<Now>,
}

impl InitialSync {
    pub(crate) fn new(now: Now) -> Self {
        InitialSync {
            start: now,
            done: FamilySet::NONE,
            deferred: false,
            last_up: None,
        }
    }

    pub(crate) fn defer(&mut self) {
        self.deferred = true;
    }

    pub(crate) fn up(&mut self, now: Now) {
        self.last_up = Some(now);
    }

    fn is_over(&self) -> bool {
        self.done == FamilySet::ALL
    }

    /// Whether announcements have to wait.
    pub(crate) fn holds_back(&self) -> bool {
        self.deferred && !self.is_over()
    }

    pub(crate) fn deadline(&self, now: Now) -> Option<Now> {
        if self.is_over() {
            return None;
        }
        let at = |d| Some(self.start + d).filter(|at| *at > now);
        let quiet = self
            .last_up
            .map(|up| up + NO_END_OF_RIB)
            .filter(|at| *at > now);
        earlier(earlier(at(GATHER), Some(self.start + LIMIT)), quiet)
    }
}

impl Rib {
    /// Says of which families the first synchronisation is over.
    pub(crate) fn check_sync(&mut self, now: Now, out: &mut Vec<RibOutput>) {
        if self.sync.is_over() {
            return;
        }
        for family in Family::ALL {
            if self.sync.done.contains(family) || !self.is_synced(now, family) {
                continue;
            }
            self.sync.done.insert(family);
            out.push(RibOutput::Synced(family));
        }
    }

    fn is_synced(&self, now: Now, family: Family) -> bool {
        let age = now.since(self.sync.start);
        // Decided, all of it, or what is told is not complete.
        if !self.dirty.is_empty() || self.search.is_some() || self.next_hops.has_changes() {
            return false;
        }
        if age >= LIMIT {
            return true;
        }
        let gathered = age >= GATHER || self.all_are_up();
        gathered && self.next_hops.all_known() && self.all_are_complete(now, family)
    }

    fn all_are_up(&self) -> bool {
        let mut known = 0;
        for peer in self.peers.iter().filter(|p| p.config.is_some()) {
            if peer.session.is_none() {
                return false;
            }
            known += 1;
        }
        self.config.ranges.is_empty() && known >= self.config.peers.len()
    }

    fn all_are_complete(&self, now: Now, family: Family) -> bool {
        self.peers.iter().all(|peer| {
            let Some(session) = &peer.session else {
                return true;
            };
            let late = peer.up_at.since(self.sync.start) > GATHER;
            let silent =
                session.graceful_restart.is_none() && now.since(peer.up_at) >= NO_END_OF_RIB;
            // It waits for us as we would for it (RFC 4724 section 4.1).
            let waits = self.sync.deferred
                && session
                    .graceful_restart
                    .is_some_and(|restart| restart.restarting);
            late || silent
                || waits
                || !session.families.contains(family)
                || peer.end_of_rib.contains(family)
        })
    }
}
