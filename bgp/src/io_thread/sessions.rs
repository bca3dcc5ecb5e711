//! Sessions: what they are told, what they answer, when.

use mio::net::TcpStream;
use selvage_bgp_core::{
    clock::Now,
    event::{FromPeer, PeerEvent},
    ids::{Epoch, PeerIdx},
    rib::RibInput,
    session::{FaultKind, FaultReport, Input, Outline, Output, State, SurvivedFault},
};
use tracing::{debug, info, warn};

use super::IoThread;
use crate::rib_thread::RibWork;

/// How many prefixes of a faulty message are written out; the message is logged as a whole.
const LOGGED_PREFIXES: usize = 16;

impl IoThread {
    /// Tells a peer something and does what it answers. `pending` is the connection that [`Input::Accepted`] is about.
    pub(super) fn handle(
        &mut self,
        idx: PeerIdx,
        input: Input<'_>,
        pending: &mut Option<TcpStream>,
    ) {
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
        self.compare_outline(now, idx);
        self.update_timer(idx);
        self.retire_dynamic(idx);
    }

    /// Has the peer told to others if something of it that they see has changed.
    fn compare_outline(&mut self, now: Now, idx: PeerIdx) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let outline = slot.peer.outline();
        let told = slot.outline.replace(outline);
        if told == Some(outline) {
            return;
        }
        let is_up = |outline: Outline| outline.state == State::Established;
        let at_once =
            told.is_none_or(|told| is_up(told) != is_up(outline) || told.epoch != outline.epoch);
        self.changed.note(now, idx, at_once);
    }

    pub(super) fn act(&mut self, idx: PeerIdx, output: Output, pending: &mut Option<TcpStream>) {
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
            Output::Fault(report) => self.log_fault(idx, &report),
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

    /// The RIB does not use routes of a peer for their next hop.
    pub(super) fn unusable_next_hop(
        &mut self,
        idx: PeerIdx,
        epoch: Epoch,
        what: String,
        prefixes: u32,
    ) {
        let now = self.clock.now();
        let Some(slot) = self.peers.get_mut(idx).filter(|s| s.peer.epoch() == epoch) else {
            return;
        };
        let report = FaultReport {
            fault: SurvivedFault {
                kind: FaultKind::UnusableNextHop,
                code: None,
                attribute: None,
                prefixes,
                what,
            },
            nlri: Default::default(),
            message: Default::default(),
        };
        let mut outputs = Vec::new();
        slot.peer.note_fault(now, report, &mut outputs);
        for output in outputs {
            self.act(idx, output, &mut None);
        }
        self.compare_outline(now, idx);
    }

    /// Logs a fault that the session survives, with the prefixes and the whole message (RFC 7606 section 6): one of a
    /// kind every ten seconds for each peer, twenty of all peers together, and how many were left out meanwhile.
    fn log_fault(&mut self, idx: PeerIdx, report: &FaultReport) {
        let now = self.clock.now();
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let kind = report.fault.kind.index();
        let Some(limit) = slot.fault_log.get_mut(kind) else {
            return;
        };
        let Some((left_out, left_out_of_all)) = limit.pass_within(now, &mut self.fault_log) else {
            return;
        };
        let octets: String = report.message.iter().map(|o| format!("{o:02x}")).collect();
        warn!(
            peer = %slot.config.key,
            prefixes = report.prefixes(LOGGED_PREFIXES),
            octets,
            left_out,
            left_out_of_all,
            "{}", report.fault
        );
    }

    pub(super) fn event(&mut self, idx: PeerIdx, epoch: Epoch, event: PeerEvent) {
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

    pub(super) fn update_timer(&mut self, idx: PeerIdx) {
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

    pub(super) fn run_timers(&mut self) {
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
    pub(super) fn retire_dynamic(&mut self, idx: PeerIdx) {
        let Some(slot) = self.peers.get(idx) else {
            return;
        };
        if slot.dynamic && slot.conns.is_empty() && slot.peer.is_forgettable() {
            self.remove_peer(idx);
        }
    }
}
