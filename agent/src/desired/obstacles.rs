//! What keeps packets of this node's pods from passing, whatever policy says: found in what the kernel and the objects
//! show, named for `status`, and applied to one flow for `why`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use selvage_policy::model::{Phase, PodFact};

use crate::store::Store;

/// Something in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What, for people.
    pub what: String,
    /// What to do about it.
    pub todo: String,
    /// Which packets do not pass.
    pub stops: Stops,
}

/// Which packets do not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stops {
    /// Those from and to these addresses.
    Addresses(BTreeSet<IpAddr>),
    /// Those between these addresses and what is not on this node.
    Outside(BTreeSet<IpAddr>),
    /// Those of one family that this node forwards: all from and to its pods.
    Forwarded {
        /// IPv6, else IPv4.
        v6: bool,
    },
    /// None: those from and to these addresses are not judged by policy.
    NotJudged(BTreeSet<IpAddr>),
    /// Perhaps some of those that this node forwards; it cannot be said which.
    Perhaps,
}

/// What an obstacle means for one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It does not concern the flow.
    None,
    /// It may stop it.
    May,
    /// It stops it.
    Stops,
    /// Policy does not judge it at one of its ends at least.
    NotJudged,
}

/// What is known beside the store.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The name of this node.
    pub node: &'a str,
    /// Pods of this node that have an interface, by address.
    pub pods: &'a BTreeMap<IpAddr, String>,
    /// Names of pod interfaces without an attachment.
    pub strays: &'a [String],
    /// How the names of another plugin's pod interfaces begin, as `veth*`; empty where pods are our plugin's.
    pub patterns: &'a [String],
    /// Pods of this node with addresses that are behind none of another plugin's pod interfaces.
    pub unrouted: &'a [(String, IpAddr)],
    /// Prefixes that this node announces; `None` if it announces none to anybody.
    pub announced: Option<&'a [IpNet]>,
}

impl Obstacle {
    /// What it means for packets between two addresses. `local`: the addresses of this node's pods and its own.
    pub fn means(&self, source: IpAddr, destination: IpAddr, local: &BTreeSet<IpAddr>) -> Meaning {
        let ends = [source, destination];
        let here = ends.iter().filter(|end| local.contains(end)).count();
        let stops = match &self.stops {
            Stops::Addresses(addresses) => ends.iter().any(|end| addresses.contains(end)),
            Stops::Outside(addresses) => {
                ends.iter().any(|end| addresses.contains(end)) && here < ends.len()
            }
            Stops::Forwarded { v6 } => here > 0 && source.is_ipv6() == *v6,
            Stops::NotJudged(_) if ends.iter().any(|end| self.concerns(*end)) => {
                return Meaning::NotJudged;
            }
            Stops::Perhaps if here > 0 => return Meaning::May,
            Stops::Perhaps | Stops::NotJudged(_) => false,
        };
        if stops { Meaning::Stops } else { Meaning::None }
    }

    /// Whether policy does not judge what an address sends and gets.
    pub fn concerns(&self, addr: IpAddr) -> bool {
        matches!(&self.stops, Stops::NotJudged(addresses) if addresses.contains(&addr))
    }
}

/// All that is in the way, the worst first.
pub fn obstacles(store: &Store, known: &Known<'_>) -> Vec<Obstacle> {
    let mut all = Vec::new();
    let attached = known.pods;
    all.extend(unrouted(store, known));
    all.extend(strays(store, known, attached));
    let families: BTreeSet<bool> = attached.keys().map(IpAddr::is_ipv6).collect();
    for v6 in families {
        if store.forwards_not(v6) {
            all.push(forwarding(v6));
        }
    }
    all.extend(outside(known, attached));
    if !attached.is_empty() && !store.droppers().is_empty() {
        all.push(droppers(store.droppers(), known.patterns));
    }
    all
}

/// Interfaces that nobody answers for: the state directory was lost while pods ran.
fn strays(
    store: &Store,
    known: &Known<'_>,
    attached: &BTreeMap<IpAddr, String>,
) -> Option<Obstacle> {
    if known.strays.is_empty() {
        return None;
    }
    let is_lost = |pod: &PodFact| {
        let here = pod.node.as_deref() == Some(known.node);
        here && !pod.host_network
            && pod.phase == Phase::Live
            && !pod.ips.is_empty()
            && !pod.ips.iter().any(|addr| attached.contains_key(&addr))
    };
    let lost: Vec<_> = store.pods().filter(|pod| is_lost(pod)).collect();
    let names = named(lost.iter().map(|pod| pod.key.to_string()));
    let (number, noun) = match known.strays.len() {
        1 => (1, "pod interface has"),
        number => (number, "pod interfaces have"),
    };
    let whose = match names.is_empty() {
        true => String::new(),
        false => format!("; pods of this node without one: {names}"),
    };
    Some(Obstacle {
        what: format!(
            "{number} {noun} no attachment and is closed: {}{whose}",
            named(known.strays.iter().cloned())
        ),
        todo: "was the state directory lost or changed? nobody knows whose they are, and their addresses may be given \
               again: delete these pods, so that they are made anew"
            .into(),
        stops: Stops::Addresses(lost.iter().flat_map(|pod| pod.ips.iter()).collect()),
    })
}

