//! The way does not matter: whatever the changes and their order, the plan is that of the final state, and every delta
//! turns the plan before it into the plan after it.

use crate::equivalence::{probes, protocol_number};
use crate::interpreter::assert_sound;
use crate::strategy::{NAMESPACES, PODS, namespace, pod, spec, world};
use crate::world::{Object, World, compiler};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use selvage_policy::model::{IfName, LocalPod, PodKey, PolicyKey};
use selvage_policy::plan::{Delta, Gen, Op, Plan, Verdict, diff};
use selvage_policy::revoke::Flow;
use selvage_policy::verdict::{Decision, End, Query};
use selvage_policy::{Change, Compiler, Config, LocalStatus};
use std::collections::BTreeSet;

fn ifname(number: usize) -> IfName {
    format!("sv{number}").parse().expect("an interface name")
}

fn change() -> impl Strategy<Value = Change> {
    let policy_name = select(&["p0", "p1", "p2"][..]);
    prop_oneof![
        6 => (select(&NAMESPACES[..]), select(&PODS[..])).prop_flat_map(|(n, p)| pod(n, p)).prop_map(|p| p.change()),
        6 => (select(&NAMESPACES[..]), select(&PODS[..])).prop_flat_map(|(n, p)| pod(n, p))
            .prop_map(|p| p.attachment().unwrap_or_else(|| Change::PodGone(p.key()))),
        2 => (select(&NAMESPACES[..]), select(&PODS[..])).prop_map(|(n, p)| Change::PodGone(PodKey::new(n, p))),
        2 => (1..4_usize, 1..5_usize).prop_map(|(n, p)| Change::LocalGone(ifname(n * 10 + p))),
        1 => (1..3_usize).prop_map(|n| Change::Local(LocalPod {
            ifname: ifname(n),
            ifindex: 3,
            addresses: vec!["10.0.1.1".parse().expect("an address")],
            pod: None,
        })),
        2 => select(&NAMESPACES[..]).prop_flat_map(namespace).prop_map(|n| n.change()),
        1 => select(&NAMESPACES[..]).prop_map(|n| Change::NamespaceGone(n.into())),
        4 => (select(&NAMESPACES[..]), policy_name.clone(), spec())
            .prop_map(|(n, p, spec)| Object { namespace: n.into(), name: p.into(), spec }.change()),
        1 => (select(&NAMESPACES[..]), policy_name).prop_map(|(n, p)| Change::PolicyGone(PolicyKey::new(n, p))),
    ]
}

fn assert_same(left: &Plan, right: &Plan) {
    assert_eq!(diff(left, right), []);
    assert_eq!(left, right);
}

