//! Time limits of the agent that neither an object nor a setting changes.
//!
//! They are values so that a test of a minute outlives each of them (ADR 22). What a user may want to set is in
//! [`BgpConfiguration`](crate::objects::BgpConfiguration) and [`BgpPeer`](crate::objects::BgpPeer).

use std::time::Duration;

use selvage_bgp_core::config;

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Those of the speaker.
    pub speaker: config::Limits,
    /// How long kernel routes of an earlier run outlive the word that a family is complete. FRR says End-of-RIB at once and
    /// sends its routes up to eleven seconds later, when it has gathered its neighbours into groups (8.4: 1 s and 50 ms for
    /// each neighbour): its routes would be out of the kernel meanwhile.
    pub leftovers: Duration,
    /// How long a start waits for End-of-RIB before it is ready without.
    pub ready: Duration,
    /// How much longer a start may take before the condition of the node names what is missing.
    pub start: Duration,
    /// How long the kernel may refuse policy before the node cannot have pods.
    pub refused: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            speaker: config::Limits::default(),
            leftovers: Duration::from_secs(12),
            ready: Duration::from_secs(20),
            start: Duration::from_secs(10),
            refused: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// The default limits, each divided by `divisor`; 0 counts as 1.
    #[must_use]
    pub fn divided_by(divisor: u32) -> Limits {
        let (all, divisor) = (Limits::default(), divisor.max(1));
        Limits {
            speaker: config::Limits::divided_by(divisor),
            leftovers: all.leftovers / divisor,
            ready: all.ready / divisor,
            start: all.start / divisor,
            refused: all.refused / divisor,
        }
    }
}
