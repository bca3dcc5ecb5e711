//! The routes that the RIB wants in the kernel, those that are there, and the way from one to the other.
//!
//! Always holds:
//! - A route points at a group, never at a single nexthop, so that a change of next hops is one
//!   message however many routes there are.
//! - What is added comes before what is removed, in one list of writes.
//! - What the kernel had at the start is adopted. What nobody asked for goes only after the RIB
//!   said that the family is synced.
//! - A route of the same prefix, table and metric that is not of our protocol is not touched:
//!   ours is reported as failing.
//!
//! No socket and no clock here: a [`Fib`] carries out the writes, and the time is told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use rustix::io::Errno;
use selvage_bgp_core::{
    clock::Now,
    ids::{Family, FamilySet},
    prefix::Prefix,
    rib::{RouteChange, RouteOrigin},
    wire::attr::NextHop,
};
use selvage_netlink::{Error, Failure, Refusal};

use super::{
    FailedRoute, RouteEvent, RouteFacts, Unresolved,
    fib::{Fib, Found, RouteKey, Via, Write},
    groups::Groups,
};
use crate::kernel::{
    BLACKHOLE_METRIC, RoutePolicy,
    nexthops::{Hop, Underlay},
};

/// How often one commit reads back and tries again.
const ROUNDS: usize = 3;
/// The time until what failed is tried again: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));
/// From so many routes on a group is deleted with all of them at once.
const BULK: u32 = 64;
/// So many failing routes are named in the facts.
const NAMED: usize = 32;

/// The route writer's state: one owner, the thread `routes`.
#[derive(Debug)]
pub struct RouteTable {
    policy: RoutePolicy,
    /// Whether the kernel has nexthop objects.
    objects: bool,
    underlay: Underlay,
    routes: HashMap<Prefix, Route>,
    dirty: Vec<Prefix>,
    /// Installed routes, per family.
    installed: [usize; 2],
    /// How many routes point at each group in the kernel.
    held: HashMap<u32, u32>,
    sets: Vec<Option<Set>>,
    free_sets: Vec<u32>,
    set_of: HashMap<Arc<[NextHop]>, u32>,
    /// Sets that lost their last route and are given up at the next commit, unless used again.
    idle: Vec<u32>,
    /// Sets that became usable or unusable: their routes have to be looked at.
    flipped: HashSet<u32>,
    unresolved: BTreeSet<u32>,
    next_hops: BTreeMap<NextHop, Known>,
    groups: Groups,
    blackholes: Option<BTreeSet<Prefix>>,
    have_blackholes: BTreeSet<Prefix>,
    /// Routes under a table or metric that is no longer ours.
    leaving: Vec<RouteKey>,
    synced: FamilySet,
    watched: BTreeMap<IpAddr, Option<u32>>,
    reading: Reading,
    failing: BTreeMap<Prefix, String>,
    retry_at: Option<Now>,
    retry_after: Duration,
    events: Vec<RouteEvent>,
    /// Families of which [`RouteEvent::InSync`] was told.
    told: FamilySet,
    writes: u64,
    readings: u64,
    repairs: u64,
}

#[derive(Debug, Default)]
struct Route {
    want: Option<u32>,
    have: Have,
    dirty: bool,
}

/// What the kernel has for a prefix under our key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Have {
    #[default]
    Nothing,
    Group(u32),
    /// A route of our protocol that leads elsewhere.
    Other,
}

#[derive(Debug)]
struct Set {
    next_hops: Arc<[NextHop]>,
    /// Routes that want it.
    uses: u32,
    /// Resolved and counted in `groups`, sorted.
    hops: Vec<Hop>,
    /// Its group; `None` until there is something to put in it.
    group: Option<u32>,
}

/// A next hop of at least one set.
#[derive(Debug)]
struct Known {
    sets: u32,
    hops: Vec<Hop>,
}

/// What has to be read before the next write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reading {
    Nothing,
    Nexthops,
    Everything,
}

