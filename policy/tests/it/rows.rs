//! Tables of packets: what Kubernetes says of small, named situations. Pods `a`, `b`, `c` in each of the namespaces
//! `x`, `y`, `z`; every row in IPv4 and IPv6, with all pods on this node and with those of `x` alone.

use crate::equivalence::{check, crosses, protocol_number};
use crate::oracle::{self, Probe};
use crate::world::{Namespace, Object, Pod, World};
use selvage_policy::model::Proto;
use selvage_policy::verdict::{Decision, End, Query};
use std::net::IpAddr;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Names, policies (namespace, spec) and probes (from, to, protocol/port, whether it passes).
struct Row {
    what: &'static str,
    policies: &'static [(&'static str, &'static str)],
    probes: &'static [(&'static str, &'static str, &'static str, bool)],
}

fn world() -> World {
    let mut world = World::default();
    for (n, ns) in ["x", "y", "z"].into_iter().enumerate() {
        let labels = [("ns", ns), ("kubernetes.io/metadata.name", ns)];
        world.namespaces.push(Namespace {
            name: ns.into(),
            labels: map(&labels),
        });
        for (p, pod) in NAMES.into_iter().enumerate() {
            let mut labels = map(&[("pod", pod)]);
            if pod == "a" {
                labels.insert("role".into(), "first".into());
            }
            world.pods.push(Pod {
                namespace: ns.into(),
                name: pod.into(),
                labels,
                addresses: vec![
                    address(&format!("{ns}/{pod}"), true),
                    address(&format!("{ns}/{pod}"), false),
                ],
                ifname: Some(format!("sv{}{}", n + 1, p + 1)),
                host_network: false,
                finished: false,
                // The same name, another number: `b` serves what others have on 80 on 8080.
                ports: vec![
                    (
                        "serve".into(),
                        Proto::Tcp,
                        if pod == "b" { 8080 } else { 80 },
                    ),
                    ("both".into(), Proto::Tcp, 81),
                    ("both".into(), Proto::Udp, 81),
                ],
                created: 1,
            });
        }
    }
    world
}

