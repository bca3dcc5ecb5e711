//! `selvage lab`: another program, beside this one or in PATH.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{Failure, Outcome};

pub(super) fn run(args: &[OsString]) -> Outcome {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("selvage-lab")));
    let program = beside
        .filter(|path| path.is_file())
        .map_or_else(|| "selvage-lab".into(), OsString::from);
    let error = Command::new(&program).args(args).exec();
    Err(
        Failure::new(format!("cannot run {}: {error}", program.to_string_lossy()))
            .hint("build it with `make build`, or put selvage-lab into PATH"),
    )
}
