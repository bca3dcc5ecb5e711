//! On a real cluster: from a policy's write at the API server to the first packet with the new verdict (B13).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use selvage_lab::kubernetes::{AGNHOST, KubernetesCluster};
use selvage_lab::{Netns, eventually_ok};

use crate::packets::Packets;
use crate::report::Report;

/// Where the policies are.
const COLLECTION: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
/// Port of `kubectl proxy`, in the control plane's namespace.
const PROXY: u16 = 8001;

const DENY: &str = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: default}, \
    spec: {podSelector: {matchLabels: {app: target}}, policyTypes: [Ingress]}}";
const ALLOW: &str = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "allow"},
    "spec": {"podSelector": {"matchLabels": {"app": "target"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "source"}}}]}]}}"#;

/// Adds a row for a rule that comes and one for a rule that goes.
pub(crate) fn run(cluster: &KubernetesCluster, node: &str, times: usize) -> Result<Report> {
    let kubectl = cluster.kubectl();
    for name in ["source", "target"] {
        kubectl.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}, \
             spec: {{nodeName: {node}, terminationGracePeriodSeconds: 0, containers: [{{name: pause, image: '{AGNHOST}', args: [pause]}}]}}}}"
        ))?;
    }
    kubectl.run(&[
        "wait",
        "--for=condition=Ready",
        "pod/source",
        "pod/target",
        "--timeout=60s",
    ])?;
    kubectl.apply(DENY)?;
    let netns = cluster.control().netns();
    let mut command = kubectl.command(&["proxy", &format!("--port={PROXY}")]);
    command.stdout(Stdio::null());
    let _proxy = cluster.lab().spawn(netns, "proxy", command)?;
    eventually_ok(Duration::from_secs(10), "kubectl proxy answers", || {
        request(netns, "GET", COLLECTION, "")
    })?;
    let target = cluster.pod("default", "target")?;
    let packets = Packets::start(
        &cluster.pod_netns(&cluster.pod("default", "source")?)?,
        &cluster.pod_netns(&target)?,
        target.address(true)?,
    )?;
    let mut report = Report::new("From the API write to the first packet with the new verdict");
    for _ in 0..times {
        packets.wait_silence()?;
        let start = Instant::now();
        request(netns, "POST", COLLECTION, ALLOW)?;
        let first = packets.wait_first(start)?;
        report.add("a rule comes", vec![("ms", first.as_secs_f64() * 1e3)]);
        let start = Instant::now();
        request(netns, "DELETE", &format!("{COLLECTION}/allow"), "")?;
        packets.wait_silence()?;
        let last = packets.last().saturating_duration_since(start);
        report.add("a rule goes", vec![("ms", last.as_secs_f64() * 1e3)]);
    }
    Ok(report)
}

/// One request over HTTP/1.1; fails unless it succeeds.
fn request(netns: &Netns, method: &str, path: &str, body: &str) -> Result<()> {
    let line = netns.run(|| {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], PROXY)))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    })?;
    ensure!(line.contains(" 20"), "{method} {path}: {line}");
    Ok(())
}
