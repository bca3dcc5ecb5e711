//! How far it is: readiness, and what others wait for.

use std::time::Instant;

use selvage_bgp::core::ids::FamilySet;
use selvage_cni::link;
use tracing::{error, info};

use super::{Work, World};
use crate::{
    api::ReadyView,
    control::waits::Progress,
    kernel::routes::{Reply as RouteReply, RouteWork},
    store::PeerState,
};

impl World {
    /// Looks at what somebody waits for: readiness, and waits of the control API.
    pub(super) fn look(&mut self) {
        if self.ready.ready && self.waits.is_empty() {
            return;
        }
        self.push_policy();
        self.check_ready();
        self.pass_barrier();
        let mut waits = std::mem::take(&mut self.waits);
        waits.settle(&Progress {
            reached: self.store.reached(),
            policy_told: self.policy.told,
            policy_done: self.policy_done(),
            flows_due: self.flows.number,
            flows_done: self.flows.done,
            routes_due: self.barrier.wanted,
            routes_done: self.barrier.done,
            ready: self.ready.ready,
            peers: self.peers_are_up(),
        });
        self.waits = waits;
    }

    /// What the source held at a mark has reached the kernel when two numbers have come back since. Each passes through the
    /// speaker and the route writer, behind all that they were told before: after the first the RIB knows how the next hops
    /// are reached that it asked for, and after the second what it decided by them is written.
    pub(super) fn pass_barrier(&mut self) {
        let barrier = &mut self.barrier;
        if self.store.reached() > barrier.mark {
            barrier.mark = self.store.reached();
            barrier.wanted = barrier.asked + 2;
        }
        if barrier.asked > barrier.done || barrier.done >= barrier.wanted {
            return;
        }
        let number = barrier.asked + 1;
        let passes = match (&self.out.bgp, &self.out.routes) {
            (Some(bgp), _) if bgp.barrier(number) => true,
            (_, Some(routes)) => {
                let world = self.out.world.clone();
                let done = move |_: &_| world.send(Work::RoutesDone(number));
                routes.send(RouteWork::Query(RouteReply(Box::new(done))));
                true
            }
            (_, None) => false,
        };
        self.barrier.asked = number;
        if !passes {
            self.barrier.asked = self.barrier.wanted;
            self.barrier.done = self.barrier.wanted;
        }
    }

    /// How much of what the compiler was told the kernel has.
    fn policy_done(&self) -> Option<u64> {
        if !self.setup.features.policy {
            return Some(self.policy.told);
        }
        self.policy.applied.map(|_| self.policy.done)
    }

    pub(super) fn peers_are_up(&self) -> bool {
        let Some(speaker) = &self.speaker else {
            return !self.setup.features.bgp;
        };
        speaker.config.peers.iter().all(|peer| {
            let session = self.store.session(&peer.key.addr);
            session.is_some_and(PeerState::is_complete)
        })
    }

    /// When a node that is not ready is judged again although nothing happens until then.
    pub(super) fn readiness_wakeup(&self) -> Option<Instant> {
        if self.ready.ready {
            return None;
        }
        let limits = self.setup.limits;
        let limit = self.setup.started + limits.ready;
        [limit, limit + limits.start]
            .into_iter()
            .find(|at| *at > self.now)
    }

    pub(super) fn check_ready(&mut self) {
        if self.ready.ready {
            return;
        }
        let mut missing = Vec::new();
        if !self.store.synced() {
            missing.push("the source has not been read".to_owned());
        }
        if !self.pods_are_read() {
            missing.push("routes to pods have not been read".to_owned());
        }
        if self.setup.features.policy && self.policy.applied.is_none() {
            missing.push("policy is not in the kernel".to_owned());
        }
        if self.store.synced() {
            missing.extend(self.missing_cidrs());
        }
        let late = self.now >= self.setup.started + self.setup.limits.ready;
        if self.setup.features.bgp && self.synced != FamilySet::ALL && !late {
            missing.push("routes of the neighbours are not complete".to_owned());
        }
        if !missing.is_empty() {
            if self.ready.missing != missing {
                self.ready.missing = missing;
                self.publish_soon();
            }
            return;
        }
        self.ready = ReadyView {
            ready: true,
            missing: Vec::new(),
        };
        self.publish_soon();
        match std::fs::write(self.setup.run_dir.join(link::READY), "") {
            Ok(()) => info!(without = ?self.shortcomings(), "ready"),
            Err(error) => {
                error!(%error, "cannot write the ready file: the plugin will refuse pods")
            }
        }
    }

    /// What a node that is ready does without at the moment.
    pub(super) fn shortcomings(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.missing_cidrs().into_iter().collect();
        let configured = self.speaker.iter().flat_map(|s| &s.config.peers);
        let down = configured.map(|peer| peer.key.addr).filter(|address| {
            let session = self.store.session(address);
            !session.is_some_and(PeerState::is_up)
        });
        missing.extend(down.map(|address| format!("neighbour {address} is not up")));
        missing
    }
}
