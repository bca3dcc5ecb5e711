//! Questions of people and programs, answered from what is known.

use std::collections::BTreeSet;

use selvage_policy::{LocalStatus, model::IfName};

use super::{World, pods::pod_name};
use crate::{
    api::{Refusal, StatusView},
    control::{
        Query,
        views::{self, Closed, ClosedPod, PolicyProgress},
    },
    kernel::sysctl,
    pulses::LONG_TURN,
    store::Observed,
};

impl World {
    pub(super) fn answer(&mut self, query: Query) {
        // Whoever asked may be gone; that is no error.
        match query {
            Query::Status(reply) => {
                let _ = reply.send(Ok(self.status()));
            }
            Query::Peers(question, reply) => {
                let _ = reply.send(views::peers(&self.store, self.speaker.as_ref(), &question));
            }
            Query::Why(question, reply) => {
                let answer = if self.setup.features.policy {
                    views::why(&self.compiler, &question, &self.store, &self.obstacles())
                } else {
                    Err(Refusal::hinted(
                        "this agent enforces no policy",
                        "it was left out of --features",
                    ))
                };
                let _ = reply.send(answer);
            }
            Query::Objects(reply) => {
                let _ = reply.send(Ok(views::conditions(self.speaker.as_ref())));
            }
            Query::Wait(what, reply) => {
                let mark = self.waits.add(what, reply);
                (self.out.reach)(mark);
            }
        }
    }

    pub(super) fn status(&mut self) -> StatusView {
        self.verify_sysctls();
        let closed = self.closed_pods();
        let patterns = self.setup.pods.patterns();
        let unrouted: BTreeSet<_> = self
            .foreign
            .unrouted(self.now)
            .map(|(pod, _)| pod)
            .collect();
        let unrouted = unrouted.len();
        let local_pods = self.store.attachments().count() + self.foreign.locals().count();
        let planned = self.compiler.generation().0;
        let features = self.setup.features.names();
        let ready = self.ready_view();
        let obstacles = self.obstacles();
        let busy = self.out.pulses.busy_for(LONG_TURN);
        views::status(&views::World {
            store: &self.store,
            node: &self.setup.local.node,
            features: &features,
            from: &self.setup.from,
            started: self.setup.started,
            speaker: self.speaker.as_ref(),
            kernel: self.setup.features.kernel,
            policy: self.setup.features.policy.then_some(PolicyProgress {
                planned,
                closed: &closed,
                local_pods,
                pod_interfaces: &patterns,
                unrouted,
            }),
            ready: &ready,
            obstacles: &obstacles,
            busy: &busy,
        })
    }

    /// Somebody may have set those that were wrong. The kernel does not say so.
    fn verify_sysctls(&mut self) {
        if self.store.sysctls().is_empty() {
            return;
        }
        // Where they cannot be read, the ones that were found stay.
        if let Ok(wrong) = sysctl::verify(self.setup.features, &self.setup.pods)
            && wrong != self.store.sysctls()
        {
            self.store.observe(Observed::Sysctls(wrong));
            self.publish_soon();
        }
    }

    /// The pods of this node that are attached and closed, and why. One that has finished is no longer of interest.
    fn closed_pods(&mut self) -> Vec<ClosedPod> {
        if !self.setup.features.policy {
            return Vec::new();
        }
        let attached = self.store.attachments().map(|(_, attachment)| {
            let ifname = attachment.host_if.parse::<IfName>();
            (pod_name(attachment), ifname.ok(), Closed::NoPod)
        });
        let foreign = self.foreign.locals().map(|(local, pod)| match pod {
            Some(pod) => (pod.to_string(), Some(local.ifname), Closed::NoPod),
            None => {
                let addresses: Vec<_> = local.addresses.iter().map(ToString::to_string).collect();
                let name = format!("{} ({})", local.ifname, addresses.join(", "));
                (name, Some(local.ifname), Closed::Nobody)
            }
        });
        let all: Vec<_> = attached.chain(foreign).collect();
        let applied = self.policy.applied;
        let closed = all.into_iter().filter_map(|(name, ifname, unknown)| {
            let status = match ifname {
                Some(ifname) => self.compiler.status(&ifname),
                None => LocalStatus::Unknown,
            };
            let why = match status {
                LocalStatus::Planned(planned) if applied.is_some_and(|done| planned <= done) => {
                    return None;
                }
                LocalStatus::Finished => return None,
                LocalStatus::Planned(_) | LocalStatus::Staged | LocalStatus::Unknown => {
                    Closed::NotEnforced
                }
                LocalStatus::Waiting => unknown,
                LocalStatus::Shadowed => Closed::Shadowed,
            };
            Some(ClosedPod { name, why })
        });
        closed.collect()
    }
}
