//! The table against a model of the kernel that refuses what the kernel refuses, and forgets what
//! the kernel forgets.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use selvage_bgp_core::rib::RouteSet;

use super::{
    fib::{FIRST_GROUP_ID, Found, Nexthop, Nexthops, RouteKey, Via, Write},
    *,
};
use crate::kernel::{
    BLACKHOLE_METRIC, RoutePolicy,
    nexthops::{Hop, Target, Underlay, UnderlayRoute},
};
use fib::Fib;
use rustix::io::Errno;
use selvage_bgp_core::{
    clock::Now,
    ids::Family,
    prefix::Prefix,
    rib::{RouteChange, RouteOrigin},
    wire::attr::NextHop,
};
use selvage_netlink::{Error, Failure, Refusal};
use std::{net::IpAddr, sync::Arc};

/// The kernel, as far as the route writer sees it.
#[derive(Default)]
struct Model {
    nexthops: BTreeMap<u32, Nexthop>,
    routes: BTreeMap<RouteKey, Via>,
    /// Keys that somebody else has.
    foreign: BTreeSet<RouteKey>,
    /// Links without carrier.
    dead: BTreeSet<u32>,
    written: Vec<Write>,
    /// The next write is lost with its answers.
    overrun: bool,
}

impl Model {
    fn one(&mut self, write: &Write) -> Result<(), Errno> {
        match write {
            Write::PutNexthop(id, nexthop) => {
                if let Some(before) = self.nexthops.get(id)
                    && matches!(before, Nexthop::Hop(_)) != matches!(nexthop, Nexthop::Hop(_))
                {
                    return Err(Errno::INVAL);
                }
                match nexthop {
                    Nexthop::Hop(hop) if self.dead.contains(&hop.link) => {
                        return Err(Errno::NETDOWN);
                    }
                    Nexthop::Group(ids) if ids.is_empty() => return Err(Errno::INVAL),
                    Nexthop::Group(ids) if ids.iter().any(|i| !self.nexthops.contains_key(i)) => {
                        return Err(Errno::INVAL);
                    }
                    _ => {}
                }
                self.nexthops.insert(*id, nexthop.clone());
            }
            Write::DropNexthop(id) => {
                self.nexthops.get(id).ok_or(Errno::NOENT)?;
                self.remove(*id);
            }
            Write::AddRoute(key, via) => {
                if self.foreign.contains(key) || self.routes.contains_key(key) {
                    return Err(Errno::EXIST);
                }
                self.leads(via)?;
                self.routes.insert(*key, via.clone());
            }
            Write::ReplaceRoute(key, via) => {
                self.leads(via)?;
                assert!(
                    !self.foreign.contains(key),
                    "{key:?} of somebody else replaced"
                );
                self.routes.insert(*key, via.clone());
            }
            Write::DropRoute(key) => {
                self.routes.remove(key).ok_or(Errno::SRCH)?;
            }
        }
        Ok(())
    }

    fn leads(&self, via: &Via) -> Result<(), Errno> {
        match via {
            Via::Group(id) if !self.nexthops.contains_key(id) => Err(Errno::INVAL),
            _ => Ok(()),
        }
    }

    /// An object goes: it leaves its groups, emptied groups go, and routes with them.
    fn remove(&mut self, id: u32) {
        self.nexthops.remove(&id);
        self.routes.retain(|_, via| *via != Via::Group(id));
        let mut emptied = Vec::new();
        for (group, nexthop) in &mut self.nexthops {
            if let Nexthop::Group(ids) = nexthop {
                ids.retain(|member| *member != id);
                if ids.is_empty() {
                    emptied.push(*group);
                }
            }
        }
        emptied.into_iter().for_each(|group| self.remove(group));
    }

    fn carrier(&mut self, link: u32, there: bool) {
        if there {
            self.dead.remove(&link);
            return;
        }
        self.dead.insert(link);
        let over = |n: &Nexthop| matches!(n, Nexthop::Hop(hop) if hop.link == link);
        let ids: Vec<u32> = self
            .nexthops
            .iter()
            .filter(|(_, n)| over(n))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().for_each(|id| self.remove(id));
    }

