//! Other implementations: first among themselves, which shows that the lab's configurations are right, then with ours.

mod agent;
mod daemons;
mod long_lived;
mod next_hops;
mod refresh;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    [
        daemons::cases(),
        agent::cases(),
        long_lived::cases(),
        next_hops::cases(),
        refresh::cases(),
    ]
    .concat()
}
