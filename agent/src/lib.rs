//! The Selvage node daemon and its command line, as a library so that tests reach every part.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod api;
pub mod bgp;
pub mod cli;
pub mod config;
pub mod control;
pub mod desired;
pub mod inbox;
pub mod install;
pub mod kernel;
pub mod limits;
pub mod neighbours;
pub mod objects;
pub mod pod_interfaces;
pub mod publish;
pub mod pulses;
pub mod run;
pub mod source;
pub mod store;
pub mod web;
pub mod world;
