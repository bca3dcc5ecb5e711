//! What a peer is told.

use std::{io, net::SocketAddr, sync::Arc};

use super::ConnId;
use crate::{
    config::{PeerConfig, SpeakerConfig},
    ids::IfIndex,
};

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
        /// As in [`Output::Connect`](super::Output::Connect).
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
        /// As in [`Output::Connect`](super::Output::Connect).
        conn: ConnId,
        /// What the operating system says.
        error: SocketError,
        /// Nobody has answered; not even with a refusal.
        unanswered: bool,
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
        /// Why, if it was not an orderly end.
        error: Option<SocketError>,
    },
    /// The RIB found the peer over its limit (RFC 4486: Cease, maximum number of prefixes reached).
    TooManyPrefixes,
    /// Other settings: applied in place where possible, else the session is reset (Cease, other configuration change).
    /// What has which effect: [`reconfigure`](super::reconfigure).
    Configure(Arc<SpeakerConfig>, Arc<PeerConfig>),
    /// Try once to connect, though the peer is one that we only wait for. Without effect if a connection is there.
    ConnectOnce,
    /// Ask the peer for all its routes again (RFC 2918), where it can.
    RequestRefresh,
}

/// An error of the operating system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SocketError {
    /// Its kind.
    pub kind: io::ErrorKind,
    /// The operating system's words.
    pub text: String,
}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> SocketError {
        SocketError {
            kind: error.kind(),
            text: error.to_string(),
        }
    }
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
