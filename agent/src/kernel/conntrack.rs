//! Established flows that are no longer allowed are cut, and those that are again are let go on.
//!
//! The rules accept what is established, so a flow that began when it was allowed would live on.
//! A deleted entry is no cut: the answer of the other side makes a new one, reversed
//! (`nf_conntrack_tcp_loose`). So a bit of the flow's mark is set, for which the rules drop; other
//! bits and other flows are not touched. When somebody else deletes the entry, the rules judge what
//! follows packet by packet (ADR 25).
//!
//! Whether a flow is allowed is the compiler's to say. The thread lists the flows of local pods,
//! asks in portions, and marks by the answers; changes that come meanwhile make one more pass.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use ipnet::IpNet;
use rustix::io::Errno;
use selvage_netlink::{
    Batch, Error, Protocol, Socket,
    conntrack::{self, Filter, Ports},
};
use selvage_policy::revoke::Flow;

use super::Shutdown;
use crate::inbox::Inbox;

/// The bit of the mark that means revoked, unless configured otherwise.
pub const REVOKED: u32 = 1 << 31;
/// Flows in one question: a few milliseconds of the compiler's time at most.
pub const PORTION: usize = 2048;

/// Up to so many IPv4 addresses are looked up one by one: each takes two walks of the kernel over its table, which copy
/// only what matches; one listing copies and decodes every flow.
const FILTERED: usize = 4;
/// Up to so many flows are listed whole, by one walk. A walk of an empty table of the usual size (262,144 buckets) takes
/// milliseconds, in which its processor takes in no packets.
const FEW_FLOWS: usize = 4096;
/// How many flows the calling thread's network namespace has, those included whose first packet is still on its way.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// A listing that fails is begun again after once, twice, … this time,
const RETRY: Duration = Duration::from_millis(20);
/// and so often.
const ATTEMPTS: u32 = 8;

/// The flows of the namespace, and the bit.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    batch: Batch,
    bit: u32,
}

/// A flow as it was listed and as the compiler knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tracked {
    kernel: conntrack::Flow,
    /// What to ask.
    pub flow: Flow,
    /// Whether it is cut now.
    pub revoked: bool,
}

impl Tracked {
    /// The whole mark, as it was listed.
    pub fn mark(&self) -> u32 {
        self.kernel.mark
    }
}

/// What a pass did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// Flows looked at.
    pub seen: usize,
    /// Cut by this pass.
    pub revoked: usize,
    /// Let go on by this pass.
    pub restored: usize,
    /// Cut by this pass or an earlier one. What could not be looked at counts as one.
    pub still_cut: usize,
}

impl Conntrack {
    /// In the calling thread's network namespace. `bit`: the bits of the mark that mean revoked.
    pub fn open(bit: u32) -> Result<Self, Error> {
        Ok(Conntrack {
            socket: Socket::open(Protocol::Netfilter)?,
            batch: Batch::new(),
            bit,
        })
    }

    /// The flows that begin or end at one of these addresses; what is translated counts as it
    /// arrives. A small table is read once. Of a large one, for a few IPv4 addresses the kernel filters it (a walk without a
    /// copy, for each); for more of them, and for IPv6, the table of the family is read once.
    pub fn flows_of(&mut self, local: &BTreeSet<IpAddr>) -> Result<Vec<Tracked>, Error> {
        let flows = count();
        if flows == Some(0) {
            return Ok(Vec::new());
        }
        let filters = match flows.is_some_and(|flows| flows <= FEW_FLOWS) {
            true => vec![Filter::default()],
            false => filters_for(local),
        };
        let mut found = Vec::new();
        for filter in filters {
            let bit = self.bit;
            let take = |flow| tracked(bit, flow, local);
            found.extend(conntrack::list_some(&mut self.socket, &filter, take)?);
        }
        // A flow between two of the addresses is listed for either.
        found.sort_by_key(|tracked| (tracked.kernel.orig, tracked.kernel.zone));
        found.dedup_by_key(|tracked| (tracked.kernel.orig, tracked.kernel.zone));
        Ok(found)
    }

    /// The addresses inside of these prefixes at which flows begin or end.
    pub fn addresses_with_flows(&mut self, prefixes: &[IpNet]) -> Result<BTreeSet<IpAddr>, Error> {
        let inside = |addr: &IpAddr| prefixes.iter().any(|net| net.contains(addr));
        let mut found = BTreeSet::new();
        for v6 in [false, true] {
            if !prefixes.iter().any(|net| net.addr().is_ipv6() == v6) {
                continue;
            }
            let filter = Filter {
                v6: Some(v6),
                ..Filter::default()
            };
            let take = |flow: conntrack::Flow| -> Option<()> {
                found.extend([flow.orig.src, flow.reply.src].iter().filter(|a| inside(a)));
                None
            };
            conntrack::list_some(&mut self.socket, &filter, take)?;
        }
        Ok(found)
    }

