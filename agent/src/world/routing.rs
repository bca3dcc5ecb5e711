//! BGP and routes: what the speaker and the route writer are told, and what they tell.

use tracing::warn;

use super::World;
use crate::{
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
                let refused = bgp.configure(&speaker.config);
                let observed = match refused.as_slice() {
                    [] => Observed::NotLacking("bgp"),
                    some => Observed::Lacking("bgp", some.join("; ")),
                };
                for error in &refused {
                    warn!("{error}");
                }
                self.store.observe(observed);
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

    pub(super) fn tell_routes(&self, work: RouteWork) {
        if let Some(routes) = &self.out.routes {
            routes.send(work);
        }
    }

    pub(super) fn route_event(&mut self, event: RouteEvent) -> Dirty {
        match event {
            RouteEvent::Reachability { next_hop, metric } => {
                if let Some(bgp) = &self.out.bgp {
                    bgp.reachability(next_hop, metric);
                }
                Dirty::default()
            }
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