fn map(pairs: &[(&str, &str)]) -> crate::world::Map {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn address(name: &str, v4: bool) -> IpAddr {
    let (place, v4_text, v6_text) = match name {
        "ext1" => (name, "192.0.2.1".to_owned(), "2001:db8::1".to_owned()),
        "ext2" => (name, "192.0.2.200".to_owned(), "2001:db8:1::200".to_owned()),
        "node1" => (name, "172.16.0.1".to_owned(), "fd99::1".to_owned()),
        "node2" => (name, "172.16.0.2".to_owned(), "fd99::2".to_owned()),
        pod => {
            let (ns, pod) = pod.split_once('/').expect("namespace/pod");
            let n = 1 + ["x", "y", "z"]
                .iter()
                .position(|k| *k == ns)
                .expect("a namespace");
            let p = 1 + NAMES.iter().position(|k| *k == pod).expect("a pod");
            (ns, format!("10.0.{n}.{p}"), format!("fd00::{n}:{p}"))
        }
    };
    assert!(!place.is_empty());
    if v4 { v4_text } else { v6_text }
        .parse()
        .expect("an address")
}

fn probe(from: &str, to: &str, port: &str, v4: bool) -> Probe {
    let (protocol, port) = port.split_once('/').unwrap_or((port, "0"));
    let protocol = match (protocol, v4) {
        ("TCP", _) => "TCP",
        ("UDP", _) => "UDP",
        ("SCTP", _) => "SCTP",
        ("ICMP", true) => "ICMP",
        ("ICMP", false) => "ICMPv6",
        (other, _) => panic!("protocol {other}"),
    };
    Probe {
        source: address(from, v4),
        destination: address(to, v4),
        protocol,
        port: port.parse().expect("a port"),
    }
}

fn objects(policies: &[(&str, &str)]) -> Vec<Object> {
    let parse = |(i, (ns, json)): (usize, &(&str, &str))| Object {
        namespace: (*ns).to_owned(),
        name: format!("p{i}"),
        spec: serde_json::from_str(json).expect(json),
    };
    policies.iter().enumerate().map(parse).collect()
}

fn run(rows: &[Row]) {
    for row in rows {
        let mut everywhere = world();
        everywhere.policies = objects(row.policies);
        let mut only_x = everywhere.clone();
        only_x
            .pods
            .iter_mut()
            .filter(|p| p.namespace != "x")
            .for_each(|p| p.ifname = None);
        for v4 in [true, false] {
            let plan = everywhere.compiler().plan().clone();
            for (from, to, port, passes) in row.probes {
                let probe = probe(from, to, port, v4);
                let what = format!("{}: {from} to {to} {port}, IPv4 {v4}", row.what);
                assert_eq!(crosses(&plan, &everywhere, &probe), *passes, "plan: {what}");
                let (egress, ingress) = oracle::judge(&everywhere, &probe);
                assert_eq!(egress && ingress, *passes, "oracle: {what}");
                check(&everywhere, [probe]);
                check(&only_x, [probe]);
            }
        }
    }
}

#[test]
fn selection_isolation_union() {
    run(&[
        Row {
            what: "1 no policy",
            policies: &[],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("ext1", "x/a", "TCP/80", true),
                ("x/a", "ext1", "UDP/53", true),
            ],
        },
        Row {
            what: "2 deny all into a",
            policies: &[(
                "x",
                r#"{"podSelector":{"matchLabels":{"pod":"a"}},"policyTypes":["Ingress"]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", false),
                ("y/a", "x/b", "TCP/80", true),
                ("x/a", "y/a", "TCP/80", true),
            ],
        },
        Row {
            what: "3 deny all out of x",
            policies: &[("x", r#"{"podSelector":{},"policyTypes":["Egress"]}"#)],
            probes: &[
                ("x/a", "y/a", "TCP/80", false),
                ("x/a", "ext1", "UDP/53", false),
                ("x/a", "x/b", "TCP/80", false),
                ("y/a", "x/a", "TCP/80", true),
            ],
        },
        Row {
            what: "4 deny all both ways",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Ingress","Egress"]}"#,
            )],
            probes: &[
                ("x/a", "y/a", "TCP/80", false),
                ("y/a", "x/a", "TCP/80", false),
                ("y/a", "z/a", "TCP/80", true),
            ],
        },
        Row {
            what: "5 NotIn and DoesNotExist select what lacks the key",
            policies: &[
                (
                    "x",
                    r#"{"podSelector":{"matchExpressions":[{"key":"role","operator":"NotIn","values":["first"]}]}}"#,
                ),
                (
                    "y",
                    r#"{"podSelector":{"matchExpressions":[{"key":"role","operator":"DoesNotExist"}]}}"#,
                ),
            ],
            probes: &[
                ("z/a", "x/a", "TCP/80", true),
                ("z/a", "x/b", "TCP/80", false),
                ("z/a", "y/a", "TCP/80", true),
                ("z/a", "y/c", "TCP/80", false),
            ],
        },
        Row {
            what: "6 labels and expressions are ANDed",
            policies: &[(
                "x",
                r#"{"podSelector":{"matchLabels":{"pod":"a"},"matchExpressions":[{"key":"role","operator":"DoesNotExist"}]}}"#,
            )],
            probes: &[
                ("z/a", "x/a", "TCP/80", true),
                ("z/a", "x/b", "TCP/80", true),
            ],
        },
        Row {
            what: "7, 8 no policyTypes and no egress rule",
            policies: &[("x", r#"{"podSelector":{},"egress":[]}"#)],
            probes: &[
                ("x/a", "y/a", "TCP/80", true),
                ("y/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "9 no policyTypes and an egress rule",
            policies: &[(
                "x",
                r#"{"podSelector":{},"egress":[{"ports":[{"port":80}]}]}"#,
            )],
            probes: &[
                ("x/a", "y/a", "TCP/80", true),
                ("x/a", "y/a", "TCP/81", false),
                ("y/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "10 ingress rules of an egress policy",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Egress"],"ingress":[]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("x/a", "y/a", "TCP/80", false),
            ],
        },
        Row {
            what: "11 egress rules of an ingress policy",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Ingress"],"egress":[]}"#,
            )],
            probes: &[
                ("x/a", "y/a", "TCP/80", true),
                ("y/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "12 union of policies",
            policies: &[
                ("x", r#"{"podSelector":{}}"#),
                (
                    "x",
                    r#"{"podSelector":{"matchLabels":{"pod":"a"}},"ingress":[{"from":[{"podSelector":{"matchLabels":{"pod":"b"}}}]}]}"#,
                ),
            ],
            probes: &[
                ("x/b", "x/a", "TCP/80", true),
                ("x/c", "x/a", "TCP/80", false),
                ("x/b", "x/c", "TCP/80", false),
            ],
        },
        Row {
            what: "13 other namespaces",
            policies: &[("x", r#"{"podSelector":{}}"#)],
            probes: &[("y/a", "z/a", "TCP/80", true)],
        },
        Row {
            what: "14 both ends must allow",
            policies: &[
                (
                    "x",
                    r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{}]}"#,
                ),
                ("y", r#"{"podSelector":{}}"#),
                (
                    "z",
                    r#"{"podSelector":{},"policyTypes":["Ingress","Egress"],"ingress":[{}]}"#,
                ),
            ],
            probes: &[
                ("x/a", "y/a", "TCP/80", false),
                ("x/a", "z/a", "TCP/80", true),
                ("z/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "15 equal names in two namespaces",
            policies: &[
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"pod":"a"}}}]}]}"#,
                ),
                (
                    "y",
                    r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"pod":"a"}}}]}]}"#,
                ),
            ],
            probes: &[
                ("x/a", "x/b", "TCP/80", true),
                ("y/a", "x/b", "TCP/80", false),
                ("y/a", "y/b", "TCP/80", true),
                ("x/a", "y/b", "TCP/80", false),
            ],
        },
    ]);
}

