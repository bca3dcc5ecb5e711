//! A pod whose rules change at every transaction does not keep its former rules for as long as that goes on.

use crate::world::{Namespace, Object, Pod, World};
use selvage_policy::api::{
    IPBlock, IntOrString, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use selvage_policy::plan::{Key, Match, Name, Op, Plan, Verdict};
use selvage_policy::{Compiler, Config};
use std::net::{IpAddr, Ipv4Addr};

const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
const PORTION: usize = 16;
/// As many changes as a pod may have to wait for, and more.
const CHANGES: u16 = 100;

/// The policy as it is at a time: its port is the number of the change, its blocks are others each time.
fn policy(change: u16, blocks: u32) -> Object {
    let block = |n: u32| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: Ipv4Addr::from(0xac10_0000 + 0x1_0000 * u32::from(change) + 8 * n).to_string()
                + "/32",
            except: None,
        }),
        ..NetworkPolicyPeer::default()
    };
    Object {
        namespace: "x".into(),
        name: "p".into(),
        spec: NetworkPolicySpec {
            ingress: Some(vec![NetworkPolicyIngressRule {
                ports: Some(vec![NetworkPolicyPort {
                    port: Some(IntOrString::Int(change.into())),
                    ..NetworkPolicyPort::default()
                }]),
                from: Some((0..blocks).map(block).collect()),
            }]),
            ..NetworkPolicySpec::default()
        },
    }
}

/// The number of the change whose rules the pod has; 0 before it has any.
fn in_force(plan: &Plan) -> u16 {
    let map = plan.sets.iter().find(|(name, _)| name.as_str() == "in4");
    let Some(Some(Verdict::Jump(chain))) = map.expect("a map").1.elements.get(&Key::Addr(POD))
    else {
        return 0;
    };
    let matches = plan.chains[chain].rules.iter().flat_map(|r| &r.matches);
    let port = matches.filter_map(|m| match m {
        Match::Dport { first, .. } => Some(*first),
        Match::Lookup { set, .. } => plan.sets[set].elements.keys().find_map(|key| match key {
            Key::PortRange(first, _) | Key::ProtoPort(_, first) => Some(first),
            _ => None,
        }),
        _ => None,
    });
    port.max().expect("a port")
}

/// How many changes the rules in force are behind, at most, while each transaction brings another one.
fn lag(blocks: u32) -> u16 {
    let world = World {
        namespaces: vec![Namespace {
            name: "x".into(),
            labels: Default::default(),
        }],
        pods: vec![Pod {
            namespace: "x".into(),
            name: "pod".into(),
            labels: Default::default(),
            addresses: vec![POD],
            ifname: Some("sv1".into()),
            host_network: false,
            finished: false,
            ports: Vec::new(),
            created: 1,
        }],
        policies: Vec::new(),
    };
    let mut compiler = Compiler::new(Config {
        portion: PORTION,
        ..crate::world::config()
    });
    for change in world.changes() {
        compiler.apply(change);
    }
    let mut mirror = Plan {
        table: compiler.plan().table.clone(),
        ..Plan::default()
    };
    let mut worst = 0;
    let mut take = |compiler: &mut Compiler| {
        let delta = compiler.take_delta();
        if let Some(delta) = &delta {
            let added: Vec<_> = delta.ops.iter().filter_map(added_chain).collect();
            let jumps = delta.ops.iter().filter_map(jump);
            // A packet that is under way meanwhile finds the new chain empty.
            assert!(jumps.clone().all(|to| !added.contains(&to)), "{delta:?}");
            mirror.apply(&delta.ops).expect("a delta that fits");
        }
        (delta.is_some(), in_force(&mirror))
    };
    while take(&mut compiler).0 {}
    for change in 1..=CHANGES {
        compiler.apply(policy(change, blocks).change());
        worst = worst.max(change - take(&mut compiler).1);
    }
    // When it is over, the last rules are in force.
    while take(&mut compiler).0 {}
    assert_eq!(take(&mut compiler).1, CHANGES);
    assert_eq!(&mirror, compiler.plan());
    worst
}

fn added_chain(op: &Op) -> Option<&Name> {
    match op {
        Op::AddChain(name, _) => Some(name),
        _ => None,
    }
}

fn jump(op: &Op) -> Option<&Name> {
    match op {
        Op::AddElem(_, _, Some(Verdict::Jump(chain))) => Some(chain),
        _ => None,
    }
}

#[test]
fn rules_that_change_at_every_transaction_are_one_behind() {
    assert_eq!(lag(3), 1);
}

/// Each change makes a set that takes several transactions to fill, and the next change comes before it is full.
#[test]
fn long_lists_that_change_at_every_transaction_come_all_the_same() {
    let lag = lag(10 * PORTION as u32);
    assert!((2..=12).contains(&lag), "{lag}");
}
