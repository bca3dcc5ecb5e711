//! The thread around our tables: work from above, notifications from the kernel, and deadlines.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use selvage_netlink::{
    Error,
    nft::{ChainType, Family, Hook, Watch, list},
};
use selvage_policy::plan::{Delta, Gen, Plan};

use super::{
    kept::KeptTable,
    plan::WholeTable,
    reconcile::Loaded,
    table::{Misapplied, NftTable},
    witness::{Shared, Witness},
};
use crate::{
    inbox::Inbox,
    kernel::{Shutdown, open::TABLES as OURS, retry::Retry},
};

const DATAGRAMS: usize = 4096;
/// How long a policy table that somebody else has changed may stand without its plan. Whoever has the plan answers
/// within milliseconds as a rule; where other work holds that back, the table is closed.
const PATIENCE: Duration = Duration::from_millis(300);

/// What the nft writer is told.
#[derive(Debug)]
pub enum NftWork {
    /// The whole policy plan: at the start, and as the answer to [`NftEvent::WantPlan`] and [`NftEvent::Failed`].
    Plan(Gen, Arc<Plan>),
    /// What changed since the generation that was applied last. Sent only when all before it was
    /// answered.
    Delta(Delta),
    /// A table of ours as it should be from now on: kept, and healed without asking. The number comes back in
    /// [`NftEvent::Kept`].
    Keep(u64, WholeTable),
    /// End the thread; the tables stay.
    Shutdown(Shutdown),
}

/// What the nft writer answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NftEvent {
    /// The kernel has this generation of the policy.
    Applied {
        /// The generation.
        generation: Gen,
        /// The kernel's table was not what it should have been after we once had written it:
        /// flows accepted in between must be looked at.
        repaired: bool,
    },
    /// The kernel refused the policy. Nothing was changed; the whole plan is wanted.
    Failed {
        /// The generation that could not be reached.
        generation: Gen,
        /// The operation that was refused, if it was one.
        op: Option<String>,
        /// The error number; 0 if the conversation itself failed.
        errno: i32,
        /// For people.
        reason: String,
    },
    /// Send the whole policy plan.
    WantPlan(Want),
    /// An answer to [`NftWork::Keep`], and told again when the outcome changes.
    Kept {
        /// The table.
        table: String,
        /// The number that came with the newest plan.
        number: u64,
        /// Why the kernel does not have it; the thread goes on trying.
        refused: Option<String>,
    },
    /// A kept table that somebody else had changed is as it should be again.
    Repaired {
        /// The table.
        table: String,
        /// The programs that changed it, as the kernel names them.
        by: String,
    },
    /// A [`Shared`] table was changed by a program that is none of its writers, or may have been.
    Damaged {
        /// The table.
        table: &'static str,
        /// The programs that changed it, as the kernel names them.
        by: String,
    },
    /// The forward chains of others that drop what their rules do not accept, where that is new.
    Droppers(BTreeSet<Dropper>),
}

/// A base chain of somebody else at the hook `forward` whose policy is to drop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Dropper {
    /// `inet`, `ip` or `ip6`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// The chain.
    pub chain: String,
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

/// What the thread is told once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Tables that other programs of ours write, to be watched.
    pub shared: Vec<Shared>,
}

/// Starts the thread `nft` in the calling thread's network namespace. `output` is called there.
pub fn spawn(
    settings: Settings,
    inbox: Inbox<NftWork>,
    output: impl FnMut(NftEvent) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    // Subscribed before anything is written, so that no foreign change is missed.
    let watch = Watch::open()?;
    let table = NftTable::open()?;
    watch.socket().ignore_port(table.port())?;
    let writer = Writer {
        table,
        kept: BTreeMap::new(),
        watch,
        witness: Witness::new(settings.shared),
        inbox,
        output,
        applied: None,
        wanting: false,
        close: None,
        droppers: BTreeSet::new(),
        listing: Retry::default(),
    };
    Ok(Builder::new()
        .name("nft".into())
        .spawn(move || writer.run())?)
}

