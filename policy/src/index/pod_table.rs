//! The pods that the compiler was told of, by number and by labels.

use crate::model::{Labels, PodFact};
use hashbrown::HashMap;
use std::fmt;
use std::sync::Arc;

/// A pod by number; numbers are reused and never show in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodId(u32);

/// All pods. A number costs 8 bytes, labels 4.
#[derive(Default)]
pub(crate) struct PodTable {
    pods: Vec<Option<Arc<PodFact>>>,
    free: Vec<PodId>,
    /// Pods with equal labels, ascending. Most pods have them in common with the others of their ReplicaSet, so a selector
    /// is compared with far fewer labels than there are pods.
    labels: HashMap<Labels, Vec<PodId>>,
}

impl PodTable {
    pub(crate) fn get(&self, id: PodId) -> Option<&Arc<PodFact>> {
        self.pods.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<PodFact>> {
        self.pods.iter().flatten()
    }

    pub(crate) fn by_labels(&self) -> impl Iterator<Item = (&Labels, &[PodId])> {
        self.labels
            .iter()
            .map(|(labels, ids)| (labels, ids.as_slice()))
    }

    /// Puts a pod in its place: that of the number it has already, or one of its own.
    pub(crate) fn put(&mut self, known: Option<PodId>, pod: Arc<PodFact>) -> PodId {
        let id = known.unwrap_or_else(|| self.new_id());
        let before = self.get(id).map(|pod| pod.labels.clone());
        if before.as_ref() != Some(&pod.labels) {
            if let Some(before) = before {
                self.forget_labels(&before, id);
            }
            let same = self.labels.entry_ref(&pod.labels).or_default();
            if same.last().is_none_or(|last| *last < id) {
                same.push(id);
            } else if let Err(place) = same.binary_search(&id) {
                same.insert(place, id);
            }
        }
        if let Some(slot) = self.pods.get_mut(id.0 as usize) {
            *slot = Some(pod);
        }
        id
    }

    pub(crate) fn remove(&mut self, id: PodId) {
        let Some(pod) = self.get(id).cloned() else {
            return;
        };
        self.forget_labels(&pod.labels, id);
        if let Some(slot) = self.pods.get_mut(id.0 as usize) {
            *slot = None;
        }
        self.free.push(id);
    }

    fn new_id(&mut self) -> PodId {
        self.free.pop().unwrap_or_else(|| {
            self.pods.push(None);
            // A cluster ends two orders of magnitude before u32 does.
            PodId(self.pods.len() as u32 - 1)
        })
    }

    fn forget_labels(&mut self, labels: &Labels, id: PodId) {
        let Some(same) = self.labels.get_mut(labels) else {
            return;
        };
        if let Ok(place) = same.binary_search(&id) {
            same.remove(place);
        }
        if same.is_empty() {
            self.labels.remove(labels);
        }
    }
}

impl fmt::Debug for PodTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
