//! Specs to model: the only step that can fail, and it says where and why.
//!
//! What Kubernetes' validation refuses is refused here, too, unless the API server may hold it from the time of an older
//! version: a peer with nothing in it, which matches nothing; names and values of labels, which no object can have; and
//! host bits of a block. Whoever reads files refuses these before.

use crate::api::{
    IPBlock, IntOrString, LabelSelector, LabelSelectorRequirement, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use crate::model::{
    NamespaceMatch, PeerSelector, Peers, Policy, PolicyKey, PortAtom, Ports, Proto, Requirement,
    Rule, Selector,
};
use crate::ranges::{AddrRanges, PortRange};
use ipnet::IpNet;
use std::fmt;

/// An object that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Refused {
    /// The path of the field, as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub reason: String,
}

/// Where we are in the object; paths are spelled out only if something is refused.
#[derive(Clone, Copy)]
struct At<'a> {
    parent: Option<&'a At<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl<'a> At<'a> {
    fn root(name: &'a str) -> Self {
        At {
            parent: None,
            name,
            index: None,
        }
    }

    fn field(&'a self, name: &'a str) -> At<'a> {
        At {
            parent: Some(self),
            name,
            index: None,
        }
    }

    fn item(&'a self, name: &'a str, index: usize) -> At<'a> {
        At {
            parent: Some(self),
            name,
            index: Some(index),
        }
    }

    fn refuse(&self, reason: impl Into<String>) -> Refused {
        Refused {
            field: self.to_string(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        self.index.map_or(Ok(()), |i| write!(f, "[{i}]"))
    }
}

/// Lowers the spec of a NetworkPolicy.
///
/// # Errors
/// The first field that is not valid.
pub fn lower(key: PolicyKey, spec: &NetworkPolicySpec) -> Result<Policy, Refused> {
    let at = At::root("spec");
    let pods = selector(at.field("podSelector"), &spec.pod_selector)?;
    let (ingress_on, egress_on) = policy_types(at, spec)?;
    let namespace = &key.namespace;
    let mut ingress = Vec::new();
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let at = at.item("ingress", i);
        let peers = peers(at, "from", rule.from.as_deref(), namespace)?;
        ingress.push(Rule {
            peers,
            ports: ports(at, rule.ports.as_deref())?,
        });
    }
    let mut egress = Vec::new();
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let at = at.item("egress", i);
        let peers = peers(at, "to", rule.to.as_deref(), namespace)?;
        egress.push(Rule {
            peers,
            ports: ports(at, rule.ports.as_deref())?,
        });
    }
    Ok(Policy {
        key,
        pods,
        ingress: ingress_on.then_some(ingress),
        egress: egress_on.then_some(egress),
    })
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = Refused;

    /// The field path in the error starts at the selector.
    fn try_from(spec: &LabelSelector) -> Result<Self, Refused> {
        selector(At::root("selector"), spec)
    }
}

/// Which directions the policy isolates: (ingress, egress).
fn policy_types(at: At<'_>, spec: &NetworkPolicySpec) -> Result<(bool, bool), Refused> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return Ok((
            true,
            spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        ));
    }
    if types.len() > 2 {
        let reason =
            "there are two policy types, \"Ingress\" and \"Egress\"; more elements say nothing";
        return Err(at.field("policyTypes").refuse(reason));
    }
    let (mut ingress, mut egress) = (false, false);
    for (i, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => {
                let reason =
                    format!("{other:?} is not a policy type; use \"Ingress\" or \"Egress\"");
                return Err(at.item("policyTypes", i).refuse(reason));
            }
        }
    }
    Ok((ingress, egress))
}

fn selector(at: At<'_>, spec: &LabelSelector) -> Result<Selector, Refused> {
    let labels = spec.match_labels.iter().map(|(key, value)| {
        Requirement::In(key.as_str().into(), [value.as_str()].into_iter().collect())
    });
    let mut requirements: Vec<_> = labels.collect();
    for (i, expression) in spec.match_expressions.iter().enumerate() {
        requirements.push(requirement(at.item("matchExpressions", i), expression)?);
    }
    Ok(Selector::new(requirements))
}

