//! The facts, and the ways to find them: who owns an address, whom a selector may mean, which policies matter to a pod.
//!
//! One address has one owner: finished pods never count, an attachment of this node beats the API, then the newest pod.

mod dirty;
mod facts;
mod owner;
mod pod_table;

pub(crate) use dirty::Dirty;
pub(crate) use facts::Facts;
pub(crate) use owner::Standing;
pub(crate) use pod_table::{PodId, PodTable};
