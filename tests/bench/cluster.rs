//! On a real cluster: how long pods take to start with Selvage and with the reference plugins, and what an agent costs.
//!
//! One node of each in the same cluster, the same Deployment on one and then on the other, in turn.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::{AGNHOST, ClusterSettings, KubernetesCluster, PATIENCE};
use selvage_lab::{Lab, eventually_ok, programs, usage::status};

use crate::enforcement;
use crate::report::{Figures, Report};

/// The reference plugins, as Debian has them.
const PLUGINS: &str = "/usr/lib/cni";
/// How long the idle agent is watched.
const IDLE: Duration = Duration::from_secs(30);
/// How often a policy comes and goes.
const VERDICTS: usize = 20;
/// Clock ticks of `/proc/PID/stat` in a second.
const TICKS: f64 = 100.0;

/// Prints three tables.
///
/// # Errors
/// When a part does not come up.
pub(crate) fn run(lab: &Lab, pods: usize, runs: usize) -> Result<()> {
    let image: PathBuf = programs::find("selvage-image.tar").context("tests/image.sh makes it")?;
    let start = Instant::now();
    let cluster = start_cluster(lab, image)?;
    println!(
        "\ncluster with a node of each up after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let mut starts = Report::new(&format!("{pods} pods on a node of a real cluster"));
    let mut agents = Report::new("The agent of a node with those pods");
    let agent = agent_process(&cluster)?;
    let idle = usage(agent)?;
    std::thread::sleep(IDLE);
    agents.add("idle", figures(agent, idle, IDLE)?);
    for _ in 0..runs {
        for (node, name) in [("n1", "selvage"), ("n2", "ptp, host-local")] {
            let (before, start) = (usage(agent)?, Instant::now());
            starts.add(name, start_pods(&cluster, node, pods)?);
            if node == "n1" {
                agents.add("pods come and go", figures(agent, before, start.elapsed())?);
            }
        }
    }
    let verdicts = enforcement::run(&cluster, "n1", VERDICTS)?;
    print!("{starts}{agents}{verdicts}");
    Ok(())
}

fn start_cluster(lab: &Lab, image: PathBuf) -> Result<KubernetesCluster> {
    let mut settings = ClusterSettings::new(1);
    settings.images = vec![image];
    let selvage = vec![("cni".to_owned(), "selvage".to_owned())];
    settings.labels.insert("n1".to_owned(), selvage);
    let mut cluster = KubernetesCluster::start(lab, settings)?;
    cluster.install_selvage("overlays/mesh")?;
    let patch = r#"{"spec":{"template":{"spec":{"nodeSelector":{"cni":"selvage"}}}}}"#;
    cluster.kubectl().run(&[
        "-n",
        "selvage-system",
        "patch",
        "daemonset/selvage",
        "-p",
        patch,
    ])?;
    cluster.wait_selvage(PATIENCE)?;
    cluster.add_nodes(&["n2"])?;
    cluster.use_reference_plugins_on(Path::new(PLUGINS), &["n2"])?;
    cluster.wait_ready(PATIENCE)?;
    Ok(cluster)
}

/// A Deployment on one node, from its creation to the last pod that is ready; then it goes.
fn start_pods(cluster: &KubernetesCluster, node: &str, pods: usize) -> Result<Figures> {
    let object = format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: many, namespace: default}}, spec: {{
            replicas: {pods}, selector: {{matchLabels: {{app: many}}}}, template: {{
                metadata: {{labels: {{app: many}}}}, spec: {{
                    nodeName: {node}, terminationGracePeriodSeconds: 0,
                    containers: [{{name: pause, image: '{AGNHOST}', args: [pause]}}]}}}}}}}}"
    );
    let before = sandboxes(cluster, node)?;
    let start = Instant::now();
    cluster.kubectl().apply(&object)?;
    cluster.wait_rollout("default", "deployment/many", PATIENCE)?;
    let took = start.elapsed();
    let after = sandboxes(cluster, node)?;
    let start = Instant::now();
    cluster.kubectl().run(&["delete", "deployment", "many"])?;
    eventually_ok(PATIENCE, "all pods are gone", || {
        let left = cluster.pods(&["-l", "app=many"])?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })?;
    let (count, seconds) = (after.0 - before.0, after.1 - before.1);
    Ok(vec![
        ("all ready (s)", took.as_secs_f64()),
        ("RunPodSandbox, mean (ms)", seconds / count * 1e3),
        ("all gone (s)", start.elapsed().as_secs_f64()),
    ])
}

/// How many sandboxes the kubelet has had made, and how long that took: CNI's ADD is the part that differs.
fn sandboxes(cluster: &KubernetesCluster, node: &str) -> Result<(f64, f64)> {
    let path = format!("/api/v1/nodes/{node}/proxy/metrics");
    let text = cluster.kubectl().run(&["get", "--raw", &path])?;
    let value = |part: &str| {
        let name = format!(
            "kubelet_runtime_operations_duration_seconds_{part}{{operation_type=\"run_podsandbox\"}} "
        );
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(&name));
        // None yet.
        line.map_or(Ok(0.0), |value| value.trim().parse::<f64>())
    };
    Ok((value("count")?, value("sum")?))
}

fn agent_process(cluster: &KubernetesCluster) -> Result<u32> {
    let pod = cluster.agent_pod("n1")?;
    let processes = cluster.node("n1")?.pod_processes(&pod.uid, "selvage");
    processes.first().copied().context("no agent runs")
}

/// CPU-seconds of a process so far.
fn usage(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    let field = |at: usize| fields.split(' ').nth(at).context("short stat");
    let ticks = field(11)?.parse::<f64>()? + field(12)?.parse::<f64>()?;
    Ok(ticks / TICKS)
}

fn figures(pid: u32, before: f64, time: Duration) -> Result<Figures> {
    let megabytes = |field: &str| Ok::<_, anyhow::Error>(status(pid, field)? as f64 / 1024.0);
    let used = usage(pid)? - before;
    Ok(vec![
        ("CPU (ms a second)", used / time.as_secs_f64() * 1e3),
        ("RSS (MiB)", megabytes("VmRSS")?),
        ("anonymous (MiB)", megabytes("RssAnon")?),
    ])
}
