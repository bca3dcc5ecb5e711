//! From the bytes of the API server to events: one object at a time, so that a bad one never spoils others.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::{At, Problem};
use super::snapshot;
use crate::objects::decode::identity;
use crate::objects::meta::LAST_APPLIED;
use crate::objects::{
    self, Key, Kind, Mode, Node, Object, Parsed, Pod, Rejected, Shown, network_policy, status,
};

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// One page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMeta,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// `metadata` of a list.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// `v1 Status`: why something was refused.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What every object has.
#[derive(Deserialize, Default)]
pub(super) struct Head<'a> {
    #[serde(borrow, default)]
    metadata: HeadMeta<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
    #[serde(borrow)]
    annotations: Option<Initial<'a>>,
}

/// The one annotation of a bookmark that matters.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Initial<'a> {
    #[serde(rename = "k8s.io/initial-events-end", borrow)]
    end: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads it; what is no object has an empty one.
    pub(super) fn of(raw: &'a RawValue) -> Head<'a> {
        serde_json::from_str(raw.get()).unwrap_or_default()
    }

    pub(super) fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// A bookmark that ends the objects with which a stream begins.
    pub(super) fn ends_initial(&self) -> bool {
        self.metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.end == "true")
    }

    pub(super) fn key(&self, kind: Kind) -> Key {
        let namespace = match kind.namespaced() {
            true => self.metadata.namespace.as_ref(),
            false => "",
        };
        Key::new(namespace, self.metadata.name.as_ref())
    }
}

/// An object of the API server, as far as it can be used.
pub(super) enum Read {
    /// It can.
    Good {
        object: Object,
        /// Fields that this version does not know.
        ignored: Vec<Problem>,
        /// Its status, if it is ours to write.
        shown: Option<Box<Shown>>,
        /// The same again for the snapshot, without what is not read; not of pods.
        kept: Option<Box<str>>,
    },
    /// It cannot.
    Bad {
        key: Key,
        problems: Vec<Problem>,
        /// What is in force instead if no earlier form is known.
        stand_in: Option<Object>,
        shown: Option<Box<Shown>>,
        kept: Option<Box<str>>,
    },
}

impl Read {
    pub(super) fn key(&self) -> &Key {
        match self {
            Read::Good { object, .. } => object.key(),
            Read::Bad { key, .. } => key,
        }
    }

    /// A status that is not the API server's says nothing.
    pub(super) fn forget_status(&mut self) {
        match self {
            Read::Good { shown, .. } | Read::Bad { shown, .. } => *shown = None,
        }
    }
}

/// Reads an object of a snapshot; `None` if it is of another kind.
pub(super) fn kept(kind: Kind, text: &str) -> Option<Read> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        kind: Cow<'a, str>,
    }
    let raw = serde_json::from_str::<&RawValue>(text).ok()?;
    let named = serde_json::from_str::<Named<'_>>(text).ok()?;
    (named.kind == kind.name()).then(|| object(kind, raw))
}

/// Reads one object of a kind.
pub(super) fn object(kind: Kind, raw: &RawValue) -> Read {
    if kind == Kind::Pod
        && let Some(pod) = Pod::from_json(raw.get())
    {
        return Read::Good {
            object: Object::Pod(Arc::new(pod)),
            ignored: Vec::new(),
            shown: None,
            kept: None,
        };
    }
    if kind == Kind::Node
        && let Some(node) = Node::from_json(raw.get())
    {
        return Read::Good {
            ignored: Vec::new(),
            shown: None,
            kept: Some(snapshot::node(&node).into_boxed_str()),
            object: Object::Node(Arc::new(node)),
        };
    }
    match serde_json::from_str::<Value>(raw.get()) {
        Ok(value) => value_of(kind, value),
        Err(error) => {
            let (key, at) = (Head::of(raw).key(kind), at(&Value::Null));
            let reason = format!("not readable: {error}");
            Read::Bad {
                problems: vec![problem(kind, &key, &at, "", reason, None)],
                key,
                stand_in: None,
                shown: None,
                kept: None,
            }
        }
    }
}

