//! What the RIB has decided and the route writer has not taken yet.
//!
//! The RIB never waits for the kernel. So what waits for a slow kernel is bounded here: from [`LIMIT`] changes on, only the
//! last change of each prefix is kept.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use selvage_bgp_core::{prefix::Prefix, rib::RouteChange};

/// So many changes wait as they came, which costs the RIB nothing.
const LIMIT: usize = 1 << 16;

/// A queue of changes; clones are the same queue. One thread puts in, one takes out.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Mutex<Waiting>>);

/// What was taken out, to be applied in this order: `folded`, `batches`, `watched`.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The last changes of prefixes, older than `batches`.
    pub folded: HashMap<Prefix, RouteChange>,
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

    fn fold(&mut self) {
        let changes = self.batches.drain(..).flatten();
        self.folded
            .extend(changes.map(|change| (change.prefix, change)));
        self.count = 0;
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
        if waiting.count > LIMIT {
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
}
