//! From our OPEN to the session: OpenSent and OpenConfirm (RFC 4271 section 8.2.2), collisions (section 6.8).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    ConnId, FaultKind, FaultReport, Output, Peer, State, SurvivedFault,
    collision::ours_stays,
    connecting::PATIENCE,
    end::End,
    negotiate::{Offer, OpenRefusal, local_asn},
    restart::not_kept_by_peer,
    state::{Established, OpenConfirm, Phase, SessionTimers},
};
use crate::{
    clock::Now,
    event::{Negotiated, PeerEvent},
    own_next_hop::LocalEnd,
    wire::{
        header::MessageType,
        notification::Notification,
        open::Open,
        update::{AttributeCache, Context},
    },
};

impl Peer {
    /// What we offer now to a peer that sees us at `local`.
    pub(super) fn offer(&self, local: LocalEnd, now: Now) -> Offer {
        let bits = self.restart_bits(now);
        Offer::new(&self.speaker, &self.config, local, bits, self.plain)
    }

    /// How long a connection may take to become a session: generous, since a peer under load is no faulty one, and much
    /// less than the four minutes that RFC 4271 suggests.
    pub(super) fn patience(&self) -> Duration {
        let (least, most) = self.speaker.limits.opening;
        (self.config.timers.hold * 4).clamp(least, most)
    }

    /// A message in OpenSent.
    pub(super) fn in_open_sent(
        &mut self,
        id: ConnId,
        kind: MessageType,
        body: &Bytes,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        if kind != MessageType::Open {
            self.end(id, unexpected(1, kind), now, out);
            return;
        }
        let expected = self.config.asn;
        let Some(Phase::OpenSent(state)) = self.conn_mut(id).map(|c| &c.phase) else {
            return;
        };
        let agreed = Open::decode(body)
            .map_err(|n| OpenRefusal::of_open(n, body))
            .and_then(|open| state.offer.negotiate(expected, &open, &state.ends));
        match agreed {
            Err(refusal) => self.refuse_open(id, refusal, body, now, out),
            Ok(negotiated) => self.opened(id, negotiated, now, out),
        }
    }

    /// The peer's OPEN is wrong, or does not fit.
    fn refuse_open(
        &mut self,
        id: ConnId,
        refusal: OpenRefusal,
        body: &Bytes,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let OpenRefusal {
            notification: n,
            why,
        } = refusal;
        let what = match why.is_empty() {
            true => n.name().to_owned(),
            false => format!("{}: {why}", n.name()),
        };
        let report = FaultReport {
            fault: SurvivedFault {
                kind: FaultKind::OpenRefused,
                code: Some((n.code, n.subcode)),
                attribute: None,
                prefixes: 0,
                what,
            },
            nlri: SmallVec::new(),
            message: body.clone(),
        };
        self.note_fault(now, report, out);
        self.end(id, End::Fault(n, why), now, out);
    }

    /// The peer's OPEN is right.
    fn opened(&mut self, id: ConnId, negotiated: Negotiated, now: Now, out: &mut Vec<Output>) {
        if !self.survives_collision(id, &negotiated, now, out) {
            self.end(id, End::Collision, now, out);
            return;
        }
        let wait = match negotiated.hold {
            Duration::ZERO => self.patience(),
            hold => hold,
        };
        if let Some(conn) = self.conn_mut(id) {
            conn.phase = Phase::OpenConfirm(OpenConfirm {
                negotiated: Arc::new(negotiated),
                timers: SessionTimers {
                    hold: Some(now + wait),
                    keepalive: None,
                },
            });
        }
        self.send_keepalive(id, now, out);
    }

    /// Decides between this connection and the others; ends those that lose.
    fn survives_collision(
        &mut self,
        id: ConnId,
        negotiated: &Negotiated,
        now: Now,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(this) = self.conns.iter().find(|c| c.id == id) else {
            return false;
        };
        let (outgoing, beside_session) = (this.outgoing, this.beside_session);
        let local = (
            self.speaker.router_id,
            local_asn(&self.speaker, &self.config),
        );
        let ours = ours_stays(local, (negotiated.peer_id, negotiated.peer_asn));
        let others: Vec<_> = self
            .conns
            .iter()
            .filter(|c| c.id != id)
            .map(|c| (c.id, c.state(), c.peer_id(), c.since + PATIENCE <= now))
            .collect();
        for (other, state, peer_id, late) in others {
            match state {
                State::Established => {
                    // With graceful restart a new connection shows that the peer has restarted without our notice,
                    // whatever its OPEN says of that: after a cold start it has no R bit (RFC 4724 section 5).
                    if !beside_session || peer_id != Some(negotiated.peer_id) {
                        return false;
                    }
                    self.end(other, End::Replaced, now, out);
                }
                State::OpenSent | State::OpenConfirm if ours == outgoing => {
                    self.end(other, End::Collision, now, out);
                }
                // Whatever took it does not speak; here is somebody who does.
                State::OpenSent if late => self.end(other, End::Collision, now, out),
                State::OpenSent | State::OpenConfirm => return false,
                // It may come to nothing; if not, there will be an OPEN on it.
                _ => {}
            }
        }
        true
    }

    /// A message in OpenConfirm.
    pub(super) fn in_open_confirm(
        &mut self,
        id: ConnId,
        kind: MessageType,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        match kind {
            MessageType::Keepalive => self.establish(id, now, out),
            _ => self.end(id, unexpected(2, kind), now, out),
        }
    }

    /// The session begins.
    fn establish(&mut self, id: ConnId, now: Now, out: &mut Vec<Output>) {
        for other in self.ids().into_iter().filter(|other| *other != id) {
            self.end(other, End::Collision, now, out);
        }
        self.retry = None;
        self.idle = None;
        let Some(Phase::OpenConfirm(state)) = self.conn_mut(id).map(|c| &c.phase) else {
            return;
        };
        let (negotiated, mut timers) = (state.negotiated.clone(), state.timers);
        timers.hold = (!negotiated.hold.is_zero()).then(|| now + negotiated.hold);
        let epoch = self.next_epoch();
        if let Some(conn) = self.conn_mut(id) {
            conn.phase = Phase::Established(Box::new(Established {
                context: Context::from(&*negotiated),
                negotiated: negotiated.clone(),
                timers,
                epoch,
                since: now,
                send_hold: None,
                cache: AttributeCache::default(),
            }));
        }
        out.push(Output::Event(epoch, PeerEvent::Up(negotiated.clone())));
        self.settle_stale(&negotiated, now, out);
    }

    /// The peer is back: what it has not kept goes, the rest waits for its End-of-RIB (RFC 4724 section 4.2).
    fn settle_stale(&mut self, negotiated: &Negotiated, now: Now, out: &mut Vec<Output>) {
        let Some(stale) = &mut self.stale else {
            return;
        };
        let lost = not_kept_by_peer(stale.families(), negotiated);
        for family in lost.iter() {
            stale.remove(family);
        }
        stale.wait_until(now + self.speaker.graceful_restart.stale_path_time);
        if stale.families().is_empty() {
            self.stale = None;
        }
        if !lost.is_empty() {
            out.push(Output::Event(self.epoch, PeerEvent::DropStale(lost)));
        }
    }
}

/// A message that does not belong into the state (RFC 6608).
pub(super) fn unexpected(subcode: u8, kind: MessageType) -> End {
    let n = Notification::new(5, subcode, &[kind as u8]);
    End::Fault(n, format!("{kind:?} came"))
}
