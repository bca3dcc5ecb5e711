//! The BGP identifier of a node: written at the node, its IPv4 address, or a hash of its name.
//!
//! Two speakers with one identifier have no session with each other, and take no routes that a reflector passes on from
//! one to the other (RFC 4271 section 6.2, RFC 4456 section 8). A hash of 32 bits may meet another: of 5,000 nodes without
//! an IPv4 address two do once in 350 clusters. So every node looks whether another one has its identifier, and says so.

use std::net::{IpAddr, Ipv4Addr};

use selvage_bgp_core::ids::RouterId;

use super::{Condition, named};
use crate::objects::bgp_configuration::{BgpConfiguration, RouterIdRule, is_identifier};
use crate::objects::{Kind, Node};
use crate::store::Store;

/// The annotation of a Node that gives its identifier, as an IPv4 address.
pub const ANNOTATION: &str = "selvage.io/router-id";

/// How many nodes are named.
const NAMED: usize = 3;

/// The identifier of the node `name`; `node` is its object, if there is one.
pub(super) fn of(configuration: &BgpConfiguration, node: Option<&Node>, name: &str) -> RouterId {
    if let Some(Ok(address)) = node.and_then(annotated) {
        return address.into();
    }
    match configuration.router_id {
        RouterIdRule::Address(address) => address.into(),
        RouterIdRule::Hash => hashed(name),
        RouterIdRule::FromInternalIp => match node.and_then(|node| node.internal_ip(false)) {
            Some(IpAddr::V4(address)) if !address.is_unspecified() => address.into(),
            _ => hashed(name),
        },
    }
}

/// What is to be said of the identifier of the node `name`.
pub(super) fn conditions(
    store: &Store,
    configuration: &BgpConfiguration,
    name: &str,
) -> Vec<Condition> {
    let Some(node) = store.node(name) else {
        return Vec::new();
    };
    let about = |name, message| Condition {
        kind: Kind::Node,
        key: node.meta.key.clone(),
        name,
        status: true,
        message,
    };
    let mut conditions = Vec::new();
    if let Some(Err(text)) = annotated(node) {
        let message = format!(
            "the annotation {ANNOTATION} is `{text}`, which is no identifier and not used; write an IPv4 address of a host, as \
             in 10.0.0.1"
        );
        conditions.push(about("BadRouterID", message));
    }
    let own = of(configuration, Some(node), name);
    let same = store.nodes().filter(|other| {
        let other_name = &other.meta.key.name;
        other_name != name && of(configuration, Some(other), other_name) == own
    });
    let names: Vec<&str> = same.map(|other| other.meta.key.name.as_str()).collect();
    if !names.is_empty() {
        let others = named(&names, NAMED);
        let todo = match configuration.router_id {
            RouterIdRule::Address(_) => {
                "`routerId` of the BGPConfiguration gives all nodes the same: write `fromInternalIP` or `hash` there".to_owned()
            }
            _ => format!("annotate one of the nodes with `{ANNOTATION}: ADDRESS`, an IPv4 address that is no other's"),
        };
        let message = format!(
            "the router id {own} is that of {others}, too: they have no session with this node and do not take its routes; {todo}"
        );
        conditions.push(about("RouterIDConflict", message));
    }
    conditions
}

/// What the annotation says: an identifier, or what is none; `None` where there is no annotation.
fn annotated(node: &Node) -> Option<Result<Ipv4Addr, &str>> {
    let text = node.meta.annotations.get(ANNOTATION)?;
    let address = text.parse().ok();
    Some(
        address
            .filter(|address| is_identifier(*address))
            .ok_or(text),
    )
}

/// FNV-1a over the name: the same on every start, never zero.
fn hashed(name: &str) -> RouterId {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    RouterId(hash.max(1))
}
