//! What was done: random choices from a seed, and the last steps for who reads of a failure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Steps that a failure shows.
const KEPT: usize = 60;

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `bound` - 1; 0 when there is no such number.
    pub fn below(&mut self, bound: usize) -> usize {
        match bound as u64 {
            0 => 0,
            bound => usize::try_from(self.next_u64() % bound).unwrap_or_default(),
        }
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of them; none of none.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.below(all.len())).cloned()
    }
}

/// The steps of one world.
#[derive(Debug)]
pub struct Journal {
    world: &'static str,
    started: Instant,
    last: VecDeque<String>,
    number: usize,
    loud: bool,
}

impl Journal {
    /// Of a world; `loud` prints each step.
    #[must_use]
    pub fn new(world: &'static str, loud: bool) -> Journal {
        Journal {
            world,
            started: Instant::now(),
            last: VecDeque::new(),
            number: 0,
            loud,
        }
    }

    /// Writes down a step before it is done.
    pub fn step(&mut self, text: impl Into<String>) {
        self.number += 1;
        let at = self.started.elapsed().as_secs_f64();
        let line = format!("{:>6} {at:>8.1} s  {}", self.number, text.into());
        if self.loud {
            eprintln!("{}: {line}", self.world);
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The last steps, one a line.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        format!("the last steps of {}:\n{}", self.world, lines.join("\n"))
    }

    /// Since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many there were.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }
}
