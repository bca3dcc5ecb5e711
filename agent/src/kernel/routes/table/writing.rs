//! From what differs to messages, and from the answers back to what there is.

use std::collections::{BTreeMap, HashMap, HashSet};

use rustix::io::Errno;
use selvage_bgp_core::{ids::FamilySet, prefix::Prefix};
use selvage_netlink::{Error, Failure, Refusal};

use super::{BULK, Have, Reading, Route, RouteTable};
use crate::kernel::{
    BLACKHOLE_METRIC,
    routes::fib::{Fib, RouteKey, Via, Write},
};

impl RouteTable {
    /// Reads if it must, then writes everything that differs. Refused routes go to `refused`.
    pub(super) fn round(
        &mut self,
        fib: &mut impl Fib,
        refused: &mut BTreeMap<Prefix, String>,
    ) -> Result<(), Error> {
        self.read(fib)?;
        self.retire_idle_sets();
        self.touch_flipped();
        let (writes, bulk) = self.plan();
        if writes.is_empty() {
            return Ok(());
        }
        self.writes += writes.len() as u64;
        match fib.write(&writes) {
            Ok(failures) => self.acknowledge(writes, failures, &bulk, refused),
            Err(error) => {
                self.plan_again(writes);
                return Err(error);
            }
        }
        self.groups.prune();
        Ok(())
    }

    /// What was planned and perhaps not done is planned again after a reading.
    pub(super) fn plan_again(&mut self, writes: Vec<Write>) {
        self.in_doubt();
        let dirty = self.routes.iter().filter(|(_, route)| route.dirty);
        self.dirty = dirty.map(|(prefix, _)| *prefix).collect();
        for write in writes {
            if let Write::DropRoute(key) = write
                && !self.owns(key)
            {
                self.leaving.push(key);
            }
        }
    }

    pub(super) fn read(&mut self, fib: &mut impl Fib) -> Result<(), Error> {
        match std::mem::replace(&mut self.reading, Reading::Nothing) {
            Reading::Nothing => Ok(()),
            Reading::Nexthops => {
                let found = fib.read_nexthops().inspect_err(|_| self.in_doubt())?;
                self.readings += 1;
                let gone = self.groups.observe(found);
                self.repairs += self.forget_groups(&gone);
                Ok(())
            }
            Reading::Everything => {
                let found = fib
                    .read(self.policy.table)
                    .inspect_err(|_| self.in_doubt())?;
                self.readings += 1;
                self.observe(found);
                Ok(())
            }
        }
    }

    /// Everything that differs, in the order in which the kernel accepts it; and the groups that
    /// are deleted with all their routes.
    pub(super) fn plan(&mut self) -> (Vec<Write>, HashSet<u32>) {
        let complete = self.swept == FamilySet::ALL;
        let mut writes: Vec<Write> = Vec::new();
        if self.objects {
            writes.extend(self.groups.puts());
        }
        let bulk = if complete {
            self.leaving_whole()
        } else {
            HashSet::new()
        };
        self.plan_blackholes(&mut writes);
        let dirty = std::mem::take(&mut self.dirty);
        for at in scattered(dirty.len()) {
            let Some(prefix) = dirty.get(at) else {
                continue;
            };
            self.plan_route(*prefix, &bulk, &mut writes);
        }
        let leaving = std::mem::take(&mut self.leaving);
        writes.extend(leaving.into_iter().map(Write::DropRoute));
        if complete && self.objects {
            writes.extend(self.groups.drops().map(Write::DropNexthop));
        }
        (writes, bulk)
    }

    /// Groups that are to be deleted and whose every route is: deleting the group is enough.
    pub(super) fn leaving_whole(&self) -> HashSet<u32> {
        if !self.objects {
            return HashSet::new();
        }
        let mut leaving: HashMap<u32, u32> = HashMap::new();
        for route in self
            .dirty
            .iter()
            .filter_map(|prefix| self.routes.get(prefix))
        {
            if let Have::Group(group) = route.have
                && self.target(route).is_none()
            {
                *leaving.entry(group).or_default() += 1;
            }
        }
        leaving
            .into_iter()
            .filter(|(group, count)| {
                *count >= BULK && self.held.get(group) == Some(count) && !self.groups.wants(*group)
            })
            .map(|(group, _)| group)
            .collect()
    }

    pub(super) fn plan_route(
        &mut self,
        prefix: Prefix,
        bulk: &HashSet<u32>,
        writes: &mut Vec<Write>,
    ) {
        let Some(route) = self.routes.get(&prefix) else {
            return;
        };
        let key = self.key(prefix);
        let write = match (self.target(route), route.have) {
            (Some(group), Have::Group(have)) if group == have => None,
            (Some(group), Have::Nothing) => Some(Write::AddRoute(key, self.via(route, group))),
            (Some(group), _) => Some(Write::ReplaceRoute(key, self.via(route, group))),
            (None, Have::Nothing) => None,
            (None, Have::Group(group)) if bulk.contains(&group) => return,
            (None, _) => Some(Write::DropRoute(key)),
        };
        match write {
            Some(write) => writes.push(write),
            None => self.settle(prefix),
        }
    }

    pub(super) fn plan_blackholes(&self, writes: &mut Vec<Write>) {
        let Some(wanted) = &self.blackholes else {
            return;
        };
        let key = |prefix: &Prefix| RouteKey {
            prefix: *prefix,
            table: self.policy.table,
            metric: BLACKHOLE_METRIC,
        };
        for prefix in wanted.difference(&self.have_blackholes) {
            if !self.failing.contains_key(prefix) {
                writes.push(Write::AddRoute(key(prefix), Via::Blackhole));
            }
        }
        for prefix in self.have_blackholes.difference(wanted) {
            if self.synced.contains(prefix.family()) {
                writes.push(Write::DropRoute(key(prefix)));
            }
        }
    }

