//! The thread around the table.

use std::{
    collections::BTreeSet,
    os::fd::AsFd,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use selvage_netlink::{
    Error,
    nft::{Family, NftEvent as Notification, Watch},
};
use selvage_policy::plan::{Delta, Gen, Plan};

use super::table::{Loaded, Misapplied, NftTable};
use crate::{inbox::Inbox, kernel::Shutdown};

const DATAGRAMS: usize = 4096;

/// What the nft writer is told.
#[derive(Debug)]
pub enum NftWork {
    /// The whole plan: at the start, and as the answer to [`NftEvent::WantPlan`] and [`NftEvent::Failed`].
    Plan(Gen, Arc<Plan>),
    /// What changed since the generation that was applied last. Sent only when all before it was
    /// answered.
    Delta(Delta),
    /// End the thread; the table stays.
    Shutdown(Shutdown),
}

/// What the nft writer answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NftEvent {
    /// The kernel has this generation.
    Applied {
        /// Which.
        generation: Gen,
        /// The kernel's table was not what it should have been after we once had written it:
        /// flows accepted in between must be looked at.
        repaired: bool,
    },
    /// The kernel refused. Nothing was changed; the whole plan is wanted.
    Failed {
        /// Which generation could not be reached.
        generation: Gen,
        /// The operation that was refused, if it was one.
        op: Option<String>,
        /// The error number; 0 if the conversation itself failed.
        errno: i32,
        /// For people.
        reason: String,
    },
    /// Send the whole plan.
    WantPlan(Want),
}

/// Why the whole plan is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Want {
    /// Somebody else changed our table.
    Foreign {
        /// The programs that did, as the kernel names them.
        by: String,
    },
    /// Notifications were lost: the table is compared.
    InDoubt,
    /// A delta did not follow on what the kernel has.
    OutOfStep,
}

/// Starts the thread `nft` in the calling thread's network namespace. `output` is called there.
pub fn spawn(
    inbox: Inbox<NftWork>,
    output: impl FnMut(NftEvent) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    // Subscribed before anything is written, so that no foreign change is missed.
    let watch = Watch::open()?;
    let table = NftTable::open()?;
    watch.socket().ignore_port(table.port())?;
    let writer = Writer {
        table,
        watch,
        inbox,
        output,
        applied: None,
        wanting: false,
    };
    Ok(Builder::new()
        .name("nft".into())
        .spawn(move || writer.run())?)
}

struct Writer<F> {
    table: NftTable,
    watch: Watch,
    inbox: Inbox<NftWork>,
    output: F,
    /// What the kernel has; `None` before the first plan and after a failure.
    applied: Option<Gen>,
    /// The plan was asked for and has not come.
    wanting: bool,
}

impl<F: FnMut(NftEvent)> Writer<F> {
    fn run(mut self) {
        loop {
            if let Err(error) = self.inbox.wait(&[self.watch.as_fd()], None) {
                tracing::error!(%error, "nft: cannot wait");
                std::thread::sleep(Duration::from_millis(100));
            }
            let mut end = None;
            for work in self.inbox.recv_all() {
                match work {
                    NftWork::Shutdown(how) => end = Some(how),
                    _ if end == Some(Shutdown::Now) => {}
                    NftWork::Plan(generation, plan) => self.load(generation, &plan),
                    NftWork::Delta(delta) => self.apply(&delta),
                }
            }
            if end.is_some() {
                return;
            }
            self.listen();
        }
    }

    fn load(&mut self, generation: Gen, plan: &Plan) {
        let known = !self.table.name().is_empty();
        self.wanting = false;
        match self.table.load(plan) {
            Ok(loaded) => {
                let repaired = known && loaded == Loaded::Replaced;
                if repaired {
                    tracing::warn!(table = self.table.name(), %generation, "nft: table written anew");
                }
                self.applied(generation, repaired);
            }
            Err(error) => self.failed(generation, error),
        }
    }

    fn apply(&mut self, delta: &Delta) {
        if self.applied != Some(delta.from) {
            // The plan that was asked for will have it.
            if !self.wanting {
                self.want(Want::OutOfStep);
            }
            return;
        }
        match self.table.apply(&delta.ops) {
            Ok(()) => self.applied(delta.to, false),
            Err(error) => self.failed(delta.to, error),
        }
    }

    fn applied(&mut self, generation: Gen, repaired: bool) {
        self.applied = Some(generation);
        (self.output)(NftEvent::Applied {
            generation,
            repaired,
        });
    }

    fn failed(&mut self, generation: Gen, failure: Misapplied) {
        tracing::error!(%failure, %generation, "nft: refused");
        self.applied = None;
        self.wanting = true;
        let errno = failure.error.errno().unwrap_or_default();
        let reason = failure.to_string();
        let op = failure.op.map(|(_, op)| op);
        (self.output)(NftEvent::Failed {
            generation,
            op,
            errno,
            reason,
        });
    }

    fn want(&mut self, why: Want) {
        self.wanting = true;
        (self.output)(NftEvent::WantPlan(why));
    }

    /// Looks for changes to our table that are not ours.
    fn listen(&mut self) {
        let name = self.table.name().to_owned();
        let mut lost = false;
        let mut ports = BTreeSet::new();
        let mut names = BTreeSet::new();
        let received = self.watch.receive(DATAGRAMS, |event| match event {
            Notification::Overrun => lost = true,
            Notification::Change(change) => {
                let ours = change.family == Family::Inet as u8 && change.table == name;
                if ours {
                    ports.insert(change.port);
                }
            }
            Notification::Generation { name, port, .. } => {
                if ports.contains(&port) {
                    names.insert(name);
                }
            }
        });
        if let Err(error) = received {
            tracing::warn!(%error, "nft: notifications lost");
            lost = true;
        }
        // Before the first plan the table is not ours yet, and a plan on its way is compared anyway.
        if name.is_empty() || self.wanting {
            return;
        }
        if !ports.is_empty() {
            let by = names.into_iter().collect::<Vec<_>>().join(", ");
            tracing::warn!(
                table = name,
                by,
                "nft: our table was changed by another program"
            );
            self.want(Want::Foreign { by });
        } else if lost {
            self.want(Want::InDoubt);
        }
    }
}
