//! The agent against real files, sockets and kernels.

mod api;
mod control;
mod desired;
mod kernel;
mod manifests;
mod objects;
mod screens;
mod source;