fn requirement(at: At<'_>, spec: &LabelSelectorRequirement) -> Result<Requirement, Refused> {
    if spec.key.is_empty() {
        return Err(at.field("key").refuse("a label key is required"));
    }
    // First of all the operator: whether it takes values is known only of one that there is.
    let (make, with_values): (fn(_, _) -> _, _) = match spec.operator.as_str() {
        "In" => (Requirement::In, true),
        "NotIn" => (Requirement::NotIn, true),
        "Exists" => (|key, _| Requirement::Exists(key), false),
        "DoesNotExist" => (|key, _| Requirement::DoesNotExist(key), false),
        other => {
            let reason =
                format!("{other:?} is not an operator; use In, NotIn, Exists or DoesNotExist");
            return Err(at.field("operator").refuse(reason));
        }
    };
    if with_values && spec.values.is_empty() {
        return Err(at
            .field("values")
            .refuse(format!("{} needs at least one value", spec.operator)));
    }
    if !with_values && !spec.values.is_empty() {
        return Err(at
            .field("values")
            .refuse(format!("{} takes no values", spec.operator)));
    }
    let values = spec.values.iter().map(String::as_str).collect();
    Ok(make(spec.key.as_str().into(), values))
}

fn peers(
    at: At<'_>,
    list: &str,
    specs: Option<&[NetworkPolicyPeer]>,
    namespace: &std::sync::Arc<str>,
) -> Result<Peers, Refused> {
    let specs = specs.unwrap_or_default();
    if specs.is_empty() {
        return Ok(Peers::Any);
    }
    let (mut pods, mut blocks) = (Vec::new(), Vec::new());
    for (i, spec) in specs.iter().enumerate() {
        let at = at.item(list, i);
        match (&spec.ip_block, &spec.pod_selector, &spec.namespace_selector) {
            (Some(spec), None, None) => blocks.push(block(at.field("ipBlock"), spec)?),
            (Some(_), _, _) => {
                let reason = "ipBlock cannot stand beside podSelector or namespaceSelector; make two elements of it";
                return Err(at.field("ipBlock").refuse(reason));
            }
            (None, None, None) => {}
            (None, pod_selector, namespace_selector) => {
                let namespaces = match namespace_selector {
                    Some(spec) => {
                        NamespaceMatch::Selected(selector(at.field("namespaceSelector"), spec)?)
                    }
                    None => NamespaceMatch::Named(namespace.clone()),
                };
                let of_them = match pod_selector {
                    Some(spec) => selector(at.field("podSelector"), spec)?,
                    None => Selector::default(),
                };
                pods.push(PeerSelector {
                    namespaces,
                    pods: of_them,
                });
            }
        }
    }
    Ok(Peers::Some {
        pods,
        blocks: AddrRanges::union(&blocks),
    })
}

fn block(at: At<'_>, spec: &IPBlock) -> Result<AddrRanges, Refused> {
    let cidr = cidr(at.field("cidr"), &spec.cidr)?;
    let mut except = Vec::new();
    for (i, text) in spec.except.iter().flatten().enumerate() {
        let at = at.item("except", i);
        let hole = self::cidr(at, text)?;
        if !cidr.trunc().contains(&hole.trunc()) {
            return Err(at.refuse(format!("{text} is not inside {}", spec.cidr)));
        }
        if cidr.prefix_len() == hole.prefix_len() {
            return Err(at.refuse(format!(
                "{text} is all of {}, and nothing would be left; leave out the peer",
                spec.cidr
            )));
        }
        except.push(hole);
    }
    Ok(AddrRanges::block(cidr, &except))
}

fn cidr(at: At<'_>, text: &str) -> Result<IpNet, Refused> {
    text.parse().map_err(|_| {
        at.refuse(format!(
            "{text:?} is not a CIDR; write it as \"10.0.0.0/8\" or \"2001:db8::/32\""
        ))
    })
}

