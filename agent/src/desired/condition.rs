//! Conditions of objects, as data. The Kubernetes source writes them to `status`, the control socket shows them.

use crate::objects::{Key, Kind};

/// What is to be said about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// Of which kind.
    pub kind: Kind,
    /// Which one.
    pub key: Key,
    /// The type: `Accepted`, `Conflict`, `PasswordMissing` and so on.
    pub name: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// For people: what, and what to do.
    pub message: String,
}

impl Condition {
    /// Whether somebody should do something about it.
    pub fn is_bad(&self) -> bool {
        self.status != (self.name == "Accepted")
    }
}
