//! `selvage-lab`: networks of namespaces on one machine.

mod up;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use rustix::process::{Signal, set_parent_process_death_signal};
use selvage_lab::Cut;
use selvage_lab::image::Image;
use selvage_lab::sandbox::{self, Place};
use selvage_lab::topology::Topology;

/// Networks of namespaces on one machine; nothing outlives them.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Brings a topology up, checks it, and leaves a shell in it.
    Up {
        /// The topology file.
        file: PathBuf,
        /// End after the checks; the exit code is their result.
        #[arg(long)]
        check: bool,
        /// Plain text, as with NO_COLOR set.
        #[arg(long)]
        no_color: bool,
    },
    /// A real Kubernetes cluster: control plane, kubelets, containerd, in namespaces.
    Kubernetes {
        #[command(subcommand)]
        action: Kubernetes,
    },
    /// Runs a program in an empty sandbox: its own mounts, processes and network.
    Run {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Writes a container image: an archive that ctr, podman and docker import.
    Image(ImageArguments),
    /// In the shell of `up`: runs a command on a node, router or pod.
    On {
        /// Its name; a pod's is NAMESPACE/NAME.
        member: String,
        /// The command; a shell without one.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// In the shell of `up`: cuts a link.
    Cut {
        /// NETWORK/MEMBER.
        link: String,
        /// Frames vanish while the carrier stays.
        #[arg(long)]
        drop: bool,
    },
    /// In the shell of `up`: repairs a link.
    Repair {
        /// NETWORK/MEMBER.
        link: String,
    },
}

/// The same files give the same archive, byte for byte.
#[derive(clap::Args)]
struct ImageArguments {
    /// What it is called: NAME:TAG.
    #[arg(long)]
    name: String,
    /// The archive.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// A static program.
    #[arg(long = "program", value_name = "PATH=FILE")]
    programs: Vec<String>,
    /// A file of any kind.
    #[arg(long = "add", value_name = "PATH=FILE")]
    files: Vec<String>,
    /// What a container runs; repeat it for arguments.
    #[arg(long, value_name = "PATH")]
    entrypoint: Vec<String>,
    /// As in `org.opencontainers.image.version=0.1.0`.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Programs may be dynamic: their loader and libraries are taken from this machine. For tests.
    #[arg(long)]
    libraries: bool,
    /// The layer is not compressed: quicker to write and to import.
    #[arg(long)]
    plain: bool,
    /// When everything in it was made: seconds since 1970.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "SOURCE_DATE_EPOCH",
        default_value_t = 0
    )]
    epoch: u64,
}

#[derive(Subcommand)]
enum Kubernetes {
    /// Brings a cluster up, and leaves it until Ctrl-C.
    Up(up::kubernetes::Up),
    /// Brings a cluster up for one program, whose exit code is the result.
    Run(up::kubernetes::Run),
    /// Brings a cluster up and runs upstream's suite against it.
    Conformance(up::conformance::Conformance),
    /// What `up` runs in a sandbox.
    #[command(hide = true)]
    Inside(up::kubernetes::Inside),
}

fn main() -> ExitCode {
    act(&Arguments::parse().action).unwrap_or_else(|error| {
        eprintln!("selvage-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn act(action: &Action) -> Result<ExitCode> {
    match action {
        Action::Up {
            file,
            check,
            no_color,
        } => {
            // A mistake in the file is worth saying before anything is made.
            Topology::read(file)?;
            inside(|| up::up(file, *check, *no_color))
        }
        Action::Kubernetes { action } => match action {
            Kubernetes::Up(arguments) => up::kubernetes::up(arguments),
            Kubernetes::Conformance(arguments) => {
                inside(|| up::conformance::conformance(arguments))
            }
            Kubernetes::Run(arguments) => inside(|| up::kubernetes::run(arguments)),
            Kubernetes::Inside(arguments) => {
                // Not without the process that passes connections on to it.
                set_parent_process_death_signal(Some(Signal::TERM))?;
                inside(|| up::kubernetes::inside(arguments))
            }
        },
        Action::Run { command } => inside(|| run(command)),
        Action::Image(arguments) => image(arguments),
        Action::On { member, command } => up::on(member, command),
        Action::Cut { link, drop } => up::cut(link, if *drop { Cut::Drop } else { Cut::Carrier }),
        Action::Repair { link } => up::repair(link),
    }
}

/// Does `work` as the first process of a sandbox.
fn inside(work: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    match sandbox::enter()? {
        Place::Inside => work(),
        Place::Outside { code, interrupted } => {
            if interrupted {
                eprintln!("\nselvage-lab: interrupted; everything is removed");
            }
            Ok(code)
        }
    }
}

fn image(arguments: &ImageArguments) -> Result<ExitCode> {
    let mut image = Image::new(&arguments.name)?;
    image.epoch = arguments.epoch;
    image.compressed = !arguments.plain;
    image.entrypoint.clone_from(&arguments.entrypoint);
    for label in &arguments.labels {
        let (key, value) = pair(label)?;
        image.labels.insert(key.to_owned(), value.to_owned());
    }
    for program in &arguments.programs {
        let (path, file) = pair(program)?;
        match arguments.libraries {
            true => image.add_with_libraries(path, Path::new(file))?,
            false => image.add_static(path, Path::new(file))?,
        }
    }
    for file in &arguments.files {
        let (path, file) = pair(file)?;
        image.add(path, Path::new(file))?;
    }
    let written = image.write(&arguments.output)?;
    let megabytes = written.size as f64 / 1e6;
    println!(
        "{}: {} {} ({megabytes:.1} MB)",
        arguments.output.display(),
        arguments.name,
        written.digest
    );
    Ok(ExitCode::SUCCESS)
}

fn pair(text: &str) -> Result<(&str, &str)> {
    text.split_once('=')
        .with_context(|| format!("{text:?} has no `=`"))
}

fn run(command: &[String]) -> Result<ExitCode> {
    let (program, rest) = command.split_first().context("no program")?;
    let status = Command::new(program)
        .args(rest)
        .status()
        .with_context(|| program.clone())?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}
