//! Waits that have not come true yet.

use super::Reply;
use crate::api::WaitFor;

/// How far the daemon is. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The newest mark that the source has passed ([`crate::source::ObjectEvent::Reached`]).
    pub reached: u64,
    /// Everything known is planned, and the plan is in the kernel.
    pub policy_settled: bool,
    /// Every route decided so far was answered by the kernel.
    pub routes_settled: bool,
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

#[derive(Debug)]
struct Wait {
    what: WaitFor,
    mark: u64,
    reply: Reply<()>,
}

impl Waits {
    /// Takes a wait. The source has to be asked to pass the mark that comes back.
    pub fn add(&mut self, what: WaitFor, reply: Reply<()>) -> u64 {
        self.mark += 1;
        self.pending.push(Wait {
            what,
            mark: self.mark,
            reply,
        });
        self.mark
    }

    /// Answers what has come true, and forgets whose asker has gone.
    pub fn settle(&mut self, progress: &Progress) {
        let pending = std::mem::take(&mut self.pending);
        for wait in pending {
            if wait.reply.is_closed() {
                continue;
            }
            let synced =
                progress.reached >= wait.mark && progress.policy_settled && progress.routes_settled;
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
            policy_settled: true,
            routes_settled: true,
            ..Progress::default()
        };
        waits.settle(&progress);
        assert!(synced.try_recv().is_err() && ready.try_recv().is_err());
        progress.reached = mark;
        waits.settle(&progress);
        assert_eq!(synced.try_recv(), Ok(Ok(())));
        assert!(ready.try_recv().is_err());
        drop(ready);
        waits.settle(&progress);
        assert!(waits.is_empty());
    }
}