/// Pods whose packets go by another way than interfaces that we know: another plugin's bridge, or another prefix.
fn unrouted(store: &Store, known: &Known<'_>) -> Option<Obstacle> {
    if known.unrouted.is_empty() {
        return None;
    }
    let pods: BTreeSet<&str> = known.unrouted.iter().map(|(pod, _)| &**pod).collect();
    let names = named(
        known
            .unrouted
            .iter()
            .map(|(pod, addr)| format!("{pod} ({addr})")),
    );
    let prefixes = known.patterns.join(", ");
    let interfaces = store.pod_interfaces().into_iter().flatten();
    let ports = interfaces.filter_map(|(name, interface)| Some((name, interface.bridge.as_ref()?)));
    let ports: Vec<String> = ports
        .map(|(name, bridge)| format!("{name} of {bridge}"))
        .collect();
    let todo = match ports.is_empty() {
        true => format!(
            "is the prefix right? `ip route get ADDRESS` on the node names the interface of a pod, and it has to begin as \
             --pod-interface-prefix says ({prefixes}); a pod behind a bridge has no route of its own"
        ),
        false => format!(
            "interfaces of pods are ports of a bridge ({}), and what pods of one bridge send each other is not routed: use a \
             plugin that routes to each pod (ptp, or flannel with a delegate of type ptp)",
            named(ports.into_iter())
        ),
    };
    let noun = if pods.len() == 1 { "pod" } else { "pods" };
    Some(Obstacle {
        what: format!(
            "policy is not enforced for {} {noun} of this node: no interface {prefixes} has a host route to {names}",
            pods.len()
        ),
        todo,
        stops: Stops::NotJudged(known.unrouted.iter().map(|(_, addr)| *addr).collect()),
    })
}

fn forwarding(v6: bool) -> Obstacle {
    let (family, sysctl) = match v6 {
        false => ("IPv4", "net.ipv4.ip_forward"),
        true => ("IPv6", "net.ipv6.conf.all.forwarding"),
    };
    Obstacle {
        what: format!("this node does not forward {family}: {sysctl} is 0, its pods are cut off"),
        todo: format!(
            "sysctl -w {sysctl}=1, and find out who sets it back: files in /etc/sysctl.d, another network program"
        ),
        stops: Stops::Forwarded { v6 },
    }
}

/// Addresses to which nobody is told the way.
fn outside(known: &Known<'_>, attached: &BTreeMap<IpAddr, String>) -> Option<Obstacle> {
    let announced = known.announced?;
    let is_outside = |addr: &IpAddr| !announced.iter().any(|net| net.contains(addr));
    let found: BTreeMap<_, _> = attached.iter().filter(|(a, _)| is_outside(a)).collect();
    if found.is_empty() {
        return None;
    }
    let names = named(found.iter().map(|(addr, pod)| format!("{pod} ({addr})")));
    let announced = match announced {
        [] => "nothing".to_owned(),
        some => named(some.iter().map(ToString::to_string)),
    };
    Some(Obstacle {
        what: format!(
            "addresses of pods are outside of what this node announces ({announced}), and other nodes do not know the way \
             to them: {names}"
        ),
        todo: "do ipam.ranges of the CNI configuration lie in spec.podCIDRs of this Node? make pods with other addresses \
               anew, or announce these with `networks` of the BGPConfiguration"
            .into(),
        stops: Stops::Outside(found.into_keys().copied().collect()),
    })
}

fn droppers(chains: &[String], patterns: &[String]) -> Obstacle {
    let todo = match patterns {
        [] => "let it accept what comes from and goes to interfaces of group 1505 (nft: `iifgroup 1505 accept`, `oifgroup \
               1505 accept`), or set its policy to accept (iptables -P FORWARD ACCEPT)"
            .into(),
        names => format!(
            "let it accept what comes from and goes to interfaces of pods ({}), or set its policy to accept (iptables -P \
             FORWARD ACCEPT)",
            names.join(", ")
        ),
    };
    Obstacle {
        what: format!(
            "the policy of another program's forward chain is to drop: {}; packets of pods that its rules do not accept \
             do not pass",
            named(chains.iter().cloned())
        ),
        todo,
        stops: Stops::Perhaps,
    }
}

/// A list for people.
fn named(all: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    super::named(&all.collect::<Vec<_>>(), SHOWN)
}
