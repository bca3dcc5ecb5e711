//! The objects that configure Selvage: one envelope for the Kubernetes API and for YAML files, and our kinds.
//!
//! Raw text becomes a [`serde_json::Value`], then a raw spec, and is lowered to the types here. Only lowering
//! fails, and every failure names object, field and reason. What exists as an [`Object`] is valid for good.

pub mod bgp_configuration;
pub mod bgp_node_status;
pub mod bgp_peer;
pub mod crd;
pub mod decode;
pub mod duration;
pub mod fault;
mod intern;
pub mod meta;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod not_enforced;
pub mod pod;
pub mod secret;
pub mod status;
pub mod timestamp;
mod unicast;
mod value;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use bgp_configuration::BgpConfiguration;
pub use bgp_peer::BgpPeer;
pub use decode::{Mode, Parsed, parse};
pub use fault::{Fault, Faults, Rejected};
pub use intern::Interner;
pub use meta::Meta;
pub use namespace::Namespace;
pub use network_policy::NetworkPolicy;
pub use node::Node;
pub use not_enforced::{NotEnforced, PolicyKind};
pub use pod::Pod;
pub use secret::Secret;
pub use status::{Shown, ShownCondition};
pub use timestamp::Timestamp;

/// The agent's own namespace: the only one whose Secrets it reads.
pub const SYSTEM_NAMESPACE: &str = "selvage-system";

/// The kinds that the agent reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `v1 Node`.
    Node,
    /// `v1 Namespace`.
    Namespace,
    /// `v1 Pod`, without what we do not need.
    Pod,
    /// `networking.k8s.io/v1 NetworkPolicy`.
    NetworkPolicy,
    /// `selvage.io/v1alpha1 BGPConfiguration`.
    #[serde(rename = "BGPConfiguration")]
    BgpConfiguration,
    /// `selvage.io/v1alpha1 BGPPeer`.
    #[serde(rename = "BGPPeer")]
    BgpPeer,
    /// `v1 Secret`: passwords of peers.
    Secret,
}

impl Kind {
    /// All kinds, in the order in which a source should deliver them.
    pub const ALL: [Kind; 7] = [
        Kind::Node,
        Kind::Namespace,
        Kind::Pod,
        Kind::NetworkPolicy,
        Kind::BgpConfiguration,
        Kind::BgpPeer,
        Kind::Secret,
    ];

    /// The `kind` field.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::BgpConfiguration => "BGPConfiguration",
            Kind::BgpPeer => "BGPPeer",
            Kind::Secret => "Secret",
        }
    }

    /// The `apiVersion` field.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Node | Kind::Namespace | Kind::Pod | Kind::Secret => "v1",
            Kind::NetworkPolicy => "networking.k8s.io/v1",
            Kind::BgpConfiguration | Kind::BgpPeer => "selvage.io/v1alpha1",
        }
    }

    /// Where an object lies that names no namespace. Secrets are our own: nobody else's are looked for.
    pub fn default_namespace(self) -> &'static str {
        match self {
            Kind::Secret => SYSTEM_NAMESPACE,
            _ => "default",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(self) -> bool {
        matches!(self, Kind::Pod | Kind::NetworkPolicy | Kind::Secret)
    }

    /// Whether an unknown field in a file is an error. Objects that others define are read leniently.
    pub fn strict(self) -> bool {
        matches!(
            self,
            Kind::NetworkPolicy | Kind::BgpConfiguration | Kind::BgpPeer
        )
    }

    /// Whether agents write a status into objects of this kind.
    pub fn has_status(self) -> bool {
        matches!(self, Kind::BgpConfiguration | Kind::BgpPeer)
    }

    /// The kind called `name`.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Namespace and name. The namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// A key; `namespace` is empty for cluster-scoped kinds.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// A valid object of one of our kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A node.
    Node(Arc<Node>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A pod.
    Pod(Arc<Pod>),
    /// A policy.
    NetworkPolicy(Arc<NetworkPolicy>),
    /// The speaker's configuration.
    BgpConfiguration(Arc<BgpConfiguration>),
    /// A neighbour.
    BgpPeer(Arc<BgpPeer>),
    /// Passwords.
    Secret(Arc<Secret>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Node(_) => Kind::Node,
            Object::Namespace(_) => Kind::Namespace,
            Object::Pod(_) => Kind::Pod,
            Object::NetworkPolicy(_) => Kind::NetworkPolicy,
            Object::BgpConfiguration(_) => Kind::BgpConfiguration,
            Object::BgpPeer(_) => Kind::BgpPeer,
            Object::Secret(_) => Kind::Secret,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Object::Node(object) => &object.meta,
            Object::Namespace(object) => &object.meta,
            Object::Pod(object) => &object.meta,
            Object::NetworkPolicy(object) => &object.meta,
            Object::BgpConfiguration(object) => &object.meta,
            Object::BgpPeer(object) => &object.meta,
            Object::Secret(object) => &object.meta,
        }
    }

    /// Its namespace and name.
    pub fn key(&self) -> &Key {
        &self.meta().key
    }
}