    /// What each learned route leads over.
    fn forwarding(&self) -> BTreeMap<Prefix, Vec<Hop>> {
        let hop = |id: &u32| match self.nexthops.get(id) {
            Some(Nexthop::Hop(hop)) => *hop,
            other => panic!("a group of {other:?}"),
        };
        self.routes
            .iter()
            .filter(|(key, _)| key.metric != BLACKHOLE_METRIC)
            .map(|(key, via)| {
                let Via::Group(id) = via else {
                    panic!("{via:?}")
                };
                let Some(Nexthop::Group(ids)) = self.nexthops.get(id) else {
                    panic!("{id:x} is no group")
                };
                let mut hops: Vec<Hop> = ids.iter().map(hop).collect();
                hops.sort();
                (key.prefix, hops)
            })
            .collect()
    }
}

impl Fib for Model {
    fn write(&mut self, writes: &[Write]) -> Result<Vec<Failure>, Error> {
        let mut failures = Vec::new();
        for (index, write) in writes.iter().enumerate() {
            if self.overrun && index == writes.len() / 2 {
                self.overrun = false;
                return Err(Error::Overrun);
            }
            self.written.push(write.clone());
            if let Err(errno) = self.one(write) {
                let refusal = Refusal {
                    errno: errno.raw_os_error(),
                    message: None,
                    offset: None,
                };
                failures.push(Failure { index, refusal });
            }
        }
        Ok(failures)
    }

    fn read(&mut self, table: u32) -> Result<Found, Error> {
        let nexthops = self.read_nexthops()?;
        let of_table = self.routes.iter().filter(|(key, _)| key.table == table);
        Ok(Found {
            nexthops,
            routes: of_table
                .map(|(key, via)| (*key, Some(via.clone())))
                .collect(),
        })
    }

    fn read_nexthops(&mut self) -> Result<Nexthops, Error> {
        let ours = self
            .nexthops
            .iter()
            .map(|(id, n)| (*id, n.clone()))
            .collect();
        Ok(Nexthops {
            ours,
            taken: vec![],
        })
    }
}

const LINKS: u32 = 4;

/// Link n (1 to 4) has 10.0.n.0/24.
fn underlay() -> Underlay {
    let mut u = Underlay::default();
    for n in 1..=LINKS {
        u.set_link(n, true, true);
        u.add_route(on_link(n), false);
    }
    u
}

fn on_link(n: u32) -> UnderlayRoute {
    UnderlayRoute {
        prefix: format!("10.0.{n}.0/24").parse().unwrap(),
        metric: 0,
        target: Target::Hops(vec![Hop {
            link: n,
            gateway: None,
        }]),
    }
}

fn behind(prefix: &str, link: u32, gateway: &str) -> UnderlayRoute {
    UnderlayRoute {
        prefix: prefix.parse().unwrap(),
        metric: 10,
        target: Target::Hops(vec![hop(link, gateway)]),
    }
}

fn hop(link: u32, gateway: &str) -> Hop {
    Hop {
        link,
        gateway: Some(gateway.parse().unwrap()),
    }
}

fn p(s: &str) -> Prefix {
    s.parse().unwrap()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn set(next_hops: &[&str]) -> Option<RouteSet> {
    Some(RouteSet {
        origin: RouteOrigin::Ibgp,
        next_hops: next_hops
            .iter()
            .map(|s| NextHop::from(ip(s)))
            .collect::<Vec<_>>()
            .into(),
    })
}

fn change(prefix: &str, next_hops: &[&str]) -> RouteChange {
    RouteChange {
        prefix: p(prefix),
        set: if next_hops.is_empty() {
            None
        } else {
            set(next_hops)
        },
    }
}

fn start(model: &mut Model) -> RouteTable {
    RouteTable::start(RoutePolicy::default(), underlay(), true, model).unwrap()
}

fn synced(table: &mut RouteTable) {
    for family in Family::ALL {
        table.synced(family);
        table.sweep(family);
    }
}

fn commit(table: &mut RouteTable, model: &mut Model) -> Vec<Write> {
    table.commit(model, Now(0));
    std::mem::take(&mut model.written)
}

fn key(prefix: &str) -> RouteKey {
    RouteKey {
        prefix: p(prefix),
        table: 254,
        metric: 1085,
    }
}

#[test]
fn equal_sets_share_a_group_and_only_the_last_change_counts() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    table.change(&[
        change("10.1.0.0/16", &["10.0.1.9"]),
        change("10.2.0.0/16", &["10.0.1.9", "10.0.2.9"]),
        change("10.3.0.0/16", &["10.0.1.9", "10.0.2.9"]),
    ]);
    table.change(&[change("10.1.0.0/16", &["10.0.1.9", "10.0.2.9"])]);
    let written = commit(&mut table, &mut model);
    // Two hops, one group, three routes; the set of one was never used.
    assert_eq!(written.len(), 6, "{written:?}");
    let both = vec![hop(1, "10.0.1.9"), hop(2, "10.0.2.9")];
    assert!(model.forwarding().values().all(|hops| *hops == both));
    assert!(commit(&mut table, &mut model).is_empty());
    assert_eq!(table.facts().installed, [3, 0]);
}

