//! Pods of another plugin, found by the host routes of their addresses: the thread `pod-routes`.
//!
//! A plugin that routes gives each address of a pod a route of its full length over the host's end of the pod. Which
//! routes there are, notifications say; which of them a packet takes, the kernel is asked, address by address: metrics,
//! replacements and routing rules need no model here. A gateway's address that stands on every pod's interface (as with
//! `ptp`, for which the kernel makes an IPv6 route of full length, too) is the node's own, and the kernel says so.
//!
//! The kernel does not tell of IPv4 routes that go with their interface or are flushed when it goes down. So an
//! interface that is down has no addresses, and when it comes up again the kernel is asked anew.
//!
//! Only table main is read, and only routes to one interface without a gateway count.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use selvage_netlink::{
    Error, Prefix, Protocol, Socket, link,
    monitor::{Group, Monitor, RouteEvent as Notification},
    route::{self, Hop, Kind, Target},
};

use super::{Shutdown, TABLE_MAIN};
use crate::{
    inbox::Inbox,
    pod_interfaces::PodInterfaces,
    store::{Observed, PodInterface},
};

const GROUPS: [Group; 3] = [Group::Link, Group::Ipv4Route, Group::Ipv6Route];
const DATAGRAMS: usize = 1024;
/// After a failure everything is read again, not before this time.
const RETRY: Duration = Duration::from_millis(500);

/// A link, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: String,
    up: bool,
    is_bridge: bool,
    master: Option<u32>,
    /// It leads to a pod.
    pods: bool,
}

/// The interfaces of pods and their addresses, kept current by notifications.
#[derive(Debug)]
pub struct PodRoutes {
    socket: Socket,
    monitor: Monitor,
    interfaces: PodInterfaces,
    links: BTreeMap<u32, Known>,
    /// Addresses with a route of their own, and the link over which the kernel sends packets to them.
    hosts: BTreeMap<IpAddr, u32>,
}

impl PodRoutes {
    /// Subscribes in the calling thread's network namespace and reads everything.
    pub fn open(interfaces: PodInterfaces) -> Result<Self, Error> {
        let mut routes = PodRoutes {
            socket: Socket::open(Protocol::Route)?,
            monitor: Monitor::open(&GROUPS)?,
            interfaces,
            links: BTreeMap::new(),
            hosts: BTreeMap::new(),
        };
        routes.read()?;
        Ok(routes)
    }

    /// The interfaces of pods, by name.
    pub fn all(&self) -> BTreeMap<String, PodInterface> {
        let pods = self.links.iter().filter(|(_, link)| link.pods);
        let mut all: BTreeMap<u32, (String, PodInterface)> = pods
            .map(|(index, link)| {
                let master = link.master.and_then(|master| self.links.get(&master));
                let interface = PodInterface {
                    index: *index,
                    addresses: BTreeSet::new(),
                    bridge: master
                        .filter(|master| master.is_bridge)
                        .map(|master| master.name.clone()),
                };
                (*index, (link.name.clone(), interface))
            })
            .collect();
        for (addr, index) in &self.hosts {
            if let Some((_, interface)) = all.get_mut(index)
                && self.links.get(index).is_some_and(|link| link.up)
            {
                interface.addresses.insert(*addr);
            }
        }
        all.into_values().collect()
    }

    /// Takes in what was told since the last call.
    pub fn update(&mut self) -> Result<(), Error> {
        let mut events = Vec::new();
        self.monitor
            .receive(DATAGRAMS, |event, _| events.push(event))?;
        if events.contains(&Notification::Overrun) {
            return self.read();
        }
        let mut asked = BTreeSet::new();
        for event in events {
            match event {
                Notification::Link(link) => self.set_link(&link, &mut asked),
                Notification::LinkGone(link) => {
                    self.links.remove(&link.index);
                    asked.extend(self.behind(link.index));
                    self.hosts.retain(|_, index| *index != link.index);
                }
                // Of whatever kind and table: it may stand before another one, or have done so. When a gateway's IPv6
                // address is added, its route in table main is there before the one that makes it local.
                Notification::Route(route) | Notification::RouteGone(route)
                    if is_of_full_length(&route) =>
                {
                    asked.insert(route.prefix.addr);
                }
                _ => {}
            }
        }
        asked.into_iter().try_for_each(|addr| self.ask(addr))
    }

    fn read(&mut self) -> Result<(), Error> {
        self.links.clear();
        self.hosts.clear();
        let mut asked = BTreeSet::new();
        for link in link::list(&mut self.socket)? {
            self.set_link(&link, &mut asked);
        }
        let main = route::Filter {
            table: Some(TABLE_MAIN),
            ..route::Filter::default()
        };
        for v6 in [false, true] {
            let routes = route::list(&mut self.socket, v6, &main)?;
            let hosts = routes.iter().filter(|route| is_host_route(route));
            asked.extend(hosts.map(|route| route.prefix.addr));
        }
        asked.into_iter().try_for_each(|addr| self.ask(addr))
    }

