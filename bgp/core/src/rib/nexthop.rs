//! Next hops in use: each is stored once, and whoever knows the kernel's routing is asked how it is reached.
//!
//! A next hop whose address is not answered for yet counts as unreachable. One that came with a link-local address belongs
//! to the link of its session and counts as reached while the session lives (RFC 2545 section 2).

use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{RibOutput, arena::Arena};
use crate::{
    ids::{Epoch, PeerIdx},
    wire::attr::NextHop,
};

/// A next hop in [`NextHops`].
pub(crate) type NextHopId = u32;

struct Slot {
    next_hop: NextHop,
    refs: u32,
    answer: Answer,
    /// Its reachability has changed; paths by it are being looked for ([`NOW`]) or will be ([`NEXT`]).
    changed: u8,
}

const NOW: u8 = 1;
const NEXT: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// Nobody needs to be asked.
    OnLink,
    Waiting,
    Known(Option<u32>),
}

/// How many announcements by next hops that are not answered for are remembered: they only tell people who is at fault.
const MOST_ANNOUNCERS: usize = 256;

/// Who announced how many prefixes in one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Announcer {
    pub(crate) peer: PeerIdx,
    pub(crate) epoch: Epoch,
    pub(crate) prefixes: u32,
}

#[derive(Default)]
pub(crate) struct NextHops {
    slots: Arena<Slot>,
    by_value: HashMap<NextHop, NextHopId, RandomState>,
    /// Whose need to be watched has perhaps changed.
    touched: Vec<NextHopId>,
    watched: HashMap<NextHopId, IpAddr, RandomState>,
    waiting: usize,
    /// Who announced routes by next hops that are not answered for yet.
    announcers: Vec<(NextHopId, Announcer)>,
    assume_reachable: bool,
    any_changed: bool,
}

impl NextHops {
    /// Takes one reference to `next_hop`.
    pub(crate) fn acquire(&mut self, next_hop: &NextHop) -> NextHopId {
        if let Some(&id) = self.by_value.get(next_hop) {
            self.slots[id].refs += 1;
            return id;
        }
        let answer = if next_hop.link_local.is_some() || next_hop.global.is_unspecified() {
            Answer::OnLink
        } else {
            self.waiting += 1;
            Answer::Waiting
        };
        let id = self.slots.insert(Slot {
            next_hop: *next_hop,
            refs: 1,
            answer,
            changed: 0,
        });
        self.by_value.insert(*next_hop, id);
        self.touched.push(id);
        id
    }

    /// Gives one reference back.
    pub(crate) fn release(&mut self, id: NextHopId) {
        let slot = &mut self.slots[id];
        slot.refs -= 1;
        if slot.refs == 0 {
            self.touched.push(id);
        }
    }

    /// The next hop itself.
    pub(crate) fn get(&self, id: NextHopId) -> &NextHop {
        &self.slots[id].next_hop
    }

    /// The distance to it; `None`: unreachable, or not known yet.
    pub(crate) fn metric(&self, id: NextHopId) -> Option<u32> {
        match self.slots[id].answer {
            Answer::OnLink => Some(0),
            _ if self.assume_reachable => Some(0),
            Answer::Waiting => None,
            Answer::Known(metric) => metric,
        }
    }

    /// Whether every answer is there.
    pub(crate) fn all_known(&self) -> bool {
        self.assume_reachable || self.waiting == 0
    }

    /// Whether routes by this next hop cannot be used; where that is not known yet, `announcer` is remembered until it is.
    pub(crate) fn is_unusable(
        &mut self,
        id: NextHopId,
        announcer: impl FnOnce() -> Announcer,
    ) -> bool {
        if self.assume_reachable {
            return false;
        }
        match self.slots[id].answer {
            Answer::OnLink | Answer::Known(Some(_)) => false,
            Answer::Known(None) => true,
            Answer::Waiting => {
                if self.announcers.len() < MOST_ANNOUNCERS {
                    self.announcers.push((id, announcer()));
                }
                false
            }
        }
    }

    /// Takes an answer. Returns who announced routes by a next hop that turns out to be unreachable.
    pub(crate) fn set_reachability(&mut self, addr: IpAddr, metric: Option<u32>) -> Vec<Announcer> {
        let Some(&id) = self.by_value.get(&NextHop::from(addr)) else {
            return Vec::new();
        };
        let of_this = |(of, _): &mut (NextHopId, Announcer)| *of == id;
        let announcers = self.announcers.extract_if(.., of_this).map(|(_, a)| a);
        let mut announcers: Vec<Announcer> = announcers.collect();
        if metric.is_some() {
            announcers.clear();
        }
        let slot = &mut self.slots[id];
        let was = match slot.answer {
            Answer::OnLink => return Vec::new(),
            Answer::Waiting => {
                self.waiting -= 1;
                None
            }
            Answer::Known(was) => was,
        };
        slot.answer = Answer::Known(metric);
        if was != metric {
            slot.changed |= NEXT;
            self.any_changed = true;
        }
        announcers
    }

    /// Whether next hops have changed whose paths nobody looks for yet.
    pub(crate) fn has_changes(&self) -> bool {
        self.any_changed
    }

    /// A search for the paths by changed next hops begins; the one before is over.
    pub(crate) fn begin_search(&mut self) {
        self.any_changed = false;
        for &id in self.by_value.values() {
            let slot = &mut self.slots[id];
            slot.changed >>= 1;
        }
    }

