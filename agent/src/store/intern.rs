//! One copy of what many pods have in common: names of namespaces, nodes and ports, and whole sets of labels and lists of
//! ports, which all pods of a ReplicaSet share.

use std::collections::HashSet;
use std::sync::Arc;

use selvage_policy::model::{Labels, NamedPort};

/// What is not used any more is looked for after so many new ones at least.
const OFTEN: usize = 1024;

/// What is shared.
#[derive(Debug, Default)]
pub(super) struct Interner {
    words: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    ports: HashSet<Arc<[NamedPort]>>,
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

    pub(super) fn ports(&mut self, ports: Vec<NamedPort>) -> Arc<[NamedPort]> {
        if let Some(known) = self.ports.get(ports.as_slice()) {
            return Arc::clone(known);
        }
        self.tidy();
        let ports: Arc<[NamedPort]> = ports.into();
        self.ports.insert(Arc::clone(&ports));
        ports
    }

    /// Costs a constant time for each new one, taken over many.
    fn tidy(&mut self) {
        self.fresh += 1;
        if self.fresh > OFTEN.max(self.left) {
            // Lists of ports first: they hold words.
            self.ports.retain(|ports| Arc::strong_count(ports) > 1);
            self.words.retain(|word| Arc::strong_count(word) > 1);
            self.labels.retain(Labels::is_shared);
            self.left = self.words.len() + self.labels.len() + self.ports.len();
            self.fresh = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use selvage_policy::model::Proto;

    use super::*;

    #[test]
    fn equal_ones_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let labels = |n: u32| -> Labels { [("app", n.to_string().as_str())].into() };
        let (word, kept) = (interner.word("a"), interner.labels(&labels(0)));
        let ports = |interner: &mut Interner, port| {
            let name = interner.word(&format!("p{port}"));
            let protocol = Proto::Tcp;
            interner.ports(vec![NamedPort {
                name,
                protocol,
                port,
            }])
        };
        let list = ports(&mut interner, 0);
        for n in 1..10_000 {
            interner.word(&format!("w{n}"));
            interner.labels(&labels(n));
            ports(&mut interner, n as u16);
        }
        assert!(Arc::ptr_eq(&word, &interner.word("a")));
        assert!(Arc::ptr_eq(&list, &ports(&mut interner, 0)));
        assert!(kept.is_shared() && interner.labels(&labels(0)) == kept);
        let left = interner.words.len() + interner.labels.len() + interner.ports.len();
        assert!(left < 3 * OFTEN, "{left}");
    }
}
