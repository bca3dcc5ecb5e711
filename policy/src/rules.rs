//! What a pod may: the union of all policies that select it, in the normal form of a group.

use crate::group::{GroupRules, GroupSpec, PodTerm, PortSpec};
use crate::model::{
    Direction, NamedPort, NamespaceMatch, PeerSelector, Peers, Policy, PortAtom, Ports, Rule,
    Selector,
};

/// The rules of a pod in a direction; `None`: no policy isolates it there.
pub(crate) fn allowed<'a>(
    policies: impl IntoIterator<Item = &'a Policy>,
    direction: Direction,
    own_ports: &[NamedPort],
) -> Option<GroupSpec> {
    let mut group: Option<GroupRules<'_>> = None;
    for rules in policies
        .into_iter()
        .filter_map(|policy| policy.rules(direction))
    {
        let group = group.get_or_insert_with(|| GroupRules::new(direction));
        for rule in rules {
            add(group, direction, rule, own_ports);
        }
    }
    group.map(GroupRules::finish)
}

fn add<'a>(
    group: &mut GroupRules<'a>,
    direction: Direction,
    rule: &'a Rule,
    own_ports: &[NamedPort],
) {
    let ports = match (&rule.ports, direction) {
        (Ports::Any, _) => None,
        // The destination of ingress is this pod: its names are numbers from here on.
        (Ports::Some(atoms), Direction::Ingress) => Some(PortSpec::new(
            atoms.iter().flat_map(|a| resolve(a, own_ports)),
        )),
        (Ports::Some(atoms), Direction::Egress) => Some(PortSpec::new(atoms.iter().cloned())),
    };
    let (numbers, names) = split(ports);
    match &rule.peers {
        Peers::Any => {
            if let Some(names) = names {
                // Only pods have port names; whoever exposes this one is meant.
                group.allow_pods(
                    Some(names),
                    PodTerm {
                        select: every_pod(),
                        within: None,
                    },
                );
            }
            if let Some(numbers) = numbers {
                group.allow_anybody(numbers);
            }
        }
        Peers::Some { pods, blocks } => {
            for select in pods {
                let term = PodTerm {
                    select: select.clone(),
                    within: None,
                };
                for ports in numbers.iter().cloned().chain(names.clone().map(Some)) {
                    group.allow_pods(ports, term.clone());
                }
            }
            if blocks.is_empty() {
                return;
            }
            if let Some(names) = names {
                group.allow_pods(
                    Some(names),
                    PodTerm {
                        select: every_pod(),
                        within: Some(blocks.clone()),
                    },
                );
            }
            if let Some(numbers) = numbers {
                group.allow_blocks(numbers, blocks);
            }
        }
    }
}

/// The part of a list of ports that anybody can match, and the part that only pods can. Neither, if all were names
/// that the pod does not have: then the rule allows nothing.
fn split(ports: Option<PortSpec>) -> (Option<Option<PortSpec>>, Option<PortSpec>) {
    let Some(ports) = ports else {
        return (Some(None), None);
    };
    let numbers = PortSpec {
        numbers: ports.numbers,
        names: Default::default(),
    };
    let names = PortSpec {
        numbers: Default::default(),
        names: ports.names,
    };
    let present = |spec: PortSpec| (!spec.is_empty()).then_some(spec);
    (present(numbers).map(Some), present(names))
}

fn resolve<'a>(
    atom: &'a PortAtom,
    own_ports: &'a [NamedPort],
) -> impl Iterator<Item = PortAtom> + 'a {
    let number = matches!(atom, PortAtom::Number(..)).then(|| atom.clone());
    let named = own_ports.iter().filter_map(move |port| match atom {
        PortAtom::Name(proto, name) if port.protocol == *proto && port.name == *name => Some(
            PortAtom::Number(*proto, crate::ranges::PortRange::one(port.port)),
        ),
        _ => None,
    });
    number.into_iter().chain(named)
}

fn every_pod() -> PeerSelector {
    PeerSelector {
        namespaces: NamespaceMatch::Any,
        pods: Selector::default(),
    }
}
