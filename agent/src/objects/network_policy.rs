//! `networking.k8s.io/v1 NetworkPolicy`: the spec is the policy compiler's; here is only the envelope.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use selvage_policy::api::{LabelSelector, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use selvage_policy::lower;
use selvage_policy::model::{Policy, PolicyKey, Requirement, Selector};
use serde_json::Value;

use super::decode::{Context, Mode, identity};
use super::meta::valid_label;
use super::{Faults, Kind, Meta, Object};

/// A policy.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPolicy {
    /// Metadata.
    pub meta: Meta,
    /// What it says.
    pub policy: Arc<Policy>,
}

impl NetworkPolicy {
    pub(super) fn lower(meta: Meta, spec: &Value, context: &mut Context) -> Option<NetworkPolicy> {
        let mut raw: NetworkPolicySpec = context.decode("spec", spec)?;
        match context.mode {
            Mode::Api => narrow(&mut raw, context),
            Mode::File => check(&raw, &mut context.faults),
        }
        let key = PolicyKey::new(meta.key.namespace.as_str(), meta.key.name.as_str());
        match lower(key, &raw) {
            Ok(policy) => Some(NetworkPolicy {
                meta,
                policy: Arc::new(policy),
            }),
            Err(refused) => {
                if !context.faults.are_about(&refused.field) {
                    context.faults.add(refused.field, refused.reason);
                }
                None
            }
        }
    }
}

/// What the API server refuses of a new policy, beyond what [`lower`] refuses of any: it may hold such a policy from the
/// time of an older version, but whoever writes a file can write it better.
fn check(spec: &NetworkPolicySpec, faults: &mut Faults) {
    check_selector("spec.podSelector", &spec.pod_selector, faults);
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        check_peers(&format!("spec.ingress[{i}].from"), &rule.from, faults);
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        check_peers(&format!("spec.egress[{i}].to"), &rule.to, faults);
    }
}

fn check_peers(list: &str, peers: &Option<Vec<NetworkPolicyPeer>>, faults: &mut Faults) {
    for (i, peer) in peers.iter().flatten().enumerate() {
        let path = format!("{list}[{i}]");
        if peer == &NetworkPolicyPeer::default() {
            faults.hinted(
                &path,
                "names nobody",
                "write podSelector, namespaceSelector or ipBlock; everybody is a rule without peers",
            );
        }
        for (name, selector) in [
            ("podSelector", &peer.pod_selector),
            ("namespaceSelector", &peer.namespace_selector),
        ] {
            if let Some(selector) = selector {
                check_selector(&format!("{path}.{name}"), selector, faults);
            }
        }
        let Some(block) = &peer.ip_block else {
            continue;
        };
        check_block(format!("{path}.ipBlock.cidr"), &block.cidr, faults);
        for (i, text) in block.except.iter().flatten().enumerate() {
            check_block(format!("{path}.ipBlock.except[{i}]"), text, faults);
        }
    }
}

/// What is no block at all is for [`lower`] to refuse.
fn check_block(path: String, text: &str, faults: &mut Faults) {
    let Ok(net) = text.parse::<IpNet>() else {
        return;
    };
    if let IpNet::V6(v6) = net
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return faults.add(
            path,
            format_args!("{text} holds no address that a packet can have; write a block of IPv4"),
        );
    }
    // Zeros in front: some programs take such a number for an octal one.
    let exact = text.split_once('/').is_some_and(|(address, length)| {
        address.parse::<IpAddr>().is_ok() && length == net.prefix_len().to_string()
    });
    if !exact {
        return faults.hinted(
            path,
            format_args!("{text} has zeros in front of a number"),
            format_args!("write {}", net.trunc()),
        );
    }
    if net != net.trunc() {
        let (all, one) = (net.trunc(), IpNet::from(net.addr()));
        faults.hinted(
            path,
            format_args!("{text} may mean two things"),
            format_args!("write {all} or {one}"),
        );
    }
}

