//! `selvage cleanup`: every trace goes. A second run finds nothing and changes nothing.
//!
//! Only what carries our mark is touched: routes by protocol, nexthops by range and protocol, our nftables
//! tables, interfaces by group, files by name, and sysctls that are as `install` left them. Pods that run keep what they
//! stand on (interface, routes, attachment, lease, plugin, sysctls) unless `--pods` is given: an address whose lease is
//! gone would be given away again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use selvage_cni::attachment::Attachments;
use selvage_cni::ipam;
use selvage_cni::ipam::lease::{Leases, Owner};
use selvage_cni::link::{
    ATTACHMENTS, Attachment, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, READY, SOCKET,
};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::screen::Screen;
use super::{Failure, Outcome, OutputArgs, print};
use crate::control::lock::Lock;
use crate::install::plugin;
use crate::install::sysctl::{self, Record};
use crate::kernel::open;
use crate::kernel::sysctl::ROOT;
use crate::neighbours;
use crate::source;

/// What tells the container runtime about us.
const CONFLIST: &str = "10-selvage.conflist";

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Also the interfaces of pods that still run: they lose their network
    #[arg(long)]
    pods: bool,
    /// State that outlives a reboot
    #[arg(long, value_name = "DIR", env = "SELVAGE_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Where the container runtime looks for network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the container runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Sysctls stay as `selvage install` has set them
    #[arg(long)]
    keep_sysctls: bool,
    /// Wait for a signal afterwards: in a DaemonSet, to be Ready is to be done
    #[arg(long)]
    stay: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was removed.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
struct Removed {
    routes: usize,
    nexthops: usize,
    tables: Vec<String>,
    interfaces: Vec<String>,
    leases: usize,
    files: Vec<PathBuf>,
    /// Put back to what they were.
    sysctls: Vec<String>,
    /// Interfaces of pods that keep their network.
    kept: Vec<String>,
}

pub(super) fn run(args: &Args, run_dir: Option<PathBuf>) -> Outcome {
    // Held until everything is gone, so that no agent starts meanwhile.
    let _lock = Lock::take().map_err(|error| Failure::new(error).hint("stop it first"))?;
    let run_dir = run_dir.unwrap_or_else(|| DEFAULT_RUN_DIR.into());
    let kernel = open::cleanup(args.pods).map_err(|error| {
        Failure::new(format!("the kernel refused: {error}"))
            .hint("this takes CAP_NET_ADMIN: use sudo")
    })?;
    let mut removed = Removed {
        routes: kernel.routes,
        nexthops: kernel.nexthops,
        tables: kernel.tables,
        interfaces: kernel.links,
        kept: open::pod_interfaces().map_err(Failure::new)?,
        ..Removed::default()
    };
    attachments(args, &mut removed)?;
    if removed.kept.is_empty() {
        installed(args, &mut removed)?;
    }
    files(args, &run_dir, &mut removed)?;
    print(args.output.output, &removed, |screen| {
        render(screen, &removed)
    })?;
    if args.stay {
        signalled()?;
    }
    Ok(true)
}

/// What `selvage install` did.
fn installed(args: &Args, removed: &mut Removed) -> Result<(), Failure> {
    let own = super::install::own_plugin();
    let gone = plugin::remove(Some(&own), &args.cni_bin_dir).map_err(Failure::new)?;
    removed.files.extend(gone);
    if args.keep_sysctls {
        return Ok(());
    }
    removed.sysctls = Record::of(&args.state_dir)
        .restore(Path::new(ROOT))
        .map_err(|(name, error)| {
            Failure::new(format!("{ROOT}/{name}: {error}")).hint(
                "in a container this takes `privileged: true`; --keep-sysctls leaves them as they are",
            )
        })?;
    Ok(())
}

/// Waits until it is told to end. The first process of a container ends by no signal that it does not ask for.
fn signalled() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

