//! The fixed part of the table: base chains and the sets through which packets find the rules of their pods.
//!
//! * prerouting, before conntrack: a pod's interface may only bring packets from the pod's own addresses (`src4`,
//!   `src6`: interface . address). That alone keeps out spoofed sources and interfaces that nobody dispatched; a pod
//!   costs one element per address. Neighbour discovery from link-local addresses passes, router advertisements do not.
//! * forward: established flows pass (or are cut, if revoked); a pod reaches itself through a service; then the
//!   source's rules (`eg4`, `eg6`: only isolated pods have an element), then the destination's (`in4`, `in6`: every pod
//!   has one), and what is left towards a pod's interface is unknown and dropped.
//! * There is no chain at input and none at output: traffic between a node and its own pods is always allowed, and
//!   what a node only forwards, translated or not, passes neither.

use super::{
    Action, Base, Chain, Hook, IfaceMatch, Key, KeyType, LookupKey, Match, Name, Plan, Rule,
    SetDef, Side, Verdict,
};
use crate::compiler::Config;
use crate::model::{Direction, Family, IfName};
use std::net::{IpAddr, Ipv6Addr};

/// NF_IP_PRI_RAW + 10.
const RAW: i32 = -290;
/// NF_IP_PRI_FILTER + 10.
const FILTER: i32 = 10;

const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

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
            plan.sets.insert(
                name,
                super::Set {
                    def,
                    elements: Default::default(),
                },
            );
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
    plan
}

/// Elements that a pod's address needs: where, what, and the verdict in a map.
pub(crate) type Elements = Vec<(Name, Key, Option<Verdict>)>;

/// Dispatch of one address: the chains of its pod, or `None` where no policy isolates it (or all is allowed).
pub(crate) fn dispatch_elements(
    ifname: IfName,
    addr: IpAddr,
    ingress: Option<Name>,
    egress: Option<Name>,
) -> Elements {
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
    let from_pod = Match::Iif(config.pod_interfaces.clone());
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
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    let link_local_last = Ipv6Addr::from(u128::from(link_local) | (u128::MAX >> 10));
    for (source, last) in [
        (Ipv6Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        (link_local, link_local_last),
    ] {
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
    let from_pod = Match::Iif(config.pod_interfaces.clone());
    let to_pod = Match::Oif(config.pod_interfaces.clone());
    let mut rules = Vec::new();
    match config.revoked_mark {
        0 => rules.push(rule(vec![Match::Established], Verdict::Accept)),
        mask => {
            let revoked = |set| vec![Match::Established, Match::CtMark { mask, set }];
            rules.push(rule(revoked(false), Verdict::Accept));
            rules.push(counted(revoked(true), Verdict::Drop));
        }
    }
    for family in Family::ALL {
        let own = Match::Lookup {
            key: LookupKey::SourceDestination(family),
            set: itself(family),
        };
        rules.push(rule(
            vec![from_pod.clone(), to_pod.clone(), Match::Family(family), own],
            Verdict::Accept,
        ));
    }
    for (direction, side, interface) in [
        (Direction::Egress, Side::Source, from_pod),
        (Direction::Ingress, Side::Destination, to_pod.clone()),
    ] {
        for family in Family::ALL {
            let action = Action::Vmap {
                key: LookupKey::Addr(family, side),
                map: dispatch(direction, family),
            };
            let matches = vec![interface.clone(), Match::Family(family)];
            rules.push(Rule {
                matches,
                counter: false,
                log: None,
                action,
            });
        }
    }
    rules.push(counted(vec![to_pod], Verdict::Drop));
    rules
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
