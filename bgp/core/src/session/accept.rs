//! Incoming connections: which are taken.

use bytes::BytesMut;

use super::{
    Output, Peer, State,
    end::End,
    state::{Connection, Ends, OpenSent, Phase},
};
use crate::{clock::Now, ids::FamilySet};

/// A session as young as this may still be in collision with a connection that the peer opened before it knew.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(5);

impl Peer {
    /// The peer has connected to us.
    pub(super) fn accepted(&mut self, ends: Ends, now: Now, out: &mut Vec<Output>) {
        if !self.running || self.idle.is_some() || self.session_refuses(now) {
            out.push(Output::Refuse);
            return;
        }
        let beside_session = self.session().is_some();
        // It has one connection to us at a time: an earlier one that came to nothing is dead.
        let earlier: Vec<_> = self
            .conns
            .iter()
            .filter(|c| !c.outgoing && c.state() < State::Established)
            .map(|c| c.id)
            .collect();
        for id in earlier {
            self.end(id, End::Collision, now, out);
        }
        let id = self.new_conn();
        out.push(Output::Accept(id));
        self.conns.push(Connection {
            id,
            outgoing: false,
            since: now,
            beside_session,
            offered: FamilySet::NONE,
            open: None,
            stream: BytesMut::new(),
            // Its OPEN is sent at once; until then nothing is awaited.
            phase: Phase::Connecting { until: now },
        });
        self.send_open(id, ends, now, out);
    }

    /// A session that works needs no second connection (RFC 4271 section 6.8). With graceful restart the peer may have
    /// restarted without our notice (RFC 4724 section 5): its OPEN will tell.
    fn session_refuses(&self, now: Now) -> bool {
        self.session().is_some_and(|(_, session)| {
            session.negotiated.graceful_restart.is_none() || now.since(session.since) < YOUNG
        })
    }

    /// Sends our OPEN and waits for the peer's.
    pub(super) fn send_open(
        &mut self,
        id: super::ConnId,
        ends: Ends,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let offer = self.offer(ends.local_end(), now);
        let open = offer.open().encode();
        let until = now + self.patience();
        if let Some(conn) = self.conn_mut(id) {
            conn.offered = offer.families;
            conn.open = Some(offer.settings);
            conn.phase = Phase::OpenSent(OpenSent { ends, offer, until });
        }
        self.send(id, crate::wire::header::MessageType::Open, open, out);
    }
}