#[test]
fn rules_and_peers() {
    run(&[
        Row {
            what: "16 one empty rule",
            policies: &[("x", r#"{"podSelector":{},"ingress":[{}]}"#)],
            probes: &[
                ("y/a", "x/a", "SCTP/9", true),
                ("ext1", "x/a", "ICMP", true),
            ],
        },
        Row {
            what: "17 no rules",
            policies: &[("x", r#"{"podSelector":{},"ingress":[]}"#)],
            probes: &[
                ("y/a", "x/a", "TCP/80", false),
                ("ext1", "x/a", "ICMP", false),
            ],
        },
        Row {
            what: "18 ports alone",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[],"ports":[{"port":80}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("ext1", "x/a", "TCP/80", true),
                ("y/a", "x/a", "TCP/81", false),
            ],
        },
        Row {
            what: "19 peers alone",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[],"from":[{"podSelector":{"matchLabels":{"pod":"b"}}}]}]}"#,
            )],
            probes: &[
                ("x/b", "x/a", "TCP/80", true),
                ("x/b", "x/a", "SCTP/5", true),
                ("x/b", "x/a", "ICMP", true),
                ("x/c", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "20, 21 podSelector means the own namespace",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{}}]}]}"#,
            )],
            probes: &[
                ("x/b", "x/a", "TCP/80", true),
                ("y/b", "x/a", "TCP/80", false),
                ("ext1", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "22, 26 namespaceSelector, by name",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"y"}}}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("y/c", "x/a", "UDP/9", true),
                ("z/a", "x/a", "TCP/80", false),
                ("x/b", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "23 every namespace is not everybody",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{}}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("x/b", "x/a", "TCP/80", true),
                ("ext1", "x/a", "TCP/80", false),
                ("node2", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "24 both selectors in one element",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"ns":"y"}},"podSelector":{"matchLabels":{"pod":"b"}}}]}]}"#,
            )],
            probes: &[
                ("y/b", "x/a", "TCP/80", true),
                ("y/a", "x/a", "TCP/80", false),
                ("x/b", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "25 both selectors in two elements",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{"matchLabels":{"ns":"y"}}},{"podSelector":{"matchLabels":{"pod":"b"}}}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("x/b", "x/a", "TCP/80", true),
                ("x/c", "x/a", "TCP/80", false),
                ("z/b", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "27 a peer with nothing",
            policies: &[("x", r#"{"podSelector":{},"ingress":[{"from":[{}]}]}"#)],
            probes: &[
                ("y/a", "x/a", "TCP/80", false),
                ("ext1", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "28 a selector of nobody",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"pod":"nobody"}}}]}],"egress":[{"to":[{"podSelector":{"matchLabels":{"pod":"nobody"}}}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", false),
                ("x/b", "x/a", "TCP/80", false),
                ("x/a", "y/a", "TCP/80", false),
            ],
        },
        Row {
            what: "29 no cross product",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{"matchLabels":{"pod":"b"}}}],"ports":[{"port":80}]},{"from":[{"podSelector":{"matchLabels":{"pod":"c"}}}],"ports":[{"port":81}]}]}"#,
            )],
            probes: &[
                ("x/b", "x/a", "TCP/80", true),
                ("x/b", "x/a", "TCP/81", false),
                ("x/c", "x/a", "TCP/81", true),
                ("x/c", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "30 a pod and itself",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Ingress","Egress"]}"#,
            )],
            probes: &[("x/a", "x/a", "TCP/80", true)],
        },
    ]);
}

