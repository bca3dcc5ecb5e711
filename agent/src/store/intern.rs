//! One copy of what many pods have in common: names of namespaces, nodes and ports, and whole sets of labels, which all
//! pods of a ReplicaSet share.

use std::collections::HashSet;
use std::sync::Arc;

use selvage_policy::model::Labels;

/// What is not used any more is looked for after so many new ones at least.
const OFTEN: usize = 1024;

/// What is shared.
#[derive(Debug, Default)]
pub(super) struct Interner {
    words: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    /// New ones since nobody's were thrown away.
    fresh: usize,
    /// How many were left then.
    left: usize,
}

impl Interner {
    pub(super) fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.words.get(text) {
            return Arc::clone(known);
        }
        self.tidy();
        let word: Arc<str> = text.into();
        self.words.insert(Arc::clone(&word));
        word
    }

    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        self.tidy();
        self.labels.insert(labels.clone());
        labels.clone()
    }

    /// Costs a constant time for each new one, taken over many.
    fn tidy(&mut self) {
        self.fresh += 1;
        if self.fresh > OFTEN.max(self.left) {
            self.words.retain(|word| Arc::strong_count(word) > 1);
            self.labels.retain(Labels::is_shared);
            self.left = self.words.len() + self.labels.len();
            self.fresh = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ones_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let labels = |n: u32| -> Labels { [("app", n.to_string().as_str())].into() };
        let (word, kept) = (interner.word("a"), interner.labels(&labels(0)));
        for n in 1..10_000 {
            interner.word(&format!("w{n}"));
            interner.labels(&labels(n));
        }
        assert!(Arc::ptr_eq(&word, &interner.word("a")));
        assert!(kept.is_shared() && interner.labels(&labels(0)) == kept);
        let left = interner.words.len() + interner.labels.len();
        assert!(left < 3 * OFTEN, "{left}");
    }
}
