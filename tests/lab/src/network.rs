//! An Ethernet segment as a value, and the links to it.
//!
//! ```text
//!   netns a           netns of the network            netns b
//!   ┌──────┐       ┌────────────────────────┐       ┌──────┐
//!   │ eth0 ├───────┤ a.0 ── bridge br ── b.0 ├───────┤ eth0 │
//!   └──────┘       └────────────────────────┘       └──────┘
//! ```
//! A link is cut at the bridge, so that the member itself is never told: [`Cut::Carrier`] lowers the port, and
//! the member's interface loses its carrier, as when a cable is pulled; [`Cut::Drop`] takes the port off the
//! bridge, and the member's packets vanish while its interface knows nothing, as behind a broken switch.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use selvage_netlink::link::{self, OperState, VethEnd};
use selvage_netlink::route::{self, Hop, Route, Target};
use selvage_netlink::{Prefix, Protocol, Socket, addr, netns};
use serde::{Deserialize, Serialize};

use crate::deadline::eventually;
use crate::lab::Lab;
use crate::netns::Netns;

/// Who made the routes that the lab adds: RTPROT_STATIC.
const PROTOCOL_STATIC: u8 = 4;

/// How long a new link may take to carry packets.
const LIFE: Duration = Duration::from_secs(30);

/// A bridge in a namespace of its own. A handle: with the last one, and the last [`Link`], bridge and links go.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    netns: Netns,
    bridge: u32,
    prefixes: Vec<IpNet>,
    members: AtomicU32,
    /// Numbers ports of the bridge, each once: a port goes some time after its member.
    ports: AtomicU32,
}

impl Network {
    pub(crate) fn create(lab: &Lab, name: &str, prefixes: &[IpNet]) -> Result<Network> {
        let netns = lab.netns(&format!("net-{name}"))?;
        // The bridge only passes frames on; it has nothing to say itself.
        netns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        let mut socket = netns.rtnetlink()?;
        socket.apply(|batch| link::add_bridge(batch, "br"))?;
        let bridge = link::get_by_name(&mut socket, "br")?.index;
        socket.apply(|batch| link::set_up(batch, bridge, true))?;
        let inner = Inner {
            name: name.to_owned(),
            netns,
            bridge,
            prefixes: prefixes.to_vec(),
            members: AtomicU32::new(0),
            ports: AtomicU32::new(0),
        };
        Ok(Network {
            inner: Arc::new(inner),
        })
    }

    /// Its name within the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its prefixes.
    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.inner.prefixes
    }

    /// Connects `member` by its next free interface, with the next address of each prefix: the first member has the
    /// first addresses.
    ///
    /// # Errors
    /// When a prefix is used up or the kernel refuses.
    pub fn join(&self, member: &Netns) -> Result<Link> {
        let number = self.inner.members.fetch_add(1, Ordering::Relaxed) + 1;
        let addresses: Option<Vec<IpNet>> = self
            .inner
            .prefixes
            .iter()
            .map(|prefix| host_address(prefix, number))
            .collect();
        let addresses = addresses.with_context(|| format!("network {} is full", self.name()))?;
        self.connect(member, &addresses)
    }

    /// Connects `member` by its next free interface, with these addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join_with(&self, member: &Netns, addresses: &[IpNet]) -> Result<Link> {
        self.inner.members.fetch_add(1, Ordering::Relaxed);
        self.connect(member, addresses)
    }

    fn connect(&self, member: &Netns, addresses: &[IpNet]) -> Result<Link> {
        let interface = member.next_interface();
        let mut socket = self.inner.netns.rtnetlink()?;
        let number = self.inner.ports.fetch_add(1, Ordering::Relaxed);
        let port_name = format!("port{number}");
        let port = VethEnd {
            name: &port_name,
            ..VethEnd::default()
        };
        let inside = member.open()?;
        let end = VethEnd {
            name: &interface,
            netns: Some(inside.as_fd()),
            ..VethEnd::default()
        };
        socket.apply(|batch| link::add_veth(batch, &port, &end))?;
        let port = link::get_by_name(&mut socket, &port_name)?.index;
        socket.apply(|batch| {
            link::set_master(batch, port, self.inner.bridge);
            link::set_up(batch, port, true);
        })?;

        let mut inside = Socket::open_in(inside.as_fd(), Protocol::Route)?;
        let index = link::get_by_name(&mut inside, &interface)?.index;
        inside.apply(|batch| {
            link::set_up(batch, index, true);
            for address in addresses {
                let prefix = Prefix::new(address.addr(), address.prefix_len());
                addr::add(batch, &addr::Address::new(index, prefix));
            }
        })?;
        // The kernel's link watch brings both ends to life a moment later; until then they drop what is sent.
        let is_up = |socket: &mut Socket, index| {
            link::get(socket, index).is_ok_and(|link| link.oper_state == OperState::Up)
        };
        eventually(LIFE, "both ends of a new link are up", || {
            is_up(&mut socket, port) && is_up(&mut inside, index)
        })?;
        Ok(Link {
            network: self.clone(),
            member: member.clone(),
            interface,
            index,
            port,
            addresses: addresses.to_vec(),
        })
    }
}