#[test]
fn blocks() {
    run(&[
        Row {
            what: "31 a block",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"192.0.2.0/25"}},{"ipBlock":{"cidr":"2001:db8::/48"}}]}]}"#,
            )],
            probes: &[
                ("ext1", "x/a", "TCP/80", true),
                ("ext2", "x/a", "TCP/80", false),
                ("y/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "32 an exception",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"192.0.2.0/24","except":["192.0.2.200/32"]}},{"ipBlock":{"cidr":"2001:db8::/32","except":["2001:db8:1::/48"]}}]}]}"#,
            )],
            probes: &[
                ("ext1", "x/a", "TCP/80", true),
                ("ext2", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "33 an exception of one element, allowed by another",
            policies: &[
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"0.0.0.0/0","except":["192.0.2.0/24"]}},{"ipBlock":{"cidr":"::/0","except":["2001:db8::/32"]}}]}]}"#,
                ),
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"192.0.2.200/32"}},{"ipBlock":{"cidr":"2001:db8:1::200/128"}}]}]}"#,
                ),
            ],
            probes: &[
                ("ext2", "x/a", "TCP/80", true),
                ("ext1", "x/a", "TCP/80", false),
                ("y/a", "x/a", "TCP/80", true),
            ],
        },
        Row {
            what: "34 a block over pods",
            policies: &[(
                "x",
                r#"{"podSelector":{},"egress":[{"to":[{"ipBlock":{"cidr":"10.0.2.0/24"}},{"ipBlock":{"cidr":"fd00::2:0/112"}}]}]}"#,
            )],
            probes: &[
                ("x/a", "y/a", "TCP/80", true),
                ("x/a", "z/a", "TCP/80", false),
            ],
        },
        Row {
            what: "36 host bits",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"192.0.2.5/24"}},{"ipBlock":{"cidr":"2001:db8:1::5/48"}}]}]}"#,
            )],
            probes: &[("ext2", "x/a", "TCP/80", true)],
        },
        Row {
            what: "37 overlaps and duplicates",
            policies: &[
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"192.0.0.0/8"}},{"ipBlock":{"cidr":"192.0.2.0/24"}},{"ipBlock":{"cidr":"192.0.2.0/24"}},{"ipBlock":{"cidr":"2001:db8::/32"}},{"ipBlock":{"cidr":"2001:db8::1/128"}}]}]}"#,
                ),
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"192.0.2.1/32"}}],"ports":[{"port":80}]}]}"#,
                ),
            ],
            probes: &[
                ("ext1", "x/a", "TCP/81", true),
                ("ext2", "x/a", "TCP/80", true),
            ],
        },
        Row {
            what: "38 the address of another node",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"172.16.0.2/32"}},{"ipBlock":{"cidr":"fd99::2/128"}}]}]}"#,
            )],
            probes: &[
                ("node2", "x/a", "TCP/80", true),
                ("ext1", "x/a", "TCP/80", false),
            ],
        },
    ]);
}

#[test]
fn everything_of_a_family_is_nothing_of_the_other() {
    let mut world = world();
    world.policies = objects(&[(
        "x",
        r#"{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"0.0.0.0/0"}}]}]}"#,
    )]);
    let plan = world.compiler().plan().clone();
    for (from, v4, passes) in [
        ("ext1", true, true),
        ("y/a", true, true),
        ("ext1", false, false),
        ("y/a", false, false),
    ] {
        let probe = probe(from, "x/a", "TCP/80", v4);
        assert_eq!(crosses(&plan, &world, &probe), passes, "{probe:?}");
        check(&world, [probe]);
    }
}

