//! What the standards say about bytes on the wire, held against a running agent by a speaker that only knows bytes.

mod bgp;
pub mod speaker;

use crate::harness::Case;

pub fn cases() -> Vec<Case> {
    bgp::cases()
}
