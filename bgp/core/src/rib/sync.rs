//! The first synchronisation of a family: when the table is as complete as it will soon get.
//!
//! After a cold start that is when all peers that are Established within [`Limits::gather`] of the start have said
//! End-of-RIB and the next hops are known, or after [`Limits::first_sync`]. It need not take that long: when all
//! configured peers are there and complete, that is it.
//!
//! After a restart, neighbours and the kernel have kept the routes of our earlier run (RFC 4724 section 4). Beside the
//! above, the family waits for every peer that had a session before the restart: until its End-of-RIB, or until the
//! restart time that we have announced is over. Routes are announced as they come. What waits is our End-of-RIB, by which
//! neighbours drop what they have kept and was not announced again, and the word to the kernel's owner (ADR 9).
//!
//! The wait is bounded under any load: once it is over, only what was known at that moment is decided first.

use std::{collections::HashSet, time::Duration};

use super::{Rib, RibOutput};
use crate::{
    clock::{Now, earlier},
    config::{Limits, SpeakerConfig},
    event::Negotiated,
    ids::{Epoch, Family, FamilySet, PeerIdx, PeerKey},
};

/// What the RIB is to know of the run before a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restarted {
    /// The neighbours that had a session, or whose routes were kept; `None`: nobody knows. Then every configured neighbour
    /// counts as one, and where there are ranges the whole restart time is waited for.
    pub before: Option<Vec<PeerKey>>,
    /// How long neighbours keep our routes: the restart time that we have announced.
    pub restart_time: Duration,
}

/// All that was marked for a decision, or will be by a search that is under way, up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// As many prefixes have to be decided; `u64::MAX` while `search` is not over.
    after: u64,
    /// The search for paths by changed next hops that has to be over before; what that marks comes on top.
    search: u64,
}

impl Mark {
    /// Whether all of it has been decided: `decided` prefixes have been so far.
    pub(crate) fn is_decided(&self, decided: u64) -> bool {
        self.after <= decided
    }

    /// A search is over, and `marked` prefixes have been marked by now.
    pub(crate) fn search_done(&mut self, search: u64, marked: u64) {
        if self.search == search {
            self.after = marked;
        }
    }
}

pub(crate) struct InitialSync {
    start: Now,
    limits: Limits,
    done: FamilySet,
    /// A peer came up, which may have to be waited for.
    last_up: Option<Now>,
    /// Of the families whose wait is over: what has to be decided yet, by [`Family::index`].
    deciding: [Option<Mark>; 2],
    restart: Option<Restart>,
}

/// The wait for those who had a session before a restart.
struct Restart {
    until: Now,
    /// Who has not said End-of-RIB in a family, by [`Family::index`].
    awaited: [HashSet<PeerKey>; 2],
    /// Nobody knows which clients by a range there were.
    unknown_clients: bool,
    /// Peers without graceful restart, and when each counts as complete.
    silent: Vec<(Now, PeerIdx, Epoch)>,
}

impl Restart {
    fn is_over(&self, now: Now, family: Family) -> bool {
        now >= self.until || self.awaited[family.index()].is_empty() && !self.unknown_clients
    }

    fn forget(&mut self, key: &PeerKey, families: impl IntoIterator<Item = Family>) {
        for family in families {
            self.awaited[family.index()].remove(key);
        }
    }

    fn configured(&mut self, config: &SpeakerConfig) {
        self.unknown_clients &= !config.ranges.is_empty();
        if self.awaited.iter().all(HashSet::is_empty) {
            return;
        }
        let by_address: HashSet<PeerKey> = config.peers.iter().map(|p| p.key).collect();
        let wanted = |key: &PeerKey| {
            by_address.contains(key) || config.ranges.iter().any(|r| r.prefix.contains(key.addr))
        };
        for awaited in &mut self.awaited {
            awaited.retain(wanted);
        }
    }
}

impl InitialSync {
    pub(crate) fn new(now: Now, limits: Limits) -> Self {
        InitialSync {
            start: now,
            limits,
            done: FamilySet::NONE,
            last_up: None,
            deciding: [None; 2],
            restart: None,
        }
    }

    pub(crate) fn restarted(&mut self, config: &SpeakerConfig, restarted: Restarted) {
        let unknown_clients = restarted.before.is_none();
        let all = || config.peers.iter().map(|p| p.key).collect();
        let before: HashSet<PeerKey> = match restarted.before {
            Some(before) => before.into_iter().collect(),
            None => all(),
        };
        let mut restart = Restart {
            until: self.start + restarted.restart_time,
            awaited: [before.clone(), before],
            unknown_clients,
            silent: Vec::new(),
        };
        restart.configured(config);
        self.restart = Some(restart);
    }

    pub(crate) fn configured(&mut self, config: &SpeakerConfig) {
        if let Some(restart) = &mut self.restart {
            restart.configured(config);
        }
    }

