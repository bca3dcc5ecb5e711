//! `selvage cleanup`: every trace goes. A second run finds nothing and changes nothing.
//!
//! Only what carries our mark is touched: routes by protocol, nexthops by range and protocol, our two nftables
//! tables, interfaces by group, and files by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use selvage_cni::link::{ATTACHMENTS, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, READY, SOCKET};
use serde::Serialize;

use super::screen::Screen;
use super::{Failure, Outcome, OutputArgs, print};
use crate::control::lock::Lock;
use crate::kernel::open;

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
    files: Vec<PathBuf>,
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
        files: Vec::new(),
    };
    files(args, &run_dir, &mut removed)?;
    print(args.output.output, &removed, |screen| {
        render(screen, &removed)
    })?;
    Ok(true)
}

fn files(args: &Args, run_dir: &Path, removed: &mut Removed) -> Result<(), Failure> {
    let gone = [
        args.cni_conf_dir.join(CONFLIST),
        run_dir.join(READY),
        run_dir.join(SOCKET),
        run_dir.join(crate::api::SOCKET),
        args.state_dir.join(ATTACHMENTS),
        args.state_dir.join("snapshot"),
    ];
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
    if *removed == Removed::default() {
        return "Nothing of Selvage was left.\n".into();
    }
    let mut text = String::new();
    let counts = [
        ("routes", removed.routes),
        ("nexthops", removed.nexthops),
        ("interfaces", removed.interfaces.len()),
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
    text
}
