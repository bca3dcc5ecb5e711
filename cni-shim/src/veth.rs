//! The pod's interface: a veth pair whose one end is born in the pod's namespace, with what the pod sees through it.
//!
//! The pod has its addresses as /32 and /128 and sends everything to a gateway that is the same on all nodes
//! (169.254.1.1 and fe80::1), with a permanent neighbour entry for it; nobody has to answer for these addresses.
//! The host's end is left DOWN: opening it is another step ([`selvage_netlink::open_interface`]).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use selvage_netlink::devconf::{self, Ipv4, Settings};
use selvage_netlink::link::{self, Link, VethEnd};
use selvage_netlink::route::{self, Hop, Target};
use selvage_netlink::{
    Batch, Error, Mac, Prefix, Protocol, Socket, addr, delete_links, neigh, netns,
};

use crate::fault;
use crate::ipam::Grant;
use crate::spec::result::Route;
use crate::spec::{Cidr, CniError, Code};

/// The link group of all host ends.
pub const GROUP: u32 = 0x5e1;

/// The hardware address of every host end: pods know it for their gateway, whichever node and interface it is.
pub const HOST_MAC: Mac = Mac([0x5e, 0x10, 0xa9, 0xfe, 0x01, 0x01]);

/// The gateway of every pod for IPv4.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway of every pod for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// `RTPROT_STATIC`: what a route in the pod is made by.
const PROTOCOL_STATIC: u8 = 4;

/// The file system of namespaces (`NSFS_MAGIC`).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The gateway of a family.
pub fn gateway(v6: bool) -> IpAddr {
    if v6 {
        GATEWAY_V6.into()
    } else {
        GATEWAY_V4.into()
    }
}

/// The name of the host's end: the same for the same attachment, so that DEL finds it without help.
pub fn host_name(network: &str, container_id: &str, ifname: &str) -> String {
    // FNV-1a. Colliding names are refused by the kernel, and 52 bits make it a matter of theory.
    let text = format!("{network}\0{container_id}\0{ifname}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("sv{:013x}", hash >> 12)
}

/// An error of the kernel's with what was being done.
pub fn kernel(what: &str, error: &Error) -> CniError {
    CniError::new(Code::Kernel, format!("{what}: {error}"))
}

/// A socket to the kernel in the plugin's own namespace.
pub fn host_socket() -> Result<Socket, CniError> {
    Socket::open(Protocol::Route).map_err(|e| kernel("cannot speak to the kernel", &e))
}

/// A pod's network namespace, with a socket in it.
#[derive(Debug)]
pub struct Sandbox {
    netns: OwnedFd,
    id: netns::Id,
    socket: Socket,
}

impl Sandbox {
    /// Enters the namespace at `path`. What is not a network namespace is code 4; the plugin's own is code 8
    /// unless `allow_own`.
    pub fn open(path: &str, allow_own: bool) -> Result<Self, CniError> {
        let bad = |why: &str| CniError::new(Code::Environment, format!("CNI_NETNS={path}: {why}"));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let netns = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(netns) => netns,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(bad("it does not exist")),
            Err(e) => return Err(bad(&e.to_string())),
        };
        let kind = rustix::fs::fstatfs(&netns).map_err(|e| bad(&e.to_string()))?;
        if i128::from(kind.f_type) != i128::from(NSFS_MAGIC) {
            return Err(bad("it is not a network namespace"));
        }
        let id = netns::id(netns.as_fd()).map_err(|e| bad(&e.to_string()))?;
        let own = netns::current()
            .and_then(|own| netns::id(own.as_fd()))
            .map_err(|e| bad(&e.to_string()))?;
        if id == own && !allow_own {
            let message = format!("CNI_NETNS={path} is the namespace that the plugin runs in");
            return Err(CniError::new(Code::OwnNamespace, message));
        }
        let entered = netns::within(netns.as_fd(), || Socket::open(Protocol::Route));
        let socket = match entered {
            Ok(inside) => inside,
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                return Err(bad("it is not a network namespace"));
            }
            Err(e) => {
                return Err(CniError::new(
                    Code::Kernel,
                    format!("cannot enter the namespace {path}: {e}"),
                ));
            }
        };
        let socket =
            socket.map_err(|e| kernel("cannot speak to the kernel in the pod's namespace", &e))?;
        Ok(Self { netns, id, socket })
    }

    /// What tells the namespace from others.
    pub fn id(&self) -> netns::Id {
        self.id
    }

    /// The socket inside.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The interface `name` inside, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, CniError> {
        find(&mut self.socket, name)
    }

    /// Makes sure that the pod's end and its loopback interface can have IPv6 addresses: some runtimes turn IPv6 off for
    /// new namespaces.
    fn allow_v6(&mut self, interface: &str, settings: &Settings) -> Result<(), CniError> {
        let (_, loopback) = devconf::get(&mut self.socket, "lo")
            .map_err(|e| kernel("cannot look at the pod's loopback interface", &e))?;
        let disabled = |settings: &Settings| settings.ipv6.is_some_and(|v6| v6.disabled);
        if !disabled(settings) && !disabled(&loopback) {
            return Ok(());
        }
        let allow = || {
            ["lo", interface]
                .iter()
                .try_for_each(|name| fs::write(sysctl(name, "disable_ipv6"), "0"))
        };
        let done = netns::within(self.netns.as_fd(), allow).and_then(|done| done);
        done.map_err(|e| {
            CniError::new(
                Code::Kernel,
                format!("cannot allow IPv6 on {interface} in the pod: {e}"),
            )
        })
    }
}

