//! Whether this kernel has what we use: tried for real, in a network namespace that vanishes.

use std::os::fd::AsFd;

use ipnet::IpNet;
use selvage_netlink::{Error, Protocol, Socket, conntrack, link, netns, nexthop};
use selvage_policy::{Compiler, Config};

use crate::config::Features;
use crate::kernel::masquerade::Masquerade;
use crate::kernel::nft::NftTable;

/// The oldest kernel that is meant to work.
const OLDEST: (u32, u32) = (5, 15);

/// What a kernel does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What, and what the kernel said.
    pub what: String,
    /// What follows, or what to do.
    pub hint: &'static str,
    /// Whether the node cannot work without.
    pub essential: bool,
}

/// Tries what these features use. Takes CAP_SYS_ADMIN, for the namespace.
pub fn probe(features: Features) -> std::io::Result<Vec<Lack>> {
    let mut lacks: Vec<Lack> = too_old(&release()).into_iter().collect();
    let netns = netns::create_unnamed()?;
    lacks.extend(netns::within(netns.as_fd(), || try_all(features))?);
    Ok(lacks)
}

fn release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

fn too_old(release: &str) -> Option<Lack> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let (major, minor) = OLDEST;
    (version < OLDEST).then(|| Lack {
        what: format!(
            "Linux {release} is older than {major}.{minor}, the oldest that is meant to work"
        ),
        hint: "upgrade the kernel",
        essential: false,
    })
}

fn try_all(features: Features) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut attempt = |what: &str, essential, hint, done: Result<(), Error>| {
        if let Err(error) = done {
            lacks.push(Lack {
                what: format!("{what}: {error}"),
                hint,
                essential,
            });
        }
    };
    if features.policy {
        let hint = "the kernel needs nf_tables and conntrack (modules nf_tables, nft_ct, nft_fib_inet); without them run the \
                    agent with --features bgp,kernel,cni";
        attempt("no NetworkPolicy", true, hint, policy());
        let hint = "the kernel needs the module nf_conntrack_netlink: flows that a new policy denies live on";
        attempt("no list of flows", false, hint, flows());
    }
    if features.cni {
        let hint = "the kernel needs the module veth";
        attempt("no interfaces for pods", true, hint, pair());
        let hint = "the kernel needs the modules nft_masq and nft_chain_nat: pods reach nothing that has no route back \
                    to them";
        attempt("no masquerading", false, hint, masquerade());
    }
    if features.kernel {
        let hint = "routes are written without nexthop objects: a next hop that moves costs a message for each route";
        attempt("no nexthop objects", false, hint, nexthops());
    }
    lacks
}

/// The table as the agent writes it on a node without pods.
fn policy() -> Result<(), Error> {
    let plan = Compiler::new(Config::default()).full();
    let mut table = NftTable::open()?;
    table.load(&plan).map(drop).map_err(|failed| failed.error)
}

fn flows() -> Result<(), Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    conntrack::list(&mut socket, &conntrack::Filter::default()).map(drop)
}

fn pair() -> Result<(), Error> {
    let end = |name| link::VethEnd {
        name,
        ..link::VethEnd::default()
    };
    let mut socket = Socket::open(Protocol::Route)?;
    socket.apply(|batch| link::add_veth(batch, &end("a"), &end("b")))
}

fn masquerade() -> Result<(), Error> {
    let mut masquerade = Masquerade::default();
    let pods = ["10.244.0.2", "fd00:10:244::2"].iter();
    masquerade.set_pods(pods.filter_map(|text| text.parse().ok()).collect());
    let inside = ["10.244.0.0/16", "fd00:10:244::/56"].iter();
    let inside: Vec<IpNet> = inside.filter_map(|text| text.parse().ok()).collect();
    masquerade.set_inside(&inside);
    NftTable::open()?.load_once(&masquerade.plan()).map(drop)
}

fn nexthops() -> Result<(), Error> {
    nexthop::list(&mut Socket::open(Protocol::Route)?).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for release in ["5.15.0-91-generic", "6.1.0-18-amd64", "10.0", "6.18.5"] {
            assert_eq!(too_old(release), None, "{release}");
        }
        for release in ["5.14.0-70.el9.x86_64", "4.18.0", ""] {
            assert!(too_old(release).is_some(), "{release}");
        }
    }
}
