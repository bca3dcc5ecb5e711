//! The routes that the RIB wants in the kernel, those that are there, and the way from one to the other.
//!
//! Always holds:
//! - A route points at a group, never at a single nexthop, so that a change of next hops is one
//!   message however many routes there are.
//! - What is added comes before what is removed, in one list of writes.
//! - What the kernel had at the start is adopted. What nobody asked for goes only after the RIB
//!   said that the family is synced, and a while after that ([`Settings::leftovers`](super::thread::Settings::leftovers)).
//! - A route of the same prefix, table and metric that is not of our protocol is not touched:
//!   ours is reported as failing.
//!
//! No socket and no clock here: a [`Fib`] carries out the writes, and the time is told.

mod observing;
mod retrying;
mod sets;
mod writing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use selvage_bgp_core::{
    clock::Now,
    ids::{Family, FamilySet},
    prefix::Prefix,
    rib::{RouteChange, RouteOrigin},
    wire::attr::NextHop,
};
use selvage_netlink::Error;

use super::{
    FailedRoute, RouteEvent, RouteFacts, Unresolved,
    fib::{Fib, RouteKey},
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
    /// Families of which nothing is left over from before.
    swept: FamilySet,
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
            swept: FamilySet::NONE,
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

    /// The RIB has said all it knows of a family; it is told when that is in the kernel.
    pub fn synced(&mut self, family: Family) {
        self.synced.insert(family);
    }

    /// What is left over from before goes. Comes after [`synced`](Self::synced).
    pub fn sweep(&mut self, family: Family) {
        self.swept.insert(family);
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

    /// Whether a nexthop id is that of an object of ours.
    pub fn knows_nexthop(&self, id: u32) -> bool {
        self.groups.knows(id)
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
