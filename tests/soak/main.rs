//! `selvage-soak`: a day of a cluster in fast motion, as long as it is told to. `make soak` runs it for an hour.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use selvage_lab::Lab;
use selvage_lab::sandbox::{self, Place};
use selvage_tests::fleet;
use selvage_tests::soak::{self, Plan};

/// Nodes, neighbours, pods, policies and links come and go; a naive model says what each side must hold.
#[derive(Parser)]
struct Arguments {
    /// How long steps are taken, in minutes
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Repeats the steps of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Light speakers of the reflector
    #[arg(long)]
    clients: Option<usize>,
    /// Nothing happens now and then for so many seconds
    #[arg(long)]
    linger: Option<u64>,
    /// Small worlds: a minute of steps says something
    #[arg(long)]
    short: bool,
    /// Only the reflector's world
    #[arg(long, conflicts_with = "nodes")]
    reflector: bool,
    /// Only the nodes' world
    #[arg(long)]
    nodes: bool,
    /// Prints each step
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    match sandbox::enter() {
        Ok(Place::Inside) => {}
        Ok(Place::Outside { code, .. }) => return code,
        Err(error) => {
            eprintln!("soak: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    fleet::raise_open_files();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = arguments.seed.unwrap_or(now);
    let time = Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut plan = match arguments.short {
        true => Plan {
            time,
            ..Plan::short(seed)
        },
        false => Plan::long(seed, time),
    };
    plan.clients = arguments.clients.unwrap_or(plan.clients);
    plan.linger = arguments.linger.map_or(plan.linger, Duration::from_secs);
    plan.worlds = (!arguments.nodes, !arguments.reflector);
    plan.loud = arguments.verbose;
    println!("seed {seed}, {} minutes of steps", arguments.minutes);
    let words: Vec<String> = std::env::args().skip(1).collect();
    let again = match arguments.seed {
        Some(_) => words.join(" "),
        None => format!("{} --seed {seed}", words.join(" ")),
    };
    let reports = soak::run(&Lab::new("soak")?, &plan);
    let reports = reports.with_context(|| format!("to repeat it: selvage-soak {again}"))?;
    for report in reports {
        print!("{report}");
    }
    println!("no difference");
    Ok(())
}
