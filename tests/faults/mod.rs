//! What goes wrong in the world: agents that die, cables that are pulled, neighbours that misbehave, disks that are
//! full, people who flush rulesets.

mod agent;
mod objects;
mod peer;
mod plugin;
mod table;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    [
        agent::cases(),
        objects::cases(),
        peer::cases(),
        plugin::cases(),
        table::cases(),
    ]
    .concat()
}