impl RouteTable {
    /// Reads what the kernel has of ours and adopts it. `objects`: whether the kernel has nexthop
    /// objects; without them routes carry their hops themselves.
    pub fn start(
        policy: RoutePolicy,
        underlay: Underlay,
        objects: bool,
        fib: &mut impl Fib,
    ) -> Result<Self, Error> {
        let found = fib.read(policy.table)?;
        let mut table = RouteTable {
            policy,
            objects,
            underlay,
            routes: HashMap::new(),
            dirty: Vec::new(),
            installed: [0; 2],
            held: HashMap::new(),
            sets: Vec::new(),
            free_sets: Vec::new(),
            set_of: HashMap::new(),
            idle: Vec::new(),
            flipped: HashSet::new(),
            unresolved: BTreeSet::new(),
            next_hops: BTreeMap::new(),
            groups: Groups::default(),
            blackholes: None,
            have_blackholes: BTreeSet::new(),
            leaving: Vec::new(),
            synced: FamilySet::NONE,
            watched: BTreeMap::new(),
            reading: Reading::Nothing,
            failing: BTreeMap::new(),
            retry_at: None,
            retry_after: RETRY.0,
            events: Vec::new(),
            told: FamilySet::NONE,
            writes: 0,
            readings: 1,
            repairs: 0,
        };
        table.observe(found);
        Ok(table)
    }

    /// Best paths changed. Only the last change of a prefix counts; nothing is written yet.
    pub fn change(&mut self, changes: &[RouteChange]) {
        // Equal sets come as one value, mostly one after the other.
        let mut last: Option<(&Arc<[NextHop]>, u32)> = None;
        for change in changes {
            let learned = change
                .set
                .as_ref()
                .filter(|set| set.origin != RouteOrigin::Local && !set.next_hops.is_empty());
            let want = learned.and_then(|set| match last {
                Some((hops, idx)) if Arc::ptr_eq(hops, &set.next_hops) => Some(idx),
                _ => {
                    let idx = self.set_for(&set.next_hops)?;
                    last = Some((&set.next_hops, idx));
                    Some(idx)
                }
            });
            self.want(change.prefix, want);
        }
    }

    /// The RIB has said all it knows of a family: what is left over from before goes.
    pub fn synced(&mut self, family: Family) {
        self.synced.insert(family);
        self.touch_where(|prefix, route| {
            prefix.family() == family && route.want.is_none() && route.have != Have::Nothing
        });
    }

    /// Our announced prefixes, all of them: each gets a blackhole under it.
    pub fn blackholes(&mut self, prefixes: impl IntoIterator<Item = Prefix>) {
        self.blackholes = Some(prefixes.into_iter().collect());
    }

    /// Other settings. Routes move to another table or metric: added there, then removed here.
    pub fn set_policy(&mut self, policy: RoutePolicy) {
        let before = std::mem::replace(&mut self.policy, policy);
        if policy == before {
            return;
        }
        if (policy.table, policy.metric) != (before.table, before.metric) {
            self.leave(before);
        }
        if policy.ecmp_width != before.ecmp_width {
            self.resolve_sets();
        }
        self.touch_where(|_, route| route.want.is_some());
    }

    /// Report how this next hop is reached, now and whenever it changes.
    pub fn watch(&mut self, next_hop: IpAddr) {
        let metric = self.underlay.resolve_addr(next_hop).reachable();
        self.watched.insert(next_hop, metric);
        self.events
            .push(RouteEvent::Reachability { next_hop, metric });
    }

    /// No longer.
    pub fn unwatch(&mut self, next_hop: IpAddr) {
        self.watched.remove(&next_hop);
    }

    /// The kernel's routing without us, to be updated by notifications; tell
    /// [`underlay_changed`](Self::underlay_changed) afterwards.
    pub fn underlay(&mut self) -> &mut Underlay {
        &mut self.underlay
    }

    /// Resolves all next hops again.
    pub fn underlay_changed(&mut self) {
        self.report_watched();
        let mended = self.groups.mend();
        let moved = self.resolve_next_hops();
        if moved || mended {
            self.resolve_sets();
            self.retry_failing();
        }
    }

