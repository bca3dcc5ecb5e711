//! Views of the world, made by its owner.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use selvage_bgp_core::config::{PeerAsn, PeerConfig};
use selvage_policy::Compiler;
use selvage_policy::model::PodKey;
use selvage_policy::verdict::{self, Decision, End, Identity};

use crate::api::{
    BgpView, ConditionView, DirectionView, EndView, FaultCountView, FaultView, Finding, Health,
    NotEnforcedView, PeerQuestion, PeerView, PolicyView, ProblemView, ReadyView, Refusal,
    RouteTotals, SourceView, StaleFamilyView, StatusView, UnknownSourceView, UnusedFamilyView,
    WhyQuestion, WhyView,
};
use crate::desired::obstacles::{Meaning, Obstacle, Stops};
use crate::desired::{Condition, Speaker, named};
use crate::objects::not_enforced::{self, MOST_NAMED, WHAT_TO_DO};
use crate::objects::{Kind, NotEnforced, PolicyKind};
use crate::source::{At, Problem};
use crate::store::{
    FaultCount, LastFault, PeerState, SessionState, StaleFamily, Store, UnusedFamily,
};

/// What the owner of the world knows besides the store.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The facts.
    pub store: &'a Store,
    /// Name of the node.
    pub node: &'a str,
    /// Features that run.
    pub features: &'a [&'static str],
    /// Where the objects come from, for people.
    pub from: &'a str,
    /// When the daemon started.
    pub started: Instant,
    /// What the speaker was told; absent without the feature.
    pub speaker: Option<&'a Speaker>,
    /// Whether routes go into the kernel.
    pub kernel: bool,
    /// How far policy is; absent without the feature.
    pub policy: Option<PolicyProgress<'a>>,
    /// Whether the node can serve pods.
    pub ready: &'a ReadyView,
    /// What keeps packets of pods from passing.
    pub obstacles: &'a [Obstacle],
    /// Threads that have been in one turn for long, and how long.
    pub busy: &'a [(&'static str, Duration)],
}

/// How far policy is.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyProgress<'a> {
    /// The newest generation that there is.
    pub planned: u64,
    /// Pods of this node that are attached and closed.
    pub closed: &'a [ClosedPod],
    /// Pods of this node that have an interface.
    pub local_pods: usize,
    /// How the interfaces of another plugin's pods begin, as `veth*`; empty where they are ours.
    pub pod_interfaces: &'a [String],
    /// Pods of this node that should have an interface of another plugin and have none.
    pub unrouted: usize,
}

/// A pod that is attached and closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedPod {
    /// `namespace/name`, or the container where the runtime named no pod.
    pub name: String,
    /// Why it is closed.
    pub why: Closed,
}

/// Why a pod is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closed {
    /// Its policy is not in the kernel yet.
    NotEnforced,
    /// No Pod of this name and UID is known: it has not been heard of yet, or it is gone.
    NoPod,
    /// One of its addresses belongs to another attachment.
    Shadowed,
    /// Another plugin's interface: no Pod of this node has one of its addresses, or not yet.
    Nobody,
}

/// So many pods are named in one finding.
const MOST_PODS: usize = 5;
/// So many problems of the sources are shown.
const MOST_PROBLEMS: usize = 100;

