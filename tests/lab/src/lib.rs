//! Network namespaces, links and routing daemons as values.
//!
//! ```text
//!  sandbox::enter()      mount, network and pid namespaces; their first process is this program, so that
//!        │               nothing outlives it and nothing outside is ever changed
//!       Lab              one experiment: a directory and a prefix for names, any number side by side
//!        ├─ Netns        a host, a router, a node, a pod: a network namespace with a name
//!        ├─ Network      a bridge in a namespace of its own ── Link ── Netns;  a link is cut and repaired
//!        ├─ Process      a daemon in a namespace: its output, its end, its resource use
//!        ├─ Agent        our own agent;  Kubelet: what a plugin sees of kubelet and runtime
//!        ├─ Cluster      a topology file that runs
//!        ├─ kubernetes::* a real control plane, a real cluster
//!        ├─ daemon::*    BIRD, FRR, GoBGP: configuration from one description, state as values
//!        ├─ image::Image a container image from nothing
//!        └─ probe::*     TCP, UDP, ICMP echo and counted flows, spoken by ourselves
//! ```
//!
//! No `ip`, no `ping`: links are made by the project's own netlink crate, probes are sockets in a
//! thread that has entered the namespace.

pub mod agent;
pub mod cluster;
pub mod daemon;
pub mod deadline;
pub mod image;
pub mod kubelet;
pub mod kubernetes;
pub mod lab;
pub mod netns;
pub mod network;
pub mod objects;
pub mod probe;
pub mod process;
pub mod programs;
pub mod sandbox;
pub mod topology;
pub mod usage;

pub use agent::Agent;
pub use cluster::Cluster;
pub use deadline::{eventually, eventually_ok};
pub use lab::Lab;
pub use netns::Netns;
pub use network::{Cut, Link, Network};
pub use process::Process;
