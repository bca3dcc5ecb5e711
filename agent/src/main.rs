//! The Selvage node daemon and its command line.

use std::process::ExitCode;

// The static program of the image: musl's own allocator is nine times slower.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    selvage::cli::main(selvage::run::agent)
}
