//! Policy: one transaction at a time, and the flows that it cuts.

use std::{sync::Arc, time::Duration};

use selvage_policy::{
    LocalStatus,
    plan::{Gen, Op},
};
use tracing::{error, info, warn};

use super::{RETRY, World};
use crate::{
    desired,
    kernel::{
        conntrack::{FlowEvent, FlowWork},
        nft::{NftEvent, NftWork, Want},
    },
    store::{Dirty, Observed, PolicyState},
};

impl World {
    pub(super) fn tell_compiler(&mut self, dirty: &Dirty) {
        if self.setup.features.policy {
            let mut changes = desired::policy(&self.store, dirty);
            changes.extend(self.foreign_changes(dirty));
            for change in changes {
                self.compiler.apply(change);
                self.policy.told += 1;
            }
        }
    }

    /// Whether plans go to the kernel. None does before the source has said everything once and pods are known as far as
    /// the kernel shows them: the plan of half a world would close pods that the run before has open.
    pub(super) fn writes_policy(&self) -> bool {
        self.setup.features.policy && self.store.synced() && self.pods_are_read()
    }

    /// One transaction at a time: what comes meanwhile goes into the next.
    pub(super) fn push_policy(&mut self) {
        if !self.writes_policy() || self.policy.in_flight.is_some() {
            return;
        }
        if let Some(at) = self.policy.whole_at {
            if at <= self.now {
                self.send_plan();
            }
        } else if let Some(delta) = self.compiler.take_delta() {
            self.policy.in_flight = Some(delta.to);
            // A part of a change does not count.
            self.policy.flying = match self.compiler.is_filling() {
                true => self.policy.done,
                false => self.policy.told,
            };
            // Where no flow is cut there is none to let go on. What is known of that is not of pods that come.
            let opens_pod = |op: &Op| matches!(op, Op::AddElem(_, _, Some(_)));
            if delta.may_revoke()
                || delta.may_allow() && (self.flows.may_be_cut() || delta.ops.iter().any(opens_pod))
            {
                let none = self.without_flows();
                let affected = delta.affected().into_iter();
                self.flows
                    .coming
                    .extend(affected.filter(|addr| !none.contains(addr)));
            }
            self.tell_nft(NftWork::Delta(delta));
        } else {
            // What was told has changed nothing in the plan that the kernel has.
            self.policy.done = self.policy.told;
        }
    }

    pub(super) fn send_plan(&mut self) {
        let (generation, plan) = self.compiler.take_plan();
        let plan = Arc::new(plan.clone());
        self.policy.in_flight = Some(generation);
        self.policy.flying = self.policy.told;
        self.policy.whole_at = None;
        self.flows.coming = self.compiler.local_addresses();
        self.flows.coming_whole = true;
        self.tell_nft(NftWork::Plan(generation, plan));
    }

    pub(super) fn tell_nft(&self, work: NftWork) {
        if let Some(nft) = &self.out.nft {
            nft.send(work);
        }
    }

