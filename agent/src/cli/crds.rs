//! `selvage crds`: the CustomResourceDefinitions.

use std::path::PathBuf;

use super::{Failure, Outcome, say};
use crate::objects::crd;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Write one file each into this directory instead of printing
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Outcome {
    for file in crd::files().map_err(Failure::new)? {
        match &args.directory {
            Some(directory) => {
                std::fs::write(directory.join(file.name), &file.text).map_err(|error| {
                    Failure::new(format!("{}: {error}", directory.join(file.name).display()))
                })?
            }
            None => say(&format!("---\n{}", file.text))?,
        }
    }
    Ok(true)
}
