//! `networking.k8s.io/v1 NetworkPolicy`: the spec is the policy compiler's; here is only the envelope.

use std::sync::Arc;

use selvage_policy::api::{LabelSelector, NetworkPolicySpec};
use selvage_policy::lower;
use selvage_policy::model::{Policy, PolicyKey, Requirement, Selector};
use serde_json::Value;

use super::decode::Context;
use super::meta::valid_label;
use super::{Faults, Meta};

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
