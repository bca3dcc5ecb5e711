//! Other implementations: first among themselves, which shows that the lab's configurations are right.

mod daemons;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    daemons::cases()
}
