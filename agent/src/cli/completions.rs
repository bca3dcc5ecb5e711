//! `selvage completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome, say};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "selvage", &mut script);
    say(&String::from_utf8_lossy(&script))?;
    Ok(true)
}