    /// Marks by the answers, one for each flow. Flows that ended meanwhile are no error.
    pub fn mark(&mut self, flows: &[Tracked], allowed: &[bool]) -> Result<Passed, Error> {
        let mut passed = Passed {
            seen: flows.len(),
            ..Passed::default()
        };
        self.batch.clear();
        for (tracked, allowed) in flows.iter().zip(allowed) {
            passed.still_cut += usize::from(!allowed);
            match (tracked.revoked, allowed) {
                (false, false) => {
                    passed.revoked += 1;
                    conntrack::set_mark(&mut self.batch, &tracked.kernel, self.bit, self.bit);
                }
                (true, true) => {
                    passed.restored += 1;
                    conntrack::set_mark(&mut self.batch, &tracked.kernel, 0, self.bit);
                }
                _ => {}
            }
        }
        self.send()?;
        Ok(passed)
    }

    /// Deletes the flows of addresses that no pod has any more: the next owner must not inherit
    /// them. Returns how many.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, Error> {
        let flows = self.flows_of(addresses)?;
        self.batch.clear();
        for tracked in &flows {
            conntrack::delete(&mut self.batch, &tracked.kernel);
        }
        self.send()?;
        Ok(flows.len())
    }

    fn send(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.socket
            .send_batch(&mut self.batch)?
            .ignoring(Errno::NOENT)
    }
}

/// `None` if the kernel does not say.
fn count() -> Option<usize> {
    std::fs::read_to_string(COUNT).ok()?.trim().parse().ok()
}

/// What the kernel is asked for addresses beside many others.
fn filters_for(local: &BTreeSet<IpAddr>) -> Vec<Filter> {
    let of = |v6: bool| {
        let family = local.iter().filter(move |addr| addr.is_ipv6() == v6);
        if !v6 && family.clone().count() <= FILTERED {
            return family.flat_map(filters_of).collect();
        }
        let whole = Filter {
            v6: Some(v6),
            ..Filter::default()
        };
        Vec::from_iter(family.clone().next().map(|_| whole))
    };
    [of(false), of(true)].concat()
}

/// What the kernel is asked for one address: flows that it began, and flows that it answers.
fn filters_of(addr: &IpAddr) -> [Filter; 2] {
    [
        Filter {
            begun_by: Some(*addr),
            ..Filter::default()
        },
        Filter {
            answered_by: Some(*addr),
            ..Filter::default()
        },
    ]
}

fn tracked(bit: u32, kernel: conntrack::Flow, local: &BTreeSet<IpAddr>) -> Option<Tracked> {
    let (source, destination) = (kernel.orig.src, kernel.reply.src);
    if !local.contains(&source) && !local.contains(&destination) {
        return None;
    }
    let port = match kernel.reply.ports {
        Ports::Ports { src, .. } => src,
        _ => 0,
    };
    let flow = Flow {
        source,
        destination,
        protocol: kernel.orig.proto,
        port,
    };
    let revoked = kernel.mark & bit != 0;
    Some(Tracked {
        kernel,
        flow,
        revoked,
    })
}

/// What the conntrack thread is told.
#[derive(Debug)]
pub enum FlowWork {
    /// The kernel has other rules now, or had none for a while: look at all flows of these
    /// addresses, those of the local pods or of some. One [`FlowEvent::Passed`] answers all that
    /// were sent before its pass began.
    Check(Arc<BTreeSet<IpAddr>>),
    /// The answers to [`FlowEvent::Judge`], in its order.
    Judged(Vec<bool>),
    /// These addresses change hands: their flows are deleted. Answered by [`FlowEvent::Forgot`]; numbers only grow.
    Forget(u64, BTreeSet<IpAddr>),
    /// At which addresses inside of these prefixes do flows begin or end? Answered by [`FlowEvent::Seen`].
    Look(Vec<IpNet>),
    /// End the thread.
    Shutdown(Shutdown),
}

/// What the conntrack thread says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FlowEvent {
    /// Which of these are allowed? Answer with [`FlowWork::Judged`], always.
    Judge(Vec<Flow>),
    /// A pass is complete.
    Passed(Passed),
    /// The flows of all addresses up to this number are gone.
    Forgot(u64),
    /// The flows of these addresses could not be deleted; follows [`FlowEvent::Forgot`].
    Left(BTreeSet<IpAddr>),
    /// The answer to [`FlowWork::Look`].
    Seen {
        /// The prefixes that were asked about.
        prefixes: Vec<IpNet>,
        /// The addresses in them.
        addresses: BTreeSet<IpAddr>,
    },
}

/// A pass under way.
#[derive(Debug, Default)]
struct Pass {
    rest: Vec<Tracked>,
    asked: Vec<Tracked>,
    done: Passed,
}

