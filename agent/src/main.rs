//! The Selvage node daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    selvage::cli::main(selvage::run::agent)
}
