//! What the API server shows of our own kinds besides their spec: how far the agents have got with it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Key, Kind, decode};

/// The status of an object as the API server has it, and what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The kind.
    pub kind: Kind,
    /// Which one.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// Counts changes of its spec.
    pub generation: i64,
    /// Fields of it that this version does not know, as paths.
    pub ignored: Vec<String>,
    /// `status.observedGeneration`; 0 if nobody has looked at it yet.
    pub observed_generation: i64,
    /// `status.conditions`.
    pub conditions: Vec<ShownCondition>,
}

/// One condition (`metav1.Condition`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ShownCondition {
    /// `Accepted` and so on.
    #[serde(rename = "type")]
    pub name: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When `status` became what it is, RFC 3339.
    pub last_transition_time: String,
}

/// Reads it. `None`: not one of the kinds whose status we write.
///
/// A status that cannot be read counts as empty: it is ours, and is written anew.
pub fn read(value: &Value, ignored: Vec<String>) -> Option<Shown> {
    let (kind, key) = decode::identity(value);
    let kind = Kind::from_name(&kind).filter(|kind| kind.has_status())?;
    let number = |path: &str| value.pointer(path).and_then(Value::as_i64);
    let uid = value.pointer("/metadata/uid").and_then(Value::as_str);
    let conditions = value.pointer("/status/conditions").cloned();
    Some(Shown {
        kind,
        key,
        uid: uid.unwrap_or_default().to_owned(),
        generation: number("/metadata/generation").unwrap_or_default(),
        ignored,
        observed_generation: number("/status/observedGeneration").unwrap_or_default(),
        conditions: conditions
            .and_then(|list| serde_json::from_value(list).ok())
            .unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_shown() {
        let peer = |status: Value| {
            json!({"apiVersion": "selvage.io/v1alpha1", "kind": "BGPPeer", "status": status,
                "metadata": {"name": "tor", "uid": "u", "generation": 3}, "spec": {}})
        };
        let good = json!({"observedGeneration": 2, "conditions": [{"type": "Accepted", "status": "True"}]});
        for (value, observed, conditions) in [
            (peer(good), 2, 1),
            (peer(Value::Null), 0, 0),
            (peer(json!({"conditions": "all well"})), 0, 0),
        ] {
            let shown = read(&value, Vec::new()).unwrap();
            assert_eq!((shown.kind, shown.generation), (Kind::BgpPeer, 3));
            assert_eq!(
                (shown.observed_generation, shown.conditions.len()),
                (observed, conditions)
            );
        }
        assert_eq!(read(&json!({"kind": "Pod"}), Vec::new()), None);
    }
}