/// The syntax of labels in a selector.
fn check_selector(path: &str, raw: &LabelSelector, faults: &mut Faults) {
    for (name, value) in &raw.match_labels {
        if let Err(reason) = valid_label(name, value) {
            faults.add(format!("{path}.matchLabels.{name}"), reason);
        }
    }
    for (i, raw) in raw.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        if let Err(reason) = valid_label(&raw.key, "") {
            faults.add(format!("{path}.key"), reason);
        }
        for (i, value) in raw.values.iter().enumerate() {
            if let Err(reason) = valid_label("name", value) {
                faults.add(format!("{path}.values[{i}]"), reason);
            }
        }
    }
}

/// A field that we do not know, of a newer Kubernetes, says something that we do not do. Somewhere in a rule it can only
/// restrict it further: that part of the rule matches nothing then, for without the field it might match too much.
/// Outside of rules nobody knows what it means: the policy is refused.
fn narrow(spec: &mut NetworkPolicySpec, context: &mut Context) {
    let inside = |path: &String| path.starts_with("spec.");
    let unknown: Vec<String> = context
        .ignored
        .extract_if(.., |path| inside(path))
        .collect();
    if unknown.is_empty() {
        return;
    }
    // Rules that go must not change what is isolated.
    let isolates_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
        let egress = isolates_egress.then(|| "Egress".to_owned());
        spec.policy_types = Some(["Ingress".to_owned()].into_iter().chain(egress).collect());
    }
    let mut narrowing = Narrowing::default();
    for path in unknown {
        // `spec.ingress[0].from[1].x` and what lies deeper, `spec.ingress[0].x`, `spec.x`.
        let steps: Vec<&str> = path.split('.').skip(1).collect();
        match steps.as_slice() {
            [rule, part, _, ..] if is_rule(rule) && part.contains('[') => {
                narrowing
                    .parts
                    .insert(((*rule).to_owned(), (*part).to_owned()));
            }
            [rule, _, ..] if is_rule(rule) => {
                narrowing.rules.insert((*rule).to_owned());
            }
            _ => {
                context.faults.hinted(
                    path.as_str(),
                    "unknown field, of which nobody can tell what it means for whom the policy protects",
                    "a newer version of Selvage may know it",
                );
                continue;
            }
        }
        context.ignored.push(path);
    }
    if let Some(rules) = &mut spec.ingress {
        narrowing.apply("ingress", rules, |rule| {
            (&mut rule.from, "from", &mut rule.ports)
        });
    }
    if let Some(rules) = &mut spec.egress {
        narrowing.apply("egress", rules, |rule| {
            (&mut rule.to, "to", &mut rule.ports)
        });
    }
}

fn is_rule(step: &str) -> bool {
    step.starts_with("ingress[") || step.starts_with("egress[")
}

/// Rules, and parts of rules, that are to match nothing.
#[derive(Default)]
struct Narrowing {
    rules: BTreeSet<String>,
    parts: BTreeSet<(String, String)>,
}

/// Peers, how they are called there, and ports.
type Parts<'a> = (
    &'a mut Option<Vec<NetworkPolicyPeer>>,
    &'static str,
    &'a mut Option<Vec<NetworkPolicyPort>>,
);

impl Narrowing {
    fn apply<R>(&self, direction: &str, rules: &mut Vec<R>, parts: impl Fn(&mut R) -> Parts<'_>) {
        let mut number = 0;
        rules.retain_mut(|rule| {
            let name = format!("{direction}[{number}]");
            number += 1;
            let (peers, list, ports) = parts(rule);
            let peers_left = self.keep(&name, list, peers);
            let ports_left = self.keep(&name, "ports", ports);
            peers_left && ports_left && !self.rules.contains(&name)
        });
    }

