//! Questions of people and programs, answered from what is known.

use super::World;
use crate::{
    api::{Refusal, StatusView},
    control::{
        Query,
        views::{self, PolicyProgress},
    },
    kernel::sysctl,
    store::Observed,
};

impl World {
    pub(super) fn answer(&mut self, query: Query) {
        // Whoever asked may be gone; that is no error.
        match query {
            Query::Status(reply) => {
                self.look_at_peers();
                let _ = reply.send(Ok(self.status()));
            }
            Query::Peers(question, reply) => {
                self.look_at_peers();
                let _ = reply.send(views::peers(&self.store, self.speaker.as_ref(), &question));
            }
            Query::Routes(question, reply) => {
                let page = match &self.out.bgp {
                    Some(bgp) => bgp.routes(&question),
                    None => Err(Refusal::hinted(
                        "this agent runs without BGP",
                        "it was left out of --features",
                    )),
                };
                let _ = reply.send(page);
            }
            Query::Why(question, reply) => {
                let answer = if self.setup.features.policy {
                    views::why(&self.compiler, &question, &self.store, &self.obstacles())
                } else {
                    Err(Refusal::hinted(
                        "this agent enforces no policy",
                        "it was left out of --features",
                    ))
                };
                let _ = reply.send(answer);
            }
            Query::Objects(reply) => {
                let _ = reply.send(Ok(views::conditions(self.speaker.as_ref())));
            }
            Query::Wait(what, reply) => {
                let mark = self.waits.add(what, reply);
                (self.out.reach)(mark);
            }
        }
    }

    pub(super) fn status(&mut self) -> StatusView {
        self.verify_sysctls();
        let waiting: Vec<String> = self
            .store
            .attachments()
            .map(|(_, a)| a.host_if.clone())
            .collect();
        let waiting = match self.setup.features.policy {
            true => waiting
                .iter()
                .filter(|host_if| self.is_enforced(host_if).is_none())
                .count(),
            false => 0,
        };
        let planned = self.compiler.generation().0;
        let features = self.setup.features.names();
        let ready = self.ready_view();
        let obstacles = self.obstacles();
        views::status(&views::World {
            store: &self.store,
            node: &self.setup.local.node,
            features: &features,
            from: &self.setup.from,
            started: self.setup.started,
            speaker: self.speaker.as_ref(),
            kernel: self.setup.features.kernel,
            policy: self
                .setup
                .features
                .policy
                .then_some(PolicyProgress { planned, waiting }),
            ready: &ready,
            obstacles: &obstacles,
        })
    }

    /// Somebody may have set those that were wrong. The kernel does not say so.
    fn verify_sysctls(&mut self) {
        if self.store.sysctls().is_empty() {
            return;
        }
        // Where they cannot be read, the ones that were found stay.
        if let Ok(wrong) = sysctl::verify(self.setup.features)
            && wrong != self.store.sysctls()
        {
            self.store.observe(Observed::Sysctls(wrong));
            self.publish_soon();
        }
    }

    pub(super) fn look_at_peers(&mut self) {
        let Some(bgp) = &self.out.bgp else { return };
        let peers = bgp.peers();
        let gone: Vec<_> = self
            .store
            .sessions()
            .map(|s| s.address)
            .filter(|a| !peers.iter().any(|p| p.address == *a))
            .collect();
        for address in gone {
            self.store.observe(Observed::PeerGone(address));
        }
        let unknown = bgp.unknown_sources();
        for peer in peers {
            self.store.observe(Observed::Peer(Box::new(peer)));
        }
        self.store.observe(Observed::UnknownSources(unknown));
    }
}
