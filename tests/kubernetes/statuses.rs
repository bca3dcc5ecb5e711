//! What the agent writes to the API server.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use selvage_lab::kubernetes::{ControlPlane, Kubectl, Settings, User};
use selvage_lab::{Agent, Lab, Netns, Network, eventually_ok};
use serde_json::{Value, json};

use super::CONTROL_PLANE;
use crate::harness::Case;
use crate::scene::SOON;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("kubernetes::statuses_of_objects", CONTROL_PLANE, objects),
        Case::new("kubernetes::status_of_the_node", CONTROL_PLANE, node),
    ]
}

/// An API server with our definitions, and an agent whose Node is not there yet.
struct Scene {
    control: ControlPlane,
    agent: Agent,
    conflist: PathBuf,
    _netns: Netns,
    _rack: Network,
}

fn start(lab: &Lab) -> Result<Scene> {
    let rack = lab.network("rack", &["192.0.2.0/24".parse()?, "2001:db8::/64".parse()?])?;
    let (control, netns) = (lab.netns("control")?, lab.netns("n1")?);
    let link = rack.join(&control)?;
    rack.join(&netns)?;
    let control = ControlPlane::start(&control, link.addresses(), &Settings::default())?;
    control.kubectl().install_kinds()?;
    let conflist = lab.subdirectory("n1/net.d")?.join("10-selvage.conflist");
    let kubeconfig = control.kubeconfig(&User::admin())?;
    let more = ["--cni-conf", conflist.to_str().unwrap_or_default()];
    let agent = Agent::start_on_api(&netns, "n1", &kubeconfig, &more)?;
    Ok(Scene {
        control,
        agent,
        conflist,
        _netns: netns,
        _rack: rack,
    })
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {rack: a}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
";

/// The condition of an object as `Status Reason`, and its message.
fn condition(kubectl: &Kubectl, object: &str, name: &str) -> Result<(String, String)> {
    let value = kubectl.json(&["get", object])?;
    let empty = Vec::new();
    let conditions = value["status"]["conditions"].as_array().unwrap_or(&empty);
    let Some(found) = conditions.iter().find(|c| c["type"] == name) else {
        bail!("{object} has no condition {name}: {}", value["status"])
    };
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((
        format!("{} {}", text("status"), text("reason")),
        text("message"),
    ))
}

/// An object comes to say so.
pub fn wait(
    kubectl: &Kubectl,
    object: &str,
    name: &str,
    wanted: &str,
    message: &str,
) -> Result<()> {
    let what = format!("{object} says {name}={wanted} {message}");
    eventually_ok(SOON, &what, || {
        let (is, says) = condition(kubectl, object, name)?;
        ensure!(is == wanted && says.contains(message), "{is}: {says}");
        Ok(())
    })
}

fn objects(lab: &Lab) -> Result<()> {
    let scene = start(lab)?;
    let kubectl = scene.control.kubectl();
    kubectl.apply(NODE)?;
    let peer = |name: &str, more: &str| {
        format!(
            "{{apiVersion: selvage.io/v1alpha1, kind: BGPPeer, metadata: {{name: {name}}}, spec: {{asn: 65001, {more}}}}}"
        )
    };
    // The API server's own rules refuse at once what can be told from the object alone.
    let refused = kubectl.apply(&peer("both", "address: 192.0.2.9, range: 192.0.2.0/24"));
    let refused = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(
        refused.contains("exactly one of address, range"),
        "{refused:?}"
    );

    kubectl.apply(&peer("tor", "address: 192.0.2.1"))?;
    wait(kubectl, "bgppeer/tor", "Accepted", "True Valid", "in force")?;
    // What it lets through and we do not.
    for (more, says) in [
        ("address: 192.0.2.1, bfd: {}", "spec.bfd: not implemented"),
        ("address: nonsense", "spec.address"),
    ] {
        kubectl.apply(&peer("tor", more))?;
        wait(kubectl, "bgppeer/tor", "Accepted", "False Invalid", says)?;
        let peers = scene.agent.ask(&["peers"])?;
        ensure!(
            peers.contains("192.0.2.1"),
            "the last good form stays: {peers}"
        );
    }
    let columns = kubectl.run(&["get", "bgppeers"])?;
    ensure!(columns.contains("False"), "{columns}");
    kubectl.apply(&peer("tor", "address: 192.0.2.1"))?;
    wait(kubectl, "bgppeer/tor", "Accepted", "True Valid", "in force")?;
    let tor = kubectl.json(&["get", "bgppeer/tor"])?;
    ensure!(
        tor["status"]["observedGeneration"] == tor["metadata"]["generation"],
        "{tor}"
    );

    kubectl.apply(&peer(
        "late",
        "address: 192.0.2.1, passwordSecretRef: {name: bgp, key: password}",
    ))?;
    wait(
        kubectl,
        "bgppeer/late",
        "Conflict",
        "True Conflict",
        "BGPPeer tor is older",
    )?;
    wait(
        kubectl,
        "bgppeer/late",
        "PasswordMissing",
        "True PasswordMissing",
        "Secret bgp",
    )?;
    kubectl.apply("{apiVersion: v1, kind: Namespace, metadata: {name: selvage-system}}")?;
    kubectl.apply(
        "{apiVersion: v1, kind: Secret, metadata: {name: bgp, namespace: selvage-system}, stringData: {password: geheim}}",
    )?;
    kubectl.run(&["delete", "bgppeer/tor"])?;
    for gone in ["PasswordMissing", "Conflict"] {
        eventually_ok(
            SOON,
            &format!("late has no {gone} any more"),
            || match condition(kubectl, "bgppeer/late", gone) {
                Err(_) => Ok(()),
                Ok(still) => bail!("{still:?}"),
            },
        )?;
    }
    // A hand that writes a status does not change it for long.
    let lie = json!({"conditions": [{"type": "Accepted", "status": "False", "reason": "Lie",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    kubectl.patch_status("", "bgppeer/late", &lie)?;
    wait(
        kubectl,
        "bgppeer/late",
        "Accepted",
        "True Valid",
        "in force",
    )?;

    eventually_ok(SOON, "events tell of the refusal", || {
        let events = kubectl.json(&["get", "events.events.k8s.io", "-n", "default"])?;
        let mine = |event: &&Value| event["regarding"]["name"] == "tor";
        let items = events["items"].as_array().cloned().unwrap_or_default();
        let reasons: Vec<&str> = items
            .iter()
            .filter(mine)
            .filter_map(|event| event["reason"].as_str())
            .collect();
        ensure!(
            reasons.contains(&"Refused") && reasons.contains(&"Accepted"),
            "{reasons:?}"
        );
        Ok(())
    })
}

fn node(lab: &Lab) -> Result<()> {
    let mut scene = start(lab)?;
    let kubectl = scene.control.kubectl();
    let waits = |agent: &Agent, for_what: &str| {
        eventually_ok(SOON, for_what, || {
            // While it starts, the answer is no.
            let output = agent.command(&["status", "-o", "json"])?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(status["ready"]["ready"] == false, "{status}");
            ensure!(
                status["ready"]["missing"].to_string().contains(for_what),
                "{}",
                status["ready"]
            );
            Ok(())
        })
    };
    waits(&scene.agent, "there is no Node `n1`")?;
    kubectl.apply("{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {rack: a}}}")?;
    waits(&scene.agent, "has no spec.podCIDRs")?;
    ensure!(!scene.conflist.exists(), "the node takes pods already");
    kubectl.apply(NODE)?;
    scene.agent.wait_ready(SOON)?;
    wait(
        kubectl,
        "node/n1",
        "NetworkUnavailable",
        "False NetworkReady",
        "policy",
    )?;
    let conflist = std::fs::read_to_string(&scene.conflist)?;
    for part in [
        "10.244.1.0/24",
        "fd00:10:244:1::/64",
        "\"policy\": \"required\"",
    ] {
        ensure!(conflist.contains(part), "{part}: {conflist}");
    }
    folder(&scene.agent, &scene.conflist)?;
    wait(kubectl, "bgpnodestatus/n1", "Ready", "True Ready", "")?;
    let report = kubectl.json(&["get", "bgpnodestatus/n1"])?;
    let node = kubectl.json(&["get", "node/n1"])?;
    ensure!(
        report["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"],
        "{report}"
    );
    ensure!(
        report["status"]["networks"] == json!(["10.244.1.0/24", "fd00:10:244:1::/64"]),
        "{report}"
    );

    // Somebody else's hand, and a restart: the condition is right, and what did not change is not written.
    let lie = json!({"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "Lie", "message": ""}]});
    kubectl.patch_status("", "node/n1", &lie)?;
    wait(
        kubectl,
        "node/n1",
        "NetworkUnavailable",
        "False NetworkReady",
        "policy",
    )?;
    let version = |object: &str| -> Result<String> {
        Ok(kubectl.json(&["get", object])?["metadata"]["resourceVersion"].to_string())
    };
    let before = (version("node/n1")?, version("bgpnodestatus/n1")?);
    scene.agent.process().kill()?;
    scene.agent.restart()?;
    eventually_ok(SOON, "the agent answers", || scene.agent.ask(&["status"]))?;
    scene
        .agent
        .ask(&["wait", "--for", "ready", "--timeout", "20s"])?;
    kubectl.apply(
        "{apiVersion: selvage.io/v1alpha1, kind: BGPPeer, metadata: {name: tor}, spec: {asn: 65001, address: 192.0.2.1}}",
    )?;
    wait(kubectl, "bgppeer/tor", "Accepted", "True Valid", "in force")?;
    ensure!(
        version("node/n1")? == before.0,
        "the node's condition was written again"
    );
    eventually_ok(2 * SOON, "the neighbour that is down is named", || {
        let report = kubectl.json(&["get", "bgpnodestatus/n1"])?;
        ensure!(report["status"]["sessions"]["configured"] == 1, "{report}");
        ensure!(
            report["status"]["wrong"].to_string().contains("192.0.2.1"),
            "{report}"
        );
        Ok(())
    })
}

/// Others in the folder of the CNI configuration: ours comes back, and one that is taken instead is named.
fn folder(agent: &Agent, conflist: &Path) -> Result<()> {
    let whole = std::fs::read_to_string(conflist)?;
    std::fs::remove_file(conflist)?;
    eventually_ok(2 * SOON, "the CNI configuration is there again", || {
        ensure!(std::fs::read_to_string(conflist)? == whole);
        Ok(())
    })?;
    let says = |says: bool| {
        let what = format!("status names the other network: {says}");
        eventually_ok(SOON, &what, || {
            let output = agent.command(&["status", "-o", "json"])?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            let wrong = status["wrong"].to_string();
            ensure!(wrong.contains("05-other.conf") == says, "{wrong}");
            Ok(())
        })
    };
    let other = conflist.with_file_name("05-other.conf");
    std::fs::write(&other, "{}")?;
    says(true)?;
    std::fs::remove_file(&other)?;
    says(false)
}
