//! The namespaces around the whole program.
//!
//! [`enter`] is called first thing in `main`. The process that the user started leaves for new mount,
//! network, IPC and pid namespaces (and a user namespace when it is not root), starts itself once more as
//! process 1 of the pid namespace and waits. What always holds afterwards:
//!
//! - when process 1 ends, for whatever reason, the kernel kills everything in the pid namespace, and with
//!   the last process the mounts and the network namespaces go;
//! - when the waiting process ends, for whatever reason, process 1 is killed by its parent-death signal;
//! - nothing outside is changed: mounts are private, `/run` and `/proc` are the sandbox's own.

use std::env;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal,
};
use rustix::thread::UnshareFlags;

use crate::kubernetes::cgroup;

/// Names the process outside, for process 1 inside. It means nothing to any other process.
const MARK: &str = "SELVAGE_SANDBOX";

/// Names the control group, for everything inside.
const GROUP: &str = "SELVAGE_SANDBOX_CGROUP";

/// Where this process is after [`enter`].
#[derive(Debug)]
pub enum Place {
    /// Process 1 of the sandbox: go on.
    Inside,
    /// The process outside, after the one inside has ended.
    Outside {
        /// Return this from `main`.
        code: ExitCode,
        /// A signal ended it: everything inside was killed.
        interrupted: bool,
    },
}

/// Enters the sandbox by starting this program again inside it, with the same arguments.
///
/// Must be called before the process has any thread.
///
/// # Errors
/// When the namespaces cannot be made; the message says what to do.
pub fn enter() -> Result<Place> {
    match env::var(MARK) {
        Ok(outer) if getpid().as_raw_nonzero().get() == 1 => {
            settle(&outer)?;
            Ok(Place::Inside)
        }
        _ => leave(),
    }
}

/// True in the process that [`enter`] has started, and in its children.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(MARK).is_some() && Path::new(SETTLED).exists()
}

/// The control group of everything inside that has groups, below the root of each hierarchy.
pub(crate) fn control_group() -> Option<String> {
    env::var(GROUP).ok().filter(|_| is_inside())
}

/// Exists once the sandbox's own `/run` is mounted.
const SETTLED: &str = "/run/lab/.sandbox";

/// Outside: makes the namespaces, starts process 1 and waits for it.
fn leave() -> Result<Place> {
    let signals = Interrupts::new()?;
    let outer = outer_pid()?;
    let group = cgroup::name(outer)?;
    cgroup::sweep();
    unshare_all()?;
    let mut child = Command::new(env::current_exe().context("this program has no path")?)
        .args(env::args_os().skip(1))
        .env(MARK, outer.to_string())
        .env(GROUP, &group)
        .spawn()
        .context("cannot start the first process of the sandbox")?;
    let place = wait(&mut child, &signals);
    // All that the namespaces do not take with them: nobody is in them any more.
    cgroup::remove(&group);
    place
}

fn unshare_all() -> Result<()> {
    let rootless = !rustix::process::geteuid().is_root();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID | UnshareFlags::NEWIPC;
    if rootless {
        flags |= UnshareFlags::NEWUSER;
    }
    unshare(flags).map_err(|error| match rootless {
        true => anyhow::anyhow!(
            "no namespaces without root here ({error}): run it with sudo, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        ),
        false => anyhow::anyhow!("no namespaces here ({error}): in a container it needs --privileged"),
    })?;
    if rootless {
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text)
                .with_context(|| format!("cannot write {file}"))
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("0 {} 1", uid.as_raw()))?;
        write("gid_map", format!("0 {} 1", gid.as_raw()))?;
    }
    Ok(())
}

/// Leaves for new namespaces. Only the calling thread moves.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // The wrapper is deprecated because of FILES, which could invalidate descriptors; it is never passed here.
    #[allow(deprecated)]
    rustix::thread::unshare(flags)
}

/// This process as `/proc` outside shows it.
fn outer_pid() -> Result<i32> {
    proc_stat_field(0).context("cannot read /proc/self/stat")
}

/// Numbers of `/proc/self/stat`: 0 is the pid, 1 the parent's.
fn proc_stat_field(index: usize) -> Result<i32> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (head, rest) = stat.split_once(" (").context("no name in stat")?;
    let tail = rest
        .rsplit_once(") ")
        .context("no end of the name in stat")?
        .1;
    let text = match index {
        0 => head,
        _ => tail.split(' ').nth(index).context("short stat")?,
    };
    Ok(text.parse()?)
}

/// SIGINT, SIGTERM and SIGHUP as something to poll; no thread, for a thread would forbid what follows.
struct Interrupts {
    read: UnixStream,
}

impl Interrupts {
    fn new() -> Result<Interrupts> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in [
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Interrupts { read })
    }

    fn came(&self) -> bool {
        let mut byte = [0];
        matches!((&self.read).read(&mut byte), Ok(1))
    }
}

fn wait(child: &mut Child, signals: &Interrupts) -> Result<Place> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("this kernel has no pidfd_open")?;
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            PollFd::new(&signals.read, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        if let Some(status) = child.try_wait()? {
            return Ok(Place::Outside {
                code: exit_code(status),
                interrupted: false,
            });
        }
        if signals.came() {
            // Killing process 1 is the whole clean-up: the kernel takes everything else with it.
            child.kill()?;
            child.wait()?;
            return Ok(Place::Outside {
                code: ExitCode::from(130),
                interrupted: true,
            });
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Inside, as process 1: ties this process to the one outside and mounts what the sandbox needs.
fn settle(outer: &str) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The old /proc still shows the pid namespace outside. If the parent is another one by now, the
    // signal would never come.
    if proc_stat_field(1)?.to_string() != outer {
        bail!("the process that started the sandbox is gone");
    }
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot make the mounts private")?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", plain, None).context(
        "cannot mount /proc (in a container it needs --privileged or an unmasked /proc)",
    )?;
    let nodev = MountFlags::NOSUID | MountFlags::NODEV;
    mount("lab", "/run", "tmpfs", nodev, Some(c"mode=755"))
        .context("cannot mount a tmpfs over /run")?;
    for directory in ["/run/lab", "/run/netns", "/run/lock"] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {directory}"))?;
    }
    fs::write(SETTLED, "")?;
    crate::netns::raise_loopback()
}
