//! The shell around `selvage-bgp-core`: sockets, threads, timers.
//!
//! ```text
//!        sockets, timers                     table
//!   ┌───────────────────────┐  RibWork  ┌──────────────┐  RouteEvent
//!   │ bgp-io   IoThread     │ ────────► │ bgp-rib      │ ───────────► whoever programs routes
//!   │  Peer (core), Streams │ ◄──────── │  Rib (core)  │
//!   └───────────────────────┘  IoWork   └──────────────┘
//!             ▲ Handle: configure, peers            ▲ Handle: query, tell
//! ```
//!
//! No task per peer: one loop over ready sockets, one read buffer, one log for each update group. Queues carry batches.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod conn;
mod connector;
mod io_thread;
mod listener;
mod log_limit;
mod peers;
mod pulse;
mod queue;
mod rib_counts;
mod rib_thread;
mod sockopt;
mod speaker;
mod stream;
mod unknown_sources;

pub use io_thread::ConfigureError;
pub use pulse::Pulse;
pub use rib_thread::{RouteEvent, RouteSink};
pub use selvage_bgp_core as core;
pub use speaker::{
    Answer, Clock, Handle, PeerChange, PeerSink, PeerStatus, Speaker, Start, Stopped,
};
pub use unknown_sources::{UnknownSource, UnknownSources};
