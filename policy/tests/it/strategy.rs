//! Random clusters and policies, dense enough that selectors, blocks and ports meet.

use crate::world::{Map, Namespace, Object, Pod, World};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use selvage_policy::api::{
    IPBlock, IntOrString, LabelSelector, LabelSelectorRequirement, NetworkPolicyEgressRule,
    NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use selvage_policy::model::Proto;

pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub const PODS: [&str; 4] = ["a", "b", "c", "d"];
/// Hosts that are no pods: two outside, another node.
pub const OUTSIDE: [&str; 5] = [
    "192.0.2.1",
    "192.0.2.200",
    "172.16.0.2",
    "2001:db8::1",
    "fd99::2",
];

/// Enough cases for every run; `PROPTEST_CASES` for more.
pub fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        default.cases
    } else {
        192
    };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..default
    }
}

pub fn world() -> impl Strategy<Value = World> {
    let namespaces = subsequence(NAMESPACES.to_vec(), 2..=3)
        .prop_flat_map(|names| names.into_iter().map(namespace).collect::<Vec<_>>());
    let everybody: Vec<_> = NAMESPACES
        .iter()
        .flat_map(|ns| PODS.iter().map(move |p| (*ns, *p)))
        .collect();
    let pods = subsequence(everybody, 4..=9).prop_flat_map(|keys| {
        keys.into_iter()
            .map(|(ns, name)| pod(ns, name))
            .collect::<Vec<_>>()
    });
    (namespaces, pods, policies()).prop_map(|(namespaces, pods, policies)| World {
        namespaces,
        pods,
        policies,
    })
}

pub fn policies() -> impl Strategy<Value = Vec<Object>> {
    vec((select(&NAMESPACES[..]), spec()), 0..6).prop_map(|specs| {
        let named = specs.into_iter().enumerate();
        named
            .map(|(i, (ns, spec))| Object {
                namespace: ns.into(),
                name: format!("p{i}"),
                spec,
            })
            .collect()
    })
}

pub fn namespace(name: &'static str) -> impl Strategy<Value = Namespace> {
    labels(&["team", "env"]).prop_map(move |mut labels| {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        Namespace {
            name: name.into(),
            labels,
        }
    })
}

/// A pod whose addresses follow from its name, except that now and then it has somebody else's.
pub fn pod(namespace: &'static str, name: &'static str) -> impl Strategy<Value = Pod> {
    let number = |of: &'static [&'static str], it| {
        of.iter().position(|n| *n == it).expect("a known name") + 1
    };
    let (n, p) = (number(&NAMESPACES, namespace), number(&PODS, name));
    let families = select(vec![
        (true, true),
        (true, true),
        (true, false),
        (false, true),
    ]);
    let stolen =
        prop_oneof![6 => Just(None), 1 => Just(Some("10.0.1.1")), 1 => Just(Some("fd00::1:2"))];
    let ports = subsequence(
        vec![
            ("http", Proto::Tcp, 80),
            ("http", Proto::Tcp, 8080),
            ("dns", Proto::Udp, 53),
            ("dns", Proto::Tcp, 53),
            ("http", Proto::Sctp, 80),
        ],
        0..=4,
    );
    let flags = (
        prop::bool::weighted(0.6),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        0..3_u32,
    );
    (labels(&["app", "tier"]), families, stolen, ports, flags).prop_map(
        move |(labels, (v4, v6), stolen, ports, (local, host_network, finished, created))| {
            let mut addresses = Vec::new();
            addresses.extend(v4.then(|| format!("10.0.{n}.{p}")));
            addresses.extend(v6.then(|| format!("fd00::{n}:{p}")));
            addresses.extend(stolen.map(String::from));
            addresses.sort();
            addresses.dedup();
            Pod {
                namespace: namespace.into(),
                name: name.into(),
                labels,
                addresses: addresses
                    .iter()
                    .map(|a| a.parse().expect("an address"))
                    .collect(),
                ifname: (local && !host_network).then(|| format!("sv{n}{p}")),
                host_network,
                finished,
                ports: ports
                    .into_iter()
                    .map(|(name, proto, port)| (name.into(), proto, port))
                    .collect(),
                created,
            }
        },
    )
}

fn labels(keys: &'static [&'static str]) -> impl Strategy<Value = Map> {
    btree_map(
        select(keys).prop_map(String::from),
        select(&["1", "2"][..]).prop_map(String::from),
        0..=2,
    )
}

fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        2 => Just(LabelSelector::default()),
        5 => (labels(keys), vec(requirement(keys), 0..2))
            .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions }),
    ]
}