/// A setting of IPv6 that netlink does not write.
fn sysctl(interface: &str, key: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv6/conf")
        .join(interface)
        .join(key)
}

/// The interface `name` of the socket's namespace, if there is one.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, CniError> {
    match link::get_by_name(socket, name) {
        Ok(link) => Ok(Some(link)),
        Err(e) if e.is(Errno::NODEV) => Ok(None),
        Err(e) => Err(kernel(&format!("cannot look for the interface {name}"), &e)),
    }
}

/// Whether the host has an interface `name`. Where it cannot be found out, it counts as existing: nothing is taken
/// away on a guess.
pub fn exists(name: &str) -> bool {
    !matches!(
        host_socket().and_then(|mut host| find(&mut host, name)),
        Ok(None)
    )
}

/// What a pair is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The name of the host's end.
    pub host_if: &'a str,
    /// The name of the pod's end.
    pub ifname: &'a str,
    /// Of both ends; 0 leaves it to the kernel.
    pub mtu: u32,
    /// The pod's hardware address, if a particular one was asked for.
    pub mac: Option<[u8; 6]>,
}

/// A pair that exists.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The host's end.
    pub host: Link,
    /// The pod's end.
    pub pod: Link,
    /// What the host's end has inherited.
    host_settings: Settings,
    /// What the pod's end has inherited.
    pod_settings: Settings,
}

/// Makes the pair, both ends down.
pub fn create(
    host: &mut Socket,
    sandbox: &mut Sandbox,
    wanted: &Wanted<'_>,
) -> Result<(), CniError> {
    let mtu = (wanted.mtu != 0).then_some(wanted.mtu);
    let host_end = VethEnd {
        name: wanted.host_if,
        address: Some(HOST_MAC),
        mtu,
        group: Some(GROUP),
        ..VethEnd::default()
    };
    let pod_end = VethEnd {
        name: wanted.ifname,
        address: wanted.mac.map(Mac),
        mtu,
        netns: Some(sandbox.netns.as_fd()),
        ..VethEnd::default()
    };
    host.apply(|batch| link::add_veth(batch, &host_end, &pod_end))
        .map_err(|e| {
            kernel(
                &format!(
                    "cannot make the interfaces {} and {}",
                    wanted.host_if, wanted.ifname
                ),
                &e,
            )
        })
}

/// The two ends after [`create`].
pub fn inspect(
    host: &mut Socket,
    sandbox: &mut Sandbox,
    wanted: &Wanted<'_>,
) -> Result<Pair, CniError> {
    let look = |socket: &mut Socket, name: &str| {
        devconf::get(socket, name).map_err(|e| {
            let what = if e.is(Errno::NODEV) {
                format!("the interface {name} vanished while it was set up")
            } else {
                format!("cannot look for the interface {name}")
            };
            kernel(&what, &e)
        })
    };
    let (host, host_settings) = look(host, wanted.host_if)?;
    let (pod, pod_settings) = look(&mut sandbox.socket, wanted.ifname)?;
    Ok(Pair {
        host,
        pod,
        host_settings,
        pod_settings,
    })
}

/// What the host's end is set to for IPv4, whatever a new link inherits from `default`: it forwards, a pod's source is its
/// own, and a pod can neither redirect the host, nor speak for others, nor reach the loopback.
const HOST_END: [(Ipv4, u32); 11] = [
    (Ipv4::Forwarding, 1),
    (Ipv4::RpFilter, 1),
    (Ipv4::AcceptRedirects, 0),
    (Ipv4::SendRedirects, 0),
    (Ipv4::AcceptSourceRoute, 0),
    (Ipv4::AcceptLocal, 0),
    (Ipv4::RouteLocalnet, 0),
    (Ipv4::ProxyArp, 0),
    (Ipv4::ProxyArpPvlan, 0),
    (Ipv4::ArpAccept, 0),
    (Ipv4::BcForwarding, 0),
];

