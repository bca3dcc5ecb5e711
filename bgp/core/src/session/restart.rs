//! Graceful restart: whose routes stay as stale, and until when (RFC 4724, RFC 8538, RFC 9494).

use std::time::Duration;

use crate::{
    clock::Now,
    event::{DownReason, Negotiated},
    ids::{Family, FamilySet},
    wire::notification::Notification,
};

/// The routes of an earlier session that are kept, by family.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Stale {
    families: [Option<StaleFamily>; 2],
    /// The peer fell silent, and is a node of ours: if its host does not answer either, it forwards nothing (ADR 7).
    pub silent: bool,
}

/// The kept routes of a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StaleFamily {
    /// When they go, or become long-lived: the peer is not back, or not through.
    pub until: Now,
    /// How long they stay as a last resort after that (RFC 9494).
    pub then: Option<Duration>,
    /// They are a last resort by now.
    pub long_lived: bool,
}

impl Stale {
    /// What is kept of a session that ended at `now`.
    pub fn begin(negotiated: &Negotiated, reason: &DownReason, kept: FamilySet, now: Now) -> Stale {
        let mut stale = Stale {
            silent: negotiated.internal && is_silence(reason),
            ..Stale::default()
        };
        let restart = negotiated.graceful_restart;
        // A family that only the long-lived capability names has a restart time of zero.
        let normal = match (restart, reason) {
            (Some(restart), DownReason::ConnectionLost) => restart.families,
            (Some(restart), _) if restart.notification => restart.families,
            _ => FamilySet::NONE,
        };
        for family in kept.iter() {
            let time = match normal.contains(family) {
                true => restart.map_or(Duration::ZERO, |r| r.time),
                false => Duration::ZERO,
            };
            if let Some(place) = stale.families.get_mut(family.index()) {
                *place = Some(StaleFamily {
                    until: now + time,
                    then: restart.and_then(|r| r.long_lived.get(family.index()).copied().flatten()),
                    long_lived: false,
                });
            }
        }
        stale
    }

    /// The families of which something is kept.
    pub fn families(&self) -> FamilySet {
        let kept = |f: &Family| self.get(*f).is_some();
        Family::ALL.into_iter().filter(kept).collect()
    }

    pub fn get(&self, family: Family) -> Option<StaleFamily> {
        self.families.get(family.index()).copied().flatten()
    }

    /// The first time at which something is to be done.
    pub fn deadline(&self) -> Option<Now> {
        let until = self.families.iter().flatten().map(|f| f.until);
        until.min()
    }

    /// Nothing is kept of this family any more.
    pub fn remove(&mut self, family: Family) {
        if let Some(place) = self.families.get_mut(family.index()) {
            *place = None;
        }
    }

    /// The peer is back: what is kept waits for its End-of-RIB until then, and for nothing after it.
    pub fn wait_until(&mut self, until: Now) {
        for family in self.families.iter_mut().flatten() {
            family.until = until;
            family.then = None;
        }
    }

    /// What becomes a last resort at `now`, and what goes.
    pub fn pass(&mut self, now: Now) -> (FamilySet, FamilySet) {
        let (mut long_lived, mut gone) = (FamilySet::NONE, FamilySet::NONE);
        for family in Family::ALL {
            let Some(Some(state)) = self.families.get_mut(family.index()) else {
                continue;
            };
            if state.until > now {
                continue;
            }
            match state.then.take() {
                Some(time) => {
                    state.until = now + time;
                    state.long_lived = true;
                    long_lived.insert(family);
                }
                None => {
                    gone.insert(family);
                    self.remove(family);
                }
            }
        }
        (long_lived, gone)
    }
}

/// Whether the peer was heard no more.
pub(crate) fn is_silence(reason: &DownReason) -> bool {
    match reason {
        DownReason::Sent(n) => *n == Notification::hold_timer_expired(),
        DownReason::HoldTimeExpired => true,
        _ => false,
    }
}

/// Whether a session whose hold time is over ends without a NOTIFICATION (ADR 12): the peer would drop our routes for one
/// (no N bit), and otherwise keeps them as a last resort.
pub(crate) fn ends_in_silence(negotiated: &Negotiated) -> bool {
    negotiated
        .graceful_restart
        .is_some_and(|r| !r.notification && r.keeps_ours_long)
}

/// What stays of a session's routes when it ends so (RFC 4724 section 4.2, RFC 8538 section 4, RFC 9494 section 4.2).
pub(crate) fn kept(negotiated: &Negotiated, reason: &DownReason) -> FamilySet {
    let Some(restart) = &negotiated.graceful_restart else {
        return match reason {
            // Nobody shall notice that we are gone for a moment, whoever the routes came from.
            DownReason::LocalRestart => negotiated.families,
            _ => FamilySet::NONE,
        };
    };
    let long_lived = restart.long_lived_families();
    let both = restart.families.iter().chain(long_lived.iter()).collect();
    match reason {
        DownReason::LocalRestart => negotiated.families,
        DownReason::ConnectionLost => both,
        // We always announce N where we announce graceful restart.
        DownReason::Received(n) | DownReason::Sent(n)
            if restart.notification && !n.is_hard_reset() =>
        {
            both
        }
        // It may be dead: its routes are a last resort at once.
        DownReason::HoldTimeExpired => long_lived,
        DownReason::Received(_) | DownReason::Sent(_) | DownReason::Removed => FamilySet::NONE,
    }
}

/// Which stale routes go at once when the peer is back with this OPEN: those of families that it has not kept, or
/// does not carry any more (RFC 4724 section 4.2).
pub(crate) fn not_kept_by_peer(stale: FamilySet, negotiated: &Negotiated) -> FamilySet {
    let kept = negotiated
        .graceful_restart
        .map_or(FamilySet::NONE, |r| r.forwarding);
    stale
        .iter()
        .filter(|f: &Family| !kept.contains(*f))
        .collect()
}
