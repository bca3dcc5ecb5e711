//! The two ends of the speaker: it is told what to be, and asked for routes; what it decides goes to the route writer, and
//! what becomes of its neighbours to the owner of the world.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use selvage_bgp::{
    self as speaker, Clock, Handle, PeerChange, PeerSink, PeerStatus, RouteEvent, RouteSink,
    Speaker, Start,
    core::{
        clock::Now,
        config::SpeakerConfig,
        ids::{Family, PeerIdx},
        prefix::Prefix,
        rib::{self, Listing, Rejection, RibInput, Row},
        session::{FaultKind, Faults, OpenSettings, StaleView, State, Stop, SurvivedFault, Unused},
        wire::{
            self,
            attr::{Origin, PathAttributes},
        },
    },
};
use selvage_netlink::{Prefix as KernelPrefix, Protocol, Socket, route};

use crate::{
    api::{PathView, Refusal, RoutePage, RouteQuestion, RouteView},
    inbox::Sender,
    kernel::{
        PROTOCOL_BGP, Shutdown,
        routes::{Changes, Reply, RouteWork},
    },
    neighbours::{self, Changed},
    store::{
        FaultCount, LastFault, PeerState, SessionState, StaleFamily, UnknownSources, UnusedFamily,
    },
    world::Work,
};

/// Rows of a page unless asked for less.
const PAGE: usize = 1000;
/// Up to so many prefixes, a listing says of each whether the kernel has it: reading the kernel's table takes 2 ms then.
const SMALL_TABLE: usize = 5000;

/// The way to the speaker for those who do not go through the owner of the world: empty before the start.
#[derive(Clone, Default)]
pub struct Speaking(Arc<OnceLock<Handle>>);

impl Speaking {
    /// The running speaker; `None` before its first configuration.
    pub fn get(&self) -> Option<&Handle> {
        self.0.get()
    }

    /// Tells the RIB how a next hop is reached. Nobody asks for that before the start: the speaker is configured after it.
    pub fn reachability(&self, next_hop: IpAddr, metric: Option<u32>) {
        if let Some(speaker) = self.get() {
            speaker.tell([RibInput::Reachability { next_hop, metric }]);
        }
    }
}

/// The speaker, which starts with its first configuration.
pub struct Bgp {
    /// Whether an earlier run has left its routes in the kernel.
    restarting: bool,
    state_dir: PathBuf,
    routes: Option<Sender<RouteWork>>,
    world: Sender<Work>,
    speaking: Speaking,
    speaker: Option<Speaker>,
}

impl Bgp {
    /// A speaker that has not started yet; `speaking` is filled when it has.
    pub fn new(
        restarting: bool,
        state_dir: PathBuf,
        routes: Option<Sender<RouteWork>>,
        world: Sender<Work>,
        speaking: Speaking,
    ) -> Bgp {
        Bgp {
            restarting,
            state_dir,
            routes,
            world,
            speaking,
            speaker: None,
        }
    }

    /// Starts it if it does not run, and tells it what to be from now on. [`Work::Configured`] says what the operating
    /// system refused; all else is in force.
    pub fn configure(&mut self, config: &SpeakerConfig) {
        let config = Arc::new(config.clone());
        let world = self.world.clone();
        let mut refused = Vec::new();
        let speaker = match self.speaker.take() {
            Some(speaker) => speaker,
            None => match self.start(config.clone(), &mut refused) {
                Ok(speaker) => speaker,
                Err(error) => {
                    world.send(Work::Configured(vec![format!("BGP cannot start: {error}")]));
                    return;
                }
            },
        };
        let answer = move |errors: Vec<_>| {
            refused.extend(errors.iter().map(ToString::to_string));
            world.send(Work::Configured(refused));
        };
        // A speaker that has stopped says so where it stops.
        let _ = speaker.handle().configure_then(config, Box::new(answer));
        self.speaker = Some(speaker);
    }

