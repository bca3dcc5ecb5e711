//! A day of a cluster in fast motion: two worlds side by side, random steps from a seed, a naive model of each.
//!
//! ```text
//!   Plan (seed, time, sizes) ──┬──► reflector: a reflector, light speakers of a range, BIRDs
//!                              └──► nodes: agents with pods and policies, a top-of-rack router, links
//! ```
//! A world takes random steps; which ones follows from its seed and its model, never from what was observed, so that a seed
//! repeats them. Every few minutes each time limit of the agent is gone past by somebody whose session, routes or pause only
//! this limit ends (ADR 22). Every now and then a world waits, with a deadline, until each side holds what the model says. At the end it goes
//! back to the state of its start; memory, descriptors, threads and CPU time of those agents that lived through it are
//! compared. On a failure the last steps and both states are told.

mod journal;
mod nodes;
mod policies;
mod reflector;
mod resources;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use selvage_lab::Lab;

use self::resources::Usage;

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the random steps.
    pub seed: u64,
    /// How long steps are taken; start and end come on top.
    pub time: Duration,
    /// Light speakers of the reflector.
    pub clients: usize,
    /// BIRDs of the reflector.
    pub birds: usize,
    /// Sessions that end in one step, at most.
    pub ends: usize,
    /// Changes of one prefix in one step, at most.
    pub storm: usize,
    /// Once at the start, and in a long run every five minutes, neighbours are gone for so long at least before others take
    /// their place: longer than what an agent remembers of them. Meanwhile each time limit is gone past.
    pub linger: Duration,
    /// Nodes.
    pub nodes: usize,
    /// Hold time of the reflector's sessions. A loaded machine must not end a session by itself.
    pub hold: Duration,
    /// Steps of the reflector's world between two checkpoints.
    pub between: usize,
    /// How long a quiet process is watched.
    pub watched: Duration,
    /// What is told while it goes on: every so often, and never if `None`.
    pub told: Option<Duration>,
    /// Which worlds: the reflector, the nodes.
    pub worlds: (bool, bool),
    /// Prints each step.
    pub loud: bool,
}

impl Plan {
    /// Small worlds, for a run of a minute.
    #[must_use]
    pub fn short(seed: u64) -> Plan {
        Plan {
            seed,
            time: Duration::from_secs(15),
            clients: 24,
            birds: 1,
            ends: 4,
            storm: 50,
            linger: Duration::from_secs(35),
            nodes: 3,
            hold: Duration::from_secs(9),
            between: 100,
            watched: Duration::from_secs(5),
            told: None,
            worlds: (true, true),
            loud: false,
        }
    }

    /// `make soak`.
    #[must_use]
    pub fn long(seed: u64, time: Duration) -> Plan {
        Plan {
            seed,
            time,
            clients: 64,
            birds: 2,
            ends: 40,
            storm: 400,
            linger: Duration::from_secs(45),
            nodes: 3,
            hold: Duration::from_secs(15),
            between: 400,
            watched: Duration::from_secs(10),
            told: Some(Duration::from_secs(60)),
            worlds: (true, true),
            loud: false,
        }
    }
}

/// What a world has seen.
#[derive(Clone, Debug)]
pub struct Report {
    /// The name of the world.
    pub name: &'static str,
    /// Its figures, for people.
    pub lines: Vec<String>,
    /// What its agent used at rest, before the steps and after them.
    usage: (Usage, Usage),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{}: {line}", self.name)?;
        }
        Usage::table(f, self.name, &self.usage.0, &self.usage.1)
    }
}

/// Told when a world has failed: the other one need not go on.
#[derive(Debug, Default)]
struct Stop(AtomicBool);

impl Stop {
    fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs the worlds of a plan.
///
/// # Errors
/// When an agent does not hold what it should, or keeps what it should not: with the seed, the last steps and both states.
pub fn run(lab: &Lab, plan: &Plan) -> Result<Vec<Report>> {
    type World = fn(&Lab, &Plan, &Stop) -> Result<Report>;
    let stop = Stop::default();
    let all: [(bool, World); 2] = [(plan.worlds.0, reflector::run), (plan.worlds.1, nodes::run)];
    let results: Vec<Result<Report>> = thread::scope(|scope| {
        let running: Vec<_> = all
            .into_iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, world)| {
                let stop = &stop;
                scope.spawn(move || {
                    let done = world(lab, plan, stop);
                    if done.is_err() {
                        stop.0.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        let results = running.into_iter().map(thread::ScopedJoinHandle::join);
        results
            .map(|result| result.unwrap_or_else(|_| Err(anyhow!("a world has panicked"))))
            .collect()
    });
    results.into_iter().collect()
}