/// Everything on one screen.
pub fn status(world: &World<'_>) -> StatusView {
    let store = world.store;
    let bgp = world.speaker.map(|speaker| bgp(store, speaker));
    let policy = world.policy.map(|progress| policy(store, progress));
    let counts = store.routes();
    let routes = world.kernel.then_some(RouteTotals {
        ipv4: counts.ipv4,
        ipv6: counts.ipv6,
        unresolved: counts.unresolved,
        failed: counts.failed,
    });
    let wrong = wrong(world, bgp.as_ref(), routes.as_ref(), policy.as_ref());
    let health = match (
        world.ready.ready,
        wrong.is_empty() && world.ready.missing.is_empty(),
    ) {
        (false, _) => Health::Starting,
        (true, true) => Health::Good,
        (true, false) => Health::Degraded,
    };
    StatusView {
        version: env!("CARGO_PKG_VERSION").into(),
        node: world.node.into(),
        pid: std::process::id(),
        uptime: world.started.elapsed().as_secs(),
        features: world.features.iter().map(ToString::to_string).collect(),
        health,
        ready: world.ready.clone(),
        source: SourceView {
            from: world.from.into(),
            synced: store.synced(),
            objects: Kind::ALL
                .iter()
                .map(|kind| (kind.to_string(), store.count(*kind)))
                .collect(),
            problems: store.problems().take(MOST_PROBLEMS).map(problem).collect(),
            problem_count: store.problem_count(),
        },
        bgp,
        routes,
        policy,
        wrong,
    }
}

/// The neighbours that were asked for, by address.
pub fn peers(
    store: &Store,
    speaker: Option<&Speaker>,
    question: &PeerQuestion,
) -> Result<Vec<PeerView>, Refusal> {
    let Some(speaker) = speaker else {
        return Err(Refusal::hinted(
            "this agent runs without BGP",
            "it was left out of --features",
        ));
    };
    let all = all_peers(store, speaker);
    let Some(address) = question.address else {
        return Ok(all);
    };
    let found: Vec<PeerView> = all
        .into_iter()
        .filter(|peer| peer.address == address)
        .collect();
    if found.is_empty() {
        return Err(Refusal::hinted(
            format!("no neighbour {address}"),
            "`selvage peers` lists those that there are",
        ));
    }
    Ok(found)
}

/// The conditions of the objects.
pub fn conditions(speaker: Option<&Speaker>) -> Vec<ConditionView> {
    speaker
        .into_iter()
        .flat_map(|speaker| &speaker.conditions)
        .map(condition)
        .collect()
}

/// May this packet pass, and who says so?
pub fn why(
    compiler: &Compiler,
    question: &WhyQuestion,
    store: &Store,
    obstacles: &[Obstacle],
) -> Result<WhyView, Refusal> {
    let query = verdict::Query {
        source: end(&question.source)?,
        destination: end(&question.destination)?,
        protocol: protocol(&question.protocol)?,
        port: question.port,
    };
    let explanation = compiler.why(&query).map_err(|error| {
        Refusal::hinted(
            error,
            "pods are written as namespace/name, others as an address",
        )
    })?;
    let service = match question.port {
        Some(port) => format!("{}/{port}", question.protocol),
        None => question.protocol.clone(),
    };
    let (from, to) = (explanation.source.addr, explanation.destination.addr);
    let pods = compiler.local_addresses();
    let own = store.links().values().flat_map(|link| &link.addresses);
    let local: BTreeSet<IpAddr> = pods.into_iter().chain(own.map(|net| net.addr())).collect();
    let mut stopped = false;
    let (mut egress, mut ingress) = (explanation.egress.allows(), explanation.ingress.allows());
    let mut beside = Vec::new();
    for obstacle in obstacles {
        match obstacle.means(from, to, &local) {
            Meaning::None => continue,
            Meaning::May => {}
            Meaning::Stops => stopped = true,
            Meaning::NotJudged => {
                egress |= obstacle.concerns(from);
                ingress |= obstacle.concerns(to);
            }
        }
        beside.push(Finding {
            what: obstacle.what.clone(),
            todo: Some(obstacle.todo.clone()),
        });
    }
    Ok(WhyView {
        allowed: egress && ingress && !stopped,
        obstacles: beside,
        source: identity(&explanation.source),
        destination: identity(&explanation.destination),
        service,
        egress: direction(&explanation.egress, "egress"),
        ingress: direction(&explanation.ingress, "ingress"),
    })
}

