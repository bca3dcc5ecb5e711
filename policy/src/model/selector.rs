//! The one selector engine: policies, peers, pools and services all ask it.

use super::Labels;
use std::collections::BTreeSet;

/// A valid label selector, in normal form: equal selections that are written differently often compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(BTreeSet<Requirement>);

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key is there with one of the values.
    In(Box<str>, BTreeSet<Box<str>>),
    /// The key is absent, or has none of the values.
    NotIn(Box<str>, BTreeSet<Box<str>>),
    /// The key is there.
    Exists(Box<str>),
    /// The key is absent.
    DoesNotExist(Box<str>),
}

impl Selector {
    /// The selector of these requirements, all of which must hold.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Selector(requirements.into_iter().collect())
    }

    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        match self {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
        }
    }
}
