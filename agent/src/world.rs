//! The owner of the world: one thread that takes facts, asks `desired` what should be, and tells those who make it so.
//!
//! ```text
//!  source, watch, plugin ──► Work ──► Store ──► desired ──► speaker (configuration)
//!  speaker, routes, nft  ──►                      │   └───► routes  (settings, blackholes)
//!  control (questions)   ──►                      └───────► Compiler ──► nft (deltas, one at a time)
//! ```
//! Nothing here blocks but the short question to the speaker's I/O thread. A delta is taken only when the kernel has
//! answered the one before, so that many changes become one transaction.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use selvage_bgp::core::{
    ids::{Family, FamilySet},
    prefix::Prefix,
};
use selvage_cni::link;
use selvage_policy::{Compiler, LocalStatus, plan::Gen};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::{
    api::{ReadyView, Refusal, StatusView},
    bgp::Bgp,
    config::Features,
    control::{
        LinkQuery, Query,
        views::{self, PolicyProgress},
        waits::{Progress, Waits},
    },
    desired::{self, Local, Speaker},
    inbox::{Inbox, Sender},
    kernel::{
        RoutePolicy, Shutdown,
        conntrack::{FlowEvent, FlowWork},
        nft::{NftEvent, NftWork, Want},
        open,
        routes::{Reply as RouteReply, RouteEvent, RouteFacts, RouteWork},
    },
    source::ObjectEvent,
    store::{AttachmentId, Dirty, Observed, PolicyState, RouteCounts, SessionState, Store},
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
    /// The route writer has done everything up to this number.
    RoutesDone(u64),
    /// By the nft writer.
    Nft(NftEvent),
    /// By the walker of established flows.
    Flows(FlowEvent),
    /// By people and programs.
    Ask(Query),
    /// By the plugin.
    Link(LinkQuery),
    /// End.
    Stop(Shutdown),
}

/// How long a start waits for End-of-RIB before it is ready without (interfaces: 20 s at most).
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How often sessions are looked at while somebody waits for them.
const LOOK: Duration = Duration::from_millis(20);
/// How long a plan that the kernel has refused is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// What does not change while the agent runs.
pub struct Setup {
    /// This node.
    pub local: Local,
    /// What runs.
    pub features: Features,
    /// Where the objects come from, for people.
    pub from: String,
    /// Where the `ready` file goes.
    pub run_dir: PathBuf,
    /// When the agent started.
    pub started: Instant,
}

/// Who is told what should be.
pub struct Outlets {
    /// The speaker, started with its first configuration.
    pub bgp: Option<Bgp>,
    /// The route writer.
    pub routes: Option<Sender<RouteWork>>,
    /// The nft writer.
    pub nft: Option<Sender<NftWork>>,
    /// Who cuts established flows.
    pub flows: Option<Sender<FlowWork>>,
    /// Back to ourselves, for answers of others.
    pub world: Sender<Work>,
    /// Asks the source to pass a mark.
    pub reach: Box<dyn Fn(u64) + Send>,
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
    route_policy: Option<RoutePolicy>,
    blackholes: Option<Vec<IpNet>>,
    policy: PolicyOut,
    waiting: Vec<Waiting>,
    /// Attachments whose interface is to be opened by us, once their policy is in force.
    to_open: BTreeSet<AttachmentId>,
    /// Families whose routes of an earlier run have been sorted out.
    synced: FamilySet,
    ready: ReadyView,
    waits: Waits,
    barrier: Barrier,
}

/// How far the nft writer is.
struct PolicyOut {
    /// The generation that it works on.
    in_flight: Option<Gen>,
    /// The newest generation in the kernel.
    applied: Option<Gen>,
    /// The whole plan is to be sent, not before this time.
    whole_at: Option<Instant>,
    /// What it works on may close or open established flows.
    revoking: bool,
    failure: Option<String>,
    repaired: u64,
}