fn bgp(store: &Store, speaker: &Speaker) -> BgpView {
    BgpView {
        asn: speaker.config.asn.0,
        router_id: speaker.config.router_id.to_string(),
        networks: speaker
            .config
            .networks
            .iter()
            .map(ToString::to_string)
            .collect(),
        peers: all_peers(store, speaker),
        unknown_connections: store.unknown_sources().connections,
        unknown_sources: unknown_sources(store),
    }
}

fn unknown_sources(store: &Store) -> Vec<UnknownSourceView> {
    let last = store.unknown_sources().last.iter();
    last.map(|(address, connections, at)| UnknownSourceView {
        address: *address,
        connections: *connections,
        since: seconds_since(*at),
    })
    .collect()
}

fn all_peers(store: &Store, speaker: &Speaker) -> Vec<PeerView> {
    let configured = speaker.config.peers.iter().map(|config| {
        let address = config.key.addr;
        peer(address, store.session(&address), Some(config), speaker)
    });
    let named: BTreeSet<IpAddr> = speaker
        .config
        .peers
        .iter()
        .map(|config| config.key.addr)
        .collect();
    let others = store
        .sessions()
        .filter(|state| !named.contains(&state.address));
    let others = others.map(|state| peer(state.address, Some(state), None, speaker));
    let mut peers: Vec<PeerView> = configured.chain(others).collect();
    peers.sort_by_key(|peer| peer.address);
    peers
}

fn peer(
    address: IpAddr,
    state: Option<&PeerState>,
    config: Option<&PeerConfig>,
    speaker: &Speaker,
) -> PeerView {
    let expected = match config.map(|config| config.asn) {
        Some(PeerAsn::Exactly(asn)) => asn.to_string(),
        Some(PeerAsn::Internal) => speaker.config.asn.to_string(),
        Some(PeerAsn::External) | None => "external".into(),
    };
    let session = state.map(|state| state.state).unwrap_or_default();
    PeerView {
        address,
        origin: speaker.origin(&address, config.is_some()),
        description: config
            .map(|config| config.description.clone())
            .unwrap_or_default(),
        asn: state
            .and_then(|state| state.asn)
            .map_or(expected, |asn| asn.to_string()),
        state: session.name().into(),
        up: session == SessionState::Established,
        since: state
            .map(|state| seconds_since(state.since))
            .unwrap_or_default(),
        families: state.map(PeerState::family_names).unwrap_or_default(),
        unused_families: state.map(unused_families).unwrap_or_default(),
        received: state.map(|state| state.received).unwrap_or_default(),
        advertised: state.map(|state| state.advertised).unwrap_or_default(),
        end_of_rib: state.is_some_and(|state| state.end_of_rib),
        stale: state.is_some_and(|state| !state.stale.is_empty()),
        stale_families: state.map(stale_families).unwrap_or_default(),
        last_error: state
            .and_then(|state| state.last_error.as_ref())
            .map(|(at, error)| format!("{error} ({} ago)", rounded(seconds_since(*at)))),
        hint: state.and_then(|state| state.hint).map(Into::into),
        faults: state.map(fault_counts).unwrap_or_default(),
        last_fault: state
            .and_then(|state| state.last_fault.as_ref())
            .map(last_fault),
        established: state.map(|state| state.flaps).unwrap_or_default(),
        router_id: state.and_then(|state| state.router_id.clone()),
        hold: state.map(|state| state.hold).unwrap_or_default(),
        next_session: state
            .map(|state| state.next_session.clone())
            .unwrap_or_default(),
    }
}

fn fault_counts(state: &PeerState) -> Vec<FaultCountView> {
    let view = |count: &FaultCount| FaultCountView {
        kind: count.kind.into(),
        messages: count.messages,
        prefixes: count.prefixes,
    };
    state.faults.iter().map(view).collect()
}

fn last_fault(fault: &LastFault) -> FaultView {
    FaultView {
        kind: fault.kind.into(),
        since: seconds_since(fault.at),
        attribute: fault.attribute.clone(),
        code: fault.code.clone(),
        prefixes: fault.prefixes,
        text: fault.text.clone(),
    }
}

