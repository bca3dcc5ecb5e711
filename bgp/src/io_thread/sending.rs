//! What leaves: session messages and the streams of update groups.

use selvage_bgp_core::{clock::Now, ids::PeerIdx, rib::RibInput};
use tracing::info;

use super::IoThread;
use crate::{conn::Flushed, rib_thread::RibWork};

impl IoThread {
    pub(super) fn flush(&mut self) {
        for group in std::mem::take(&mut self.grown) {
            if let Some(members) = self.members.get(&group) {
                self.dirty.extend(members);
            }
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        let any = !dirty.is_empty();
        let now = self.clock.now();
        for idx in dirty.drain(..) {
            self.flush_peer(idx, now);
        }
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
        if any {
            self.tell_passed();
        }
        self.wind_down(now);
    }

    /// Gets on with the connections that are being closed.
    fn wind_down(&mut self, now: Now) {
        let mut i = 0;
        while let Some(&(until, token)) = self.lingering.get(i) {
            let done = match self.conns.get_mut(token).and_then(Option::as_mut) {
                Some(conn) if conn.closing => {
                    let done = conn.wind_down(&mut self.streams, &mut self.buffer);
                    self.busy |= !done && conn.readable;
                    done
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

    /// Tells the RIB what everybody has been sent, so that it can forget withdrawn prefixes.
    fn tell_passed(&mut self) {
        for &group in self.members.keys() {
            if self.fallen.values().any(|from| *from == group) {
                continue;
            }
            if let Some(log) = self.streams.passed(group) {
                self.to_rib
                    .push(RibWork::Input(RibInput::Passed { group, log }));
            }
        }
    }

    pub(super) fn flush_peer(&mut self, idx: PeerIdx, now: Now) {
        let Some(slot) = self.peers.get_mut(idx) else {
            return;
        };
        let mut broken = None;
        let mut fell_from = None;
        for &(id, token) in &slot.conns {
            let Some(conn) = self.conns.get_mut(token).and_then(Option::as_mut) else {
                continue;
            };
            if conn.connecting {
                continue;
            }
            let carries_routes = slot.established.is_some_and(|(c, _)| c == id);
            let member = slot.member.as_mut().filter(|_| carries_routes);
            let before = conn.sent;
            let flushed = conn.flush(&mut self.streams, member);
            let stuck = conn.sent == before && matches!(flushed, Ok(Flushed::Blocked));
            slot.peer.note_sending(now, id, stuck);
            match flushed {
                Ok(Flushed::All) => {
                    if carries_routes
                        && self.fallen.remove(&idx).is_some()
                        && let Some((_, epoch)) = slot.established
                    {
                        self.to_rib
                            .push(RibWork::Input(RibInput::Resync(idx, epoch)));
                    }
                }
                Ok(Flushed::Blocked) => {
                    if let Some(member) = slot.member
                        && carries_routes
                        && self.streams.is_laggard(&member)
                    {
                        info!(peer = %slot.config.key, "does not read its routes; it gets them anew when it does");
                        fell_from = Some(member.group);
                    }
                }
                Err(error) => broken = Some((token, id, error.into())),
            }
        }
        if let Some(group) = fell_from {
            self.leave_group(idx);
            self.fallen.insert(idx, group);
        }
        if let Some((token, id, error)) = broken {
            self.lost(token, idx, id, Some(error));
        }
    }

    pub(super) fn leave_group(&mut self, idx: PeerIdx) {
        self.fallen.remove(&idx);
        let Some(member) = self.peers.get_mut(idx).and_then(|slot| slot.member.take()) else {
            return;
        };
        self.streams.leave(member);
        if let Some(members) = self.members.get_mut(&member.group) {
            members.remove(&idx);
        }
    }
}
