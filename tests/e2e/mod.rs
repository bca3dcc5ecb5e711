//! Whole ways, from the objects to the packets; first of all the lab's own primitives.

mod lab;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    lab::cases()
}
