//! The pods, in order, by a key that is kept once: in the pod itself.

use std::sync::Arc;

use selvage_policy::model::{PodFact, PodKey};

use super::sorted::{Place, Sorted};

/// All pods, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Pods(Sorted<Arc<PodFact>>);

impl Pods {
    /// Puts a pod in its place; whether that changes something.
    pub(super) fn put(&mut self, pod: Arc<PodFact>) -> bool {
        let place = self.search(&pod.key);
        let known = place.ok().and_then(|place| self.0.get(place));
        if known == Some(&pod) {
            return false;
        }
        self.0.put(place, pod);
        true
    }

    /// Takes a pod out; whether it was there.
    pub(super) fn remove(&mut self, key: &PodKey) -> bool {
        let place = self.search(key).ok();
        place.and_then(|place| self.0.remove(place)).is_some()
    }

    pub(super) fn get(&self, key: &PodKey) -> Option<&Arc<PodFact>> {
        self.0.get(self.search(key).ok()?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<PodFact>> {
        self.0.iter()
    }

    /// Those behind a key, in order; all of them behind none.
    pub(super) fn after(&self, key: Option<&PodKey>) -> impl Iterator<Item = &Arc<PodFact>> {
        let place = key.map(|key| self.search(key));
        let (Ok(first) | Err(first)) = place.unwrap_or(Err(Place::FIRST));
        let is_key = place.is_some_and(|place| place.is_ok());
        self.0.iter_from(first).skip(usize::from(is_key))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn search(&self, key: &PodKey) -> Result<Place, Place> {
        self.0.search(|pod| pod.key.cmp(key))
    }
}