fn files(args: &Args, run_dir: &Path, removed: &mut Removed) -> Result<(), Failure> {
    let gone = [
        args.cni_conf_dir.join(CONFLIST),
        run_dir.join(READY),
        run_dir.join(SOCKET),
        run_dir.join(crate::api::SOCKET),
    ];
    let of_sessions = neighbours::FILES.map(|name| args.state_dir.join(name));
    let of_source = source::api::FILES.map(|name| args.state_dir.join(name));
    let with_pods = [
        args.state_dir.join(ATTACHMENTS),
        args.state_dir.join(sysctl::RECORD),
    ];
    let with_pods = with_pods.into_iter().filter(|_| removed.kept.is_empty());
    let gone = gone.into_iter().chain(of_source).chain(of_sessions);
    let gone: Vec<PathBuf> = gone.chain(with_pods).collect();
    for path in gone {
        remove(
            &path,
            fs::symlink_metadata(&path).is_ok_and(|file| file.is_dir()),
            removed,
        )?;
    }
    for directory in [run_dir, &args.state_dir] {
        // Only if nothing of somebody else's is in it.
        if fs::remove_dir(directory).is_ok() {
            removed.files.push(directory.to_owned());
        }
    }
    Ok(())
}

/// What the plugin remembers of pods that have no interface any more: attachments and leases.
fn attachments(args: &Args, removed: &mut Removed) -> Result<(), Failure> {
    let attachments = Attachments::of(&args.state_dir);
    let mut directories = BTreeSet::new();
    // What cannot be read goes with the directory.
    for attachment in attachments.list().unwrap_or_default() {
        if removed.kept.contains(&attachment.host_if) {
            continue;
        }
        if let Some(dir) = attachment.lease_dir.as_ref().map(PathBuf::from) {
            let owner = Owner {
                container_id: attachment.container_id.clone(),
                ifname: attachment.ifname.clone(),
            };
            let before = leases_in(&dir);
            ipam::release(Some(&attachment), &Leases::at(dir.clone()), &owner)
                .map_err(|error| Failure::new(format!("{error}")))?;
            removed.leases += before.saturating_sub(leases_in(&dir));
            remembered(&dir, &attachment, removed)?;
            directories.insert(dir);
        }
        attachments
            .remove(&attachment.container_id, &attachment.ifname)
            .map_err(|error| Failure::new(format!("{error}")))?;
    }
    directories
        .iter()
        .try_for_each(|directory| lease_directory(directory, removed))
}

/// What the runtime's library remembers of an ADD (`libcni`, beside the leases); it forgets it after a DEL, which this is.
fn remembered(
    leases: &Path,
    attachment: &Attachment,
    removed: &mut Removed,
) -> Result<(), Failure> {
    let Some(cache) = leases.ancestors().nth(2) else {
        return Ok(());
    };
    let (network, id) = (&attachment.network, &attachment.container_id);
    let name = format!("{network}-{id}-{}", attachment.ifname);
    remove(&cache.join("results").join(name), false, removed)
}

fn leases_in(directory: &Path) -> usize {
    ipam::lease::addresses_in(directory).map_or(0, |leases| leases.len())
}

/// Without a lease, the directory of a network is but a lock and a memory. Another's lease keeps it.
fn lease_directory(directory: &Path, removed: &mut Removed) -> Result<(), Failure> {
    if leases_in(directory) > 0 {
        return Ok(());
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name == "lock"
            || name == ".boot"
            || name == ".lease"
            || name.to_string_lossy().starts_with("last_reserved_ip.");
        if ours {
            remove(&entry.path(), false, removed)?;
        }
    }
    for directory in [Some(directory), directory.parent()].into_iter().flatten() {
        // Only if nothing of somebody else's is in it.
        if fs::remove_dir(directory).is_ok() {
            removed.files.push(directory.to_owned());
        }
    }
    Ok(())
}

fn remove(path: &Path, directory: bool, removed: &mut Removed) -> Result<(), Failure> {
    match if directory {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    } {
        Ok(()) => removed.files.push(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::new(format!("{}: {error}", path.display()))),
    }
    Ok(())
}

fn render(screen: &Screen, removed: &Removed) -> String {
    let mut text = String::new();
    let counts = [
        ("routes", removed.routes),
        ("nexthops", removed.nexthops),
        ("interfaces", removed.interfaces.len()),
        ("leases", removed.leases),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!("removed {count} {name}\n"));
    }
    for table in &removed.tables {
        text.push_str(&format!("removed the nftables table inet {table}\n"));
    }
    for path in &removed.files {
        text.push_str(&format!(
            "removed {}\n",
            screen.dim(&path.display().to_string())
        ));
    }
    for sysctl in &removed.sysctls {
        text.push_str(&format!("put back {sysctl}\n"));
    }
    if text.is_empty() {
        text.push_str("Nothing of Selvage was left.\n");
    }
    if !removed.kept.is_empty() {
        text.push_str(&format!(
            "pods that run keep their network: {}; --pods removes it, too\n",
            removed.kept.join(", ")
        ));
    }
    text
}
