//! Connections: accepted, opened, read, closed.

use std::{io, net::SocketAddr};

use mio::{Interest, Token, net::TcpStream};
use selvage_bgp_core::{
    ids::{IfIndex, PeerIdx},
    session::{ConnId, Input, SocketError},
};
use tracing::{debug, info, warn};

use super::{ACCEPT_AGAIN, CONNS, IoThread, LINGER};
use crate::{conn::Conn, connector, peers, rib_thread::RibWork};

impl IoThread {
    pub(super) fn accept(&mut self) {
        if self.accept_at.is_some_and(|at| at <= self.clock.now()) {
            self.accept_at = None;
            self.listeners.iter_mut().for_each(|l| l.ready = true);
        }
        // A bounded number a round: those who are connected already have their turn in between.
        for i in 0..self.listeners.len() {
            for _ in 0..256 {
                if !self.listeners[i].ready {
                    break;
                }
                match self.listeners[i].socket.accept() {
                    Ok((stream, from)) => {
                        self.accept_refused = false;
                        self.accepted(stream, from);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        self.listeners[i].ready = false
                    }
                    // What died in the queue keeps nobody waiting who is behind it.
                    Err(e) if is_of_one_connection(&e) => {}
                    Err(error) => {
                        // Out of descriptors or memory. Those that wait in the queue make no event.
                        if !std::mem::replace(&mut self.accept_refused, true) {
                            warn!(%error, "cannot accept connections; will try again");
                        }
                        self.listeners[i].ready = false;
                        self.accept_at = Some(self.clock.now() + ACCEPT_AGAIN);
                    }
                }
            }
        }
    }

    pub(super) fn accepted(&mut self, stream: TcpStream, from: SocketAddr) {
        let interface = interface_of(&from);
        let key = peers::key_of(from.ip(), interface);
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let known = self.peers.find(&key);
        let config = match known.and_then(|idx| self.peers.get(idx)) {
            Some(slot) => Some(slot.config.clone()),
            None => peers::from_range(&self.config, key),
        };
        let Some(config) = config else {
            if let Some(left_out) = self.unknown.note(self.clock.now(), key.addr) {
                info!(
                    from = %key,
                    left_out,
                    "closed a connection from an address that no BGPPeer and no range has"
                );
            }
            return;
        };
        let external = self.config.is_external(&config);
        if let Err(error) = connector::adopt(&stream, &config, external) {
            warn!(peer = %key, %error, "cannot set the options of a connection, closed");
            return;
        }
        let Some(idx) = known.or_else(|| self.add_peer(config, true)) else {
            debug!(peer = %key, "no place for another neighbour, connection closed");
            return;
        };
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

    pub(super) fn connect(&mut self, idx: PeerIdx, conn: ConnId) {
        let Some(slot) = self.peers.get(idx) else {
            return;
        };
        let external = self.config.is_external(&slot.config);
        let attempt = connector::connect(&slot.config, external)
            .and_then(|s| self.register(s, idx, conn, true));
        if let Err(error) = attempt {
            self.handle(
                idx,
                Input::ConnectFailed {
                    conn,
                    unanswered: is_unanswered(&error),
                    error: error.into(),
                },
                &mut None,
            );
        }
    }

    pub(super) fn register(
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

    pub(super) fn finish_connect(&mut self, token: usize) {
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
                        unanswered: is_unanswered(&error),
                        error: error.into(),
                    },
                    &mut None,
                );
            }
        }
    }

    /// Forgets a connection; the kernel closes it.
    pub(super) fn drop_conn(&mut self, token: usize) {
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
    pub(super) fn close(&mut self, idx: PeerIdx, id: ConnId) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let Some(token) = slot.token(id) else {
            // It may not even have begun.
            self.connects.retain(|connect| *connect != (idx, id));
            return;
        };
        slot.conns.retain(|(c, _)| *c != id);
        let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
            return;
        };
        conn.closing = true;
        if conn.connecting || conn.is_drained() {
            self.drop_conn(token);
        } else {
            self.lingering.push((self.clock.now() + LINGER, token));
        }
    }

    pub(super) fn read(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        let mut rest = ready.into_iter();
        // Those who have had their turn come behind those who have not.
        let mut again = Vec::new();
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
            let more = conn.readable;
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
                Err(error) => self.lost(token, idx, id, Some(error.into())),
            }
            self.buffer = buffer;
            if more
                && self
                    .conns
                    .get(token)
                    .is_some_and(|c| c.as_ref().is_some_and(|c| c.readable))
            {
                again.push(token);
            }
            if self.to_rib.len() >= 512 {
                let octets = self.to_rib.iter().map(RibWork::octets).sum();
                self.rib.send(&mut self.to_rib, octets);
            }
        }
        self.ready.extend(rest);
        self.ready.append(&mut again);
    }

    pub(super) fn lost(
        &mut self,
        token: usize,
        idx: PeerIdx,
        conn: ConnId,
        error: Option<SocketError>,
    ) {
        self.drop_conn(token);
        self.handle(idx, Input::Closed { conn, error }, &mut None);
    }
}

/// Whether an attempt to connect has failed because nobody was there, not because somebody said no.
fn is_unanswered(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, TimedOut};
    matches!(error.kind(), HostUnreachable | TimedOut)
}

/// Whether accepting failed for reasons of the connection that was next, as accept(2) reports them on Linux.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        Interrupted
            | ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | TimedOut
    ) || error.raw_os_error() == Some(libc::EPROTO)
}

fn interface_of(addr: &SocketAddr) -> Option<IfIndex> {
    match addr {
        SocketAddr::V6(a) if a.scope_id() != 0 => Some(IfIndex(a.scope_id())),
        _ => None,
    }
}
