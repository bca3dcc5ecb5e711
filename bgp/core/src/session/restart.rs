//! Graceful restart: whose routes stay as stale, and until when (RFC 4724, RFC 8538).

use std::time::Duration;

use crate::{
    clock::Now,
    event::{DownReason, Negotiated},
    ids::{Family, FamilySet},
};

/// How long a peer that is back may take to announce everything again.
pub(crate) const STALE_PATH_TIME: Duration = Duration::from_secs(360);

/// The routes of an earlier session that are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stale {
    pub families: FamilySet,
    /// When they go: the peer is not back, or not through.
    pub until: Now,
    /// The peer fell silent, and is a node of ours: if its host does not answer either, it forwards nothing (ADR 7).
    pub silent: bool,
}

/// What stays of a session's routes when it ends so (RFC 4724 section 4.2, RFC 8538 section 4).
pub(crate) fn kept(negotiated: &Negotiated, reason: &DownReason) -> FamilySet {
    let Some(restart) = &negotiated.graceful_restart else {
        return match reason {
            // Nobody shall notice that we are gone for a moment, whoever the routes came from.
            DownReason::LocalRestart => negotiated.families,
            _ => FamilySet::NONE,
        };
    };
    match reason {
        DownReason::LocalRestart => negotiated.families,
        DownReason::ConnectionLost => restart.families,
        // We always announce N where we announce graceful restart.
        DownReason::Received(n) | DownReason::Sent(n)
            if restart.notification && !n.is_hard_reset() =>
        {
            restart.families
        }
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

/// How long the peer may take to come back.
pub(crate) fn time(negotiated: &Negotiated) -> Duration {
    negotiated
        .graceful_restart
        .map_or(Duration::ZERO, |r| r.time)
}
