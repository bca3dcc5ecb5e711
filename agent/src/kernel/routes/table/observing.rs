//! What the kernel showed, by reading or by notification, taken over.

use std::collections::{HashMap, HashSet};

use selvage_bgp_core::prefix::Prefix;

use super::{Have, Route, RouteTable};
use crate::kernel::{
    BLACKHOLE_METRIC,
    routes::fib::{Found, RouteKey, Via},
};

impl RouteTable {
    /// Takes over what was read. Everything that differs from what it should be is dirty then.
    pub(super) fn observe(&mut self, found: Found) {
        if self.objects {
            let gone = self.groups.observe(found.nexthops);
            self.repairs += self.forget_groups(&gone);
        }
        let mut there: HashMap<Prefix, Have> = HashMap::with_capacity(found.routes.len());
        self.have_blackholes.clear();
        for (key, via) in found.routes {
            if key.metric == BLACKHOLE_METRIC && via == Some(Via::Blackhole) {
                self.have_blackholes.insert(key.prefix);
            } else if key.metric == self.policy.metric {
                let have = match via {
                    Some(Via::Group(group)) if self.objects => Have::Group(group),
                    _ => Have::Other,
                };
                there.insert(key.prefix, have);
            }
        }
        let known: Vec<(Prefix, Have)> = self
            .routes
            .iter()
            .map(|(prefix, route)| (*prefix, route.have))
            .collect();
        for (prefix, before) in known {
            let mut have = there.remove(&prefix).unwrap_or_default();
            if !self.objects && have == Have::Other && matches!(before, Have::Group(_)) {
                have = before; // Hops in the route are not compared: only we write them.
            }
            if have != before {
                self.set_have(prefix, have);
                self.repairs += 1;
                self.touch(prefix);
            }
        }
        for (prefix, have) in there {
            self.routes.entry(prefix).or_default();
            self.set_have(prefix, have);
            if self.swept.contains(prefix.family()) {
                self.touch(prefix);
            }
        }
    }

    /// The kernel removed these groups, and with them their routes. Returns how many of those are
    /// still wanted.
    pub(super) fn forget_groups(&mut self, gone: &[u32]) -> u64 {
        let gone: HashSet<u32> = gone
            .iter()
            .copied()
            .filter(|group| self.held.contains_key(group))
            .collect();
        if gone.is_empty() {
            return 0;
        }
        let of_gone = |route: &Route| matches!(route.have, Have::Group(g) if gone.contains(&g));
        let lost: Vec<Prefix> = self
            .routes
            .iter()
            .filter(|(_, route)| of_gone(route))
            .map(|(prefix, _)| *prefix)
            .collect();
        let mut missed = 0;
        for prefix in lost {
            self.set_have(prefix, Have::Nothing);
            let route = self.routes.get(&prefix);
            if route.is_some_and(|route| self.target(route).is_some()) {
                missed += 1;
                self.touch(prefix);
            } else if route.is_some_and(|route| route.want.is_none()) {
                self.settle(prefix);
            }
        }
        missed
    }

    pub(super) fn foreign_hand(&mut self, key: RouteKey, have: Have) {
        if key.metric == BLACKHOLE_METRIC {
            if self.have_blackholes.remove(&key.prefix) {
                self.repairs += 1;
                // A replacement stands in the way of a new one: it has to be read.
                if have != Have::Nothing {
                    self.in_doubt();
                }
            }
            return;
        }
        let Some(route) = self.routes.get(&key.prefix) else {
            if have != Have::Nothing && key.metric == self.policy.metric {
                self.in_doubt();
            }
            return;
        };
        if key.metric == self.policy.metric && route.have != have {
            self.repairs += 1;
            self.set_have(key.prefix, have);
            self.touch(key.prefix);
        }
    }
}
