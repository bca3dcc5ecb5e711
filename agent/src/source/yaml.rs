//! One file's text to objects and problems. Pure: the watcher and `selvage check` both call it.

use std::path::Path;

use serde_json::Value;
use serde_saphyr::Location;

use super::tree::{Located, Tree, locate};
use super::{At, Problem};
use crate::objects::network_policy::stand_in;
use crate::objects::{Key, Mode, NotEnforced, Object, PolicyKind, Rejected, parse};

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// What one file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its good objects, in the order written, with the place of each.
    pub objects: Vec<(Object, At)>,
    /// What is in force instead of refused objects, where nothing better is known.
    pub stand_ins: Vec<(Object, At)>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// Policies of kinds that this version does not enforce, with the place of each.
    pub not_enforced: Vec<(NotEnforced, At)>,
    /// Objects of kinds that are not ours.
    pub foreign: usize,
    /// Fields that were ignored, as `Kind name: path`.
    pub ignored: Vec<String>,
}

/// Reads the text of a file: YAML or JSON, several documents, lists.
pub fn read(path: &Path, text: &str) -> Contents {
    let mut contents = Contents::default();
    let documents: Vec<Located> = match serde_saphyr::from_multiple_with_options(text, options()) {
        Ok(documents) => documents,
        Err(error) => {
            contents.problems.push(syntax(path, &error));
            return contents;
        }
    };
    for document in &documents {
        add(path, document, &mut contents, 0);
    }
    duplicates(&mut contents);
    contents
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_documents: 200_000,
            max_nodes: 4_000_000,
            max_events: 16_000_000,
            max_depth: 64,
        },
    }
}

fn syntax(path: &Path, error: &serde_saphyr::Error) -> Problem {
    let (line, column) = error.location().map_or((0, 0), |place: Location| {
        (
            u32::try_from(place.line()).unwrap_or(0),
            u32::try_from(place.column()).unwrap_or(0),
        )
    });
    let rendered = error.without_snippet().to_string();
    let reason = rendered.lines().next().unwrap_or("unreadable");
    let reason = reason
        .split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or(reason);
    let reason = match reason
        .rfind(" at line ")
        .or_else(|| reason.rfind(" (line "))
    {
        Some(end) => reason.get(..end).unwrap_or(reason),
        None => reason,
    };
    Problem {
        at: At::File {
            path: path.to_owned(),
            line,
            column,
        },
        kind: String::new(),
        key: Key::default(),
        path: String::new(),
        reason: reason.trim_end_matches([':', ',', ' ']).to_owned(),
        hint: Some("the file is not valid YAML; what it held before stays in force".into()),
    }
}

fn add(path: &Path, document: &Located, contents: &mut Contents, depth: usize) {
    if matches!(document.value, Tree::Null) {
        return;
    }
    if let (Some(Tree::Text(kind)), Some(items), true) = (
        document.value.field("kind").map(|kind| &kind.value),
        document.value.field("items"),
        depth == 0,
    ) && kind.ends_with("List")
        && let Tree::List(items) = &items.value
    {
        for item in items {
            add(path, item, contents, depth + 1);
        }
        return;
    }
    let value = document.value.to_value();
    match parse(&value, Mode::File) {
        Ok(Some(parsed)) => {
            let object = &parsed.object;
            let names = parsed
                .ignored
                .iter()
                .map(|field| format!("{} {}: {field}", object.kind(), object.key()));
            contents.ignored.extend(names);
            let (line, column) = locate(document, "", false);
            contents.objects.push((
                parsed.object,
                At::File {
                    path: path.to_owned(),
                    line,
                    column,
                },
            ));
        }
        Ok(None) => match not_enforced(&value) {
            Some(policy) => {
                let (line, column) = locate(document, "", false);
                let path = path.to_owned();
                let at = At::File { path, line, column };
                contents.not_enforced.push((policy, at));
            }
            None => contents.foreign += 1,
        },
        Err(rejected) => {
            if let Some(object) = stand_in(&value) {
                let (line, column) = locate(document, "", false);
                let path = path.to_owned();
                contents
                    .stand_ins
                    .push((object, At::File { path, line, column }));
            }
            contents.problems.extend(problems(path, document, rejected));
        }
    }
}

fn not_enforced(value: &Value) -> Option<NotEnforced> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let api_version = text("/apiVersion")?;
    Some(NotEnforced {
        kind: PolicyKind::of(api_version, text("/kind")?)?,
        name: text("/metadata/name").unwrap_or_default().to_owned(),
        api_version: api_version.to_owned(),
        uid: String::new(),
        generation: 0,
    })
}

fn problems(path: &Path, document: &Located, rejected: Rejected) -> Vec<Problem> {
    let Rejected { kind, key, faults } = rejected;
    let problem = |fault: crate::objects::Fault| {
        let (line, column) = locate(
            document,
            &fault.path,
            fault.reason.starts_with("unknown field"),
        );
        Problem {
            at: At::File {
                path: path.to_owned(),
                line,
                column,
            },
            kind: kind.clone(),
            key: key.clone(),
            path: fault.path,
            reason: fault.reason,
            hint: fault.hint,
        }
    };
    faults.into_iter().map(problem).collect()
}

/// Two objects of one name in one file: the first stays.
fn duplicates(contents: &mut Contents) {
    let mut seen = std::collections::BTreeMap::new();
    let problems = &mut contents.problems;
    contents.objects.retain(|(object, at)| {
        let first = seen
            .entry((object.kind(), object.key().clone()))
            .or_insert_with(|| at.clone());
        if first == at {
            return true;
        }
        problems.push(Problem {
            at: at.clone(),
            kind: object.kind().to_string(),
            key: object.key().clone(),
            path: String::new(),
            reason: format!("the same object is already at {first}"),
            hint: Some("the first one counts; remove one of them".into()),
        });
        false
    });
}
