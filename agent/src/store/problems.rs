//! What could not be used, by where it stands. Nobody who tells of it copies all of it: a cluster may have 100,000 refused
//! objects, and each of them may change at any time.

use std::collections::BTreeMap;

use crate::source::{Origin, Problem};

/// The problems of the sources.
#[derive(Debug, Default)]
pub(super) struct Problems {
    by_origin: BTreeMap<Origin, Vec<Problem>>,
    /// How many there are, of all origins together.
    count: usize,
}

impl Problems {
    /// One more.
    pub(super) fn add(&mut self, problem: Problem) {
        let of_origin = self.by_origin.entry(problem.origin()).or_default();
        of_origin.push(problem);
        self.count += 1;
    }

    /// Those of an origin are over; whether there were any.
    pub(super) fn settle(&mut self, origin: &Origin) -> bool {
        let settled = self.by_origin.remove(origin);
        self.count -= settled.as_ref().map_or(0, Vec::len);
        settled.is_some()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All of them, by origin.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.by_origin.values().flatten()
    }

    /// Where there are any.
    pub(super) fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.by_origin.keys()
    }

    /// Those of an origin.
    pub(super) fn of(&self, origin: &Origin) -> &[Problem] {
        self.by_origin.get(origin).map_or(&[], Vec::as_slice)
    }
}
