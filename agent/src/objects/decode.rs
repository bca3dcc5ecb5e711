//! From a JSON value to an object: the envelope by hand, the spec by serde, then lowering.
//!
//! An unknown field is a fault in files of strict kinds and is only remembered elsewhere. All faults of an object
//! are found in one pass.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fault::closest;
use super::meta::{self, RawMeta};
use super::value::Mismatch;
use super::{
    BgpConfiguration, BgpPeer, Faults, Key, Kind, Meta, Namespace, NetworkPolicy, Node, Object,
    Pod, Rejected, Secret,
};

/// Where a value came from, and so how strictly it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A file: the API server's defaults are applied here, and unknown fields of strict kinds are faults.
    File,
    /// The API server, which has applied its defaults; unknown fields may come from a newer version.
    Api,
}

/// An object, and what was ignored on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Paths of fields that were ignored.
    pub ignored: Vec<String>,
}

/// What lowering works with.
pub(super) struct Context {
    pub(super) mode: Mode,
    pub(super) strict: bool,
    pub(super) faults: Faults,
    pub(super) ignored: Vec<String>,
}

/// Kind and key of a value, as far as they can be told; for values that are not valid otherwise.
pub fn identity(value: &Value) -> (String, Key) {
    let text = |path: &str| {
        value
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let kind = text("/kind");
    let namespaced = Kind::from_name(&kind).filter(|kind| kind.namespaced());
    let mut namespace = match namespaced {
        Some(_) => text("/metadata/namespace"),
        None => String::new(),
    };
    if let Some(kind) = namespaced.filter(|_| namespace.is_empty()) {
        namespace = kind.default_namespace().into();
    }
    let name = text("/metadata/name");
    (kind, Key { namespace, name })
}

/// Reads one object. `Ok(None)`: a kind that is none of ours in a group that is not ours either.
pub fn parse(value: &Value, mode: Mode) -> Result<Option<Parsed>, Rejected> {
    let mut context = Context {
        mode,
        strict: false,
        faults: Faults::default(),
        ignored: Vec::new(),
    };
    let object = envelope(value, &mut context);
    let Context {
        faults, ignored, ..
    } = context;
    if !faults.is_empty() {
        let (kind, key) = identity(value);
        return Err(Rejected {
            kind,
            key,
            faults: faults.into_list(),
        });
    }
    Ok(object.map(|object| Parsed { object, ignored }))
}

fn envelope(value: &Value, context: &mut Context) -> Option<Object> {
    let Value::Object(fields) = value else {
        context.faults.hinted(
            "",
            "not an object",
            "expected apiVersion, kind, metadata and spec",
        );
        return None;
    };
    let kind = kind(fields, &mut context.faults)?;
    context.strict = kind.strict() && context.mode == Mode::File;
    let meta = metadata(kind, fields, context)?;
    let top: &[&str] = match kind {
        Kind::Secret => &["data", "stringData", "type", "immutable"],
        _ => &["spec", "status"],
    };
    for field in fields.keys() {
        if ["apiVersion", "kind", "metadata"].contains(&field.as_str())
            || top.contains(&field.as_str())
        {
            continue;
        }
        if !context.strict {
            context.ignored.push(field.clone());
            continue;
        }
        match closest(
            field,
            ["apiVersion", "kind", "metadata"]
                .into_iter()
                .chain(top.iter().copied()),
        ) {
            Some(name) => context.faults.hinted(
                field,
                "unknown field",
                format_args!("did you mean `{name}`?"),
            ),
            None => context
                .faults
                .hinted(field, "unknown field", "settings belong under `spec`"),
        }
    }
    lower(kind, meta, fields, context)
}

fn kind(fields: &serde_json::Map<String, Value>, faults: &mut Faults) -> Option<Kind> {
    let mut text = |field: &str| match fields.get(field) {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => {
            faults.add(field, "expected a string");
            None
        }
        None => {
            faults.hinted(
                field,
                "missing",
                "every object begins with apiVersion and kind",
            );
            None
        }
    };
    let (api_version, name) = (text("apiVersion")?, text("kind")?);
    let ours = api_version.starts_with("selvage.io/");
    let Some(kind) = Kind::from_name(name) else {
        if ours {
            let known = Kind::ALL
                .into_iter()
                .filter(|kind| kind.api_version().starts_with("selvage.io/"));
            let hint = match closest(name, known.map(Kind::name)) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "this version knows BGPConfiguration and BGPPeer".into(),
            };
            faults.hinted(
                "kind",
                format_args!("`{name}` is not a kind of {api_version}"),
                hint,
            );
        }
        return None;
    };
    if api_version != kind.api_version() {
        let same_group = group(api_version) == group(kind.api_version());
        if same_group || kind.strict() {
            let hint = format!("write `apiVersion: {}`", kind.api_version());
            faults.hinted(
                "apiVersion",
                format_args!("`{api_version}` has no {kind} that we can read"),
                hint,
            );
        }
        return None;
    }
    Some(kind)
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn metadata(
    kind: Kind,
    fields: &serde_json::Map<String, Value>,
    context: &mut Context,
) -> Option<Meta> {
    let Some(value) = fields.get("metadata") else {
        context.faults.hinted(
            "metadata",
            "missing",
            "every object needs `metadata: {name: …}`",
        );
        return None;
    };
    if let (true, Value::Object(metadata)) = (context.strict, value) {
        meta::check_fields(metadata, &mut context.faults);
    }
    let raw: RawMeta = context.decode("metadata", value)?;
    meta::lower(kind, raw, context.mode, &mut context.faults)
}

fn lower(
    kind: Kind,
    meta: Meta,
    fields: &serde_json::Map<String, Value>,
    context: &mut Context,
) -> Option<Object> {
    let empty = Value::Object(serde_json::Map::new());
    let part = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => &empty,
        Some(value) => value,
    };
    Some(match kind {
        Kind::Node => Object::Node(Arc::new(Node::lower(
            meta,
            part("spec"),
            part("status"),
            context,
        )?)),
        Kind::Namespace => Object::Namespace(Arc::new(Namespace { meta })),
        Kind::Pod => Object::Pod(Arc::new(Pod::lower(
            meta,
            part("spec"),
            part("status"),
            context,
        )?)),
        Kind::NetworkPolicy => {
            Object::NetworkPolicy(Arc::new(NetworkPolicy::lower(meta, part("spec"), context)?))
        }
        Kind::BgpConfiguration => Object::BgpConfiguration(Arc::new(BgpConfiguration::lower(
            meta,
            part("spec"),
            context,
        )?)),
        Kind::BgpPeer => Object::BgpPeer(Arc::new(BgpPeer::lower(meta, part("spec"), context)?)),
        Kind::Secret => Object::Secret(Arc::new(Secret::lower(
            meta,
            part("data"),
            part("stringData"),
            context,
        )?)),
    })
}

