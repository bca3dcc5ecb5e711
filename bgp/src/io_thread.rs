//! The thread that owns every socket and every timer. One loop over what is ready, one read buffer for all.
//!
//! It never waits for table work: a keepalive, an accept and a session's end are handled whatever the RIB does. When the RIB
//! is behind, sockets are not read until it has caught up.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use selvage_bgp_core::{
    clock::Now,
    config::{Password, PeerConfig, SpeakerConfig},
    event::{FromPeer, PeerEvent},
    ids::{Epoch, Family, GroupId, IfIndex, PeerIdx, PeerKey},
    prefix::Prefix,
    rib::{RibInput, RibOutput},
    session::{ConnId, Input, Output, Peer, Stop},
};
use tracing::{debug, info, warn};

use crate::{
    conn::{Conn, Flushed},
    connector, listener,
    peers::{self, Peers},
    queue::{ToIo, ToRib},
    rib_thread::RibWork,
    speaker::{Clock, PeerStatus},
    stream::Streams,
};

/// What the I/O thread is told.
pub(crate) enum IoWork {
    /// By the RIB.
    Rib(RibOutput),
    /// Be this from now on.
    Configure(Arc<SpeakerConfig>, mpsc::SyncSender<Vec<ConfigureError>>),
    /// How are the peers?
    Peers(mpsc::SyncSender<Vec<PeerStatus>>),
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

struct Listener {
    addr: SocketAddr,
    socket: TcpListener,
    keys: Vec<(Prefix, Password)>,
    ready: bool,
}

pub(crate) struct IoThread {
    poll: Poll,
    clock: Clock,
    inbox: Arc<ToIo<IoWork>>,
    rib: Arc<ToRib<RibWork>>,
    config: Arc<SpeakerConfig>,
    /// Whether this start follows an earlier run whose routes are still in the kernel (the R bit).
    restarting: bool,
    listeners: Vec<Listener>,
    peers: Peers,
    conns: Vec<Option<Conn>>,
    free_conns: Vec<usize>,
    timers: BTreeSet<(Now, PeerIdx)>,
    streams: Streams,
    members: HashMap<GroupId, HashSet<PeerIdx>>,
    /// Connections with bytes that are not read yet.
    ready: Vec<usize>,
    /// Connections that close when their last message has left, and when that is given up.
    lingering: Vec<(Now, usize)>,
    /// Groups whose logs grew since the last round.
    grown: HashSet<GroupId>,
    /// Peers with something new to send.
    dirty: Vec<PeerIdx>,
    /// Connections to open when the outputs at hand are through: an attempt may fail at once, and is told then.
    connects: Vec<(PeerIdx, ConnId)>,
    outputs: Vec<Output>,
    to_rib: Vec<RibWork>,
    buffer: Box<[u8]>,
    seed: u64,
}

impl IoThread {
    pub(crate) fn new(
        poll: Poll,
        clock: Clock,
        inbox: Arc<ToIo<IoWork>>,
        rib: Arc<ToRib<RibWork>>,
        config: Arc<SpeakerConfig>,
        restarting: bool,
        seed: u64,
    ) -> IoThread {
        IoThread {
            poll,
            clock,
            inbox,
            rib,
            config,
            restarting,
            listeners: Vec::new(),
            peers: Peers::default(),
            conns: Vec::new(),
            free_conns: Vec::new(),
            timers: BTreeSet::new(),
            streams: Streams::default(),
            members: HashMap::new(),
            ready: Vec::new(),
            lingering: Vec::new(),
            grown: HashSet::new(),
            dirty: Vec::new(),
            connects: Vec::new(),
            outputs: Vec::new(),
            to_rib: Vec::new(),
            buffer: vec![0; READ_BUFFER].into(),
            seed,
        }
    }

    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(4096);
        loop {
            let now = self.clock.now();
            let paused = self.rib.is_full();
            let wait = if self.ready.is_empty() && !self.listeners.iter().any(|l| l.ready) || paused
            {
                self.next_deadline().map(|at| at.since(now))
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, wait) {
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
                    Token(t) => {
                        self.mark_ready(t - CONNS, event.is_readable(), event.is_writable())
                    }
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
        }
    }