    /// Starts the threads; the speaker does nothing before it is configured. By then everybody has its handle: the route
    /// writer answers for a next hop within microseconds of the first UPDATE.
    fn start(&self, config: Arc<SpeakerConfig>, refused: &mut Vec<String>) -> io::Result<Speaker> {
        let seed = u64::from(std::process::id()) << 32 | u64::from(config.router_id.0);
        let before = neighbours::read(&self.state_dir).filter(|_| self.restarting);
        let restart_time = config.graceful_restart.restart_time;
        let (changed, remembered) =
            neighbours::new(&self.state_dir, before.as_deref(), restart_time);
        let speaker = Speaker::start(Start {
            config,
            restarting: self.restarting,
            before,
            seed,
            routes: sink(self.routes.clone(), self.world.clone()),
            peers: peer_sink(self.world.clone(), changed),
        })?;
        if let Err(error) = remembered.watch(speaker.handle()) {
            refused.push(format!("cannot remember the neighbours: {error}"));
        }
        // It starts once.
        let _ = self.speaking.0.set(speaker.handle());
        Ok(speaker)
    }

    /// The speaker's clock; `None` before the start.
    pub fn clock(&self) -> Option<Clock> {
        self.speaking.get().map(Handle::clock)
    }

    /// Has [`Work::RoutesDone`] sent when all that the speaker was told so far is decided, and the route writer has done
    /// what follows from it. False: it does not run.
    pub fn barrier(&self, number: u64) -> bool {
        let speaker = self.speaking.get();
        speaker.is_some_and(|speaker| speaker.barrier(number).is_ok())
    }

    /// Ends it. Where neighbours keep our routes over a restart, they are not told of a graceful end.
    pub fn stop(self, how: Shutdown, graceful_restart: bool) {
        let Some(speaker) = self.speaker else { return };
        speaker.stop(match how {
            Shutdown::Graceful if graceful_restart => Stop::Restart,
            Shutdown::Graceful | Shutdown::Drain | Shutdown::Now => Stop::Shutdown(String::new()),
        });
    }
}

/// Passes on which neighbours have changed. Those that have a session are remembered for the next run.
fn peer_sink(world: Sender<Work>, remembered: Changed) -> PeerSink {
    let mut up = BTreeSet::new();
    Box::new(move |changes| {
        let mut moved = false;
        for change in &changes {
            moved |= match change {
                PeerChange::Gone(idx, _) => up.remove(idx),
                PeerChange::Is(peer) if peer.session.state == State::Established => {
                    up.insert(peer.idx)
                }
                PeerChange::Is(peer) => up.remove(&peer.idx),
                PeerChange::Unknown(_) => false,
            };
        }
        if moved {
            remembered.tell();
        }
        world.send(Work::Peers(changes));
    })
}

/// Passes on what the RIB decides: to the route writer, or, without one, only that a family is complete.
fn sink(routes: Option<Sender<RouteWork>>, world: Sender<Work>) -> RouteSink {
    let waiting = Changes::default();
    Box::new(move |events| {
        for event in events {
            let begins = match (event, &routes) {
                (RouteEvent::Changes(changes), Some(_)) => waiting.push(changes),
                (RouteEvent::Watch(addr), Some(_)) => waiting.watch(addr, true),
                (RouteEvent::Unwatch(addr), Some(_)) => waiting.watch(addr, false),
                (RouteEvent::Synced(family), Some(routes)) => {
                    routes.send(RouteWork::Synced(family));
                    false
                }
                (RouteEvent::Barrier(number), Some(routes)) => {
                    let world = world.clone();
                    let done = move |_: &_| world.send(Work::RoutesDone(number));
                    routes.send(RouteWork::Query(Reply(Box::new(done))));
                    false
                }
                (RouteEvent::Synced(family), None) => {
                    world.send(Work::RibSynced(family));
                    false
                }
                (RouteEvent::Barrier(number), None) => {
                    world.send(Work::RoutesDone(number));
                    false
                }
                (RouteEvent::Peers(counts), _) => {
                    world.send(Work::PeerCounts(counts));
                    false
                }
                (RouteEvent::Changes(_) | RouteEvent::Watch(_) | RouteEvent::Unwatch(_), None) => {
                    false
                }
            };
            if let Some(routes) = routes.as_ref().filter(|_| begins) {
                routes.send(RouteWork::Waiting(waiting.clone()));
            }
        }
    })
}

