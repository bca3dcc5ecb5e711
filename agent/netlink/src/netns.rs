//! Network namespaces: opening, entering on a thread of its own, creating, deleting, and the
//! sysctls in them.
//!
//! A thread that entered another namespace never returns to a pool: it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// What tells two namespaces apart: device and inode of the namespace file. An inode can be used
/// again after the namespace is gone; see [`cookie`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id {
    /// Device of the file system of namespaces.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// The calling thread's namespace.
pub fn current() -> io::Result<OwnedFd> {
    open("/proc/thread-self/ns/net")
}

/// Opens the namespace that is bound to a path, e.g. `/run/netns/…`. Does not check that it is
/// one; entering it would fail.
pub fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Opens the namespace of a process.
pub fn open_pid(pid: u32) -> io::Result<OwnedFd> {
    open(format!("/proc/{pid}/ns/net"))
}

/// The identity of a namespace, from an open descriptor.
pub fn id(netns: BorrowedFd<'_>) -> io::Result<Id> {
    let metadata = File::from(netns.try_clone_to_owned()?).metadata()?;
    Ok(Id {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

/// The kernel's number for a namespace, never used twice until reboot.
pub fn cookie(netns: BorrowedFd<'_>) -> io::Result<u64> {
    within(netns, || {
        let flags = SocketFlags::CLOEXEC;
        sys::netns_cookie(socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            flags,
            None,
        )?)
    })?
}

/// Runs a closure on a thread of its own that has entered `netns`, and returns what it returned.
/// Sockets opened in it belong to that namespace, also afterwards. Needs CAP_SYS_ADMIN.
pub fn within<T: Send>(netns: BorrowedFd<'_>, run: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(move || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        Ok(run())
    })
}

/// Creates a namespace without a name: it lives as long as the descriptor, or what was put in it.
/// Its loopback interface is down.
pub fn create_unnamed() -> io::Result<OwnedFd> {
    on_thread(|| {
        sys::unshare_network()?;
        current()
    })
}

/// Creates a namespace and binds it to `path`, whose folder must exist. An existing file there is
/// an error.
pub fn create(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let path = path.as_ref();
    OpenOptions::new().write(true).create_new(true).open(path)?;
    let created = on_thread(|| {
        sys::unshare_network()?;
        mount_bind("/proc/thread-self/ns/net", path)?;
        current()
    });
    if created.is_err() {
        let _ = fs::remove_file(path);
    }
    created
}

/// Undoes [`create`]: the namespace ends when nothing else holds it. A path that does not exist
/// is no error.
pub fn delete(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a sysctl below `/proc/sys/net` in a namespace, e.g. `ipv4/ip_forward`. Dots in the
/// name of an interface are left alone, since the parts are separated by slashes.
pub fn write_sysctl(netns: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let path = sysctl_path(name)?;
    within(netns, move || fs::write(path, value))?
}

/// Reads a sysctl below `/proc/sys/net` in a namespace, without the trailing newline.
pub fn read_sysctl(netns: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let path = sysctl_path(name)?;
    let mut value = within(netns, move || fs::read_to_string(path))??;
    value.truncate(value.trim_end().len());
    Ok(value)
}

fn sysctl_path(name: &str) -> io::Result<PathBuf> {
    if name.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a sysctl",
        ));
    }
    Ok(Path::new("/proc/sys/net").join(name))
}

/// Runs on a new thread; a panic there continues here.
fn on_thread<T: Send>(run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, run)?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
