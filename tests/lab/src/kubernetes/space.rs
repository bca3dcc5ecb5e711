//! What makes a namespace a node: mounts and processes of its own.
//!
//! A node sees the machine's files; what it writes to `/etc`, `/opt` and `/var` stays its own, and the places of
//! Kubernetes, CNI and Selvage begin empty. All of it is on the lab's tmpfs. Its processes live in a pid namespace whose
//! first one is `pause`: when that is killed, nothing of the node runs any more.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::programs::Programs;
use crate::netns::Netns;
use crate::process::Process;
use crate::sandbox;

/// How long the namespaces may take.
const SOON: Duration = Duration::from_secs(60);

/// What a node may write to without the machine seeing it.
const LAYERED: [&str; 3] = ["etc", "opt", "var"];

/// What begins empty on a node, by its name in the node's folder. `/run` last: it hides the lab's own.
const OWN: [(&str, &str); 9] = [
    ("etc-cni", "/etc/cni"),
    ("etc-kubernetes", "/etc/kubernetes"),
    ("opt-cni", "/opt/cni"),
    ("cni", "/var/lib/cni"),
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("selvage", "/var/lib/selvage"),
    ("log", "/var/log"),
    ("run", "/run"),
];

/// What a kubelet would write for the whole machine. It finds its values there already.
const SYSCTLS: [(&str, &str); 6] = [
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
];

/// Mounts and processes of a node. Dropping it kills all of them.
#[derive(Debug)]
pub(super) struct Space {
    netns: Netns,
    folder: PathBuf,
    mounts: OwnedFd,
    processes: OwnedFd,
    /// The first process of the pid namespace, as the sandbox numbers it.
    first: Pid,
    /// It waits for the first process, and ends with it.
    init: Process,
}

impl Space {
    pub(super) fn create(netns: &Netns, programs: &Programs) -> Result<Space> {
        let folder = netns
            .lab()
            .subdirectory(&format!("nodes/{}", netns.name()))?;
        let pause = programs.find("pause")?;
        let mut command = Command::new("unshare");
        command
            .args("--mount --pid --fork --kill-child --mount-proc".split(' '))
            .arg(&pause);
        let name = format!("{}-init", netns.name());
        let mut init = netns.lab().spawn(netns, &name, command)?;
        let outer = init.pid();
        let mut first = None;
        init.wait_for(SOON, "the first process of the node", || {
            first = child_of(outer).filter(|pid| {
                // It has mounted /proc by the time it is what it is to be.
                fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == pause)
            });
            first.is_some()
        })?;
        let first = first.context("no first process")?;
        let open = |name| {
            let path = format!("/proc/{first}/ns/{name}");
            Ok::<OwnedFd, anyhow::Error>(fs::File::open(&path).context(path)?.into())
        };
        let space = Space {
            netns: netns.clone(),
            folder,
            mounts: open("mnt")?,
            processes: open("pid")?,
            first: Pid::from_raw(first.try_into()?).context("a pid")?,
            init,
        };
        space.furnish().context("cannot furnish the node")?;
        Ok(space)
    }

    /// Where the lab sees a path of the node.
    pub(super) fn outside(&self, path: &Path) -> Result<PathBuf> {
        let found = OWN
            .iter()
            .find_map(|(name, target)| Some((name, path.strip_prefix(target).ok()?)));
        let (name, rest) =
            found.with_context(|| format!("{} of a node is the machine's own", path.display()))?;
        Ok(self.folder.join(name).join(rest))
    }

    /// Runs `work` in a thread inside the node. What it starts is a process of the node.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let net = self.netns.open()?;
        let inside = || {
            // A thread that shares its root with others could not enter.
            sandbox::unshare(UnshareFlags::FS)?;
            for (fd, kind) in [
                (net.as_fd(), LinkNameSpaceType::Network),
                (self.processes.as_fd(), LinkNameSpaceType::ProcessID),
                (self.mounts.as_fd(), LinkNameSpaceType::Mount),
            ] {
                move_into_link_name_space(fd, Some(kind)).context("cannot enter the node")?;
            }
            work()
        };
        let outcome = thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("node".to_owned())
                .spawn_scoped(scope, inside)?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        outcome.with_context(|| format!("on {}", self.netns.name()))
    }

    /// Starts a program on the node; its output goes to `NODE-NAME.log` in the lab's directory.
    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let name = format!("{}-{name}", self.netns.name());
        let log = self.netns.lab().directory().join(format!("{name}.log"));
        Process::spawn_by(&name, &log, command, |mut command| {
            self.run(move || start(&mut command))
        })
    }

    /// Kills the first process, and with it every other. Those that were started by [`Space::spawn`] are waited for
    /// here: until then the namespace cannot end.
    pub(super) fn kill(&mut self, started: &mut [Process]) -> Result<()> {
        if self.init.ended().is_some() {
            return Ok(());
        }
        kill_process(self.first, Signal::KILL).context("cannot kill the node")?;
        for process in started {
            process.wait_end(SOON)?;
        }
        self.init.wait_end(SOON)?;
        Ok(())
    }

    /// Removes all files of a node that is dead.
    pub(super) fn remove(&self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    fn furnish(&self) -> Result<()> {
        let folder = self.folder.clone();
        for (name, _) in OWN {
            fs::create_dir_all(folder.join(name))?;
        }
        for name in ["etc-cni/net.d", "opt-cni/bin", "run/netns", "run/lock"] {
            fs::create_dir_all(folder.join(name))?;
        }
        self.run(move || {
            for name in LAYERED {
                layer(&folder, name)?;
            }
            for (key, value) in SYSCTLS {
                pretend(&folder, key, value)?;
            }
            for (name, target) in OWN {
                fs::create_dir_all(target)?;
                mount_bind(folder.join(name), target).context(target)?;
            }
            // Pods may ask to share mounts with their node.
            let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
            Ok(mount_change("/", shared)?)
        })
    }
}

fn start(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

/// Puts a layer of the node's own over a folder of the machine.
fn layer(folder: &Path, name: &str) -> Result<()> {
    let target = format!("/{name}");
    let part = |kind| {
        let path = folder.join(format!("layers/{name}-{kind}"));
        fs::create_dir_all(&path)?;
        Ok::<_, anyhow::Error>(path)
    };
    let options = format!(
        "lowerdir={target},upperdir={},workdir={}",
        part("upper")?.display(),
        part("work")?.display()
    );
    let options = CString::new(options)?;
    mount(
        "overlay",
        &target,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .with_context(|| format!("cannot put a layer over {target}: {options:?}"))
}

/// Covers a sysctl with a file that holds `value`.
fn pretend(folder: &Path, key: &str, value: &str) -> Result<()> {
    let target = Path::new("/proc/sys").join(key);
    if !target.exists() {
        return Ok(());
    }
    let file = folder.join("layers").join(key.replace('/', "."));
    fs::write(&file, format!("{value}\n"))?;
    mount_bind(&file, &target).with_context(|| target.display().to_string())
}

/// The only child of a process.
fn child_of(parent: u32) -> Option<u32> {
    let wanted = format!("PPid:\t{parent}");
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().any(|line| line == wanted).then_some(pid)
    })
}
