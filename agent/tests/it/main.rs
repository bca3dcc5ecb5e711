//! The agent against real files, sockets and kernels.

mod api;
mod control;
mod desired;
mod kernel;
mod objects;
mod screens;
mod source;
