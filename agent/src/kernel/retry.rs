//! When something that failed is tried again.

use std::time::{Duration, Instant};

/// A second after the first failure, after twice as long each time,
const FIRST: Duration = Duration::from_secs(1);
/// at most after this time.
const LAST: Duration = Duration::from_secs(60);

/// The next attempt at one thing, if the last one failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    failed: Option<Failed>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    /// How long after the failure it is tried again.
    wait: Duration,
    again: Instant,
}

impl Retry {
    /// It was tried at `now` and failed.
    pub fn failed(&mut self, now: Instant) {
        let wait = self
            .failed
            .map_or(FIRST, |before| (2 * before.wait).min(LAST));
        self.failed = Some(Failed {
            wait,
            again: now + wait,
        });
    }

    /// It succeeded, or is another thing from now on.
    pub fn done(&mut self) {
        self.failed = None;
    }

    /// When it is tried again; `None`: the last attempt did not fail.
    pub fn at(&self) -> Option<Instant> {
        self.failed.map(|failed| failed.again)
    }

    /// It failed and is to be tried again at `now`.
    pub fn is_due(&self, now: Instant) -> bool {
        self.at().is_some_and(|at| at <= now)
    }

    /// It failed and rests at `now`.
    pub fn is_resting(&self, now: Instant) -> bool {
        self.at().is_some_and(|at| at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_ever_less_often_and_at_least_once_a_minute() {
        let mut retry = Retry::default();
        let mut now = Instant::now();
        assert!(retry.at().is_none() && !retry.is_due(now) && !retry.is_resting(now));
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            retry.failed(now);
            assert!(retry.is_resting(now) && !retry.is_due(now));
            let at = retry.at().unwrap();
            assert_eq!(at - now, Duration::from_secs(seconds));
            now = at;
            assert!(retry.is_due(now) && !retry.is_resting(now));
        }
        retry.done();
        assert!(retry.at().is_none() && !retry.is_due(now));
        retry.failed(now);
        assert_eq!(retry.at(), Some(now + FIRST));
    }
}
