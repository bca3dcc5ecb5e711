//! The thread around the table: drain the inbox, drain the notifications, commit once.

use std::{
    fmt, fs, io,
    net::IpAddr,
    os::fd::AsFd,
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use selvage_bgp_core::{
    clock::{Now, earlier},
    ids::Family,
    prefix::Prefix,
    rib::RouteChange,
};
use selvage_netlink::Error;

use super::{
    changes::Changes,
    facts::{RouteEvent, RouteFacts},
    kernel::Kernel,
    table::RouteTable,
};
use crate::{
    inbox::Inbox,
    kernel::{RoutePolicy, Shutdown},
    limits::Limits,
};

/// With 1, the kernel's default, a changed nexthop costs a notification for every route over it.
const COMPAT_MODE: &str = "/proc/sys/net/ipv4/nexthop_compat_mode";

/// What the route writer is told. Messages are batches, never single routes.
#[derive(Debug)]
pub enum RouteWork {
    /// Something waits in this queue. All of it is taken, what came after this message included.
    Waiting(Changes),
    /// Best paths changed.
    Changes(Vec<RouteChange>),
    /// The RIB has said all it knows of the family: leftovers go, a while later ([`Settings::leftovers`]).
    Synced(Family),
    /// Our announced prefixes, all of them.
    Blackholes(Vec<Prefix>),
    /// Other settings.
    Policy(RoutePolicy),
    /// Report how this next hop is reached, now and at every change.
    Watch(IpAddr),
    /// No longer.
    Unwatch(IpAddr),
    /// Answer once everything queued before this is in the kernel.
    Query(Reply),
    /// End the thread. Routes stay in every case: the next start adopts them.
    Shutdown(Shutdown),
}

/// Called once with the facts, on the route writer's thread: it must be quick.
pub struct Reply(pub Box<dyn FnOnce(&RouteFacts) + Send>);

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// How the thread starts.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How routes go into the kernel, until told otherwise.
    pub policy: RoutePolicy,
    /// How long what is left over from before outlives the word that a family is complete.
    pub leftovers: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            policy: RoutePolicy::default(),
            leftovers: Limits::default().leftovers,
        }
    }
}

/// Reads the kernel in the calling thread's network namespace, adopts what is ours, and starts
/// the thread `routes` there. `output` is called on that thread.
pub fn spawn(
    settings: Settings,
    inbox: Inbox<RouteWork>,
    output: impl FnMut(RouteEvent) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let mut kernel = Kernel::open()?;
    let underlay = kernel.read_underlay()?;
    let objects = kernel.has_objects()?;
    let table = RouteTable::start(settings.policy, underlay, objects, &mut kernel)?;
    if objects && let Err(error) = disable_compat_mode() {
        tracing::warn!(%error, path = COMPAT_MODE, "routes: next hops change slowly, as this is not 0");
    }
    let writer = Writer {
        kernel,
        table,
        leftovers: settings.leftovers,
        inbox,
        output,
        began: Instant::now(),
        told: None,
        sweeps: Vec::new(),
    };
    Ok(Builder::new()
        .name("routes".into())
        .spawn(move || writer.run())?)
}

struct Writer<F> {
    kernel: Kernel,
    table: RouteTable,
    /// See [`Settings::leftovers`].
    leftovers: Duration,
    inbox: Inbox<RouteWork>,
    output: F,
    began: Instant,
    /// The facts that were told last.
    told: Option<RouteFacts>,
    /// When what is left over of a family goes.
    sweeps: Vec<(Family, Now)>,
}

impl<F: FnMut(RouteEvent)> Writer<F> {
    fn run(mut self) {
        loop {
            self.wait();
            let mut replies = Vec::new();
            let mut end = None;
            for work in self.inbox.recv_all() {
                match work {
                    RouteWork::Query(reply) => replies.push(reply),
                    RouteWork::Shutdown(how) => end = Some(how),
                    RouteWork::Synced(family) => {
                        self.table.synced(family);
                        self.sweeps.push((family, self.now() + self.leftovers));
                    }
                    other => apply(&mut self.table, other),
                }
            }
            if end == Some(Shutdown::Now) {
                return;
            }
            self.kernel.listen(&mut self.table);
            let now = self.now();
            self.sweep(now);
            self.table.commit(&mut self.kernel, now);
            self.tell(replies);
            if end.is_some() {
                return;
            }
        }
    }

    fn wait(&self) {
        let sweep = self.sweeps.iter().map(|(_, at)| *at).min();
        let timeout = match earlier(self.table.deadline(), sweep) {
            _ if self.kernel.has_backlog() => Some(Duration::ZERO),
            Some(at) => Some(at.since(self.now())),
            None => None,
        };
        let reading = self.kernel.deadline();
        let reading = reading.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = [timeout, reading].into_iter().flatten().min();
        if let Err(error) = self.inbox.wait(&[self.kernel.as_fd()], timeout) {
            tracing::error!(%error, "routes: cannot wait");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn sweep(&mut self, now: Now) {
        for (family, _) in self.sweeps.extract_if(.., |(_, at)| *at <= now) {
            self.table.sweep(family);
        }
    }

    fn tell(&mut self, replies: Vec<Reply>) {
        for event in self.table.take_events() {
            (self.output)(event);
        }
        let facts = self.table.facts();
        for Reply(reply) in replies {
            reply(&facts);
        }
        if self.told.as_ref() != Some(&facts) {
            (self.output)(RouteEvent::Facts(facts.clone()));
            self.told = Some(facts);
        }
    }

    fn now(&self) -> Now {
        Now(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

fn apply(table: &mut RouteTable, work: RouteWork) {
    match work {
        RouteWork::Waiting(changes) => {
            let waiting = changes.take();
            for batch in std::iter::once(waiting.folded).chain(waiting.batches) {
                table.change(&batch);
            }
            for (next_hop, wanted) in waiting.watched {
                match wanted {
                    true => table.watch(next_hop),
                    false => table.unwatch(next_hop),
                }
            }
        }
        RouteWork::Changes(changes) => table.change(&changes),
        RouteWork::Blackholes(prefixes) => table.blackholes(prefixes),
        RouteWork::Policy(policy) => table.set_policy(policy),
        RouteWork::Watch(next_hop) => table.watch(next_hop),
        RouteWork::Unwatch(next_hop) => table.unwatch(next_hop),
        RouteWork::Synced(_) | RouteWork::Query(_) | RouteWork::Shutdown(_) => {}
    }
}

/// Reads before it writes: in an unprivileged container the file is read-only and set already.
fn disable_compat_mode() -> io::Result<()> {
    if fs::read_to_string(COMPAT_MODE)?.trim() == "0" {
        return Ok(());
    }
    fs::write(COMPAT_MODE, "0")
}
