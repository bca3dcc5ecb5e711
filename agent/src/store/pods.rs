//! The pods, in order, by a key that is kept once: in the pod itself.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use selvage_policy::model::{PodFact, PodKey};

/// All pods, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Pods(BTreeSet<ByKey>);

#[derive(Debug)]
struct ByKey(Arc<PodFact>);

impl Pods {
    /// Puts a pod in its place; whether that changes something.
    pub(super) fn put(&mut self, pod: PodFact) -> bool {
        let is_known = self.get(&pod.key).is_some_and(|known| **known == pod);
        if !is_known {
            self.0.replace(ByKey(Arc::new(pod)));
        }
        !is_known
    }

    /// Takes a pod out; whether it was there.
    pub(super) fn remove(&mut self, key: &PodKey) -> bool {
        self.0.remove(key)
    }

    pub(super) fn get(&self, key: &PodKey) -> Option<&Arc<PodFact>> {
        self.0.get(key).map(|pod| &pod.0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<PodFact>> {
        self.0.iter().map(|pod| &pod.0)
    }

    /// Those behind a key, in order; all of them behind none.
    pub(super) fn after(&self, key: Option<&PodKey>) -> impl Iterator<Item = &Arc<PodFact>> {
        let after = key.map_or(Bound::Unbounded, Bound::Excluded);
        let pods = self.0.range::<PodKey, _>((after, Bound::Unbounded));
        pods.map(|pod| &pod.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Borrow<PodKey> for ByKey {
    fn borrow(&self) -> &PodKey {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}
