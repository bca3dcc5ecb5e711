//! The owner of the world: one thread that takes facts, asks `desired` what should be, and tells those who make it so.
//!
//! ```text
//!  source, watch, plugin ──► Work ──► Store ──► desired ──► speaker (configuration)
//!  speaker, routes, nft  ──►                      │   └───► routes  (settings, blackholes)
//!  control (questions)   ──►                      └───────► Compiler ──► nft (deltas, one at a time)
//! ```
//! Nothing here waits for another thread: facts come, and nobody is asked for them. A delta is taken only when the kernel
//! has answered the one before, so that many changes become one transaction.

mod foreign;
mod lives;
mod nat;
mod neighbours;
mod pods;
mod policy;
mod progress;
mod publishing;
mod questions;
mod routing;
mod strays;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use selvage_bgp::{
    PeerChange,
    core::{
        ids::{Family, FamilySet, PeerIdx},
        prefix::Prefix,
        rib::PeerCounts,
    },
};
use selvage_cni::link;
use selvage_policy::{
    Compiler,
    model::{PodFact, PodKey},
    plan::Gen,
};
use tokio::sync::{oneshot, watch};
use tracing::error;

use crate::{
    api::ReadyView,
    bgp::Bgp,
    config::Features,
    control::{LinkQuery, Query, waits::Waits},
    desired::{Local, Speaker},
    inbox::{Inbox, Sender},
    kernel::{
        RoutePolicy, Shutdown,
        conntrack::{FlowEvent, FlowWork},
        host_ports::{HostPortEvent, HostPortWork},
        nft::{NftEvent, NftWork},
        routes::{RouteEvent, RouteWork},
    },
    limits::Limits,
    pod_interfaces::PodInterfaces,
    publish::Publisher,
    pulses::Pulses,
    source::ObjectEvent,
    store::{AttachmentId, Dirty, Observed, Store},
};

/// What the owner of the world is told.
pub enum Work {
    /// By the source.
    Objects(Vec<ObjectEvent>),
    /// By the kernel.
    Observed(Observed),
    /// By the route writer.
    Routes(RouteEvent),
    /// By the RIB, where no routes are written.
    RibSynced(Family),
    /// By the speaker: what the operating system refused of the configuration that it was told last.
    Configured(Vec<String>),
    /// By the speaker: neighbours that have changed, or are gone.
    Peers(Vec<PeerChange>),
    /// By the RIB: numbers of neighbours that have changed.
    PeerCounts(Vec<(PeerIdx, PeerCounts)>),
    /// All that the speaker was told before this number is decided, and the route writer has done what follows.
    RoutesDone(u64),
    /// By the nft writer.
    Nft(NftEvent),
    /// By the keeper of the plugin's table.
    HostPorts(HostPortEvent),
    /// By the walker of established flows.
    Flows(FlowEvent),
    /// By people and programs.
    Ask(Query),
    /// By the plugin.
    Link(LinkQuery),
    /// By the source, for its snapshot: some pods after this one.
    Pods(Option<PodKey>, oneshot::Sender<Vec<Arc<PodFact>>>),
    /// In the folder of the CNI configuration something may have changed.
    CniFolder,
    /// End.
    Stop(Shutdown),
}

/// How long the kernel's table of flows is left alone after a pass; what is denied is cut within a second.
const FLOWS_REST: Duration = Duration::from_millis(200);
/// How long a part of the speaker's configuration that the operating system has refused is left alone.
const CONFIGURE_AGAIN: Duration = Duration::from_secs(5);
/// How long a plan that the kernel has refused is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// What does not change while the agent runs.
pub struct Setup {
    /// This node.
    pub local: Local,
    /// What runs.
    pub features: Features,
    /// How the interfaces of pods are recognised.
    pub pods: PodInterfaces,
    /// Where the objects come from, for people.
    pub from: String,
    /// Where the `ready` file goes.
    pub run_dir: PathBuf,
    /// Where leases and attachments are.
    pub state_dir: PathBuf,
    /// Where the CNI configuration goes; `None`: somebody else writes it.
    pub cni_conf: Option<PathBuf>,
    /// Whether pods take the node's address towards what is outside of the cluster.
    pub masquerade: bool,
    /// Prefixes outside of the cluster that know the way back to pods.
    pub routable: Vec<ipnet::IpNet>,
    /// When the agent started.
    pub started: Instant,
    /// Time limits.
    pub limits: Limits,
}