    /// A session is there.
    pub(crate) fn up(
        &mut self,
        now: Now,
        peer: (PeerIdx, Epoch),
        key: &PeerKey,
        session: &Negotiated,
    ) {
        self.last_up = Some(now);
        let Some(restart) = self
            .restart
            .as_mut()
            .filter(|_| self.done != FamilySet::ALL)
        else {
            return;
        };
        match session.graceful_restart {
            // It waits for us as we would for it (RFC 4724 section 4.1).
            Some(gr) if gr.restarting => restart.forget(key, Family::ALL),
            Some(_) => {
                let absent = |f: &Family| !session.families.contains(*f);
                restart.forget(key, Family::ALL.into_iter().filter(absent));
            }
            None => {
                let complete = now + self.limits.no_end_of_rib;
                restart.silent.push((complete, peer.0, peer.1));
            }
        }
    }

    /// A peer has said all that it has to say in a family.
    pub(crate) fn end_of_rib(&mut self, key: &PeerKey, family: Family) {
        if let Some(restart) = &mut self.restart {
            restart.forget(key, [family]);
        }
    }

    /// The host of a peer does not answer.
    pub(crate) fn unanswered(&mut self, key: &PeerKey) {
        if let Some(restart) = &mut self.restart {
            restart.forget(key, Family::ALL);
        }
    }

    /// A search is over.
    pub(crate) fn search_done(&mut self, search: u64, marked: u64) {
        for mark in self.deciding.iter_mut().flatten() {
            mark.search_done(search, marked);
        }
    }

    fn is_over(&self) -> bool {
        self.done == FamilySet::ALL
    }

    /// The families whose End-of-RIB we do not say yet.
    pub(crate) fn held(&self) -> FamilySet {
        if self.restart.is_none() {
            return FamilySet::NONE;
        }
        let waits = |f: &Family| !self.done.contains(*f);
        Family::ALL.into_iter().filter(waits).collect()
    }

    pub(crate) fn deadline(&self, now: Now) -> Option<Now> {
        if self.is_over() {
            return None;
        }
        let times = [
            Some(self.start + self.limits.gather),
            Some(self.start + self.limits.first_sync),
            self.last_up.map(|up| up + self.limits.no_end_of_rib),
            self.restart.as_ref().map(|restart| restart.until),
        ];
        let mut future = times.into_iter().flatten().filter(|at| *at > now);
        let first = future.next();
        future.fold(first, |first, at| earlier(first, Some(at)))
    }
}

impl Rib {
    /// All that is to be decided as of now.
    pub(crate) fn mark_of_now(&self) -> Mark {
        let pending = u64::from(self.search.is_some()) + u64::from(self.next_hops.has_changes());
        Mark {
            after: if pending > 0 { u64::MAX } else { self.marked },
            search: self.searches_done + pending,
        }
    }

    /// How many prefixes have been decided so far.
    pub(crate) fn decided(&self) -> u64 {
        self.marked - self.dirty.len() as u64
    }

    /// Says of which families the first synchronisation is over.
    pub(crate) fn check_sync(&mut self, now: Now, out: &mut Vec<RibOutput>) {
        if self.sync.is_over() {
            return;
        }
        self.count_silent_as_complete(now);
        for family in Family::ALL {
            if self.sync.done.contains(family) {
                continue;
            }
            let at = family.index();
            if self.sync.deciding[at].is_none() && self.is_gathered(now, family) {
                self.sync.deciding[at] = Some(self.mark_of_now());
            }
            let decided = self.decided();
            if self.sync.deciding[at].is_some_and(|mark| mark.is_decided(decided)) {
                self.sync.done.insert(family);
                out.push(RibOutput::Synced(family));
                for group in self.groups.iter_mut().flatten() {
                    group.say_end_of_rib(family, out);
                }
            }
        }
    }

    fn count_silent_as_complete(&mut self, now: Now) {
        let Some(restart) = &mut self.sync.restart else {
            return;
        };
        let due: Vec<_> = restart.silent.extract_if(.., |s| s.0 <= now).collect();
        for (_, idx, epoch) in due {
            let peer = self.peers.get(usize::from(idx.0));
            if let Some(peer) = peer.filter(|p| p.is_up_in(epoch))
                && let Some(config) = &peer.config
            {
                restart.forget(&config.key, Family::ALL);
            }
        }
    }

    /// Whether nobody is waited for any more.
    fn is_gathered(&self, now: Now, family: Family) -> bool {
        let restart = self.sync.restart.as_ref();
        if restart.is_some_and(|restart| !restart.is_over(now, family)) {
            return false;
        }
        let age = now.since(self.sync.start);
        let limits = self.sync.limits;
        let gathered = age >= limits.gather || self.all_are_up();
        age >= limits.first_sync
            || gathered && self.next_hops.all_known() && self.all_are_complete(now, family)
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
        let limits = self.sync.limits;
        self.peers.iter().all(|peer| {
            let Some(session) = &peer.session else {
                return true;
            };
            let late = peer.up_at.since(self.sync.start) > limits.gather;
            let silent =
                session.graceful_restart.is_none() && now.since(peer.up_at) >= limits.no_end_of_rib;
            // It waits for us as we would for it (RFC 4724 section 4.1).
            let waits = self.sync.restart.is_some()
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
