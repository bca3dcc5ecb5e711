//! From Kubernetes network policies to an nftables plan.
//!
//! Objects and facts go in, a [`plan::Plan`] comes out, byte for byte the same for the same input. No sockets, no
//! files, no clock, no async; nothing here depends on the order of a hash table.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod api;
mod compiler;
mod group;
mod index;
mod lower;
pub mod model;
pub mod plan;
pub mod ranges;
pub mod revoke;
mod rules;
mod staging;
pub mod verdict;

pub use compiler::{Change, Compiler, Config, LocalStatus};
pub use lower::{Refused, lower};