/// Starts the thread `conntrack` in the calling thread's network namespace. `output` is called there.
pub fn spawn(
    bit: u32,
    inbox: Inbox<FlowWork>,
    output: impl FnMut(FlowEvent) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let walker = Walker {
        conntrack: Conntrack::open(bit)?,
        inbox,
        output,
        next: None,
        failed: 0,
        pass: None,
    };
    Ok(Builder::new()
        .name("conntrack".into())
        .spawn(move || walker.run())?)
}

struct Walker<F> {
    conntrack: Conntrack,
    inbox: Inbox<FlowWork>,
    output: F,
    /// Addresses of the pass that follows this one.
    next: Option<BTreeSet<IpAddr>>,
    /// How often in a row the flows could not be listed.
    failed: u32,
    pass: Option<Pass>,
}

impl<F: FnMut(FlowEvent)> Walker<F> {
    fn run(mut self) {
        loop {
            let retry = (self.failed > 0).then(|| RETRY * self.failed);
            if let Err(error) = self.inbox.wait(&[], retry) {
                tracing::error!(%error, "conntrack: cannot wait");
                std::thread::sleep(Duration::from_millis(100));
            }
            // All that came together costs one look at the kernel's table.
            let (mut forget, mut number, mut look) = (BTreeSet::new(), None, None);
            for work in self.inbox.recv_all() {
                match work {
                    FlowWork::Check(addresses) => {
                        self.next.get_or_insert_default().extend(addresses.iter());
                    }
                    FlowWork::Judged(allowed) => self.judged(&allowed),
                    FlowWork::Forget(this, addresses) => {
                        forget.extend(addresses);
                        number = number.max(Some(this));
                    }
                    FlowWork::Look(prefixes) => look = Some(prefixes),
                    FlowWork::Shutdown(_) => return,
                }
            }
            if let Some(number) = number {
                let done = self.forget(&forget);
                (self.output)(FlowEvent::Forgot(number));
                if !done {
                    (self.output)(FlowEvent::Left(forget));
                }
            }
            if let Some(prefixes) = look {
                self.look(prefixes);
            }
            if self.pass.is_none() {
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        let Some(addresses) = &self.next else {
            return;
        };
        match self.conntrack.flows_of(addresses) {
            Ok(rest) => {
                self.next = None;
                self.failed = 0;
                self.pass = Some(Pass {
                    rest,
                    ..Pass::default()
                });
                self.ask();
            }
            Err(error) if self.failed < ATTEMPTS => {
                tracing::debug!(%error, "conntrack: flows could not be listed, again in a moment");
                self.failed += 1;
            }
            Err(error) => {
                tracing::error!(%error, "conntrack: flows cannot be listed: what is established is not cut");
                self.next = None;
                self.failed = 0;
                (self.output)(FlowEvent::Passed(Passed {
                    still_cut: 1,
                    ..Passed::default()
                }));
            }
        }
    }

    /// Asks for the next portion, or ends the pass.
    fn ask(&mut self) {
        let Some(pass) = &mut self.pass else {
            return;
        };
        let from = pass.rest.len().saturating_sub(PORTION);
        pass.asked = pass.rest.split_off(from);
        if !pass.asked.is_empty() {
            let flows = pass.asked.iter().map(|tracked| tracked.flow).collect();
            return (self.output)(FlowEvent::Judge(flows));
        }
        let passed = pass.done;
        self.pass = None;
        (self.output)(FlowEvent::Passed(passed));
    }

    fn judged(&mut self, allowed: &[bool]) {
        let Some(pass) = &mut self.pass else {
            return;
        };
        match self.conntrack.mark(&pass.asked, allowed) {
            Ok(passed) => {
                pass.done.seen += passed.seen;
                pass.done.revoked += passed.revoked;
                pass.done.restored += passed.restored;
                pass.done.still_cut += passed.still_cut;
            }
            Err(error) => {
                pass.done.still_cut += 1;
                tracing::warn!(%error, "conntrack: flows could not be marked");
            }
        }
        self.ask();
    }

    /// Where the flows cannot be deleted, the pass that follows a pod's rules still cuts those that are not allowed.
    /// Says whether they are gone.
    fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> bool {
        for attempt in 1..=ATTEMPTS {
            match self.conntrack.forget(addresses) {
                Ok(_) => return true,
                Err(error) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, "conntrack: flows of former pods could not be deleted, again");
                }
                Err(error) => {
                    tracing::error!(%error, "conntrack: flows of former pods cannot be deleted");
                }
            }
        }
        false
    }

    /// An answer that cannot be had is none: each address is then looked at before a pod gets it.
    fn look(&mut self, prefixes: Vec<IpNet>) {
        match self.conntrack.addresses_with_flows(&prefixes) {
            Ok(addresses) => (self.output)(FlowEvent::Seen {
                prefixes,
                addresses,
            }),
            Err(error) => tracing::warn!(%error, "conntrack: flows could not be listed"),
        }
    }
}