    pub(super) fn nft_event(&mut self, event: NftEvent) -> Dirty {
        match event {
            NftEvent::Applied {
                generation,
                repaired,
            } => {
                self.policy.in_flight = None;
                self.policy.applied = Some(generation);
                self.policy.done = self.policy.flying;
                self.policy.failure = None;
                self.policy.repaired += u64::from(repaired);
                if repaired {
                    self.flows.due = self.compiler.local_addresses();
                    self.flows.due_whole = true;
                }
                self.flows.due.append(&mut self.flows.coming);
                self.flows.due_whole |= std::mem::take(&mut self.flows.coming_whole);
                if !self.flows.due.is_empty() {
                    self.flows.number += 1;
                }
            }
            NftEvent::Failed {
                generation,
                op,
                errno,
                reason,
            } => {
                self.policy.in_flight = None;
                self.policy.applied = None;
                // At once, unless that has just been refused: a delta often fails because somebody flushed the table.
                let rest = match self.policy.failure {
                    Some(_) => RETRY,
                    None => Duration::ZERO,
                };
                self.policy.whole_at = Some(self.now + rest);
                let op = op.map(|op| format!(" ({op})")).unwrap_or_default();
                error!(%generation, errno, "the kernel refused the policy{op}: {reason}");
                self.policy.failure = Some(format!("{reason}{op}"));
            }
            NftEvent::WantPlan(want) => {
                if let Want::Foreign { by } = &want {
                    warn!(
                        by,
                        "kernel state repaired: somebody else had changed our nftables table"
                    );
                }
                self.policy.in_flight = None;
                // Whoever waits is not let go on what the kernel had before.
                self.policy.applied = None;
                self.policy.whole_at = Some(self.now);
            }
            NftEvent::Kept {
                number, refused, ..
            } => return self.nat_kept(number, refused),
            NftEvent::Repaired { .. } => self.policy.repaired += 1,
            NftEvent::Droppers(droppers) => {
                let named = droppers.into_iter();
                let named = named.map(|d| format!("{} {} {}", d.family, d.table, d.chain));
                return self.store.observe(Observed::Droppers(named.collect()));
            }
            // For the keeper of that table, who was told beside us.
            NftEvent::Damaged { .. } => return Dirty::default(),
        }
        self.store.observe(Observed::Policy(PolicyState {
            enforced: self.policy.applied.map_or(0, |applied| applied.0),
            failure: self.policy.failure.clone(),
            repaired: self.policy.repaired,
        }))
    }

    /// Looks at established flows that may not be allowed any more: one pass at a time, and not one after the other
    /// without end, since each reads the kernel's whole table.
    pub(super) fn check_flows(&mut self) {
        let rests = self.flows.rests_until(self.now).is_some();
        if self.flows.due.is_empty() || self.flows.in_pass || rests {
            return;
        }
        let due = std::mem::take(&mut self.flows.due);
        self.flows.passing = self.flows.number;
        self.flows.passing_whole = std::mem::take(&mut self.flows.due_whole);
        match &self.out.flows {
            Some(flows) => {
                self.flows.in_pass = true;
                flows.send(FlowWork::Check(Arc::new(due)));
            }
            None => self.flows.done = self.flows.number,
        }
    }

    pub(super) fn flow_event(&mut self, event: FlowEvent) {
        match event {
            FlowEvent::Judge(asked) => {
                let allowed = asked
                    .iter()
                    .map(|flow| self.compiler.allowed(flow))
                    .collect();
                if let Some(flows) = &self.out.flows {
                    flows.send(FlowWork::Judged(allowed));
                }
            }
            FlowEvent::Forgot(number) => {
                self.forgetting.retain(|_, wanted| *wanted > number);
                self.lives.forgot(number);
                self.foreign.forgot(number);
            }
            FlowEvent::Left(addresses) => self.lives.left(addresses),
            FlowEvent::Seen {
                prefixes,
                addresses,
            } => self.lives.seen(prefixes, addresses),
            FlowEvent::Passed(passed) => {
                self.flows.in_pass = false;
                self.flows.done = self.flows.passing;
                if passed.still_cut > 0 {
                    self.flows.some_cut = true;
                } else if self.flows.passing_whole {
                    self.flows.some_cut = false;
                }
                self.flows.last = Some(self.now);
                if passed.revoked + passed.restored > 0 {
                    info!(
                        cut = passed.revoked,
                        restored = passed.restored,
                        of = passed.seen,
                        "established flows"
                    );
                }
            }
        }
    }

    /// Whether the pod behind an interface has its policy in the kernel.
    pub(super) fn is_enforced(&mut self, host_if: &str) -> Option<Gen> {
        let ifname = host_if.parse().ok()?;
        let LocalStatus::Planned(planned) = self.compiler.status(&ifname) else {
            return None;
        };
        self.policy.applied.filter(|applied| planned <= *applied)
    }
}
