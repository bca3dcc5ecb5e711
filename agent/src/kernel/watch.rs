//! Links, addresses and whether packets are forwarded, as facts for the store: the thread `watch`.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use selvage_netlink::{
    Error, Protocol, Socket, addr, link,
    monitor::{Group, Monitor, RouteEvent as Notification},
    netconf,
};

use super::{Shutdown, retry::Retry, sysctl};
use crate::{
    config::Features,
    inbox::Inbox,
    pod_interfaces::PodInterfaces,
    store::{Link, Observed},
};

const GROUPS: [Group; 5] = [
    Group::Link,
    Group::Ipv4Address,
    Group::Ipv6Address,
    Group::Ipv4Netconf,
    Group::Ipv6Netconf,
];
const DATAGRAMS: usize = 1024;

/// The links of a namespace with their addresses, kept current by notifications.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
    monitor: Monitor,
    pods: PodInterfaces,
    links: BTreeMap<u32, Link>,
    /// Whether IPv4 and IPv6 packets are forwarded; `None`: the namespace does not have the family.
    forwarding: [Option<bool>; 2],
    /// Notifications were lost, and what they were about has not been read since.
    lost: bool,
}

impl Links {
    /// Subscribes in the calling thread's network namespace and reads everything. `pods`: which of the links lead to pods.
    pub fn open(pods: PodInterfaces) -> Result<Self, Error> {
        let mut links = Links {
            socket: Socket::open(Protocol::Route)?,
            monitor: Monitor::open(&GROUPS)?,
            pods,
            links: BTreeMap::new(),
            forwarding: [None; 2],
            lost: false,
        };
        links.read()?;
        Ok(links)
    }

