//! Facts about the cluster and this node: what the store keeps and the compiler is told.

use super::{Labels, PodIps, Proto, Shared, Uid};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PodKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        PodKey {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where a pod is in its life; what matters is whether it still owns its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Pending, Running or Unknown.
    #[default]
    Live,
    /// Succeeded or Failed: neither selected nor a peer, its addresses belong to whoever has them next.
    Finished,
}

/// A container port with a name, of any container (restartable init containers count).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name that a policy may use.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Proto,
    /// Its number.
    pub port: u16,
}

/// A pod as the API knows it, anywhere in the cluster. The store keeps this and no second form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFact {
    /// Its UID; a pod that was deleted and made again under its name has another.
    pub uid: Uid,
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.podIPs`; for a pod of this node the attachment's addresses count instead.
    pub ips: PodIps,
    /// `spec.nodeName`, if bound.
    pub node: Option<Shared<str>>,
    /// `spec.hostNetwork`: such a pod is neither selected nor a peer.
    pub host_network: bool,
    /// Whether it still counts.
    pub phase: Phase,
    /// Its named ports; equal lists of many pods should be one.
    pub ports: Shared<[NamedPort]>,
    /// `metadata.creationTimestamp`, seconds since 1970 (until 2106): of two pods with one address the newest has it.
    pub created: u32,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFact {
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.labels`, with `kubernetes.io/metadata.name` as the API server sets it.
    pub labels: Labels,
}

/// The pod that an attachment says it is for (from CNI_ARGS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Namespace and name.
    pub key: PodKey,
    /// `K8S_POD_UID`; absent with runtimes that do not pass it, then the key alone decides.
    /// For a static pod it is the UID in `kubernetes.io/config.mirror`; the store's fact carries the same.
    pub uid: Option<Uid>,
}

/// An interface of a pod on this node, as the plugin attached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The host end; it identifies the attachment.
    pub ifname: IfName,
    /// Its index, for those who ask; the plan matches by name.
    pub ifindex: u32,
    /// The addresses that the pod may use.
    pub addresses: Vec<IpAddr>,
    /// Whose it is; `None` (no K8S arguments): a pod that no selector matches.
    pub pod: Option<PodRef>,
}

/// The name of a network interface: 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; 16]);

/// An interface name that the kernel would not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interface name {0:?} is empty, longer than 15 bytes, or not printable ASCII")]
pub struct NameTooLong(pub String);

impl IfName {
    /// The name as the kernel compares it: padded with zero bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(self.0.get(..end).unwrap_or_default()).unwrap_or_default()
    }
}

impl std::str::FromStr for IfName {
    type Err = NameTooLong;

    fn from_str(name: &str) -> Result<Self, NameTooLong> {
        let fits = (1..16).contains(&name.len());
        // Whoever reads the plan as text must be able to quote the name.
        if !fits
            || !name
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\' && b != b'*')
        {
            return Err(NameTooLong(name.to_owned()));
        }
        let mut bytes = [0; 16];
        bytes
            .iter_mut()
            .zip(name.bytes())
            .for_each(|(to, from)| *to = from);
        Ok(IfName(bytes))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
