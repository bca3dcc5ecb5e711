//! The CNI plugin of Selvage, as a library: what the agent shares with it, and the plugin's verbs.
//!
//! The plugin is a static program without a runtime. It can do its work alone; with an agent on the node a pod's
//! interface is opened only after the pod's policy is in the kernel.
//!
//! ```text
//!  environment, standard input ──► plugin ──► add, del, check, gc, status, loopback ──► result or error
//!                                   spec       │        │          │
//!                                            ipam      veth     handover ◄─ link ─► agent
//!                                              │         │          │
//!                                  leases, attachments  kernel    cni.sock
//! ```
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod add;
pub mod attachment;
pub mod bandwidth;
pub mod check;
pub mod conflist;
pub mod del;
mod fault;
pub mod forwarding;
pub mod gc;
pub mod handover;
pub mod ipam;
pub mod link;
pub mod loopback;
pub mod masquerade;
pub mod nft;
pub mod plugin;
pub mod portmap;
pub mod spec;
pub mod status;
pub mod undo;
pub mod veth;

#[cfg(test)]
mod tests;