    /// A link changed, or a nexthop object of ours was changed by others: the kernel may have
    /// removed objects, groups and their routes without saying so.
    pub fn nexthops_touched(&mut self) {
        self.reading = self.reading.max(Reading::Nexthops);
    }

    /// Whether any of our objects leads over the link.
    pub fn uses_link(&self, link: u32) -> bool {
        self.groups.uses_link(link)
    }

    /// Notifications were lost, or anything else is in doubt: read everything before the next write.
    pub fn in_doubt(&mut self) {
        self.reading = Reading::Everything;
    }

    /// Somebody else, or the kernel, removed a route of ours.
    pub fn route_lost(&mut self, key: RouteKey) {
        self.foreign_hand(key, Have::Nothing);
    }

    /// Somebody else replaced a route of ours by one of our protocol.
    pub fn route_replaced(&mut self, key: RouteKey) {
        self.foreign_hand(key, Have::Other);
    }

    /// A route of somebody else under our table and metric is gone: ours may have room now.
    pub fn room_made(&mut self, prefix: Prefix) {
        if self.failing.remove(&prefix).is_some() {
            self.touch(prefix);
        }
    }

    /// Whether a route with this key is ours to keep.
    pub fn owns(&self, key: RouteKey) -> bool {
        key.table == self.policy.table
            && (key.metric == self.policy.metric || key.metric == BLACKHOLE_METRIC)
    }

    /// When [`commit`](Self::commit) wants to be called though nothing happened.
    pub fn deadline(&self) -> Option<Now> {
        self.retry_at
    }

    /// What happened, in order.
    pub fn take_events(&mut self) -> Vec<RouteEvent> {
        std::mem::take(&mut self.events)
    }

