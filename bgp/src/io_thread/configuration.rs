//! Neighbours and listeners that come, change and go.

use std::{collections::HashMap, sync::Arc};

use mio::{Interest, Token};
use selvage_bgp_core::{
    clock::Now,
    config::{PeerConfig, SpeakerConfig},
    ids::{Family, PeerIdx, PeerKey},
    rib::RibInput,
    session::{Input, Peer, Stop},
};

use super::{ConfigureError, IoThread, Listener};
use crate::{listener, peers, rib_thread::RibWork};

impl IoThread {
    pub(super) fn add_peer(&mut self, config: Arc<PeerConfig>, dynamic: bool) -> Option<PeerIdx> {
        let now = self.clock.now();
        self.seed = self
            .seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        // Nobody keeps our routes for longer than that.
        let restart_time = self.config.graceful_restart.restart_time;
        let restarting = self.restarting && now < Now(0) + restart_time;
        let peer = Peer::new(
            self.config.clone(),
            config.clone(),
            self.seed,
            restarting,
            self.epochs.clone(),
        );
        let idx = self.peers.add(peer, config.clone(), dynamic)?;
        self.to_rib
            .push(RibWork::Input(RibInput::Peer(idx, config)));
        self.handle(idx, Input::Start, &mut None);
        Some(idx)
    }

    pub(super) fn remove_peer(&mut self, idx: PeerIdx) {
        self.leave_group(idx);
        let Some(slot) = self.peers.remove(idx) else {
            return;
        };
        self.changed
            .note_gone(self.clock.now(), idx, slot.config.key);
        if let Some(at) = slot.deadline {
            self.timers.remove(&(at, idx));
        }
        for (_, token) in &slot.conns {
            self.drop_conn(*token);
        }
        // The place may be another peer's at once.
        self.connects.retain(|(peer, _)| *peer != idx);
        self.to_rib.push(RibWork::Input(RibInput::PeerGone(idx)));
    }

    pub(super) fn configure(&mut self, config: Arc<SpeakerConfig>) -> Vec<ConfigureError> {
        let mut errors = Vec::new();
        let old = std::mem::replace(&mut self.config, config.clone());
        self.to_rib
            .push(RibWork::Input(RibInput::Configure(config.clone())));
        self.listen(&config, &mut errors);
        let wanted: HashMap<PeerKey, &Arc<PeerConfig>> =
            config.peers.iter().map(|p| (p.key, p)).collect();
        let present: Vec<PeerIdx> = self.peers.iter().map(|(idx, _)| idx).collect();
        for idx in present {
            let Some(slot) = self.peers.get_mut(idx) else {
                continue;
            };
            let key = slot.config.key;
            let new = match wanted.get(&key) {
                Some(new) => {
                    slot.dynamic = false;
                    Some((*new).clone())
                }
                None => {
                    // A neighbour that was configured by address and is not any more goes, even where a range would take it.
                    Some(slot.dynamic)
                        .filter(|d| *d)
                        .and_then(|_| peers::from_range(&config, key))
                }
            };
            match new {
                None => {
                    self.handle(idx, Input::Stop(Stop::Removed), &mut None);
                    self.remove_peer(idx);
                }
                Some(new) => {
                    let changed = new != slot.config;
                    slot.config = new.clone();
                    if changed {
                        self.to_rib
                            .push(RibWork::Input(RibInput::Peer(idx, new.clone())));
                    }
                    if changed || old != config {
                        // Which families it carries, and why not others, depends on both.
                        self.changed.note(self.clock.now(), idx, changed);
                        self.handle(idx, Input::Configure(config.clone(), new), &mut None);
                    }
                }
            }
        }
        for peer in &config.peers {
            if self.peers.find(&peer.key).is_none() && self.add_peer(peer.clone(), false).is_none()
            {
                errors.push(ConfigureError::Full(peer.key));
            }
        }
        self.try_former_clients();
        errors
    }

    /// Whoever came by a range before our restart may not know that we are back: one attempt to connect.
    fn try_former_clients(&mut self) {
        for key in std::mem::take(&mut self.before) {
            if self.peers.find(&key).is_some() {
                continue;
            }
            if let Some(config) = peers::from_range(&self.config, key)
                && let Some(idx) = self.add_peer(config, true)
            {
                self.handle(idx, Input::ConnectOnce, &mut None);
            }
        }
    }

    pub(super) fn listen(&mut self, config: &SpeakerConfig, errors: &mut Vec<ConfigureError>) {
        self.listeners.retain_mut(|l| {
            let keep = config.listen.contains(&l.addr);
            if !keep {
                // The descriptor closes with it.
                let _ = self.poll.registry().deregister(&mut l.socket);
            }
            keep
        });
        for &addr in &config.listen {
            if self.listeners.iter().any(|l| l.addr == addr) {
                continue;
            }
            match listener::listen(addr) {
                Ok(socket) => self.listeners.push(Listener {
                    addr,
                    socket,
                    keys: Vec::new(),
                    ready: true,
                }),
                Err(error) => errors.push(ConfigureError::Listen { addr, error }),
            }
        }
        for (i, l) in self.listeners.iter_mut().enumerate() {
            let family = Family::of(&l.addr.ip());
            let mut keys = listener::keys(config, family);
            for (peers, error) in listener::set_keys(&l.socket, &l.keys, &keys) {
                // What was refused is tried again next time, and reported again.
                keys.retain(|(prefix, _)| *prefix != peers);
                errors.push(ConfigureError::Key { peers, error });
            }
            l.keys = keys;
            let registry = self.poll.registry();
            // Registered before, under another number perhaps.
            let _ = registry.deregister(&mut l.socket);
            if let Err(error) = registry.register(&mut l.socket, Token(i + 1), Interest::READABLE) {
                errors.push(ConfigureError::Listen {
                    addr: l.addr,
                    error,
                });
            }
            l.ready = true;
        }
    }
}
