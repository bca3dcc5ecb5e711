//! Pod interfaces that no attachment names.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use selvage_cni::veth::GROUP;

use super::World;
use crate::{
    desired::obstacles::{Known, Obstacle, obstacles},
    store::Observed,
};

/// The plugin makes an interface before it tells us of the attachment, and removes it after: a link is no stray before
/// it is as old as this.
const YOUTH: Duration = Duration::from_secs(5);

/// When links were seen first that came after the agent's start.
#[derive(Default)]
pub(super) struct Births(BTreeMap<u32, Instant>);

impl Births {
    /// Takes note of a link that is new.
    pub(super) fn observe(&mut self, observed: &Observed, now: Instant) {
        match observed {
            Observed::Link(index, link) if link.group == GROUP => {
                self.0.entry(*index).or_insert(now);
            }
            Observed::LinkGone(index) => drop(self.0.remove(index)),
            _ => {}
        }
    }

    fn is_young(&self, index: u32, now: Instant) -> bool {
        self.0.get(&index).is_some_and(|born| *born + YOUTH > now)
    }
}

impl World {
    /// The names of pod interfaces without an attachment.
    fn strays(&self) -> Vec<String> {
        if !self.setup.features.cni {
            return Vec::new();
        }
        let known = |index: &u32| {
            let mut attachments = self.store.attachments();
            attachments.any(|(_, attachment)| attachment.host_index == *index)
        };
        let strays = self.store.links().iter().filter(|(index, link)| {
            // The `ifb` of a pod with a limit is `si`, and goes with its pod.
            link.group == GROUP
                && link.name.starts_with("sv")
                && !self.births.is_young(**index, self.now)
                && !known(index)
        });
        strays.map(|(_, link)| link.name.clone()).collect()
    }

    /// Pods of this node that have an interface: their names, for people.
    fn pods_by_address(&self) -> BTreeMap<IpAddr, String> {
        let attachments = self.store.attachments().flat_map(|(_, attachment)| {
            let name = match &attachment.pod {
                Some(pod) => format!("{}/{}", pod.namespace, pod.name),
                None => attachment.host_if.clone(),
            };
            let addresses = attachment.addresses.iter();
            addresses.map(move |addr| (*addr, name.clone()))
        });
        let foreign = self.foreign.locals().flat_map(|(local, pod)| {
            let name = pod.map_or_else(|| local.ifname.to_string(), ToString::to_string);
            let addresses = local.addresses.iter();
            addresses.map(move |addr| (*addr, name.clone()))
        });
        attachments.chain(foreign).collect()
    }

    /// What keeps packets of this node's pods from passing, whatever policy says.
    pub(super) fn obstacles(&self) -> Vec<Obstacle> {
        let announced: Option<Vec<IpNet>> = self.speaker.as_ref().map(|speaker| {
            let networks = speaker.config.networks.iter();
            networks
                .filter_map(|prefix| prefix.to_string().parse().ok())
                .collect()
        });
        let strays = self.strays();
        let unrouted: Vec<(String, IpAddr)> = self
            .foreign
            .unrouted(self.now)
            .map(|(key, addr)| (key.to_string(), addr))
            .collect();
        obstacles(
            &self.store,
            &Known {
                node: &self.setup.local.node,
                pods: &self.pods_by_address(),
                patterns: &self.setup.pods.patterns(),
                unrouted: &unrouted,
                strays: &strays,
                announced: announced.as_deref(),
            },
        )
    }
}
