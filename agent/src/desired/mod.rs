//! What should be, given what is known. Pure functions of the store; nothing here acts, waits or remembers.

pub mod bgp;
pub mod condition;
pub mod obstacles;
pub mod policy;
pub mod router_id;
pub mod routes;
pub mod status;

use std::collections::BTreeSet;

use selvage_bgp_core::config::Limits;
use selvage_bgp_core::prefix::Prefix;

pub use bgp::{Speaker, bgp};
pub use condition::Condition;
pub use policy::{local_pod, policy};
pub use routes::{blackholes, routes};
pub use status::{StatusWrite, Verdict, node_status, statuses};

/// What the agent was told on its command line and that no object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The name of this node.
    pub node: String,
    /// The TCP port of BGP, if it is not the one of the BGPConfiguration.
    pub bgp_port: Option<u16>,
    /// Whether learned routes go into the kernel; if not, next hops count as reachable.
    pub kernel: bool,
    /// The namespaces in which passwords are looked for, in this order.
    pub secret_namespaces: Vec<String>,
    /// Time limits of the speaker that no object sets.
    pub limits: Limits,
}

impl Local {
    /// This node, with nothing out of the ordinary.
    pub fn new(node: impl Into<String>) -> Self {
        Local {
            node: node.into(),
            bgp_port: None,
            kernel: true,
            secret_namespaces: vec![crate::objects::SYSTEM_NAMESPACE.into()],
            limits: Limits::default(),
        }
    }
}

/// Addresses of this machine that others may reach it by, with the prefixes of their links.
fn own_addresses(store: &crate::store::Store) -> BTreeSet<ipnet::IpNet> {
    let links = store.links().values().filter(|link| !link.is_pods());
    links
        .flat_map(|link| link.addresses.iter().copied())
        .filter(|net| is_global(net.addr()))
        .collect()
}

fn is_global(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified())
        }
        std::net::IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified())
        }
    }
}

/// A prefix in the words of BGP; its host bits go.
fn prefix(net: ipnet::IpNet) -> Option<Prefix> {
    Prefix::new(net.addr(), net.prefix_len())
}

/// A list for people: the first `most`, and how many more.
pub fn named<S: AsRef<str>>(all: &[S], most: usize) -> String {
    let shown: Vec<&str> = all.iter().take(most).map(AsRef::as_ref).collect();
    let mut text = shown.join(", ");
    if all.len() > most {
        text += &format!(" and {} more", all.len() - most);
    }
    text
}