proptest! {
    #![proptest_config(crate::strategy::config())]

    #[test]
    fn every_step_equals_a_full_build(start in world(), steps in vec(vec(change(), 1..4), 1..12)) {
        let mut compiler = start.compiler();
        let mut mirror = Plan { table: compiler.plan().table.clone(), ..Plan::default() };
        let mut at = Gen::default();
        for step in std::iter::once(Vec::new()).chain(steps) {
            step.into_iter().for_each(|change| compiler.apply(change));
            while let Some(delta) = compiler.take_delta() {
                // The first one makes the table: no packet is on its way through its rules.
                if at > Gen::default() {
                    assert_phases(&delta);
                }
                prop_assert_eq!(delta.from, at);
                at = delta.to;
                mirror.apply(&delta.ops).expect("a delta that fits");
            }
            assert_same(&mirror, compiler.plan());
            let full = compiler.full();
            assert_same(compiler.plan(), &full);
            assert_sound(&mirror);
            prop_assert!(compiler.take_delta().is_none());
        }
    }

    /// Sets that are filled over several deltas: every delta fits, no pod is dispatched to a set that is not full, and the
    /// end is the full build.
    #[test]
    fn sets_filled_in_portions_end_in_the_same_plan(
        start in world(),
        steps in vec((vec(change(), 1..4), 0..4_usize), 1..8),
        portion in 1..4_usize,
    ) {
        let mut compiler = Compiler::new(Config { portion, ..crate::world::config() });
        start.changes().into_iter().for_each(|change| compiler.apply(change));
        let mut mirror = Plan { table: compiler.full().table, ..Plan::default() };
        for (step, deltas) in steps.into_iter().chain([(Vec::new(), usize::MAX)]) {
            step.into_iter().for_each(|change| compiler.apply(change));
            let full = compiler.full();
            for _ in 0..deltas {
                let Some(delta) = compiler.take_delta() else { break };
                assert_phases(&delta);
                mirror.apply(&delta.ops).expect("a delta that fits");
                // A chain has its name from its content, so the full build knows what its sets should hold.
                for (name, _) in mirror.chains.iter().filter(|(name, _)| full.chains.contains_key(*name)) {
                    for set in mirror.chains[name].names().filter(|name| mirror.sets[*name].def.verdicts.eq(&false)) {
                        let dispatched = mirror.chains[name].base.is_none();
                        prop_assert!(!dispatched || mirror.sets[set] == full.sets[set], "{name} {set}");
                    }
                }
            }
        }
        assert_same(&mirror, &compiler.full());
        assert_sound(&mirror);
        prop_assert!(compiler.take_delta().is_none());
        assert_same(&mirror, compiler.plan());
    }

    #[test]
    fn the_order_of_facts_does_not_matter(
        (facts, shuffled) in world().prop_flat_map(|world| {
            let changes = world.changes();
            (Just(changes.clone()), Just(changes).prop_shuffle())
        }),
        detour in vec(change(), 0..6),
    ) {
        let mut straight = compiler();
        facts.iter().cloned().for_each(|change| straight.apply(change));
        let mut winding = compiler();
        for change in shuffled {
            winding.apply(change);
            winding.plan();
        }
        assert_same(straight.plan(), winding.plan());
        // There and back again.
        let before = straight.plan().clone();
        let generation = straight.take_plan().0;
        detour.into_iter().for_each(|change| straight.apply(change));
        straight.plan();
        undo_all(&mut straight);
        facts.into_iter().for_each(|change| straight.apply(change));
        assert_same(&before, straight.plan());
        prop_assert!(straight.take_plan().0 >= generation);
    }

    /// A flow that is judged differently has an end that the delta names.
    #[test]
    fn deltas_name_the_flows_to_look_at(start in world(), steps in vec(vec(change(), 1..4), 1..6)) {
        let mut compiler = start.compiler();
        compiler.take_plan();
        let flows: Vec<_> = probes(&start, &[("TCP", 80), ("UDP", 53), ("TCP", 8080)])
            .into_iter()
            .map(|probe| Flow {
                source: probe.source,
                destination: probe.destination,
                protocol: protocol_number(probe.protocol),
                port: probe.port,
            })
            .collect();
        // An attachment that is closed when it comes or goes has nothing in the plan, so no delta tells of it.
        let closed = |compiler: &Compiler, flow: &Flow| {
            let (source, destination) = (End::Addr(flow.source), End::Addr(flow.destination));
            let query = Query { source, destination, protocol: flow.protocol, port: Some(flow.port) };
            let why = compiler.why(&query).expect("an answer");
            why.egress == Decision::Closed || why.ingress == Decision::Closed
        };
        let judge = |compiler: &Compiler| -> Vec<_> {
            flows.iter().map(|flow| (compiler.allowed(flow), closed(compiler, flow))).collect()
        };
        let mut before = judge(&compiler);
        for step in steps {
            step.into_iter().for_each(|change| compiler.apply(change));
            let deltas: Vec<_> = std::iter::from_fn(|| compiler.take_delta()).collect();
            let affected: BTreeSet<_> = deltas.iter().flat_map(Delta::affected).collect();
            let closes = deltas.iter().any(Delta::may_revoke);
            let opens = deltas.iter().any(Delta::may_allow);
            let now = judge(&compiler);
            for (flow, (old, new)) in flows.iter().zip(before.iter().zip(&now)) {
                if old.0 == new.0 || old.1 || new.1 {
                    continue;
                }
                prop_assert!(affected.contains(&flow.source) || affected.contains(&flow.destination), "{:?}", flow);
                prop_assert!(if new.0 { opens } else { closes }, "{:?}", flow);
            }
            before = now;
        }
    }

    /// Pods elsewhere come, go and change their labels by elements alone.
    #[test]
    fn remote_churn_touches_elements_only(world in world(), number in 1..4_usize, next in pod("z", "d")) {
        let mut world = world;
        world.pods.retain(|pod| pod.key() != PodKey::new("z", "d"));
        let mut compiler = world.compiler();
        compiler.take_plan();
        let mut remote = next;
        remote.ifname = None;
        // Addresses that no attachment here claims.
        remote.addresses = vec![format!("10.9.9.{number}").parse().expect("an address")];
        let mut relabelled = remote.clone();
        relabelled.labels.insert("app".into(), "1".into());
        for change in [remote.change(), relabelled.change(), Change::PodGone(remote.key())] {
            compiler.apply(change);
            let ops = compiler.take_delta().map(|delta| delta.ops).unwrap_or_default();
            prop_assert!(ops.iter().all(Op::is_element), "{:?}", ops);
        }
    }

    #[test]
    fn labels_of_a_namespace_touch_elements_only(world in world(), again in namespace("x")) {
        let mut compiler = world.compiler();
        compiler.take_plan();
        compiler.apply(again.change());
        let ops = compiler.take_delta().map(|delta| delta.ops).unwrap_or_default();
        prop_assert!(ops.iter().all(Op::is_element), "{:?}", ops);
    }
}

