//! One copy of what many pods have in common: names of namespaces, nodes and ports, and whole sets of labels and lists of
//! ports, which all pods of a ReplicaSet share.

use std::collections::HashSet;
use std::sync::Arc;

use selvage_policy::model::{Labels, NamedPort, Shared};

/// What is not used any more is looked for after so many new ones at least.
const OFTEN: usize = 1024;

/// What is shared.
#[derive(Debug, Default)]
pub struct Interner {
    words: HashSet<Arc<str>>,
    nodes: HashSet<Shared<str>>,
    labels: HashSet<Labels>,
    ports: HashSet<Shared<[NamedPort]>>,
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

    pub(super) fn node(&mut self, name: &str) -> Shared<str> {
        if let Some(known) = self.nodes.get(name) {
            return known.clone();
        }
        self.tidy();
        let node: Shared<str> = name.into();
        self.nodes.insert(node.clone());
        node
    }

    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        self.tidy();
        self.labels.insert(labels.clone());
        labels.clone()
    }

    pub(super) fn ports(&mut self, ports: Vec<NamedPort>) -> Shared<[NamedPort]> {
        if let Some(known) = self.ports.get(ports.as_slice()) {
            return known.clone();
        }
        self.tidy();
        let ports: Shared<[NamedPort]> = ports.into();
        self.ports.insert(ports.clone());
        ports
    }

    fn count(&self) -> usize {
        self.words.len() + self.nodes.len() + self.labels.len() + self.ports.len()
    }

    /// Costs a constant time for each new one, taken over many.
    fn tidy(&mut self) {
        self.fresh += 1;
        if self.fresh > OFTEN.max(self.left) {
            // Lists of ports first: they hold words.
            self.ports.retain(Shared::is_shared);
            self.nodes.retain(Shared::is_shared);
            self.words.retain(|word| Arc::strong_count(word) > 1);
            self.labels.retain(Labels::is_shared);
            self.left = self.count();
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
        let node = interner.node("a");
        for n in 1..10_000 {
            interner.word(&format!("w{n}"));
            interner.node(&format!("n{n}"));
            interner.labels(&labels(n));
            ports(&mut interner, n as u16);
        }
        assert!(Arc::ptr_eq(&word, &interner.word("a")));
        assert!(std::ptr::eq(&*list, &*ports(&mut interner, 0)));
        assert!(std::ptr::eq(&*node, &*interner.node("a")));
        assert!(kept.is_shared() && interner.labels(&labels(0)) == kept);
        let left = interner.count();
        assert!(left < 3 * OFTEN, "{left}");
    }
}
