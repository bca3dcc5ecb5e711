//! What a peer wants done, and what it tells about itself.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{ConnId, State};
use crate::{
    clock::Now,
    event::{DownReason, Negotiated, PeerEvent},
    ids::{Epoch, FamilySet},
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
    /// How long the present session has been Established.
    pub uptime: Option<Duration>,
    /// How often a session was Established.
    pub established: u64,
    /// Why and when the last session ended.
    pub last_down: Option<(Now, DownReason)>,
    /// What went wrong last, and when: also what never became a session.
    pub last_error: Option<(Now, String)>,
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
    /// UPDATEs whose routes were treated as withdrawn (RFC 7606).
    pub treated_as_withdraw: u64,
    /// Attributes left out for a fault (RFC 7606).
    pub attributes_discarded: u64,
    /// The last fault of an UPDATE that the session has survived.
    pub last_update_fault: Option<(Now, String)>,
    /// The families whose routes are kept as stale (RFC 4724).
    pub stale: FamilySet,
    /// Until they go.
    pub stale_remaining: Option<Duration>,
}