/// What netlink does not write: the host learns no routes from a pod, and has IPv6 on the link if the pod has. Only what
/// is otherwise is written, as each of these files is slow to open where there are many pods.
fn guard_host_end(pair: &Pair, has_v6: bool) -> Result<(), CniError> {
    let Some(v6) = pair.host_settings.ipv6 else {
        return Ok(());
    };
    if v6.disabled && !has_v6 {
        return Ok(());
    }
    let mut wrong = Vec::new();
    // Before it has IPv6.
    if v6.accept_ra > u32::from(v6.forwarding) {
        wrong.push(("accept_ra", "0"));
    }
    if v6.accept_redirects && !v6.forwarding {
        wrong.push(("accept_redirects", "0"));
    }
    if v6.disabled {
        wrong.push(("disable_ipv6", "0"));
    }
    for (key, value) in wrong {
        let path = sysctl(&pair.host.name, key);
        fs::write(&path, value).map_err(|e| CniError::file("write", &path, &e))?;
    }
    Ok(())
}

/// Sets up the pod's side: addresses, gateways, routes; and the host's: its settings, and where the pod's addresses are,
/// so that not even the first packet has to ask.
pub fn configure(
    host: &mut Socket,
    sandbox: &mut Sandbox,
    pair: &Pair,
    grant: &Grant,
) -> Result<(), CniError> {
    let addresses = &grant.addresses;
    let has_v6 = addresses.iter().any(IpAddr::is_ipv6);
    if has_v6 {
        sandbox.allow_v6(&pair.pod.name, &pair.pod_settings)?;
    }
    let steps = pod_steps(pair.pod.index, grant);
    run(&mut sandbox.socket, &steps, "in the pod")?;
    fault::point()?;
    guard_host_end(pair, has_v6)?;
    let index = pair.host.index;
    let mut steps = vec![Step::HostEnd(index, pair.host_settings.ipv6.is_some())];
    if let Some(mac) = pair.pod.address {
        steps.extend(
            addresses
                .iter()
                .map(|&addr| Step::Neighbour(index, addr, mac)),
        );
    }
    run(host, &steps, "on the host")
}

/// One request to the kernel that a person can be told about.
enum Step {
    Up(u32),
    /// The settings of the host's end, and whether it has IPv6.
    HostEnd(u32, bool),
    Address(u32, IpAddr),
    Neighbour(u32, IpAddr, Mac),
    /// The way to the gateway; there is one already if the pod has another interface of ours.
    GatewayLink(u32),
    Route(u32, Route),
    /// The way to the subnet of an address, to which no other route leads; there may be one over another interface.
    Subnet(u32, Cidr),
}

fn pod_steps(index: u32, grant: &Grant) -> Vec<Step> {
    const LOOPBACK: u32 = 1;
    let addresses = &grant.addresses;
    let mut steps = vec![Step::Up(LOOPBACK), Step::Up(index)];
    steps.extend(addresses.iter().map(|&addr| Step::Address(index, addr)));
    for v6 in [false, true] {
        if addresses.iter().any(|addr| addr.is_ipv6() == v6) {
            steps.push(Step::Neighbour(index, gateway(v6), HOST_MAC));
            if !v6 {
                steps.push(Step::GatewayLink(index));
            }
        }
    }
    let routes = grant.routes.iter();
    steps.extend(routes.map(|route| Step::Route(index, route.clone())));
    // A second network leads at least to its own subnet, as an address with the subnet's prefix would.
    let covered = |subnet: Cidr| {
        grant.routes.iter().any(|route| {
            let dst = route.dst;
            dst.prefix_len() <= subnet.prefix_len() && dst.contains(subnet.first())
        })
    };
    let subnets = grant.subnets.iter().filter(|&&subnet| !covered(subnet));
    steps.extend(subnets.map(|&subnet| Step::Subnet(index, subnet)));
    steps
}

