//! The peer: configuration, connections, timers. How connections end is in `end`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    ConnId, FaultReport, Faults, Input, Outline, Output, SessionError, Snapshot, StaleView, State,
    Stop, Unused,
    end::End,
    jitter::Jitter,
    negotiate::{OpenSettings, RestartBits, families_left_out},
    reconfigure::{Effect, Present, effect},
    restart::Stale,
    state::{Connection, Established, Phase},
};
use crate::{
    clock::{Now, earlier},
    config::{MaxPrefixAction, PeerConfig, SpeakerConfig},
    event::{DownReason, Negotiated, PeerEvent},
    ids::{Epoch, Epochs, Family},
    own_next_hop::LocalEnd,
    wire::{
        header::{self, MessageType},
        notification::Notification,
        refresh::RouteRefresh,
    },
};

/// A neighbour.
#[derive(Debug)]
pub struct Peer {
    pub(super) speaker: Arc<SpeakerConfig>,
    pub(super) config: Arc<PeerConfig>,
    pub(super) jitter: Jitter,
    pub(super) running: bool,
    /// Two at most: one on each side of a collision, or a session and the one that replaces it.
    pub(super) conns: Vec<Connection>,
    next_conn: u32,
    /// The speaker's counter of sessions.
    epochs: Epochs,
    pub(super) epoch: Epoch,
    /// How often new settings have changed what is shown of the present session.
    shown_changes: u32,
    reported: State,
    /// The agent has restarted, and the kernel still forwards by the routes of its earlier run.
    first_start: bool,
    started: Option<Now>,
    established_before: bool,
    /// Whether the next OPEN goes without capabilities (RFC 5492 section 3).
    pub(super) plain: bool,
    /// When to try to connect.
    pub(super) retry: Option<Now>,
    /// The next attempt is made though the peer is passive.
    pub(super) connect_once: bool,
    pub(crate) idle: Option<Idle>,
    pub(super) faults_in_a_row: u32,
    /// Until when a peer without connections has to be remembered for its faults.
    pub(super) faults_until: Option<Now>,
    pub(super) stale: Option<Stale>,
    pub(super) stats: Stats,
}

/// Neither connects nor accepts: waits after a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Idle {
    Until(Now),
    /// Until somebody changes the settings or starts the peer.
    Forever,
}

/// What only people look at.
#[derive(Default, Debug)]
pub(super) struct Stats {
    pub established: u64,
    pub last_down: Option<(Now, DownReason)>,
    pub last_error: Option<(Now, SessionError)>,
    pub messages_in: [u64; 5],
    pub messages_out: [u64; 5],
    pub faults: Faults,
}

impl Peer {
    /// A peer that does nothing before [`Input::Start`]. `seed` spreads its timers. `first_start`: the agent has restarted
    /// and the kernel has kept the routes of its earlier run; the peer is told so in the restart time after the start,
    /// until a session comes about (R bit, RFC 4724 section 4.1). `epochs` is the one counter of the speaker's sessions.
    pub fn new(
        speaker: Arc<SpeakerConfig>,
        config: Arc<PeerConfig>,
        seed: u64,
        first_start: bool,
        epochs: Epochs,
    ) -> Peer {
        Peer {
            speaker,
            config,
            jitter: Jitter::new(seed),
            running: false,
            conns: Vec::new(),
            next_conn: 0,
            epochs,
            epoch: Epoch::default(),
            shown_changes: 0,
            reported: State::Idle,
            first_start,
            started: None,
            established_before: false,
            plain: false,
            retry: None,
            connect_once: false,
            idle: None,
            faults_in_a_row: 0,
            faults_until: None,
            stale: None,
            stats: Stats::default(),
        }
    }