    fn next_deadline(&self) -> Option<Now> {
        let linger = self.lingering.iter().map(|(at, _)| *at).min();
        selvage_bgp_core::clock::earlier(self.timers.first().map(|(at, _)| *at), linger)
    }

    fn mark_ready(&mut self, token: usize, readable: bool, writable: bool) {
        let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
            return;
        };
        if conn.connecting {
            self.finish_connect(token);
            return;
        }
        if writable {
            conn.set_writable();
            self.dirty.push(conn.peer);
        }
        if readable && !conn.readable {
            conn.readable = true;
            self.ready.push(token);
        }
    }

    // ---- connections ----

    fn accept(&mut self) {
        // A bounded number a round: those who are connected already have their turn in between.
        for i in 0..self.listeners.len() {
            for _ in 0..256 {
                if !self.listeners[i].ready {
                    break;
                }
                match self.listeners[i].socket.accept() {
                    Ok((stream, from)) => self.accepted(stream, from),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.listeners[i].ready = false
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        // Out of descriptors, or a connection that died in the queue: the next event tries again.
                        debug!(%error, "accept failed");
                        self.listeners[i].ready = false;
                    }
                }
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream, from: SocketAddr) {
        let interface = interface_of(&from);
        let key = peers::key_of(from.ip(), interface);
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let idx = match self.peers.find(&key) {
            Some(idx) => idx,
            None => {
                let Some(config) = peers::from_range(&self.config, key) else {
                    debug!(peer = %key, "connection from nobody that is configured, closed");
                    return;
                };
                match self.add_peer(config, true) {
                    Some(idx) => idx,
                    None => return,
                }
            }
        };
        let external = self
            .peers
            .get(idx)
            .is_some_and(|s| peers::is_external(&self.config, &s.config));
        if let Some(slot) = self.peers.get(idx)
            && let Err(error) = connector::adopt(&stream, &slot.config, external)
        {
            warn!(peer = %key, %error, "cannot set the options of a connection, closed");
            return;
        }
        let mut pending = Some(stream);
        self.handle(
            idx,
            Input::Accepted {
                local,
                remote: from,
                interface,
            },
            &mut pending,
        );
    }

    fn connect(&mut self, idx: PeerIdx, conn: ConnId) {
        let Some(slot) = self.peers.get(idx) else {
            return;
        };
        let external = peers::is_external(&self.config, &slot.config);
        let attempt = connector::connect(&slot.config, external)
            .and_then(|s| self.register(s, idx, conn, true));
        if let Err(error) = attempt {
            self.handle(
                idx,
                Input::ConnectFailed {
                    conn,
                    error: error.to_string(),
                },
                &mut None,
            );
        }
    }

    fn register(
        &mut self,
        stream: TcpStream,
        idx: PeerIdx,
        conn: ConnId,
        connecting: bool,
    ) -> io::Result<()> {
        let token = self.free_conns.pop().unwrap_or(self.conns.len());
        if token == self.conns.len() {
            self.conns.push(None);
        }
        let mut conn = Conn::new(stream, idx, conn, connecting);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(e) =
            self.poll
                .registry()
                .register(&mut conn.stream, Token(token + CONNS), interest)
        {
            self.free_conns.push(token);
            return Err(e);
        }
        if let Some(slot) = self.peers.get_mut(idx) {
            slot.conns.push((conn.id, token));
        }
        self.conns[token] = Some(conn);
        Ok(())
    }

    fn finish_connect(&mut self, token: usize) {
        let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
            return;
        };
        let (idx, id) = (conn.peer, conn.id);
        let outcome = match conn.stream.take_error() {
            Ok(Some(e)) | Err(e) => Err(e),
            Ok(None) => match conn.stream.peer_addr() {
                Ok(remote) => conn.stream.local_addr().map(|local| (local, remote)),
                Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => return,
                Err(e) => Err(e),
            },
        };
        match outcome {
            Ok((local, remote)) => {
                conn.connecting = false;
                conn.readable = true;
                conn.set_writable();
                self.ready.push(token);
                let interface = interface_of(&remote);
                self.handle(
                    idx,
                    Input::Connected {
                        conn: id,
                        local,
                        remote,
                        interface,
                    },
                    &mut None,
                );
            }
            Err(error) => {
                self.drop_conn(token);
                self.handle(
                    idx,
                    Input::ConnectFailed {
                        conn: id,
                        error: error.to_string(),
                    },
                    &mut None,
                );
            }
        }
    }

