//! How the servers ask: the owner of the world, the RIB, and the pulses of the threads.

use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot, watch};

use super::{Ask, Query, Reply};
use crate::api::{Refusal, RoutePage, RouteQuestion};
use crate::bgp::{self, Speaking};
use crate::pulses::Pulses;

/// Listings of routes that wait for the RIB at once; more of them queue up.
const LISTINGS: usize = 4;

/// Whom the servers ask.
#[derive(Clone)]
pub struct Asker {
    world: Ask<Query>,
    speaking: Option<Speaking>,
    /// Whether learned routes go into the kernel.
    kernel: bool,
    turns: watch::Receiver<u64>,
    pulses: Pulses,
    listings: Arc<Semaphore>,
}

impl Asker {
    /// Asks this world. There is no speaker.
    pub fn new(world: Ask<Query>) -> Asker {
        let (_, turns) = watch::channel(0);
        Asker {
            world,
            speaking: None,
            kernel: false,
            turns,
            pulses: Pulses::default(),
            listings: Arc::new(Semaphore::new(LISTINGS)),
        }
    }

    /// The speaker to ask for routes. `kernel`: whether its routes go into the kernel.
    pub fn with_speaker(self, speaking: Speaking, kernel: bool) -> Asker {
        Asker {
            speaking: Some(speaking),
            kernel,
            ..self
        }
    }

    /// What counts the turns of the world in which something may have changed, and the pulses of all threads.
    pub fn with_signs(self, turns: watch::Receiver<u64>, pulses: Pulses) -> Asker {
        Asker {
            turns,
            pulses,
            ..self
        }
    }

    /// Asks the owner of the world; a daemon that stops is a refusal.
    pub async fn ask<T>(&self, query: impl FnOnce(Reply<T>) -> Query) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        (self.world)(query(reply));
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Asks the RIB for a page of routes, on a thread that may wait for it.
    pub async fn routes(&self, question: RouteQuestion) -> Result<RoutePage, Refusal> {
        let Some(speaking) = &self.speaking else {
            return Err(Refusal::hinted(
                "this agent runs without BGP",
                "it was left out of --features",
            ));
        };
        let Some(speaker) = speaking.get().cloned() else {
            return Err(Refusal::hinted(
                "BGP has not started",
                "it waits until the objects have been read",
            ));
        };
        // The semaphore is never closed.
        let permit = Arc::clone(&self.listings).acquire_owned().await;
        let kernel = self.kernel;
        let page = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            bgp::routes(&speaker, &question, kernel)
        });
        page.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Changes with each turn of the world in which something may have changed.
    pub fn turns(&self) -> watch::Receiver<u64> {
        self.turns.clone()
    }

    /// The pulses of all threads.
    pub fn pulses(&self) -> &Pulses {
        &self.pulses
    }
}

/// What a question to a daemon that ends is answered.
pub(super) fn stopping() -> Refusal {
    Refusal::hinted("the daemon is stopping", "try again when it is back")
}
