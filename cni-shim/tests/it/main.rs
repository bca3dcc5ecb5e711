//! The plugin as runtimes see it: the program with its environment and standard input, and the kernel after it.
//!
//! What touches the kernel happens in namespaces that the tests make, which live as long as a descriptor is open;
//! they need root. Nothing outside of those is changed.

mod agent;
mod bandwidth;
mod calls;
mod delegate;
mod gc;
mod hostports;
mod kernel;
mod killed;
mod lab;
mod loopback;
