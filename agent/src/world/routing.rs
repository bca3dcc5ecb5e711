//! BGP and routes: what the speaker and the route writer are told, and what they tell.

use selvage_bgp::{
    PeerChange,
    core::{ids::PeerIdx, rib::PeerCounts},
};
use tracing::warn;

use super::{CONFIGURE_AGAIN, World};
use crate::{
    bgp::Bgp,
    desired,
    kernel::routes::{RouteEvent, RouteFacts, RouteWork},
    store::{Dirty, Observed, RouteCounts},
};

impl World {
    pub(super) fn configure(&mut self) {
        if self.setup.features.bgp {
            let speaker = desired::bgp(&self.store, &self.setup.local);
            let same = self
                .speaker
                .as_ref()
                .is_some_and(|s| s.config == speaker.config);
            if !same && let Some(bgp) = &mut self.out.bgp {
                self.configure_at = None;
                bgp.configure(&speaker.config);
            }
            for condition in speaker.conditions.iter().filter(|c| c.is_bad()) {
                if self
                    .speaker
                    .as_ref()
                    .is_none_or(|s| !s.conditions.contains(condition))
                {
                    warn!(kind = %condition.kind, object = %condition.key, condition = condition.name, "{}", condition.message);
                }
            }
            self.speaker = Some(speaker);
        }
        let policy = desired::routes(&self.store, &self.setup.local);
        if self.route_policy != Some(policy) {
            self.route_policy = Some(policy);
            self.tell_routes(RouteWork::Policy(policy));
        }
        let blackholes = desired::blackholes(&self.store, &self.setup.local);
        if self.blackholes.as_ref() != Some(&blackholes) {
            self.blackholes = Some(blackholes.clone());
            self.tell_routes(RouteWork::Blackholes(blackholes));
        }
    }

    /// Tells the speaker the same once more, if the operating system has refused a part of it some time ago.
    pub(super) fn configure_again(&mut self) {
        if self.configure_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.configure_at = None;
        if let (Some(bgp), Some(speaker)) = (&mut self.out.bgp, &self.speaker) {
            bgp.configure(&speaker.config);
        }
    }

    /// What the operating system refused of the speaker's configuration: an address that somebody else listens on may be
    /// free later.
    pub(super) fn configured(&mut self, refused: &[String]) -> Dirty {
        if refused.is_empty() {
            return self.store.observe(Observed::NotLacking("bgp"));
        }
        self.configure_at = Some(self.now + CONFIGURE_AGAIN);
        let text = refused.join("; ");
        let known = self.store.lacking().any(|(_, what)| what == text);
        if known {
            return Dirty::default();
        }
        warn!("{text}");
        self.store.observe(Observed::Lacking("bgp", text))
    }

    pub(super) fn peers_changed(&mut self, changes: Vec<PeerChange>) -> Dirty {
        let Some(clock) = self.out.bgp.as_ref().and_then(Bgp::clock) else {
            return Dirty::default();
        };
        let observed = self.neighbours.changed(clock, changes);
        self.observe_peers(observed)
    }

    pub(super) fn peers_counted(&mut self, counts: Vec<(PeerIdx, PeerCounts)>) -> Dirty {
        let observed = self.neighbours.counted(counts);
        self.observe_peers(observed)
    }

    /// Only what others are told of a neighbour counts as a change: numbers and attempts to connect do not.
    fn observe_peers(&mut self, all: Vec<Observed>) -> Dirty {
        let mut dirty = Dirty::default();
        for observed in all {
            let told = match &observed {
                Observed::Peer(state) => {
                    let before = self.store.session(&state.address);
                    before.is_none_or(|before| {
                        (before.is_up(), before.asn, before.families)
                            != (state.is_up(), state.asn, state.families)
                            || before.unused_families != state.unused_families
                    })
                }
                Observed::UnknownSources(_) => false,
                _ => true,
            };
            self.store.observe(observed);
            dirty.views |= told;
        }
        dirty
    }

    pub(super) fn tell_routes(&self, work: RouteWork) {
        if let Some(routes) = &self.out.routes {
            routes.send(work);
        }
    }

    pub(super) fn route_event(&mut self, event: RouteEvent) -> Dirty {
        match event {
            // The RIB is told by the route writer itself.
            RouteEvent::Reachability { .. } => Dirty::default(),
            RouteEvent::InSync(family) => {
                self.synced.insert(family);
                Dirty::default()
            }
            RouteEvent::Facts(facts) => self.store.observe(Observed::Routes(counts(&facts))),
        }
    }
}

fn counts(facts: &RouteFacts) -> RouteCounts {
    RouteCounts {
        ipv4: facts.installed[0] as u64,
        ipv6: facts.installed[1] as u64,
        unresolved: facts.unresolved.iter().map(|u| u64::from(u.routes)).sum(),
        failed: facts.failing as u64,
    }
}