#[test]
fn ports_and_protocols() {
    run(&[
        Row {
            what: "44, 46 TCP unless said otherwise",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[{"port":80}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("y/a", "x/a", "UDP/80", false),
                ("y/a", "x/a", "SCTP/80", false),
                ("y/a", "x/a", "ICMP", false),
            ],
        },
        Row {
            what: "45 a whole protocol",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[{"protocol":"UDP"}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "UDP/1", true),
                ("y/a", "x/a", "UDP/65535", true),
                ("y/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "47 SCTP isolates the others",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[{"protocol":"SCTP","port":80}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "SCTP/80", true),
                ("y/a", "x/a", "TCP/80", false),
            ],
        },
        Row {
            what: "48 both ends of a range",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{}}],"ports":[{"port":100,"endPort":200}]}]}"#,
            )],
            probes: &[
                ("x/b", "x/a", "TCP/99", false),
                ("x/b", "x/a", "TCP/100", true),
                ("x/b", "x/a", "TCP/200", true),
                ("x/b", "x/a", "TCP/201", false),
                ("y/b", "x/a", "TCP/150", false),
            ],
        },
        Row {
            what: "49 overlapping ranges, many of them",
            policies: &[
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"ports":[{"port":80,"endPort":80},{"port":80,"endPort":90},{"port":85,"endPort":100},{"port":200},{"port":300,"endPort":310},{"port":400},{"port":500,"endPort":65535}]}]}"#,
                ),
                (
                    "x",
                    r#"{"podSelector":{},"ingress":[{"ports":[{"protocol":"UDP","port":1},{"protocol":"UDP","port":3},{"protocol":"UDP","port":5},{"protocol":"UDP","port":7}]}]}"#,
                ),
            ],
            probes: &[
                ("y/a", "x/a", "TCP/79", false),
                ("y/a", "x/a", "TCP/100", true),
                ("y/a", "x/a", "TCP/101", false),
                ("y/a", "x/a", "TCP/200", true),
                ("y/a", "x/a", "TCP/310", true),
                ("y/a", "x/a", "TCP/311", false),
                ("y/a", "x/a", "TCP/65535", true),
                ("y/a", "x/a", "UDP/5", true),
                ("y/a", "x/a", "UDP/6", false),
                ("y/a", "x/a", "UDP/80", false),
            ],
        },
        Row {
            what: "50 a named port of two targets",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[{"port":"serve"}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("y/a", "x/a", "TCP/8080", false),
                ("y/a", "x/b", "TCP/8080", true),
                ("y/a", "x/b", "TCP/80", false),
            ],
        },
        Row {
            what: "51 a named port of the destination",
            policies: &[(
                "x",
                r#"{"podSelector":{},"egress":[{"to":[{"namespaceSelector":{"matchLabels":{"ns":"y"}}}],"ports":[{"port":"serve"}]}]}"#,
            )],
            probes: &[
                ("x/a", "y/a", "TCP/80", true),
                ("x/a", "y/a", "TCP/8080", false),
                ("x/a", "y/b", "TCP/8080", true),
                ("x/a", "y/b", "TCP/80", false),
                ("x/a", "z/a", "TCP/80", false),
            ],
        },
        Row {
            what: "52 a named port of anybody",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"ports":[{"port":"serve"}]}]}"#,
            )],
            probes: &[
                ("x/a", "y/b", "TCP/8080", true),
                ("x/a", "z/a", "TCP/80", true),
                ("x/a", "ext1", "TCP/80", false),
            ],
        },
        Row {
            what: "53 a named port within a block",
            policies: &[(
                "x",
                r#"{"podSelector":{},"egress":[{"to":[{"ipBlock":{"cidr":"10.0.2.0/24"}},{"ipBlock":{"cidr":"fd00::2:0/112"}},{"ipBlock":{"cidr":"192.0.2.0/24"}}],"ports":[{"port":"serve"}]}]}"#,
            )],
            probes: &[
                ("x/a", "y/b", "TCP/8080", true),
                ("x/a", "z/b", "TCP/8080", false),
                ("x/a", "ext1", "TCP/80", false),
            ],
        },
        Row {
            what: "54, 55 names that are not there",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[{"port":"serve","protocol":"UDP"},{"port":"nobody"}]}],"egress":[{"ports":[{"port":"nobody"}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "UDP/80", false),
                ("y/a", "x/a", "TCP/80", false),
                ("x/a", "y/a", "TCP/80", false),
            ],
        },
        Row {
            what: "56 one name, two protocols",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"ports":[{"port":"both"},{"port":"both","protocol":"UDP"}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/81", true),
                ("y/a", "x/a", "UDP/81", true),
                ("y/a", "x/a", "SCTP/81", false),
            ],
        },
        Row {
            what: "58 ports are ORed",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{}}],"ports":[{"port":80},{"port":81},{"protocol":"UDP","port":53}]}]}"#,
            )],
            probes: &[
                ("y/a", "x/a", "TCP/80", true),
                ("y/a", "x/a", "TCP/81", true),
                ("y/a", "x/a", "UDP/53", true),
                ("y/a", "x/a", "TCP/82", false),
            ],
        },
        Row {
            what: "83 ICMP",
            policies: &[(
                "x",
                r#"{"podSelector":{},"ingress":[{"from":[{"podSelector":{}}]},{"ports":[{"port":80}]}]}"#,
            )],
            probes: &[
                ("x/b", "x/a", "ICMP", true),
                ("y/b", "x/a", "ICMP", false),
                ("y/b", "z/a", "ICMP", true),
            ],
        },
    ]);
}

