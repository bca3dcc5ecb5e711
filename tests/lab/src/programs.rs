//! Where the project's own programs are, and those that it is measured beside.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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

/// The script that builds programs of others from their Go modules.
pub(crate) const BUILD_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/build.sh");

/// The folder with the reference CNI plugins (`ptp`, `host-local`, `portmap`, `bandwidth`) of the version in
/// `tests/cluster/plugins/go.mod`. They are built where they are not there, which needs the network.
///
/// # Errors
/// When they are not there and cannot be built; the message is that of the build.
pub fn reference_plugins() -> Result<PathBuf> {
    build_script("plugins")
}

/// The folder that the build script prints for `scope`.
pub(crate) fn build_script(scope: &str) -> Result<PathBuf> {
    let output = Command::new(BUILD_SCRIPT)
        .arg(scope)
        .output()
        .with_context(|| format!("cannot run {BUILD_SCRIPT}"))?;
    ensure!(
        output.status.success(),
        "{BUILD_SCRIPT} {scope}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
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