fn requirement(keys: &'static [&'static str]) -> impl Strategy<Value = LabelSelectorRequirement> {
    let operators = select(&["In", "NotIn", "Exists", "DoesNotExist"][..]);
    (select(keys), operators, subsequence(vec!["1", "2"], 1..=2)).prop_map(
        |(key, operator, values)| {
            let values = if operator.ends_with("In") {
                values
            } else {
                Vec::new()
            };
            LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: values.into_iter().map(String::from).collect(),
            }
        },
    )
}

pub fn spec() -> impl Strategy<Value = NetworkPolicySpec> {
    let types = option::weighted(0.6, subsequence(vec!["Ingress", "Egress"], 0..=2));
    (
        selector(&["app", "tier"]),
        option::of(vec(rule(), 0..4)),
        option::of(vec(rule(), 0..4)),
        types,
    )
        .prop_map(|(pod_selector, ingress, egress, types)| NetworkPolicySpec {
            pod_selector,
            ingress: ingress.map(|rules| {
                rules
                    .into_iter()
                    .map(|(from, ports)| NetworkPolicyIngressRule { ports, from })
                    .collect()
            }),
            egress: egress.map(|rules| {
                rules
                    .into_iter()
                    .map(|(to, ports)| NetworkPolicyEgressRule { ports, to })
                    .collect()
            }),
            policy_types: types.map(|types| types.into_iter().map(String::from).collect()),
        })
}

fn rule() -> impl Strategy<
    Value = (
        Option<Vec<NetworkPolicyPeer>>,
        Option<Vec<NetworkPolicyPort>>,
    ),
> {
    (
        option::weighted(0.8, vec(peer(), 0..4)),
        option::weighted(0.7, vec(port(), 0..7)),
    )
}

fn peer() -> impl Strategy<Value = NetworkPolicyPeer> {
    let pods = option::weighted(0.7, selector(&["app", "tier"]));
    let namespaces = option::weighted(
        0.5,
        selector(&["team", "env", "kubernetes.io/metadata.name"]),
    );
    prop_oneof![
        3 => (pods, namespaces).prop_map(|(pod_selector, namespace_selector)| {
            NetworkPolicyPeer { pod_selector, namespace_selector, ip_block: None }
        }),
        2 => block().prop_map(|block| NetworkPolicyPeer { ip_block: Some(block), ..Default::default() }),
    ]
}

fn block() -> impl Strategy<Value = IPBlock> {
    let blocks: Vec<(&str, Vec<&str>)> = vec![
        (
            "0.0.0.0/0",
            vec!["10.0.0.0/8", "192.0.2.200/32", "172.16.0.0/12"],
        ),
        (
            "::/0",
            vec!["fd00::/16", "2001:db8::1/128", "fd00::1:1/128"],
        ),
        (
            "10.0.0.0/8",
            vec!["10.0.1.0/24", "10.0.1.1/32", "10.0.2.2/31", "10.0.3.9/30"],
        ),
        ("10.0.1.5/24", vec!["10.0.1.2/32"]),
        ("10.0.2.0/30", vec![]),
        ("192.0.2.0/24", vec!["192.0.2.0/25", "192.0.2.1/32"]),
        ("192.0.2.128/25", vec![]),
        ("fd00::1:0/112", vec!["fd00::1:2/128"]),
        ("2001:db8::/32", vec![]),
        ("fd99::2/128", vec![]),
    ];
    select(blocks).prop_flat_map(|(cidr, holes)| {
        let count = 0..=holes.len();
        option::of(subsequence(holes, count)).prop_map(move |holes| IPBlock {
            cidr: cidr.into(),
            except: holes.map(|holes| holes.into_iter().map(String::from).collect()),
        })
    })
}

fn port() -> impl Strategy<Value = NetworkPolicyPort> {
    let protocol = option::weighted(
        0.7,
        select(&["TCP", "UDP", "SCTP"][..]).prop_map(String::from),
    );
    let number = select(vec![53, 79, 80, 81, 82, 443, 8080, 65535]);
    let port = prop_oneof![
        1 => Just((None, None)),
        5 => number.clone().prop_map(|port| (Some(IntOrString::Int(port)), None)),
        3 => (number, select(vec![0, 1, 5, 300, 8000])).prop_map(|(port, more)| {
            (Some(IntOrString::Int(port)), Some((port + more).min(65535)))
        }),
        2 => select(&["http", "dns", "nobody"][..])
            .prop_map(|name| (Some(IntOrString::String(name.into())), None)),
    ];
    (protocol, port).prop_map(|(protocol, (port, end_port))| NetworkPolicyPort {
        protocol,
        port,
        end_port,
    })
}
