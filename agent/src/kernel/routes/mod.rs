//! Learned routes in the kernel: the thread that the RIB feeds directly.
//!
//! [`RouteTable`] is the whole of it without a socket; [`Kernel`] is the kernel behind it;
//! [`spawn`] makes the thread that drains its inbox, then the kernel's notifications, then
//! commits once for all of it.

mod changes;
mod facts;
pub mod fib;
mod groups;
mod kernel;
mod table;
mod thread;

#[cfg(test)]
mod tests;

pub use changes::Changes;
pub use facts::{FailedRoute, RouteEvent, RouteFacts, Unresolved};
pub use kernel::Kernel;
pub use table::RouteTable;
pub use thread::{Reply, RouteWork, Settings, spawn};
