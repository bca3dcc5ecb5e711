//! `v1 Pod`, slim: what policy and routes need, and nothing else.

use std::net::IpAddr;

use selvage_policy::model::{self, NamedPort, PodFact, PodKey, Proto};
use serde::Deserialize;
use serde_json::Value;

use super::decode::{Context, Mode};
use super::meta::{self, CONFIG_MIRROR, PodMeta};
use super::{Faults, Interner, Kind, Meta, Timestamp};

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Metadata.
    pub meta: Meta,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The named and numbered ports of all containers.
    pub ports: Vec<ContainerPort>,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
}

/// One entry of `containers[].ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Empty if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// `containerPort`, 1 to 65535.
    pub port: u16,
}

/// A transport protocol that a container port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// The API server's default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Default)]
pub enum Phase {
    /// Accepted, not running yet.
    #[default]
    Pending,
    /// Bound to a node and started.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one badly.
    Failed,
    /// The node does not answer, or a phase that we do not know.
    #[serde(other)]
    Unknown,
}

/// A pod as the API server writes it, without what we do not read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPod {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: PodMeta,
    spec: Option<RawSpec>,
    status: Option<RawStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<RawContainer>>,
    init_containers: Option<Vec<RawContainer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    ports: Option<Vec<RawPort>>,
    restart_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    name: Option<String>,
    protocol: Option<Protocol>,
    container_port: u16,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawStatus {
    phase: Option<Phase>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<RawIp>>,
}

#[derive(Deserialize)]
struct RawIp {
    ip: String,
}

impl Pod {
    /// Reads a pod of the API server without a detour. `None`: whatever is wrong with it, [`super::parse`] tells.
    pub fn from_json(text: &str) -> Option<Pod> {
        let raw: RawPod = serde_json::from_str(text).ok()?;
        let named = raw.kind.is_none_or(|kind| kind == "Pod");
        if !named || raw.api_version.is_some_and(|version| version != "v1") {
            return None;
        }
        let mut faults = Faults::default();
        let meta = meta::lower(Kind::Pod, raw.metadata.into(), Mode::Api, &mut faults)?;
        let (spec, status) = (raw.spec.unwrap_or_default(), raw.status.unwrap_or_default());
        let pod = Pod::of(meta, spec, status, &mut faults);
        faults.is_empty().then_some(pod)
    }

    /// The one form in which a pod is kept.
    pub fn fact(&self, shared: &mut Interner) -> PodFact {
        let meta = &self.meta;
        let uid = meta.annotations.get(CONFIG_MIRROR).unwrap_or(&meta.uid);
        let named = self.ports.iter().filter(|port| !port.name.is_empty());
        let ports: Vec<NamedPort> = named
            .map(|port| NamedPort {
                name: shared.word(&port.name),
                protocol: match port.protocol {
                    Protocol::Tcp => Proto::Tcp,
                    Protocol::Udp => Proto::Udp,
                    Protocol::Sctp => Proto::Sctp,
                },
                port: port.port,
            })
            .collect();
        PodFact {
            uid: uid.as_str().into(),
            key: PodKey::new(shared.word(&meta.key.namespace), meta.key.name.as_str()),
            labels: shared.labels(&meta.labels),
            ips: self.ips.as_slice().into(),
            node: (!self.node.is_empty()).then(|| shared.node(&self.node)),
            host_network: self.host_network,
            phase: match self.phase {
                Phase::Succeeded | Phase::Failed => model::Phase::Finished,
                Phase::Pending | Phase::Running | Phase::Unknown => model::Phase::Live,
            },
            ports: shared.ports(ports),
            created: meta.created.map_or(0, seconds),
        }
    }

    pub(super) fn lower(
        meta: Meta,
        spec: &Value,
        status: &Value,
        context: &mut Context,
    ) -> Option<Pod> {
        let spec: RawSpec = context.decode("spec", spec)?;
        let status: RawStatus = context.decode("status", status)?;
        Some(Pod::of(meta, spec, status, &mut context.faults))
    }

    fn of(meta: Meta, spec: RawSpec, status: RawStatus, faults: &mut Faults) -> Pod {
        let sidecars = spec.init_containers.unwrap_or_default();
        let sidecars = sidecars
            .into_iter()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec
            .containers
            .unwrap_or_default()
            .into_iter()
            .chain(sidecars);
        let ports = ports.flat_map(|container| container.ports.unwrap_or_default());
        let ports = ports.map(|raw| ContainerPort {
            name: raw.name.unwrap_or_default(),
            protocol: raw.protocol.unwrap_or_default(),
            port: raw.container_port,
        });
        let mut ips = Vec::new();
        let single = status.pod_ip.filter(|text| !text.is_empty());
        let listed = status.pod_ips.filter(|list| !list.is_empty());
        match (listed, single) {
            (Some(list), _) => {
                for (i, raw) in list.iter().enumerate() {
                    match super::node::address(&raw.ip) {
                        Ok(address) => ips.push(address),
                        // A cluster has many pods: the path is written where it is needed.
                        refused => drop(faults.take(&format!("status.podIPs[{i}].ip"), refused)),
                    }
                }
            }
            (None, Some(text)) => {
                ips.extend(faults.take("status.podIP", super::node::address(&text)));
            }
            (None, None) => {}
        }
        Pod {
            meta,
            node: spec.node_name.unwrap_or_default(),
            host_network: spec.host_network.unwrap_or_default(),
            ports: ports.collect(),
            phase: status.phase.unwrap_or_default(),
            ips,
        }
    }
}

/// As many as a pod's form has room for.
fn seconds(time: Timestamp) -> u32 {
    u32::try_from(time.0.max(0)).unwrap_or(u32::MAX)
}