fn value_of(kind: Kind, mut value: Value) -> Read {
    name(kind, &mut value);
    let at = at(&value);
    let parsed = objects::parse(&value, Mode::Api);
    let ignored = match &parsed {
        Ok(Some(parsed)) if kind.strict() => parsed.ignored.clone(),
        _ => Vec::new(),
    };
    let shown = status::read(&value, ignored.clone()).map(Box::new);
    prune(&mut value);
    let kept = (kind != Kind::Pod).then(|| value.to_string().into_boxed_str());
    let (key, problems) = match parsed {
        Ok(Some(Parsed { object, .. })) if object.kind() == kind => {
            let key = object.key();
            // Where there is a status of ours, it is said there.
            let ignored = ignored.into_iter().filter(|_| shown.is_none());
            let hint = "a newer version of Selvage may know it";
            let ignored = ignored.map(|path| {
                let reason = match path.starts_with("spec.") {
                    true => "unknown field: this part of the rule matches nothing",
                    false => "unknown field, ignored",
                };
                problem(kind, key, &at, &path, reason.into(), Some(hint.into()))
            });
            return Read::Good {
                ignored: ignored.collect(),
                object,
                shown,
                kept,
            };
        }
        Ok(_) => {
            let (named, key) = identity(&value);
            let reason = format!("the API server calls this object a {named:?}");
            let problem = problem(kind, &key, &at, "kind", reason, None);
            (key, vec![problem])
        }
        Err(Rejected { key, faults, .. }) => {
            let faults = faults.into_iter();
            let problems = faults.map(|f| problem(kind, &key, &at, &f.path, f.reason, f.hint));
            let problems = problems.collect();
            (key, problems)
        }
    };
    Read::Bad {
        stand_in: network_policy::stand_in(&value).filter(|_| kind == Kind::NetworkPolicy),
        key,
        problems,
        shown,
        kept,
    }
}