/// Who connects without being configured.
pub fn unknown_sources(clock: Clock, found: &speaker::UnknownSources) -> UnknownSources {
    let now = clock.now();
    let last = found.last.iter();
    UnknownSources {
        connections: found.connections,
        last: last
            .map(|s| (s.address, s.connections, moment(now.since(s.at))))
            .collect(),
    }
}

/// A neighbour as the I/O thread has told it. What the RIB counts is not in it.
pub fn peer_state(clock: Clock, peer: &PeerStatus) -> PeerState {
    let session = &peer.session;
    let negotiated = session.negotiated.as_deref();
    let ago = |at: Now| clock.now().since(at);
    let since = session
        .uptime
        .or(session.last_down.as_ref().map(|(at, _)| ago(*at)))
        .unwrap_or(ago(Now(0)));
    let down = session.state != State::Established;
    let error = session.last_error.as_ref().filter(|_| down);
    let families = negotiated.map(|n| n.families).unwrap_or_default();
    PeerState {
        address: peer.config.key.addr,
        state: session_state(session.state),
        since: moment(since),
        asn: negotiated.map(|n| n.peer_asn.0),
        last_error: error.map(|(at, error)| (moment(ago(*at)), error.to_string())),
        hint: error.map(|(_, error)| error.cause.hint()),
        faults: fault_counts(&session.faults),
        last_fault: session
            .faults
            .last
            .as_ref()
            .map(|(at, fault)| last_fault(moment(ago(*at)), fault)),
        received: [0; 2],
        advertised: [0; 2],
        end_of_rib: false,
        stale: session.stale.iter().map(stale_family).collect(),
        flaps: session.established,
        families: Family::ALL.map(|f| families.contains(f)),
        unused_families: session.unused_families.iter().map(unused_family).collect(),
        router_id: negotiated.map(|n| n.peer_id.to_string()),
        hold: negotiated.map_or(0, |n| u16::try_from(n.hold.as_secs()).unwrap_or(u16::MAX)),
        next_session: session
            .next_open
            .as_ref()
            .map(next_session)
            .unwrap_or_default(),
        dynamic: peer.dynamic,
    }
}

/// What an OPEN says, in words.
fn next_session(open: &OpenSettings) -> Vec<String> {
    let time = |name: &str, time: Option<Duration>| match time {
        Some(time) => format!("{name} {}s", time.as_secs()),
        None => format!("no {name}"),
    };
    vec![
        time("hold time", Some(open.hold)),
        time("graceful restart", open.restart_time),
        time("long-lived graceful restart", open.long_lived),
    ]
}

/// The time that was `ago` before now.
fn moment(ago: Duration) -> SystemTime {
    SystemTime::now()
        .checked_sub(ago)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn fault_kind(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::TreatAsWithdraw => "treatAsWithdraw",
        FaultKind::AttributeDiscard => "attributeDiscard",
        FaultKind::OpenRefused => "openRefused",
        FaultKind::UnusableNextHop => "unusableNextHop",
    }
}

fn fault_counts(faults: &Faults) -> Vec<FaultCount> {
    let counts = FaultKind::ALL.into_iter().zip(faults.counts);
    counts
        .filter(|(_, count)| count.messages > 0)
        .map(|(kind, count)| FaultCount {
            kind: fault_kind(kind),
            messages: count.messages,
            prefixes: count.prefixes,
        })
        .collect()
}

fn last_fault(at: SystemTime, fault: &SurvivedFault) -> LastFault {
    LastFault {
        kind: fault_kind(fault.kind),
        at,
        attribute: fault.attribute.map(wire::attribute::name),
        code: fault
            .code
            .map(|(code, subcode)| format!("{code}/{subcode}")),
        prefixes: fault.prefixes,
        text: fault.to_string(),
    }
}

fn stale_family(stale: &StaleView) -> StaleFamily {
    StaleFamily {
        family: match stale.family {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        },
        until: SystemTime::now() + stale.remaining,
        long_lived: stale.long_lived,
    }
}

