//! Where the project's own programs are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::daemon::find_program;

/// Names the directory with the programs, for a build that put them elsewhere.
pub const DIRECTORY: &str = "SELVAGE_BIN_DIR";

/// Finds `selvage`, `selvage-cni` or `selvage-lab`: in `SELVAGE_BIN_DIR`, beside the running program (or, for a test,
/// in the target folder that it was built into), in `PATH`.
///
/// # Errors
/// When it is nowhere; the message says how to build it.
pub fn find(name: &str) -> Result<PathBuf> {
    if let Some(directory) = env::var_os(DIRECTORY) {
        let file = Path::new(&directory).join(name);
        if file.is_file() {
            return Ok(file);
        }
        bail!("no {name} in {DIRECTORY}={}", directory.to_string_lossy());
    }
    let own = env::current_exe()?;
    let directory = own.parent().unwrap_or(Path::new("/"));
    let built_into = if directory.ends_with("deps") {
        directory.parent().unwrap_or(directory)
    } else {
        directory
    };
    let beside = built_into.join(name);
    if beside.is_file() {
        return Ok(beside);
    }
    match find_program(name) {
        Some(file) => Ok(file),
        None => bail!(
            "no {} (build it: {})",
            beside.display(),
            build_command(name, built_into)
        ),
    }
}

/// How to get `name` into this folder of the target directory.
fn build_command(name: &str, built_into: &Path) -> String {
    let profile = built_into
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("debug");
    match profile {
        "debug" => format!("cargo build -p {name}"),
        other => format!("cargo build --profile {other} -p {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_how_to_build_it() {
        assert_eq!(
            build_command("selvage-cni", Path::new("/t/debug")),
            "cargo build -p selvage-cni"
        );
        assert_eq!(
            build_command("selvage", Path::new("/t/ci")),
            "cargo build --profile ci -p selvage"
        );
        let error = find("selvage-nothing").expect_err("not there");
        assert!(error.to_string().contains("cargo build"), "{error}");
    }
}