/// Who is told what should be.
pub struct Outlets {
    /// The speaker, started with its first configuration.
    pub bgp: Option<Bgp>,
    /// The route writer.
    pub routes: Option<Sender<RouteWork>>,
    /// The writer of our tables, where policy or masquerading runs.
    pub nft: Option<Sender<NftWork>>,
    /// Who looks after the plugin's table of host ports.
    pub host_ports: Option<Sender<HostPortWork>>,
    /// Who cuts established flows.
    pub flows: Option<Sender<FlowWork>>,
    /// Back to ourselves, for answers of others.
    pub world: Sender<Work>,
    /// Who writes to the API server, where there is one.
    pub publisher: Option<Publisher>,
    /// The pulses of all threads.
    pub pulses: Pulses,
    /// Counts the turns in which something may have changed, for those who follow a view.
    pub turns: watch::Sender<u64>,
    /// Asks the source to pass a mark.
    pub reach: Box<dyn Fn(u64) + Send>,
}

/// An attachment that was made before the agent started.
pub struct Found {
    /// What the plugin wrote.
    pub attachment: link::Attachment,
    /// Its interface is up: the pod is on the network.
    pub open: bool,
}

/// A plugin that waits for its pod's policy.
struct Waiting {
    id: AttachmentId,
    reply: oneshot::Sender<link::Reply>,
}

/// The owner of the world.
pub struct World {
    setup: Setup,
    out: Outlets,
    store: Store,
    compiler: Compiler,
    speaker: Option<Speaker>,
    neighbours: neighbours::Neighbours,
    /// When the speaker is told its configuration again, because the operating system has refused a part of it.
    configure_at: Option<Instant>,
    route_policy: Option<RoutePolicy>,
    blackholes: Option<Vec<Prefix>>,
    policy: PolicyOut,
    flows: Flows,
    waiting: Vec<Waiting>,
    /// Attachments whose interface is to be opened by us, once their policy is in force.
    /// Where that has failed: not before this time.
    to_open: BTreeMap<AttachmentId, Option<Instant>>,
    /// Attachments that are not opened before the flows of those who had their addresses earlier are gone, and the
    /// number by which that is told.
    forgetting: BTreeMap<AttachmentId, u64>,
    lives: lives::Lives,
    births: strays::Births,
    foreign: foreign::Foreign,
    /// Families whose routes of an earlier run have been sorted out.
    synced: FamilySet,
    nat: nat::Nat,
    ready: ReadyView,
    publishing: publishing::Publishing,
    waits: Waits,
    barrier: Barrier,
    /// The time of this turn. Nothing below the loop reads a clock.
    now: Instant,
}

/// How far the nft writer is.
struct PolicyOut {
    /// The generation that it works on.
    in_flight: Option<Gen>,
    /// The newest generation in the kernel.
    applied: Option<Gen>,
    /// The whole plan is to be sent, not before this time.
    whole_at: Option<Instant>,
    failure: Option<String>,
    repaired: u64,
    /// Counts what the compiler was told.
    told: u64,
    /// How much of that is in the generation in flight.
    flying: u64,
    /// How much of that is in the newest generation in the kernel.
    done: u64,
}

impl PolicyOut {
    /// When the whole plan is due.
    fn next_wakeup(&self) -> Option<Instant> {
        self.whole_at.filter(|_| self.in_flight.is_none())
    }
}

