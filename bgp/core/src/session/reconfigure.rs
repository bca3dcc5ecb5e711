//! What a change of settings does to a peer.
//!
//! | change | effect |
//! |---|---|
//! | `description`, `import`, `export`, `require_policy`, `next_hop_self`, `next_hop_unchanged`, `allow_own_as`, `route_reflector_client`, `max_prefix` | none here: the RIB re-evaluates; what a former limit discarded is asked for again |
//! | speaker: `networks`, `maximum_paths`, `connected`, `cluster_id`, `listen`, `peers`, `ranges`, `limits` | none here |
//! | `timers`, `graceful_restart`, `long_lived_restart`, speaker: `graceful_restart` | with the next OPEN ([`OpenSettings`](super::OpenSettings)); the retry interval with the next attempt; the send hold time when the neighbour stops to read the next time, the stale path time when it is back the next time |
//! | `port` | with the next attempt |
//! | `passive` | at once for attempts under way; a session stays, whoever opened it |
//! | `asn` | reset only if the present peer is not in it |
//! | `local_address` | reset only if the session runs from another one than the new one |
//! | `families` | reset if what we offer differs |
//! | speaker: `local_address`, `links`, `assume_reachable` | reset only for a family that the session could not be offered; one that has lost its next hop stays, and what we announce in it is withdrawn |
//! | `local_asn`, speaker: `asn`, `router_id` | reset if our number or identifier towards the peer differs |
//! | `password`, `ttl_security` | reset: they belong to the connection |
//! | `multihop` | reset of an external session, for the same reason; no effect on an internal one |
//! | `key` | does not change: another key is another peer |
//!
//! A reset is Cease, other configuration change, and the peer is back at once, without back-off.

use super::negotiate::{families, local_asn};
use crate::{
    config::{PeerAsn, PeerConfig, SpeakerConfig},
    event::Negotiated,
    ids::FamilySet,
    own_next_hop::LocalEnd,
};

/// What must be done about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It goes on.
    InPlace,
    /// A new one is needed.
    Reset,
}

/// Old or new settings.
pub(crate) type Settings<'a> = (&'a SpeakerConfig, &'a PeerConfig);

/// A connection as far as settings matter to it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Present<'a> {
    /// Our end, once there is one.
    pub local: Option<LocalEnd>,
    /// The families in our OPEN.
    pub offered: FamilySet,
    /// What it has agreed on, once it has.
    pub negotiated: Option<&'a Negotiated>,
}

/// What changed settings do to a connection.
pub(crate) fn effect(old: Settings<'_>, new: Settings<'_>, present: Present<'_>) -> Effect {
    let Present {
        local,
        offered,
        negotiated,
    } = present;
    let internal = negotiated.is_some_and(|n| n.internal);
    let transport = |p: &PeerConfig| {
        let multihop = p.multihop.filter(|_| !internal);
        (p.password.clone(), multihop, p.ttl_security)
    };
    let identity = |(s, p): Settings<'_>| (local_asn(s, p), s.router_id);
    // Where it is not ours to choose, a session may run from an address that we would not take.
    let moved = old.1.local_address != new.1.local_address
        && match (new.1.local_address, local) {
            (Some(wanted), Some(present)) => wanted != present.addr,
            (_, present) => present.is_none(),
        };
    let other_families = local.is_some_and(|l| {
        let (before, now) = (families(old.0, old.1, l), families(new.0, new.1, l));
        let gained = |f| !before.contains(f) && !offered.contains(f);
        let unwanted = |f| !new.1.families.contains(f) && old.1.families.contains(f);
        now.iter().any(gained) || offered.iter().any(unwanted)
    });
    let other_peer = match (new.1.asn, negotiated) {
        (_, None) => old.1.asn != new.1.asn,
        (PeerAsn::Exactly(asn), Some(n)) => n.peer_asn != asn,
        (PeerAsn::Internal, Some(n)) => !n.internal,
        (PeerAsn::External, Some(n)) => n.internal,
    };
    let reset = transport(old.1) != transport(new.1)
        || identity(old) != identity(new)
        || moved
        || other_families
        || other_peer;
    if reset {
        Effect::Reset
    } else {
        Effect::InPlace
    }
}