    /// Takes parts away; false if none is left, which would mean all.
    fn keep<T>(&self, rule: &str, list: &str, parts: &mut Option<Vec<T>>) -> bool {
        let Some(parts) = parts.as_mut().filter(|parts| !parts.is_empty()) else {
            return true;
        };
        let mut number = 0;
        parts.retain(|_| {
            let part = (rule.to_owned(), format!("{list}[{number}]"));
            number += 1;
            !self.parts.contains(&part)
        });
        !parts.is_empty()
    }
}

/// What is in force instead of a policy that was refused and of which no earlier form is known: whoever it was to protect
/// is closed, in the directions that it names, until it is right. What cannot be understood counts as everything:
/// the pods of its namespace, both directions. `None` for what is no NetworkPolicy or has no name.
pub fn stand_in(value: &Value) -> Option<Object> {
    let version = value.get("apiVersion").and_then(Value::as_str)?;
    let (kind, key) = identity(value);
    if kind != Kind::NetworkPolicy.name()
        || !version.starts_with("networking.k8s.io/")
        || key.name.is_empty()
    {
        return None;
    }
    let spec = value.get("spec").unwrap_or(&Value::Null);
    let pods = spec.get("podSelector").cloned().unwrap_or_default();
    // Labels that no pod can have protect nobody, so they count as not understood.
    let valid = |raw: &LabelSelector| {
        let mut faults = Faults::default();
        check_selector("", raw, &mut faults);
        faults.is_empty()
    };
    let pods = serde_json::from_value::<LabelSelector>(pods).ok();
    let pods = pods
        .filter(valid)
        .and_then(|raw| Selector::try_from(&raw).ok());
    let types = spec.get("policyTypes").and_then(Value::as_array);
    let names = |direction: &str| match types.filter(|types| !types.is_empty()) {
        None => direction == "Ingress" || spec.get("egress").is_some_and(|rules| !rules.is_null()),
        Some(types) => types.iter().any(|name| match name.as_str() {
            Some(known @ ("Ingress" | "Egress")) => known == direction,
            _ => true,
        }),
    };
    let (ingress, egress) = (names("Ingress"), names("Egress"));
    let unreadable = !spec.is_object();
    let policy = Policy {
        key: PolicyKey::new(key.namespace.as_str(), key.name.as_str()),
        pods: pods.unwrap_or_default(),
        ingress: (ingress || unreadable).then(Vec::new),
        egress: (egress || unreadable).then(Vec::new),
    };
    let meta = Meta {
        key,
        ..Meta::default()
    };
    Some(Object::NetworkPolicy(Arc::new(NetworkPolicy {
        meta,
        policy: Arc::new(policy),
    })))
}

