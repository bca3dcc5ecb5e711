//! Trials of faults.

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    Vec::new()
}
