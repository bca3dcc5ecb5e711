//! `selvage version`.

use serde::Serialize;

use super::{Outcome, OutputArgs, print};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

pub(super) fn run(args: &Args) -> Outcome {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
    };
    print(args.output.output, &version, |_| {
        format!("selvage {}\n", version.version)
    })?;
    Ok(true)
}
