//! Sessions: the finite state machine of RFC 4271 section 8, collisions, negotiation, graceful restart.
//!
//! A [`Peer`] is what outlives a connection: at most two connections at a time (collision), restart state, back-off.
//! It is told what happened and what time it is, and answers with what to do.
//!
//! ```text
//!   Start ─► connecting ──Connected──► handshake ──KEEPALIVE──► established ─► PeerEvent
//!               ▲   accept ──Accepted──────▲  │ collision             │
//!               └──── retry, idle hold ◄──────┴──────── end ◄─────────┘ restart: what stays as stale
//! ```
//! Always: at most one connection is Established; every `Up` has an epoch that no session of the speaker had before, and is
//! followed by at most one `Down`.

mod accept;
mod cause;
mod collision;
mod connecting;
mod end;
mod established;
mod faults;
mod handshake;
mod input;
mod jitter;
mod negotiate;
mod output;
mod peer;
pub mod reconfigure;
mod restart;
mod state;

pub use cause::{Cause, SessionError};
pub use faults::{FaultCount, FaultKind, FaultReport, Faults, SurvivedFault};
pub use input::{Input, SocketError, Stop};
pub use negotiate::OpenSettings;
pub use output::{Outline, Output, Snapshot, StaleView, Unused};
pub use peer::Peer;
pub use state::{ConnId, State};

#[cfg(test)]
mod tests;
