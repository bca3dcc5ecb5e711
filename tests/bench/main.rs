//! Figures beside those of other daemons, in the same run on the same machine.
//!
//! `selvage-bench b1 b3 b6 b7 b10 busy kubernetes` (or `all`), `--runs 3`, `--daemons selvage,bird,frr`. Runs of different daemons are interleaved;
//! each row shows minimum, median and maximum. The load generator is this program: one thread, sockets of its own.

mod busy;
mod cluster;
mod cni;
mod daemon;
mod enforcement;
mod fib;
mod packets;
mod report;
mod scale;
mod scrape;
mod storm;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use selvage_lab::{
    Lab,
    sandbox::{self, Place},
};

use daemon::Daemon;
use report::Report;
use selvage_tests::fleet;

/// Measures Selvage beside other daemons.
#[derive(Parser)]
struct Arguments {
    /// Which: b1 (join storm), b3 (full table), b6 (kernel routes), b7 (policy in a large cluster), b10 (CNI), busy (CNI
    /// beside other work of the agent and the kernel), kubernetes (a real cluster), or all.
    #[arg(default_value = "all")]
    benches: Vec<String>,
    /// Runs of each daemon.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The daemons to measure.
    #[arg(long, value_delimiter = ',', default_values = ["selvage", "bird", "frr"])]
    daemons: Vec<Daemon>,
    /// Numbers of clients of the join storm.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500])]
    clients: Vec<usize>,
    /// Routes of the full table.
    #[arg(long, default_value_t = 1_000_000)]
    routes: usize,
    /// Kernel routes.
    #[arg(long, default_value_t = 100_000)]
    fib: usize,
    /// Policies of the clusters of the policy bench; fifteen pods for each.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 10_000])]
    policies: Vec<u32>,
    /// Pods of the node of the policy bench.
    #[arg(long, default_value_t = 110)]
    local: usize,
    /// How often each change of the policy bench is made.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Pods of the CNI bench.
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// Flows in the table beside which pods are made; no more than net.netfilter.nf_conntrack_max.
    #[arg(long, default_value_t = 200_000)]
    flows: usize,
    /// Blocks of the policy that is compiled while pods are made.
    #[arg(long, default_value_t = 20_000)]
    blocks: usize,
    /// Pods of the bench on a real cluster.
    #[arg(long, default_value_t = 30)]
    cluster_pods: usize,
}

fn main() -> ExitCode {
    match sandbox::enter() {
        Ok(Place::Inside) => {}
        Ok(Place::Outside { code, .. }) => return code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All of them, in the order in which they run.
const BENCHES: [&str; 7] = ["b1", "b3", "b6", "b7", "b10", "busy", "kubernetes"];

fn run(arguments: &Arguments) -> Result<()> {
    fleet::raise_open_files();
    let lab = Lab::new("bench")?;
    let all = arguments.benches.iter().any(|b| b == "all");
    for bench in BENCHES {
        if !all && !arguments.benches.iter().any(|b| b == bench) {
            continue;
        }
        match bench {
            "b1" => {
                for clients in &arguments.clients {
                    let title = format!("B1 join storm, {clients} clients");
                    report(&title, arguments, |d, n| storm::run(&lab, d, *clients, n))?;
                }
            }
            "b3" => {
                let title = format!(
                    "B3 full table, 1 x {} routes to one receiver",
                    arguments.routes
                );
                report(&title, arguments, |d, n| {
                    table::run(&lab, d, arguments.routes, n)
                })?;
            }
            "b6" => {
                let title = format!("B6 kernel routes, {} routes", arguments.fib);
                report(&title, arguments, |d, n| {
                    fib::run(&lab, d, arguments.fib, n)
                })?;
            }
            "b7" => {
                for &policies in &arguments.policies {
                    let size = scale::Size {
                        pods: 15 * policies,
                        policies,
                    };
                    scale::run(&lab, size, arguments.local, arguments.changes)?;
                }
            }
            "b10" => cni::run(&lab, arguments.pods, arguments.runs)?,
            "busy" => {
                let Arguments {
                    pods,
                    flows,
                    blocks,
                    runs,
                    ..
                } = *arguments;
                busy::run(&lab, pods, flows, blocks, runs)?;
            }
            _ => cluster::run(&lab, arguments.cluster_pods, arguments.runs)?,
        }
    }
    if let Some(unknown) = arguments
        .benches
        .iter()
        .find(|b| *b != "all" && !BENCHES.contains(&b.as_str()))
    {
        bail!(
            "no bench {unknown:?}: there are {} and all",
            BENCHES.join(", ")
        );
    }
    Ok(())
}

/// Runs one bench for all daemons in turn, and prints a table. A daemon that fails has a row that says so.
fn report(
    title: &str,
    arguments: &Arguments,
    mut bench: impl FnMut(Daemon, usize) -> Result<report::Figures>,
) -> Result<()> {
    let mut report = Report::new(title);
    for run in 0..arguments.runs {
        for &daemon in &arguments.daemons {
            match bench(daemon, run) {
                Ok(figures) => report.add(&daemon.to_string(), figures),
                Err(error) => report.fail(&daemon.to_string(), &format!("{error:#}")),
            }
        }
    }
    print!("{report}");
    Ok(())
}
