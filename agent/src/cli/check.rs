//! `selvage check`: objects in files, without a daemon.

use std::fmt::Write;
use std::path::PathBuf;

use super::screen::Screen;
use super::{Failure, Outcome, OutputArgs, print};
use crate::api::ProblemView;
use crate::control::views;
use crate::source::directory::Directory;
use crate::source::{ObjectEvent, watch};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Files or directories
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut directory = Directory::default();
    for path in &args.files {
        watch::stage_all(&mut directory, path)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    }
    let mut problems: Vec<ProblemView> = directory
        .settle()
        .iter()
        .filter_map(|event| match event {
            ObjectEvent::Invalid(problem) => Some(views::problem(problem)),
            _ => None,
        })
        .collect();
    problems.extend(directory.not_enforced().map(views::not_enforced));
    let files = directory.paths().count();
    print(args.output.output, &problems, |screen| {
        render(screen, &problems, files, directory.len())
    })?;
    Ok(problems.is_empty())
}

/// `file:line:column: object: field: reason`, the hint below it, and a sum.
pub fn render(screen: &Screen, problems: &[ProblemView], files: usize, objects: usize) -> String {
    let mut text = String::new();
    for problem in problems {
        let object = if problem.object.is_empty() {
            String::new()
        } else {
            format!("{}: ", problem.object)
        };
        let path = if problem.path.is_empty() {
            String::new()
        } else {
            format!("{}: ", screen.bold(&problem.path))
        };
        let _ = writeln!(
            text,
            "{}: {object}{path}{}",
            problem.at,
            screen.bad(&problem.reason)
        );
        if let Some(hint) = &problem.hint {
            let _ = writeln!(text, "  {} {hint}", screen.dim("hint:"));
        }
    }
    let plural = |number: usize, noun: &str| {
        format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
    };
    let sum = match problems.len() {
        0 => screen.good("no problems"),
        number => screen.bad(&plural(number, "problem")),
    };
    let _ = writeln!(
        text,
        "{} in {}: {sum}",
        plural(objects, "object"),
        plural(files, "file")
    );
    text
}
