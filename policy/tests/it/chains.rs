//! The fixed chains, packet by packet: what is established or revoked, neighbour discovery, what is not about pods.

use crate::equivalence::POD_GROUP;
use crate::interpreter::{Interface, Packet, judge, passes};
use crate::world::{NODE, addresses};
use selvage_policy::api::NetworkPolicySpec;
use selvage_policy::model::{LocalPod, PodKey, PolicyKey};
use selvage_policy::plan::{Hook, IfaceMatch, Key, Plan, text};
use selvage_policy::revoke::Flow;
use selvage_policy::verdict::{Decision, End, Query};
use selvage_policy::{Change, Compiler, Config, LocalStatus, lower};
use std::sync::Arc;

const MARK: u32 = 1 << 31;
const UNSEEN: u32 = 1 << 30;

fn config() -> Config {
    Config {
        node: NODE.into(),
        ..Config::default()
    }
}

/// `x/a` on `sv11` denies everything, `x/b` on `sv12` nothing.
fn compiler(config: Config) -> Compiler {
    let mut compiler = Compiler::new(config);
    for (name, ifname, ips) in [
        ("a", "sv11", ["10.0.1.1", "fd00::1:1"]),
        ("b", "sv12", ["10.0.1.2", "fd00::1:2"]),
    ] {
        let pod = crate::world::Pod {
            namespace: "x".into(),
            name: name.into(),
            labels: [("pod".to_owned(), name.to_owned())].into(),
            addresses: addresses(&ips),
            ifname: Some(ifname.into()),
            host_network: false,
            finished: false,
            ports: Vec::new(),
            created: 1,
        };
        compiler.apply(pod.change());
        pod.attachment()
            .into_iter()
            .for_each(|change| compiler.apply(change));
    }
    compiler.apply(policy(
        r#"{"podSelector":{"matchLabels":{"pod":"a"}},"policyTypes":["Ingress","Egress"]}"#,
    ));
    compiler
}

fn policy(json: &str) -> Change {
    let spec: NetworkPolicySpec = serde_json::from_str(json).expect("a spec");
    Change::Policy(Arc::new(
        lower(PolicyKey::new("x", "p"), &spec).expect("a valid policy"),
    ))
}

fn plan() -> Plan {
    compiler(config()).plan().clone()
}

fn interface(name: &str) -> Option<Interface> {
    let group = if name.starts_with("sv") { POD_GROUP } else { 0 };
    (!name.is_empty()).then(|| Interface {
        name: name.into(),
        group,
    })
}

fn packet(iif: &str, source: &str, oif: &str, destination: &str) -> Packet {
    Packet {
        iif: interface(iif),
        oif: interface(oif),
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        protocol: 6,
        port: 80,
        kind: 0,
        established: false,
        related: false,
        begins: true,
        mark: 0,
        local_source: false,
    }
}

#[test]
fn established_flows_pass_unless_revoked() {
    let new = packet("eth0", "192.0.2.1", "sv11", "10.0.1.1");
    let established = Packet {
        established: true,
        ..new.clone()
    };
    let revoked = Packet {
        mark: MARK | 5,
        ..established.clone()
    };
    let marked_by_others = Packet {
        mark: 5,
        ..established.clone()
    };
    let plan = plan();
    assert!(!passes(&plan, Hook::Forward, &new));
    assert!(passes(&plan, Hook::Forward, &established));
    assert!(passes(&plan, Hook::Forward, &marked_by_others));
    assert!(!passes(&plan, Hook::Forward, &revoked));
    let keep = compiler(Config {
        revoked_mark: 0,
        unseen_mark: 0,
        ..config()
    })
    .plan()
    .clone();
    assert!(passes(&keep, Hook::Forward, &revoked));
    assert!(!passes(&keep, Hook::Forward, &new));
}

