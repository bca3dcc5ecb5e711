//! The sysctls that a node needs, as one table: name, value, for what, and what goes wrong otherwise.
//!
//! `selvage install` writes them (in Kubernetes the privileged init container of the DaemonSet); an agent without
//! privileges cannot, so it reads them and `selvage status` names those that are not right. They are read when the agent
//! starts, when an uplink changes, when the kernel says that forwarding was switched, and, while one of them is wrong, for each `status`: not by a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use selvage_netlink::{Error, Protocol, Socket, addr, link, route};

use crate::config::Features;
use crate::pod_interfaces::PodInterfaces;

/// Where the kernel shows them.
pub const ROOT: &str = "/proc/sys";

/// Stands for the name of an interface in the names of the table.
const UPLINK: &str = "UPLINK";

/// One row of the table.
struct Sysctl {
    /// As a path below [`ROOT`], with [`UPLINK`] for each interface of `of`.
    name: &'static str,
    /// What it has to be.
    wanted: &'static str,
    /// What it may not be. The second argument says whether `net.ipv4.conf.all.rp_filter` is strict.
    wrong: fn(&str, bool) -> bool,
    /// The features that need it.
    needed: fn(Features) -> bool,
    /// The interfaces that have one each; `None`: there is one for all.
    of: Option<fn(&Uplinks) -> &BTreeSet<String>>,
    /// Whether nothing works otherwise.
    essential: bool,
    /// What goes wrong otherwise.
    why: &'static str,
}

fn forwards(features: Features) -> bool {
    features.cni || features.kernel
}

fn is_zero(is: &str, _: bool) -> bool {
    is == "0"
}

/// In the order in which they are written: an uplink goes on listening to its routers before the node becomes one itself,
/// or the kernel drops the routes that they gave.
const TABLE: [Sysctl; 7] = [
    Sysctl {
        name: "net/ipv6/conf/UPLINK/accept_ra",
        wanted: "2",
        // With 0, a program of the host listens to the routers.
        wrong: |is, _| is == "1",
        needed: forwards,
        of: Some(|uplinks| &uplinks.advertised),
        essential: true,
        why: "a node that forwards does not listen to the router that gave it its routes",
    },
    Sysctl {
        name: "net/ipv4/ip_forward",
        wanted: "1",
        wrong: is_zero,
        needed: forwards,
        of: None,
        essential: true,
        why: "the kernel forwards no IPv4 packet from or to a pod",
    },
    Sysctl {
        name: "net/ipv6/conf/all/forwarding",
        wanted: "1",
        wrong: is_zero,
        needed: forwards,
        of: None,
        essential: true,
        why: "the kernel forwards no IPv6 packet from or to a pod",
    },
    Sysctl {
        name: "net/ipv4/conf/UPLINK/rp_filter",
        wanted: "2",
        // The kernel takes the greater one of this and of `all`.
        wrong: |is, all_strict| is == "1" || is == "0" && all_strict,
        needed: forwards,
        of: Some(|uplinks| &uplinks.ipv4),
        essential: false,
        why: "an answer that comes in by another way than the request went out is dropped",
    },
    Sysctl {
        name: "net/ipv4/nexthop_compat_mode",
        wanted: "0",
        wrong: |is, _| is != "0",
        needed: |features| features.kernel,
        of: None,
        essential: false,
        why: "a next hop that moves costs a notification for each route over it",
    },
    Sysctl {
        name: "net/ipv4/fib_multipath_hash_policy",
        wanted: "1",
        // 2 and 3 (inner headers, fields of the operator's choice) are nobody's default: somebody wants them.
        wrong: is_zero,
        needed: |features| features.kernel,
        of: None,
        essential: false,
        why: "all IPv4 connections between two addresses take the same one of several equal paths",
    },
    Sysctl {
        name: "net/ipv6/fib_multipath_hash_policy",
        wanted: "1",
        wrong: is_zero,
        needed: |features| features.kernel,
        of: None,
        essential: false,
        why: "which one of several equal paths an IPv6 connection takes depends on its flow label alone: without one, all between two addresses take the same",
    },
];

/// A sysctl that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As a path below [`ROOT`]: names of interfaces may have dots in them.
    pub name: String,
    /// What it is.
    pub is: String,
    /// What it has to be.
    pub wanted: &'static str,
    /// What goes wrong otherwise.
    pub why: &'static str,
    /// Whether nothing works otherwise.
    pub essential: bool,
}

impl Setting {
    /// As `sysctl` takes it: `net/ipv4/conf/eth0.7/rp_filter` has a dot in it, so that the slashes stay.
    pub fn assignment(&self) -> String {
        format!("{}={}", self.dotted(), self.wanted)
    }