fn stale_families(state: &PeerState) -> Vec<StaleFamilyView> {
    let left = |until: SystemTime| until.duration_since(SystemTime::now());
    let view = |stale: &StaleFamily| StaleFamilyView {
        family: stale.family.into(),
        remaining: left(stale.until).unwrap_or_default().as_secs(),
        long_lived: stale.long_lived,
    };
    state.stale.iter().map(view).collect()
}

fn unused_families(state: &PeerState) -> Vec<UnusedFamilyView> {
    let view = |unused: &UnusedFamily| UnusedFamilyView {
        family: unused.family.into(),
        reason: unused.reason.clone(),
    };
    state.unused_families.iter().map(view).collect()
}

/// Sessions that do not carry a family in which this node has something to announce.
fn families_without_next_hop(store: &Store, speaker: &Speaker) -> Vec<String> {
    let announced = |family: &str| {
        let mut networks = speaker.config.networks.iter();
        networks.any(|network| network.family().to_string() == family)
    };
    let mut found = Vec::new();
    for state in store.sessions() {
        let missing = |u: &&UnusedFamily| u.no_next_hop && announced(u.family);
        for unused in state.unused_families.iter().filter(missing) {
            let (address, family) = (state.address, unused.family);
            found.push(format!(
                "neighbour {address} gets no {family} route: {}",
                unused.reason
            ));
        }
    }
    found
}