#[test]
fn a_changed_gateway_is_one_message() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    table
        .underlay()
        .add_route(behind("10.9.0.0/16", 1, "10.0.1.1"), false);
    let many: Vec<RouteChange> = (0..200)
        .map(|i| change(&format!("10.100.{i}.0/24"), &["10.9.0.1"]))
        .collect();
    table.change(&many);
    synced(&mut table);
    commit(&mut table, &mut model);
    table
        .underlay()
        .add_route(behind("10.9.0.0/16", 2, "10.0.2.1"), true);
    table.underlay_changed();
    let written = commit(&mut table, &mut model);
    let [Write::PutNexthop(_, Nexthop::Hop(to))] = written.as_slice() else {
        panic!("{written:?}")
    };
    assert_eq!(*to, hop(2, "10.0.2.1"));
    assert_eq!(model.forwarding().len(), 200);
    // And all of them leave with their group.
    let gone: Vec<RouteChange> = many
        .iter()
        .map(|c| RouteChange {
            prefix: c.prefix,
            set: None,
        })
        .collect();
    table.change(&gone);
    let written = commit(&mut table, &mut model);
    assert!(
        written.iter().all(|w| matches!(w, Write::DropNexthop(_))),
        "{written:?}"
    );
    assert!(model.routes.is_empty() && model.nexthops.is_empty());
    assert_eq!(table.facts().installed, [0, 0]);
}

#[test]
fn a_restart_writes_nothing_and_stale_routes_wait_for_synced() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    let changes = [
        change("10.1.0.0/16", &["10.0.1.9"]),
        change("10.2.0.0/16", &["10.0.1.9", "10.0.2.9"]),
        change("fd01::/32", &["10.0.2.9"]),
    ];
    table.change(&changes);
    table.blackholes([p("10.244.0.0/24")]);
    synced(&mut table);
    commit(&mut table, &mut model);
    let before = model.forwarding();

    let mut again = start(&mut model);
    assert!(commit(&mut again, &mut model).is_empty());
    again.change(&changes[..2]);
    again.blackholes([p("10.244.0.0/24")]);
    assert!(commit(&mut again, &mut model).is_empty());
    assert_eq!(model.forwarding(), before);
    again.synced(Family::Ipv4);
    again.sweep(Family::Ipv4);
    assert!(commit(&mut again, &mut model).is_empty());
    again.synced(Family::Ipv6);
    assert!(
        commit(&mut again, &mut model).is_empty(),
        "an End-of-RIB may come too early"
    );
    again.sweep(Family::Ipv6);
    let written = commit(&mut again, &mut model);
    assert!(matches!(written[0], Write::DropRoute(k) if k.prefix == p("fd01::/32")));
    assert_eq!(model.forwarding().len(), 2);
    assert_eq!(model.nexthops.len(), 4, "two hops, two groups");
    assert!(
        again
            .take_events()
            .contains(&RouteEvent::InSync(Family::Ipv6))
    );
}

