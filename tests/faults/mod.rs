//! What goes wrong in the world: agents that die, cables that are pulled, neighbours that misbehave, disks that are
//! full, people who flush rulesets.

pub mod agent;
mod edits;
mod entries;
pub mod flows;
mod objects;
pub mod obstacles;
mod peer;
mod plugin;
mod reflector;
mod routes;
pub mod table;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    [
        agent::cases(),
        edits::cases(),
        entries::cases(),
        flows::cases(),
        routes::cases(),
        objects::cases(),
        obstacles::cases(),
        peer::cases(),
        plugin::cases(),
        reflector::cases(),
        table::cases(),
    ]
    .concat()
}