/// How a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The member's interface loses its carrier.
    Carrier,
    /// Frames vanish; the carrier stays.
    Drop,
}

/// A member's connection to a network.
#[derive(Clone, Debug)]
pub struct Link {
    network: Network,
    member: Netns,
    interface: String,
    index: u32,
    port: u32,
    addresses: Vec<IpNet>,
}

impl Link {
    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The member's namespace.
    #[must_use]
    pub fn member(&self) -> &Netns {
        &self.member
    }

    /// Name of the member's interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Index of the member's interface.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The member's addresses on it.
    #[must_use]
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// The member's first IPv4 address on it.
    ///
    /// # Errors
    /// When it has none.
    pub fn ipv4(&self) -> Result<IpAddr> {
        self.address(IpAddr::is_ipv4)
    }

    /// The member's first IPv6 address on it.
    ///
    /// # Errors
    /// When it has none.
    pub fn ipv6(&self) -> Result<IpAddr> {
        self.address(IpAddr::is_ipv6)
    }

    fn address(&self, family: impl Fn(&IpAddr) -> bool) -> Result<IpAddr> {
        let mut all = self.addresses.iter().map(IpNet::addr);
        all.find(family).with_context(|| {
            format!(
                "{} has no such address on {}",
                self.member.name(),
                self.network.name()
            )
        })
    }

    /// Where the link is cut, for another process of the sandbox.
    #[must_use]
    pub fn port(&self) -> Port {
        let inner = &self.network.inner;
        Port {
            netns: inner.netns.path().to_owned(),
            index: self.port,
            bridge: inner.bridge,
        }
    }

    /// Cuts the link at the bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, how: Cut) -> Result<()> {
        self.port().cut(how)
    }

    /// Undoes either cut.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn repair(&self) -> Result<()> {
        self.port().repair()
    }

    /// Whether the member's interface has its carrier.
    ///
    /// # Errors
    /// When it is gone.
    pub fn has_carrier(&self) -> Result<bool> {
        let mut socket = self.member.rtnetlink()?;
        Ok(link::get(&mut socket, self.index)?.is_running())
    }
}

/// A link's end at the bridge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    netns: PathBuf,
    index: u32,
    bridge: u32,
}

impl Port {
    /// Cuts the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, how: Cut) -> Result<()> {
        Ok(self.socket()?.apply(|batch| match how {
            Cut::Carrier => link::set_up(batch, self.index, false),
            Cut::Drop => link::set_master(batch, self.index, 0),
        })?)
    }

    /// Undoes either cut.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn repair(&self) -> Result<()> {
        Ok(self.socket()?.apply(|batch| {
            link::set_master(batch, self.index, self.bridge);
            link::set_up(batch, self.index, true);
        })?)
    }

    fn socket(&self) -> Result<Socket> {
        let netns = netns::open(&self.netns).with_context(|| self.netns.display().to_string())?;
        Ok(Socket::open_in(netns.as_fd(), Protocol::Route)?)
    }
}

/// Adds a static route in `netns`, through a gateway on one of its links.
///
/// # Errors
/// When the kernel refuses.
pub fn add_route(netns: &Netns, to: IpNet, gateway: IpAddr) -> Result<()> {
    ensure!(
        to.addr().is_ipv4() == gateway.is_ipv4(),
        "a gateway of the other family"
    );
    let hop = Hop {
        gateway: Some(gateway),
        weight: 1,
        ..Hop::default()
    };
    let prefix = Prefix::new(to.network(), to.prefix_len());
    let route = Route::new(prefix, Target::Hop(hop), PROTOCOL_STATIC);
    Ok(netns
        .rtnetlink()?
        .apply(|batch| route::replace(batch, &route))?)
}

/// The `number`-th address of a prefix, with its length; none when the prefix is too small for it.
pub(crate) fn host_address(prefix: &IpNet, number: u32) -> Option<IpNet> {
    let address: IpAddr = match prefix.network() {
        IpAddr::V4(base) => base
            .to_bits()
            .checked_add(number)
            .map(std::net::Ipv4Addr::from_bits)?
            .into(),
        IpAddr::V6(base) => base
            .to_bits()
            .checked_add(number.into())
            .map(std::net::Ipv6Addr::from_bits)?
            .into(),
    };
    let is_host = prefix.contains(&address) && (address.is_ipv6() || address != prefix.broadcast());
    is_host
        .then(|| IpNet::new(address, prefix.prefix_len()).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::host_address;

    #[test]
    fn members_are_numbered_from_one_and_never_beyond_the_prefix() {
        for (prefix, number, wanted) in [
            ("192.0.2.0/24", 1, Some("192.0.2.1/24")),
            ("192.0.2.0/24", 254, Some("192.0.2.254/24")),
            ("192.0.2.0/24", 255, None),
            ("192.0.2.7/24", 2, Some("192.0.2.2/24")),
            ("2001:db8::/64", 10, Some("2001:db8::a/64")),
            ("2001:db8::/126", 4, None),
        ] {
            let address = host_address(&prefix.parse().expect("prefix"), number);
            assert_eq!(
                address.map(|a| a.to_string()).as_deref(),
                wanted,
                "{prefix} {number}"
            );
        }
    }
}
