//! Object metadata: the part that every kind shares.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use selvage_policy::model::Labels;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::decode::Mode;
use super::fault::closest;
use super::{Faults, Key, Kind, Timestamp};

/// What we keep of `metadata`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Namespace (empty for cluster-scoped kinds) and name.
    pub key: Key,
    /// Given by the API server; in files as written, else empty.
    pub uid: String,
    /// Labels.
    pub labels: Labels,
    /// Annotations, without those that tools keep whole objects in; of pods only those that we read.
    pub annotations: BTreeMap<String, String>,
    /// When it was made, as far as known.
    pub created: Option<Timestamp>,
    /// Counts changes of the spec; 0 where nobody counts.
    pub generation: i64,
}

/// Fields of ObjectMeta that exist in Kubernetes, whether we read them or not.
const KNOWN: [&str; 14] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
];

/// Written by `kubectl apply`: a second copy of the object.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A static pod's own UID, as the runtime passes it; the API server gives its mirror another one.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Every pod has many, and there are many pods.
fn is_kept(kind: Kind, annotation: &str) -> bool {
    match kind {
        Kind::Pod => annotation == CONFIG_MIRROR,
        _ => annotation != LAST_APPLIED,
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawMeta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, Option<String>>>,
    creation_timestamp: Option<String>,
    generation: Option<i64>,
}

/// The same of a pod: nothing is taken up of annotations that we do not read.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<PodAnnotations>,
    creation_timestamp: Option<String>,
    generation: Option<i64>,
}

struct PodAnnotations(BTreeMap<String, Option<String>>);

impl<'de> Deserialize<'de> for PodAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PodAnnotationsVisitor)
    }
}

struct PodAnnotationsVisitor;

impl<'de> Visitor<'de> for PodAnnotationsVisitor {
    type Value = PodAnnotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PodAnnotations, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(name) = map.next_key::<Name<'de>>()? {
            if is_kept(Kind::Pod, &name.0) {
                kept.insert(name.0.into_owned(), map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(PodAnnotations(kept))
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl From<PodMeta> for RawMeta {
    fn from(meta: PodMeta) -> RawMeta {
        RawMeta {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            labels: meta.labels,
            annotations: meta.annotations.map(|kept| kept.0),
            creation_timestamp: meta.creation_timestamp,
            generation: meta.generation,
        }
    }
}

/// Reports fields of `metadata` that do not exist.
pub(super) fn check_fields(
    metadata: &serde_json::Map<String, serde_json::Value>,
    faults: &mut Faults,
) {
    for field in metadata.keys() {
        if KNOWN.contains(&field.as_str()) || field == "managedFields" {
            continue;
        }
        let path = format!("metadata.{field}");
        match closest(field, KNOWN) {
            Some(name) => faults.hinted(
                path,
                "unknown field",
                format_args!("did you mean `{name}`?"),
            ),
            None => faults.add(path, "unknown field"),
        }
    }
}

/// Lowers metadata; in files the API server's defaults are applied.
pub(super) fn lower(kind: Kind, raw: RawMeta, mode: Mode, faults: &mut Faults) -> Option<Meta> {
    let name = raw.name.unwrap_or_default();
    if name.is_empty() {
        faults.hinted("metadata.name", "missing", "every object needs a name");
        return None;
    }
    let valid = match kind {
        Kind::Namespace => valid_namespace(&name),
        _ => valid_name(&name),
    };
    if let Err(reason) = valid {
        faults.add("metadata.name", reason);
    }
    let mut namespace = raw.namespace.unwrap_or_default();
    if !kind.namespaced() {
        if !namespace.is_empty() && mode == Mode::File && kind.strict() {
            faults.hinted(
                "metadata.namespace",
                format_args!("{kind} is cluster-scoped"),
                "leave the field out",
            );
        }
        namespace.clear();
    } else if namespace.is_empty() {
        namespace = kind.default_namespace().into();
    } else if let Err(reason) = valid_namespace(&namespace) {
        faults.add("metadata.namespace", reason);
    }
    let mut labels = raw.labels.unwrap_or_default();
    for (name, value) in &labels {
        if let Err(reason) = valid_label(name, value) {
            faults.add(format!("metadata.labels.{name}"), reason);
        }
    }
    if kind == Kind::Namespace && mode == Mode::File {
        labels.insert("kubernetes.io/metadata.name".into(), name.clone());
    }
    let created = raw
        .creation_timestamp
        .and_then(|text| faults.take("metadata.creationTimestamp", text.parse::<Timestamp>()));
    let annotations = raw.annotations.unwrap_or_default().into_iter();
    Some(Meta {
        key: Key { namespace, name },
        uid: raw.uid.unwrap_or_default(),
        labels: labels.into(),
        annotations: annotations
            .filter(|(name, _)| is_kept(kind, name))
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect(),
        created,
        generation: raw.generation.unwrap_or_default(),
    })
}

/// A name by RFC 1123, as Kubernetes checks it.
fn valid_name(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err("longer than 253 characters".into());
    }
    if name.split('.').all(is_dns_word) {
        return Ok(());
    }
    Err(format!(
        "`{name}` is not a name: lower-case letters, digits, `-` and `.`, with a letter or digit at both ends and beside each `.`"
    ))
}

/// One word of such a name, of at most 63 characters.
fn valid_namespace(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("longer than 63 characters".into());
    }
    if is_dns_word(name) {
        return Ok(());
    }
    Err(format!(
        "`{name}` is not the name of a namespace: lower-case letters, digits and `-`, with a letter or digit at both ends"
    ))
}

fn is_dns_word(word: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !word.is_empty() && word.bytes().all(allowed) && !word.starts_with('-') && !word.ends_with('-')
}

/// The syntax of a label (Kubernetes "Labels and Selectors"): `[prefix/]name`, and a value of at most 63 characters.
pub(super) fn valid_label(name: &str, value: &str) -> Result<(), String> {
    let (prefix, short) = match name.split_once('/') {
        Some((prefix, short)) => (Some(prefix), short),
        None => (None, name),
    };
    if prefix.is_some_and(|prefix| valid_name(prefix).is_err()) || !label_word(short) {
        return Err(format!("`{name}` is not a label name"));
    }
    if !value.is_empty() && !label_word(value) {
        return Err(format!(
            "`{value}` is not a label value: at most 63 letters, digits, `-`, `_` and `.`"
        ));
    }
    Ok(())
}

fn label_word(word: &str) -> bool {
    let bytes = word.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && edge(bytes.first())
        && edge(bytes.last())
}
