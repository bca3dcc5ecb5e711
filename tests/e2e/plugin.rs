//! The plugin without an agent: pods of one node, as a runtime makes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use selvage_lab::kubelet::{Kubelet, RunningPod};
use selvage_lab::objects::Objects;
use selvage_lab::probe::Answer;
use selvage_lab::probe::ping::ping;
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::tcp;
use selvage_lab::topology::Topology;
use selvage_lab::{Lab, Netns};
use serde_json::json;

use crate::harness::{Case, Need};
use crate::scene::{SOON, prefix};

const CNI: &[Need] = &[Need::Own("selvage-cni")];

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "e2e::the_plugin_alone_connects_the_pods_of_a_node",
        CNI,
        alone,
    )]
}

const PODS: &str = "
networks: [{name: rack, cidrs: [192.0.2.0/24]}]
nodes: [{name: n1, networks: [rack]}]
pods: [{name: a, node: n1}, {name: b, node: n1}]
";

fn alone(lab: &Lab) -> Result<()> {
    let topology = Topology::parse(PODS, std::path::Path::new("pods"))?;
    let node = lab.netns("n1")?;
    node.forward()?;
    // Without an address of its own, the node could not be answered.
    let _uplink = lab
        .network("rack", &[prefix("192.0.2.0/24")?, prefix("2001:db8::/64")?])?
        .join(&node)?;
    let objects = Objects::create(lab.directory().join("objects"))?;
    let cidrs = [prefix("10.244.1.0/24")?, prefix("fd00:10:244:1::/64")?];
    let (run, state) = (lab.subdirectory("run")?, lab.subdirectory("state")?);
    let mut kubelet = Kubelet::new(&node, &objects, &run, &state, &cidrs)?;
    kubelet.configuration()["policy"] = json!("none");

    let mut pods: BTreeMap<&str, RunningPod> = BTreeMap::new();
    for pod in &topology.pods {
        let running = kubelet.start(pod)?;
        ensure!(running.addresses.len() == 2, "{:?}", running.addresses);
        pods.insert(&pod.name.value, running);
    }
    let _server = EchoServer::start(&pods["b"].netns, 80)?;
    for address in &pods["b"].addresses {
        for from in [&pods["a"].netns, &node] {
            reaches(from, *address)?;
        }
    }
    let addresses = pods["a"].addresses.clone();
    for pod in pods.values() {
        kubelet.stop(pod)?;
    }
    // Leases of pods that are gone are free again.
    let again = kubelet.start(&topology.pods[0])?;
    ensure!(
        again.addresses.len() == addresses.len(),
        "{:?}",
        again.addresses
    );
    kubelet.stop(&again)
}

fn reaches(from: &Netns, to: IpAddr) -> Result<()> {
    let (answer, _) = ping(from, to, SOON)?;
    ensure!(answer == Answer::Yes, "{} to {to}: {answer:?}", from.name());
    let answer = tcp::connect(from, SocketAddr::new(to, 80), Duration::from_secs(2))?;
    ensure!(
        answer == Answer::Yes,
        "{} to {to}:80: {answer:?}",
        from.name()
    );
    Ok(())
}