    /// Writes the difference. What the kernel refuses is read back and repaired, a bounded number
    /// of times; what is still refused then is tried again later and told in the facts.
    pub fn commit(&mut self, fib: &mut impl Fib, now: Now) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry();
        }
        let mut refused = BTreeMap::new();
        let mut broken = None;
        for _ in 0..ROUNDS {
            refused.clear();
            broken = self.round(fib, &mut refused).err();
            if broken.is_none() && refused.is_empty() {
                break;
            }
        }
        match broken {
            Some(error) => {
                tracing::warn!(%error, "routes: the kernel could not be told");
                self.schedule(now);
            }
            None => self.tell_synced(),
        }
        self.give_up(refused, now);
    }

    fn tell_synced(&mut self) {
        for family in self
            .synced
            .iter()
            .filter(|family| !self.told.contains(*family))
        {
            self.events.push(RouteEvent::InSync(family));
        }
        self.told = self.synced;
    }

    /// Counts and what is wrong, as of the last commit.
    pub fn facts(&self) -> RouteFacts {
        let mut unresolved: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for idx in &self.unresolved {
            let Some(Some(set)) = self.sets.get(*idx as usize) else {
                continue;
            };
            for next_hop in set.next_hops.iter() {
                *unresolved.entry(next_hop.global).or_default() += set.uses;
            }
        }
        let (groups, hops) = self.groups.counts();
        RouteFacts {
            installed: self.installed,
            blackholes: self.have_blackholes.len(),
            groups,
            hops,
            unresolved: unresolved
                .into_iter()
                .map(|(next_hop, routes)| Unresolved { next_hop, routes })
                .collect(),
            failing: self.failing.len(),
            failed: self
                .failing
                .iter()
                .take(NAMED)
                .map(|(prefix, reason)| FailedRoute {
                    prefix: *prefix,
                    reason: reason.clone(),
                })
                .collect(),
            synced: self.synced,
            writes: self.writes,
            readings: self.readings,
            repairs: self.repairs,
        }
    }

    /// The prefixes that the kernel has by our hand, in no particular order.
    pub fn installed(&self) -> impl Iterator<Item = Prefix> {
        self.routes
            .iter()
            .filter(|(_, route)| route.have != Have::Nothing)
            .map(|(prefix, _)| *prefix)
    }

    // What is wanted.

    fn want(&mut self, prefix: Prefix, want: Option<u32>) {
        let route = match want {
            Some(_) => self.routes.entry(prefix).or_default(),
            None => match self.routes.get_mut(&prefix) {
                Some(route) => route,
                None => return,
            },
        };
        let before = std::mem::replace(&mut route.want, want);
        if !route.dirty {
            route.dirty = true;
            self.dirty.push(prefix);
        }
        if before == want {
            return;
        }
        if let Some(Some(set)) = want.and_then(|idx| self.sets.get_mut(idx as usize)) {
            set.uses += 1;
        }
        if let Some(idx) = before {
            self.release_set(idx);
        }
        if !self.failing.is_empty() {
            self.failing.remove(&prefix);
        }
    }

    fn release_set(&mut self, idx: u32) {
        if let Some(Some(set)) = self.sets.get_mut(idx as usize) {
            set.uses -= 1;
            if set.uses == 0 {
                self.idle.push(idx);
            }
        }
    }

    /// The set of these next hops, made if it is new.
    fn set_for(&mut self, next_hops: &Arc<[NextHop]>) -> Option<u32> {
        if let Some(idx) = self.set_of.get(next_hops) {
            return Some(*idx);
        }
        for next_hop in next_hops.iter() {
            let known = self.next_hops.entry(*next_hop).or_insert_with(|| Known {
                sets: 0,
                hops: self.underlay.resolve(next_hop).hops,
            });
            known.sets += 1;
        }
        let set = Some(Set {
            next_hops: Arc::clone(next_hops),
            uses: 0,
            hops: Vec::new(),
            group: None,
        });
        let idx = match self.free_sets.pop() {
            Some(idx) => idx,
            None => {
                self.sets.push(None);
                u32::try_from(self.sets.len() - 1).ok()?
            }
        };
        *self.sets.get_mut(idx as usize)? = set;
        self.set_of.insert(Arc::clone(next_hops), idx);
        self.resolve_set(idx);
        // Looked at again in the commit: it may get no route after all.
        self.idle.push(idx);
        Some(idx)
    }

    fn retire_idle_sets(&mut self) {
        for idx in std::mem::take(&mut self.idle) {
            let Some(slot) = self.sets.get_mut(idx as usize) else {
                continue;
            };
            let Some(set) = slot.take_if(|set| set.uses == 0) else {
                continue;
            };
            self.free_sets.push(idx);
            self.flipped.remove(&idx);
            self.unresolved.remove(&idx);
            self.set_of.remove(&set.next_hops);
            if let Some(group) = set.group {
                self.groups.set_group(group, Vec::new());
            }
            for hop in set.hops {
                self.groups.release_hop(hop);
            }
            for next_hop in set.next_hops.iter() {
                if let Some(known) = self.next_hops.get_mut(next_hop) {
                    known.sets -= 1;
                    if known.sets == 0 {
                        self.next_hops.remove(next_hop);
                    }
                }
            }
        }
    }

    // Resolution.

    fn report_watched(&mut self) {
        for (next_hop, reported) in &mut self.watched {
            let metric = self.underlay.resolve_addr(*next_hop).reachable();
            if *reported != metric {
                *reported = metric;
                let next_hop = *next_hop;
                self.events
                    .push(RouteEvent::Reachability { next_hop, metric });
            }
        }
    }

    /// Resolves every next hop again; returns whether any moved. Where everything that went over
    /// one hop now goes over another, the object itself is pointed there and groups stay as they are.
    fn resolve_next_hops(&mut self) -> bool {
        let mut moved = Vec::new();
        let mut used = HashSet::new();
        for (next_hop, known) in &mut self.next_hops {
            let hops = self.underlay.resolve(next_hop).hops;
            used.extend(hops.iter().copied());
            if hops != known.hops {
                let before = std::mem::replace(&mut known.hops, hops);
                moved.push((before, known.hops.clone()));
            }
        }
        let mut renamed = HashMap::new();
        for (before, after) in &moved {
            let ([from], [to]) = (before.as_slice(), after.as_slice()) else {
                continue;
            };
            if !used.contains(from) && self.groups.repoint_hop(*from, *to) {
                renamed.insert(*from, *to);
            }
        }
        if !renamed.is_empty() {
            let hops = self.sets.iter_mut().flatten().flat_map(|set| &mut set.hops);
            for hop in hops {
                *hop = renamed.get(hop).copied().unwrap_or(*hop);
            }
        }
        !moved.is_empty()
    }

    fn resolve_sets(&mut self) {
        for idx in 0..self.sets.len() {
            self.resolve_set(idx as u32);
        }
    }

    fn resolve_set(&mut self, idx: u32) {
        let width = self.policy.ecmp_width.max(1);
        let Some(Some(set)) = self.sets.get_mut(idx as usize) else {
            return;
        };
        let mut hops: Vec<Hop> = set
            .next_hops
            .iter()
            .take(width)
            .filter_map(|next_hop| self.next_hops.get(next_hop))
            .flat_map(|known| known.hops.iter().copied())
            .collect();
        hops.sort_unstable();
        hops.dedup();
        hops.truncate(width);
        hops.retain(|hop| self.groups.take_hop(*hop).is_some());
        let before = std::mem::replace(&mut set.hops, hops);
        for hop in before {
            self.groups.release_hop(hop);
        }
        self.update_group(idx);
    }

    /// Puts the usable hops of a set into its group.
    fn update_group(&mut self, idx: u32) {
        let Some(Some(set)) = self.sets.get_mut(idx as usize) else {
            return;
        };
        let usable = set
            .hops
            .iter()
            .filter_map(|hop| self.groups.usable_id(*hop));
        let members: Vec<u32> = usable.collect();
        let before = set.group;
        if members.is_empty() {
            // The id is given back: it must not come to mean another set's group.
            if let Some(group) = set.group.take() {
                self.groups.set_group(group, members);
            }
            self.unresolved.insert(idx);
        } else {
            if set.group.is_none() {
                set.group = self.groups.take_group(&members);
            }
            let changed = set
                .group
                .is_some_and(|group| self.groups.set_group(group, members));
            self.unresolved.remove(&idx);
            if changed && !self.objects {
                self.flipped.insert(idx);
            }
        }
        if set.group != before {
            self.flipped.insert(idx);
        }
    }

    /// One look at all routes for the sets that flipped since the last commit.
    fn touch_flipped(&mut self) {
        if self.flipped.is_empty() {
            return;
        }
        let flipped = std::mem::take(&mut self.flipped);
        let in_place = !self.objects;
        let mut touched = Vec::new();
        for (prefix, route) in &mut self.routes {
            if !route.want.is_some_and(|want| flipped.contains(&want)) {
                continue;
            }
            if in_place && route.have != Have::Nothing {
                touched.push(*prefix);
            }
            if !route.dirty {
                route.dirty = true;
                self.dirty.push(*prefix);
            }
        }
        for prefix in touched {
            self.set_have(prefix, Have::Other);
        }
    }

    // Writing.

    /// Reads if it must, then writes everything that differs. Refused routes go to `refused`.
    fn round(
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
    fn plan_again(&mut self, writes: Vec<Write>) {
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

    fn read(&mut self, fib: &mut impl Fib) -> Result<(), Error> {
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
    fn plan(&mut self) -> (Vec<Write>, HashSet<u32>) {
        let complete = self.synced == FamilySet::ALL;
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
    fn leaving_whole(&self) -> HashSet<u32> {
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

    fn plan_route(&mut self, prefix: Prefix, bulk: &HashSet<u32>, writes: &mut Vec<Write>) {
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

    fn plan_blackholes(&self, writes: &mut Vec<Write>) {
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
    fn target(&self, route: &Route) -> Option<u32> {
        let idx = route.want.filter(|_| self.policy.accept)?;
        let group = self.sets.get(idx as usize)?.as_ref()?.group?;
        self.groups.wants(group).then_some(group)
    }

    fn via(&self, route: &Route, group: u32) -> Via {
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

    fn key(&self, prefix: Prefix) -> RouteKey {
        RouteKey {
            prefix,
            table: self.policy.table,
            metric: self.policy.metric,
        }
    }

    fn acknowledge(
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

    fn written(&mut self, key: RouteKey, via: &Via) {
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

    fn dropped(&mut self, key: RouteKey) {
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
    fn settle(&mut self, prefix: Prefix) {
        if let Some(route) = self.routes.get_mut(&prefix) {
            route.dirty = false;
            if route.want.is_none() && route.have == Have::Nothing {
                self.routes.remove(&prefix);
            }
        }
    }

    /// A refused route is planned again in the next round.
    fn requeue(&mut self, key: RouteKey) {
        if key.metric != BLACKHOLE_METRIC && self.routes.contains_key(&key.prefix) {
            self.dirty.push(key.prefix);
        }
    }

    fn set_have(&mut self, prefix: Prefix, have: Have) {
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

    // What the kernel showed.

    /// Takes over what was read. Everything that differs from what it should be is dirty then.
    fn observe(&mut self, found: Found) {
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
            if self.synced.contains(prefix.family()) {
                self.touch(prefix);
            }
        }
    }

    /// The kernel removed these groups, and with them their routes. Returns how many of those are
    /// still wanted.
    fn forget_groups(&mut self, gone: &[u32]) -> u64 {
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

    fn foreign_hand(&mut self, key: RouteKey, have: Have) {
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

    // Trying again.

    fn give_up(&mut self, refused: BTreeMap<Prefix, String>, now: Now) {
        for (prefix, reason) in refused {
            if self.failing.get(&prefix) != Some(&reason) {
                tracing::warn!(%prefix, %reason, "routes: not installed");
            }
            self.failing.insert(prefix, reason);
        }
        if !self.failing.is_empty() {
            // They wait for the retry, not for the next change of another route.
            let failing = &self.failing;
            self.dirty.retain(|prefix| !failing.contains_key(prefix));
            for prefix in self.failing.keys() {
                if let Some(route) = self.routes.get_mut(prefix) {
                    route.dirty = false;
                }
            }
        }
        match self.failing.is_empty()
            && !self.groups.any_broken()
            && self.reading == Reading::Nothing
        {
            true => {
                self.retry_at = None;
                self.retry_after = RETRY.0;
            }
            false => self.schedule(now),
        }
    }

    fn schedule(&mut self, now: Now) {
        if self.retry_at.is_none() {
            self.retry_at = Some(now + self.retry_after);
            self.retry_after = (self.retry_after * 2).min(RETRY.1);
        }
    }

    fn retry(&mut self) {
        self.retry_at = None;
        if self.groups.mend() {
            self.resolve_sets();
        }
        self.retry_failing();
    }

    fn retry_failing(&mut self) {
        for prefix in std::mem::take(&mut self.failing).into_keys() {
            self.touch(prefix);
        }
    }

    fn touch(&mut self, prefix: Prefix) {
        if let Some(route) = self.routes.get_mut(&prefix)
            && !route.dirty
        {
            route.dirty = true;
            self.dirty.push(prefix);
        }
    }

    fn touch_where(&mut self, which: impl Fn(&Prefix, &Route) -> bool) {
        for (prefix, route) in &mut self.routes {
            if !route.dirty && which(prefix, route) {
                route.dirty = true;
                self.dirty.push(*prefix);
            }
        }
    }

    /// All that is in the kernel under the old table and metric goes, once the new is there.
    fn leave(&mut self, before: RoutePolicy) {
        let installed: Vec<Prefix> = self.installed().collect();
        for prefix in installed {
            self.leaving.push(RouteKey {
                prefix,
                table: before.table,
                metric: before.metric,
            });
            self.set_have(prefix, Have::Nothing);
            self.touch(prefix);
        }
        if before.table != self.policy.table {
            for prefix in std::mem::take(&mut self.have_blackholes) {
                self.leaving.push(RouteKey {
                    prefix,
                    table: before.table,
                    metric: BLACKHOLE_METRIC,
                });
            }
        }
        self.in_doubt();
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
