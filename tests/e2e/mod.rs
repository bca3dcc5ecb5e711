//! Whole ways, from the objects to the packets; first of all the lab's own primitives.

pub mod closed;
pub mod control;
mod demo;
mod ecmp;
mod host_ports;
pub mod idle;
mod install;
mod lab;
mod paths;
mod plugin;
pub mod policy;
mod policy_only;
pub mod routes;
mod scripts;
pub mod sent_on;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    [
        lab::cases(),
        plugin::cases(),
        routes::cases(),
        paths::cases(),
        ecmp::cases(),
        policy::cases(),
        policy_only::cases(),
        host_ports::cases(),
        idle::cases(),
        closed::cases(),
        sent_on::cases(),
        control::cases(),
        install::cases(),
        demo::cases(),
        scripts::cases(),
    ]
    .concat()
}