    /// Tells the peer what happened; appends what is to be done, in order. Inputs about connections that the peer does
    /// not know (any more) have no effect.
    pub fn handle(&mut self, now: Now, input: Input<'_>, out: &mut Vec<Output>) {
        match input {
            Input::Start => self.start(now),
            Input::Stop(how) => self.stop(how, now, out),
            Input::Timer => {}
            Input::Connected {
                conn,
                local,
                remote,
                interface,
            } => {
                let ends = super::state::Ends {
                    local,
                    remote,
                    interface,
                };
                self.connected(conn, ends, now, out);
            }
            Input::ConnectFailed {
                conn,
                error,
                unanswered,
            } => {
                let end = match unanswered {
                    true => End::Unreachable(error),
                    false => End::Closed(Some(error)),
                };
                self.end(conn, end, now, out);
            }
            Input::Accepted {
                local,
                remote,
                interface,
            } => {
                let ends = super::state::Ends {
                    local,
                    remote,
                    interface,
                };
                self.accepted(ends, now, out);
            }
            Input::Bytes { conn, bytes } => self.bytes(conn, bytes, now, out),
            Input::Closed { conn, error } => self.end(conn, End::Closed(error), now, out),
            Input::TooManyPrefixes => {
                if let Some(id) = self.established_conn() {
                    self.end(id, End::TooManyPrefixes, now, out);
                }
            }
            Input::Configure(speaker, peer) => self.configure(speaker, peer, now, out),
            Input::RequestRefresh => self.request_refresh(out),
            Input::ConnectOnce if self.conns.is_empty() => {
                self.connect_once = true;
                self.retry = Some(now);
            }
            Input::ConnectOnce => {}
        }
        self.run_timers(now, out);
        let state = self.state();
        if state != self.reported {
            self.reported = state;
            out.push(Output::State(state));
        }
    }

    /// When [`Input::Timer`] is due; it may come later than that, and earlier without harm.
    pub fn deadline(&self) -> Option<Now> {
        let idle = match self.idle {
            Some(Idle::Until(at)) => Some(at),
            _ => None,
        };
        let stale = self.stale.and_then(|s| s.deadline());
        let own = [idle, stale, self.faults_until]
            .into_iter()
            .fold(self.retry, earlier);
        self.conns
            .iter()
            .fold(own, |at, c| earlier(at, c.deadline()))
    }

    /// The state of the peer: that of its most advanced connection.
    pub fn state(&self) -> State {
        let without = match self.running && self.idle.is_none() {
            true => State::Active,
            false => State::Idle,
        };
        // A connection that is there is more than waiting for one, but an attempt under way is its own state.
        self.conns
            .iter()
            .map(Connection::state)
            .max()
            .unwrap_or(without)
    }

    /// The connection of the present session.
    pub fn established_conn(&self) -> Option<ConnId> {
        self.session().map(|(id, _)| id)
    }

    /// What the present session has agreed on.
    pub fn negotiated(&self) -> Option<&Arc<Negotiated>> {
        self.session().map(|(_, e)| &e.negotiated)
    }

    /// The number of the present session, or of the last one; 0 before the first.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether nothing needs to be remembered of it: it had connections, has none, keeps no stale routes, does not wait
    /// after a fault, and its last fault is [`steady`](crate::config::Limits::steady) ago. A neighbour that came by a range
    /// may go then.
    pub fn is_forgettable(&self) -> bool {
        self.next_conn > 0
            && self.conns.is_empty()
            && self.stale.is_none()
            && self.idle.is_none()
            && self.faults_until.is_none()
    }

    /// Bytes of the session wait to be read, so that it is not silent: the hold time is given a third more.
    pub fn note_unread(&mut self, now: Now) {
        for conn in &mut self.conns {
            let more = conn
                .negotiated()
                .map_or(Duration::ZERO, |n| n.hold / 3)
                .max(Duration::from_secs(1));
            if let Some(hold) = conn.timers_mut().and_then(|t| t.hold.as_mut()) {
                *hold = (*hold).max(now + more);
            }
        }
    }

