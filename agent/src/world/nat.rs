//! Masquerading for pods and their host ports: what the tables beside the policy's should be, and how far they are.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use selvage_cni::link;
use tracing::warn;

use super::World;
use crate::{
    kernel::{
        host_ports::{HostPortEvent, HostPortWork},
        masquerade::Masquerade,
        nft::NftWork,
    },
    store::{Dirty, Observed},
};

/// What is masqueraded, and how far the kernel has it.
#[derive(Default)]
pub(super) struct Nat {
    wanted: Masquerade,
    /// The number of the plan that was sent last; 0 before the first.
    sent: u64,
    /// The number of the plan that was answered last.
    answered: u64,
    /// The kernel did not take it.
    refused: bool,
    /// The addresses of the Node and of all links when host ports were told of them last.
    told: Option<(Vec<IpAddr>, BTreeSet<IpAddr>)>,
}

impl World {
    /// Has the kernel masquerade for the pods that asked for it, but not between pods. Only when all nodes are known.
    pub(super) fn masquerade(&mut self, dirty: &Dirty) {
        if !self.setup.features.cni {
            return;
        }
        let first = self.nat.sent == 0;
        let mut differs = first;
        if first || dirty.synced || !dirty.nodes.is_empty() {
            let mut prefixes = self.setup.routable.clone();
            for node in self.store.nodes() {
                prefixes.extend(node.pod_cidrs.iter().map(IpNet::trunc));
                // Nodes know the way to all pods.
                prefixes.extend(node.addresses.iter().map(|addr| IpNet::from(*addr)));
            }
            differs |= self.nat.wanted.set_inside(&IpNet::aggregate(&prefixes));
        }
        if first || dirty.synced || !dirty.attachments.is_empty() {
            let asking = self.store.attachments().filter(|(_, a)| a.ip_masq);
            let pods = asking.flat_map(|(_, a)| a.addresses.clone()).collect();
            differs |= self.nat.wanted.set_pods(pods);
        }
        if differs {
            self.nat.sent += 1;
            self.tell_nft(NftWork::Keep(self.nat.sent, self.nat.wanted.plan()));
        }
    }

    /// Tells the keeper of host ports which addresses are the node's own, when the Node's or those of links have changed.
    pub(super) fn tell_node_addresses(&mut self, dirty: &Dirty) {
        let Some(out) = &self.out.host_ports else {
            return;
        };
        if !dirty.bgp && !dirty.synced && dirty.nodes.is_empty() && self.nat.told.is_some() {
            return;
        }
        let Some(node) = self.store.node(&self.setup.local.node) else {
            return;
        };
        let links = self.store.links().values();
        let of_links = links
            .flat_map(|link| link.addresses.iter().map(IpNet::addr))
            .collect();
        let now = (node.addresses.clone(), of_links);
        if self.nat.told.as_ref() != Some(&now) {
            out.send(HostPortWork::Addresses(now.0.clone()));
            self.nat.told = Some(now);
        }
    }

    /// Whether we masquerade for a pod; `None`: the kernel has not answered yet.
    pub(super) fn is_masqueraded(&self, attachment: &link::Attachment) -> Option<bool> {
        let nat = &self.nat;
        let asks = attachment.ip_masq && !attachment.addresses.is_empty();
        if !asks || !attachment.addresses.iter().all(|a| nat.wanted.has(a)) {
            return Some(false);
        }
        (nat.answered == nat.sent).then_some(!nat.refused)
    }

    /// The writer's answer to a plan, or another outcome of the same.
    pub(super) fn nat_kept(&mut self, number: u64, refused: Option<String>) -> Dirty {
        self.nat.answered = self.nat.answered.max(number);
        self.nat.refused = refused.is_some();
        self.store.observe(match refused {
            Some(reason) => {
                warn!(reason, "cannot masquerade for pods; the plugin will for new ones");
                Observed::Lacking(
                    "masquerade",
                    format!(
                        "pods are not masqueraded: the kernel refuses table inet selvage-nat: {reason} (tried again until it does not)"
                    ),
                )
            }
            None => Observed::NotLacking("masquerade"),
        })
    }

    /// How it stands with the plugin's table of host ports.
    pub(super) fn host_ports(&mut self, event: HostPortEvent) -> Dirty {
        let observed = match event {
            HostPortEvent::Good { repaired } => {
                self.policy.repaired += u64::from(repaired);
                Observed::NotLacking("host-ports")
            }
            HostPortEvent::Failed { reason } => Observed::Lacking(
                "host-ports",
                format!("host ports cannot be looked after: {reason} (tried again until they can)"),
            ),
        };
        self.store.observe(observed)
    }
}