fn ports(at: At<'_>, specs: Option<&[NetworkPolicyPort]>) -> Result<Ports, Refused> {
    let specs = specs.unwrap_or_default();
    if specs.is_empty() {
        return Ok(Ports::Any);
    }
    let atoms = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| port(at.item("ports", i), spec));
    Ok(Ports::Some(atoms.collect::<Result<_, _>>()?))
}

fn port(at: At<'_>, spec: &NetworkPolicyPort) -> Result<PortAtom, Refused> {
    let protocol = spec.protocol.as_deref().unwrap_or("TCP");
    let Some(proto) = Proto::from_api(protocol) else {
        let reason = format!("{protocol:?} is not supported; use \"TCP\", \"UDP\" or \"SCTP\"");
        return Err(at.field("protocol").refuse(reason));
    };
    match (&spec.port, spec.end_port) {
        (None, None) => Ok(PortAtom::Number(proto, PortRange::ALL)),
        (None, Some(_)) => Err(at.field("endPort").refuse("needs a numeric port beside it")),
        (Some(IntOrString::String(_)), Some(_)) => Err(at
            .field("endPort")
            .refuse("needs a numeric port, not a name")),
        (Some(IntOrString::String(name)), None) => {
            check_name(at.field("port"), name)?;
            Ok(PortAtom::Name(proto, name.as_str().into()))
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = number(at.field("port"), *first)?;
            let last = end.map_or(Ok(first), |end| number(at.field("endPort"), end))?;
            let range = PortRange::new(first, last).ok_or_else(|| {
                at.field("endPort")
                    .refuse(format!("{last} is below port {first}"))
            })?;
            Ok(PortAtom::Number(proto, range))
        }
    }
}

fn number(at: At<'_>, value: i32) -> Result<u16, Refused> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| at.refuse(format!("{value} is not within 1 to 65535")))
}

