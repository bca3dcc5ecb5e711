//! `networking.k8s.io/v1 NetworkPolicy`: the spec is the policy compiler's; here is only the envelope.

use std::sync::Arc;

use selvage_policy::api::{LabelSelector, NetworkPolicySpec};
use selvage_policy::lower;
use selvage_policy::model::{Policy, PolicyKey, Requirement, Selector};
use serde_json::Value;

use super::decode::{Context, identity};
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
        let raw: NetworkPolicySpec = context.decode("spec", spec)?;
        let key = PolicyKey::new(meta.key.namespace.as_str(), meta.key.name.as_str());
        match lower(key, &raw) {
            Ok(policy) => Some(NetworkPolicy {
                meta,
                policy: Arc::new(policy),
            }),
            Err(refused) => {
                context.faults.add(refused.field, refused.reason);
                None
            }
        }
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
    let pods = serde_json::from_value::<LabelSelector>(pods).ok();
    let pods = pods.and_then(|raw| Selector::try_from(&raw).ok());
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
    let mut requirements = Vec::new();
    for (name, value) in &raw.match_labels {
        if let Err(reason) = valid_label(name, value) {
            faults.add(format!("{path}.matchLabels.{name}"), reason);
        }
        requirements.push(Requirement::In(
            name.as_str().into(),
            [value.as_str().into()].into(),
        ));
    }
    for (i, raw) in raw.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let key = raw.key.as_str().into();
        let values = raw
            .values
            .iter()
            .map(|value| value.as_str().into())
            .collect();
        let takes_values = matches!(raw.operator.as_str(), "In" | "NotIn");
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
        if let Err(reason) = valid_label(&raw.key, "") {
            faults.add(format!("{path}.key"), reason);
        }
        requirements.push(match raw.operator.as_str() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            other => {
                let reason = format_args!("`{other}` is not In, NotIn, Exists or DoesNotExist");
                faults.add(format!("{path}.operator"), reason);
                continue;
            }
        });
    }
    Some(Selector::new(requirements))
}
