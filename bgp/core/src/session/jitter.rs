//! Randomness from a seed: equal seeds and inputs make equal behaviour.

use std::time::Duration;

/// A small generator (SplitMix64). Not for secrets.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// `d` times a random factor from `from` to `to`, in per cent.
    pub fn percent(&mut self, d: Duration, from: u64, to: u64) -> Duration {
        // In steps of a hundredth of a per cent.
        let factor = from * 100 + self.next() % ((to - from) * 100 + 1);
        let nanos = d.as_nanos() * u128::from(factor) / 10_000;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_between_the_bounds_and_moves() {
        let mut j = Jitter::new(7);
        let d = Duration::from_secs(100);
        let all: Vec<_> = (0..1000).map(|_| j.percent(d, 75, 125)).collect();
        assert!(
            all.iter()
                .all(|x| (75..=125).contains(&x.as_secs()) && *x <= Duration::from_secs(125))
        );
        assert!(all.iter().min() < Some(&Duration::from_secs(80)));
        assert!(all.iter().max() > Some(&Duration::from_secs(120)));
    }
}
