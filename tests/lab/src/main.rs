//! `selvage-lab`: networks of namespaces on one machine.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use selvage_lab::sandbox::{self, Place};

/// Networks of namespaces on one machine; nothing outlives them.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Runs a program in an empty sandbox: its own mounts, processes and network.
    Run {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = sandbox::enter().and_then(|place| match place {
        Place::Outside(code) => Ok(code),
        Place::Inside => run(arguments),
    });
    done.unwrap_or_else(|error| {
        eprintln!("selvage-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.action {
        Action::Run { command } => {
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
    }
}
