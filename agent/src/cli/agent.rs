//! `selvage agent`: settings and logging, then the daemon.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::{Agent, Failure, Outcome};
use crate::config::{AgentArgs, AgentConfig, LogFormat};

pub(super) fn run(args: AgentArgs, run_dir: Option<PathBuf>, agent: Agent) -> Outcome {
    let config = AgentConfig::load(args, run_dir)
        .map_err(|error| Failure::new(&error).hint(error.hint.clone()).usage())?;
    log(&config)?;
    // The static program's allocator asks for pages of 2 MB, and an idle agent would fill twenty megabytes of them with
    // nothing. Where the kernel refuses, it costs memory only.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    match agent(config) {
        Ok(()) => Ok(true),
        Err(error) => Err(Failure::new(format!("{error:#}"))),
    }
}

fn log(config: &AgentConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.log_level).map_err(|error| {
        let hint =
            "write error, warn, info, debug or trace, or a list as in `info,selvage::kernel=debug`";
        Failure::new(format!("`{}` is no log level: {error}", config.log_level))
            .hint(hint)
            .usage()
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let done = match config.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    done.map_err(Failure::new)
}
