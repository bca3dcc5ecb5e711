//! Limits on log lines: about one thing, and about all things together.

use std::time::Duration;

use selvage_bgp_core::clock::Now;

/// Between two lines about one thing.
const PAUSE: Duration = Duration::from_secs(10);
/// Lines about all things together in the same time.
const MOST_LINES: u32 = 20;

/// Lets a line through every ten seconds, and counts those in between.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct LogLimit {
    last: Option<Now>,
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be logged now; then with the number of those that were left out before it.
    pub(crate) fn pass(&mut self, now: Now) -> Option<u64> {
        if self.is_over(now) {
            self.left_out += 1;
            return None;
        }
        Some(self.passed(now))
    }

    /// The same for one of many things: the line needs room in the cap of all of them, too. Then with the number of lines
    /// of this thing that were left out before it, and of those of all things for which the cap had no room.
    pub(crate) fn pass_within(&mut self, now: Now, cap: &mut LogCap) -> Option<(u64, u64)> {
        let room = if self.is_over(now) {
            None
        } else {
            cap.pass(now)
        };
        let Some(of_all) = room else {
            self.left_out += 1;
            return None;
        };
        Some((self.passed(now), of_all))
    }

    fn is_over(&self, now: Now) -> bool {
        self.last.is_some_and(|last| now.since(last) < PAUSE)
    }

    fn passed(&mut self, now: Now) -> u64 {
        self.last = Some(now);
        std::mem::take(&mut self.left_out)
    }
}

/// Lets twenty lines through in ten seconds, and counts the others.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct LogCap {
    /// When the ten seconds began.
    since: Option<Now>,
    lines: u32,
    left_out: u64,
}

impl LogCap {
    /// Whether there is room for a line now; then with the number of those for which there was none before it.
    fn pass(&mut self, now: Now) -> Option<u64> {
        if self.since.is_none_or(|since| now.since(since) >= PAUSE) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= MOST_LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
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

    /// A thousand things that each have something to say every ten seconds, and one that says it every second.
    #[test]
    fn all_things_together_have_a_cap_and_no_line_is_lost_from_the_count() {
        let mut limits = vec![LogLimit::default(); 1000];
        let mut cap = LogCap::default();
        let (mut said, mut lines, mut of_one, mut of_all) = (0, 0, 0, 0);
        for second in 0..100 {
            let now = Now(0) + Duration::from_secs(second);
            let speak = |(i, _): &(usize, &mut LogLimit)| *i == 0 || *i as u64 % 10 == second % 10;
            for (_, limit) in limits.iter_mut().enumerate().filter(speak) {
                said += 1;
                if let Some((own, all)) = limit.pass_within(now, &mut cap) {
                    lines += 1;
                    of_one += own;
                    of_all += all;
                }
            }
        }
        let waiting: u64 = limits.iter().map(|limit| limit.left_out).sum();
        assert_eq!(lines, 10 * u64::from(MOST_LINES));
        assert_eq!(lines + of_one + waiting, said);
        // What the cap left out is said by the first line of the next ten seconds.
        assert!(of_all > 9 * 900, "{of_all}");
        // A thing alone is not held back for what others said long ago.
        let later = Now(0) + Duration::from_secs(200);
        let (_, of_all) = LogLimit::default().pass_within(later, &mut cap).unwrap();
        assert!(of_all > 900, "{of_all}");
    }
}
