//! Lists as long as somebody may write them. Nothing here is timed: work that grows with the square of the length would
//! take these tests hours.

use crate::world::{Namespace, Object, Pod, World};
use selvage_policy::api::{
    IPBlock, IntOrString, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use selvage_policy::model::Family;
use selvage_policy::model::PolicyKey;
use selvage_policy::plan::{Key, Plan, Verdict};
use selvage_policy::{Change, Compiler, Config, LocalStatus};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

const BLOCKS: u32 = 100_000;

/// Every second /30, so that no two touch.
fn block(n: u32) -> String {
    format!("{}/30", Ipv4Addr::from(0xac10_0000 + 8 * n))
}

fn peer(cidr: String, except: Option<Vec<String>>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr, except }),
        ..NetworkPolicyPeer::default()
    }
}

/// Pods of this node, and the plan for them under these ingress rules.
fn plan(rules: Vec<NetworkPolicyIngressRule>) -> Plan {
    world(rules).compiler().plan().clone()
}

fn world(rules: Vec<NetworkPolicyIngressRule>) -> World {
    let pods = (1..=20).map(|n| Pod {
        namespace: "x".into(),
        name: format!("pod-{n}"),
        labels: Default::default(),
        addresses: vec![Ipv4Addr::new(10, 0, 1, n).into()],
        ifname: Some(format!("sv{n}")),
        host_network: false,
        finished: false,
        ports: Vec::new(),
        created: 1,
    });
    World {
        namespaces: vec![Namespace {
            name: "x".into(),
            labels: Default::default(),
        }],
        pods: pods.collect(),
        policies: vec![Object {
            namespace: "x".into(),
            name: "p".into(),
            spec: NetworkPolicySpec {
                ingress: Some(rules),
                ..NetworkPolicySpec::default()
            },
        }],
    }
}

/// The ranges of the only interval set.
fn ranges(plan: &Plan) -> Vec<(IpAddr, IpAddr)> {
    let mut sets = plan.sets.values().filter(|set| set.def.interval);
    let set = sets.next().expect("a set of ranges");
    assert!(sets.next().is_none());
    let ends = set.elements.keys().map(|key| match key {
        Key::AddrRange(first, last) => (first, last),
        other => panic!("{other:?}"),
    });
    ends.collect()
}

