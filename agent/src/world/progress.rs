//! How far it is: readiness, and what others wait for.

use std::time::Instant;

use selvage_bgp::core::ids::FamilySet;
use selvage_cni::link;
use tracing::{error, info};

use super::{READY_LIMIT, START_LIMIT, Work, World};
use crate::{
    api::ReadyView,
    control::waits::Progress,
    kernel::routes::{Reply as RouteReply, RouteWork},
    store::SessionState,
};

impl World {
    /// Looks at what somebody waits for: readiness, and waits of the control API.
    pub(super) fn look(&mut self) {
        if self.ready.ready && self.waits.is_empty() {
            return;
        }
        self.push_policy();
        self.check_ready();
        if !self.waits.is_empty() {
            self.look_at_peers();
        }
        self.pass_barrier();
        let settled = self.policy_is_settled();
        let mut waits = std::mem::take(&mut self.waits);
        waits.settle(&Progress {
            reached: self.store.reached(),
            policy_settled: settled,
            routes_settled: self.barrier.done >= self.barrier.wanted,
            ready: self.ready.ready,
            peers: self.peers_are_up(),
        });
        self.waits = waits;
    }

    /// What the source held at a mark has reached the kernel when two numbers have come back since. Before each the RIB was
    /// asked for its peers, in the order of its work: by the second it has decided, and what it decided is written.
    pub(super) fn pass_barrier(&mut self) {
        let barrier = &mut self.barrier;
        if self.store.reached() > barrier.mark {
            barrier.mark = self.store.reached();
            barrier.wanted = barrier.asked + 2;
        }
        if barrier.asked > barrier.done || barrier.done >= barrier.wanted {
            return;
        }
        let Some(routes) = &self.out.routes else {
            barrier.asked = barrier.wanted;
            barrier.done = barrier.wanted;
            return;
        };
        barrier.asked += 1;
        let number = barrier.asked;
        let world = self.out.world.clone();
        let done = move |_: &_| world.send(Work::RoutesDone(number));
        routes.send(RouteWork::Query(RouteReply(Box::new(done))));
    }

    pub(super) fn policy_is_settled(&self) -> bool {
        !self.setup.features.policy
            || (self.policy.applied.is_some()
                && self.policy.in_flight.is_none()
                && self.policy.whole_at.is_none())
    }

    pub(super) fn peers_are_up(&self) -> bool {
        let Some(speaker) = &self.speaker else {
            return !self.setup.features.bgp;
        };
        speaker.config.peers.iter().all(|peer| {
            let session = self.store.session(&peer.key.addr);
            session.is_some_and(|s| s.state == SessionState::Established && s.end_of_rib)
        })
    }

    /// When a node that is not ready is judged again although nothing happens until then.
    pub(super) fn readiness_wakeup(&self) -> Option<Instant> {
        if self.ready.ready {
            return None;
        }
        let limit = self.setup.started + READY_LIMIT;
        [limit, limit + START_LIMIT]
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
        if self.setup.features.policy && self.policy.applied.is_none() {
            missing.push("policy is not in the kernel".to_owned());
        }
        if self.store.synced() {
            missing.extend(self.missing_cidrs());
        }
        let late = self.now >= self.setup.started + READY_LIMIT;
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
        self.look_at_peers();
        let down = self
            .speaker
            .iter()
            .flat_map(|s| &s.config.peers)
            .map(|p| p.key.addr);
        let down = down.filter(|a| {
            self.store
                .session(a)
                .is_none_or(|s| s.state != SessionState::Established)
        });
        self.ready = ReadyView {
            ready: true,
            missing: down.map(|a| format!("neighbour {a} is not up")).collect(),
        };
        self.publish_soon();
        match std::fs::write(self.setup.run_dir.join(link::READY), "") {
            Ok(()) => info!(without = ?self.ready.missing, "ready"),
            Err(error) => {
                error!(%error, "cannot write the ready file: the plugin will refuse pods")
            }
        }
    }
}