/// 62: the node reaches its own pods from every address that it has, whether its Node object names the address or not,
/// and whatever was revoked while the address was not known.
#[test]
fn what_the_node_sends_itself_is_never_judged() {
    let plan = plan();
    for (source, destination) in [("172.16.0.1", "10.0.1.1"), ("fd99::1", "fd00::1:1")] {
        let own = Packet {
            local_source: true,
            ..packet("", source, "sv11", destination)
        };
        let marked = Packet {
            established: true,
            mark: MARK,
            ..own.clone()
        };
        assert!(passes(&plan, Hook::Output, &own) && passes(&plan, Hook::Output, &marked));
        // To an interface that nobody dispatched, too.
        let unknown = packet("", source, "sv-unknown", destination);
        assert!(!passes(&plan, Hook::Output, &unknown));
        let unknown = Packet {
            local_source: true,
            ..unknown
        };
        assert!(passes(&plan, Hook::Output, &unknown));
    }
    // Before it has an address: DHCP, IGMP, neighbour discovery, MLD; but nothing else comes from nowhere.
    assert!(passes(
        &plan,
        Hook::Output,
        &packet("", "0.0.0.0", "sv11", "224.0.0.22")
    ));
    for (protocol, kind, wanted) in [
        (58, 135, true),
        (58, 143, true),
        (58, 129, false),
        (58, 1, false),
        (17, 135, false),
    ] {
        let packet = Packet {
            protocol,
            kind,
            ..packet("", "::", "sv11", "fd00::1:1")
        };
        assert_eq!(
            passes(&plan, Hook::Output, &packet),
            wanted,
            "{protocol} {kind}"
        );
    }
}

/// 89: what a node sends on for somebody else (IPVS) is judged although it does not cross `forward`.
#[test]
fn what_the_node_sends_for_others_is_judged() {
    let plan = plan();
    let judged = |packet: &Packet| passes(&plan, Hook::Output, packet);
    for (outside, a, b) in [
        ("192.0.2.1", "10.0.1.1", "10.0.1.2"),
        ("2001:db8::1", "fd00::1:1", "fd00::1:2"),
    ] {
        // `a` is isolated both ways, `b` is not.
        for (source, oif, destination, wanted) in [
            (outside, "sv11", a, false),
            (outside, "sv12", b, true),
            (b, "sv11", a, false),
            (a, "sv12", b, false),
            (a, "eth0", outside, false),
            (b, "eth0", outside, true),
            (a, "sv11", a, true),
            (outside, "eth1", outside, true),
            (outside, "sv-unknown", outside, false),
            // A link-local address that is not the node's: `forward` never sees such a source, IPVS sends it on.
            ("fe80::99", "sv11", a, false),
        ] {
            if source.contains(':') != destination.contains(':') {
                continue;
            }
            let new = packet("", source, oif, destination);
            assert_eq!(judged(&new), wanted, "{new:?}");
            let established = Packet {
                established: true,
                mark: 5,
                ..new.clone()
            };
            assert!(judged(&established), "{established:?}");
            let revoked = Packet {
                mark: MARK | 5,
                ..established
            };
            assert!(!judged(&revoked), "{revoked:?}");
        }
    }
    let mut keep = compiler(Config {
        revoked_mark: 0,
        ..config()
    });
    let established = Packet {
        established: true,
        mark: MARK,
        ..packet("", "192.0.2.1", "sv11", "10.0.1.1")
    };
    assert!(passes(keep.plan(), Hook::Output, &established));
}