    /// Addresses of which the kernel has to be asked are put into `asked`.
    fn set_link(&mut self, link: &link::Link, asked: &mut BTreeSet<IpAddr>) {
        let now = Known {
            name: link.name.clone(),
            up: link.is_up(),
            is_bridge: link.kind == "bridge",
            master: link.master,
            pods: self.interfaces.contain(&link.name, link.group),
        };
        let before = self.links.insert(link.index, now.clone());
        if before.is_some_and(|before| before.up != now.up) {
            asked.extend(self.behind(link.index));
        }
    }

    fn behind(&self, index: u32) -> Vec<IpAddr> {
        let behind = self.hosts.iter().filter(|(_, of)| **of == index);
        behind.map(|(addr, _)| *addr).collect()
    }

    /// Asks the kernel which way packets to an address take.
    fn ask(&mut self, addr: IpAddr) -> Result<(), Error> {
        let route = match route::lookup(&mut self.socket, addr) {
            Ok(route) => Some(route),
            // There is no way, or one on which packets are refused.
            Err(Error::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        match route.filter(is_host_route).as_ref().and_then(interface) {
            Some(index) => self.hosts.insert(addr, index),
            None => self.hosts.remove(&addr),
        };
        Ok(())
    }
}

fn is_of_full_length(route: &route::Route) -> bool {
    route.prefix == Prefix::host(route.prefix.addr)
}

/// A route to one address, directly over an interface.
fn is_host_route(route: &route::Route) -> bool {
    route.table == TABLE_MAIN
        && route.kind == Kind::Unicast
        && is_of_full_length(route)
        && interface(route).is_some()
}

/// The interface of a route without a gateway.
fn interface(route: &route::Route) -> Option<u32> {
    match &route.target {
        Target::Hop(Hop {
            gateway: None, oif, ..
        }) => *oif,
        _ => None,
    }
}

/// The interface of the calling thread's network namespace that would be taken for a pod's although a default route goes
/// over it: policy would cut the node off.
pub fn uplink_among(interfaces: &PodInterfaces) -> Result<Option<String>, Error> {
    let mut socket = Socket::open(Protocol::Route)?;
    let mut uplinks = BTreeSet::new();
    for v6 in [false, true] {
        let routes = route::list(&mut socket, v6, &route::Filter::default())?;
        let default = routes
            .iter()
            .filter(|route| route.prefix.len == 0 && route.kind == Kind::Unicast);
        for route in default {
            match &route.target {
                Target::Hop(hop) => uplinks.extend(hop.oif),
                Target::Multipath(hops) => uplinks.extend(hops.iter().filter_map(|hop| hop.oif)),
                Target::Nothing | Target::Nexthop(_) => {}
            }
        }
    }
    let links = link::list(&mut socket)?;
    let found = links
        .into_iter()
        .find(|link| uplinks.contains(&link.index) && interfaces.contain(&link.name, link.group));
    Ok(found.map(|link| link.name))
}

/// Starts the thread `pod-routes` in the calling thread's network namespace: first what there is, then all of it again
/// whenever something differs. It ends by a message to its inbox. `output` is called on that thread.
pub fn spawn(
    inbox: Inbox<Shutdown>,
    interfaces: PodInterfaces,
    mut output: impl FnMut(Observed) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let mut routes = PodRoutes::open(interfaces)?;
    let run = move || {
        let mut told = routes.all();
        output(Observed::PodInterfaces(told.clone()));
        let mut damaged = false;
        while inbox.recv_all().is_empty() {
            // A socket that failed is not waited for: what it had is read again after a rest.
            let waited = match damaged {
                true => inbox.wait(&[], Some(RETRY)),
                false => inbox.wait(&[routes.monitor.as_fd()], None),
            };
            if let Err(error) = waited {
                tracing::error!(%error, "pod-routes: cannot wait");
                std::thread::sleep(Duration::from_millis(100));
            }
            let done = match damaged {
                true => routes.read(),
                false => routes.update(),
            };
            damaged = done.is_err();
            if let Err(error) = done {
                tracing::warn!(%error, "pod-routes: routes to pods could not be read, trying again");
                continue;
            }
            let now = routes.all();
            if now != told {
                told = now;
                output(Observed::PodInterfaces(told.clone()));
            }
        }
    };
    Ok(Builder::new().name("pod-routes".into()).spawn(run)?)
}
