//! The shell around selvage-bgp-core: sockets, threads, timers.
