//! Three answers to the same question: the oracle, the plan as the kernel would run it, and `why`.

use crate::interpreter::{Interface, Packet, assert_sound, passes};
use crate::oracle::{self, Probe};
use crate::strategy::{OUTSIDE, world};
use crate::world::{NODE_ADDRESSES, World, addresses};
use proptest::prelude::*;
use selvage_policy::plan::{Hook, Plan};
use selvage_policy::revoke::Flow;
use selvage_policy::verdict::{End, Query};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub const POD_GROUP: u32 = 0x5e1;

pub fn protocol_number(name: &str) -> u8 {
    match name {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        "ICMP" => 1,
        "ICMPv6" => 58,
        other => panic!("protocol {other}"),
    }
}

/// The interface behind which an address is.
pub fn interface(world: &World, addr: IpAddr) -> Interface {
    match oracle::pod_at(world, addr).and_then(|pod| pod.ifname.clone()) {
        Some(name) => Interface {
            name,
            group: POD_GROUP,
        },
        None => Interface {
            name: "eth0".into(),
            group: 0,
        },
    }
}

pub fn packet(world: &World, probe: &Probe) -> Packet {
    Packet {
        iif: Some(interface(world, probe.source)),
        oif: Some(interface(world, probe.destination)),
        source: probe.source,
        destination: probe.destination,
        protocol: protocol_number(probe.protocol),
        port: probe.port,
        kind: 8,
        established: false,
        related: false,
        begins: true,
        mark: 0,
        local_source: oracle::is_own_node(probe.source),
    }
}

/// The way of a new packet through the node.
pub fn crosses(plan: &Plan, world: &World, probe: &Probe) -> bool {
    let packet = packet(world, probe);
    if oracle::is_own_node(probe.source) {
        return passes(
            plan,
            Hook::Output,
            &Packet {
                iif: None,
                ..packet
            },
        );
    }
    let arrived = passes(
        plan,
        Hook::Prerouting,
        &Packet {
            oif: None,
            ..packet.clone()
        },
    );
    if oracle::is_own_node(probe.destination) {
        return arrived
            && passes(
                plan,
                Hook::Input,
                &Packet {
                    oif: None,
                    ..packet
                },
            );
    }
    arrived && passes(plan, Hook::Forward, &packet)
}

/// The way of a new packet that a service proxy of the node takes in at the input hook and sends on: it does not cross
/// `forward`, and where it goes out nobody knows any more where it came in.
pub fn is_sent_on(plan: &Plan, world: &World, probe: &Probe) -> bool {
    let packet = packet(world, probe);
    let at = |hook, iif: &Option<Interface>, oif: &Option<Interface>| {
        let (iif, oif) = (iif.clone(), oif.clone());
        passes(
            plan,
            hook,
            &Packet {
                iif,
                oif,
                ..packet.clone()
            },
        )
    };
    at(Hook::Prerouting, &packet.iif, &None)
        && at(Hook::Input, &packet.iif, &None)
        && at(Hook::Output, &None, &packet.oif)
}

fn is_local(world: &World, addr: IpAddr) -> bool {
    oracle::pod_at(world, addr).is_some_and(|pod| pod.ifname.is_some())
}

pub fn check(world: &World, probes: impl IntoIterator<Item = Probe>) {
    let mut compiler = world.compiler();
    let plan = compiler.plan().clone();
    assert_sound(&plan);
    for probe in probes {
        let (egress, ingress) = oracle::judge(world, &probe);
        let here = (egress || !is_local(world, probe.source))
            && (ingress || !is_local(world, probe.destination));
        assert_eq!(crosses(&plan, world, &probe), here, "plan: {probe:?}");
        let ends = [probe.source, probe.destination];
        if !ends.into_iter().any(oracle::is_own_node) {
            assert_eq!(
                is_sent_on(&plan, world, &probe),
                here,
                "plan, at output: {probe:?}"
            );
        }
        let protocol = protocol_number(probe.protocol);
        let query = Query {
            source: End::Addr(probe.source),
            destination: End::Addr(probe.destination),
            protocol,
            port: (!probe.protocol.starts_with("ICMP")).then_some(probe.port),
        };
        let why = compiler.why(&query).expect("an answer");
        assert_eq!(
            (why.egress.allows(), why.ingress.allows()),
            (egress, ingress),
            "why: {probe:?}: {why:?}"
        );
        let flow = Flow {
            source: probe.source,
            destination: probe.destination,
            protocol,
            port: probe.port,
        };
        assert_eq!(compiler.allowed(&flow), here, "revoke: {probe:?}");
    }
}