/// A flow that is taken up without its beginning: whoever sends, each packet is judged by itself. `a` may neither be
/// reached nor reach anything, so nothing of its flows passes in the direction that ends or begins at `a`.
#[test]
fn packets_of_a_flow_without_its_beginning_are_judged_one_by_one() {
    let mut compiler = compiler(config());
    compiler.apply(policy(
        r#"{"podSelector":{"matchLabels":{"pod":"a"}},"policyTypes":["Ingress"]}"#,
    ));
    let plan = compiler.plan().clone();
    for hook in [Hook::Forward, Hook::Output] {
        let iif = |name| if hook == Hook::Forward { name } else { "" };
        for protocol in [6, 132] {
            let out = Packet {
                begins: false,
                protocol,
                mark: 5,
                ..packet(iif("sv11"), "10.0.1.1", "eth0", "192.0.2.1")
            };
            let back = Packet {
                established: true,
                mark: UNSEEN | 5,
                ..packet(iif("eth0"), "192.0.2.1", "sv11", "10.0.1.1")
            };
            // The first one is taken up, for `a` may send; what comes back is no answer.
            assert_eq!(judge(&plan, hook, &out), (true, UNSEEN | 5), "{hook:?}");
            assert!(!passes(&plan, hook, &back), "{hook:?}");
            let out_again = Packet {
                established: true,
                mark: UNSEEN | 5,
                ..out.clone()
            };
            assert!(passes(&plan, hook, &out_again), "{hook:?}");
            // Errors about it come back.
            let error = Packet {
                established: false,
                related: true,
                ..back.clone()
            };
            assert!(passes(&plan, hook, &error), "{hook:?}");
            let revoked = Packet {
                mark: UNSEEN | MARK,
                ..error
            };
            assert!(!passes(&plan, hook, &revoked), "{hook:?}");
            // A beginning is not marked, nor is what does not begin in this way.
            let begins = Packet {
                begins: true,
                ..out.clone()
            };
            assert_eq!(judge(&plan, hook, &begins), (true, 5), "{hook:?}");
            let datagram = Packet {
                protocol: 17,
                ..out
            };
            assert_eq!(judge(&plan, hook, &datagram), (true, 5), "{hook:?}");
        }
    }
    // Flows that do not concern pods keep their mark.
    let transit = Packet {
        begins: false,
        ..packet("eth0", "192.0.2.1", "eth1", "198.51.100.1")
    };
    assert_eq!(judge(&plan, Hook::Forward, &transit), (true, 0));
}

#[test]
fn what_is_not_about_pods_is_left_alone() {
    let plan = plan();
    for (source, destination) in [
        ("192.0.2.1", "198.51.100.1"),
        ("2001:db8::1", "2001:db8::2"),
    ] {
        let transit = packet("eth0", source, "eth1", destination);
        assert!(
            passes(&plan, Hook::Prerouting, &transit) && passes(&plan, Hook::Forward, &transit)
        );
    }
    // A pod of another node that this one only forwards for.
    assert!(passes(
        &plan,
        Hook::Forward,
        &packet("eth0", "10.0.7.1", "eth1", "10.0.8.1")
    ));
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    let plan = plan();
    assert!(passes(
        &plan,
        Hook::Forward,
        &packet("sv11", "10.0.1.1", "sv11", "10.0.1.1")
    ));
    assert!(passes(
        &plan,
        Hook::Forward,
        &packet("sv11", "fd00::1:1", "sv11", "fd00::1:1")
    ));
    assert!(!passes(
        &plan,
        Hook::Forward,
        &packet("sv12", "10.0.1.2", "sv11", "10.0.1.1")
    ));
}

#[test]
fn pods_resolve_neighbours_but_do_not_advertise_routers() {
    let plan = plan();
    let from = |iif, source, protocol, kind| {
        let packet = Packet {
            protocol,
            kind,
            ..packet(iif, source, "", "ff02::1")
        };
        passes(&plan, Hook::Prerouting, &packet)
    };
    for source in ["::", "fe80::1234"] {
        for kind in [133, 135, 136] {
            assert!(from("sv11", source, 58, kind), "{source} {kind}");
            assert!(from("sv-unknown", source, 58, kind), "{source} {kind}");
        }
        for kind in [128, 134, 137, 143] {
            assert!(!from("sv11", source, 58, kind), "{source} {kind}");
        }
        assert!(!from("sv11", source, 6, 135), "{source}");
    }
    assert!(from("sv11", "fd00::1:1", 58, 135));
    assert!(!from("sv11", "fd00::1:2", 58, 135));
    assert!(!from("sv11", "fec0::1", 58, 135));
    assert!(from("eth0", "fe80::1", 58, 134));
}