#[test]
fn carrier_loss_and_return() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    table.change(&[
        change("10.1.0.0/16", &["10.0.1.9"]),
        change("10.2.0.0/16", &["10.0.1.9", "10.0.2.9"]),
    ]);
    synced(&mut table);
    commit(&mut table, &mut model);
    let before = model.forwarding();

    model.carrier(1, false);
    assert!(table.uses_link(1));
    table.underlay().set_link(1, true, false);
    table.nexthops_touched();
    table.underlay_changed();
    commit(&mut table, &mut model);
    assert_eq!(
        model.forwarding(),
        BTreeMap::from([(p("10.2.0.0/16"), vec![hop(2, "10.0.2.9")])])
    );
    let facts = table.facts();
    assert_eq!(facts.unresolved.len(), 1);
    assert_eq!(facts.installed, [1, 0]);

    model.carrier(1, true);
    table.underlay().set_link(1, true, true);
    table.underlay_changed();
    commit(&mut table, &mut model);
    assert_eq!(model.forwarding(), before);

    // So quick that only the return is seen.
    model.carrier(1, false);
    model.carrier(1, true);
    table.nexthops_touched();
    commit(&mut table, &mut model);
    assert_eq!(model.forwarding(), before);
}

#[test]
fn a_hop_that_the_kernel_refuses_is_left_out_and_tried_again() {
    let mut model = Model::default();
    // The kernel knows of a dead link what we have not been told.
    model.dead.insert(1);
    let mut table = start(&mut model);
    table.change(&[
        change("10.1.0.0/16", &["10.0.1.9", "10.0.2.9"]),
        change("10.2.0.0/16", &["10.0.1.9"]),
    ]);
    synced(&mut table);
    commit(&mut table, &mut model);
    let alone = BTreeMap::from([(p("10.1.0.0/16"), vec![hop(2, "10.0.2.9")])]);
    assert_eq!(model.forwarding(), alone);
    assert_eq!(table.facts().unresolved[0].next_hop, ip("10.0.1.9"));
    let at = table.deadline().expect("it is tried again");
    table.commit(&mut model, at);
    assert_eq!(model.forwarding(), alone);
    let later = table.deadline().expect("and again, later");
    assert!(later.since(at) > at.since(Now(0)));
    model.dead.clear();
    table.commit(&mut model, later);
    assert_eq!(model.forwarding().len(), 2);
    assert_eq!(model.forwarding()[&p("10.1.0.0/16")].len(), 2);
    assert_eq!(table.deadline(), None);
}

#[test]
fn a_route_of_somebody_else_is_left_alone_and_reported() {
    let mut model = Model::default();
    model.foreign.insert(key("10.1.0.0/16"));
    let mut table = start(&mut model);
    table.change(&[
        change("10.1.0.0/16", &["10.0.1.9"]),
        change("10.2.0.0/16", &["10.0.1.9"]),
    ]);
    commit(&mut table, &mut model);
    assert_eq!(model.forwarding().len(), 1);
    let facts = table.facts();
    assert_eq!(
        (facts.failing, facts.failed[0].prefix),
        (1, p("10.1.0.0/16"))
    );
    let at = table.deadline().expect("it is tried again");
    // Other changes do not try it again; its time does.
    table.change(&[change("10.3.0.0/16", &["10.0.1.9"])]);
    let written = commit(&mut table, &mut model);
    assert!(
        written
            .iter()
            .all(|w| !matches!(w, Write::AddRoute(k, _) if *k == key("10.1.0.0/16")))
    );
    model.foreign.clear();
    table.commit(&mut model, at);
    assert_eq!(model.forwarding().len(), 3);
    assert_eq!((table.facts().failing, table.deadline()), (0, None));
}

#[test]
fn a_foreign_hand_is_repaired() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    table.change(&[change("10.1.0.0/16", &["10.0.1.9"])]);
    table.blackholes([p("10.244.0.0/24")]);
    synced(&mut table);
    commit(&mut table, &mut model);
    let (before, forwarding) = (model.routes.clone(), model.forwarding());
    for lost in before.keys() {
        model.routes.remove(lost);
        table.route_lost(*lost);
        commit(&mut table, &mut model);
        assert_eq!(model.routes, before);
    }
    model.routes.insert(key("10.1.0.0/16"), Via::Blackhole);
    table.route_replaced(key("10.1.0.0/16"));
    commit(&mut table, &mut model);
    assert_eq!(model.routes, before);
    model.remove(FIRST_GROUP_ID);
    table.nexthops_touched();
    commit(&mut table, &mut model);
    assert_eq!(model.forwarding(), forwarding);
    assert_eq!(table.facts().repairs, 4);
}

