//! Outgoing connections: when to try, and what to do with one that is there.

use std::time::Duration;

use bytes::BytesMut;

use super::{
    ConnId, Output, Peer, State,
    collision::ours_stays,
    end::End,
    negotiate::local_asn,
    state::{Connection, Ends, Phase},
};
use crate::{clock::Now, ids::FamilySet};

/// How long an attempt may take: longer than two SYNs that are lost.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long a connection may stay without an OPEN before others are preferred: before we try ourselves, if it is incoming.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

impl Peer {
    /// Opens a connection if it is time to, and none is on its way to a session.
    pub(super) fn try_to_connect(&mut self, now: Now, out: &mut Vec<Output>) {
        let waits = self.config.passive && !self.connect_once;
        if !self.running || waits || self.idle.is_some() {
            self.retry = None;
            return;
        }
        if self.retry.is_none_or(|at| at > now) {
            return;
        }
        // The end of any connection sets the timer again.
        self.retry = None;
        self.connect_once = false;
        let on_its_way = |c: &Connection| c.outgoing || c.state() >= State::OpenConfirm;
        if self.conns.iter().any(on_its_way) {
            return;
        }
        if let Some(until) = self.conns.iter().map(|c| c.since + PATIENCE).max()
            && until > now
        {
            self.retry = Some(until);
            return;
        }
        let id = self.new_conn();
        self.conns.push(Connection {
            id,
            outgoing: true,
            since: now,
            beside_session: false,
            offered: FamilySet::NONE,
            open: None,
            stream: BytesMut::new(),
            phase: Phase::Connecting {
                until: now + ATTEMPT.max(self.config.timers.connect_retry),
            },
        });
        out.push(Output::Connect(id));
    }

    /// An outgoing connection is there.
    pub(super) fn connected(&mut self, id: ConnId, ends: Ends, now: Now, out: &mut Vec<Output>) {
        let Some(conn) = self.conn_mut(id) else {
            return;
        };
        if !matches!(conn.phase, Phase::Connecting { .. }) {
            return;
        }
        if self.loses_to_incoming(id) {
            self.end(id, End::Collision, now, out);
            return;
        }
        self.send_open(id, ends, now, out);
    }

    /// Whether another connection is so far that the identifiers of both sides are known, and say that ours would go.
    fn loses_to_incoming(&self, id: ConnId) -> bool {
        let local = (
            self.speaker.router_id,
            local_asn(&self.speaker, &self.config),
        );
        self.conns
            .iter()
            .filter(|c| c.id != id)
            .filter_map(Connection::negotiated)
            .any(|n| !ours_stays(local, (n.peer_id, n.peer_asn)))
    }
}
