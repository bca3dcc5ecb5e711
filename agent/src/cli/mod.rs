//! The command line: one file per command. Talks to the daemon through its socket only.
//!
//! Exit codes: 0 done, 1 the answer is no or it failed, 2 wrong usage.

mod agent;
mod check;
mod cleanup;
mod completions;
mod crds;
mod install;
mod lab;
mod objects;
mod peers;
mod routes;
pub mod screen;
mod status;
mod version;
mod wait;
mod why;

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::config::{AgentArgs, AgentConfig};
use crate::control::client::{Client, ClientError};
pub use check::render as check_text;
pub use peers::{detail as peer_text, table as peers_text};
pub use routes::{sort as sort_routes, table as routes_text};
use screen::Screen;
pub use status::render as status_text;
pub use wait::render as wait_text;
pub use why::render as why_text;

/// Runs the daemon until it is told to stop.
pub type Agent = fn(AgentConfig) -> anyhow::Result<()>;

/// Pod networking and BGP for one node.
#[derive(Parser, Debug)]
#[command(
    name = "selvage",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// The daemon's run directory [default: /run/selvage]
    #[arg(long, global = true, value_name = "DIR", env = "SELVAGE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon
    Agent(Box<AgentArgs>),
    /// Health, sessions, routes, policy, and what is wrong
    Status(status::Args),
    /// BGP neighbours
    Peers(peers::Args),
    /// Routes as BGP and the kernel have them
    Routes(routes::Args),
    /// May this flow pass, and which policy says so?
    Why(why::Args),
    /// What is to be said about the objects
    Objects(objects::Args),
    /// Wait until something is true
    Wait(wait::Args),
    /// Validate objects in files, without a daemon
    Check(check::Args),
    /// Network namespaces to try things in (runs selvage-lab)
    #[command(disable_help_flag = true)]
    Lab {
        /// Passed on to selvage-lab
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Make this machine ready for an agent: the plugin, sysctls, a look at the kernel
    Install(install::Args),
    /// Remove every trace of Selvage from this network namespace and this machine
    Cleanup(cleanup::Args),
    /// Print the version
    Version(version::Args),
    /// Print a script for a shell's completion
    Completions(completions::Args),
    /// Print or write the CustomResourceDefinitions
    #[command(hide = true)]
    Crds(crds::Args),
}

/// In which form to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For programs and people
    Yaml,
}

/// The flag that every command with an answer has.
#[derive(clap::Args, Clone, Copy, Debug)]
struct OutputArgs {
    /// In which form to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

/// Whether the answer was yes.
type Outcome = Result<bool, Failure>;

impl Failure {
    fn new(message: impl std::fmt::Display) -> Self {
        Failure {
            message: message.to_string(),
            hint: None,
            code: 1,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn usage(mut self) -> Self {
        self.code = 2;
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure {
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
            code: 1,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::new(error)
    }
}

/// The program. `agent` is what `selvage agent` runs.
pub fn main(agent: Agent) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(cli, agent) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            let screen = Screen::of(&io::stderr());
            let mut text = format!("{} {}\n", screen.bad("error:"), failure.message);
            if let Some(hint) = failure.hint {
                text.push_str(&format!("{} {hint}\n", screen.dim("hint:")));
            }
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli, agent: Agent) -> Outcome {
    let client = || {
        Client::new(
            cli.run_dir
                .as_deref()
                .unwrap_or(selvage_cni::link::DEFAULT_RUN_DIR.as_ref()),
        )
    };
    match cli.command {
        Command::Agent(args) => agent::run(*args, cli.run_dir, agent),
        Command::Status(args) => ask(status::run(&client(), &args)),
        Command::Peers(args) => ask(peers::run(&client(), &args)),
        Command::Routes(args) => ask(routes::run(&client(), &args)),
        Command::Why(args) => ask(why::run(&client(), &args)),
        Command::Objects(args) => ask(objects::run(&client(), &args)),
        Command::Wait(args) => ask(wait::run(&client(), &args)),
        Command::Check(args) => check::run(&args),
        Command::Lab { args } => lab::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Cleanup(args) => cleanup::run(&args, cli.run_dir),
        Command::Version(args) => version::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Crds(args) => crds::run(&args),
    }
}

fn ask(question: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(question)
}

/// Prints an answer: `text` for people, the value itself for programs.
fn print(
    output: Output,
    value: &impl Serialize,
    text: impl FnOnce(&Screen) -> String,
) -> Result<(), Failure> {
    let text = match output {
        Output::Text => text(&Screen::of(&io::stdout())),
        Output::Json => serde_json::to_string_pretty(value).map_err(Failure::new)? + "\n",
        Output::Yaml => serde_saphyr::to_string(value).map_err(Failure::new)?,
    };
    say(&text)
}

/// Writes to the standard output; a reader that went away is no failure.
fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