#[test]
fn a_new_metric_is_added_before_the_old_is_removed() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    table.change(&[change("10.1.0.0/16", &["10.0.1.9"])]);
    synced(&mut table);
    commit(&mut table, &mut model);
    table.set_policy(RoutePolicy {
        metric: 50,
        ..RoutePolicy::default()
    });
    let written = commit(&mut table, &mut model);
    assert!(
        matches!(written.as_slice(), [Write::AddRoute(new, _), Write::DropRoute(old)]
            if new.metric == 50 && old.metric == 1085),
        "{written:?}"
    );
    table.set_policy(RoutePolicy {
        metric: 50,
        accept: false,
        ..RoutePolicy::default()
    });
    commit(&mut table, &mut model);
    assert!(model.routes.is_empty());
}

#[test]
fn ecmp_width_bounds_the_hops() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    table.change(&[change("10.1.0.0/16", &["10.0.1.9", "10.0.2.9", "10.0.3.9"])]);
    commit(&mut table, &mut model);
    assert_eq!(model.forwarding()[&p("10.1.0.0/16")].len(), 3);
    table.set_policy(RoutePolicy {
        ecmp_width: 2,
        ..RoutePolicy::default()
    });
    commit(&mut table, &mut model);
    assert_eq!(model.forwarding()[&p("10.1.0.0/16")].len(), 2);
}