    /// Forgets a connection; the kernel closes it.
    fn drop_conn(&mut self, token: usize) {
        let Some(mut conn) = self.conns.get_mut(token).and_then(Option::take) else {
            return;
        };
        // Closing the descriptor would do as well; this only keeps the poll's own books.
        let _ = self.poll.registry().deregister(&mut conn.stream);
        self.free_conns.push(token);
        if let Some(slot) = self.peers.get_mut(conn.peer) {
            slot.conns.retain(|(_, t)| *t != token);
        }
    }

    /// Closes when the last message has left.
    fn close(&mut self, idx: PeerIdx, id: ConnId) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let Some(token) = slot.token(id) else { return };
        slot.conns.retain(|(c, _)| *c != id);
        let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
            return;
        };
        conn.closing = true;
        match conn.flush(&mut self.streams, None) {
            Ok(Flushed::Blocked) if !conn.is_drained() => {
                self.lingering.push((self.clock.now() + LINGER, token));
            }
            _ => self.drop_conn(token),
        }
    }

    fn read(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        let mut rest = ready.into_iter();
        for token in rest.by_ref() {
            if self.rib.is_full() {
                self.ready.push(token);
                break;
            }
            let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
                continue;
            };
            if conn.closing || !conn.readable {
                continue;
            }
            let (idx, id) = (conn.peer, conn.id);
            let mut buffer = std::mem::take(&mut self.buffer);
            let outcome = conn.read(&mut buffer);
            let again = conn.readable;
            match outcome {
                Ok(None) => {}
                Ok(Some(0)) => self.lost(token, idx, id, None),
                Ok(Some(n)) => self.handle(
                    idx,
                    Input::Bytes {
                        conn: id,
                        bytes: &buffer[..n],
                    },
                    &mut None,
                ),
                Err(error) => self.lost(token, idx, id, Some(error.to_string())),
            }
            self.buffer = buffer;
            if again
                && self
                    .conns
                    .get(token)
                    .is_some_and(|c| c.as_ref().is_some_and(|c| c.readable))
            {
                self.ready.push(token);
            }
            if self.to_rib.len() >= 512 {
                let octets = self.to_rib.iter().map(RibWork::octets).sum();
                self.rib.send(&mut self.to_rib, octets);
            }
        }
        self.ready.extend(rest);
    }

    fn lost(&mut self, token: usize, idx: PeerIdx, conn: ConnId, error: Option<String>) {
        self.drop_conn(token);
        self.handle(idx, Input::Closed { conn, error }, &mut None);
    }

    // ---- sending ----

    fn flush(&mut self) {
        for group in std::mem::take(&mut self.grown) {
            if let Some(members) = self.members.get(&group) {
                self.dirty.extend(members);
            }
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        let any = !dirty.is_empty();
        for idx in dirty.drain(..) {
            self.flush_peer(idx);
        }
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
        for group in self.members.keys().filter(|_| any) {
            if let Some(log) = self.streams.passed(*group) {
                let passed = RibInput::Passed { group: *group, log };
                self.to_rib.push(RibWork::Input(passed));
            }
        }
        let now = self.clock.now();
        let mut i = 0;
        while let Some(&(until, token)) = self.lingering.get(i) {
            let done = match self.conns.get_mut(token).and_then(Option::as_mut) {
                Some(conn) if conn.closing => {
                    conn.flush(&mut self.streams, None).is_err() || conn.is_drained()
                }
                _ => true,
            };
            if done || until <= now {
                self.drop_conn(token);
                self.lingering.swap_remove(i);
            } else {
                i += 1;
            }
        }
    }

    fn flush_peer(&mut self, idx: PeerIdx) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let mut broken = None;
        for &(id, token) in &slot.conns {
            let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
                continue;
            };
            if conn.connecting {
                continue;
            }
            let carries_routes = slot.established.is_some_and(|(c, _)| c == id);
            let member = slot.member.as_mut().filter(|_| carries_routes);
            match conn.flush(&mut self.streams, member) {
                Ok(Flushed::All) => {
                    if carries_routes && slot.wants_resync {
                        slot.wants_resync = false;
                        if let Some((_, epoch)) = slot.established {
                            self.to_rib
                                .push(RibWork::Input(RibInput::Resync(idx, epoch)));
                        }
                    }
                }
                Ok(Flushed::Blocked) => {
                    if let Some(member) = slot.member
                        && carries_routes
                        && self.streams.is_long(member.group)
                        && self.streams.is_laggard(&member)
                    {
                        info!(peer = %slot.config.key, "does not read its routes; it gets them anew when it does");
                        self.streams.leave(member);
                        slot.member = None;
                        slot.wants_resync = true;
                        if let Some(members) = self.members.get_mut(&member.group) {
                            members.remove(&idx);
                        }
                    }
                }
                Err(error) => broken = Some((token, id, error.to_string())),
            }
        }
        if let Some((token, id, error)) = broken {
            self.lost(token, idx, id, Some(error));
        }
    }

    fn leave_group(&mut self, idx: PeerIdx) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        slot.wants_resync = false;
        let Some(member) = slot.member.take() else {
            return;
        };
        self.streams.leave(member);
        if let Some(members) = self.members.get_mut(&member.group) {
            members.remove(&idx);
        }
    }

    // ---- sessions ----

    /// Tells a peer something and does what it answers. `pending` is the connection that [`Input::Accepted`] is about.
    fn handle(&mut self, idx: PeerIdx, input: Input<'_>, pending: &mut Option<TcpStream>) {
        let now = self.clock.now();
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let mut outputs = std::mem::take(&mut self.outputs);
        slot.peer.handle(now, input, &mut outputs);
        for output in outputs.drain(..) {
            self.act(idx, output, pending);
        }
        self.outputs = outputs;
        self.update_timer(idx);
        self.retire_dynamic(idx);
    }

    fn act(&mut self, idx: PeerIdx, output: Output, pending: &mut Option<TcpStream>) {
        match output {
            Output::Connect(conn) => self.connects.push((idx, conn)),
            Output::Accept(conn) => {
                if let Some(stream) = pending.take()
                    && let Err(error) = self.register(stream, idx, conn, false)
                {
                    warn!(%error, "cannot watch a connection");
                }
                if let Some(token) = self.peers.get(idx).and_then(|s| s.token(conn))
                    && let Some(c) = self.conns.get_mut(token).and_then(Option::as_mut)
                {
                    c.readable = true;
                    self.ready.push(token);
                }
            }
            Output::Refuse => *pending = None,
            Output::Send(conn, bytes) => {
                let Some(token) = self.peers.get(idx).and_then(|s| s.token(conn)) else {
                    return;
                };
                if let Some(c) = self.conns.get_mut(token).and_then(Option::as_mut) {
                    c.send(bytes);
                    self.dirty.push(idx);
                }
            }
            Output::Close(conn) => self.close(idx, conn),
            Output::Event(epoch, event) => self.event(idx, epoch, event),
            Output::State(state) => {
                if let Some(slot) = self.peers.get_mut(idx)
                    && slot.state != state
                {
                    debug!(peer = %slot.config.key, ?state, "state");
                    slot.state = state;
                }
            }
        }
    }

    fn event(&mut self, idx: PeerIdx, epoch: Epoch, event: PeerEvent) {
        match &event {
            PeerEvent::Up(negotiated) => {
                if let Some(slot) = self.peers.get_mut(idx) {
                    info!(peer = %slot.config.key, asn = %negotiated.peer_asn, id = %negotiated.peer_id, "session up");
                    slot.established = slot.peer.established_conn().map(|c| (c, epoch));
                }
            }
            PeerEvent::Down { reason, keep_stale } => {
                self.leave_group(idx);
                if let Some(slot) = self.peers.get_mut(idx) {
                    warn!(peer = %slot.config.key, %reason, kept = ?keep_stale, "session down");
                    slot.established = None;
                }
            }
            _ => {}
        }
        self.to_rib.push(RibWork::Input(RibInput::Event(FromPeer {
            peer: idx,
            epoch,
            event,
        })));
    }

    fn update_timer(&mut self, idx: PeerIdx) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let due = slot.peer.deadline();
        // A later deadline leaves the earlier timer in place: it finds nothing to do and is set anew. So traffic costs nothing.
        if match (slot.deadline, due) {
            (Some(registered), Some(due)) => registered <= due,
            (None, None) => true,
            (Some(_), None) => true,
            (None, Some(_)) => false,
        } {
            return;
        }
        if let Some(old) = slot.deadline.take() {
            self.timers.remove(&(old, idx));
        }
        if let Some(due) = due {
            slot.deadline = Some(due);
            self.timers.insert((due, idx));
        }
    }

    fn run_timers(&mut self) {
        let now = self.clock.now();
        while let Some(&(at, idx)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(slot) = self.peers.get_mut(idx) else {
                continue;
            };
            slot.deadline = None;
            if slot.peer.deadline().is_some_and(|due| due <= now) {
                // A healthy peer whose bytes wait for us because the RIB is behind has not gone silent.
                let unread = slot.conns.iter().any(|&(_, t)| {
                    self.conns
                        .get(t)
                        .is_some_and(|c| c.as_ref().is_some_and(|c| c.readable && !c.connecting))
                });
                if unread {
                    slot.peer.note_unread(now);
                }
                self.handle(idx, Input::Timer, &mut None);
            } else {
                self.update_timer(idx);
            }
        }
    }

    /// A neighbour that came by a range goes when nothing is left to remember of it.
    fn retire_dynamic(&mut self, idx: PeerIdx) {
        let Some(slot) = self.peers.get(idx) else {
            return;
        };
        if slot.dynamic && slot.conns.is_empty() && slot.peer.is_forgettable() {
            self.remove_peer(idx);
        }
    }

    // ---- configuration ----

    fn add_peer(&mut self, config: Arc<PeerConfig>, dynamic: bool) -> Option<PeerIdx> {
        let now = self.clock.now();
        self.seed = self
            .seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let peer = Peer::new(
            self.config.clone(),
            config.clone(),
            self.seed,
            self.restarting,
        );
        let idx = self.peers.add(now, peer, config.clone(), dynamic)?;
        self.to_rib
            .push(RibWork::Input(RibInput::Peer(idx, config)));
        self.handle(idx, Input::Start, &mut None);
        Some(idx)
    }

    fn remove_peer(&mut self, idx: PeerIdx) {
        let now = self.clock.now();
        self.leave_group(idx);
        let Some(slot) = self.peers.remove(now, idx) else {
            return;
        };
        if let Some(at) = slot.deadline {
            self.timers.remove(&(at, idx));
        }
        for (_, token) in &slot.conns {
            self.drop_conn(*token);
        }
        self.to_rib.push(RibWork::Input(RibInput::PeerGone(idx)));
    }

    fn configure(&mut self, config: Arc<SpeakerConfig>) -> Vec<ConfigureError> {
        let mut errors = Vec::new();
        let old = std::mem::replace(&mut self.config, config.clone());
        self.to_rib
            .push(RibWork::Input(RibInput::Configure(config.clone())));
        self.listen(&config, &mut errors);
        let wanted: HashMap<PeerKey, &Arc<PeerConfig>> =
            config.peers.iter().map(|p| (p.key, p)).collect();
        let present: Vec<PeerIdx> = self.peers.iter().map(|(idx, _)| idx).collect();
        for idx in present {
            let Some(slot) = self.peers.get_mut(idx) else {
                continue;
            };
            let key = slot.config.key;
            let new = match wanted.get(&key) {
                Some(new) => {
                    slot.dynamic = false;
                    Some((*new).clone())
                }
                None => {
                    // A neighbour that was configured by address and is not any more goes, even where a range would take it.
                    Some(slot.dynamic)
                        .filter(|d| *d)
                        .and_then(|_| peers::from_range(&config, key))
                }
            };
            match new {
                None => {
                    self.handle(idx, Input::Stop(Stop::Removed), &mut None);
                    self.remove_peer(idx);
                }
                Some(new) => {
                    let changed = new != slot.config;
                    slot.config = new.clone();
                    if changed {
                        self.to_rib
                            .push(RibWork::Input(RibInput::Peer(idx, new.clone())));
                    }
                    if changed || old != config {
                        self.handle(idx, Input::Configure(config.clone(), new), &mut None);
                    }
                }
            }
        }
        for peer in &config.peers {
            if self.peers.find(&peer.key).is_none() && self.add_peer(peer.clone(), false).is_none()
            {
                errors.push(ConfigureError::Full(peer.key));
            }
        }
        errors
    }

    fn listen(&mut self, config: &SpeakerConfig, errors: &mut Vec<ConfigureError>) {
        self.listeners.retain_mut(|l| {
            let keep = config.listen.contains(&l.addr);
            if !keep {
                // The descriptor closes with it.
                let _ = self.poll.registry().deregister(&mut l.socket);
            }
            keep
        });
        for &addr in &config.listen {
            if self.listeners.iter().any(|l| l.addr == addr) {
                continue;
            }
            match listener::listen(addr) {
                Ok(socket) => self.listeners.push(Listener {
                    addr,
                    socket,
                    keys: Vec::new(),
                    ready: true,
                }),
                Err(error) => errors.push(ConfigureError::Listen { addr, error }),
            }
        }
        for (i, l) in self.listeners.iter_mut().enumerate() {
            let family = Family::of(&l.addr.ip());
            let keys = listener::keys(config, family);
            for (peers, error) in listener::set_keys(&l.socket, &l.keys, &keys) {
                errors.push(ConfigureError::Key { peers, error });
            }
            l.keys = keys;
            let registry = self.poll.registry();
            // Registered before, under another number perhaps.
            let _ = registry.deregister(&mut l.socket);
            if let Err(error) = registry.register(&mut l.socket, Token(i + 1), Interest::READABLE) {
                errors.push(ConfigureError::Listen {
                    addr: l.addr,
                    error,
                });
            }
            l.ready = true;
        }
    }

    // ---- work from other threads ----

    /// False: the thread ends.
    fn take_work(&mut self) -> bool {
        for work in self.inbox.take() {
            match work {
                IoWork::Rib(output) => self.rib_output(output),
                IoWork::Configure(config, reply) => {
                    let errors = self.configure(config);
                    let _ = reply.send(errors);
                }
                IoWork::Peers(reply) => {
                    let now = self.clock.now();
                    let list = self
                        .peers
                        .iter()
                        .map(|(idx, slot)| PeerStatus::of(now, idx, slot))
                        .collect();
                    let _ = reply.send(list);
                }
                IoWork::Refresh(key) => {
                    if let Some(idx) = self.peers.find(&key) {
                        self.handle(idx, Input::RequestRefresh, &mut None);
                    }
                }
                IoWork::Stop(how, done) => {
                    let all: Vec<PeerIdx> = self.peers.iter().map(|(idx, _)| idx).collect();
                    for idx in all {
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
            RibOutput::Routes(_)
            | RibOutput::Synced(_)
            | RibOutput::Watch(_)
            | RibOutput::Unwatch(_) => {}
        }
    }
}

fn interface_of(addr: &SocketAddr) -> Option<IfIndex> {
    match addr {
        SocketAddr::V6(a) if a.scope_id() != 0 => Some(IfIndex(a.scope_id())),
        _ => None,
    }
}
