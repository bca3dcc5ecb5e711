//! The netlink messages that Selvage exchanges with the kernel.
