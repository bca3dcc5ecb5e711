//! `selvage-lab up`: brings a topology up, shows it, checks it, and leaves a shell in it.

pub mod conformance;
mod guide;
pub mod kubernetes;
mod outside;
mod picture;
mod shell;
mod terminal;
mod tour;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use selvage_lab::cluster::RunningRouter;
use selvage_lab::topology::{self, Topology};
use selvage_lab::{Cluster, Lab};

pub use shell::{cut, on, repair};
use terminal::Terminal;

/// How long an agent may take to be ready: it waits twenty seconds for its peers itself.
const READY: Duration = Duration::from_secs(40);

/// How long sessions may take to come up.
const SESSIONS: Duration = Duration::from_secs(15);

/// Brings up `file`; `check_only` ends after the checks.
///
/// # Errors
/// When a part does not come up. A check that fails is an exit code.
pub fn up(file: &Path, check_only: bool, no_color: bool) -> Result<ExitCode> {
    let terminal = Terminal::new(no_color);
    let start = Instant::now();
    let topology = Topology::read(file)?;
    terminal.title(&topology.description, &file.display().to_string());
    let lab = Lab::new("demo")?;
    let mut cluster = bring_up(&terminal, &lab, topology)?;
    terminal.done(&format!("up after {}", terminal::seconds(start.elapsed())));

    picture::show(&terminal, &cluster);
    let guide = guide::Guide {
        terminal: &terminal,
    };
    let passed = guide.run(&mut cluster)?;
    match passed {
        true => terminal.done(&format!(
            "all checks passed, {} in all",
            terminal::seconds(start.elapsed())
        )),
        false => terminal.failed("some checks failed"),
    }
    if check_only {
        return Ok(if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    shell::describe(&mut cluster)?;
    shell::look_around(&terminal, &cluster, std::io::stdin().is_terminal())?;
    terminal.line("everything is removed");
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn bring_up(terminal: &Terminal, lab: &Lab, topology: Topology) -> Result<Cluster> {
    terminal.section("coming up");
    let networks: Vec<String> = topology
        .networks
        .iter()
        .map(|network| network.name.value.clone())
        .collect();
    let mut cluster = terminal.step(&format!("network {}", networks.join(", ")), || {
        let cluster = Cluster::new(lab, topology)?;
        let count = cluster.links().len();
        Ok((cluster, format!("{count} links")))
    })?;
    let routers = cluster.topology().routers.clone();
    for router in &routers {
        let name = &router.name.value;
        terminal.step(&format!("router {name}"), || {
            cluster.start_router(name)?;
            let what = match cluster.router(name)? {
                RunningRouter::Other(router) => router.kind().to_string(),
                RunningRouter::Own(_) => "Selvage".to_owned(),
            };
            Ok(((), format!("{what}, AS {}", router.asn)))
        })?;
    }
    let nodes = cluster.topology().nodes.clone();
    nodes
        .iter()
        .try_for_each(|node| cluster.start_node(&node.name.value))?;
    for node in &nodes {
        let name = &node.name.value;
        terminal.step(&format!("node {name}"), || {
            cluster.node(name)?.agent.wait_ready(READY)?;
            Ok((
                (),
                format!("AS {}, {}", cluster.asn(), join(&node.pod_cidrs)),
            ))
        })?;
    }
    terminal.step("BGP sessions", || {
        // What is configured and does not come up is shown, not waited for: it may be meant so.
        let _ = selvage_lab::eventually(SESSIONS, "all sessions are up", || {
            cluster.sessions().is_ok_and(|(up, all)| up == all)
        });
        let (up, all) = cluster.sessions()?;
        Ok(((), format!("{up} of {all} established")))
    })?;
    for pod in cluster
        .topology()
        .pods
        .iter()
        .map(topology::Pod::key)
        .collect::<Vec<_>>()
    {
        terminal.step(&format!("pod {pod}"), || {
            let serving = cluster.start_pod(&pod)?;
            Ok((
                (),
                format!(
                    "on {}, {}",
                    serving.running.pod.node.value,
                    join(&serving.running.addresses)
                ),
            ))
        })?;
    }
    Ok(cluster)
}

fn join<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}