#[test]
fn watched_next_hops_are_reported_at_changes_only() {
    let mut model = Model::default();
    let mut table = start(&mut model);
    let told = |table: &mut RouteTable| {
        table
            .take_events()
            .into_iter()
            .filter_map(|event| match event {
                RouteEvent::Reachability { metric, .. } => Some(metric),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    table.watch(ip("10.0.1.9"));
    assert_eq!(told(&mut table), [Some(0)]);
    table.underlay_changed();
    assert_eq!(told(&mut table), []);
    table.underlay().set_link(1, true, false);
    table.underlay_changed();
    assert_eq!(told(&mut table), [None]);
    table.unwatch(ip("10.0.1.9"));
    table.underlay().set_link(1, true, true);
    table.underlay_changed();
    assert_eq!(told(&mut table), []);
}

#[test]
fn without_nexthop_objects_routes_carry_their_hops() {
    let mut model = Model::default();
    let mut table =
        RouteTable::start(RoutePolicy::default(), underlay(), false, &mut model).unwrap();
    table.change(&[change("10.1.0.0/16", &["10.0.1.9", "10.0.2.9"])]);
    synced(&mut table);
    commit(&mut table, &mut model);
    let via = |model: &Model| model.routes[&key("10.1.0.0/16")].clone();
    let both = [hop(1, "10.0.1.9"), hop(2, "10.0.2.9")];
    assert_eq!(via(&model), Via::Hops(Arc::from(both)));
    table.underlay().set_link(2, true, false);
    table.underlay_changed();
    commit(&mut table, &mut model);
    assert_eq!(via(&model), Via::Hops(Arc::from([both[0]])));
    table.change(&[change("10.1.0.0/16", &[])]);
    commit(&mut table, &mut model);
    assert!(model.routes.is_empty() && model.nexthops.is_empty());
}

/// One random step.
#[derive(Clone, Debug)]
enum Step {
    Change(u8, Vec<u8>),
    Carrier(u32, bool),
    /// Somebody moves the way to 10.9.0.0/16.
    Gateway(u32),
    Overrun,
    /// The kernel loses a route and says so.
    Lose(u8),
    /// An object is removed by somebody.
    Remove(u8),
    Commit,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, prop::collection::vec(0..6u8, 0..4)).prop_map(|(p, h)| Step::Change(p, h)),
        2 => (1..=LINKS, any::<bool>()).prop_map(|(l, up)| Step::Carrier(l, up)),
        1 => (1..=LINKS).prop_map(Step::Gateway),
        1 => Just(Step::Overrun),
        1 => (0..12u8).prop_map(Step::Lose),
        1 => any::<u8>().prop_map(Step::Remove),
        3 => Just(Step::Commit),
        1 => Just(Step::Restart),
    ]
}

/// Next hops 0 to 3 are on links 1 to 4, 4 and 5 are behind the gateway.
fn nth_hop(n: u8) -> String {
    match n {
        0..=3 => format!("10.0.{}.9", n + 1),
        n => format!("10.9.0.{n}"),
    }
}

fn nth_prefix(n: u8) -> String {
    format!("10.{}.0.0/16", 100 + n)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever the way there: after a commit the kernel forwards as the last changes say, over
    /// the links that have carrier, and holds nothing else.
    #[test]
    fn the_kernel_follows(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model::default();
        let mut table = start(&mut model);
        table.underlay().add_route(behind("10.9.0.0/16", 1, "10.0.1.1"), false);
        synced(&mut table);
        let mut wanted: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let (mut dead, mut gateway) = (BTreeSet::new(), 1);
        for step in steps.into_iter().chain([Step::Commit]) {
            match step {
                Step::Change(n, mut hops) => {
                    hops.sort();
                    hops.dedup();
                    let names: Vec<String> = hops.iter().map(|h| nth_hop(*h)).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    table.change(&[change(&nth_prefix(n), &names)]);
                    wanted.insert(n, hops);
                }
                Step::Carrier(link, there) => {
                    model.carrier(link, there);
                    if there { dead.remove(&link); } else { dead.insert(link); }
                    if table.uses_link(link) { table.nexthops_touched(); }
                    table.underlay().set_link(link, true, there);
                    table.underlay_changed();
                }
                Step::Gateway(link) => {
                    gateway = link;
                    table.underlay().add_route(behind("10.9.0.0/16", link, &format!("10.0.{link}.1")), true);
                    table.underlay_changed();
                }
                Step::Overrun => model.overrun = true,
                Step::Lose(n) => {
                    let key = key(&nth_prefix(n));
                    if model.routes.remove(&key).is_some() { table.route_lost(key); }
                }
                Step::Remove(n) => {
                    let nth = model.nexthops.keys().nth(usize::from(n) % model.nexthops.len().max(1)).copied();
                    if let Some(id) = nth {
                        model.remove(id);
                        table.nexthops_touched();
                    }
                }
                Step::Restart => {
                    let mut fresh = start(&mut model);
                    for link in &dead { fresh.underlay().set_link(*link, true, false); }
                    fresh.underlay().add_route(behind("10.9.0.0/16", gateway, &format!("10.0.{gateway}.1")), true);
                    table = fresh;
                    for (n, hops) in &wanted {
                        let names: Vec<String> = hops.iter().map(|h| nth_hop(*h)).collect();
                        let names: Vec<&str> = names.iter().map(String::as_str).collect();
                        table.change(&[change(&nth_prefix(*n), &names)]);
                    }
                    synced(&mut table);
                }
                Step::Commit => {
                    table.commit(&mut model, Now(0));
                    let expected: BTreeMap<Prefix, Vec<Hop>> = wanted
                        .iter()
                        .filter_map(|(n, hops)| {
                            let mut hops: Vec<Hop> = hops
                                .iter()
                                .map(|h| match h {
                                    0..=3 => hop(u32::from(*h) + 1, &nth_hop(*h)),
                                    _ => hop(gateway, &format!("10.0.{gateway}.1")),
                                })
                                .filter(|hop| !dead.contains(&hop.link))
                                .collect();
                            hops.sort();
                            hops.dedup();
                            (!hops.is_empty()).then(|| (p(&nth_prefix(*n)), hops))
                        })
                        .collect();
                    prop_assert_eq!(model.forwarding(), expected.clone());
                    prop_assert_eq!(table.facts().installed, [expected.len(), 0]);
                    let used: BTreeSet<u32> = model
                        .routes
                        .values()
                        .map(|via| match via { Via::Group(id) => *id, other => panic!("{other:?}") })
                        .collect();
                    let groups: BTreeSet<u32> = model.nexthops.range(FIRST_GROUP_ID..).map(|(id, _)| *id).collect();
                    prop_assert_eq!(used, groups, "no group is left over");
                }
            }
        }
    }
}