struct Writer<F> {
    table: NftTable,
    kept: BTreeMap<String, Keeping>,
    watch: Watch,
    witness: Witness,
    inbox: Inbox<NftWork>,
    output: F,
    /// The generation of the policy that the kernel has; `None` before the first plan and after a failure.
    applied: Option<Gen>,
    /// The plan was asked for and has not come.
    wanting: bool,
    close: Option<Close>,
    /// What was told of other's forward chains.
    droppers: BTreeSet<Dropper>,
    /// When they are listed again.
    listing: Retry,
}

/// When the policy table is closed unless its plan has come.
#[derive(Clone, Copy)]
struct Close {
    at: Instant,
    /// Somebody has changed it; else that is only possible.
    certain: bool,
}

/// A kept table and what was said of it.
struct Keeping {
    table: KeptTable,
    number: u64,
    /// The programs that changed it since it was as it should be.
    damaged_by: Option<String>,
    /// When a table that the kernel refused is tried again.
    retry: Retry,
}

impl<F: FnMut(NftEvent)> Writer<F> {
    fn run(mut self) {
        self.look_for_droppers();
        loop {
            let timeout = self
                .deadline()
                .map(|at| at.saturating_duration_since(Instant::now()));
            if let Err(error) = self.inbox.wait(&[self.watch.as_fd()], timeout) {
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
                    NftWork::Keep(number, plan) => self.keep(number, plan),
                }
            }
            if end.is_some() {
                return;
            }
            self.listen();
            if self.listing.is_due(Instant::now()) {
                self.look_for_droppers();
            }
            self.heal();
            self.close_in_time();
        }
    }

    /// When something is to be done though nothing comes.
    fn deadline(&self) -> Option<Instant> {
        let retries = self.kept.values().filter_map(|kept| kept.retry.at());
        retries
            .chain(self.listing.at())
            .chain(self.close.map(|close| close.at))
            .chain(self.witness.deadline())
            .min()
    }

    fn load(&mut self, generation: Gen, plan: &Plan) {
        let known = !self.table.name().is_empty();
        self.wanting = false;
        match self.table.load(plan) {
            Ok(loaded) => {
                self.close = None;
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

    /// Asks for the whole plan. Until it comes, no delta is applied: its success would say that the table holds what the
    /// pods that wait were promised.
    fn want(&mut self, why: Want) {
        self.applied = None;
        self.wanting = true;
        (self.output)(NftEvent::WantPlan(why));
    }

    fn keep(&mut self, number: u64, plan: WholeTable) {
        let keeping = match self.kept.entry(plan.name.clone()) {
            std::collections::btree_map::Entry::Occupied(entry) => {
                let keeping = entry.into_mut();
                keeping.table.set(plan);
                keeping
            }
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Keeping {
                table: KeptTable::new(plan),
                number,
                damaged_by: None,
                retry: Retry::default(),
            }),
        };
        keeping.number = number;
        // Another plan may be taken.
        keeping.retry.done();
        self.heal();
    }

    /// Makes every kept table what it should be, unless it was refused a moment ago.
    fn heal(&mut self) {
        let now = Instant::now();
        let (socket, transaction) = (&mut self.table.socket, &mut self.table.transaction);
        for (name, keeping) in &mut self.kept {
            if !keeping.table.is_due() || keeping.retry.is_resting(now) {
                continue;
            }
            let refused = match keeping.table.apply(socket, transaction) {
                Ok(loaded) => {
                    keeping.retry.done();
                    if let Some(by) = keeping.damaged_by.take()
                        && loaded == Loaded::Replaced
                    {
                        tracing::warn!(
                            table = name,
                            by,
                            "nft: our table was repaired: another program had changed it"
                        );
                        let table = name.clone();
                        (self.output)(NftEvent::Repaired { table, by });
                    }
                    None
                }
                Err(error) => {
                    let reason = error.to_string();
                    tracing::warn!(
                        table = name,
                        reason,
                        "nft: the kernel does not take our table, trying again"
                    );
                    keeping.retry.failed(now);
                    Some(reason)
                }
            };
            (self.output)(NftEvent::Kept {
                table: name.clone(),
                number: keeping.number,
                refused,
            });
        }
    }

    /// Looks for changes to our tables that are not ours.
    fn listen(&mut self) {
        let now = Instant::now();
        let name = self.table.name().to_owned();
        let (witness, kept) = (&mut self.witness, &self.kept);
        let received = self.watch.receive(DATAGRAMS, |event| {
            witness.hear(event, now, |table| {
                table == name || kept.contains_key(table)
            });
        });
        if let Err(error) = received {
            tracing::warn!(%error, "nft: notifications lost");
            witness.lose();
        }
        let mut heard = self.witness.take(now);
        if heard.lost {
            let unknown = "a program unknown, because notifications were lost";
            for keeping in self.kept.values_mut() {
                keeping.damage(unknown.into());
            }
            let shared: Vec<_> = self.witness.shared().collect();
            for table in shared {
                let by = unknown.into();
                (self.output)(NftEvent::Damaged { table, by });
            }
        }
        if heard.hooks || heard.lost {
            self.look_for_droppers();
        }
        if let Some(by) = heard.changed.remove(&name) {
            self.policy_changed(&name, by);
        } else if heard.lost {
            self.policy_in_doubt();
        }
        for (table, by) in heard.changed {
            if let Some(keeping) = self.kept.get_mut(&table) {
                keeping.damage(by);
            } else if let Some(table) = self.witness.shared().find(|shared| *shared == table) {
                (self.output)(NftEvent::Damaged { table, by });
            }
        }
    }

    fn look_for_droppers(&mut self) {
        let listed = match list::base_chains(&mut self.table.socket) {
            Ok(listed) => listed,
            Err(error) => {
                self.listing.failed(Instant::now());
                return tracing::warn!(%error, "nft: chains of others cannot be listed, trying again");
            }
        };
        self.listing.done();
        let families = [
            (Family::Inet, "inet"),
            (Family::Ipv4, "ip"),
            (Family::Ipv6, "ip6"),
        ];
        let mut droppers = BTreeSet::new();
        for (family, table, chain) in listed {
            let named = families.iter().find(|(known, _)| *known as u8 == family);
            let ours = family == Family::Inet as u8 && OURS.contains(&table.as_str());
            let drops = chain.base.is_some_and(|base| {
                base.drop && base.hook == Hook::Forward && base.kind == ChainType::Filter
            });
            if let (Some((_, family)), false, true) = (named, ours, drops) {
                droppers.insert(Dropper {
                    family,
                    table,
                    chain: chain.name,
                });
            }
        }
        if self.droppers != droppers {
            self.droppers.clone_from(&droppers);
            (self.output)(NftEvent::Droppers(droppers));
        }
    }

    fn policy_changed(&mut self, name: &str, by: String) {
        // Before the first plan the table is not ours yet.
        if name.is_empty() {
            return;
        }
        let at = self
            .close
            .map_or_else(|| Instant::now() + PATIENCE, |close| close.at);
        self.close = Some(Close { at, certain: true });
        // A plan on its way is compared anyway.
        if !self.wanting {
            tracing::warn!(
                table = name,
                by,
                "nft: our table was changed by another program"
            );
            self.want(Want::Foreign { by });
        }
    }

    fn policy_in_doubt(&mut self) {
        if self.table.name().is_empty() {
            return;
        }
        if self.close.is_none() {
            let at = Instant::now() + PATIENCE;
            self.close = Some(Close { at, certain: false });
        }
        if !self.wanting {
            self.want(Want::InDoubt);
        }
    }

    /// Closes the policy table if it may be open and its plan has not come in time.
    fn close_in_time(&mut self) {
        let now = Instant::now();
        let Some(close) = self.close.filter(|close| close.at <= now) else {
            return;
        };
        self.close = None;
        let closed = match close.certain {
            false if self.table.has_base_chains().unwrap_or(false) => return,
            _ => self.table.close(),
        };
        match closed {
            Ok(()) => tracing::warn!(
                table = self.table.name(),
                "nft: the policy has not come in time: no packet from or to a pod passes until it does"
            ),
            Err(error) => {
                tracing::error!(table = self.table.name(), %error, "nft: the table cannot be closed, trying again");
                self.close = Some(Close {
                    at: now + PATIENCE,
                    ..close
                });
            }
        }
    }
}

impl Keeping {
    fn damage(&mut self, by: String) {
        self.table.doubt();
        self.damaged_by = Some(match self.damaged_by.take() {
            Some(before) if before != by => format!("{before}, {by}"),
            _ => by,
        });
    }
}