impl Context {
    /// Decodes one part of an object; faults carry the path below `base`.
    pub(super) fn decode<T: DeserializeOwned>(&mut self, base: &str, value: &Value) -> Option<T> {
        let mut value = value.clone();
        loop {
            let (inner, mismatch) = match super::value::decode::<T>(&value) {
                Ok(decoded) => return Some(decoded),
                Err(wrong) => wrong,
            };
            let path = if inner == "." {
                base.to_owned()
            } else {
                format!("{base}.{inner}")
            };
            let Mismatch::UnknownField { field, known } = &mismatch else {
                self.faults.add(path, mismatch);
                return None;
            };
            let holder = path
                .strip_suffix(&format!(".{field}"))
                .unwrap_or(&path)
                .to_owned();
            let path = format!("{holder}.{field}");
            let below = holder
                .strip_prefix(base)
                .unwrap_or_default()
                .trim_start_matches('.')
                .to_owned();
            if !remove(&mut value, &below, field) {
                self.faults.add(path, mismatch);
                return None;
            }
            if !self.strict {
                self.ignored.push(path);
                continue;
            }
            match closest(field, known.iter().copied()) {
                Some(name) => self.faults.hinted(
                    path,
                    "unknown field",
                    format_args!("did you mean `{name}`?"),
                ),
                None if known.is_empty() => self.faults.add(path, "unknown field"),
                None => self.faults.hinted(
                    path,
                    "unknown field",
                    format_args!("known here: {}", known.join(", ")),
                ),
            }
        }
    }
}

/// Removes `field` from the mapping at `path` (as in `a.b[1].c`); false if it is not there.
fn remove(value: &mut Value, path: &str, field: &str) -> bool {
    let mut at = value;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let mut parts = step.split('[');
        let name = parts.next().unwrap_or_default();
        if !name.is_empty() {
            let Some(next) = at.get_mut(name) else {
                return false;
            };
            at = next;
        }
        for index in parts {
            let Some(next) = index
                .trim_end_matches(']')
                .parse()
                .ok()
                .and_then(|i: usize| at.get_mut(i))
            else {
                return false;
            };
            at = next;
        }
    }
    at.as_object_mut()
        .is_some_and(|fields| fields.remove(field).is_some())
}
