//! The system trials, in one binary: it enters the sandbox first, then runs them side by side.
//!
//! `cargo test -p selvage-tests --test system` runs all of them, `… -- interop` those with that in their
//! name, `… -- --list` lists them. Each has a lab of its own, so their order and number at a time do not matter.

use std::process::ExitCode;

use libtest_mimic::Arguments;
use selvage_lab::sandbox::{self, Place};

mod conformance;
mod e2e;
/// The API server that the agent's own tests play.
#[path = "../agent/tests/it/api/fake.rs"]
#[allow(dead_code, reason = "the trials use a part of it")]
mod fake_api;
mod faults;
mod harness;
mod interop;
mod kubernetes;
mod scene;
#[path = "soak/trial.rs"]
mod soak;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, harness::trials(all())).exit_code();
    }
    match sandbox::enter() {
        Ok(Place::Inside) => {}
        Ok(Place::Outside { code, .. }) => return code,
        Err(error) => {
            eprintln!("system: {error:#}");
            return if harness::in_ci() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    }
    // Most of a trial is waiting for others.
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    arguments.test_threads.get_or_insert(2 * cores);
    libtest_mimic::run(&arguments, harness::trials(all())).exit_code()
}

fn all() -> Vec<harness::Case> {
    [
        e2e::cases(),
        interop::cases(),
        faults::cases(),
        conformance::cases(),
        kubernetes::cases(),
        soak::cases(),
    ]
    .concat()
}