fn unused_family((family, unused): &(Family, Unused)) -> UnusedFamily {
    UnusedFamily {
        family: match family {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        },
        reason: unused.to_string(),
        no_next_hop: matches!(unused, Unused::NoNextHop(_)),
    }
}

fn session_state(state: State) -> SessionState {
    match state {
        State::Idle => SessionState::Idle,
        State::Connect => SessionState::Connect,
        State::Active => SessionState::Active,
        State::OpenSent => SessionState::OpenSent,
        State::OpenConfirm => SessionState::OpenConfirm,
        State::Established => SessionState::Established,
    }
}

/// A page of routes. `kernel`: whether routes go into the kernel, so that the page says what it has. Waits for the RIB.
pub fn routes(
    speaker: &Handle,
    question: &RouteQuestion,
    kernel: bool,
) -> Result<RoutePage, Refusal> {
    let peers = speaker.peers().map_err(Refusal::new)?;
    let names = Names { peers: &peers };
    if let Some(text) = &question.prefix {
        let rows = holding(speaker, text)?;
        let version = rows.1;
        let mut socket = kernel.then(|| Socket::open(Protocol::Route).ok()).flatten();
        let rows = rows.0.into_iter().map(|row| {
            let kernel = socket.as_mut().and_then(|s| in_kernel(s, &row.prefix));
            RouteView {
                kernel,
                ..names.view(row)
            }
        });
        return Ok(RoutePage {
            rows: rows.collect(),
            next: None,
            version,
        });
    }
    let what = match (question.received, question.advertised) {
        (Some(addr), _) => Listing::Received(names.find(addr)?),
        (None, Some(addr)) => Listing::Advertised(names.find(addr)?),
        (None, None) => Listing::All,
    };
    let (family, after) = position(question.after.as_deref())?;
    let limit = if question.limit == 0 {
        PAGE
    } else {
        question.limit.min(PAGE)
    };
    let page = speaker
        .query(rib::Query::Routes {
            what,
            family,
            after,
            limit,
        })
        .map_err(Refusal::new)?;
    let next = match (page.next, family) {
        (Some(next), _) => Some(format!("{family}:{next}")),
        (None, Family::Ipv4) => Some(format!("{}:0", Family::Ipv6)),
        (None, Family::Ipv6) => None,
    };
    let kernel = match what {
        Listing::All if kernel && page.totals.prefixes.iter().sum::<usize>() <= SMALL_TABLE => {
            kernel_routes()
        }
        _ => None,
    };
    let rows = page.rows.into_iter().map(|row| {
        let learned = row
            .paths
            .iter()
            .any(|path| path.best && path.peer.is_some());
        let state = kernel.as_ref().filter(|_| learned).map(|known| {
            let there = known.contains(&row.prefix);
            if there { "installed" } else { "missing" }.to_owned()
        });
        RouteView {
            kernel: state,
            ..names.view(row)
        }
    });
    Ok(RoutePage {
        rows: rows.collect(),
        next,
        version: page.version,
    })
}

/// All that BGP has put into the kernel; `None` where it cannot be read.
fn kernel_routes() -> Option<HashSet<Prefix>> {
    let mut socket = Socket::open(Protocol::Route).ok()?;
    let ours = route::Filter {
        protocol: Some(PROTOCOL_BGP),
        ..route::Filter::default()
    };
    let mut found = HashSet::new();
    for v6 in [false, true] {
        let routes = route::list(&mut socket, v6, &ours).ok()?;
        found.extend(
            routes
                .iter()
                .filter_map(|r| Prefix::new(r.prefix.addr, r.prefix.len)),
        );
    }
    Some(found)
}

/// Where a page begins, as the page before named it.
fn position(after: Option<&str>) -> Result<(Family, u32), Refusal> {
    let Some(text) = after else {
        return Ok((Family::Ipv4, 0));
    };
    let parsed = text.split_once(':').and_then(|(family, at)| {
        let family = Family::ALL.into_iter().find(|f| f.to_string() == family)?;
        Some((family, at.parse().ok()?))
    });
    parsed.ok_or_else(|| {
        Refusal::hinted(
            format!("`{text}` is no place in the table"),
            "pass on `next` of the page before",
        )
    })
}