    /// Whether the peer takes what we send on a connection: `stuck` if the last attempt could not send an octet of what
    /// waits. A peer that still speaks but has read nothing for long is given up (RFC 9687), or it would pin our memory, and
    /// go by old routes, for ever.
    pub fn note_sending(&mut self, now: Now, conn: ConnId, stuck: bool) {
        let send_hold = self.config.timers.send_hold;
        let Some(Phase::Established(session)) = self.conn_mut(conn).map(|c| &mut c.phase) else {
            return;
        };
        if !stuck {
            session.send_hold = None;
        } else if !session.negotiated.hold.is_zero() {
            let wait = send_hold.max(session.negotiated.hold * 2);
            session.send_hold.get_or_insert(now + wait);
        }
    }

    /// What of the peer changes by events, to be compared.
    pub fn outline(&self) -> Outline {
        let stats = &self.stats;
        Outline {
            state: self.state(),
            running: self.running,
            epoch: self.epoch,
            shown_changes: self.shown_changes,
            established: stats.established,
            last_down: stats.last_down.as_ref().map(|(at, _)| *at),
            last_error: stats.last_error.as_ref().map(|(at, _)| *at),
            faults: stats.faults.counts.iter().map(|c| c.messages).sum(),
            stale: Family::ALL.map(|family| {
                let kept = self.stale.and_then(|stale| stale.get(family));
                kept.map(|kept| kept.long_lived)
            }),
        }
    }