fn rounded(seconds: u64) -> String {
    match seconds {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

fn seconds_since(time: SystemTime) -> u64 {
    SystemTime::now()
        .duration_since(time)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

fn policy(store: &Store, progress: PolicyProgress<'_>) -> PolicyView {
    let state = store.policy_state();
    PolicyView {
        enforced: state.enforced,
        planned: progress.planned,
        local_pods: progress.local_pods,
        pod_interfaces: progress.pod_interfaces.to_vec(),
        unrouted: progress.unrouted,
        waiting: progress.closed.len(),
        policies: store.count(Kind::NetworkPolicy),
        not_enforced: PolicyKind::ALL
            .into_iter()
            .map(|kind| not_enforced_of(store, kind))
            .collect(),
        failure: state.failure.clone(),
        repaired: state.repaired,
    }
}

fn not_enforced_of(store: &Store, kind: PolicyKind) -> NotEnforcedView {
    let policies = store.not_enforced(kind);
    let first = policies.iter().take(MOST_NAMED);
    NotEnforcedView {
        kind: kind.name().into(),
        count: policies.len(),
        names: first.map(|policy| policy.name.clone()).collect(),
    }
}

/// A policy that is not enforced, as a problem of the file that holds it.
pub fn not_enforced((policy, at): (&NotEnforced, &At)) -> ProblemView {
    ProblemView {
        at: at.to_string(),
        object: format!("{} {}", policy.kind, policy.name),
        path: String::new(),
        reason: "this policy is not enforced".into(),
        hint: Some(WHAT_TO_DO.into()),
    }
}

/// A problem of a source.
pub fn problem(problem: &Problem) -> ProblemView {
    let object = match (problem.kind.as_str(), problem.key.name.as_str()) {
        ("", _) => String::new(),
        (kind, "") => format!("{kind} without a name"),
        (kind, _) => format!("{kind} {}", problem.key),
    };
    ProblemView {
        at: problem.at.to_string(),
        object,
        path: problem.path.clone(),
        reason: problem.reason.clone(),
        hint: problem.hint.clone(),
    }
}

fn condition(condition: &Condition) -> ConditionView {
    ConditionView {
        kind: condition.kind.to_string(),
        object: condition.key.to_string(),
        name: condition.name.into(),
        status: condition.status,
        message: condition.message.clone(),
    }
}

/// What is wrong, the worst first.
fn wrong(
    world: &World<'_>,
    bgp: Option<&BgpView>,
    routes: Option<&RouteTotals>,
    policy: Option<&PolicyView>,
) -> Vec<Finding> {
    let mut wrong = Vec::new();
    let mut say = |what: String, todo: Option<&str>| {
        wrong.push(Finding {
            what,
            todo: todo.map(Into::into),
        })
    };
    for (name, turn) in world.busy {
        let todo = "if it goes on, the kernel or the disk may be slow; `/livez` fails after a minute, and what watches it starts the agent again";
        say(
            format!(
                "the thread {name} has been busy with one piece of work for {} s",
                turn.as_secs()
            ),
            Some(todo),
        );
    }
    if let Some(failure) = policy.and_then(|policy| policy.failure.as_ref()) {
        let todo = "the last plan that the kernel took stays in force; the log has the details";
        say(
            format!("policy is not in the kernel: {failure}"),
            Some(todo),
        );
    }
    let kinds = policy.into_iter().flat_map(|policy| &policy.not_enforced);
    for of_kind in kinds.filter(|of_kind| of_kind.count > 0) {
        let names = of_kind.names.iter().map(String::as_str);
        let what = not_enforced::summary(&of_kind.kind, of_kind.count, names);
        say(what, Some(WHAT_TO_DO));
    }
    for (why, text, todo) in [
        (
            Closed::NotEnforced,
            "closed until the policy is in the kernel",
            "`selvage why` tells what the policy will be",
        ),
        (
            Closed::NoPod,
            "attached, but no such Pod is known: closed",
            "if the Pod is gone, the runtime removes the container; if it is there, is the source of objects up to date?",
        ),
        (
            Closed::Shadowed,
            "closed, for another attachment has one of the addresses",
            "which of the containers is a leftover? `crictl rmp` removes it",
        ),
        (
            Closed::Nobody,
            "closed, for no Pod of this node is known to have that address",
            "the kubelet names the address of a new pod after a second or two; where that does not come: is it a container without a Pod, is \
             --pod-interface-prefix too short, had an earlier Pod the same address?",
        ),
    ] {
        let closed = world.policy.iter().flat_map(|policy| policy.closed);
        let names: Vec<&str> = closed
            .filter(|pod| pod.why == why)
            .map(|pod| &*pod.name)
            .collect();
        if !names.is_empty() {
            let pods = noun(names.len(), "pod");
            say(
                format!("{pods} {}: {text}", named(&names, MOST_PODS)),
                Some(todo),
            );
        }
    }
    // A reflector has none; who serves pods gets its addresses and pod CIDRs from there.
    if serves_pods(world) && world.store.synced() && world.store.node(world.node).is_none() {
        let todo = match pods_are_foreign(world) {
            true => {
                "is --node spelled as in the cluster? the pods of this node are those of that Node"
            }
            false => "is --node spelled as in the cluster? until then no pod CIDR is announced",
        };
        say(format!("there is no Node `{}`", world.node), Some(todo));
    }
    for setting in world.store.sysctls() {
        say(setting.what(), Some(&setting.todo()));
    }
    // What is not forwarded is among the sysctls, if forwarding is up to us.
    let sysctls = world.store.sysctls();
    let is_named = |obstacle: &&Obstacle| match obstacle.stops {
        Stops::Forwarded { v6 } => sysctls.iter().any(|setting| {
            setting.name
                == if v6 {
                    "net/ipv6/conf/all/forwarding"
                } else {
                    "net/ipv4/ip_forward"
                }
        }),
        _ => false,
    };
    let beside = world.obstacles.iter();
    for obstacle in beside.filter(|obstacle| !is_named(obstacle)) {
        say(obstacle.what.clone(), Some(&obstacle.todo));
    }
    for (_, what) in world.store.lacking() {
        say(what.to_owned(), None);
    }
    for peer in bgp
        .into_iter()
        .flat_map(|bgp| &bgp.peers)
        .filter(|peer| !peer.up)
    {
        let why = peer
            .last_error
            .as_deref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        let unknown = "is it reachable, does it expect us, do ASN and password agree? `selvage peers` shows more";
        let todo = peer.hint.as_deref().unwrap_or(unknown);
        say(
            format!(
                "neighbour {} ({}) is {}{why}",
                peer.address, peer.origin, peer.state
            ),
            Some(todo),
        );
    }
    for missing in world
        .speaker
        .iter()
        .flat_map(|speaker| families_without_next_hop(world.store, speaker))
    {
        say(missing, None);
    }
    if let Some(routes) = routes {
        if routes.failed > 0 {
            let todo = "another maker may hold the same prefix with our metric; the log names them";
            say(
                format!(
                    "{} refused by the kernel",
                    counted_u64(routes.failed, "route")
                ),
                Some(todo),
            );
        }
        if routes.unresolved > 0 {
            let todo = "the next hop is on no link; `selvage routes` names them";
            say(
                format!(
                    "{} without a next hop that can be reached",
                    counted_u64(routes.unresolved, "route")
                ),
                Some(todo),
            );
        }
    }
    for condition in world
        .speaker
        .iter()
        .flat_map(|speaker| &speaker.conditions)
        .filter(|condition| condition.is_bad())
    {
        say(
            format!(
                "{} {}: {}",
                condition.kind, condition.key, condition.message
            ),
            None,
        );
    }
    for problem in world.store.problems().take(MOST_PROBLEMS) {
        let mut plain = problem.clone();
        let hint = plain.hint.take();
        say(plain.to_string(), hint.as_deref());
    }
    let more = world.store.problem_count().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        say(
            format!(
                "{more} {} in the objects and files",
                noun(more, "more problem")
            ),
            Some("each is shown when those before it are corrected"),
        );
    }
    wrong
}

fn serves_pods(world: &World<'_>) -> bool {
    world
        .features
        .iter()
        .any(|feature| ["cni", "policy"].contains(feature))
}

fn pods_are_foreign(world: &World<'_>) -> bool {
    world
        .policy
        .is_some_and(|policy| !policy.pod_interfaces.is_empty())
}

/// `pod`, `pods`.
fn noun(number: usize, noun: &str) -> String {
    match number {
        1 => noun.to_owned(),
        _ => format!("{noun}s"),
    }
}

fn counted_u64(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

fn end(text: &str) -> Result<End, Refusal> {
    if let Ok(address) = text.parse() {
        return Ok(End::Addr(address));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(End::Pod(PodKey::new(namespace, name)))
        }
        _ => Err(Refusal::hinted(
            format!("`{text}` is no end of a flow"),
            "write namespace/pod or an address",
        )),
    }
}

/// IANA protocol numbers.
fn protocol(text: &str) -> Result<u8, Refusal> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => number.parse().map_err(|_| {
            Refusal::hinted(
                format!("`{text}` is no protocol"),
                "write tcp, udp, sctp, icmp or a number",
            )
        }),
    }
}

fn identity(identity: &Identity) -> EndView {
    let pod = identity.pod.as_ref().map(|pod| format!("pod {pod}"));
    let node = identity.node.as_ref().map(|node| format!("node {node}"));
    EndView {
        address: identity.addr.to_string(),
        identity: pod.or(node),
    }
}

fn direction(decision: &Decision, name: &str) -> DirectionView {
    let (policies, rule) = match decision {
        Decision::Allowed { policy, rule } => (
            vec![policy.to_string()],
            Some(format!("spec.{name}[{rule}]")),
        ),
        Decision::Denied { policies } => (policies.iter().map(ToString::to_string).collect(), None),
        _ => (Vec::new(), None),
    };
    DirectionView {
        allowed: decision.allows(),
        reason: decision.to_string(),
        policies,
        rule,
    }
}
