//! Bytes become messages, and in Established messages become events.

use bytes::Bytes;

use super::{
    ConnId, Output, Peer,
    end::End,
    faults,
    handshake::unexpected,
    state::{Phase, State},
};
use crate::{
    clock::Now,
    event::PeerEvent,
    ids::Family,
    wire::{
        header::{self, Frame, MessageType},
        notification::Notification,
        refresh::RouteRefresh,
        update::{self, Update},
    },
};

impl Peer {
    /// Bytes of a connection: all complete messages in them are dealt with.
    pub(super) fn bytes(&mut self, id: ConnId, bytes: &[u8], now: Now, out: &mut Vec<Output>) {
        if let Some(conn) = self.conn_mut(id) {
            conn.stream.extend_from_slice(bytes);
        }
        // Each message may end the connection.
        while let Some(conn) = self.conn_mut(id) {
            let limit = conn.limit();
            match header::next_frame(&mut conn.stream, limit) {
                Ok(None) => return,
                Ok(Some(frame)) => self.message(id, frame, now, out),
                Err(n) => self.end(id, End::Fault(n, String::new()), now, out),
            }
        }
    }

    fn message(&mut self, id: ConnId, frame: Frame, now: Now, out: &mut Vec<Output>) {
        let Frame { kind, body } = frame;
        if let Some(count) = self.stats.messages_in.get_mut(kind.index()) {
            *count += 1;
        }
        if kind == MessageType::Notification {
            let n = Notification::decode(&body);
            self.end(id, End::Received(n), now, out);
            return;
        }
        let Some(state) = self.conn_mut(id).map(|c| c.state()) else {
            return;
        };
        match (state, kind) {
            (State::OpenSent, _) => self.in_open_sent(id, kind, &body, now, out),
            (State::OpenConfirm, _) => self.in_open_confirm(id, kind, now, out),
            (State::Established, MessageType::Update) => self.update(id, &body, now, out),
            (State::Established, MessageType::Keepalive) => self.heard(id, now),
            (State::Established, MessageType::RouteRefresh) => self.refresh(&body, out),
            (State::Established, _) => self.end(id, unexpected(3, kind), now, out),
            // No bytes come before a connection is there.
            (State::Idle | State::Connect | State::Active, _) => {}
        }
    }

    fn heard(&mut self, id: ConnId, now: Now) {
        if let Some(conn) = self.conn_mut(id) {
            conn.restart_hold(now);
        }
    }

    fn update(&mut self, id: ConnId, body: &Bytes, now: Now, out: &mut Vec<Output>) {
        self.heard(id, now);
        let Some(Phase::Established(session)) = self.conn_mut(id).map(|c| &mut c.phase) else {
            return;
        };
        let epoch = session.epoch;
        match update::decode(body, &session.context, &mut session.cache) {
            Err(fault) => {
                let end = End::Fault(fault.notification(), fault.to_string());
                self.end(id, end, now, out);
            }
            Ok(update) => {
                let reports = faults::reports(&update, body);
                let Update {
                    withdrawn,
                    reach,
                    end_of_rib,
                    ..
                } = update;
                let event = |e| Output::Event(epoch, e);
                out.extend(withdrawn.into_iter().map(|b| event(PeerEvent::Unreach(b))));
                out.extend(
                    reach
                        .into_iter()
                        .map(|(attrs, nlri)| event(PeerEvent::Reach { attrs, nlri })),
                );
                if let Some(family) = end_of_rib {
                    self.end_of_rib(family);
                    out.push(event(PeerEvent::EndOfRib(family)));
                }
                for report in reports {
                    self.note_fault(now, report, out);
                }
            }
        }
    }

    /// The RIB sweeps what is still stale; for us the peer's restart is over in this family.
    fn end_of_rib(&mut self, family: Family) {
        if let Some(stale) = &mut self.stale {
            stale.remove(family);
            if stale.families().is_empty() {
                self.stale = None;
            }
        }
    }

    /// The peer wants everything again. Families that were not negotiated, and marks of a refresh that we did not
    /// ask for, mean nothing (RFC 2918 section 4, RFC 7313 section 5).
    fn refresh(&mut self, body: &[u8], out: &mut Vec<Output>) {
        let Some((_, session)) = self.session() else {
            return;
        };
        let Some(refresh) = RouteRefresh::decode(body) else {
            return;
        };
        match Family::from_afi_safi(refresh.afi, refresh.safi) {
            Some(family)
                if refresh.subtype == RouteRefresh::REQUEST
                    && session.negotiated.families.contains(family) =>
            {
                out.push(Output::Event(session.epoch, PeerEvent::Refresh(family)));
            }
            _ => {}
        }
    }
}