/// A packet on its way sees the maps of after a commit and the chains of before it: so no delta sends packets to a chain
/// that it adds, or takes a chain away while it changes where packets are sent.
fn assert_phases(delta: &Delta) {
    let added: BTreeSet<_> = delta
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::AddChain(name, _) => Some(name),
            _ => None,
        })
        .collect();
    let jumps = |op: &Op| match op {
        Op::AddElem(_, _, Some(Verdict::Jump(name))) => Some(name.clone()),
        _ => None,
    };
    let targets: Vec<_> = delta.ops.iter().filter_map(jumps).collect();
    assert!(
        targets.iter().all(|name| !added.contains(name)),
        "{delta:?}"
    );
    let removes = delta.ops.iter().any(|op| matches!(op, Op::DelChain(_)));
    assert!(!removes || targets.is_empty(), "{delta:?}");
}

fn undo_all(compiler: &mut Compiler) {
    for namespace in NAMESPACES {
        compiler.apply(Change::NamespaceGone(namespace.into()));
        for name in PODS {
            compiler.apply(Change::PodGone(PodKey::new(namespace, name)));
        }
        for name in ["p0", "p1", "p2", "p3", "p4", "p5"] {
            compiler.apply(Change::PolicyGone(PolicyKey::new(namespace, name)));
        }
    }
    for number in 0..50 {
        compiler.apply(Change::LocalGone(ifname(number)));
    }
    assert_same(compiler.plan(), self::compiler().plan());
}

#[test]
fn status_follows_the_attachment() {
    let world = World::default();
    let mut compiler = world.compiler();
    let pod = crate::world::Pod {
        namespace: "x".into(),
        name: "a".into(),
        labels: Default::default(),
        addresses: crate::world::addresses(&["10.0.1.1"]),
        ifname: Some("sv11".into()),
        host_network: false,
        finished: false,
        ports: Vec::new(),
        created: 1,
    };
    let name = ifname(11);
    assert_eq!(compiler.status(&name), LocalStatus::Unknown);
    compiler.apply(pod.attachment().expect("an attachment"));
    assert_eq!(compiler.status(&name), LocalStatus::Waiting);
    compiler.apply(pod.change());
    assert_eq!(compiler.status(&name), LocalStatus::Planned(Gen(1)));
    assert_eq!(compiler.take_delta().map(|d| d.to), Some(Gen(1)));
    // Something else happens: the pod stays enforced since generation 1.
    let other = crate::world::Pod {
        name: "b".into(),
        addresses: crate::world::addresses(&["10.0.1.2"]),
        ifname: Some("sv12".into()),
        ..pod.clone()
    };
    compiler.apply(other.change());
    other
        .attachment()
        .into_iter()
        .for_each(|change| compiler.apply(change));
    assert_eq!(compiler.status(&name), LocalStatus::Planned(Gen(1)));
    assert_eq!(compiler.status(&ifname(12)), LocalStatus::Planned(Gen(2)));
    // The newer of two has the address.
    let thief = crate::world::Pod {
        name: "c".into(),
        ifname: Some("sv13".into()),
        created: 2,
        ..pod.clone()
    };
    compiler.apply(thief.change());
    thief
        .attachment()
        .into_iter()
        .for_each(|change| compiler.apply(change));
    assert_eq!(compiler.status(&name), LocalStatus::Shadowed);
    compiler.apply(Change::LocalGone(ifname(13)));
    assert!(matches!(compiler.status(&name), LocalStatus::Planned(_)));
    let finished = crate::world::Pod {
        finished: true,
        ..pod.clone()
    };
    compiler.apply(finished.change());
    assert_eq!(compiler.status(&name), LocalStatus::Finished);
    compiler.apply(Change::LocalGone(name));
    assert_eq!(compiler.status(&name), LocalStatus::Unknown);
}