/// Numbers that pass through the RIB and the route writer: what was told before one is done when it comes back.
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
    pub fn new(setup: Setup, out: Outlets, attachments: Vec<link::Attachment>) -> World {
        let compiler = Compiler::new(selvage_policy::Config {
            node: setup.local.node.as_str().into(),
            ..selvage_policy::Config::default()
        });
        let mut world = World {
            setup,
            out,
            store: Store::default(),
            compiler,
            speaker: None,
            route_policy: None,
            blackholes: None,
            policy: PolicyOut {
                in_flight: None,
                applied: None,
                whole_at: Some(Instant::now()),
                revoking: false,
                failure: None,
                repaired: 0,
            },
            waiting: Vec::new(),
            to_open: BTreeSet::new(),
            synced: FamilySet::NONE,
            ready: ReadyView::default(),
            waits: Waits::default(),
            barrier: Barrier::default(),
        };
        let mut dirty = Dirty::default();
        for attachment in attachments {
            dirty.merge(world.attach(attachment));
        }
        world.tell_compiler(&dirty);
        world
    }

    /// Works until told to stop; says how.
    pub fn run(mut self, inbox: &Inbox<Work>) -> Shutdown {
        loop {
            let busy =
                !self.ready.ready || !self.waits.is_empty() || self.policy.whole_at.is_some();
            let timeout = busy.then_some(LOOK);
            if let Err(error) = inbox.wait(&[], timeout) {
                error!(%error, "cannot wait for work");
            }
            let mut dirty = Dirty::default();
            for work in inbox.recv_all() {
                if let Work::Stop(how) = work {
                    return self.stop(how);
                }
                dirty.merge(self.take(work));
            }
            self.think(&dirty);
            self.look();
        }
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
            Work::Observed(observed) => self.store.observe(observed),
            Work::Routes(event) => self.route_event(event),
            Work::RibSynced(family) => {
                self.synced.insert(family);
                Dirty::default()
            }
            Work::RoutesDone(number) => {
                self.barrier.done = self.barrier.done.max(number);
                Dirty::default()
            }
            Work::Nft(event) => self.nft_event(event),
            Work::Flows(event) => {
                self.flow_event(event);
                Dirty::default()
            }
            Work::Ask(query) => {
                self.answer(query);
                Dirty::default()
            }
            Work::Link(query) => self.link(query),
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
            return;
        }
        if dirty.bgp || dirty.synced || self.speaker.is_none() {
            self.configure();
        }
        if dirty.policy() {
            self.tell_compiler(dirty);
        }
        self.push_policy();
        self.release();
    }

    // ---- BGP and routes ----

    fn configure(&mut self) {
        if self.setup.features.bgp {
            let speaker = desired::bgp(&self.store, &self.setup.local);
            let same = self
                .speaker
                .as_ref()
                .is_some_and(|s| s.config == speaker.config);
            if !same && let Some(bgp) = &mut self.out.bgp {
                let refused = bgp.configure(&speaker.config);
                let observed = match refused.as_slice() {
                    [] => Observed::NotLacking("bgp"),
                    some => Observed::Lacking("bgp", some.join("; ")),
                };
                for error in &refused {
                    warn!("{error}");
                }
                self.store.observe(observed);
            }
            for condition in speaker.conditions.iter().filter(|c| c.is_bad()) {
                if self
                    .speaker
                    .as_ref()
                    .is_none_or(|s| !s.conditions.contains(condition))
                {
                    warn!(kind = %condition.kind, object = %condition.key, condition = condition.name, "{}", condition.message);
                }
            }
            self.speaker = Some(speaker);
        }
        let policy = desired::routes(&self.store, &self.setup.local);
        if self.route_policy != Some(policy) {
            self.route_policy = Some(policy);
            self.tell_routes(RouteWork::Policy(policy));
        }
        let blackholes = desired::blackholes(&self.store, &self.setup.local);
        if self.blackholes.as_ref() != Some(&blackholes) {
            let prefixes = blackholes
                .iter()
                .filter_map(|net| Prefix::new(net.addr(), net.prefix_len()))
                .collect();
            self.blackholes = Some(blackholes);
            self.tell_routes(RouteWork::Blackholes(prefixes));
        }
    }

    fn tell_routes(&self, work: RouteWork) {
        if let Some(routes) = &self.out.routes {
            routes.send(work);
        }
    }

    fn route_event(&mut self, event: RouteEvent) -> Dirty {
        match event {
            RouteEvent::Reachability { next_hop, metric } => {
                if let Some(bgp) = &self.out.bgp {
                    bgp.reachability(next_hop, metric);
                }
                Dirty::default()
            }
            RouteEvent::InSync(family) => {
                self.synced.insert(family);
                Dirty::default()
            }
            RouteEvent::Facts(facts) => self.store.observe(Observed::Routes(counts(&facts))),
        }
    }

    // ---- policy ----

    fn tell_compiler(&mut self, dirty: &Dirty) {
        if self.setup.features.policy {
            for change in desired::policy(&self.store, dirty) {
                self.compiler.apply(change);
            }
        }
    }

    /// One transaction at a time: what comes meanwhile goes into the next. None before the source has said everything
    /// once: the plan of half a world would close pods that the run before has open.
    fn push_policy(&mut self) {
        if self.out.nft.is_none() || self.policy.in_flight.is_some() || !self.store.synced() {
            return;
        }
        if let Some(at) = self.policy.whole_at {
            if at <= Instant::now() {
                self.send_plan();
            }
        } else if let Some(delta) = self.compiler.take_delta() {
            self.policy.in_flight = Some(delta.to);
            self.policy.revoking |= delta.may_revoke() || delta.may_allow();
            self.tell_nft(NftWork::Delta(delta));
        }
    }

    fn send_plan(&mut self) {
        let (generation, plan) = self.compiler.take_plan();
        let plan = Arc::new(plan.clone());
        self.policy.in_flight = Some(generation);
        self.policy.whole_at = None;
        self.policy.revoking = true;
        self.tell_nft(NftWork::Plan(generation, plan));
    }

    fn tell_nft(&self, work: NftWork) {
        if let Some(nft) = &self.out.nft {
            nft.send(work);
        }
    }

    fn nft_event(&mut self, event: NftEvent) -> Dirty {
        match event {
            NftEvent::Applied {
                generation,
                repaired,
            } => {
                self.policy.in_flight = None;
                self.policy.applied = Some(generation);
                self.policy.failure = None;
                self.policy.repaired += u64::from(repaired);
                if std::mem::take(&mut self.policy.revoking) || repaired {
                    self.check_flows();
                }
            }
            NftEvent::Failed {
                generation,
                op,
                errno,
                reason,
            } => {
                self.policy.in_flight = None;
                self.policy.whole_at = Some(Instant::now() + RETRY);
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
                self.policy.whole_at = Some(Instant::now());
            }
        }
        self.store.observe(Observed::Policy(PolicyState {
            enforced: self.policy.applied.map_or(0, |applied| applied.0),
            failure: self.policy.failure.clone(),
            repaired: self.policy.repaired,
        }))
    }

    /// Looks at the established flows of our pods: some may not be allowed any more.
    fn check_flows(&mut self) {
        if let Some(flows) = &self.out.flows {
            flows.send(FlowWork::Check(Arc::new(self.compiler.local_addresses())));
        }
    }

    fn flow_event(&mut self, event: FlowEvent) {
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
            FlowEvent::Passed(passed) if passed.revoked + passed.restored > 0 => {
                info!(
                    cut = passed.revoked,
                    restored = passed.restored,
                    of = passed.seen,
                    "established flows"
                );
            }
            FlowEvent::Passed(_) => {}
        }
    }

    /// Whether the pod behind an interface has its policy in the kernel.
    fn is_enforced(&mut self, host_if: &str) -> Option<Gen> {
        let ifname = host_if.parse().ok()?;
        let LocalStatus::Planned(planned) = self.compiler.status(&ifname) else {
            return None;
        };
        self.policy.applied.filter(|applied| planned <= *applied)
    }

    // ---- pods ----

    fn link(&mut self, query: LinkQuery) -> Dirty {
        match query {
            LinkQuery::Attach(attachment, reply) => {
                let id = AttachmentId::of(&attachment);
                info!(
                    pod = pod_name(&attachment),
                    interface = attachment.host_if,
                    "attached"
                );
                self.waiting.push(Waiting { id, reply });
                self.attach(*attachment)
            }
            LinkQuery::Detach { id, ifname, reply } => {
                let id = AttachmentId {
                    container: id,
                    ifname,
                };
                self.to_open.remove(&id);
                self.waiting.retain(|w| w.id != id);
                if let (Some(gone), Some(flows)) = (self.store.attachment(&id), &self.out.flows) {
                    // The next owner of the addresses must not inherit what they had established.
                    flows.send(FlowWork::Forget(gone.addresses.iter().copied().collect()));
                }
                // The plugin does not depend on the answer.
                let _ = reply.send(link::Reply::Ok);
                self.store.detach(&id)
            }
        }
    }

    fn attach(&mut self, attachment: link::Attachment) -> Dirty {
        if attachment.policy == link::PolicyMode::Optional {
            self.to_open.insert(AttachmentId::of(&attachment));
        }
        self.store.attach(attachment)
    }

    /// Answers plugins and opens interfaces whose pods have their policy in the kernel by now.
    fn release(&mut self) {
        self.waiting.retain(|w| !w.reply.is_closed());
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(host_if) = self
                .store
                .attachment(&waiting.id)
                .map(|a| a.host_if.clone())
            else {
                continue;
            };
            let reply = if self.setup.features.policy {
                match self.is_enforced(&host_if) {
                    Some(generation) => link::Reply::Enforced {
                        generation: generation.0,
                        masquerade: false,
                    },
                    None => {
                        self.waiting.push(waiting);
                        continue;
                    }
                }
            } else {
                link::Reply::NotApplicable { masquerade: false }
            };
            // A plugin that has hung up undoes what it did.
            let _ = waiting.reply.send(reply);
        }
        for id in std::mem::take(&mut self.to_open) {
            let Some(attachment) = self.store.attachment(&id).cloned() else {
                continue;
            };
            if self.setup.features.policy && self.is_enforced(&attachment.host_if).is_none() {
                self.to_open.insert(id);
                continue;
            }
            match open::open(attachment.host_index, &attachment.addresses) {
                Ok(()) => debug!(interface = attachment.host_if, "opened"),
                Err(error) => {
                    warn!(interface = attachment.host_if, %error, "cannot open a pod's interface")
                }
            }
        }
    }

    // ---- questions ----

    fn answer(&mut self, query: Query) {
        // Whoever asked may be gone; that is no error.
        match query {
            Query::Status(reply) => {
                self.look_at_peers();
                let _ = reply.send(Ok(self.status()));
            }
            Query::Peers(question, reply) => {
                self.look_at_peers();
                let _ = reply.send(views::peers(&self.store, self.speaker.as_ref(), &question));
            }
            Query::Routes(question, reply) => {
                let page = match &self.out.bgp {
                    Some(bgp) => bgp.routes(&question),
                    None => Err(Refusal::hinted(
                        "this agent runs without BGP",
                        "it was left out of --features",
                    )),
                };
                let _ = reply.send(page);
            }
            Query::Why(question, reply) => {
                let answer = if self.setup.features.policy {
                    views::why(&self.compiler, &question)
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

    fn status(&mut self) -> StatusView {
        let waiting: Vec<String> = self
            .store
            .attachments()
            .map(|(_, a)| a.host_if.clone())
            .collect();
        let waiting = match self.setup.features.policy {
            true => waiting
                .iter()
                .filter(|host_if| self.is_enforced(host_if).is_none())
                .count(),
            false => 0,
        };
        let planned = self.compiler.generation().0;
        let features = self.setup.features.names();
        views::status(&views::World {
            store: &self.store,
            node: &self.setup.local.node,
            features: &features,
            from: &self.setup.from,
            started: self.setup.started,
            speaker: self.speaker.as_ref(),
            kernel: self.setup.features.kernel,
            policy: self
                .setup
                .features
                .policy
                .then_some(PolicyProgress { planned, waiting }),
            ready: &self.ready,
        })
    }

    fn look_at_peers(&mut self) {
        let Some(bgp) = &self.out.bgp else { return };
        let peers = bgp.peers();
        let gone: Vec<_> = self
            .store
            .sessions()
            .map(|s| s.address)
            .filter(|a| !peers.iter().any(|p| p.address == *a))
            .collect();
        for address in gone {
            self.store.observe(Observed::PeerGone(address));
        }
        for peer in peers {
            self.store.observe(Observed::Peer(peer));
        }
    }

    // ---- how far it is ----

    /// Looks at what somebody waits for: readiness, and waits of the control API.
    fn look(&mut self) {
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

    /// What the source held at a mark has reached the kernel when two numbers have come back since: with the first one
    /// the RIB has decided, with the second the routes are written.
    fn pass_barrier(&mut self) {
        let barrier = &mut self.barrier;
        if self.store.reached() > barrier.mark {
            barrier.mark = self.store.reached();
            barrier.wanted = barrier.asked + 2;
        }
        if barrier.asked > barrier.done || barrier.done >= barrier.wanted {
            return;
        }
        barrier.asked += 1;
        let number = barrier.asked;
        match &self.out.routes {
            Some(routes) => {
                let world = self.out.world.clone();
                routes.send(RouteWork::Query(RouteReply(Box::new(move |_| {
                    world.send(Work::RoutesDone(number))
                }))));
            }
            None => self.barrier.done = number,
        }
    }

    fn policy_is_settled(&mut self) -> bool {
        self.out.nft.is_none()
            || (self.policy.applied.is_some()
                && self.policy.in_flight.is_none()
                && self.policy.whole_at.is_none())
    }

    fn peers_are_up(&self) -> bool {
        let Some(speaker) = &self.speaker else {
            return !self.setup.features.bgp;
        };
        speaker.config.peers.iter().all(|peer| {
            let session = self.store.session(&peer.key.addr);
            session.is_some_and(|s| s.state == SessionState::Established && s.end_of_rib)
        })
    }

    fn check_ready(&mut self) {
        if self.ready.ready {
            return;
        }
        let mut missing = Vec::new();
        if !self.store.synced() {
            missing.push("the source has not been read".to_owned());
        }
        if self.out.nft.is_some() && self.policy.applied.is_none() {
            missing.push("policy is not in the kernel".to_owned());
        }
        let late = self.setup.started.elapsed() > READY_LIMIT;
        if self.setup.features.bgp && self.synced != FamilySet::ALL && !late {
            missing.push("routes of the neighbours are not complete".to_owned());
        }
        if !missing.is_empty() {
            self.ready.missing = missing;
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
        match std::fs::write(self.setup.run_dir.join(link::READY), "") {
            Ok(()) => info!(without = ?self.ready.missing, "ready"),
            Err(error) => {
                error!(%error, "cannot write the ready file: the plugin will refuse pods")
            }
        }
    }
}

fn pod_name(attachment: &link::Attachment) -> String {
    match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => attachment.container_id.clone(),
    }
}

fn counts(facts: &RouteFacts) -> RouteCounts {
    RouteCounts {
        ipv4: facts.installed[0] as u64,
        ipv6: facts.installed[1] as u64,
        unresolved: facts.unresolved.iter().map(|u| u64::from(u.routes)).sum(),
        failed: facts.failing as u64,
        settled: facts.failing == 0,
    }
}
