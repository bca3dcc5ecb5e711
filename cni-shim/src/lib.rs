//! The CNI plugin of Selvage, as a library: what the agent shares with it, and the plugin's verbs.
//!
//! The plugin is a static program without a runtime. It can do its work alone; with an agent on the node a pod's
//! interface is opened only after the pod's policy is in the kernel.

pub mod attachment;
mod fault;
pub mod ipam;
pub mod link;
pub mod spec;
pub mod undo;

#[cfg(test)]
mod tests;
