//! Sessions: the finite state machine of RFC 4271 section 8, collisions, negotiation, graceful restart.
//!
//! A [`Peer`] is what outlives a connection: at most two connections at a time (collision), restart state, back-off.
//! It is told what happened and what time it is, and answers with what to do.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;

use crate::{
    clock::Now,
    config::{PeerConfig, SpeakerConfig},
    event::PeerEvent,
    ids::{Epoch, IfIndex},
};

/// A connection of a peer, named by the peer for an outgoing one and by the caller of
/// [`Input::Accepted`] for an incoming one; never reused within a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The operator lets the peer run (after creation, or after [`Input::Stop`]).
    Start,
    /// The peer shall stop, in the way that the reason says.
    Stop(Stop),
    /// The deadline has come; also allowed before it.
    Timer,
    /// An outgoing connection is there.
    Connected {
        /// As in [`Output::Connect`].
        conn: ConnId,
        /// Our end.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
        /// The interface, for link-local addresses.
        interface: Option<IfIndex>,
    },
    /// An outgoing connection did not come about.
    ConnectFailed {
        /// As in [`Output::Connect`].
        conn: ConnId,
        /// The operating system's words.
        error: String,
    },
    /// The peer has connected to us.
    Accepted {
        /// Our end.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
        /// The interface, for link-local addresses.
        interface: Option<IfIndex>,
    },
    /// Bytes have come.
    Bytes {
        /// On which connection.
        conn: ConnId,
        /// Any number, cut anywhere.
        bytes: &'a [u8],
    },
    /// The connection is gone.
    Closed {
        /// Which.
        conn: ConnId,
        /// The operating system's words, if it was not an orderly end.
        error: Option<String>,
    },
    /// The RIB found the peer over its limit (RFC 4486: Cease, maximum number of prefixes reached).
    TooManyPrefixes,
    /// Other settings: applied in place where possible, else the session is reset (Cease, other configuration change).
    Configure(Arc<SpeakerConfig>, Arc<PeerConfig>),
    /// Ask the peer for all its routes again (RFC 2918), where it can.
    RequestRefresh,
}

/// How to stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Administrative shutdown with a text for the other side (RFC 9003): its routes go, ours go there.
    Shutdown(String),
    /// We restart: close without a NOTIFICATION, so that the other side keeps our routes (RFC 4724).
    Restart,
    /// The neighbour is no longer configured (Cease, peer de-configured): all its routes go at once.
    Removed,
}

/// What to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Open a connection to the configured address and report under this name.
    Connect(ConnId),
    /// [`Input::Accepted`] is taken under this name.
    Accept(ConnId),
    /// [`Input::Accepted`] is not taken: close it.
    Refuse,
    /// Send these bytes.
    Send(ConnId, Bytes),
    /// Close, after what is to be sent has left.
    Close(ConnId),
    /// For the RIB; of this session.
    Event(Epoch, PeerEvent),
    /// The state changed.
    State(State),
}

/// The state of the finite state machine (RFC 4271 section 8.2.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Refuses connections; not started, stopped, or waiting after an error.
    Idle,
    /// Waits for an outgoing connection.
    Connect,
    /// Listens, and will try again.
    Active,
    /// OPEN sent.
    OpenSent,
    /// OPEN received, waits for KEEPALIVE.
    OpenConfirm,
    /// Routes flow.
    Established,
}