    /// Whether paths by this next hop are looked for.
    pub(crate) fn is_sought(&self, id: NextHopId) -> bool {
        self.slots[id].changed & NOW != 0
    }

    /// Turns asking on or off.
    pub(crate) fn assume_reachable(&mut self, yes: bool) {
        if self.assume_reachable != yes {
            self.assume_reachable = yes;
            self.touched.extend(self.by_value.values());
        }
    }

    /// Says which addresses are to be watched from now on or no longer, and frees what nobody uses.
    pub(crate) fn flush(&mut self, out: &mut Vec<RibOutput>) {
        while let Some(id) = self.touched.pop() {
            let slot = &self.slots[id];
            let next_hop = slot.next_hop;
            // A place that was touched twice and is free already.
            if self.by_value.get(&next_hop) != Some(&id) {
                continue;
            }
            let used = slot.refs > 0;
            let wanted = used && slot.answer != Answer::OnLink && !self.assume_reachable;
            if wanted && self.watched.insert(id, next_hop.global).is_none() {
                out.push(RibOutput::Watch(next_hop.global));
            }
            if !wanted && let Some(addr) = self.watched.remove(&id) {
                out.push(RibOutput::Unwatch(addr));
                if used {
                    // Asked again, it has to be answered again.
                    self.set_waiting(id);
                }
            }
            if !used {
                if self.slots[id].answer == Answer::Waiting {
                    self.waiting -= 1;
                }
                self.by_value.remove(&next_hop);
                self.announcers.retain(|(of, _)| *of != id);
                self.slots.free(id);
                if self.slots.in_use() == 0 {
                    self.touched.clear();
                }
            }
        }
    }

    fn set_waiting(&mut self, id: NextHopId) {
        let slot = &mut self.slots[id];
        if matches!(slot.answer, Answer::Known(_)) {
            slot.answer = Answer::Waiting;
            self.waiting += 1;
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.in_use()
    }

    /// Octets of memory held.
    pub(crate) fn octets(&self) -> usize {
        self.slots.octets() + self.by_value.capacity() * (size_of::<NextHop>() + 5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nh(last: u8) -> NextHop {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn said(n: &mut NextHops) -> Vec<String> {
        let mut out = Vec::new();
        n.flush(&mut out);
        out.iter().map(|o| format!("{o:?}")).collect()
    }

    #[test]
    fn watched_while_used() {
        let mut n = NextHops::default();
        let a = n.acquire(&nh(1));
        assert_eq!(n.acquire(&nh(1)), a);
        assert_eq!(said(&mut n), ["Watch(10.0.0.1)"]);
        assert_eq!((n.metric(a), n.all_known()), (None, false));
        n.set_reachability(nh(1).global, Some(5));
        assert!(n.has_changes());
        n.begin_search();
        assert!(n.is_sought(a) && !n.has_changes());
        n.begin_search();
        assert!(!n.is_sought(a));
        assert_eq!((n.metric(a), n.all_known()), (Some(5), true));
        n.release(a);
        n.release(a);
        let a = n.acquire(&nh(1));
        assert!(
            said(&mut n).is_empty(),
            "gone and back within a batch: nothing to say"
        );
        assert_eq!(n.metric(a), Some(5));
        n.release(a);
        assert_eq!(said(&mut n), ["Unwatch(10.0.0.1)"]);
        assert_eq!(n.len(), 0);
    }

    #[test]
    fn those_on_a_link_are_not_watched() {
        let mut n = NextHops::default();
        let link_local = NextHop {
            global: "fe80::1".parse().unwrap(),
            link_local: Some(("fe80::1".parse().unwrap(), crate::ids::IfIndex(3))),
        };
        let id = n.acquire(&link_local);
        assert!(said(&mut n).is_empty());
        assert_eq!(n.metric(id), Some(0));
    }

    #[test]
    fn who_announced_what_cannot_be_reached() {
        let mut n = NextHops::default();
        let by = |peer| Announcer {
            peer: PeerIdx(peer),
            epoch: Epoch(1),
            prefixes: 3,
        };
        let (a, b) = (n.acquire(&nh(1)), n.acquire(&nh(2)));
        assert!(!n.is_unusable(a, || by(1)) && !n.is_unusable(b, || by(2)));
        assert_eq!(n.set_reachability(nh(1).global, None), [by(1)]);
        assert!(n.is_unusable(a, || by(1)), "known by now");
        assert_eq!(n.set_reachability(nh(2).global, Some(1)), []);
        assert!(!n.is_unusable(b, || by(2)));
        assert_eq!(
            n.set_reachability(nh(2).global, None),
            [],
            "it was in order"
        );
        let c = n.acquire(&nh(3));
        assert!(!n.is_unusable(c, || by(3)));
        n.release(c);
        said(&mut n);
        assert!(n.announcers.is_empty());
    }

    #[test]
    fn without_a_kernel_all_are_reachable() {
        let mut n = NextHops::default();
        n.assume_reachable(true);
        let id = n.acquire(&nh(1));
        assert!(said(&mut n).is_empty());
        assert_eq!((n.metric(id), n.all_known()), (Some(0), true));
        n.assume_reachable(false);
        assert_eq!(said(&mut n), ["Watch(10.0.0.1)"]);
        assert_eq!(n.metric(id), None);
    }
}
