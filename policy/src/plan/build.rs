//! The fixed part of the table: base chains and the sets through which packets find the rules of their pods.
//!
//! * prerouting, before conntrack: a pod's interface may only bring packets from the pod's own addresses (`src4`,
//!   `src6`: interface . address). That alone keeps out spoofed sources and interfaces that nobody dispatched; a pod
//!   costs one element per address. Neighbour discovery from link-local addresses passes, router advertisements do not.
//! * forward: established flows pass (or are cut, if revoked); a pod reaches itself through a service; then the
//!   source's rules (`eg4`, `eg6`: only isolated pods have an element), then the destination's (`in4`, `in6`: every pod
//!   has one), and what is left towards a pod's interface is unknown and dropped.
//! * output: packets that the node sends with a source address that is not its own. The node did not make them: a
//!   service proxy (IPVS) took a packet in at the input hook and sends it on with another destination, or a program
//!   sends for somebody else (raw socket, transparent proxy). They are judged as in `forward`, by the same maps; only
//!   the input interface is not known there, so the source address alone finds the egress rules. What has a source
//!   address of the node passes: traffic between a node and its own pods is always allowed. The chain stands before
//!   the hook at which sources are masqueraded, so it sees the client's address.
//! * A TCP flow whose conntrack entry was lost (a flush, an entry that expired) is taken up again by the next packet,
//!   from whichever side it comes (`nf_conntrack_tcp_loose`). Who began it is not known any more, and a flow that is
//!   denied in one direction must not live again as the answer in the other. So `forward` and `output` mark a new flow
//!   that does not begin as its protocol does (`unseen_mark`), and judge each of its packets as if it were the first.
//! * There is no chain at input: what a pod sends to its own node is always allowed.
//!
//! Interfaces of pods are recognised in one or several ways ([`Config::pod_interfaces`]); a rule that looks at an interface
//! is there once for each.

use super::{
    Action, Base, Chain, Connecting, Hook, IfaceMatch, Key, KeyType, LookupKey, Match, Name, Plan,
    Rule, SetDef, Side, Verdict,
};
use crate::compiler::Config;
use crate::model::{Direction, Family, IfName};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// NF_IP_PRI_RAW + 10.
const RAW: i32 = -290;
/// NF_IP_PRI_FILTER + 10.
const FILTER: i32 = 10;

/// fe80::/10.
const LINK_LOCAL: (Ipv6Addr, Ipv6Addr) = (
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    Ipv6Addr::new(
        0xfebf, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff,
    ),
);

const ICMPV6: u8 = 58;
const MULTICAST_LISTENER_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MULTICAST_LISTENER_REPORT_2: u8 = 143;

/// The table with base chains and empty dispatch sets.
pub(crate) fn base(config: &Config) -> Plan {
    let mut plan = Plan {
        table: Name::new(config.table.as_str()),
        ..Plan::default()
    };
    for family in Family::ALL {
        let verdicts = SetDef {
            key: KeyType::Addr(family),
            verdicts: true,
            interval: false,
        };
        let plain = |key| SetDef {
            key,
            verdicts: false,
            interval: false,
        };
        for (name, def) in [
            (dispatch(Direction::Ingress, family), verdicts),
            (dispatch(Direction::Egress, family), verdicts),
            (sources(family), plain(KeyType::IfnameAddr(family))),
            (itself(family), plain(KeyType::AddrPair(family))),
        ] {
            plan.sets.insert(name, super::Set::new(def));
        }
    }
    let prerouting = Base {
        hook: Hook::Prerouting,
        priority: RAW,
    };
    plan.chains.insert(
        Name::new("prerouting"),
        Chain {
            base: Some(prerouting),
            rules: prerouting_rules(config),
        },
    );
    let forward = Base {
        hook: Hook::Forward,
        priority: FILTER,
    };
    plan.chains.insert(
        Name::new("forward"),
        Chain {
            base: Some(forward),
            rules: forward_rules(config),
        },
    );
    let output = Base {
        hook: Hook::Output,
        priority: FILTER,
    };
    plan.chains.insert(
        Name::new("output"),
        Chain {
            base: Some(output),
            rules: output_rules(config),
        },
    );
    plan
}

/// Elements that a pod's address needs: where, what, and the verdict in a map.
pub(crate) type DispatchElements = Vec<(Name, Key, Option<Verdict>)>;

