//! What the RIB has decided and the route writer has not taken yet.
//!
//! The RIB never waits for the kernel. So what waits for a slow kernel is bounded here: from [`LIMIT`] changes on, only the
//! last change of each prefix is kept, and as many newer ones as there are prefixes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use selvage_bgp_core::rib::RouteChange;

/// So many changes wait as they came, which costs the RIB nothing.
const LIMIT: usize = 1 << 17;

/// A queue of changes; clones are the same queue. One thread puts in, one takes out.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Mutex<Waiting>>);

/// What was taken out, to be applied in this order: `folded`, `batches`, `watched`.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The last changes of prefixes, each of another one, older than `batches`.
    pub folded: Vec<RouteChange>,
    /// Changes in the order in which they came.
    pub batches: Vec<Vec<RouteChange>>,
    /// Next hops that are to be watched from now on, or no longer.
    pub watched: BTreeMap<IpAddr, bool>,
    /// How many changes `batches` has.
    count: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.folded.is_empty() && self.batches.is_empty() && self.watched.is_empty()
    }

    /// Keeps the last change of each prefix. A sorted list, for a map of so many takes more room than what it saves.
    fn fold(&mut self) {
        self.folded.reserve_exact(self.count);
        self.folded.extend(self.batches.drain(..).flatten());
        self.count = 0;
        self.folded.reverse();
        // Stable: of one prefix the newest stays in front, and is the one that is kept.
        self.folded.sort_by_key(|change| change.prefix);
        self.folded.dedup_by_key(|change| change.prefix);
        self.folded.shrink_to_fit();
    }
}

impl Changes {
    /// Puts changes of best paths in. Whether the queue was empty: then its reader has to be told.
    #[must_use]
    pub fn push(&self, changes: Vec<RouteChange>) -> bool {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        waiting.count += changes.len();
        waiting.batches.push(changes);
        if waiting.count > LIMIT.max(waiting.folded.len()) {
            waiting.fold();
        }
        was_empty
    }

    /// Puts in that a next hop is to be watched, or no longer. Whether the queue was empty.
    #[must_use]
    pub fn watch(&self, next_hop: IpAddr, wanted: bool) -> bool {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        waiting.watched.insert(next_hop, wanted);
        was_empty
    }

    /// Everything that waits.
    pub fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_bgp_core::prefix::Prefix;
    use selvage_bgp_core::rib::{RouteOrigin, RouteSet};
    use std::collections::HashMap;

    fn change(number: usize) -> RouteChange {
        let addr = std::net::Ipv4Addr::from(u32::try_from(number).unwrap() << 8);
        RouteChange {
            prefix: Prefix::new(addr.into(), 24).unwrap(),
            set: None,
        }
    }

    #[test]
    fn a_reader_that_is_stuck_costs_one_change_a_prefix() {
        let changes = Changes::default();
        for round in 0..100 {
            let batch: Vec<_> = (0..4000).map(change).collect();
            assert_eq!(changes.push(batch), round == 0);
        }
        assert!(!changes.watch("10.0.0.1".parse().unwrap(), true));
        assert!(!changes.watch("10.0.0.1".parse().unwrap(), false));
        let waiting = changes.take();
        let waits: usize = waiting.batches.iter().map(Vec::len).sum();
        assert_eq!(waiting.folded.len(), 4000);
        assert!(waits <= LIMIT, "{waits}");
        assert_eq!(waiting.watched.len(), 1);
        assert!(changes.push(vec![change(1)]), "it is empty again");
    }

    /// Who applies `folded` and then `batches` has the last change of each prefix, whatever was folded before.
    #[test]
    fn the_last_change_of_a_prefix_counts() {
        let (changes, mut model) = (Changes::default(), HashMap::new());
        let origins = [RouteOrigin::Local, RouteOrigin::Ebgp, RouteOrigin::Ibgp];
        let sets = origins.map(|origin| RouteSet {
            origin,
            next_hops: [].into(),
        });
        let mut number = 7_usize;
        for _ in 0..200 {
            let batch: Vec<RouteChange> = (0..4000)
                .map(|_| {
                    number = number.wrapping_mul(1_103_515_245).wrapping_add(12_345) % (1 << 31);
                    let set = sets.get(number % 4).cloned();
                    let prefix = change(number >> 8 & 0x7fff).prefix;
                    RouteChange { prefix, set }
                })
                .collect();
            model.extend(batch.iter().map(|c| (c.prefix, c.set.clone())));
            let _ = changes.push(batch);
        }
        let waiting = changes.take();
        assert!(waiting.folded.is_sorted_by(|a, b| a.prefix < b.prefix));
        assert!(waiting.batches.len() < 40, "it was folded");
        let all = waiting.folded.into_iter();
        let all = all.chain(waiting.batches.into_iter().flatten());
        let last: HashMap<Prefix, _> = all.map(|c| (c.prefix, c.set)).collect();
        assert_eq!(last, model);
    }
}
