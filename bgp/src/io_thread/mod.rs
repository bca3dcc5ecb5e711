//! The thread that owns every socket and every timer. One loop over what is ready, one read buffer for all.
//!
//! It never waits for table work: a keepalive, an accept and a session's end are handled whatever the RIB does. When the RIB
//! is behind, sockets are not read until it has caught up.

mod configuration;
mod connections;
mod sending;
mod sessions;
mod statuses;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use mio::{Events, Poll, Token, event::Event, net::TcpListener};
use selvage_bgp_core::{
    clock::{Now, earlier},
    config::{Password, SpeakerConfig},
    ids::{Epochs, GroupId, PeerIdx, PeerKey},
    prefix::Prefix,
    rib::RibOutput,
    session::{ConnId, Input, Output, Stop},
};
use tracing::warn;

use self::statuses::Changed;
use crate::{
    conn::Conn,
    log_limit::LogCap,
    peers::Peers,
    pulse::Pulse,
    queue::{ToIo, ToRib},
    rib_thread::RibWork,
    speaker::{Answer, Clock, PeerSink, PeerStatus},
    stream::Streams,
    unknown_sources::{self, UnknownSources},
};

/// What the I/O thread is told.
pub(crate) enum IoWork {
    /// By the RIB.
    Rib(RibOutput),
    /// Be this from now on.
    Configure(Arc<SpeakerConfig>, Answer<Vec<ConfigureError>>),
    /// How are the peers?
    Peers(Answer<Vec<PeerStatus>>),
    /// Who has connected without being configured?
    UnknownSources(Answer<UnknownSources>),
    /// For the RIB, behind everything that it is told on behalf of what came before.
    Barrier(u64),
    /// Ask a peer for its routes again.
    Refresh(PeerKey),
    /// End every session in this way, then the thread.
    Stop(Stop, mpsc::SyncSender<()>),
}

/// A part of a configuration that the operating system refused; all else is in force.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// No listening there.
    #[error("cannot listen on {addr}: {error}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// A key that a listener does not take: the neighbours it is for cannot connect to us.
    #[error("cannot set the TCP-MD5 key of {peers}: {error}")]
    Key {
        /// For whom.
        peers: Prefix,
        /// Why.
        error: io::Error,
    },
    /// No place for another neighbour.
    #[error("too many neighbours: {0} has no place")]
    Full(PeerKey),
}

pub(crate) const WAKER: Token = Token(0);
/// The first token of connections; those below are listeners'.
const CONNS: usize = 64;
const READ_BUFFER: usize = 64 << 10;
/// How long a closing connection may take to send its last message.
const LINGER: Duration = Duration::from_secs(2);
/// How long accepting rests after the operating system has refused it.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

struct Listener {
    addr: SocketAddr,
    socket: TcpListener,
    keys: Vec<(Prefix, Password)>,
    ready: bool,
}

/// What the thread is to know of an earlier run.
pub(crate) struct Life {
    /// Whether its routes are still in the kernel (the R bit).
    pub(crate) restarting: bool,
    /// Who had a session with it.
    pub(crate) before: Vec<PeerKey>,
}

pub(crate) struct IoThread {
    poll: Poll,
    clock: Clock,
    inbox: Arc<ToIo<IoWork>>,
    rib: Arc<ToRib<RibWork>>,
    config: Arc<SpeakerConfig>,
    /// Whether this start follows an earlier run whose routes are still in the kernel (the R bit).
    restarting: bool,
    /// Neighbours that are tried once when the first configuration is in force, if they are of a range.
    before: Vec<PeerKey>,
    listeners: Vec<Listener>,
    peers: Peers,
    /// Numbers the sessions of all peers.
    epochs: Epochs,
    conns: Vec<Option<Conn>>,
    free_conns: Vec<usize>,
    timers: BTreeSet<(Now, PeerIdx)>,
    streams: Streams,
    members: HashMap<GroupId, HashSet<PeerIdx>>,
    /// Who fell out of a group's log, until the kernel takes bytes from them again and they can ask for a dump. The RIB must
    /// go on remembering what they have not been told.
    fallen: HashMap<PeerIdx, GroupId>,
    /// Connections with bytes that are not read yet.
    ready: Vec<usize>,
    /// Connections that close when their last message has left, and when that is given up.
    lingering: Vec<(Now, usize)>,
    /// Groups whose logs grew since the last round.
    grown: HashSet<GroupId>,
    /// Peers with something new to send.
    dirty: Vec<PeerIdx>,
    /// A connection that closes has more to read than it may at once.
    busy: bool,
    /// When to accept again, after that was refused.
    accept_at: Option<Now>,
    /// That has been said.
    accept_refused: bool,
    /// Connections from nobody who is configured.
    unknown: unknown_sources::Watch,
    /// Keeps the faults of all peers together from flooding the log.
    fault_log: LogCap,
    /// Connections to open when the outputs at hand are through: an attempt may fail at once, and is told then.
    connects: Vec<(PeerIdx, ConnId)>,
    outputs: Vec<Output>,
    to_rib: Vec<RibWork>,
    buffer: Box<[u8]>,
    seed: u64,
    changed: Changed,
    pulse: Arc<Pulse>,
}

