//! Where objects come from. Every source speaks the same events, so that the store never knows which one it is.
//!
//! A source sends batches in an order that may be applied as it comes: problems of an origin are cleared before
//! they are named anew, and a kind is `Synced` after all that the source held at its start was sent.

pub mod api;
pub mod directory;
pub(crate) mod folder;
pub mod tree;
pub mod watch;
pub mod yaml;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use selvage_policy::model::PodFact;

use crate::objects::{Key, Kind, NotEnforced, Object, PolicyKind, Shown};

/// One step of a source.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectEvent {
    /// All objects of this kind follow; what was not named until `Synced` is gone.
    Relist(Kind),
    /// The object is there, in this form.
    Applied(Object),
    /// The pod is there, in the form in which it is kept. A cluster has many: all that it took to read it stays with whoever
    /// read it, and memory does not go from thread to thread.
    Pod(Arc<PodFact>),
    /// The object is gone.
    Deleted(Kind, Key),
    /// Everything that the source held of this kind when it began was sent.
    Synced(Kind),
    /// All earlier problems of this origin are settled.
    Cleared(Origin),
    /// Everything that the source held when it was asked for this mark was sent.
    Reached(u64),
    /// Something could not be used. The last good form of the object, if there was one, stays.
    Invalid(Problem),
    /// All objects of a kind that this version does not enforce, by name, instead of those that were told before.
    NotEnforced(PolicyKind, Vec<NotEnforced>),
    /// The status that an object of ours has at the API server, after `Applied` or `Invalid` of the same version.
    Shown(Box<Shown>),
}

/// Something that could not be used, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub at: At,
    /// The kind, as written; empty if there was none.
    pub kind: String,
    /// Namespace and name as far as known.
    pub key: Key,
    /// Field path; empty for the object as a whole.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// In a file; line and column count from 1, 0 is unknown.
    File {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: u32,
        /// Its column, in characters.
        column: u32,
    },
    /// At the API server.
    Api {
        /// The version that was refused.
        resource_version: String,
        /// Which of the objects that have had this name.
        uid: String,
    },
}

/// What a refused policy means for its pods, of which no earlier form is known.
fn closed(kind: Kind, key: &Key, at: At) -> Problem {
    Problem {
        at,
        kind: kind.to_string(),
        key: key.clone(),
        path: String::new(),
        reason:
            "refused, and no earlier form of it is known: the pods that it selects are closed in \
                 the directions that it names"
                .into(),
        hint: Some("correct it, or remove it to open them".into()),
    }
}

/// What problems are grouped by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A file, or the directory itself.
    File(PathBuf),
    /// An object of the API server.
    Api(String, Key),
}

impl Problem {
    /// What it is grouped by.
    pub fn origin(&self) -> Origin {
        match &self.at {
            At::File { path, .. } => Origin::File(path.clone()),
            At::Api { .. } => Origin::Api(self.kind.clone(), self.key.clone()),
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            At::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            At::Api {
                resource_version, ..
            } => write!(f, "resourceVersion {resource_version}"),
        }
    }
}

/// `file:line:column: Kind name: field: reason (hint)`, on one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if !self.kind.is_empty() {
            write!(f, "{} ", self.kind)?;
            match self.key.name.as_str() {
                "" => f.write_str("without a name: ")?,
                _ => write!(f, "{}: ", self.key)?,
            }
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.reason)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}
