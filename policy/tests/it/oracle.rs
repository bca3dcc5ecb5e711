//! NetworkPolicy by brute force, written from the text of the specification; shares nothing with the compiler but the
//! API types.

use crate::world::{Map, NODE_ADDRESSES, Pod, World};
use selvage_policy::api::{IntOrString, LabelSelector, NetworkPolicyPeer, NetworkPolicyPort};
use std::net::IpAddr;

/// A new packet from one address to another.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `TCP`, `UDP`, `SCTP`, or something without ports.
    pub protocol: &'static str,
    pub port: u16,
}

/// Whether the pods at both ends let it through: (egress of the source, ingress of the destination).
pub fn judge(world: &World, probe: &Probe) -> (bool, bool) {
    let source = pod_at(world, probe.source);
    let destination = pod_at(world, probe.destination);
    // A pod cannot block access to itself.
    if source.is_some() && probe.source == probe.destination {
        return (true, true);
    }
    // Traffic to and from the node where a pod is running is always allowed.
    let own_node = |pod: &Pod, addr: IpAddr| pod.ifname.is_some() && is_own_node(addr);
    let egress = source.is_none_or(|pod| {
        own_node(pod, probe.destination) || egress_allows(world, pod, destination, probe)
    });
    let ingress = destination
        .is_none_or(|pod| own_node(pod, probe.source) || ingress_allows(world, pod, source, probe));
    (egress, ingress)
}

pub fn is_own_node(addr: IpAddr) -> bool {
    NODE_ADDRESSES.iter().any(|own| own.parse() == Ok(addr))
}

/// The pod that has an address: not one that finished or has the host's network; here before elsewhere, new before old.
pub fn pod_at(world: &World, addr: IpAddr) -> Option<&Pod> {
    let mut owners: Vec<_> = world
        .pods
        .iter()
        .filter(|pod| !pod.finished && !pod.host_network && pod.addresses.contains(&addr))
        .collect();
    owners.sort_by_key(|pod| {
        let tie = pod
            .ifname
            .clone()
            .unwrap_or_else(|| format!("{}\0{}", pod.namespace, pod.name));
        (pod.ifname.is_none(), std::cmp::Reverse(pod.created), tie)
    });
    owners.first().copied()
}

fn ingress_allows(world: &World, pod: &Pod, source: Option<&Pod>, probe: &Probe) -> bool {
    let mut isolated = false;
    for policy in world
        .policies
        .iter()
        .filter(|p| p.namespace == pod.namespace)
    {
        let types = policy.spec.policy_types.clone().unwrap_or_default();
        let covers = types.is_empty() || types.iter().any(|t| t == "Ingress");
        if !covers || !selects(&policy.spec.pod_selector, &pod.labels) {
            continue;
        }
        isolated = true;
        for rule in policy.spec.ingress.iter().flatten() {
            let from = rule.from.clone().unwrap_or_default();
            let ports = rule.ports.clone().unwrap_or_default();
            let peer = from.is_empty()
                || from
                    .iter()
                    .any(|p| is_peer(world, &policy.namespace, p, probe.source, source));
            if peer && (ports.is_empty() || ports.iter().any(|p| is_port(p, probe, Some(pod)))) {
                return true;
            }
        }
    }
    !isolated
}

fn egress_allows(world: &World, pod: &Pod, destination: Option<&Pod>, probe: &Probe) -> bool {
    let mut isolated = false;
    for policy in world
        .policies
        .iter()
        .filter(|p| p.namespace == pod.namespace)
    {
        let types = policy.spec.policy_types.clone().unwrap_or_default();
        let rules = policy.spec.egress.clone().unwrap_or_default();
        let covers = if types.is_empty() {
            !rules.is_empty()
        } else {
            types.iter().any(|t| t == "Egress")
        };
        if !covers || !selects(&policy.spec.pod_selector, &pod.labels) {
            continue;
        }
        isolated = true;
        for rule in rules {
            let to = rule.to.unwrap_or_default();
            let ports = rule.ports.unwrap_or_default();
            let peer = to.is_empty()
                || to
                    .iter()
                    .any(|p| is_peer(world, &policy.namespace, p, probe.destination, destination));
            if peer && (ports.is_empty() || ports.iter().any(|p| is_port(p, probe, destination))) {
                return true;
            }
        }
    }
    !isolated
}

fn is_peer(
    world: &World,
    namespace: &str,
    peer: &NetworkPolicyPeer,
    addr: IpAddr,
    pod: Option<&Pod>,
) -> bool {
    if let Some(block) = &peer.ip_block {
        let excepted = block
            .except
            .iter()
            .flatten()
            .any(|hole| in_cidr(addr, hole));
        return in_cidr(addr, &block.cidr) && !excepted;
    }
    let Some(pod) = pod else { return false };
    match (&peer.namespace_selector, &peer.pod_selector) {
        (None, None) => false,
        (None, Some(pods)) => pod.namespace == namespace && selects(pods, &pod.labels),
        (Some(namespaces), pods) => {
            let Some(home) = world.namespaces.iter().find(|n| n.name == pod.namespace) else {
                return false;
            };
            selects(namespaces, &home.labels)
                && pods.as_ref().is_none_or(|pods| selects(pods, &pod.labels))
        }
    }
}

fn is_port(spec: &NetworkPolicyPort, probe: &Probe, destination: Option<&Pod>) -> bool {
    if spec.protocol.as_deref().unwrap_or("TCP") != probe.protocol {
        return false;
    }
    match &spec.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            let last = spec.end_port.unwrap_or(*first);
            (*first..=last).contains(&i32::from(probe.port))
        }
        Some(IntOrString::String(name)) => destination.is_some_and(|pod| {
            pod.ports.iter().any(|(own, protocol, port)| {
                own == name
                    && format!("{protocol:?}").to_uppercase() == probe.protocol
                    && *port == probe.port
            })
        }),
    }
}

fn selects(selector: &LabelSelector, labels: &Map) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().all(|e| {
        let value = labels.get(&e.key);
        match e.operator.as_str() {
            "In" => value.is_some_and(|v| e.values.contains(v)),
            "NotIn" => value.is_none_or(|v| !e.values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("operator {other}"),
        }
    });
    equal && expressions
}

/// By comparing the first bits of both, written out.
fn in_cidr(addr: IpAddr, cidr: &str) -> bool {
    let (network, length) = cidr.split_once('/').expect("a CIDR");
    let network: IpAddr = network.parse().expect("an address");
    let length: usize = length.parse().expect("a length");
    let bits = |a: IpAddr| -> String {
        match a {
            IpAddr::V4(a) => a.octets().iter().map(|b| format!("{b:08b}")).collect(),
            IpAddr::V6(a) => a.octets().iter().map(|b| format!("{b:08b}")).collect(),
        }
    };
    addr.is_ipv4() == network.is_ipv4() && bits(addr)[..length] == bits(network)[..length]
}