/// Every address to every other of its family, on each of these.
pub fn probes(world: &World, kinds: &[(&'static str, u16)]) -> Vec<Probe> {
    let mut all: BTreeSet<IpAddr> = world
        .pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect();
    all.extend(
        addresses(&OUTSIDE)
            .into_iter()
            .chain(addresses(&NODE_ADDRESSES)),
    );
    let mut out = Vec::new();
    for source in &all {
        for destination in all.iter().filter(|d| d.is_ipv4() == source.is_ipv4()) {
            let probe = |(protocol, port): &(&'static str, u16)| Probe {
                source: *source,
                destination: *destination,
                protocol: if *protocol == "ICMP" && source.is_ipv6() {
                    "ICMPv6"
                } else {
                    protocol
                },
                port: *port,
            };
            out.extend(kinds.iter().map(probe));
        }
    }
    // A node does not forward what it sends to itself, and the interpreter has no way for it.
    out.retain(|p| !(oracle::is_own_node(p.source) && oracle::is_own_node(p.destination)));
    out
}

pub const KINDS: [(&str, u16); 10] = [
    ("TCP", 80),
    ("TCP", 81),
    ("TCP", 8080),
    ("TCP", 53),
    ("TCP", 379),
    ("UDP", 53),
    ("UDP", 80),
    ("SCTP", 80),
    ("SCTP", 65535),
    ("ICMP", 80),
];

proptest! {
    #![proptest_config(crate::strategy::config())]

    #[test]
    fn oracle_plan_and_why_agree(world in world()) {
        check(&world, probes(&world, &KINDS));
    }

    /// A pod's interface brings nothing that is not from its own addresses, and an unknown one nothing at all.
    #[test]
    fn nobody_speaks_for_another(world in world()) {
        let plan = world.compiler().plan().clone();
        for mut probe in probes(&world, &[("TCP", 80)]) {
            let victim = probe.source;
            let names = world.pods.iter().filter_map(|pod| pod.ifname.clone()).chain(["sv-unknown".to_owned()]);
            for name in names {
                let owner = oracle::pod_at(&world, victim).and_then(|pod| pod.ifname.clone());
                let honest = owner.as_ref() == Some(&name);
                let iif = Some(Interface { name, group: POD_GROUP });
                probe.port = 80;
                let spoofed = Packet { iif, oif: None, ..packet(&world, &probe) };
                prop_assert_eq!(passes(&plan, Hook::Prerouting, &spoofed), honest, "{:?}", spoofed);
            }
        }
    }

    /// Towards a pod's interface goes nothing that is not for a pod that is dispatched there.
    #[test]
    fn unknown_destinations_stay_closed(world in world()) {
        let plan = world.compiler().plan().clone();
        for probe in probes(&world, &[("TCP", 80)]) {
            if is_local(&world, probe.destination) {
                continue;
            }
            let oif = Some(Interface { name: "sv-unknown".into(), group: POD_GROUP });
            let iif = Some(Interface { name: "eth0".into(), group: 0 });
            let lost = Packet { iif, oif, ..packet(&world, &probe) };
            prop_assert!(!passes(&plan, Hook::Forward, &lost), "{:?}", lost);
        }
    }
}