/// Dispatch of one address: the chains of its pod, or `None` where no policy isolates it (or all is allowed).
pub(crate) fn dispatch_elements(
    ifname: IfName,
    addr: IpAddr,
    ingress: Option<Name>,
    egress: Option<Name>,
) -> DispatchElements {
    let family = Family::of(addr);
    let mut out = vec![(sources(family), Key::IfnameAddr(ifname, addr), None)];
    if ingress.is_some() || egress.is_some() {
        out.push((itself(family), Key::AddrPair(addr, addr), None));
    }
    if let Some(chain) = egress {
        out.push((
            dispatch(Direction::Egress, family),
            Key::Addr(addr),
            Some(Verdict::Jump(chain)),
        ));
    }
    let verdict = ingress.map_or(Verdict::Accept, Verdict::Jump);
    out.push((
        dispatch(Direction::Ingress, family),
        Key::Addr(addr),
        Some(verdict),
    ));
    out
}

fn dispatch(direction: Direction, family: Family) -> Name {
    Name::new(match (direction, family) {
        (Direction::Ingress, Family::V4) => "in4",
        (Direction::Ingress, Family::V6) => "in6",
        (Direction::Egress, Family::V4) => "eg4",
        (Direction::Egress, Family::V6) => "eg6",
    })
}

fn sources(family: Family) -> Name {
    Name::new(match family {
        Family::V4 => "src4",
        Family::V6 => "src6",
    })
}

fn itself(family: Family) -> Name {
    Name::new(match family {
        Family::V4 => "self4",
        Family::V6 => "self6",
    })
}

fn prerouting_rules(config: &Config) -> Vec<Rule> {
    let mut rules = Vec::new();
    for interfaces in &config.pod_interfaces {
        rules.extend(source_rules(interfaces));
    }
    rules
}

/// What these interfaces may bring.
fn source_rules(interfaces: &IfaceMatch) -> Vec<Rule> {
    let from_pod = Match::Iif(interfaces.clone());
    let mut rules = Vec::new();
    for family in Family::ALL {
        let own = Match::Lookup {
            key: LookupKey::IifSource(family),
            set: sources(family),
        };
        rules.push(rule(
            vec![from_pod.clone(), Match::Family(family), own],
            Verdict::Accept,
        ));
    }
    // Before a pod has its address, and for its link-local one: resolution, but never an advertisement of a router.
    for (source, last) in [(Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), LINK_LOCAL] {
        let addr = Match::Addr {
            side: Side::Source,
            first: source.into(),
            last: last.into(),
        };
        for (first, last) in [
            (ROUTER_SOLICITATION, ROUTER_SOLICITATION),
            (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT),
        ] {
            let kind = Match::Icmp6Type { first, last };
            let matches = vec![
                from_pod.clone(),
                Match::Family(Family::V6),
                addr.clone(),
                Match::Proto(ICMPV6),
                kind,
            ];
            rules.push(rule(matches, Verdict::Accept));
        }
    }
    rules.push(counted(vec![from_pod], Verdict::Drop));
    rules
}

fn forward_rules(config: &Config) -> Vec<Rule> {
    let mut rules = vec![unrevoked(config)];
    rules.extend(revoked(config));
    rules.extend(unseen(config, true));
    rules.extend(dispatch_rules(config, true));
    rules
}

fn output_rules(config: &Config) -> Vec<Rule> {
    // The node's own flows are never cut, so its address is looked at before the mark of revoked flows.
    let mut rules = vec![
        unrevoked(config),
        rule(vec![Match::LocalSource], Verdict::Accept),
    ];
    // Before an interface has an address the node speaks without one: IGMP and DHCP, neighbour discovery and MLD. IPVS
    // sends on no ICMPv6 of these types, and the kernel takes in no IPv4 packet without a source address for a service.
    let unspecified = |addr: IpAddr| {
        let source = Match::Addr {
            side: Side::Source,
            first: addr,
            last: addr,
        };
        vec![Match::Family(Family::of(addr)), source]
    };
    rules.push(rule(
        unspecified(Ipv4Addr::UNSPECIFIED.into()),
        Verdict::Accept,
    ));
    for (first, last) in [
        (MULTICAST_LISTENER_QUERY, REDIRECT),
        (MULTICAST_LISTENER_REPORT_2, MULTICAST_LISTENER_REPORT_2),
    ] {
        let mut matches = unspecified(Ipv6Addr::UNSPECIFIED.into());
        matches.extend([Match::Proto(ICMPV6), Match::Icmp6Type { first, last }]);
        rules.push(rule(matches, Verdict::Accept));
    }
    rules.extend(revoked(config));
    rules.extend(unseen(config, false));
    rules.extend(dispatch_rules(config, false));
    rules
}

