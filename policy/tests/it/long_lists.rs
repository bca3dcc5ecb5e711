//! Lists as long as somebody may write them. Nothing here is timed: work that grows with the square of the length would
//! take these tests hours.

use crate::world::{Namespace, Object, Pod, World};
use selvage_policy::api::{
    IPBlock, IntOrString, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use selvage_policy::model::Family;
use selvage_policy::plan::{Key, Plan};
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

/// A pod of this node, and the plan for it under these ingress rules.
fn plan(rules: Vec<NetworkPolicyIngressRule>) -> Plan {
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
    let world = World {
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
    };
    world.compiler().plan().clone()
}

/// The ranges of the only interval set.
fn ranges(plan: &Plan) -> Vec<(IpAddr, IpAddr)> {
    let mut sets = plan.sets.values().filter(|set| set.def.interval);
    let set = sets.next().expect("a set of ranges");
    assert!(sets.next().is_none());
    let ends = set.elements.keys().map(|key| match key {
        Key::AddrRange(first, last) => (*first, *last),
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
