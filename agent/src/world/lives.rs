//! Addresses and their earlier lives: whether flows of a former owner may be left in the kernel's table.
//!
//! A pod must not inherit what the former owner of its address had established. To look for such flows costs a walk
//! over the kernel's whole table, so it is kept off an ADD: at the start the table is read once for the node's pod
//! prefixes, and from then on only an address that a pod has left has to be looked at. Flows to an address that no pod
//! has are judged by policy like new ones, because nobody can have answered them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::World;
use crate::{
    kernel::conntrack::FlowWork,
    store::{AttachmentId, Dirty},
};

/// What is known of the addresses.
#[derive(Default)]
pub(super) struct Lives {
    /// The prefixes that the kernel's table was read for last.
    asked: Vec<IpNet>,
    /// The prefixes for which the answer is there.
    known: Vec<IpNet>,
    /// Addresses whose last owner may have left flows.
    had: BTreeSet<IpAddr>,
    /// Addresses whose flows are being deleted, by the number under which that is told.
    going: BTreeMap<u64, BTreeSet<IpAddr>>,
    /// The number that was given last.
    number: u64,
    /// Attachments whose interface was made closed and has not been opened.
    closed: BTreeSet<AttachmentId>,
}

impl Lives {
    /// Whether an address certainly has no flows of a former owner.
    fn is_clean(&self, addr: &IpAddr) -> bool {
        !self.had.contains(addr) && self.known.iter().any(|net| net.contains(addr))
    }

    /// Flows up to this number are gone.
    pub(super) fn forgot(&mut self, number: u64) {
        let later = self.going.split_off(&(number + 1));
        for addr in std::mem::replace(&mut self.going, later)
            .into_values()
            .flatten()
        {
            if !self
                .going
                .values()
                .any(|addresses| addresses.contains(&addr))
            {
                self.had.remove(&addr);
            }
        }
    }

    /// Flows of these addresses are left.
    pub(super) fn left(&mut self, addresses: BTreeSet<IpAddr>) {
        self.had.extend(addresses);
    }

    /// The kernel's table was read.
    pub(super) fn seen(&mut self, prefixes: Vec<IpNet>, addresses: BTreeSet<IpAddr>) {
        self.had.extend(addresses);
        if prefixes == self.asked {
            self.known = prefixes;
        }
    }

    /// An attachment was made, its interface closed.
    pub(super) fn made(&mut self, id: AttachmentId) {
        self.closed.insert(id);
    }

    /// The interface of an attachment is open, or gone.
    pub(super) fn opened_or_gone(&mut self, id: &AttachmentId) {
        self.closed.remove(id);
    }
}

impl World {
    /// Has the kernel's table read for this node's pod prefixes, once for each set of them.
    pub(super) fn look_at_lives(&mut self, dirty: &Dirty) {
        if !dirty.synced && dirty.nodes.is_empty() {
            return;
        }
        let (Some(flows), Some(node)) = (
            &self.out.flows,
            self.store.node(self.setup.local.node.as_str()),
        ) else {
            return;
        };
        if node.pod_cidrs.is_empty() || self.lives.asked == node.pod_cidrs {
            return;
        }
        self.lives.asked = node.pod_cidrs.clone();
        self.lives.known.clear();
        flows.send(FlowWork::Look(node.pod_cidrs.clone()));
    }

    /// Has the flows deleted that addresses may have from a former owner. The number by which it is told that they are
    /// gone; `None`: there are none.
    pub(super) fn forget_former(&mut self, addresses: &[IpAddr]) -> Option<u64> {
        let lives = &self.lives;
        let unclean = addresses.iter().filter(|addr| !lives.is_clean(addr));
        self.forget(unclean.copied().collect())
    }

    /// Has the flows of addresses deleted that a pod had until now.
    pub(super) fn forget(&mut self, addresses: BTreeSet<IpAddr>) -> Option<u64> {
        let flows = self.out.flows.as_ref().filter(|_| !addresses.is_empty())?;
        let lives = &mut self.lives;
        lives.number += 1;
        lives.had.extend(addresses.iter().copied());
        lives.going.insert(lives.number, addresses.clone());
        flows.send(FlowWork::Forget(lives.number, addresses));
        Some(lives.number)
    }

    /// Addresses of pods that have had no flow yet: their interface is closed, and stays so until the kernel has a later
    /// generation than the one it has now.
    pub(super) fn without_flows(&mut self) -> BTreeSet<IpAddr> {
        let closed: Vec<_> = self.lives.closed.iter().cloned().collect();
        let mut addresses = BTreeSet::new();
        for id in closed {
            let Some(attachment) = self.store.attachment(&id).cloned() else {
                continue;
            };
            if self.is_enforced(&attachment.host_if).is_none() {
                addresses.extend(attachment.addresses.iter().copied());
            }
        }
        addresses
    }
}