/// A port name by RFC 6335 section 5.1, as Kubernetes checks it.
fn check_name(at: At<'_>, name: &str) -> Result<(), Refused> {
    let characters = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let hyphens = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    let letter = name.bytes().any(|b| b.is_ascii_lowercase());
    if (1..=15).contains(&name.len()) && characters && letter && !hyphens {
        return Ok(());
    }
    if name.parse::<u16>().is_ok() {
        return Err(at.refuse(format!(
            "{name:?} is a name here, and no port is named by a number; write it without quotes: {name}"
        )));
    }
    Err(at.refuse(format!(
        "{name:?} is not a port name: 1 to 15 of a-z, 0-9 and single inner hyphens, at least one letter"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lower_json(json: &str) -> Result<Policy, Refused> {
        let spec = serde_json::from_str(json).expect("a well-formed spec");
        lower(PolicyKey::new("x", "p"), &spec)
    }

    #[test]
    fn refuses_with_the_field() {
        let cases = [
            (
                r#"{"policyTypes":["Ingress","Both"]}"#,
                "spec.policyTypes[1]",
            ),
            (
                r#"{"podSelector":{"matchExpressions":[{"key":"a","operator":"Like"}]}}"#,
                "spec.podSelector.matchExpressions[0].operator",
            ),
            (
                r#"{"podSelector":{"matchExpressions":[{"key":"a","operator":"Like","values":["v"]}]}}"#,
                "spec.podSelector.matchExpressions[0].operator",
            ),
            (
                r#"{"podSelector":{"matchExpressions":[{"key":"a","operator":"In"}]}}"#,
                "spec.podSelector.matchExpressions[0].values",
            ),
            (
                r#"{"podSelector":{"matchExpressions":[{"key":"a","operator":"Exists","values":["v"]}]}}"#,
                "spec.podSelector.matchExpressions[0].values",
            ),
            (
                r#"{"podSelector":{"matchExpressions":[{"key":"","operator":"Exists"}]}}"#,
                "spec.podSelector.matchExpressions[0].key",
            ),
            (
                r#"{"ingress":[{"from":[{},{"ipBlock":{"cidr":"10.0.0.1"}}]}]}"#,
                "spec.ingress[0].from[1].ipBlock.cidr",
            ),
            (
                r#"{"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16","11.0.0.0/8"]}}]}]}"#,
                "spec.egress[0].to[0].ipBlock.except[1]",
            ),
            (
                r#"{"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16","10.0.0.0/8"]}}]}]}"#,
                "spec.egress[0].to[0].ipBlock.except[1]",
            ),
            (
                r#"{"policyTypes":["Ingress","Egress","Ingress"]}"#,
                "spec.policyTypes",
            ),
            (
                r#"{"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["fd00::/8"]}}]}]}"#,
                "spec.egress[0].to[0].ipBlock.except[0]",
            ),
            (
                r#"{"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8"},"podSelector":{}}]}]}"#,
                "spec.ingress[0].from[0].ipBlock",
            ),
            (
                r#"{"ingress":[{},{"ports":[{"protocol":"ICMP"}]}]}"#,
                "spec.ingress[1].ports[0].protocol",
            ),
            (
                r#"{"ingress":[{"ports":[{"port":0}]}]}"#,
                "spec.ingress[0].ports[0].port",
            ),
            (
                r#"{"ingress":[{"ports":[{"port":70000}]}]}"#,
                "spec.ingress[0].ports[0].port",
            ),
            (
                r#"{"ingress":[{"ports":[{"port":"80"}]}]}"#,
                "spec.ingress[0].ports[0].port",
            ),
            (
                r#"{"ingress":[{"ports":[{"port":"a--b"}]}]}"#,
                "spec.ingress[0].ports[0].port",
            ),
            (
                r#"{"ingress":[{"ports":[{"port":80,"endPort":79}]}]}"#,
                "spec.ingress[0].ports[0].endPort",
            ),
            (
                r#"{"ingress":[{"ports":[{"endPort":79}]}]}"#,
                "spec.ingress[0].ports[0].endPort",
            ),
            (
                r#"{"ingress":[{"ports":[{"port":"http","endPort":79}]}]}"#,
                "spec.ingress[0].ports[0].endPort",
            ),
        ];
        for (json, field) in cases {
            let refused = lower_json(json).expect_err(json);
            assert_eq!(refused.field, field, "{json}");
            assert!(!refused.reason.is_empty());
        }
    }

    #[test]
    fn unknown_fields_do_not_parse() {
        let json = r#"{"podSelector":{},"ingres":[]}"#;
        assert!(serde_json::from_str::<NetworkPolicySpec>(json).is_err());
    }

    #[test]
    fn policy_types_default_as_the_api_server_does() {
        let cases = [
            (r#"{}"#, (true, false)),
            (
                r#"{"podSelector":null,"ingress":null,"egress":null,"policyTypes":null}"#,
                (true, false),
            ),
            (r#"{"egress":[]}"#, (true, false)),
            (r#"{"egress":[{}]}"#, (true, true)),
            (r#"{"policyTypes":[],"egress":[{}]}"#, (true, true)),
            (
                r#"{"policyTypes":["Egress"],"ingress":[{}]}"#,
                (false, true),
            ),
            (
                r#"{"policyTypes":["Ingress"],"egress":[{}]}"#,
                (true, false),
            ),
            (r#"{"policyTypes":["Egress","Ingress"]}"#, (true, true)),
        ];
        for (json, expected) in cases {
            let policy = lower_json(json).expect(json);
            assert_eq!(
                (policy.ingress.is_some(), policy.egress.is_some()),
                expected,
                "{json}"
            );
        }
    }

    #[test]
    fn an_empty_peer_is_nobody_and_an_empty_list_anybody() {
        let nobody = Peers::Some {
            pods: Vec::new(),
            blocks: AddrRanges::default(),
        };
        for (json, peers) in [
            (r#"{"ingress":[{"from":[{}]}]}"#, &nobody),
            (r#"{"ingress":[{"from":[]}]}"#, &Peers::Any),
            (r#"{"ingress":[{}]}"#, &Peers::Any),
        ] {
            let policy = lower_json(json).expect(json);
            assert_eq!(&policy.ingress.expect("isolates")[0].peers, peers, "{json}");
        }
    }
}