/// Lowers a label selector of one of our own kinds.
pub(super) fn selector(path: &str, raw: &LabelSelector, faults: &mut Faults) -> Option<Selector> {
    check_selector(path, raw, faults);
    let mut requirements = Vec::new();
    for (name, value) in &raw.match_labels {
        requirements.push(Requirement::In(
            name.as_str().into(),
            [value.as_str()].into_iter().collect(),
        ));
    }
    for (i, raw) in raw.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let key = raw.key.as_str().into();
        let values = raw.values.iter().map(String::as_str).collect();
        // First of all the operator: whether it takes values is known only of one that there is.
        let (requirement, takes_values) = match raw.operator.as_str() {
            "In" => (Requirement::In(key, values), true),
            "NotIn" => (Requirement::NotIn(key, values), true),
            "Exists" => (Requirement::Exists(key), false),
            "DoesNotExist" => (Requirement::DoesNotExist(key), false),
            other => {
                let reason = format_args!("`{other}` is not In, NotIn, Exists or DoesNotExist");
                faults.add(format!("{path}.operator"), reason);
                continue;
            }
        };
        if takes_values == raw.values.is_empty() {
            let need = if takes_values {
                "needs values"
            } else {
                "takes no values"
            };
            faults.add(
                format!("{path}.values"),
                format_args!("`{}` {need}", raw.operator),
            );
        }
        requirements.push(requirement);
    }
    Some(Selector::new(requirements))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::parse;

    /// The policy as the API server might have it with fields of a newer version, and the same without what they are in.
    #[test]
    fn unknown_fields_never_widen() {
        let policy = |mut spec: Value| {
            spec["podSelector"] = json!({"matchLabels": {"app": "a"}});
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec,
                "metadata": {"name": "p", "namespace": "default"}})
        };
        let read = |spec: Value| parse(&policy(spec), Mode::Api).unwrap().unwrap();
        let pods = json!({"podSelector": {}});
        let strange = json!({"podSelector": {}, "x": {}});
        let port = json!({"port": 80});
        for (with, without) in [
            // A peer among others goes; the last one takes the rule with it.
            (
                json!({"ingress": [{"from": [strange, pods]}]}),
                json!({"ingress": [{"from": [pods]}]}),
            ),
            (
                json!({"ingress": [{"from": [strange]}]}),
                json!({"ingress": []}),
            ),
            (
                json!({"ingress": [{"from": [strange], "ports": [port]}, {}]}),
                json!({"ingress": [{}]}),
            ),
            // However deep.
            (
                json!({"ingress": [{"from": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "x": 1}]}}]}]}),
                json!({"ingress": []}),
            ),
            (
                json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "x": 1}}, pods]}], "policyTypes": ["Egress"]}),
                json!({"egress": [{"to": [pods]}], "policyTypes": ["Egress"]}),
            ),
            // Ports alike.
            (
                json!({"ingress": [{"ports": [{"port": 80, "x": 1}, {"port": 81}]}]}),
                json!({"ingress": [{"ports": [{"port": 81}]}]}),
            ),
            (
                json!({"ingress": [{"ports": [{"port": 80, "x": 1}]}]}),
                json!({"ingress": []}),
            ),
            // A rule as a whole.
            (
                json!({"ingress": [{"x": 1}, {"from": [pods]}]}),
                json!({"ingress": [{"from": [pods]}]}),
            ),
            // What is isolated stays so.
            (
                json!({"egress": [{"to": [strange]}]}),
                json!({"egress": [], "policyTypes": ["Ingress", "Egress"]}),
            ),
        ] {
            let (got, expected) = (read(with.clone()), read(without));
            assert_eq!(got.object, expected.object, "{with}");
            assert!(
                !got.ignored.is_empty() && expected.ignored.is_empty(),
                "{with}"
            );
        }
    }

    /// An operator that there is none of is the only fault, whatever its values.
    #[test]
    fn selectors_name_the_field_that_is_wrong() {
        for (operator, values, fields) in [
            ("Like", &[][..], &["operator"][..]),
            ("Like", &["a"], &["operator"]),
            ("In", &[], &["values"]),
            ("Exists", &["a"], &["values"]),
            ("NotIn", &["a"], &[]),
        ] {
            let raw =
                json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
            let raw: LabelSelector = serde_json::from_value(raw).unwrap();
            let mut faults = Faults::default();
            selector("spec.nodeSelector", &raw, &mut faults);
            let faults = faults.into_list();
            let paths: Vec<_> = faults
                .iter()
                .map(|fault| fault.path.rsplit('.').next().unwrap_or_default())
                .collect();
            assert_eq!(paths, fields, "{operator} {values:?}");
        }
    }

    #[test]
    fn unknown_fields_outside_of_rules_are_refused() {
        for spec in [
            json!({"podSelector": {}, "x": 1}),
            json!({"podSelector": {"x": 1}}),
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "x": 1}]}}),
        ] {
            let value = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec,
                "metadata": {"name": "p", "namespace": "default"}});
            let refused = parse(&value, Mode::Api).unwrap_err();
            assert!(refused.faults[0].path.ends_with("x"), "{refused:?}");
            assert!(stand_in(&value).is_some());
        }
    }
}
