//! A limit on log lines about one thing.

use std::time::Duration;

use selvage_bgp_core::clock::Now;

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets a line through every ten seconds, and counts those in between.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct LogLimit {
    last: Option<Now>,
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be logged now; then with the number of those that were left out before it.
    pub(crate) fn pass(&mut self, now: Now) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < PAUSE) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_every_ten_seconds() {
        let mut limit = LogLimit::default();
        let at = |seconds| Now(0) + Duration::from_secs(seconds);
        assert_eq!(limit.pass(at(1)), Some(0));
        for seconds in 1..11 {
            assert_eq!(limit.pass(at(seconds)), None);
        }
        assert_eq!(limit.pass(at(11)), Some(10));
        assert_eq!(limit.pass(at(11)), None);
    }
}
