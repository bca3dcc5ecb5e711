//! `selvage-lab`: networks of namespaces on one machine.

mod up;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use selvage_lab::Cut;
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
    /// Runs a program in an empty sandbox: its own mounts, processes and network.
    Run {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
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
        Action::Run { command } => inside(|| run(command)),
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