fn at(object: &Value) -> At {
    let text = |path| {
        let text = object.pointer(path).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    At::Api {
        resource_version: text("/metadata/resourceVersion"),
        uid: text("/metadata/uid"),
    }
}

fn problem(
    kind: Kind,
    key: &Key,
    at: &At,
    path: &str,
    reason: String,
    hint: Option<String>,
) -> Problem {
    Problem {
        at: at.clone(),
        kind: kind.name().to_owned(),
        key: key.clone(),
        path: path.to_owned(),
        reason,
        hint,
    }
}

/// Says what a thing is where lists leave it out.
fn name(kind: Kind, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (field, text) in [("kind", kind.name()), ("apiVersion", kind.api_version())] {
        let entry = fields.entry(field).or_insert(Value::Null);
        if entry.as_str().is_none_or(str::is_empty) {
            *entry = text.into();
        }
    }
}

/// Takes away what is not read or changes often.
fn prune(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    fields.remove("status");
    let Some(Value::Object(meta)) = fields.get_mut("metadata") else {
        return;
    };
    for field in ["managedFields", "resourceVersion", "ownerReferences"] {
        meta.remove(field);
    }
    if let Some(Value::Object(annotations)) = meta.get_mut("annotations") {
        annotations.remove(LAST_APPLIED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn heads() {
        let text = raw(
            r#"{"metadata":{"name":"n","namespace":"a","resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}"#,
        );
        let head = Head::of(&text);
        assert_eq!((head.version(), head.ends_initial()), ("7", true));
        assert_eq!(head.key(Kind::Pod), Key::new("a", "n"));
        assert_eq!(head.key(Kind::Node), Key::new("", "n"));
        assert_eq!(Head::of(&raw("[1]")).version(), "");
    }

    #[test]
    fn lists_leave_out_what_a_thing_is() {
        let item = raw(
            r#"{"metadata":{"name":"n","managedFields":[{}],"resourceVersion":"7"},"spec":{"podCIDR":"10.0.0.0/24"},"status":{"addresses":[],"images":[]}}"#,
        );
        let Read::Good { object, kept, .. } = object(Kind::Node, &item) else {
            panic!("refused")
        };
        assert_eq!(object.key(), &Key::new("", "n"));
        let kept = kept.unwrap();
        assert!(
            !kept.contains("managedFields") && !kept.contains("images"),
            "{kept}"
        );
        assert!(kept.contains(r#""kind":"Node""#), "{kept}");
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (kind, text, reason) in [
            (
                Kind::Node,
                r#"{"metadata":{"name":"n"},"spec":{"podCIDRs":["x"]}}"#,
                "spec.podCIDRs[0]",
            ),
            (
                Kind::Node,
                r#"{"apiVersion":"v2","kind":"Node","metadata":{"name":"n"}}"#,
                "apiVersion",
            ),
            (
                Kind::Pod,
                r#"{"apiVersion":"meta.k8s.io/v1","kind":"Table","metadata":{"name":"n"}}"#,
                "kind",
            ),
            (
                Kind::Pod,
                r#"{"metadata":{"name":"n","namespace":"a"},"status":{"podIPs":[{"ip":"no"}]}}"#,
                "status.podIPs[0].ip",
            ),
            (Kind::Pod, "17", ""),
        ] {
            let Read::Bad { problems, .. } = object(kind, &raw(text)) else {
                panic!("{text}")
            };
            let paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
            assert_eq!(paths, [reason], "{text}");
        }
    }

    /// What is read straight from the bytes is what is read by way of a value.
    #[test]
    fn both_ways_of_reading_agree() {
        let bodies = [
            r#"{"metadata":{"name":"n","namespace":"a"}}"#,
            r#"{"metadata":{"name":"n","namespace":"a"},"spec":null,"status":null}"#,
            r#"{"apiVersion":"v1","kind":"KIND","metadata":{"name":"n","namespace":"a","uid":"u","generation":3,"resourceVersion":"9",
                "creationTimestamp":"2026-01-02T03:04:05Z","labels":{"a\u0062":"c"},"managedFields":[{"x":1}],"ownerReferences":[],
                "annotations":{"kubernetes.io/config.mirror":"m","x":"y","kubectl.kubernetes.io/last-applied-configuration":"{}"}},
                "spec":{"nodeName":"node","hostNetwork":true,"podCIDR":"10.0.0.1/24","podCIDRs":["10.0.0.1/24","fd00::/64"],"unknown":[{}],
                    "initContainers":[{"restartPolicy":"Always","ports":[{"name":"s","containerPort":1}]},{"ports":[{"name":"i","containerPort":2}]}],
                    "containers":[{"name":"c","ports":[{"name":"dns","protocol":"UDP","containerPort":53},{"containerPort":80,"hostPort":81}]},{}]},
                "status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],"images":[{"names":["x"]}],
                    "addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"Hostname","address":"n"}],
                    "conditions":[{"type":"NetworkUnavailable","status":"False"},{"type":"Ready","status":"True","reason":"x"}]}}"#,
            r#"{"metadata":{"name":"n","namespace":"a","annotations":{"x":null},"labels":null},"status":{"phase":"Strange","podIP":"fd00::1","podIPs":[]}}"#,
            r#"{"metadata":{"name":"n","namespace":"a"},"spec":{"podCIDR":""},"status":{"podIP":"","addresses":[{"type":"ExternalIP","address":"fd00::1"}]}}"#,
            // What neither takes.
            r#"{"metadata":{"namespace":"a"}}"#,
            r#"{"metadata":{"name":"N","namespace":"a"}}"#,
            r#"{"metadata":{"name":"n","namespace":"a","labels":{"-":"x"}}}"#,
            r#"{"metadata":{"name":"n","namespace":"a"},"spec":{"podCIDRs":["x"],"nodeName":1},"status":{"podIPs":[{"ip":"x"}],"addresses":[{"type":"InternalIP","address":"x"}]}}"#,
            r#"{"apiVersion":"v2","kind":"KIND","metadata":{"name":"n","namespace":"a"}}"#,
            r#"{"apiVersion":"v1","kind":"Table","metadata":{"name":"n","namespace":"a"}}"#,
            r#"{"kind":"KIND"}"#,
            "[]",
        ];
        let (mut good, mut bad) = (0, 0);
        for kind in [Kind::Pod, Kind::Node] {
            for body in bodies {
                let text = body.replace("KIND", kind.name());
                let direct = match kind {
                    Kind::Pod => Pod::from_json(&text).map(|pod| Object::Pod(pod.into())),
                    _ => Node::from_json(&text).map(|node| Object::Node(node.into())),
                };
                let mut value: Value = serde_json::from_str(&text).unwrap();
                name(kind, &mut value);
                let parsed = objects::parse(&value, Mode::Api).ok().flatten();
                let parsed = parsed
                    .map(|parsed| parsed.object)
                    .filter(|object| object.kind() == kind);
                assert_eq!(direct, parsed, "{text}");
                *(if direct.is_some() {
                    &mut good
                } else {
                    &mut bad
                }) += 1;
            }
        }
        assert!(good >= 8 && bad >= 14, "{good} {bad}");
    }
}