/// What is established or related passes, unless it is revoked or its beginning was not seen.
fn unrevoked(config: &Config) -> Rule {
    let mut matches = vec![Match::Established];
    let mask = config.revoked_mark | config.unseen_mark;
    if mask != 0 {
        matches.push(Match::CtMark { mask, set: false });
    }
    rule(matches, Verdict::Accept)
}

/// Marks new flows whose beginning was not seen. `iif`: the interface that a packet came in by is known, so only those
/// are looked at that come from a pod's interface or go to one. What is related to such a flow passes: ICMP errors say
/// nothing that a rule could judge. No rule if the mark is not used.
fn unseen(config: &Config, iif: bool) -> Vec<Rule> {
    if config.unseen_mark == 0 {
        return Vec::new();
    }
    let mut rules = vec![rule(vec![Match::Related], Verdict::Accept)];
    let interfaces = config
        .pod_interfaces
        .iter()
        .flat_map(|pods| [Match::Iif(pods.clone()), Match::Oif(pods.clone())].map(Some));
    let of: Vec<Option<Match>> = match iif {
        true => interfaces.collect(),
        false => vec![None],
    };
    for packets in of {
        for protocol in [Connecting::Tcp, Connecting::Sctp] {
            let mut matches = vec![Match::New];
            matches.extend(packets.clone());
            matches.extend([
                Match::Proto(protocol.number()),
                Match::NoBeginning(protocol),
            ]);
            rules.push(Rule {
                matches,
                counter: false,
                log: None,
                action: Action::Mark(config.unseen_mark),
            });
        }
    }
    rules
}

/// What is established or related and revoked is dropped; no rule if flows are never revoked.
fn revoked(config: &Config) -> Option<Rule> {
    let mark = Match::CtMark {
        mask: config.revoked_mark,
        set: true,
    };
    (config.revoked_mark != 0).then(|| counted(vec![Match::Established, mark], Verdict::Drop))
}

/// A new packet finds the rules of its ends. `iif`: the interface that it came in by is known, so a pod's source is
/// looked up only if that interface is a pod's.
fn dispatch_rules(config: &Config, iif: bool) -> Vec<Rule> {
    let pods = &config.pod_interfaces;
    let from = |pods: &IfaceMatch| iif.then(|| Match::Iif(pods.clone()));
    let mut rules = Vec::new();
    // A pod has one interface: what it sends to itself comes in and goes out by the same kind.
    for family in Family::ALL {
        for interfaces in pods {
            let own = Match::Lookup {
                key: LookupKey::SourceDestination(family),
                set: itself(family),
            };
            let mut matches: Vec<Match> = from(interfaces).into_iter().collect();
            matches.extend([Match::Oif(interfaces.clone()), Match::Family(family), own]);
            rules.push(rule(matches, Verdict::Accept));
        }
    }
    let from_pods: Vec<Option<Match>> = match iif {
        true => pods.iter().map(from).collect(),
        false => vec![None],
    };
    for family in Family::ALL {
        for from_pod in &from_pods {
            let from_pod = from_pod.as_ref();
            rules.push(lookup(Direction::Egress, family, from_pod));
        }
    }
    for family in Family::ALL {
        for interfaces in pods {
            let to_pod = Match::Oif(interfaces.clone());
            rules.push(lookup(Direction::Ingress, family, Some(&to_pod)));
        }
    }
    for interfaces in pods {
        rules.push(counted(vec![Match::Oif(interfaces.clone())], Verdict::Drop));
    }
    rules
}

/// The rules of a pod in a direction, found by the pod's address.
fn lookup(direction: Direction, family: Family, interface: Option<&Match>) -> Rule {
    let side = match direction {
        Direction::Egress => Side::Source,
        Direction::Ingress => Side::Destination,
    };
    let mut matches: Vec<Match> = interface.into_iter().cloned().collect();
    matches.push(Match::Family(family));
    Rule {
        matches,
        counter: false,
        log: None,
        action: Action::Vmap {
            key: LookupKey::Addr(family, side),
            map: dispatch(direction, family),
        },
    }
}

fn rule(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule {
        matches,
        counter: false,
        log: None,
        action: Action::Verdict(verdict),
    }
}

fn counted(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule {
        counter: true,
        ..rule(matches, verdict)
    }
}

impl Default for IfaceMatch {
    /// The link group of our pod interfaces.
    fn default() -> Self {
        IfaceMatch::Group(0x5e1)
    }
}
