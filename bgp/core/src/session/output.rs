//! What a peer wants done, and what it tells about itself.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{ConnId, FaultReport, Faults, OpenSettings, SessionError, State};
use crate::{
    clock::Now,
    event::{DownReason, Negotiated, PeerEvent},
    ids::{Epoch, Family},
    own_next_hop::NoNextHop,
};

/// What to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Open a connection to the configured address and report under this name.
    Connect(ConnId),
    /// [`Input::Accepted`](super::Input::Accepted) is taken under this name.
    Accept(ConnId),
    /// [`Input::Accepted`](super::Input::Accepted) is not taken: close it.
    Refuse,
    /// Send these bytes.
    Send(ConnId, Bytes),
    /// Close, after what is to be sent has left. Also ends an attempt to connect.
    Close(ConnId),
    /// For the RIB; of this session.
    Event(Epoch, PeerEvent),
    /// The state changed.
    State(State),
    /// A fault of the peer that its session survives: for the log.
    Fault(Box<FaultReport>),
}

/// The routes of an earlier session that are kept, of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleView {
    /// The family.
    pub family: Family,
    /// Until they go if the peer does not come back, or does not announce them again.
    pub remaining: Duration,
    /// They are a last resort (RFC 9494).
    pub long_lived: bool,
}

/// Why a configured family is not in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unused {
    /// We have no next hop to announce in it.
    #[error("{0}")]
    NoNextHop(NoNextHop),
    /// The neighbour's OPEN does not name it.
    #[error("the neighbour does not offer it")]
    NotOffered,
}

/// What of a [`Snapshot`] changes by events, in a form that is cheap to compare: whoever shows peers looks again when it
/// differs. Timers and counters of messages are not in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outline {
    /// The state.
    pub state: State,
    /// Whether the operator lets it run.
    pub running: bool,
    /// The number of the present session, or of the last one.
    pub epoch: Epoch,
    /// How often new settings have changed what is shown of the present session.
    pub shown_changes: u32,
    /// How often a session was Established.
    pub established: u64,
    /// When the last session ended.
    pub last_down: Option<Now>,
    /// When something went wrong last.
    pub last_error: Option<Now>,
    /// Faults that the session has survived (RFC 7606).
    pub faults: u64,
    /// Whether the stale routes of each family that has some (RFC 4724) are a last resort (RFC 9494).
    pub stale: [Option<bool>; 2],
}

/// A peer as it is at a moment, for people and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// Whether the operator lets it run.
    pub running: bool,
    /// The number of the present session, or of the last one.
    pub epoch: Epoch,
    /// What the present session has agreed on.
    pub negotiated: Option<Arc<Negotiated>>,
    /// The configured families that the present session does not carry, or in which we have nothing to announce, and why.
    pub unused_families: Vec<(Family, Unused)>,
    /// What our next OPEN will say, where the present session's OPEN said something else; `None`: the same, or no session.
    pub next_open: Option<OpenSettings>,
    /// How long the present session has been Established.
    pub uptime: Option<Duration>,
    /// How often a session was Established.
    pub established: u64,
    /// Why and when the last session ended.
    pub last_down: Option<(Now, DownReason)>,
    /// What went wrong last, and when: also what never became a session.
    pub last_error: Option<(Now, SessionError)>,
    /// Until the session is given up for silence.
    pub hold_remaining: Option<Duration>,
    /// Until the next KEEPALIVE.
    pub keepalive_remaining: Option<Duration>,
    /// Until the next attempt to connect; while waiting after a fault, until connections are accepted again.
    pub retry_remaining: Option<Duration>,
    /// Messages received, in the order of [`MessageType::ALL`](crate::wire::header::MessageType::ALL).
    pub messages_in: [u64; 5],
    /// Messages that the session has sent, in the same order. What the RIB sends is not among them.
    pub messages_out: [u64; 5],
    /// Faults of the peer that its sessions have survived.
    pub faults: Faults,
    /// The families whose routes of an earlier session are kept (RFC 4724, RFC 9494).
    pub stale: Vec<StaleView>,
}