    /// The peer as it is now.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let session = self.session().map(|(_, e)| e);
        let timers = session.map(|e| e.timers);
        let until = |at: Now| at.since(now);
        let idle = match self.idle {
            Some(Idle::Until(at)) => Some(at),
            _ => None,
        };
        let stats = &self.stats;
        Snapshot {
            state: self.state(),
            running: self.running,
            epoch: self.epoch,
            negotiated: session.map(|e| e.negotiated.clone()),
            unused_families: self.unused_families(),
            next_open: self.next_open(),
            uptime: session.map(|e| now.since(e.since)),
            established: stats.established,
            last_down: stats.last_down.clone(),
            last_error: stats.last_error.clone(),
            hold_remaining: timers.and_then(|t| t.hold).map(until),
            keepalive_remaining: timers.and_then(|t| t.keepalive).map(until),
            retry_remaining: idle.or(self.retry).map(until),
            messages_in: stats.messages_in,
            messages_out: stats.messages_out,
            faults: stats.faults.clone(),
            stale: self.stale_families(now),
        }
    }

    fn stale_families(&self, now: Now) -> Vec<StaleView> {
        let Some(stale) = self.stale else {
            return Vec::new();
        };
        let view = |family| {
            let kept = stale.get(family)?;
            Some(StaleView {
                family,
                remaining: kept.until.since(now) + kept.then.unwrap_or_default(),
                long_lived: kept.long_lived,
            })
        };
        Family::ALL.into_iter().filter_map(view).collect()
    }

    /// Stale routes whose time is over become a last resort, or go.
    pub(super) fn age_stale(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(stale) = &mut self.stale else {
            return;
        };
        let (long_lived, gone) = stale.pass(now);
        if stale.families().is_empty() {
            self.stale = None;
        }
        for (families, event) in [
            (long_lived, PeerEvent::LongLived(long_lived)),
            (gone, PeerEvent::DropStale(gone)),
        ] {
            if !families.is_empty() {
                out.push(Output::Event(self.epoch, event));
            }
        }
    }

    fn next_open(&self) -> Option<OpenSettings> {
        let (id, _) = self.session()?;
        let said = self.conns.iter().find(|c| c.id == id)?.open?;
        let now = OpenSettings::new(&self.speaker, &self.config, self.plain);
        (now != said).then_some(now)
    }

    fn unused_families(&self) -> Vec<(Family, Unused)> {
        let Some(negotiated) = self.negotiated() else {
            return Vec::new();
        };
        let end = LocalEnd {
            addr: negotiated.local_addr,
            interface: negotiated.interface,
        };
        let without_next_hop = families_left_out(&self.speaker, &self.config, end);
        let without_next_hop = without_next_hop
            .into_iter()
            .map(|why| (why.family(), Unused::NoNextHop(why)));
        let mut unused: Vec<_> = without_next_hop.collect();
        for family in self.config.families.iter() {
            if !negotiated.families.contains(family) && unused.iter().all(|(f, _)| *f != family) {
                unused.push((family, Unused::NotOffered));
            }
        }
        unused
    }

    /// Takes note of a fault that the session survives.
    pub fn note_fault(&mut self, now: Now, report: FaultReport, out: &mut Vec<Output>) {
        self.stats.faults.note(now, &report.fault);
        out.push(Output::Fault(Box::new(report)));
    }

    // ---- for the other files of the session ----

    pub(super) fn session(&self) -> Option<(ConnId, &Established)> {
        self.conns.iter().find_map(|c| match &c.phase {
            Phase::Established(e) => Some((c.id, &**e)),
            _ => None,
        })
    }

    pub(super) fn conn_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.conns.iter_mut().find(|c| c.id == id)
    }

    pub(super) fn new_conn(&mut self) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn = self.next_conn.wrapping_add(1);
        id
    }

    pub(super) fn send(
        &mut self,
        id: ConnId,
        kind: MessageType,
        bytes: Bytes,
        out: &mut Vec<Output>,
    ) {
        if let Some(count) = self.stats.messages_out.get_mut(kind.index()) {
            *count += 1;
        }
        out.push(Output::Send(id, bytes));
    }

    /// What our OPEN says of restarts. R: only while the restart is young. F: the kernel has what the last session left,
    /// unless this is the first session after a cold start.
    pub(super) fn restart_bits(&self, now: Now) -> RestartBits {
        let young = self
            .started
            .is_some_and(|at| now.since(at) < self.speaker.graceful_restart.restart_time);
        RestartBits {
            restarting: self.first_start && !self.established_before && young,
            forwarding: self.first_start || self.established_before,
        }
    }

    /// Whether this is our first life with the peer after a restart: no session has come about.
    pub(super) fn is_before_first_session(&self) -> bool {
        self.first_start && !self.established_before
    }

    /// A session begins: its number.
    pub(super) fn next_epoch(&mut self) -> Epoch {
        self.epoch = self.epochs.next();
        self.established_before = true;
        self.stats.established += 1;
        self.epoch
    }

    // ---- inputs that are about the peer ----

    fn start(&mut self, now: Now) {
        if self.running {
            return;
        }
        self.running = true;
        self.started.get_or_insert(now);
        self.idle = None;
        self.forget_faults();
        self.retry = Some(now);
    }

    fn stop(&mut self, how: Stop, now: Now, out: &mut Vec<Output>) {
        self.running = false;
        self.retry = None;
        self.idle = None;
        if how == Stop::Restart {
            // What is stale stays in the kernel for our next run.
            self.stale = None;
        }
        for id in self.ids() {
            self.end(id, End::Stopped(how.clone()), now, out);
        }
        self.drop_stale(out);
    }

    pub(super) fn ids(&self) -> SmallVec<[ConnId; 2]> {
        self.conns.iter().map(|c| c.id).collect()
    }

    fn configure(
        &mut self,
        speaker: Arc<SpeakerConfig>,
        config: Arc<PeerConfig>,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let shown = (self.unused_families(), self.next_open());
        let old_speaker = std::mem::replace(&mut self.speaker, speaker);
        let old = std::mem::replace(&mut self.config, config);
        let (speaker, config) = (self.speaker.clone(), self.config.clone());
        if shown != (self.unused_families(), self.next_open()) {
            self.shown_changes += 1;
        }
        let effect_on = |present| effect((&old_speaker, &old), (&speaker, &config), present);
        let mut resets = Vec::new();
        for conn in &self.conns {
            let unwanted = conn.outgoing
                && conn.state() < State::Established
                && (config.passive && !old.passive || config.port != old.port);
            let changed = effect_on(Present {
                local: conn.local_end(),
                offered: conn.offered,
                negotiated: conn.negotiated().map(|n| &**n),
            }) == Effect::Reset;
            if unwanted || changed {
                resets.push(conn.id);
            }
        }
        let other_life = effect_on(Present::default()) == Effect::Reset || *old != *config;
        for id in resets {
            self.end(id, End::Reconfigured, now, out);
        }
        // What was discarded above the former limit is not in our table.
        if old.max_prefix != config.max_prefix
            && old
                .max_prefix
                .is_some_and(|m| m.action == MaxPrefixAction::Discard)
        {
            self.request_refresh(out);
        }
        if other_life {
            // What failed before may work now.
            self.idle = None;
            self.forget_faults();
            self.plain = false;
            if self.running && self.conns.is_empty() {
                self.retry = earlier(self.retry, Some(now + config.timers.connect_retry));
            }
        }
    }

    fn request_refresh(&mut self, out: &mut Vec<Output>) {
        let Some((id, session)) = self.session() else {
            return;
        };
        if !session.negotiated.route_refresh {
            return;
        }
        let families: Vec<Family> = session.negotiated.families.iter().collect();
        for family in families {
            let refresh = RouteRefresh {
                afi: family.afi(),
                subtype: RouteRefresh::REQUEST,
                safi: family.safi(),
            };
            self.send(id, MessageType::RouteRefresh, refresh.encode(), out);
        }
    }

    // ---- timers ----

    fn run_timers(&mut self, now: Now, out: &mut Vec<Output>) {
        let due = |at: Option<Now>| at.is_some_and(|at| at <= now);
        if due(self.faults_until) {
            // Their number stays: who has a connection now may not have proved yet that they are over.
            self.faults_until = None;
        }
        self.age_stale(now, out);
        let late: Vec<_> = self
            .conns
            .iter()
            .filter(|c| due(c.give_up()))
            .map(|c| (c.id, matches!(c.phase, Phase::Connecting { .. })))
            .collect();
        for (id, attempt) in late {
            let end = match attempt {
                true => End::TimedOut,
                false => End::Fault(Notification::hold_timer_expired(), String::new()),
            };
            self.end(id, end, now, out);
        }
        let unread = self.conns.iter().find(|c| due(c.send_hold()));
        if let Some(id) = unread.map(|c| c.id) {
            let end = End::Fault(Notification::send_hold_timer_expired(), String::new());
            self.end(id, end, now, out);
        }
        for id in self.ids() {
            self.keepalive(id, now, out);
        }
        if self
            .idle
            .is_some_and(|i| matches!(i, Idle::Until(at) if at <= now))
        {
            self.idle = None;
            self.retry = Some(now);
        }
        self.try_to_connect(now, out);
    }

    fn keepalive(&mut self, id: ConnId, now: Now, out: &mut Vec<Output>) {
        let due = self.conns.iter().any(|c| {
            c.id == id
                && c.timers()
                    .and_then(|t| t.keepalive)
                    .is_some_and(|at| at <= now)
        });
        if due {
            self.send_keepalive(id, now, out);
        }
    }

    /// Sends a KEEPALIVE, and sets the timer for the next (RFC 4271 section 10: jittered).
    pub(super) fn send_keepalive(&mut self, id: ConnId, now: Now, out: &mut Vec<Output>) {
        self.send(id, MessageType::Keepalive, header::keepalive(), out);
        let Some(interval) = self
            .conn_mut(id)
            .and_then(|c| c.negotiated().map(|n| n.keepalive))
        else {
            return;
        };
        let next = (!interval.is_zero()).then(|| now + self.jitter.percent(interval, 75, 100));
        if let Some(timers) = self.conn_mut(id).and_then(Connection::timers_mut) {
            timers.keepalive = next;
        }
    }
}
