//! The pulse of a thread: whether it is at work, and for how long.
//!
//! A thread stamps its pulse when a turn begins and clears the stamp before it waits. So a thread that hangs is found by
//! whoever looks, and a thread that sleeps need not wake up to show that it lives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// See the module. One thread stamps it; any thread reads it.
#[derive(Debug)]
pub struct Pulse {
    name: &'static str,
    origin: Instant,
    /// When the turn began, in nanoseconds after `origin`, plus 1; 0: the thread waits.
    turn: AtomicU64,
}

impl Pulse {
    /// The pulse of the thread `name`, which waits.
    pub fn new(name: &'static str) -> Arc<Pulse> {
        Arc::new(Pulse {
            name,
            origin: Instant::now(),
            turn: AtomicU64::new(0),
        })
    }

    /// The name of the thread.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A turn begins.
    pub fn work(&self) {
        let now = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.turn.store(now.saturating_add(1), Ordering::Relaxed);
    }

    /// The thread is about to wait for work.
    pub fn rest(&self) {
        self.turn.store(0, Ordering::Relaxed);
    }

    /// How long the present turn has lasted; `None`: the thread waits for work.
    pub fn busy_for(&self) -> Option<Duration> {
        let began = self.turn.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.origin
                .elapsed()
                .saturating_sub(Duration::from_nanos(began)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_busy_from_the_start_of_a_turn_until_it_waits() {
        let pulse = Pulse::new("x");
        assert_eq!(pulse.busy_for(), None);
        pulse.work();
        let first = pulse.busy_for().unwrap();
        while pulse.busy_for().unwrap() <= first {
            std::thread::yield_now();
        }
        pulse.rest();
        assert_eq!(pulse.busy_for(), None);
    }
}
