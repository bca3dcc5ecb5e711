//! `selvage-lab kubernetes conformance`: upstream's own suite against a cluster, and what came of it as a page.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use ipnet::IpNet;
use selvage_lab::Lab;
use selvage_lab::kubernetes::KubernetesCluster;
use serde::Deserialize;

use super::kubernetes::{Wanted, bring_up};
use super::terminal::{Terminal, seconds};

/// What to run, and against what.
#[derive(Args, Clone, Debug)]
pub struct Conformance {
    #[command(flatten)]
    wanted: Wanted,
    /// The specs to run: a regular expression.
    #[arg(long, default_value = r"\[sig-network\] Netpol", value_name = "REGEX")]
    focus: String,
    /// The specs to leave out: a regular expression. Not every kernel has sockets of SCTP.
    #[arg(long, default_value = "using SCTP", value_name = "REGEX")]
    skip: String,
    /// Where a summary is written, as Markdown.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

/// A run of the suite, as Ginkgo reports it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<Spec>>,
}

/// What came of one spec.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    run_time: u64,
    failure: Option<Failure>,
}

impl Spec {
    fn name(&self) -> String {
        let mut names = self.container_hierarchy_texts.clone().unwrap_or_default();
        names.push(self.leaf_node_text.clone());
        names.join(" ")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

/// In the sandbox: brings a cluster up and runs the suite.
///
/// # Errors
/// When the cluster does not come up, or the suite leaves no report. A spec that fails is an exit code.
pub fn conformance(conformance: &Conformance) -> Result<ExitCode> {
    conformance.wanted.check()?;
    let terminal = Terminal::new(conformance.wanted.no_color);
    let lab = Lab::new("kubernetes")?;
    let cluster = bring_up(&terminal, &lab, &conformance.wanted)?;
    let report = lab.directory().join("report.json");
    run(&cluster, conformance, &report)?;
    let specs = read(&report)?;
    let passed = specs.iter().filter(|spec| spec.state == "passed").count();
    let text = summary(&cluster, conformance, &specs);
    match &conformance.summary {
        Some(file) => fs::write(file, text).with_context(|| file.display().to_string())?,
        None => terminal.line(&text),
    }
    Ok(match passed == specs.len() && passed > 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs the suite; how it ends is in the report.
fn run(cluster: &KubernetesCluster, conformance: &Conformance, report: &Path) -> Result<()> {
    let mut command = cluster
        .programs()
        .command("e2e.test")
        .context("it comes with: tests/cluster/build.sh conformance")?;
    command
        .args(["--provider=skeleton", "--ginkgo.no-color", "--ginkgo.v"])
        .arg(format!("--num-nodes={}", cluster.nodes().len()))
        .arg(format!(
            "--kubeconfig={}",
            cluster.kubectl().kubeconfig().display()
        ))
        .arg(format!("--ginkgo.focus={}", conformance.focus))
        .arg(format!("--ginkgo.skip={}", conformance.skip))
        .arg(format!("--ginkgo.json-report={}", report.display()));
    let run = |command: &mut Command| command.status().context("cannot start e2e.test");
    cluster.control().netns().run(|| run(&mut command))?;
    Ok(())
}

/// The specs that ran.
fn read(report: &Path) -> Result<Vec<Spec>> {
    let text = fs::read(report).context("the suite has left no report")?;
    let reports: Vec<Report> = serde_json::from_slice(&text).context("the report")?;
    let specs = reports
        .into_iter()
        .flat_map(|report| report.spec_reports.unwrap_or_default());
    let ran = |spec: &Spec| {
        spec.leaf_node_type == "It" && spec.state != "skipped" && spec.state != "pending"
    };
    let mut specs: Vec<Spec> = specs.filter(ran).collect();
    // They run in an order of chance.
    specs.sort_by_key(Spec::name);
    ensure!(!specs.is_empty(), "no spec has run");
    Ok(specs)
}

fn summary(cluster: &KubernetesCluster, conformance: &Conformance, specs: &[Spec]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for spec in specs {
        *counts.entry(&spec.state).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let total: u64 = specs.iter().map(|spec| spec.run_time).sum();
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "# Upstream's NetworkPolicy suite over {}\n\n\
         Written by `make conformance`: the `e2e.test` of Kubernetes {}, on a cluster of namespaces with nothing but Selvage's \
         image and manifests, kernel {}. The specs that are left out want sockets of SCTP. Five would pass with no \
         policy in force at all.\n",
        family(cluster),
        version(cluster),
        kernel()
    );
    let _ = writeln!(
        text,
        "**{}** of {} specs in {}: focus `{}`, skip `{}`, {} nodes.\n",
        counts.join(", "),
        specs.len(),
        seconds(Duration::from_nanos(total)),
        conformance.focus,
        conformance.skip,
        cluster.nodes().len()
    );
    let _ = writeln!(text, "| spec | result | time |\n|---|---|---|");
    for spec in specs {
        let failure = spec
            .failure
            .as_ref()
            .and_then(|failure| failure.message.lines().next());
        let _ = writeln!(
            text,
            "| {} | {}{} | {} |",
            spec.name().replace('|', "\\|"),
            spec.state,
            failure
                .map(|failure| format!(": {failure}"))
                .unwrap_or_default(),
            seconds(Duration::from_nanos(spec.run_time))
        );
    }
    text
}

/// What the suite takes where there are two.
fn family(cluster: &KubernetesCluster) -> &'static str {
    match cluster.settings().control.service_cidrs.first() {
        Some(IpNet::V6(_)) => "IPv6",
        _ => "IPv4",
    }
}

/// What the API server says it is.
fn version(cluster: &KubernetesCluster) -> String {
    let version = cluster.kubectl().json(&["version"]);
    let text = version.ok().and_then(|version| {
        let text = version["serverVersion"]["gitVersion"].as_str()?;
        Some(text.to_owned())
    });
    text.unwrap_or_else(|| "of an unknown version".to_owned())
}

/// Major and minor; what else is in it is of no interest.
fn kernel() -> String {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}
