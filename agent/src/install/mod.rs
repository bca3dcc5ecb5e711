//! What a node needs before an agent can run on it without privileges: the plugin where the runtime looks for it, the
//! sysctls that an unprivileged container cannot write, a kernel that has what we use. And the way back.
//!
//! What is right already is left alone, so a second run changes nothing. What a sysctl was is written down before it is
//! changed: `cleanup` puts back what still is as we left it.

pub mod kernel;
pub mod plugin;
pub mod sysctl;
