//! A trial: its name, what it needs, what it does in a lab of its own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Completion, Failed, Trial};
use selvage_lab::daemon::{Kind, find_program};
use selvage_lab::kubernetes::Programs;
use selvage_lab::probe::flow::machine_drops;
use selvage_lab::process::tail_of;
use selvage_lab::{Lab, programs};

use crate::scene::{Plugin, Source, set_plugin, set_source};

/// What has to be there for a trial.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A routing daemon of others.
    Daemon(Kind),
    /// A program of this project, built beside the tests.
    Own(&'static str),
    /// A program of the system, and the Debian package that has it.
    System(&'static str, &'static str),
    /// A file of the system, and the Debian package that has it.
    File(&'static str, &'static str),
    /// The programs of a Kubernetes control plane.
    ControlPlane,
    /// The programs of a Kubernetes cluster, and root, for a kubelet is nothing without.
    Cluster,
    /// The kernel's IPVS; beside the program that sets it up.
    Ipvs,
    /// The image of this project, of the programs that are built beside the tests.
    Image,
}

impl Need {
    /// Whether nobody can install it: the kernel has it or not.
    fn is_of_kernel(self) -> bool {
        matches!(self, Need::Ipvs)
    }

    /// Why it is not there, if it is not.
    fn missing(self) -> Option<String> {
        match self {
            Need::Daemon(kind) if kind.is_installed() => None,
            Need::Daemon(kind) => Some(format!(
                "{kind} is not installed: apt-get install {}",
                kind.package()
            )),
            Need::Own(name) => programs::find(name).err().map(|error| error.to_string()),
            Need::Cluster if !rustix::process::geteuid().is_root() || in_user_namespace() => {
                Some("a kubelet needs root".to_owned())
            }
            Need::Image => image()
                .err()
                .map(|error| format!("{error:#}; build it: tests/image.sh quick")),
            Need::Cluster => Programs::of_cluster().err().map(|error| error.to_string()),
            Need::File(path, _) if Path::new(path).exists() => None,
            Need::File(path, package) => Some(format!("no {path}: apt-get install {package}")),
            Need::System(name, _) if find_program(name).is_some() => None,
            Need::Ipvs => ipvs().err().map(|error| format!("{error:#}")),
            Need::ControlPlane => Programs::of_control_plane()
                .err()
                .map(|error| error.to_string()),
            Need::System(name, package) => Some(format!(
                "{name} is not installed: apt-get install {package}"
            )),
        }
    }
}

/// Whether the kernel has IPVS, by asking for its services: that loads the module.
fn ipvs() -> Result<()> {
    let program =
        find_program("ipvsadm").context("ipvsadm is not installed: apt-get install ipvsadm")?;
    let output = Command::new(program).args(["-L", "-n"]).output()?;
    ensure!(
        output.status.success(),
        "not run: this kernel has no IPVS (module ip_vs); Debian's kernels have it: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// The archive with the image, if it is not older than the program that it should have.
pub fn image() -> Result<PathBuf> {
    let program = programs::find("selvage")?;
    let archive = program.with_file_name("selvage-image.tar");
    let time = |path: &Path| {
        let metadata = fs::metadata(path).with_context(|| path.display().to_string());
        Ok::<_, anyhow::Error>(metadata?.modified()?)
    };
    ensure!(
        time(&archive)? >= time(&program)?,
        "{} is older than {}",
        archive.display(),
        program.display()
    );
    Ok(archive)
}

/// One trial.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    needs: &'static [Need],
    run: fn(&Lab) -> Result<()>,
    /// Not beside another of its kind.
    alone: bool,
    source: Source,
    plugin: Plugin,
}

impl Case {
    /// A trial that is too heavy to run beside another such.
    pub const fn alone(
        name: &'static str,
        needs: &'static [Need],
        run: fn(&Lab) -> Result<()>,
    ) -> Case {
        Case {
            alone: true,
            ..Case::new(name, needs, run)
        }
    }

    /// A trial called `area::what_it_shows`.
    pub const fn new(
        name: &'static str,
        needs: &'static [Need],
        run: fn(&Lab) -> Result<()>,
    ) -> Case {
        Case {
            name,
            needs,
            run,
            alone: false,
            source: Source::Directory,
            plugin: Plugin::Own,
        }
    }

    /// The same body under another name, with the objects of its clusters at a real API server.
    pub const fn on_api(
        name: &'static str,
        needs: &'static [Need],
        run: fn(&Lab) -> Result<()>,
    ) -> Case {
        Case {
            source: Source::Api,
            ..Case::new(name, needs, run)
        }
    }

    /// The same body under another name, with pods made by the reference plugin `ptp` and agents that do nothing but
    /// policy.
    pub const fn beside_ptp(
        name: &'static str,
        needs: &'static [Need],
        run: fn(&Lab) -> Result<()>,
    ) -> Case {
        Case {
            plugin: Plugin::Ptp,
            ..Case::new(name, needs, run)
        }
    }
}

/// Whether somebody else is root here than the machine's own.
fn in_user_namespace() -> bool {
    let whole = |line: &str| line.split_whitespace().eq(["0", "0", "4294967295"]);
    !fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.lines().any(whole))
}

/// Whether a missing part is a failure.
pub fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// The trials for the runner.
pub fn trials(cases: Vec<Case>) -> Vec<Trial> {
    let trial = |case: Case| Trial::ignorable_test(case.name, move || run(case));
    cases.into_iter().map(trial).collect()
}

fn run(case: Case) -> Result<Completion, Failed> {
    for need in case.needs {
        let Some(missing) = need.missing() else {
            continue;
        };
        return match in_ci() && !need.is_of_kernel() {
            true => Err(missing.into()),
            false => Ok(Completion::ignored_with(missing)),
        };
    }
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = case
        .alone
        .then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut attempt = 1;
    loop {
        let drops = machine_drops();
        match attempt_at(case, attempt) {
            Ok(()) => return Ok(Completion::Completed),
            // What the kernel dropped for want of room between namespaces says nothing about what is tried.
            Err(failed) if attempt < ATTEMPTS && machine_drops() > drops => {
                eprintln!(
                    "{}: once more, this machine itself has dropped packets meanwhile:\n{failed}",
                    case.name
                );
                attempt += 1;
            }
            Err(failed) => return Err(failed.into()),
        }
    }
}

/// Attempts at a trial whose machine drops packets.
const ATTEMPTS: u32 = 3;

fn attempt_at(case: Case, attempt: u32) -> Result<(), String> {
    let name = match attempt {
        1 => case.name.replace("::", "_"),
        again => format!("{}_{again}", case.name.replace("::", "_")),
    };
    let lab = Lab::new(&name).map_err(|error| format!("{error:#}"))?;
    set_source(case.source);
    set_plugin(case.plugin);
    (case.run)(&lab).map_err(|error| format!("{error:#}\n{}", logs(&lab)))
}

/// The end of what each process of the lab has written.
fn logs(lab: &Lab) -> String {
    let mut files: Vec<_> = fs::read_dir(lab.directory())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    let part = |path: &std::path::PathBuf| {
        let text = fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        format!("---- {name}\n{}\n", tail_of(&text, 20))
    };
    files.iter().map(part).collect()
}