/// Established flows that have to be looked at again.
struct Flows {
    /// Addresses whose flows are to be looked at when the kernel has the generation in flight.
    coming: BTreeSet<IpAddr>,
    /// Addresses whose flows are to be looked at.
    due: BTreeSet<IpAddr>,
    in_pass: bool,
    /// The end of the last pass.
    last: Option<Instant>,
    /// Counts what was added to `due`.
    number: u64,
    /// The count when the pass under way began.
    passing: u64,
    /// The count when the last complete pass began: what is denied since then is cut.
    done: u64,
    /// Some flow may be cut: of an earlier run until all were looked at, or of this one.
    some_cut: bool,
    /// Whether `coming`, `due` and the pass under way are about all local addresses.
    coming_whole: bool,
    due_whole: bool,
    passing_whole: bool,
}

impl Default for Flows {
    fn default() -> Self {
        Flows {
            coming: BTreeSet::new(),
            due: BTreeSet::new(),
            in_pass: false,
            last: None,
            number: 0,
            passing: 0,
            done: 0,
            some_cut: true,
            coming_whole: false,
            due_whole: false,
            passing_whole: false,
        }
    }
}

impl Flows {
    /// Whether some flow is cut, or will be by a pass that is under way or due.
    fn may_be_cut(&self) -> bool {
        self.some_cut || self.in_pass || !(self.due.is_empty() && self.coming.is_empty())
    }

    /// Until when the kernel's table of flows is left alone; `None`: it may be read now.
    fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.last
            .map(|last| last + FLOWS_REST)
            .filter(|at| *at > now)
    }

    /// When the next pass is due.
    fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        if self.due.is_empty() || self.in_pass {
            return None;
        }
        Some(self.rests_until(now).unwrap_or(now))
    }
}

/// Numbers that pass through the route writer: what it was told before one is done when it comes back.
#[derive(Default)]
struct Barrier {
    asked: u64,
    done: u64,
    /// The source's mark that was seen last, and the number that has to come back for it.
    mark: u64,
    wanted: u64,
}

impl World {
    /// A world of which nothing is known yet but what the state directory remembers.
    pub fn new(setup: Setup, out: Outlets, attachments: Vec<Found>) -> World {
        let compiler = Compiler::new(selvage_policy::Config {
            node: setup.local.node.as_str().into(),
            pod_interfaces: setup.pods.matches(),
            ..selvage_policy::Config::default()
        });
        let now = setup.started;
        let mut world = World {
            setup,
            out,
            now,
            store: Store::default(),
            compiler,
            speaker: None,
            neighbours: neighbours::Neighbours::default(),
            configure_at: None,
            route_policy: None,
            blackholes: None,
            policy: PolicyOut {
                in_flight: None,
                applied: None,
                whole_at: Some(now),
                failure: None,
                repaired: 0,
                told: 0,
                flying: 0,
                done: 0,
            },
            flows: Flows::default(),
            waiting: Vec::new(),
            to_open: BTreeMap::new(),
            forgetting: BTreeMap::new(),
            lives: lives::Lives::default(),
            births: strays::Births::default(),
            foreign: foreign::Foreign::default(),
            synced: FamilySet::NONE,
            nat: nat::Nat::default(),
            ready: ReadyView::default(),
            publishing: publishing::Publishing::default(),
            waits: Waits::default(),
            barrier: Barrier::default(),
        };
        let mut dirty = Dirty::default();
        for found in attachments {
            dirty.merge(match found.open {
                true => world.resume(found.attachment),
                false => world.attach(found.attachment),
            });
        }
        world.tell_compiler(&dirty);
        world
    }

    /// Works until told to stop; says how.
    pub fn run(mut self, inbox: &Inbox<Work>) -> Shutdown {
        loop {
            let rest = self
                .next_wakeup()
                .map(|at| at.saturating_duration_since(Instant::now()));
            if let Err(error) = inbox.wait(&[], rest) {
                error!(%error, "cannot wait for work");
            }
            if let ControlFlow::Break(how) = self.turn(Instant::now(), inbox.recv_all()) {
                return self.stop(how);
            }
        }
    }

