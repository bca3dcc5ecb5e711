//! Whether the node forwards at all: without it no pod reaches anything but the node, and nothing in the pod shows why.

use std::fs;
use std::path::Path;

use crate::spec::{CniError, Code};

/// Where the kernel shows whether it forwards, by family.
fn path(v6: bool) -> &'static Path {
    Path::new(if v6 {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    } else {
        "/proc/sys/net/ipv4/ip_forward"
    })
}

/// An error with this code and what to do, if the node does not forward packets of a family.
pub fn check(families: &[bool], code: Code) -> Result<(), CniError> {
    for v6 in [false, true] {
        if !families.contains(&v6) {
            continue;
        }
        let value = match fs::read_to_string(path(v6)) {
            Ok(value) => value,
            Err(e) => return Err(CniError::file("read", path(v6), &e)),
        };
        if value.trim() == "1" {
            continue;
        }
        let (family, name) = if v6 {
            ("IPv6", "net.ipv6.conf.all.forwarding")
        } else {
            ("IPv4", "net.ipv4.ip_forward")
        };
        let message = format!(
            "the node does not forward {family}, so that its pods are cut off: {name} is {}. `selvage install` sets it; by \
             hand: sysctl -w {name}=1",
            value.trim()
        );
        return Err(CniError::new(code, message));
    }
    Ok(())
}
