//! The CNI plugin of Selvage: run by a container runtime, once for each call.

use std::io::{stdin, stdout};
use std::process::ExitCode;

use selvage_cni::handover::Budget;
use selvage_cni::plugin;
use selvage_cni::spec::Environment;

fn main() -> ExitCode {
    ExitCode::from(plugin::run(
        &Environment::of_process(),
        &mut stdin().lock(),
        &mut stdout().lock(),
        &Budget::default(),
    ))
}
