//! Events (`events.k8s.io/v1`): what `kubectl describe` and `kubectl events` show of transitions.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};

/// What an event is about.
pub(super) struct Regarding<'a> {
    pub(super) api_version: &'a str,
    pub(super) kind: &'a str,
    /// Empty for cluster-wide objects.
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
}

/// How it is to be taken.
#[derive(Clone, Copy)]
pub(super) enum Tone {
    Normal,
    Warning,
}

/// An event, and the path at which it is made. `once` tells one from another: the same event is made once only, whichever
/// agent comes first.
pub(super) fn event(
    about: &Regarding<'_>,
    tone: Tone,
    reason: &str,
    note: &str,
    node: &str,
    (once, now): (&str, &str),
) -> (String, Value) {
    let namespace = match about.namespace {
        "" => "default",
        namespace => namespace,
    };
    let mut hasher = DefaultHasher::new();
    (about.kind, about.uid, reason, note, once).hash(&mut hasher);
    // A name has 253 characters at most.
    let name: String = about.name.chars().take(200).collect();
    let mut note: String = note.chars().take(1_000).collect();
    if note.is_empty() {
        note = reason.to_owned();
    }
    let value = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": format!("{name}.{:016x}", hasher.finish())},
        "eventTime": now,
        "reportingController": "selvage.io/agent",
        "reportingInstance": node,
        "action": reason,
        "reason": reason,
        "type": match tone {
            Tone::Normal => "Normal",
            Tone::Warning => "Warning",
        },
        "note": note,
        "regarding": {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
    });
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    (path, value)
}
