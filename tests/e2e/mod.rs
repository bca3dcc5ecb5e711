//! Whole ways, from the objects to the packets; first of all the lab's own primitives.

mod demo;
mod lab;
mod plugin;
mod policy;
mod routes;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    [
        lab::cases(),
        plugin::cases(),
        routes::cases(),
        policy::cases(),
        demo::cases(),
    ]
    .concat()
}
