//! Relist as mark and sweep: what was there before and is not named again is gone.

use std::collections::BTreeSet;

use selvage_policy::model::PodKey;

use crate::objects::Key;

/// One relist of one kind under way.
#[derive(Debug)]
pub(super) struct Sweep {
    unseen: BTreeSet<Key>,
}

impl Sweep {
    pub(super) fn new(present: BTreeSet<Key>) -> Self {
        Sweep { unseen: present }
    }

    pub(super) fn seen(&mut self, key: &Key) {
        self.unseen.remove(key);
    }

    /// A cluster has many pods: at a start, before which there were none, no key is made for each.
    pub(super) fn seen_pod(&mut self, key: &PodKey) {
        if !self.unseen.is_empty() {
            self.seen(&Key::new(&*key.namespace, &*key.name));
        }
    }

    pub(super) fn unseen(self) -> BTreeSet<Key> {
        self.unseen
    }
}