/// However the thread ends, nobody waits for its answers.
impl Drop for IoThread {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl IoThread {
    pub(crate) fn new(
        poll: Poll,
        clock: Clock,
        inbox: Arc<ToIo<IoWork>>,
        rib: Arc<ToRib<RibWork>>,
        config: Arc<SpeakerConfig>,
        life: Life,
        seed: u64,
        peers: PeerSink,
        pulse: Arc<Pulse>,
    ) -> IoThread {
        IoThread {
            poll,
            clock,
            inbox,
            rib,
            config,
            restarting: life.restarting,
            before: life.before,
            listeners: Vec::new(),
            peers: Peers::default(),
            epochs: Epochs::default(),
            conns: Vec::new(),
            free_conns: Vec::new(),
            timers: BTreeSet::new(),
            streams: Streams::default(),
            members: HashMap::new(),
            fallen: HashMap::new(),
            ready: Vec::new(),
            lingering: Vec::new(),
            grown: HashSet::new(),
            dirty: Vec::new(),
            busy: false,
            accept_at: None,
            accept_refused: false,
            unknown: unknown_sources::Watch::default(),
            fault_log: LogCap::default(),
            connects: Vec::new(),
            outputs: Vec::new(),
            to_rib: Vec::new(),
            buffer: vec![0; READ_BUFFER].into(),
            seed,
            changed: Changed::new(peers),
            pulse,
        }
    }

    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(4096);
        loop {
            let now = self.clock.now();
            let wait = if self.has_work() {
                Some(Duration::ZERO)
            } else {
                self.next_deadline().map(|at| at.since(now))
            };
            self.busy = false;
            self.pulse.rest();
            let polled = self.poll.poll(&mut events, wait);
            self.pulse.work();
            match polled {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    warn!(%error, "waiting for sockets failed; BGP stops");
                    return;
                }
            }
            let mut woken = false;
            for event in &events {
                match event.token() {
                    WAKER => woken = true,
                    Token(t) if t < CONNS => {
                        if let Some(l) = self.listeners.get_mut(t - 1) {
                            l.ready = true;
                        }
                    }
                    Token(t) => self.mark_ready(t - CONNS, event),
                }
            }
            if woken && !self.take_work() {
                return;
            }
            self.run_timers();
            self.accept();
            if !self.rib.is_full() {
                self.read();
            }
            for (idx, conn) in std::mem::take(&mut self.connects) {
                self.connect(idx, conn);
            }
            self.flush();
            let octets = self.to_rib.iter().map(RibWork::octets).sum();
            self.rib.send(&mut self.to_rib, octets);
            self.tell_changed();
        }
    }

    fn next_deadline(&self) -> Option<Now> {
        let linger = self.lingering.iter().map(|(at, _)| *at).min();
        let timer = self.timers.first().map(|(at, _)| *at);
        let own = earlier(earlier(timer, linger), self.accept_at);
        earlier(own, self.changed.deadline())
    }

    /// Whether there is something to do without waiting for an event.
    fn has_work(&self) -> bool {
        self.busy
            || !self.dirty.is_empty()
            || !self.connects.is_empty()
            || self.listeners.iter().any(|l| l.ready)
            || !self.ready.is_empty() && !self.rib.is_full()
    }

    fn mark_ready(&mut self, token: usize, event: &Event) {
        let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
            return;
        };
        if conn.connecting {
            conn.ended |= event.is_read_closed();
            self.finish_connect(token);
            return;
        }
        if event.is_writable() {
            conn.set_writable();
            self.dirty.push(conn.peer);
        }
        conn.ended |= event.is_read_closed();
        if (event.is_readable() || event.is_read_closed()) && !conn.readable {
            conn.readable = true;
            self.ready.push(token);
        }
    }

    /// False: the thread ends.
    fn take_work(&mut self) -> bool {
        for work in self.inbox.take() {
            match work {
                IoWork::Rib(output) => self.rib_output(output),
                IoWork::Configure(config, reply) => {
                    let errors = self.configure(config);
                    reply(errors);
                }
                IoWork::Peers(reply) => {
                    let now = self.clock.now();
                    let list = self
                        .peers
                        .iter()
                        .map(|(idx, slot)| PeerStatus::of(now, idx, slot))
                        .collect();
                    reply(list);
                }
                IoWork::UnknownSources(reply) => reply(self.unknown.sources.clone()),
                IoWork::Barrier(number) => self.to_rib.push(RibWork::Barrier(number)),
                IoWork::Refresh(key) => {
                    if let Some(idx) = self.peers.find(&key) {
                        self.handle(idx, Input::RequestRefresh, &mut None);
                    }
                }
                IoWork::Stop(how, done) => {
                    let all: Vec<PeerIdx> = self.peers.iter().map(|(idx, _)| idx).collect();
                    for idx in all {
                        // Nobody is forgotten: that would take the routes back which our next run needs.
                        if let Some(slot) = self.peers.get_mut(idx) {
                            slot.dynamic = false;
                        }
                        self.handle(idx, Input::Stop(how.clone()), &mut None);
                    }
                    self.flush();
                    let octets = self.to_rib.iter().map(RibWork::octets).sum();
                    self.to_rib.push(RibWork::Stop);
                    self.rib.send(&mut self.to_rib, octets);
                    let _ = done.send(());
                    return false;
                }
            }
        }
        true
    }

    fn rib_output(&mut self, output: RibOutput) {
        match output {
            RibOutput::Log { group, chunk } => {
                self.streams.log(group, chunk);
                self.grown.insert(group);
            }
            RibOutput::Join {
                peer,
                epoch,
                group,
                dump,
            } => {
                self.leave_group(peer);
                let member = self.streams.join(group, dump);
                match self
                    .peers
                    .get_mut(peer)
                    .filter(|s| s.established.is_some_and(|(_, e)| e == epoch))
                {
                    Some(slot) => {
                        slot.member = Some(member);
                        self.members.entry(group).or_default().insert(peer);
                        self.dirty.push(peer);
                    }
                    None => self.streams.leave(member),
                }
            }
            RibOutput::Dump { dump, chunk } => {
                if let Some(group) = self.streams.dump(dump, chunk) {
                    self.grown.insert(group);
                }
            }
            RibOutput::DumpEnd { dump, log } => {
                if let Some(group) = self.streams.dump_end(dump, log) {
                    self.grown.insert(group);
                }
            }
            RibOutput::DumpRetired(dump) => self.streams.retire(dump),
            RibOutput::GroupGone(group) => {
                self.streams.group_gone(group);
                self.members.remove(&group);
            }
            RibOutput::TooManyPrefixes(peer, epoch) => {
                if self
                    .peers
                    .get(peer)
                    .is_some_and(|s| s.established.is_some_and(|(_, e)| e == epoch))
                {
                    self.handle(peer, Input::TooManyPrefixes, &mut None);
                }
            }
            RibOutput::UnusableNextHop {
                peer,
                epoch,
                next_hop,
                why,
                prefixes,
            } => self.unusable_next_hop(peer, epoch, format!("{next_hop} {why}"), prefixes),
            RibOutput::ManyPrefixes(peer, epoch, family, count) => {
                if let Some(slot) = self.peers.get(peer)
                    && slot.established.is_some_and(|(_, e)| e == epoch)
                    && let Some(max) = slot.config.max_prefix
                {
                    let (peer, limit, action) = (slot.config.key, max.limit, max.action);
                    warn!(%peer, %family, count, limit, ?action, "announces many prefixes");
                }
            }
            RibOutput::Routes(_)
            | RibOutput::Synced(_)
            | RibOutput::Watch(_)
            | RibOutput::Unwatch(_) => {}
        }
    }
}
