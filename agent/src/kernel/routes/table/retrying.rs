//! What the kernel refuses waits, named in the facts, and is tried again later and later.

use std::collections::BTreeMap;

use selvage_bgp_core::{clock::Now, prefix::Prefix};

use super::{RETRY, Reading, RouteTable};

impl RouteTable {
    pub(super) fn give_up(&mut self, refused: BTreeMap<Prefix, String>, now: Now) {
        for (prefix, reason) in refused {
            if self.failing.get(&prefix) != Some(&reason) {
                tracing::warn!(%prefix, %reason, "routes: not installed");
            }
            self.failing.insert(prefix, reason);
        }
        if !self.failing.is_empty() {
            // They wait for the retry, not for the next change of another route.
            let failing = &self.failing;
            self.dirty.retain(|prefix| !failing.contains_key(prefix));
            for prefix in self.failing.keys() {
                if let Some(route) = self.routes.get_mut(prefix) {
                    route.dirty = false;
                }
            }
        }
        match self.failing.is_empty()
            && !self.groups.any_broken()
            && self.reading == Reading::Nothing
        {
            true => {
                self.retry_at = None;
                self.retry_after = RETRY.0;
            }
            false => self.schedule(now),
        }
    }

    pub(super) fn schedule(&mut self, now: Now) {
        if self.retry_at.is_none() {
            self.retry_at = Some(now + self.retry_after);
            self.retry_after = (self.retry_after * 2).min(RETRY.1);
        }
    }

    pub(super) fn retry(&mut self) {
        self.retry_at = None;
        if self.groups.mend() {
            self.resolve_sets();
        }
        self.retry_failing();
    }

    pub(super) fn retry_failing(&mut self) {
        for prefix in std::mem::take(&mut self.failing).into_keys() {
            self.touch(prefix);
        }
    }
}
