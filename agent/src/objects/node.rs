//! `v1 Node`: labels, addresses, pod CIDRs.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::decode::{Context, Mode};
use super::meta::{self, RawMeta};
use super::{Faults, Kind, Meta};

/// The condition by which network plugins say whether a node can have pods (`v1.NodeNetworkUnavailable`).
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Metadata.
    pub meta: Meta,
    /// Addresses of type `InternalIP`, at most one of each family, in the order given.
    pub internal_ips: Vec<IpAddr>,
    /// All its addresses, of every type that is an address.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, host bits cut.
    pub pod_cidrs: Vec<IpNet>,
    /// Status of the condition `NetworkUnavailable`; `None` while nobody has said anything.
    pub network_unavailable: Option<bool>,
}

/// A node as the API server writes it, without what we do not read: it lists images, for one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawNode {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: RawMeta,
    spec: Option<RawSpec>,
    status: Option<RawStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawStatus {
    addresses: Option<Vec<RawAddress>>,
    conditions: Option<Vec<RawCondition>>,
}

#[derive(Deserialize)]
struct RawCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Node {
    /// The node's address of one family.
    pub fn internal_ip(&self, v6: bool) -> Option<IpAddr> {
        self.internal_ips
            .iter()
            .copied()
            .find(|address| address.is_ipv6() == v6)
    }

    /// Reads a node of the API server without a detour. `None`: whatever is wrong with it, [`super::parse`] tells.
    pub fn from_json(text: &str) -> Option<Node> {
        let raw: RawNode = serde_json::from_str(text).ok()?;
        let named = raw.kind.is_none_or(|kind| kind == "Node");
        if !named || raw.api_version.is_some_and(|version| version != "v1") {
            return None;
        }
        let mut faults = Faults::default();
        let meta = meta::lower(Kind::Node, raw.metadata, Mode::Api, &mut faults)?;
        let (spec, status) = (raw.spec.unwrap_or_default(), raw.status.unwrap_or_default());
        let node = Node::of(meta, spec, status, &mut faults);
        faults.is_empty().then_some(node)
    }

    pub(super) fn lower(
        meta: Meta,
        spec: &Value,
        status: &Value,
        context: &mut Context,
    ) -> Option<Node> {
        let spec: RawSpec = context.decode("spec", spec)?;
        let status: RawStatus = context.decode("status", status)?;
        Some(Node::of(meta, spec, status, &mut context.faults))
    }

    fn of(meta: Meta, spec: RawSpec, status: RawStatus, faults: &mut Faults) -> Node {
        let mut pod_cidrs = Vec::new();
        let (field, texts) = match (spec.pod_cidrs, spec.pod_cidr) {
            (Some(many), _) => ("podCIDRs", many),
            (None, one) => (
                "podCIDR",
                one.into_iter().filter(|text| !text.is_empty()).collect(),
            ),
        };
        for (i, text) in texts.iter().enumerate() {
            let path = if field == "podCIDRs" {
                format!("spec.podCIDRs[{i}]")
            } else {
                "spec.podCIDR".into()
            };
            if let Some(cidr) = faults.take(&path, cidr(text)) {
                pod_cidrs.push(cidr);
            }
        }
        let mut internal_ips: Vec<IpAddr> = Vec::new();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (i, raw) in status.addresses.unwrap_or_default().iter().enumerate() {
            let internal = raw.kind == "InternalIP";
            if !internal && raw.kind != "ExternalIP" {
                continue;
            }
            let path = format!("status.addresses[{i}].address");
            let Some(address) = faults.take(&path, address(&raw.address)) else {
                continue;
            };
            if !addresses.contains(&address) {
                addresses.push(address);
            }
            if internal
                && !internal_ips
                    .iter()
                    .any(|known| known.is_ipv6() == address.is_ipv6())
            {
                internal_ips.push(address);
            }
        }
        let conditions = status.conditions.unwrap_or_default();
        let network = conditions
            .iter()
            .find(|condition| condition.kind == NETWORK_UNAVAILABLE);
        Node {
            meta,
            internal_ips,
            addresses,
            pod_cidrs,
            network_unavailable: network.map(|condition| condition.status == "True"),
        }
    }
}

/// Parses an address of a host.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not an IP address"))
}

/// Parses a CIDR and cuts its host bits.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net.trunc());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let length = if address.is_ipv6() { 128 } else { 32 };
        return Err(format!(
            "`{text}` has no length; a single address is `{address}/{length}`"
        ));
    }
    Err(format!(
        "`{text}` is not a CIDR as in `10.244.1.0/24` or `fd00:10:244:1::/64`"
    ))
}
