//! The pulses of all threads: which of them hangs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use selvage_bgp::Pulse;

use crate::bgp::Speaking;

/// A turn that takes so long is worth a word to people.
pub const LONG_TURN: Duration = Duration::from_secs(10);
/// A thread whose turn takes so long is taken for dead: no work of ours takes that long on any machine.
pub const HANGS: Duration = Duration::from_secs(60);

/// The pulses of the agent's threads, those of the speaker included once it runs.
#[derive(Clone, Default)]
pub struct Pulses {
    own: Arc<Mutex<Vec<Arc<Pulse>>>>,
    speaking: Speaking,
}

impl Pulses {
    /// None yet but the speaker's.
    pub fn new(speaking: Speaking) -> Pulses {
        Pulses {
            own: Arc::default(),
            speaking,
        }
    }

    /// The pulse of one more thread.
    pub fn thread(&self, name: &'static str) -> Arc<Pulse> {
        let pulse = Pulse::new(name);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.push(Arc::clone(&pulse));
        pulse
    }

    /// The names of all threads, and how long the present turn of each has lasted; `None`: it waits for work.
    pub fn all(&self) -> Vec<(&'static str, Option<Duration>)> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let speakers = self.speaking.get().map(|speaker| speaker.pulses());
        own.iter()
            .chain(speakers.into_iter().flatten())
            .map(|pulse| (pulse.name(), pulse.busy_for()))
            .collect()
    }

    /// The threads whose present turn has lasted for at least `limit`.
    pub fn busy_for(&self, limit: Duration) -> Vec<(&'static str, Duration)> {
        let busy = self.all().into_iter();
        busy.filter_map(|(name, turn)| Some((name, turn.filter(|turn| *turn >= limit)?)))
            .collect()
    }
}
