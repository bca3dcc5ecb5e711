//! Waits that have not come true yet.

use super::Reply;
use crate::api::WaitFor;

/// How far the daemon is. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The newest mark that the source has passed ([`crate::source::ObjectEvent::Reached`]).
    pub reached: u64,
    /// Counts what the policy compiler was told.
    pub policy_told: u64,
    /// How much of that the kernel has; `None`: its rules are in doubt.
    pub policy_done: Option<u64>,
    /// Counts the changes of policy after which established flows have to be looked at.
    pub flows_due: u64,
    /// How many of these were looked at, and what is denied was cut.
    pub flows_done: u64,
    /// The number that has to come back before the routes decided by now are in the kernel.
    pub routes_due: u64,
    /// The newest number that came back.
    pub routes_done: u64,
    /// The node can serve pods.
    pub ready: bool,
    /// Every configured neighbour is Established and has sent its End-of-RIB.
    pub peers: bool,
}

/// Waits that have not come true yet.
#[derive(Debug, Default)]
pub struct Waits {
    pending: Vec<Wait>,
    mark: u64,
}

/// A wait comes true in steps. At each step the goal of the next one is set, so that what comes later holds up nobody.
#[derive(Debug)]
struct Wait {
    what: WaitFor,
    mark: u64,
    /// When the source had reached the mark: what has to be in the kernel, rules and routes.
    goal: Option<(u64, u64)>,
    /// When the rules were in the kernel: the change after which flows have to have been looked at.
    flows: Option<u64>,
    reply: Reply<()>,
}

impl Wait {
    /// All that the source held when it was asked is in the kernel, and the flows that it denies are cut.
    fn is_synced(&mut self, progress: &Progress) -> bool {
        if progress.reached < self.mark {
            return false;
        }
        let goal = (progress.policy_told, progress.routes_due);
        let (policy, routes) = *self.goal.get_or_insert(goal);
        if progress.policy_done.is_none_or(|done| done < policy) {
            return false;
        }
        let flows = *self.flows.get_or_insert(progress.flows_due);
        progress.flows_done >= flows && progress.routes_done >= routes
    }
}

impl Waits {
    /// Takes a wait. The source has to be asked to pass the mark that comes back.
    pub fn add(&mut self, what: WaitFor, reply: Reply<()>) -> u64 {
        self.mark += 1;
        self.pending.push(Wait {
            what,
            mark: self.mark,
            goal: None,
            flows: None,
            reply,
        });
        self.mark
    }

    /// Answers what has come true, and forgets whose asker has gone.
    pub fn settle(&mut self, progress: &Progress) {
        let pending = std::mem::take(&mut self.pending);
        for mut wait in pending {
            if wait.reply.is_closed() {
                continue;
            }
            let synced = wait.is_synced(progress);
            let done = match wait.what {
                WaitFor::Synced => synced,
                WaitFor::Ready => progress.ready,
                WaitFor::Peers => synced && progress.peers,
            };
            if done {
                let _ = wait.reply.send(Ok(()));
            } else {
                self.pending.push(wait);
            }
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn answered_when_true_and_not_before() {
        let mut waits = Waits::default();
        let (reply, mut synced) = oneshot::channel();
        let mark = waits.add(WaitFor::Synced, reply);
        let (reply, mut ready) = oneshot::channel();
        waits.add(WaitFor::Ready, reply);
        let mut progress = Progress {
            policy_done: Some(0),
            ..Progress::default()
        };
        waits.settle(&progress);
        assert!(synced.try_recv().is_err() && ready.try_recv().is_err());
        // What the source held goes into the kernel, while more comes.
        (progress.reached, progress.policy_told, progress.routes_due) = (mark, 5, 2);
        for step in [
            |p: &mut Progress| (p.policy_told, p.policy_done) = (9, Some(4)),
            |p: &mut Progress| p.policy_done = None,
            |p: &mut Progress| (p.policy_done, p.flows_due) = (Some(5), 3),
            |p: &mut Progress| (p.flows_done, p.flows_due) = (2, 7),
            |p: &mut Progress| (p.flows_done, p.routes_done) = (3, 1),
        ] {
            waits.settle(&progress);
            assert!(synced.try_recv().is_err(), "{progress:?}");
            step(&mut progress);
        }
        progress.routes_done = 2;
        waits.settle(&progress);
        assert_eq!(synced.try_recv(), Ok(Ok(())));
        assert!(ready.try_recv().is_err());
        drop(ready);
        waits.settle(&progress);
        assert!(waits.is_empty());
    }
}