fn rule(peers: Vec<NetworkPolicyPeer>, ports: Vec<i32>) -> NetworkPolicyIngressRule {
    let port = |number| NetworkPolicyPort {
        port: Some(IntOrString::Int(number)),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule {
        from: (!peers.is_empty()).then_some(peers),
        ports: Some(ports.into_iter().map(port).collect()),
    }
}

#[test]
fn blocks_of_one_rule_and_of_many() {
    let blocks = || (0..BLOCKS).map(|n| peer(block(n), None));
    let one = plan(vec![rule(blocks().collect(), vec![80])]);
    let many = plan(blocks().map(|peer| rule(vec![peer], vec![80])).collect());
    assert_eq!(ranges(&one).len(), BLOCKS as usize);
    // However it was written, it is the same plan.
    assert_eq!(one, many);
}

#[test]
fn exceptions_of_one_block() {
    let holes = (0..BLOCKS).map(block).collect();
    let whole = peer("0.0.0.0/0".into(), Some(holes));
    let ranges = ranges(&plan(vec![rule(vec![whole], vec![80])]));
    assert_eq!(ranges.len(), BLOCKS as usize + 1);
    assert!(ranges.iter().all(|(a, _)| Family::of(*a) == Family::V4));
}

#[test]
fn ports_of_many_rules() {
    let one = plan(vec![rule(
        Vec::new(),
        (1..=30_000).map(|n| 2 * n).collect(),
    )]);
    let many = plan(
        (1..=30_000)
            .map(|n| rule(Vec::new(), vec![2 * n]))
            .collect(),
    );
    assert_eq!(one, many);
}

/// A long list does not hold up others: it comes in portions, and what others need comes with the next one.
#[test]
fn others_do_not_wait_for_a_long_list() {
    const PORTION: usize = 1000;
    let mut compiler = Compiler::new(Config {
        portion: PORTION,
        ..crate::world::config()
    });
    let world = world(Vec::new());
    let (policy, others) = {
        let mut changes = world.changes();
        (changes.pop().expect("the policy"), changes)
    };
    others.into_iter().for_each(|change| compiler.apply(change));
    compiler.take_plan();
    // Everybody in the namespace is isolated, and then gets a long list.
    compiler.apply(policy);
    compiler.take_plan();
    let long = rule(
        (0..20_000).map(|n| peer(block(n), None)).collect(),
        vec![80],
    );
    let spec = NetworkPolicySpec {
        ingress: Some(vec![long]),
        ..NetworkPolicySpec::default()
    };
    let (namespace, name) = ("x".to_owned(), "long".to_owned());
    let list = Object {
        namespace,
        name,
        spec,
    };
    compiler.apply(list.change());
    let mut mirror = isolated(&world);
    let first = compiler.take_delta().expect("a first portion");
    mirror.apply(&first.ops).expect("a delta that fits");
    // Its pods keep the rules that they have; another namespace's pod comes meanwhile.
    let old: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
    let verdict = |plan: &Plan| dispatch(plan)[&Key::Addr(old.into())].clone();
    assert_eq!(verdict(&mirror), verdict(&isolated(&world)));
    let new = |namespace: &str, last| Pod {
        namespace: namespace.into(),
        addresses: vec![Ipv4Addr::new(10, 0, 2, last).into()],
        ifname: Some(format!("sv-{namespace}")),
        ..world.pods[0].clone()
    };
    let (stranger, concerned) = (
        new("y", 1),
        Pod {
            name: "late".into(),
            ..new("x", 2)
        },
    );
    for pod in [&stranger, &concerned] {
        compiler.apply(pod.change());
        pod.attachment()
            .into_iter()
            .for_each(|change| compiler.apply(change));
    }
    let next = compiler.take_delta().expect("a next portion");
    mirror.apply(&next.ops).expect("a delta that fits");
    assert!(next.ops.len() < PORTION + 20, "{}", next.ops.len());
    let has = |plan: &Plan, pod: &Pod| dispatch(plan).contains_key(&Key::Addr(pod.addresses[0]));
    assert!(has(&mirror, &stranger) && !has(&mirror, &concerned));
    let status =
        |compiler: &mut Compiler, name: &str| compiler.status(&name.parse().expect("a name"));
    assert_eq!(status(&mut compiler, "sv-y"), LocalStatus::Planned(next.to));
    assert_eq!(status(&mut compiler, "sv-x"), LocalStatus::Staged);
    let mut portions = 2;
    while let Some(delta) = compiler.take_delta() {
        mirror.apply(&delta.ops).expect("a delta that fits");
        // One more has the dispatch of all pods, and one takes away what they had.
        assert!(delta.ops.len() < PORTION + 200, "{}", delta.ops.len());
        portions += 1;
    }
    assert_eq!(portions, 20_000 / PORTION + 2);
    assert!(has(&mirror, &concerned));
    assert_eq!(&mirror, compiler.plan());
    // Taken back in the middle, nothing of it stays.
    compiler.apply(Change::PolicyGone(PolicyKey::new("x", "long")));
    let before = compiler.plan().clone();
    compiler.apply(list.change());
    compiler.take_delta().expect("a first portion");
    compiler.apply(Change::PolicyGone(PolicyKey::new("x", "long")));
    compiler.take_delta().expect("the set goes");
    while compiler.take_delta().is_some() {}
    assert_eq!(&before, compiler.plan());
}

/// What the kernel has under the isolating policy alone.
fn isolated(world: &World) -> Plan {
    world.compiler().plan().clone()
}

fn dispatch(plan: &Plan) -> BTreeMap<Key, Option<Verdict>> {
    let map = plan.sets.iter().find(|(name, _)| name.as_str() == "in4");
    let elements = map.expect("a map").1.elements.iter();
    elements
        .map(|(key, verdict)| (key, verdict.cloned()))
        .collect()
}