impl Step {
    fn append(&self, batch: &mut Batch) {
        match self {
            Self::Up(index) => link::set_up(batch, *index, true),
            Self::HostEnd(index, v6) => devconf::set(batch, *index, &HOST_END, *v6),
            Self::Address(index, addr) => {
                addr::add(batch, &addr::Address::new(*index, Prefix::host(*addr)))
            }
            Self::Neighbour(index, addr, mac) => {
                neigh::replace(batch, &neigh::Neighbour::permanent(*index, *addr, *mac));
            }
            Self::GatewayLink(index) => {
                let hop = Hop {
                    oif: Some(*index),
                    ..Hop::default()
                };
                let to = Prefix::host(GATEWAY_V4.into());
                route::add(
                    batch,
                    &route::Route::new(to, Target::Hop(hop), PROTOCOL_STATIC),
                );
            }
            Self::Route(index, route) => route::add(batch, &pod_route(*index, route)),
            Self::Subnet(index, subnet) => {
                route::add(batch, &pod_route(*index, &Route::new(*subnet, None)));
            }
        }
    }

    fn tolerates(&self, errno: i32) -> bool {
        matches!(self, Self::GatewayLink(_) | Self::Subnet(..))
            && errno == Errno::EXIST.raw_os_error()
    }

    fn describe(&self) -> String {
        match self {
            Self::Up(1) => "raise the loopback interface".to_owned(),
            Self::Up(_) => "raise the interface".to_owned(),
            Self::HostEnd(..) => {
                "set the interface's forwarding and reverse path filter".to_owned()
            }
            Self::Address(_, addr) => format!("add the address {addr}"),
            Self::Neighbour(_, addr, _) => format!("add the neighbour {addr}"),
            Self::GatewayLink(_) => format!("add the route to the gateway {GATEWAY_V4}"),
            Self::Route(_, route) => format!("add the route to {}", route.dst),
            Self::Subnet(_, subnet) => format!("add the route to {subnet}"),
        }
    }
}

fn pod_route(index: u32, route: &Route) -> route::Route {
    let v6 = route.dst.is_v6();
    // On-link: true as well for a second interface, whose gateway's own route leads over the first.
    let hop = Hop {
        gateway: Some(gateway(v6)),
        oif: Some(index),
        onlink: !v6,
        ..Hop::default()
    };
    let mut made = route::Route::new(prefix(route.dst), Target::Hop(hop), PROTOCOL_STATIC);
    made.metric = route.priority.unwrap_or(0);
    made.table = route
        .table
        .filter(|&table| table != 0)
        .unwrap_or(made.table);
    made
}

/// The network of a CIDR in the kernel's words.
pub fn prefix(cidr: Cidr) -> Prefix {
    Prefix::new(cidr.first(), cidr.prefix_len())
}

fn run(socket: &mut Socket, steps: &[Step], place: &str) -> Result<(), CniError> {
    let report = socket.report(|batch| steps.iter().for_each(|step| step.append(batch)));
    let report = report.map_err(|e| kernel(&format!("cannot set up the interface {place}"), &e))?;
    for failure in report.failures {
        let step = steps.get(failure.index);
        if step.is_some_and(|step| step.tolerates(failure.refusal.errno)) {
            continue;
        }
        let what = step.map_or_else(|| "set up the interface".to_owned(), Step::describe);
        return Err(CniError::new(
            Code::Kernel,
            format!("cannot {what} {place}: {}", failure.refusal),
        ));
    }
    Ok(())
}

/// Deletes interfaces of the host, all at the same time; with a host end goes the pod's. They are gone for everybody when
/// this returns; a child process waits for the kernel to finish, and holds `kept` open until then
/// ([`selvage_netlink::deletion`]). Only what is in our group is touched; what is gone is no error.
pub fn delete(
    host: &mut Socket,
    names: &[&str],
    kept: Option<BorrowedFd<'_>>,
) -> Result<(), CniError> {
    let mut found = Vec::new();
    for name in names {
        found.extend(find(host, name)?.filter(|link| link.group == GROUP));
    }
    if found.is_empty() {
        return Ok(());
    }
    let indexes: Vec<u32> = found.iter().map(|link| link.index).collect();
    delete_links(&indexes, kept).map_err(|e| {
        let names: Vec<_> = found.iter().map(|link| link.name.as_str()).collect();
        kernel(
            &format!("cannot delete the interface {}", names.join(" and ")),
            &e,
        )
    })?;
    fault::point()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_host_ends() {
        let name = host_name("selvage", "abc", "eth0");
        assert_eq!((name.len(), &name[..2]), (15, "sv"));
        assert_eq!(name, host_name("selvage", "abc", "eth0"));
        for other in [
            host_name("selvage", "abc", "eth1"),
            host_name("selvag", "eabc", "eth0"),
            host_name("x", "abc", "eth0"),
        ] {
            assert_ne!(name, other);
        }
    }
}
