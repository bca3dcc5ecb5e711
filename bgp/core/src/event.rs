//! What a session tells the RIB: the only words between the two.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    ids::{Asn, Epoch, Family, FamilySet, IfIndex, PeerIdx, RouterId},
    wire::{attr::PathAttributes, nlri::NlriBlock},
};

/// One event of one session. Batches of these go from the I/O thread to the RIB thread.
#[derive(Clone, Debug)]
pub struct FromPeer {
    /// Whose.
    pub peer: PeerIdx,
    /// Of which of its sessions.
    pub epoch: Epoch,
    /// What.
    pub event: PeerEvent,
}

/// What happened on a session, in order.
#[derive(Clone, Debug)]
pub enum PeerEvent {
    /// The session is Established.
    Up(Arc<Negotiated>),
    /// Routes are announced. The attributes belong to the family of the prefixes.
    Reach {
        /// Their attributes, checked.
        attrs: Arc<PathAttributes>,
        /// Which.
        nlri: NlriBlock,
    },
    /// Routes are withdrawn (or treated so, RFC 7606).
    Unreach(NlriBlock),
    /// The peer's initial announcements of a family are complete (RFC 4724 section 2).
    EndOfRib(Family),
    /// The peer wants everything again (RFC 2918).
    Refresh(Family),
    /// The session is gone. What `keep_stale` names stays, marked stale (RFC 4724 section 4.2); all else goes at once.
    Down {
        /// Why.
        reason: DownReason,
        /// The families to keep.
        keep_stale: FamilySet,
    },
    /// The restart time of these families is over, but their stale routes may stay as a last resort (RFC 9494).
    LongLived(FamilySet),
    /// The time of the stale routes of these families is over: the peer did not come back, came back without
    /// having kept them, or has not finished in time.
    DropStale(FamilySet),
    /// After our restart: the peer is an internal one, and its host does not answer an attempt to connect. Before the first
    /// session only.
    Unanswered,
}

/// What both sides agreed on in their OPEN messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Our autonomous system in this session.
    pub local_asn: Asn,
    /// The peer's.
    pub peer_asn: Asn,
    /// The peer's BGP identifier.
    pub peer_id: RouterId,
    /// Whether both are in one autonomous system.
    pub internal: bool,
    /// The families of both.
    pub families: FamilySet,
    /// Four-octet AS numbers (RFC 6793).
    pub four_octet_as: bool,
    /// ROUTE-REFRESH (RFC 2918).
    pub route_refresh: bool,
    /// The families in which we may send several paths (RFC 7911).
    pub add_path_send: FamilySet,
    /// The families in which the peer may.
    pub add_path_receive: FamilySet,
    /// The largest message we may send; 4096, or 65535 (RFC 8654).
    pub max_message: usize,
    /// The smaller of both hold times; zero: never.
    pub hold: Duration,
    /// Between our keepalives; zero: none.
    pub keepalive: Duration,
    /// The peer's graceful restart capability, if we use it.
    pub graceful_restart: Option<PeerRestart>,
    /// The address of our end of the connection.
    pub local_addr: IpAddr,
    /// The peer's end.
    pub peer_addr: IpAddr,
    /// The interface of a session between link-local addresses.
    pub interface: Option<IfIndex>,
}

/// The peer's graceful restart capability (RFC 4724 section 3, RFC 8538 section 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerRestart {
    /// It has just restarted (R).
    pub restarting: bool,
    /// It keeps routes over a NOTIFICATION, too (N).
    pub notification: bool,
    /// How long it takes at most.
    pub time: Duration,
    /// The families it can restart in.
    pub families: FamilySet,
    /// Those of them whose forwarding state it kept (F, of either capability).
    pub forwarding: FamilySet,
    /// It understands long-lived graceful restart (RFC 9494).
    pub understands_long_lived: bool,
    /// It keeps our routes as a last resort: it understands that, and we have asked for it.
    pub keeps_ours_long: bool,
    /// How long its routes of a family are kept as a last resort, where both sides offer that; in the order of
    /// [`Family::index`].
    pub long_lived: [Option<Duration>; 2],
}

impl PeerRestart {
    /// The families whose routes are kept as a last resort.
    pub fn long_lived_families(&self) -> FamilySet {
        let kept = |f: &Family| self.long_lived.get(f.index()).is_some_and(Option::is_some);
        Family::ALL.into_iter().filter(kept).collect()
    }
}

/// Why a session ended. Tells people; `Down::keep_stale` tells the RIB.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DownReason {
    /// The connection was closed or broke without a NOTIFICATION.
    #[error("connection closed by the peer")]
    ConnectionLost,
    /// The peer sent a NOTIFICATION.
    #[error("received notification: {0}")]
    Received(crate::wire::notification::Notification),
    /// We sent one.
    #[error("sent notification: {0}")]
    Sent(crate::wire::notification::Notification),
    /// The neighbour is no longer configured.
    #[error("removed from the configuration")]
    Removed,
    /// The peer was silent for the hold time, and we have closed without a NOTIFICATION, so that it keeps our routes.
    #[error("hold time expired, closed without a notification (long-lived graceful restart)")]
    HoldTimeExpired,
    /// We stop, and the peer shall keep our routes.
    #[error("local restart")]
    LocalRestart,
}
