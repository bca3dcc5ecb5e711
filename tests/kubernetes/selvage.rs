//! Selvage on a cluster as its users have it: nothing but the image and the manifests.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use selvage_lab::daemon::Kind;
use selvage_lab::kubernetes::{KubernetesCluster, PATIENCE, Pod, manifests};
use selvage_lab::probe::Answer;
use selvage_lab::{Lab, eventually_ok, programs};

use super::cluster::{PORT, pods, serves, web};
use super::{SELVAGE, install};
use crate::harness::{Case, Need, image};
use crate::scene::{SOON, attempt};

pub fn cases() -> Vec<Case> {
    vec![
        Case::alone(
            "kubernetes::nodes_become_ready_through_selvage",
            SELVAGE,
            ready,
        ),
        Case::alone("kubernetes::the_demo_checks_itself", DEMO, demo),
    ]
}

/// The demo has a router, too.
const DEMO: &[Need] = &[
    Need::Cluster,
    Need::Image,
    Need::Own("selvage-lab"),
    Need::Daemon(Kind::Bird),
    Need::System("openssl", "openssl"),
    Need::System("runc", "runc"),
    Need::System("nft", "nftables"),
];

/// As `make demo-kubernetes` has it, without asking anything.
fn demo(lab: &Lab) -> Result<()> {
    let mut command = Command::new(programs::find("selvage-lab")?);
    command
        .args(["kubernetes", "up", "--check", "--nodes=3", "--router=65001"])
        .arg("--image")
        .arg(image()?)
        .arg("--manifests")
        .arg(manifests("overlays/mesh"))
        .arg("--tour")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/lab/demo-kubernetes"));
    let mut process = lab.spawn(&lab.netns("host")?, "demo", command)?;
    let status = process.wait_end(3 * PATIENCE)?;
    let said = process.output();
    ensure!(status.success(), "ended with {status}:\n{said}");
    ensure!(said.contains("all as expected"), "{said}");
    Ok(())
}

fn ready(lab: &Lab) -> Result<()> {
    let cluster = install::cluster(lab, |_| {})?;
    cluster.install_selvage("overlays/mesh")?;
    cluster.kubectl().apply(&web())?;
    cluster.wait_rollout("default", "deployment/web", PATIENCE)?;
    serves(&cluster)?;
    let pods = pods(&cluster)?;
    for pod in &pods {
        let node = pod.node.as_deref().context("no node")?;
        let ranges = cluster.pod_cidrs(node)?;
        ensure!(pod.addresses.len() == 2, "{pod:?}");
        for address in &pod.addresses {
            ensure!(
                ranges.iter().any(|range| range.contains(address)),
                "{pod:?} {ranges:?}"
            );
        }
    }
    policy(&cluster, &pods)
}

/// A default-deny policy, then a rule, hold both ways.
fn policy(cluster: &KubernetesCluster, [one, other]: &[Pod; 2]) -> Result<()> {
    let from = cluster.pod_netns(one)?;
    let expect = |wanted: Answer| {
        for address in &other.addresses {
            let target = SocketAddr::new(*address, PORT);
            eventually_ok(
                SOON,
                &format!("{} to {target}: {wanted:?}", one.name),
                || {
                    let answer = attempt(&from, target.ip(), Some(target.port()))?;
                    ensure!(answer == wanted, "{answer:?}");
                    Ok(())
                },
            )?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let deny = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
        metadata: {name: deny, namespace: default}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}";
    cluster.kubectl().apply(deny)?;
    expect(Answer::Silence)?;
    let allow = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
        metadata: {name: allow, namespace: default}, spec: {podSelector: {matchLabels: {app: web}}, \
        policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}}";
    cluster.kubectl().apply(allow)?;
    expect(Answer::Yes)?;
    cluster
        .kubectl()
        .run(&["delete", "networkpolicy", "allow"])?;
    expect(Answer::Silence)?;
    // Its own node reaches a pod whatever policies say, or its probes would fail.
    cluster.wait_rollout("default", "deployment/web", PATIENCE)
}