/// Pods of another plugin: found by the beginnings of their interfaces' names, in every chain.
#[test]
fn interfaces_by_prefix() {
    let prefix = |text: &str| IfaceMatch::Prefix(text.into());
    let mut compiler = compiler(Config {
        pod_interfaces: vec![prefix("cali"), prefix("sv1")],
        ..config()
    });
    let plan = compiler.plan().clone();
    let from = |iif, source| {
        let packet = packet(iif, source, "", "192.0.2.1");
        passes(&plan, Hook::Prerouting, &packet)
    };
    // A pod's own address, from its own interface, whatever the other prefixes are.
    for (ifname, own, other) in [
        ("sv11", "10.0.1.1", "10.0.1.2"),
        ("sv12", "10.0.1.2", "10.0.1.1"),
    ] {
        assert!(from(ifname, own) && !from(ifname, other), "{ifname}");
    }
    // What nobody has told of is closed, and what is no pod's is not concerned.
    for ifname in ["cali1", "sv19", "cali"] {
        assert!(!from(ifname, "10.0.9.9"), "{ifname}");
    }
    for ifname in ["eth0", "sv2", "cal", "xcali1"] {
        assert!(from(ifname, "10.0.9.9"), "{ifname}");
    }
    let forward = |iif, source, oif, destination| {
        let packet = packet(iif, source, oif, destination);
        passes(&plan, Hook::Forward, &packet)
    };
    // `x/a` lets nothing in or out but itself, `x/b` everything.
    assert!(!forward("eth0", "192.0.2.1", "sv11", "10.0.1.1"));
    assert!(!forward("sv11", "10.0.1.1", "eth0", "192.0.2.1"));
    assert!(forward("sv11", "10.0.1.1", "sv11", "10.0.1.1"));
    assert!(forward("eth0", "192.0.2.1", "sv12", "10.0.1.2"));
    assert!(forward("sv12", "10.0.1.2", "eth0", "192.0.2.1"));
    for ifname in ["cali1", "sv19"] {
        assert!(!forward("eth0", "192.0.2.1", ifname, "10.0.9.9"));
    }
    let output = |source, oif, destination, local_source| {
        let packet = Packet {
            local_source,
            ..packet("", source, oif, destination)
        };
        passes(&plan, Hook::Output, &packet)
    };
    for (oif, destination) in [("sv11", "10.0.1.1"), ("cali1", "10.0.9.9")] {
        assert!(output("192.0.2.7", oif, destination, true), "{oif}");
        assert!(!output("192.0.2.1", oif, destination, false), "{oif}");
    }
    assert!(!output("10.0.1.1", "eth0", "192.0.2.1", false));
    assert!(output("192.0.2.1", "sv12", "10.0.1.2", false));
    let text = text::plan(&plan);
    for prefix in ["cali", "sv1"] {
        let closed = format!("iifname \"{prefix}*\" counter drop");
        assert_eq!(text.matches(&closed).count(), 1, "{text}");
        let closed = format!("oifname \"{prefix}*\" counter drop");
        assert_eq!(text.matches(&closed).count(), 2, "{text}");
    }
}

/// 67: the attachment is there before the API knows the address; without K8S arguments no selector matches.
#[test]
fn attachments_without_a_pod() {
    let mut compiler = compiler(config());
    let ifname = "sv99".parse().expect("an interface name");
    let anonymous = LocalPod {
        ifname,
        ifindex: 9,
        addresses: addresses(&["10.0.1.9"]),
        pod: None,
    };
    compiler.apply(Change::Local(anonymous.clone()));
    compiler.apply(policy(
        r#"{"podSelector":{},"ingress":[{"from":[{"namespaceSelector":{}},{"podSelector":{}}]}]}"#,
    ));
    let plan = compiler.plan().clone();
    assert!(passes(
        &plan,
        Hook::Prerouting,
        &packet("sv99", "10.0.1.9", "", "192.0.2.1")
    ));
    assert!(passes(
        &plan,
        Hook::Forward,
        &packet("sv11", "10.0.1.1", "sv99", "10.0.1.9")
    ));
    assert!(!passes(
        &plan,
        Hook::Forward,
        &packet("sv99", "10.0.1.9", "sv11", "10.0.1.1")
    ));
    let waiting = LocalPod {
        pod: Some(selvage_policy::model::PodRef {
            key: selvage_policy::model::PodKey::new("x", "later"),
            uid: None,
        }),
        ..anonymous
    };
    compiler.apply(Change::Local(waiting));
    let plan = compiler.plan().clone();
    assert!(!passes(
        &plan,
        Hook::Prerouting,
        &packet("sv99", "10.0.1.9", "", "192.0.2.1")
    ));
    assert!(!passes(
        &plan,
        Hook::Forward,
        &packet("eth0", "192.0.2.1", "sv99", "10.0.1.9")
    ));
    let query = Query {
        source: End::Addr("192.0.2.1".parse().expect("an address")),
        destination: End::Addr("10.0.1.9".parse().expect("an address")),
        protocol: 6,
        port: Some(80),
    };
    assert_eq!(
        compiler.why(&query).expect("an answer").ingress,
        Decision::Closed
    );
}

