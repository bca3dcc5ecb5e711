//! Relist as mark and sweep: what was there before and is not named again is gone.

use std::collections::BTreeSet;

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

    pub(super) fn unseen(self) -> BTreeSet<Key> {
        self.unseen
    }
}
