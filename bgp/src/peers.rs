//! The table of peers: who is where, who may connect, whose place is free.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use selvage_bgp_core::{
    clock::Now,
    config::{PeerConfig, SpeakerConfig},
    ids::{Epoch, IfIndex, PeerIdx, PeerKey},
    session::{ConnId, FaultKind, Outline, Peer, State},
};

use crate::{log_limit::LogLimit, stream::Member};

/// A peer and what the shell knows of it.
pub(crate) struct Slot {
    pub(crate) peer: Peer,
    pub(crate) config: Arc<PeerConfig>,
    /// It came by a range: it goes when its session is gone for good.
    pub(crate) dynamic: bool,
    pub(crate) state: State,
    /// Its connections: two at most, for as long as a collision lasts.
    pub(crate) conns: Vec<(ConnId, usize)>,
    /// The connection that carries routes, and the session's number.
    pub(crate) established: Option<(ConnId, Epoch)>,
    /// Its place in an update group.
    pub(crate) member: Option<Member>,
    /// The deadline that is registered for it.
    pub(crate) deadline: Option<Now>,
    /// Keeps its faults from flooding the log, by kind.
    pub(crate) fault_log: [LogLimit; FaultKind::ALL.len()],
    /// What of it was noted last for those who show it.
    pub(crate) outline: Option<Outline>,
}

impl Slot {
    /// The place in the connection table of one of its connections.
    pub(crate) fn token(&self, conn: ConnId) -> Option<usize> {
        self.conns
            .iter()
            .find(|(id, _)| *id == conn)
            .map(|(_, token)| *token)
    }
}

/// All peers, by place and by address.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Slot>>,
    by_key: HashMap<PeerKey, PeerIdx>,
    /// Places that the next peers take. What is still under way for an earlier owner names a session that is no more.
    free: VecDeque<PeerIdx>,
}

impl Peers {
    pub(crate) fn get(&self, idx: PeerIdx) -> Option<&Slot> {
        self.slots.get(usize::from(idx.0))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, idx: PeerIdx) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(idx.0))?.as_mut()
    }

    pub(crate) fn find(&self, key: &PeerKey) -> Option<PeerIdx> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerIdx, &Slot)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(i, s)| Some((PeerIdx(i as u16), s.as_ref()?)))
    }

    /// Adds a peer; `None` when all 65,535 places are taken.
    pub(crate) fn add(
        &mut self,
        peer: Peer,
        config: Arc<PeerConfig>,
        dynamic: bool,
    ) -> Option<PeerIdx> {
        let key = config.key;
        let slot = Slot {
            peer,
            config,
            dynamic,
            state: State::Idle,
            conns: Vec::new(),
            established: None,
            member: None,
            deadline: None,
            fault_log: Default::default(),
            outline: None,
        };
        let idx = match self.free.pop_front() {
            Some(idx) => {
                self.slots[usize::from(idx.0)] = Some(slot);
                idx
            }
            None => {
                // The last number is the RIB's own, for what we originate.
                let idx = u16::try_from(self.slots.len())
                    .ok()
                    .filter(|i| *i < u16::MAX)?;
                let idx = PeerIdx(idx);
                self.slots.push(Some(slot));
                idx
            }
        };
        self.by_key.insert(key, idx);
        Some(idx)
    }

    /// Takes a peer out.
    pub(crate) fn remove(&mut self, idx: PeerIdx) -> Option<Slot> {
        let slot = self.slots.get_mut(usize::from(idx.0))?.take()?;
        self.by_key.remove(&slot.config.key);
        self.free.push_back(idx);
        Some(slot)
    }
}

/// The key of a neighbour by the address that it comes from.
pub(crate) fn key_of(addr: IpAddr, interface: Option<IfIndex>) -> PeerKey {
    let addr = addr.to_canonical();
    PeerKey {
        addr,
        scope: interface.filter(|_| is_link_local(addr)),
    }
}

/// Whether the address means nothing without an interface.
pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// The settings of a neighbour that comes from `key` and is not configured by address: those of the longest range.
pub(crate) fn from_range(config: &SpeakerConfig, key: PeerKey) -> Option<Arc<PeerConfig>> {
    let range = config
        .ranges
        .iter()
        .filter(|r| r.prefix.contains(key.addr))
        .max_by_key(|r| r.prefix.len())?;
    Some(Arc::new(PeerConfig {
        key,
        passive: true,
        ..(*range.template).clone()
    }))
}
