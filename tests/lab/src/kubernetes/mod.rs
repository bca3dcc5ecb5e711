//! A real Kubernetes as values: the control plane alone, or a whole cluster with nodes.
//!
//! ```text
//!   netns of the control plane                             netns, mounts and processes of a node
//!   ┌────────────────────────────────────────────┐         ┌────────────────────────────────────┐
//!   │ etcd ◄── kube-apiserver ◄── Proxy :6443 ◄──┼─ fabric ┼── kubelet ── containerd ── pods    │
//!   │              ▲ kube-controller-manager     │         │   kube-proxy                       │
//!   │              └ kube-scheduler              │         └────────────────────────────────────┘
//!   └────────────────────────────────────────────┘
//! ```
//!
//! The programs are Kubernetes' own, built once by `tests/cluster/build.sh` ([`Programs`]). Everybody but the control
//! plane itself reaches the API server through a [`Proxy`] that can cut, stall and slow what passes.
//!
//! The API server alone is enough to try what watches it:
//! ```no_run
//! # fn trial(lab: &selvage_lab::Lab) -> anyhow::Result<()> {
//! use selvage_lab::kubernetes::{ControlPlane, Settings, User};
//!
//! let rack = lab.network("rack", &["192.0.2.0/24".parse()?, "2001:db8::/64".parse()?])?;
//! let netns = lab.netns("control")?;
//! let link = rack.join(&netns)?;
//! let mut control = ControlPlane::start(&netns, link.addresses(), &Settings::default())?;
//! control.kubectl().apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")?;
//! let kubeconfig = control.kubeconfig(&User::admin())?;    // for an agent in any namespace on `rack`
//! control.proxy().cut();                                   // every connection ends
//! control.restart_apiserver()?;
//! # drop(kubeconfig);
//! # Ok(())
//! # }
//! ```

mod access;
pub(crate) mod cgroup;
mod cluster;
mod control_plane;
mod images;
mod node;
mod pki;
mod programs;
mod proxy;
mod rest;
mod selvage;
mod space;

pub use access::{Kubectl, User, plain_kubeconfig};
pub use cluster::{ClusterSettings, KubernetesCluster, PATIENCE, Pod};
pub use control_plane::{ControlPlane, Settings};
pub use images::AGNHOST;
pub use node::{KubeProxy, Node};
pub use programs::Programs;
pub use proxy::Proxy;
pub use rest::Rest;
pub use selvage::manifests;