    /// Takes everything in that has come, and does everything that it and the time ask for. Afterwards
    /// [`next_wakeup`](Self::next_wakeup) lies after `now`.
    fn turn(
        &mut self,
        now: Instant,
        works: impl IntoIterator<Item = Work>,
    ) -> ControlFlow<Shutdown> {
        self.now = now;
        let mut dirty = Dirty::default();
        let mut only_questions = true;
        for work in works {
            only_questions &= matches!(work, Work::Ask(_));
            if let Work::Stop(how) = work {
                return ControlFlow::Break(how);
            }
            dirty.merge(self.take(work));
        }
        self.think(&dirty);
        self.look();
        self.publish(&dirty);
        if !only_questions {
            self.out.turns.send_modify(|turns| *turns += 1);
        }
        ControlFlow::Continue(())
    }

    /// When there is something to do although nothing happens until then: the earliest deadline of all parts.
    fn next_wakeup(&self) -> Option<Instant> {
        // Before the source has said everything once, nothing is written.
        let writing = self.store.synced();
        let policy = self.policy.next_wakeup();
        let policy = policy.filter(|_| self.writes_policy());
        let flows = self.flows.next_wakeup(self.now).filter(|_| writing);
        let open = self.to_open.values().flatten().min().copied();
        [
            policy,
            flows,
            open,
            self.configure_at.filter(|_| writing),
            self.readiness_wakeup(),
            self.publishing.next_wakeup(self.now, &self.setup.limits),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn stop(mut self, how: Shutdown) -> Shutdown {
        // Dropped replies tell whoever waits that the daemon stops.
        self.waiting.clear();
        if let Some(bgp) = self.out.bgp.take() {
            bgp.stop(
                how,
                self.speaker
                    .as_ref()
                    .is_some_and(|s| s.config.graceful_restart.enabled),
            );
        }
        how
    }

    fn take(&mut self, work: Work) -> Dirty {
        match work {
            Work::Objects(events) => self.store.apply(events),
            Work::Observed(observed) => {
                self.births.observe(&observed, self.now);
                self.addresses_left(&observed);
                let mut dirty = self.links_gone(&observed);
                dirty.merge(self.store.observe(observed));
                dirty
            }
            Work::Routes(event) => self.route_event(event),
            Work::RibSynced(family) => {
                self.synced.insert(family);
                Dirty::default()
            }
            Work::Configured(refused) => self.configured(&refused),
            Work::Peers(changes) => self.peers_changed(changes),
            Work::PeerCounts(counts) => self.peers_counted(counts),
            Work::RoutesDone(number) => {
                self.barrier.done = self.barrier.done.max(number);
                Dirty::default()
            }
            Work::Nft(event) => self.nft_event(event),
            Work::HostPorts(event) => self.host_ports(event),
            Work::Flows(event) => {
                self.flow_event(event);
                Dirty::default()
            }
            Work::Ask(query) => {
                self.answer(query);
                Dirty::default()
            }
            Work::Link(query) => self.link(query),
            Work::Pods(after, reply) => {
                // Not so many that anybody would notice the pause.
                let some = self.store.pods_after(after.as_ref()).take(4096);
                let _ = reply.send(some.cloned().collect());
                Dirty::default()
            }
            Work::CniFolder => {
                self.look_at_folder();
                Dirty::default()
            }
            Work::Stop(_) => Dirty::default(),
        }
    }

    /// Makes others do what the facts now ask for. Before the source has said everything once, nothing is done: half a
    /// world would take away what the kernel has from the run before.
    fn think(&mut self, dirty: &Dirty) {
        if !self.store.synced() {
            if dirty.policy() {
                self.tell_compiler(dirty);
            }
            if !self.setup.features.policy {
                // There is nothing that a pod would have to wait for.
                self.release();
            }
            return;
        }
        if dirty.bgp || dirty.synced || self.route_policy.is_none() {
            self.configure();
        }
        self.configure_again();
        if dirty.policy() || self.foreign.is_stale() {
            self.tell_compiler(dirty);
        }
        self.look_at_lives(dirty);
        self.masquerade(dirty);
        self.tell_node_addresses(dirty);
        self.push_policy();
        self.check_flows();
        self.release();
    }
}