    /// What is wrong, for people.
    pub fn what(&self) -> String {
        format!(
            "{} is {}, not {}: {}",
            self.dotted(),
            self.is,
            self.wanted,
            self.why
        )
    }

    /// What to do about it.
    pub fn todo(&self) -> String {
        format!(
            "`selvage install` sets it, in Kubernetes the init container of the DaemonSet; by hand, and for every boot in \
             /etc/sysctl.d: sysctl -w {}",
            self.assignment()
        )
    }

    fn dotted(&self) -> String {
        if self.name.contains('.') {
            self.name.clone()
        } else {
            self.name.replace('/', ".")
        }
    }
}

/// The interfaces that matter, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// With routes that a router advertises (RFC 4861).
    pub advertised: BTreeSet<String>,
    /// With a global IPv4 address; none of them a pod's.
    pub ipv4: BTreeSet<String>,
}

impl Uplinks {
    /// In the calling thread's network namespace. `pods`: which links lead to pods.
    pub fn read(pods: &PodInterfaces) -> Result<Uplinks, Error> {
        /// `RTPROT_RA`.
        const ADVERTISED: u8 = 9;
        /// `RT_SCOPE_UNIVERSE`.
        const GLOBAL: u8 = 0;
        let mut socket = Socket::open(Protocol::Route)?;
        let names: BTreeMap<u32, String> = link::list(&mut socket)?
            .into_iter()
            .filter(|link| !pods.contain(&link.name, link.group) && link.name != "lo")
            .map(|link| (link.index, link.name))
            .collect();
        let named = |index: u32| names.get(&index).cloned();
        let filter = route::Filter {
            protocol: Some(ADVERTISED),
            ..route::Filter::default()
        };
        let advertised = route::list(&mut socket, true, &filter)?;
        let addresses = addr::list(&mut socket)?;
        let global = |address: &addr::Address| {
            address.scope == GLOBAL && matches!(address.prefix.addr, IpAddr::V4(_))
        };
        Ok(Uplinks {
            advertised: advertised
                .iter()
                .flat_map(|route| interfaces(&route.target))
                .filter_map(named)
                .collect(),
            ipv4: addresses
                .iter()
                .filter(|address| global(address))
                .filter_map(|address| named(address.index))
                .collect(),
        })
    }
}

fn interfaces(target: &route::Target) -> Vec<u32> {
    match target {
        route::Target::Hop(hop) => hop.oif.into_iter().collect(),
        route::Target::Multipath(hops) => hops.iter().filter_map(|hop| hop.oif).collect(),
        _ => Vec::new(),
    }
}

/// What has to be changed, in the order in which it has to be. `read` gives a sysctl's value, none where there is none.
pub fn differences(
    features: Features,
    uplinks: &Uplinks,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<Setting> {
    let all_strict = read("net/ipv4/conf/all/rp_filter").as_deref() == Some("1");
    let mut settings = Vec::new();
    for sysctl in TABLE.iter().filter(|sysctl| (sysctl.needed)(features)) {
        let names = match sysctl.of {
            None => vec![sysctl.name.to_owned()],
            Some(of) => {
                let names = of(uplinks).iter();
                names
                    .map(|name| sysctl.name.replace(UPLINK, name))
                    .collect()
            }
        };
        for name in names {
            if let Some(is) = read(&name).filter(|is| (sysctl.wrong)(is, all_strict)) {
                settings.push(Setting {
                    name,
                    is,
                    wanted: sysctl.wanted,
                    why: sysctl.why,
                    essential: sysctl.essential,
                });
            }
        }
    }
    settings
}

/// What is not right in the calling thread's network namespace. `pods`: which links lead to pods.
pub fn verify(features: Features, pods: &PodInterfaces) -> Result<Vec<Setting>, Error> {
    let uplinks = Uplinks::read(pods)?;
    Ok(differences(features, &uplinks, read_in(Path::new(ROOT))))
}

/// Below a directory: [`ROOT`], or a test's.
pub fn read_in(root: &Path) -> impl Fn(&str) -> Option<String> + '_ {
    |name| {
        let text = fs::read_to_string(root.join(name)).ok()?;
        Some(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_with_a_dot_in_its_name() {
        let setting = Setting {
            name: "net/ipv4/conf/eth0.7/rp_filter".into(),
            is: "1".into(),
            wanted: "2",
            why: "",
            essential: false,
        };
        assert_eq!(setting.assignment(), "net/ipv4/conf/eth0.7/rp_filter=2");
    }
}
