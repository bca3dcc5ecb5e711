//! The agent against real files, sockets and kernels.

mod kernel;