/// 71, 78: what a change revokes.
#[test]
fn a_tightened_policy_revokes_flows() {
    let mut compiler = compiler(config());
    while compiler.take_delta().is_some() {}
    let flow = |source: &str, destination: &str| Flow {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        protocol: 6,
        port: 80,
    };
    let (into_b, out_of_b) = (flow("192.0.2.1", "10.0.1.2"), flow("10.0.1.2", "192.0.2.1"));
    assert!(compiler.allowed(&into_b) && compiler.allowed(&out_of_b));
    compiler.apply(policy(r#"{"podSelector":{}}"#));
    let mut deltas = std::iter::from_fn(|| compiler.take_delta());
    assert!(deltas.any(|delta| delta.may_revoke()));
    assert_eq!(deltas.filter(|delta| delta.may_revoke()).count(), 0);
    assert!(!compiler.allowed(&into_b) && compiler.allowed(&out_of_b));
    // Flows of other nodes are for their agents.
    assert!(compiler.allowed(&flow("10.0.7.1", "10.0.8.1")));
    // A new pod that nothing isolates revokes nothing.
    let ifname = "sv99".parse().expect("an interface name");
    compiler.apply(Change::Local(LocalPod {
        ifname,
        ifindex: 9,
        addresses: addresses(&["10.0.1.9"]),
        pod: None,
    }));
    assert!(!compiler.take_delta().expect("a change").may_revoke());
    assert!(
        compiler
            .local_addresses()
            .contains(&"10.0.1.9".parse().expect("an address"))
    );
}

/// After the table was lost, flows to a closed interface have to be judged like all others.
#[test]
fn addresses_of_closed_attachments_are_ours_too() {
    let mut compiler = compiler(config());
    compiler.apply(Change::PodGone(PodKey::new("x", "b")));
    assert_eq!(
        compiler.status(&"sv12".parse().expect("an interface name")),
        LocalStatus::Waiting
    );
    let b = addresses(&["10.0.1.2"])[0];
    assert!(compiler.local_addresses().contains(&b));
    assert!(!compiler.allowed(&Flow {
        source: "192.0.2.1".parse().expect("an address"),
        destination: b,
        protocol: 6,
        port: 80,
    }));
}

/// Who waits for a generation that no delta will bring would wait for ever.
#[test]
fn what_needs_nothing_in_the_plan_is_planned_already() {
    let mut compiler = compiler(config());
    while compiler.take_delta().is_some() {}
    let before = compiler.generation();
    let ifname = "sv99".parse().expect("an interface name");
    compiler.apply(Change::Local(LocalPod {
        ifname,
        ifindex: 9,
        addresses: Vec::new(),
        pod: None,
    }));
    assert_eq!(compiler.status(&ifname), LocalStatus::Planned(before));
    assert!(compiler.take_delta().is_none());
}

#[test]
fn keys_as_the_kernel_compares_them() {
    let a = "10.0.0.1".parse().expect("an address");
    let cases = [
        (Key::Addr(a), "0a000001"),
        (
            Key::AddrProtoPort(a, selvage_policy::model::Proto::Sctp, 80),
            "0a0000018400000000500000",
        ),
        (
            Key::ProtoPort(selvage_policy::model::Proto::Udp, 53),
            "1100000000350000",
        ),
        (Key::PortRange(53, 80), "0035"),
        (
            Key::IfnameAddr("sv1".parse().expect("a name"), a),
            "737631000000000000000000000000000a000001",
        ),
    ];
    for (key, hex) in cases {
        let bytes: String = key.bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, hex, "{key:?}");
    }
    let end = |key: Key| key.interval_end();
    assert_eq!(end(Key::PortRange(53, 80)), Some(vec![0, 81]));
    assert_eq!(end(Key::PortRange(53, 65535)), None);
    assert_eq!(end(Key::AddrRange(a, a)), Some(vec![10, 0, 0, 2]));
    assert_eq!(
        end(Key::AddrRange(
            a,
            "255.255.255.255".parse().expect("an address")
        )),
        None
    );
}
