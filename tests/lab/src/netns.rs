//! A network namespace as a value: a host, a router, a node or a pod.
//!
//! Namespaces are files below the sandbox's own `/run/netns`, under the names that `ip netns` would use.
//! Whatever is done in one is done by a thread that has entered it and then ends; no thread ever comes back.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::mount::mount_bind;
use selvage_netlink::{Protocol, Socket, link, netns};

use crate::lab::Lab;

/// A network namespace. A handle: the namespace is unmounted with the last one, and goes when no process is
/// left in it.
#[derive(Clone, Debug)]
pub struct Netns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lab: Lab,
    name: String,
    path: PathBuf,
    interfaces: AtomicU32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A trial may have removed it already, which is what it is a trial of.
        let _ = netns::delete(&self.path);
    }
}

/// Written into every new namespace. Addresses are usable at once (no duplicate address detection), ICMP
/// echo needs no capability, and nothing depends on what the machine's own settings happen to be.
const SYSCTLS: [(&str, &str); 7] = [
    ("net/ipv4/ping_group_range", "0 0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
];

impl Netns {
    pub(crate) fn create(lab: &Lab, name: &str) -> Result<Netns> {
        let path = Path::new("/run/netns").join(format!("{}-{name}", lab.name()));
        netns::create(&path)
            .with_context(|| format!("cannot make namespace {name} of lab {}", lab.name()))?;
        let inner = Inner {
            lab: lab.clone(),
            name: name.to_owned(),
            path,
            interfaces: AtomicU32::new(0),
        };
        let netns = Netns {
            inner: Arc::new(inner),
        };
        netns.run(|| {
            SYSCTLS
                .iter()
                .try_for_each(|(key, value)| write_sysctl(key, value))?;
            raise_loopback()
        })?;
        Ok(netns)
    }

    /// The namespace of a process, under a name of this lab. Nothing in it is changed.
    pub(crate) fn of_process(lab: &Lab, name: &str, pid: u32) -> Result<Netns> {
        // Asked for twice, it has two names.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new("/run/netns").join(format!("{}-{name}.{number}", lab.name()));
        fs::write(&path, "")?;
        mount_bind(format!("/proc/{pid}/ns/net"), &path)
            .with_context(|| format!("cannot name the namespace of process {pid}"))?;
        let inner = Inner {
            lab: lab.clone(),
            name: name.to_owned(),
            path,
            interfaces: AtomicU32::new(0),
        };
        Ok(Netns {
            inner: Arc::new(inner),
        })
    }

    /// The lab that it belongs to.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.inner.lab
    }

    /// Its name within the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The file that stands for it, as `CNI_NETNS` wants it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The namespace as a descriptor, for netlink messages that name it. None is kept: a namespace whose name and
    /// processes are gone is gone.
    ///
    /// # Errors
    /// When the name is gone.
    pub fn open(&self) -> Result<OwnedFd> {
        netns::open(self.path()).with_context(|| format!("namespace {} is gone", self.name()))
    }

    /// Runs `work` in a thread inside the namespace and returns what it returns. A panic passes through.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered =
            netns::within(self.open()?.as_fd(), work).context("cannot enter the namespace");
        entered
            .flatten()
            .with_context(|| format!("in {}", self.name()))
    }

    /// Starts a thread inside the namespace that outlives this call.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let netns = self.clone();
        thread::spawn(move || netns.run(work))
    }

    /// A socket for routing messages of the namespace.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn rtnetlink(&self) -> Result<Socket> {
        Ok(Socket::open_in(self.open()?.as_fd(), Protocol::Route)?)
    }

    /// Writes a sysctl of the namespace; `key` with slashes or dots.
    ///
    /// # Errors
    /// When it is not there or the value is refused.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))
    }

    /// Reads a sysctl of the namespace.
    ///
    /// # Errors
    /// When it is not there.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        self.run(|| {
            let path = sysctl_path(key);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok(text.trim_end().to_owned())
        })
    }

    /// Makes the namespace forward packets, as a router or a node does.
    ///
    /// # Errors
    /// When a sysctl is refused.
    pub fn forward(&self) -> Result<()> {
        self.run(|| {
            write_sysctl("net/ipv4/ip_forward", "1")?;
            write_sysctl("net/ipv6/conf/all/forwarding", "1")
        })
    }

    /// Removes the name now, as `ip netns delete` does, while processes may still be inside.
    ///
    /// # Errors
    /// When it cannot be unmounted.
    pub fn delete(&self) -> Result<()> {
        Ok(netns::delete(self.path())?)
    }

    /// The next free name for an Ethernet interface here: `eth0`, `eth1`, …
    pub(crate) fn next_interface(&self) -> String {
        format!(
            "eth{}",
            self.inner.interfaces.fetch_add(1, Ordering::Relaxed)
        )
    }
}

/// Raises `lo` of the namespace in which the calling thread is.
pub(crate) fn raise_loopback() -> Result<()> {
    let mut socket = Socket::open(Protocol::Route)?;
    let lo = link::get_by_name(&mut socket, "lo")?.index;
    Ok(socket.apply(|batch| link::set_up(batch, lo, true))?)
}

fn sysctl_path(key: &str) -> PathBuf {
    let key = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    Path::new("/proc/sys").join(key)
}

/// Writes a sysctl of the namespace in which the calling thread is.
fn write_sysctl(key: &str, value: &str) -> Result<()> {
    let path = sysctl_path(key);
    fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {}", path.display()))
}