    /// All links as they are now.
    pub fn all(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// The indices of links that are no pod's.
    fn uplinks(&self) -> BTreeSet<u32> {
        let links = self.links.iter();
        let uplinks = links.filter(|(_, link)| !link.is_pods());
        uplinks.map(|(index, _)| *index).collect()
    }

    /// Whether packets are forwarded.
    pub fn forwarding(&self) -> Observed {
        let [ipv4, ipv6] = self.forwarding;
        Observed::Forwarding { ipv4, ipv6 }
    }

    /// What changed since the last call that did not fail. After one that failed everything is told.
    pub fn changes(&mut self) -> Result<Vec<Observed>, Error> {
        let mut events = Vec::new();
        let received = self
            .monitor
            .receive(DATAGRAMS, |event, _| events.push(event));
        self.lost |= received.is_err() || events.contains(&Notification::Overrun);
        received?;
        let before = self.links.clone();
        let forwarding = self.forwarding;
        if self.lost {
            self.read()?;
            self.lost = false;
            return Ok(vec![Observed::Links(self.links.clone()), self.forwarding()]);
        }
        for event in events {
            self.take(event);
        }
        let gone = before
            .keys()
            .filter(|index| !self.links.contains_key(index));
        let mut changes: Vec<Observed> = gone.map(|index| Observed::LinkGone(*index)).collect();
        for (index, link) in &self.links {
            if before.get(index) != Some(link) {
                changes.push(Observed::Link(*index, link.clone()));
            }
        }
        if forwarding != self.forwarding {
            changes.push(self.forwarding());
        }
        Ok(changes)
    }

    /// Where it fails, what was known stays.
    fn read(&mut self) -> Result<(), Error> {
        let links = link::list(&mut self.socket)?;
        let addresses = addr::list(&mut self.socket)?;
        self.links.clear();
        for link in links {
            self.set(link);
        }
        for address in addresses {
            self.add(&address);
        }
        for (v6, forwarding) in [false, true].into_iter().zip(&mut self.forwarding) {
            // A kernel without IPv6 has no answer.
            *forwarding = netconf::forwarding(&mut self.socket, v6).ok();
        }
        Ok(())
    }

    fn take(&mut self, event: Notification) {
        match event {
            Notification::Link(link) => self.set(link),
            Notification::LinkGone(link) => {
                self.links.remove(&link.index);
            }
            Notification::Address(address) => self.add(&address),
            Notification::AddressGone(address) => {
                if let (Some(link), Some(net)) =
                    (self.links.get_mut(&address.index), network(&address))
                {
                    link.addresses.retain(|known| *known != net);
                }
            }
            Notification::Netconf(netconf) if netconf.is_of_all() => {
                let [ipv4, ipv6] = &mut self.forwarding;
                let known = if netconf.v6 { ipv6 } else { ipv4 };
                *known = netconf.forwarding.or(*known);
            }
            _ => {}
        }
    }

    fn set(&mut self, link: link::Link) {
        let (up, carrier) = (link.is_up(), link.is_running());
        let pods = self.pods.contain(&link.name, link.group);
        let known = self.links.entry(link.index).or_default();
        known.pods = pods;
        known.name = link.name;
        known.up = up;
        known.carrier = carrier;
        known.group = link.group;
        known.mtu = link.mtu;
    }

    fn add(&mut self, address: &addr::Address) {
        let (Some(link), Some(net)) = (self.links.get_mut(&address.index), network(address)) else {
            return;
        };
        if !link.addresses.contains(&net) {
            link.addresses.push(net);
            link.addresses.sort();
        }
    }
}

fn network(address: &addr::Address) -> Option<IpNet> {
    IpNet::new(address.prefix.addr, address.prefix.len).ok()
}

/// Whether a change concerns a link that is no pod's.
fn concerns(change: &Observed, uplinks: &BTreeSet<u32>) -> bool {
    match change {
        Observed::Link(_, link) => !link.is_pods(),
        Observed::LinkGone(index) => uplinks.contains(index),
        _ => true,
    }
}

/// Starts the thread `watch` in the calling thread's network namespace: first all links and the sysctls that are wrong,
/// then what changes. It ends by a message to its inbox. `output` is called on that thread.
pub fn spawn(
    inbox: Inbox<Shutdown>,
    features: Features,
    pods: PodInterfaces,
    mut output: impl FnMut(Observed) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let mut links = Links::open(pods.clone())?;
    let run = move || {
        output(Observed::Links(links.all().clone()));
        output(links.forwarding());
        let mut unverified = true;
        let mut retry = Retry::default();
        loop {
            if unverified {
                match sysctl::verify(features, &pods) {
                    Ok(wrong) => {
                        unverified = false;
                        output(Observed::Sysctls(wrong));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "watch: sysctls could not be verified, trying again");
                    }
                }
            }
            let now = Instant::now();
            if !unverified && !links.lost {
                retry.done();
            } else if !retry.is_resting(now) {
                retry.failed(now);
            }
            let timeout = retry.at().map(|at| at.saturating_duration_since(now));
            // A socket that failed is not waited for: what it had is read again after a rest.
            let monitor = [links.monitor.as_fd()];
            let awaited = if links.lost { &[] } else { &monitor[..] };
            if let Err(error) = inbox.wait(awaited, timeout) {
                tracing::error!(%error, "watch: cannot wait");
                std::thread::sleep(Duration::from_millis(100));
            }
            if !inbox.recv_all().is_empty() {
                return;
            }
            let uplinks = links.uplinks();
            match links.changes() {
                Ok(changes) => {
                    unverified |= changes.iter().any(|change| concerns(change, &uplinks));
                    changes.into_iter().for_each(&mut output);
                }
                Err(error) => {
                    tracing::warn!(%error, "watch: links could not be read, trying again");
                }
            }
        }
    };
    Ok(Builder::new().name("watch".into()).spawn(run)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After notifications were lost, and the kernel did not answer either.
    #[test]
    fn what_could_not_be_read_is_known_as_before_and_read_later() {
        let mut links = Links::open(PodInterfaces::default()).unwrap();
        let all = links.all().clone();
        assert!(!all.is_empty(), "each namespace has a loopback interface");
        links.lost = true;
        // It knows no links.
        let other = Socket::open(Protocol::Netfilter).unwrap();
        let socket = std::mem::replace(&mut links.socket, other);
        for _ in 0..2 {
            links.changes().unwrap_err();
            assert_eq!(links.all(), &all);
        }
        links.socket = socket;
        let changes = links.changes().unwrap();
        assert_eq!(changes, [Observed::Links(all), links.forwarding()]);
        assert_eq!(links.changes().unwrap(), []);
    }
}
