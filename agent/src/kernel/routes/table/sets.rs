//! Sets of next hops: who wants which, and over which hops they lead.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use selvage_bgp_core::{prefix::Prefix, wire::attr::NextHop};

use super::{Have, Known, RouteTable, Set};
use crate::kernel::{nexthops::Hop, routes::RouteEvent};

impl RouteTable {
    pub(super) fn want(&mut self, prefix: Prefix, want: Option<u32>) {
        let route = match want {
            Some(_) => self.routes.entry(prefix).or_default(),
            None => match self.routes.get_mut(&prefix) {
                Some(route) => route,
                None => return,
            },
        };
        let before = std::mem::replace(&mut route.want, want);
        if !route.dirty {
            route.dirty = true;
            self.dirty.push(prefix);
        }
        if before == want {
            return;
        }
        if let Some(Some(set)) = want.and_then(|idx| self.sets.get_mut(idx as usize)) {
            set.uses += 1;
        }
        if let Some(idx) = before {
            self.release_set(idx);
        }
        if !self.failing.is_empty() {
            self.failing.remove(&prefix);
        }
    }

    pub(super) fn release_set(&mut self, idx: u32) {
        if let Some(Some(set)) = self.sets.get_mut(idx as usize) {
            set.uses -= 1;
            if set.uses == 0 {
                self.idle.push(idx);
            }
        }
    }

    /// The set of these next hops, made if it is new.
    pub(super) fn set_for(&mut self, next_hops: &Arc<[NextHop]>) -> Option<u32> {
        if let Some(idx) = self.set_of.get(next_hops) {
            return Some(*idx);
        }
        for next_hop in next_hops.iter() {
            let known = self.next_hops.entry(*next_hop).or_insert_with(|| Known {
                sets: 0,
                hops: self.underlay.resolve(next_hop).hops,
            });
            known.sets += 1;
        }
        let set = Some(Set {
            next_hops: Arc::clone(next_hops),
            uses: 0,
            hops: Vec::new(),
            group: None,
        });
        let idx = match self.free_sets.pop() {
            Some(idx) => idx,
            None => {
                self.sets.push(None);
                u32::try_from(self.sets.len() - 1).ok()?
            }
        };
        *self.sets.get_mut(idx as usize)? = set;
        self.set_of.insert(Arc::clone(next_hops), idx);
        self.resolve_set(idx);
        // Looked at again in the commit: it may get no route after all.
        self.idle.push(idx);
        Some(idx)
    }

    pub(super) fn retire_idle_sets(&mut self) {
        for idx in std::mem::take(&mut self.idle) {
            let Some(slot) = self.sets.get_mut(idx as usize) else {
                continue;
            };
            let Some(set) = slot.take_if(|set| set.uses == 0) else {
                continue;
            };
            self.free_sets.push(idx);
            self.flipped.remove(&idx);
            self.unresolved.remove(&idx);
            self.set_of.remove(&set.next_hops);
            if let Some(group) = set.group {
                self.groups.set_group(group, Vec::new());
            }
            for hop in set.hops {
                self.groups.release_hop(hop);
            }
            for next_hop in set.next_hops.iter() {
                if let Some(known) = self.next_hops.get_mut(next_hop) {
                    known.sets -= 1;
                    if known.sets == 0 {
                        self.next_hops.remove(next_hop);
                    }
                }
            }
        }
    }

    pub(super) fn report_watched(&mut self) {
        for (next_hop, reported) in &mut self.watched {
            let metric = self.underlay.resolve_addr(*next_hop).reachable();
            if *reported != metric {
                *reported = metric;
                let next_hop = *next_hop;
                self.events
                    .push(RouteEvent::Reachability { next_hop, metric });
            }
        }
    }

    /// Resolves every next hop again; returns whether any moved. Where everything that went over
    /// one hop now goes over another, the object itself is pointed there and groups stay as they are.
    pub(super) fn resolve_next_hops(&mut self) -> bool {
        let mut moved = Vec::new();
        let mut used = HashSet::new();
        for (next_hop, known) in &mut self.next_hops {
            let hops = self.underlay.resolve(next_hop).hops;
            used.extend(hops.iter().copied());
            if hops != known.hops {
                let before = std::mem::replace(&mut known.hops, hops);
                moved.push((before, known.hops.clone()));
            }
        }
        let mut renamed = HashMap::new();
        for (before, after) in &moved {
            let ([from], [to]) = (before.as_slice(), after.as_slice()) else {
                continue;
            };
            if !used.contains(from) && self.groups.repoint_hop(*from, *to) {
                renamed.insert(*from, *to);
            }
        }
        if !renamed.is_empty() {
            let hops = self.sets.iter_mut().flatten().flat_map(|set| &mut set.hops);
            for hop in hops {
                *hop = renamed.get(hop).copied().unwrap_or(*hop);
            }
        }
        !moved.is_empty()
    }

    pub(super) fn resolve_sets(&mut self) {
        for idx in 0..self.sets.len() {
            self.resolve_set(idx as u32);
        }
    }

    pub(super) fn resolve_set(&mut self, idx: u32) {
        let width = self.policy.ecmp_width.max(1);
        let Some(Some(set)) = self.sets.get_mut(idx as usize) else {
            return;
        };
        let mut hops: Vec<Hop> = set
            .next_hops
            .iter()
            .take(width)
            .filter_map(|next_hop| self.next_hops.get(next_hop))
            .flat_map(|known| known.hops.iter().copied())
            .collect();
        hops.sort_unstable();
        hops.dedup();
        hops.truncate(width);
        hops.retain(|hop| self.groups.take_hop(*hop).is_some());
        let before = std::mem::replace(&mut set.hops, hops);
        for hop in before {
            self.groups.release_hop(hop);
        }
        self.update_group(idx);
    }

    /// Puts the usable hops of a set into its group.
    pub(super) fn update_group(&mut self, idx: u32) {
        let Some(Some(set)) = self.sets.get_mut(idx as usize) else {
            return;
        };
        let usable = set
            .hops
            .iter()
            .filter_map(|hop| self.groups.usable_id(*hop));
        let members: Vec<u32> = usable.collect();
        let before = set.group;
        if members.is_empty() {
            // The id is given back: it must not come to mean another set's group.
            if let Some(group) = set.group.take() {
                self.groups.set_group(group, members);
            }
            self.unresolved.insert(idx);
        } else {
            if set.group.is_none() {
                set.group = self.groups.take_group(&members);
            }
            let changed = set
                .group
                .is_some_and(|group| self.groups.set_group(group, members));
            self.unresolved.remove(&idx);
            if changed && !self.objects {
                self.flipped.insert(idx);
            }
        }
        if set.group != before {
            self.flipped.insert(idx);
        }
    }

    /// One look at all routes for the sets that flipped since the last commit.
    pub(super) fn touch_flipped(&mut self) {
        if self.flipped.is_empty() {
            return;
        }
        let flipped = std::mem::take(&mut self.flipped);
        let in_place = !self.objects;
        let mut touched = Vec::new();
        for (prefix, route) in &mut self.routes {
            if !route.want.is_some_and(|want| flipped.contains(&want)) {
                continue;
            }
            if in_place && route.have != Have::Nothing {
                touched.push(*prefix);
            }
            if !route.dirty {
                route.dirty = true;
                self.dirty.push(*prefix);
            }
        }
        for prefix in touched {
            self.set_have(prefix, Have::Other);
        }
    }
}