    /// The group that a route shall point at.
    pub(super) fn target(&self, route: &Route) -> Option<u32> {
        let idx = route.want.filter(|_| self.policy.accept)?;
        let group = self.sets.get(idx as usize)?.as_ref()?.group?;
        self.groups.wants(group).then_some(group)
    }

    pub(super) fn via(&self, route: &Route, group: u32) -> Via {
        if self.objects {
            return Via::Group(group);
        }
        let set = route
            .want
            .and_then(|idx| self.sets.get(idx as usize)?.as_ref());
        Via::Hops(
            set.map(|set| set.hops.as_slice().into())
                .unwrap_or_default(),
        )
    }

    pub(super) fn key(&self, prefix: Prefix) -> RouteKey {
        RouteKey {
            prefix,
            table: self.policy.table,
            metric: self.policy.metric,
        }
    }

    pub(super) fn acknowledge(
        &mut self,
        writes: Vec<Write>,
        failures: Vec<Failure>,
        bulk: &HashSet<u32>,
        refused: &mut BTreeMap<Prefix, String>,
    ) {
        let mut failures = failures.into_iter().peekable();
        let mut emptied = Vec::new();
        let mut broken = false;
        for (index, write) in writes.into_iter().enumerate() {
            let failure = failures.next_if(|failure| failure.index == index);
            match (write, failure.map(|failure| failure.refusal)) {
                (Write::PutNexthop(id, nexthop), None) => self.groups.acknowledge_put(id, &nexthop),
                (Write::PutNexthop(id, _), Some(refusal)) => {
                    tracing::warn!(id, %refusal, "routes: nexthop refused");
                    broken |= self.groups.mark_broken(id);
                    self.in_doubt();
                }
                (Write::DropNexthop(id), refusal) => {
                    self.groups.acknowledge_drop(id);
                    if self.held.contains_key(&id) || bulk.contains(&id) {
                        emptied.push(id);
                    }
                    if refusal.is_some_and(|r| r.errno != Errno::NOENT.raw_os_error()) {
                        self.in_doubt();
                    }
                }
                (Write::AddRoute(key, via) | Write::ReplaceRoute(key, via), None) => {
                    self.written(key, &via);
                }
                (Write::AddRoute(key, _) | Write::ReplaceRoute(key, _), Some(refusal)) => {
                    refused.insert(key.prefix, reason(&refusal));
                    self.requeue(key);
                    self.in_doubt();
                }
                (Write::DropRoute(key), refusal) => {
                    let gone = |r: Refusal| r.errno != Errno::SRCH.raw_os_error();
                    if refusal.is_some_and(gone) {
                        self.in_doubt();
                    }
                    self.dropped(key);
                }
            }
        }
        self.forget_groups(&emptied);
        if broken {
            self.resolve_sets();
        }
    }

    pub(super) fn written(&mut self, key: RouteKey, via: &Via) {
        if *via == Via::Blackhole {
            self.have_blackholes.insert(key.prefix);
            self.failing.remove(&key.prefix);
            return;
        }
        let group = match via {
            Via::Group(group) => Some(*group),
            _ => self
                .routes
                .get(&key.prefix)
                .and_then(|route| self.target(route)),
        };
        self.set_have(key.prefix, group.map_or(Have::Other, Have::Group));
        self.failing.remove(&key.prefix);
        self.settle(key.prefix);
    }

    pub(super) fn dropped(&mut self, key: RouteKey) {
        if key.table != self.policy.table {
            return;
        }
        if key.metric == BLACKHOLE_METRIC {
            self.have_blackholes.remove(&key.prefix);
        } else if key.metric == self.policy.metric {
            self.set_have(key.prefix, Have::Nothing);
            self.settle(key.prefix);
        }
    }

    /// The route is as it should be; a prefix that nobody wants and that is not there is forgotten.
    pub(super) fn settle(&mut self, prefix: Prefix) {
        if let Some(route) = self.routes.get_mut(&prefix) {
            route.dirty = false;
            if route.want.is_none() && route.have == Have::Nothing {
                self.routes.remove(&prefix);
            }
        }
    }

    /// A refused route is planned again in the next round.
    pub(super) fn requeue(&mut self, key: RouteKey) {
        if key.metric != BLACKHOLE_METRIC && self.routes.contains_key(&key.prefix) {
            self.dirty.push(key.prefix);
        }
    }

    pub(super) fn set_have(&mut self, prefix: Prefix, have: Have) {
        let Some(route) = self.routes.get_mut(&prefix) else {
            return;
        };
        let before = std::mem::replace(&mut route.have, have);
        let installed = &mut self.installed[prefix.family().index()];
        *installed += usize::from(have != Have::Nothing);
        *installed -= usize::from(before != Have::Nothing);
        if let Have::Group(group) = have {
            *self.held.entry(group).or_default() += 1;
        }
        if let Have::Group(group) = before
            && let Some(count) = self.held.get_mut(&group)
        {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&group);
            }
        }
    }
}

/// What a person can do something with.
fn reason(refusal: &Refusal) -> String {
    if refusal.errno == Errno::EXIST.raw_os_error() {
        return "another program has a route with this prefix, table and metric".into();
    }
    refusal.to_string()
}

/// The positions 0..n in an order without neighbours: the kernel's trie rebuilds the same nodes
/// over and over when prefixes come sorted, which costs half of the time.
fn scattered(n: usize) -> impl Iterator<Item = usize> {
    const STEP: usize = 48_271; // a prime
    let step = if n.is_multiple_of(STEP) { 1 } else { STEP };
    (0..n).map(move |i| (i * step) % n)
}
