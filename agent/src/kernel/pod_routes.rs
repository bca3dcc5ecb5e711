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
    seen: Seen,
}

/// What the kernel has told of links and routes, and has answered.
#[derive(Debug)]
struct Seen {
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
            seen: Seen::new(interfaces),
        };
        routes.read()?;
        Ok(routes)
    }

    /// The interfaces of pods, by name.
    pub fn all(&self) -> BTreeMap<String, PodInterface> {
        self.seen.all()
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
            self.seen.take(event, &mut asked);
        }
        asked.into_iter().try_for_each(|addr| self.ask(addr))
    }

    fn read(&mut self) -> Result<(), Error> {
        self.seen.links.clear();
        self.seen.hosts.clear();
        let mut asked = BTreeSet::new();
        for link in link::list(&mut self.socket)? {
            self.seen.set_link(&link, &mut asked);
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

    /// Asks the kernel which way packets to an address take.
    fn ask(&mut self, addr: IpAddr) -> Result<(), Error> {
        let route = match route::lookup(&mut self.socket, addr) {
            Ok(route) => Some(route),
            // There is no way, or one on which packets are refused.
            Err(Error::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        self.seen.answer(addr, route.as_ref());
        Ok(())
    }
}

impl Seen {
    fn new(interfaces: PodInterfaces) -> Seen {
        Seen {
            interfaces,
            links: BTreeMap::new(),
            hosts: BTreeMap::new(),
        }
    }

    fn all(&self) -> BTreeMap<String, PodInterface> {
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

    /// Addresses of which the kernel has to be asked are put into `asked`.
    fn take(&mut self, event: Notification, asked: &mut BTreeSet<IpAddr>) {
        match event {
            Notification::Link(link) => self.set_link(&link, asked),
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
        // When it goes down, since packets may take another way from then on; when it comes up, since its routes may have
        // been there still when the kernel was asked then.
        if before.is_some_and(|before| before.up != now.up) {
            asked.extend(self.behind(link.index));
        }
    }

    fn behind(&self, index: u32) -> Vec<IpAddr> {
        let behind = self.hosts.iter().filter(|(_, of)| **of == index);
        behind.map(|(addr, _)| *addr).collect()
    }

    /// The route that packets to an address take; `None`: there is none.
    fn answer(&mut self, addr: IpAddr, route: Option<&route::Route>) {
        match route
            .filter(|route| is_host_route(route))
            .and_then(interface)
        {
            Some(index) => self.hosts.insert(addr, index),
            None => self.hosts.remove(&addr),
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_netlink::link::OperState;

    const UP: u32 = 1;

    fn link(index: u32, name: &str, flags: u32) -> link::Link {
        link::Link {
            index,
            name: name.into(),
            group: 0,
            flags,
            carrier: None,
            oper_state: OperState::Up,
            mtu: 1500,
            kind: "veth".into(),
            address: None,
            master: None,
            link: None,
            link_netns: None,
            alias: String::new(),
        }
    }

    fn over(addr: IpAddr, index: u32) -> route::Route {
        let hop = Hop {
            gateway: None,
            oif: Some(index),
            onlink: false,
            weight: 1,
        };
        route::Route::new(Prefix::host(addr), Target::Hop(hop), 3)
    }

    /// The kernel tells of the link first and takes its routes away after that, those of IPv4 without a word.
    #[test]
    fn the_kernel_is_asked_when_a_link_goes_down_and_when_it_comes_up() {
        let addr: IpAddr = "10.0.0.2".parse().unwrap();
        let mut seen = Seen::new(PodInterfaces::named(["veth"]));
        let mut take = |event, answer: Option<u32>| {
            let mut asked = BTreeSet::new();
            seen.take(event, &mut asked);
            for addr in &asked {
                let route = answer.map(|index| over(*addr, index));
                seen.answer(*addr, route.as_ref());
            }
            let of = |index| {
                let all = seen.all();
                let found = all.values().find(|interface| interface.index == index);
                found.is_some_and(|interface| interface.addresses.contains(&addr))
            };
            (!asked.is_empty(), of(5), of(6))
        };
        let set = |index, name, flags| Notification::Link(link(index, name, flags));
        for (event, answer, is_asked, of_5, of_6) in [
            (set(5, "veth5", UP), None, false, false, false),
            (set(6, "veth6", UP), None, false, false, false),
            (
                Notification::Route(over(addr, 5)),
                Some(5),
                true,
                true,
                false,
            ),
            // Anything else about the link is no reason to ask.
            (set(5, "veth5", UP), None, false, true, false),
            // Its route is still there, and is gone by the time when it is up again.
            (set(5, "veth5", 0), Some(5), true, false, false),
            (set(5, "veth5", UP), None, true, false, false),
            (
                Notification::Route(over(addr, 5)),
                Some(5),
                true,
                true,
                false,
            ),
            // Another one takes its place.
            (set(5, "veth5", 0), Some(6), true, false, true),
            (set(5, "veth5", UP), None, false, false, true),
            (
                Notification::RouteGone(over(addr, 5)),
                Some(6),
                true,
                false,
                true,
            ),
            (
                Notification::LinkGone(link(6, "veth6", 0)),
                None,
                true,
                false,
                false,
            ),
        ] {
            let what = format!("{event:?}");
            assert_eq!(take(event, answer), (is_asked, of_5, of_6), "{what}");
        }
    }
}