#[test]
fn nodes() {
    run(&[
        Row {
            what: "62, 63 the own node",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Ingress","Egress"]}"#,
            )],
            probes: &[
                ("node1", "x/a", "TCP/80", true),
                ("x/a", "node1", "TCP/80", true),
                ("node1", "x/a", "ICMP", true),
            ],
        },
        Row {
            what: "64 another node",
            policies: &[(
                "x",
                r#"{"podSelector":{},"policyTypes":["Ingress","Egress"]}"#,
            )],
            probes: &[
                ("node2", "x/a", "TCP/80", false),
                ("x/a", "node2", "TCP/80", false),
            ],
        },
    ]);
}

/// 60, 61, 69: pods of the host's network and finished ones are neither selected nor peers.
#[test]
fn pods_that_do_not_count() {
    let mut world = world();
    world.policies = objects(&[
        (
            "x",
            r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{}}]}]}"#,
        ),
        ("y", r#"{"podSelector":{},"policyTypes":["Egress"]}"#),
    ]);
    let ghost = world
        .pods
        .iter_mut()
        .find(|p| p.key().to_string() == "y/a")
        .expect("y/a");
    ghost.ifname = None;
    ghost.finished = true;
    let host = world
        .pods
        .iter_mut()
        .find(|p| p.key().to_string() == "y/b")
        .expect("y/b");
    host.ifname = None;
    host.host_network = true;
    host.addresses = vec![address("node2", true), address("node2", false)];
    for (from, to, passes) in [
        ("y/a", "x/a", false),
        ("node2", "x/a", false),
        ("y/c", "x/a", false),
        ("z/c", "x/a", true),
        ("node2", "z/a", true),
    ] {
        for v4 in [true, false] {
            let probe = probe(from, to, "TCP/80", v4);
            let (egress, ingress) = oracle::judge(&world, &probe);
            assert_eq!(egress && ingress, passes, "{probe:?}");
            check(&world, [probe]);
        }
    }
}

/// 72, 73: what the explanation says when labels and policies come and go.
#[test]
fn explanations_name_policy_and_rule() {
    let mut world = world();
    world.policies = objects(&[
        ("x", r#"{"podSelector":{"matchLabels":{"pod":"a"}}}"#),
        (
            "x",
            r#"{"podSelector":{},"ingress":[{"ports":[{"port":81}]},{"from":[{"namespaceSelector":{"matchLabels":{"ns":"y"}}}]}]}"#,
        ),
    ]);
    let compiler = world.compiler();
    let pod = |name: &str| {
        let (ns, pod) = name.split_once('/').expect("namespace/pod");
        End::Pod(selvage_policy::model::PodKey::new(ns, pod))
    };
    let why = |from: &str, to: &str, port| {
        let query = Query {
            source: pod(from),
            destination: pod(to),
            protocol: protocol_number("TCP"),
            port: Some(port),
        };
        compiler.why(&query).expect("an answer")
    };
    let allowed = why("y/a", "x/a", 80);
    assert_eq!(allowed.egress, Decision::NotIsolated);
    assert_eq!(
        allowed.ingress.to_string(),
        "allowed by NetworkPolicy x/p1, rule 1"
    );
    assert_eq!(
        why("y/a", "x/a", 81).ingress.to_string(),
        "allowed by NetworkPolicy x/p1, rule 0"
    );
    let denied = why("z/a", "x/a", 80);
    assert!(!denied.allowed());
    assert_eq!(
        denied.ingress.to_string(),
        "denied: isolated by NetworkPolicy x/p0, x/p1, and no rule allows it"
    );
    let unknown = Query {
        source: pod("x/nobody"),
        destination: pod("x/a"),
        protocol: 6,
        port: Some(80),
    };
    assert_eq!(
        compiler.why(&unknown).expect_err("no such pod").to_string(),
        "pod x/nobody is not known"
    );
}
