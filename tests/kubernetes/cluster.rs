//! The lab's own cluster, with the reference plugins: what is tried on it says nothing about Selvage yet.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use selvage_lab::kubernetes::{
    AGNHOST, ClusterSettings, KubeProxy, KubernetesCluster, PATIENCE, Pod,
};
use selvage_lab::probe::Answer;
use selvage_lab::{Lab, eventually_ok};

use super::CLUSTER;
use crate::harness::Case;
use crate::scene::{SOON, attempt};

/// Where Debian has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

pub fn cases() -> Vec<Case> {
    vec![
        Case::alone("kubernetes::a_cluster_of_its_own", CLUSTER, nftables),
        Case::alone("kubernetes::kube_proxy_with_iptables", CLUSTER, iptables),
    ]
}

/// Where its pods listen; its service does on 80.
pub const PORT: u16 = 8080;

/// A Deployment of two, one on each node, and a service before it.
pub fn web() -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: default}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: web}}}}}}
      containers:
        - name: web
          image: {AGNHOST}
          args: [netexec, --http-port=8080]
          readinessProbe: {{httpGet: {{path: /hostname, port: 8080}}, periodSeconds: 1, timeoutSeconds: 5}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )
}

fn nftables(lab: &Lab) -> Result<()> {
    let mut cluster = start(lab, KubeProxy::Nftables)?;
    serves(&cluster)?;
    talks(&cluster)?;
    comes_and_goes(&mut cluster)
}

fn iptables(lab: &Lab) -> Result<()> {
    serves(&start(lab, KubeProxy::Iptables)?)
}

fn start(lab: &Lab, mode: KubeProxy) -> Result<KubernetesCluster> {
    let mut settings = ClusterSettings::new(2);
    settings.kube_proxy = Some(mode);
    let cluster = KubernetesCluster::start(lab, settings)?;
    cluster.use_reference_plugins(Path::new(PLUGINS))?;
    cluster.wait_ready(PATIENCE)?;
    cluster.kubectl().apply(&web())?;
    cluster.wait_rollout("default", "deployment/web", PATIENCE)?;
    Ok(cluster)
}

/// The two that are ready.
pub fn pods(cluster: &KubernetesCluster) -> Result<[Pod; 2]> {
    // On a busy machine a probe may come too late, and the next one in time.
    eventually_ok(SOON, "two pods are ready", || {
        let pods = cluster.pods(&["-l", "app=web"])?;
        let ready: Vec<Pod> = pods.into_iter().filter(|pod| pod.ready).collect();
        let ready = <[Pod; 2]>::try_from(ready);
        ready.map_err(|pods| anyhow!("not two pods: {pods:?}"))
    })
}

/// Pods reach each other, and the service, in both families.
pub fn serves(cluster: &KubernetesCluster) -> Result<()> {
    let [one, other] = pods(cluster)?;
    ensure!(one.node != other.node, "{one:?} {other:?}");
    let from = cluster.pod_netns(&one)?;
    let service = cluster.kubectl().json(&["get", "service", "web"])?;
    let service = service["spec"]["clusterIPs"]
        .as_array()
        .context("no addresses")?;
    let service = service
        .iter()
        .filter_map(|address| address.as_str()?.parse().ok());
    let pods = other
        .addresses
        .iter()
        .map(|address| SocketAddr::new(*address, PORT));
    let targets: Vec<SocketAddr> = service
        .map(|address| SocketAddr::new(address, 80))
        .chain(pods)
        .collect();
    ensure!(targets.len() == 4, "{targets:?}");
    for target in targets {
        eventually_ok(SOON, &format!("{} reaches {target}", one.name), || {
            let answer = attempt(&from, target.ip(), Some(target.port()))?;
            ensure!(answer == Answer::Yes, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What goes from the API server to kubelets.
fn talks(cluster: &KubernetesCluster) -> Result<()> {
    let [one, other] = pods(cluster)?;
    let target = format!("{}:8080", other.address(true)?);
    let connect = [
        "exec",
        &one.name,
        "--",
        "/agnhost",
        "connect",
        "--timeout=5s",
        &target,
    ];
    cluster.kubectl().run(&connect)?;
    let log = cluster.kubectl().run(&["logs", &one.name])?;
    ensure!(log.contains("8080"), "{log}");
    Ok(())
}

/// Nodes join, fail and leave.
fn comes_and_goes(cluster: &mut KubernetesCluster) -> Result<()> {
    cluster.add_nodes(&["n3"])?;
    cluster.use_reference_plugins(Path::new(PLUGINS))?;
    cluster.wait_ready(PATIENCE)?;
    cluster.kill_node("n3")?;
    cluster.remove_node("n3")?;
    ensure!(cluster.nodes().len() == 2);
    // Its files are in memory.
    let left = cluster.lab().directory().join("nodes/n3");
    ensure!(!left.exists(), "{} is left", left.display());
    Ok(())
}
