//! A BGP speaker without I/O: messages, sessions, RIB, filters.
//!
//! Bytes, time and commands go in; bytes, deadlines and events come out. Nothing in this crate reads a clock, opens a
//! socket or starts a thread, so that every behaviour can be written down as a table of inputs and outputs.
//!
//! ```text
//!  bytes ─► session::Peer ─► PeerEvent ─► rib::Rib ─► RibOutput::Chunk   ─► bytes to all members of an update group
//!                │                                 └► RibOutput::Routes  ─► the kernel, or whoever wants best paths
//!                └► Output::Send, Connect, Close
//! ```
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod event;
pub mod filter;
pub mod ids;
pub mod own_next_hop;
pub mod prefix;
pub mod rib;
pub mod session;
pub mod wire;
