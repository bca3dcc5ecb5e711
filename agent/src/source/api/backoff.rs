//! How long to wait before trying again, so that nobody is overrun when an API server comes back.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// Failures in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::up_to(LONGEST)
    }
}

impl Backoff {
    /// With pauses no longer than this.
    pub(super) fn up_to(longest: Duration) -> Backoff {
        Backoff {
            failures: 0,
            longest,
        }
    }

    /// The next pause: doubled each time, and somewhere between the half and the whole of it.
    pub(super) fn next(&mut self) -> Duration {
        let whole = FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(self.longest);
        self.failures += 1;
        whole.mul_f64(0.5 + dice() / 2.0)
    }

    /// Counts as if it had failed so often.
    pub(super) fn at_least(&mut self, failures: u32) {
        self.failures = self.failures.max(failures);
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// From 0 to 1, different in each process and each time.
pub(crate) fn dice() -> f64 {
    // The upper half fits a float without loss.
    let high = (RandomState::new().build_hasher().finish() >> 32) as u32;
    f64::from(high) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_bound_and_begins_again() {
        let mut backoff = Backoff::default();
        let mut whole = FIRST;
        for _ in 0..40 {
            let pause = backoff.next();
            assert!(
                pause >= whole / 2 && pause <= whole,
                "{pause:?} of {whole:?}"
            );
            whole = (whole * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
