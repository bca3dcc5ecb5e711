//! Connections and the phases that they go through. Each phase has exactly the data that is valid in it.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;

use super::negotiate::{Offer, OpenSettings};
use crate::{
    clock::{Now, earlier},
    event::Negotiated,
    ids::{Epoch, FamilySet, IfIndex, RouterId},
    own_next_hop::LocalEnd,
    wire::{
        header::MAX_MESSAGE,
        update::{AttributeCache, Context},
    },
};

/// A connection of a peer, named by the peer; never reused within a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);

/// The state of the finite state machine (RFC 4271 section 8.2.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Refuses connections; not started, stopped, or waiting after an error.
    Idle,
    /// Waits for an outgoing connection.
    Connect,
    /// Listens, and will try again.
    Active,
    /// OPEN sent.
    OpenSent,
    /// OPEN received, waits for KEEPALIVE.
    OpenConfirm,
    /// Routes flow.
    Established,
}

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ends {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub interface: Option<IfIndex>,
}

impl Ends {
    pub fn local_end(&self) -> LocalEnd {
        LocalEnd {
            addr: self.local.ip(),
            interface: self.interface,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub id: ConnId,
    /// We have opened it.
    pub outgoing: bool,
    /// When it was begun.
    pub since: Now,
    /// It was made while another one was Established: the peer may have restarted unnoticed (RFC 4724 section 5).
    pub beside_session: bool,
    /// The families in our OPEN.
    pub offered: FamilySet,
    /// What our OPEN said that the session keeps; `None` before it.
    pub open: Option<OpenSettings>,
    /// What has come and is no complete message yet.
    pub stream: BytesMut,
    pub phase: Phase,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// The operating system is at it.
    Connecting {
        until: Now,
    },
    OpenSent(OpenSent),
    OpenConfirm(OpenConfirm),
    Established(Box<Established>),
}

#[derive(Debug)]
pub(crate) struct OpenSent {
    pub ends: Ends,
    /// What our OPEN said.
    pub offer: Offer,
    /// When to give up.
    pub until: Now,
}

#[derive(Debug)]
pub(crate) struct OpenConfirm {
    pub negotiated: Arc<Negotiated>,
    pub timers: SessionTimers,
}

#[derive(Debug)]
pub(crate) struct Established {
    pub negotiated: Arc<Negotiated>,
    pub timers: SessionTimers,
    pub epoch: Epoch,
    pub since: Now,
    /// When it is given up because the peer reads nothing.
    pub send_hold: Option<Now>,
    pub context: Context,
    pub cache: AttributeCache,
}

/// Hold and keepalive timer; neither runs where a hold time of zero was negotiated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionTimers {
    pub hold: Option<Now>,
    pub keepalive: Option<Now>,
}

impl Connection {
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Connecting { .. } => State::Connect,
            Phase::OpenSent(_) => State::OpenSent,
            Phase::OpenConfirm(_) => State::OpenConfirm,
            Phase::Established(_) => State::Established,
        }
    }

    /// What was agreed on, once it was.
    pub fn negotiated(&self) -> Option<&Arc<Negotiated>> {
        match &self.phase {
            Phase::OpenConfirm(c) => Some(&c.negotiated),
            Phase::Established(e) => Some(&e.negotiated),
            _ => None,
        }
    }

    /// Our end, once there is one.
    pub fn local_end(&self) -> Option<LocalEnd> {
        match &self.phase {
            Phase::Connecting { .. } => None,
            Phase::OpenSent(o) => Some(o.ends.local_end()),
            _ => self.negotiated().map(|n| LocalEnd {
                addr: n.local_addr,
                interface: n.interface,
            }),
        }
    }

    /// The BGP identifier of the other side, once it is known.
    pub fn peer_id(&self) -> Option<RouterId> {
        self.negotiated().map(|n| n.peer_id)
    }

    /// The largest message that we take.
    pub fn limit(&self) -> usize {
        self.negotiated().map_or(MAX_MESSAGE, |n| n.max_message)
    }

    pub fn timers_mut(&mut self) -> Option<&mut SessionTimers> {
        match &mut self.phase {
            Phase::OpenConfirm(c) => Some(&mut c.timers),
            Phase::Established(e) => Some(&mut e.timers),
            _ => None,
        }
    }

    pub fn timers(&self) -> Option<SessionTimers> {
        match &self.phase {
            Phase::OpenConfirm(c) => Some(c.timers),
            Phase::Established(e) => Some(e.timers),
            _ => None,
        }
    }

    /// When it is given up if nothing happens.
    pub fn give_up(&self) -> Option<Now> {
        match &self.phase {
            Phase::Connecting { until } => Some(*until),
            Phase::OpenSent(o) => Some(o.until),
            Phase::OpenConfirm(c) => c.timers.hold,
            Phase::Established(e) => e.timers.hold,
        }
    }

    /// When it is given up because the peer reads nothing (RFC 9687).
    pub fn send_hold(&self) -> Option<Now> {
        match &self.phase {
            Phase::Established(e) => e.send_hold,
            _ => None,
        }
    }

    /// When something is to be done for it.
    pub fn deadline(&self) -> Option<Now> {
        let own = earlier(self.give_up(), self.send_hold());
        earlier(own, self.timers().and_then(|t| t.keepalive))
    }

    /// The hold time begins anew: the peer has said something (RFC 4271 section 8.2.2).
    pub fn restart_hold(&mut self, now: Now) {
        let Some(hold) = self.negotiated().map(|n| n.hold) else {
            return;
        };
        if let Some(timers) = self.timers_mut()
            && timers.hold.is_some()
        {
            timers.hold = Some(now + hold);
        }
    }
}