/// The routes to exactly a prefix, or those that hold an address, the longest first; and the table's version.
fn holding(speaker: &Handle, text: &str) -> Result<(Vec<Row>, u64), Refusal> {
    let wanted: Vec<Prefix> = match (Prefix::from_str(text), IpAddr::from_str(text)) {
        (Ok(prefix), _) => vec![prefix],
        (Err(_), Ok(addr)) => {
            let longest = Prefix::host(addr).len();
            (0..=longest)
                .rev()
                .filter_map(|len| Prefix::new(addr, len))
                .collect()
        }
        _ => {
            let hint = "write a prefix such as 10.244.1.0/24, or an address";
            return Err(Refusal::hinted(
                format!("`{text}` is neither a prefix nor an address"),
                hint,
            ));
        }
    };
    let mut rows = Vec::new();
    let mut version = 0;
    for prefix in wanted {
        let page = speaker
            .query(rib::Query::Prefix(prefix))
            .map_err(Refusal::new)?;
        rows.extend(page.rows);
        version = page.version;
    }
    Ok((rows, version))
}

/// What the kernel has for exactly this prefix.
fn in_kernel(socket: &mut Socket, prefix: &Prefix) -> Option<String> {
    let found = route::lookup(socket, prefix.addr()).ok()?;
    let ours = found.prefix == KernelPrefix::new(prefix.addr(), prefix.len())
        && found.protocol == PROTOCOL_BGP;
    Some(if ours {
        "installed".into()
    } else {
        "not the kernel's choice".into()
    })
}

fn refusal(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::OwnAs => "our AS is in its AS path",
        Rejection::OwnOriginator => "we are its originator",
        Rejection::OwnCluster => "it has been in our cluster",
        Rejection::OwnNextHop => "its next hop is ourselves",
        Rejection::Filter => "import filter",
    }
}

struct Names<'a> {
    peers: &'a [PeerStatus],
}

impl Names<'_> {
    fn find(&self, addr: IpAddr) -> Result<PeerIdx, Refusal> {
        self.peers
            .iter()
            .find(|p| p.config.key.addr == addr)
            .map(|p| p.idx)
            .ok_or_else(|| {
                Refusal::hinted(
                    format!("no neighbour {addr}"),
                    "`selvage peers` lists those that there are",
                )
            })
    }

    fn view(&self, row: Row) -> RouteView {
        let decided = row.decided_by.map(|step| step.name());
        let mut paths: Vec<PathView> = row
            .paths
            .iter()
            .map(|path| self.path(path, decided))
            .collect();
        paths.sort_by_key(|path| !path.best);
        RouteView {
            prefix: row.prefix.to_string(),
            paths,
            kernel: None,
        }
    }

    fn path(&self, path: &rib::PathView, decided: Option<&str>) -> PathView {
        let attrs: &PathAttributes = &path.attrs;
        let peer = path
            .peer
            .and_then(|idx| self.peers.iter().find(|p| p.idx == idx))
            .map(|p| p.config.key.addr);
        let reason = match (path.rejected, path.metric, path.best) {
            (Some(rejection), ..) => format!("refused: {}", refusal(rejection)),
            (None, None, _) if path.peer.is_some() => "next hop unreachable".into(),
            (None, _, true) => decided.unwrap_or_default().into(),
            (None, _, false) if path.multipath => "equal".into(),
            (None, ..) => String::new(),
        };
        PathView {
            peer,
            next_hops: path
                .peer
                .map(|_| attrs.next_hop.to_string())
                .into_iter()
                .collect(),
            as_path: attrs.as_path.to_string(),
            origin: match attrs.origin {
                Origin::Igp => "igp",
                Origin::Egp => "egp",
                Origin::Incomplete => "incomplete",
            }
            .into(),
            local_pref: attrs.local_pref,
            med: attrs.med,
            communities: attrs
                .communities
                .iter()
                .map(|c| format!("{}:{}", c >> 16, c & 0xffff))
                .collect(),
            best: path.best,
            multipath: path.multipath,
            stale: path.stale,
            reason,
        }
    }
}
