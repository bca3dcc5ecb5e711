//! On a real cluster: from a policy's write at the API server to the first packet with the new verdict (B13).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::{AGNHOST, KubernetesCluster};
use selvage_lab::{Netns, eventually_ok};

use crate::report::Report;

/// Where the policies are.
const COLLECTION: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
/// Port of `kubectl proxy`, in the control plane's namespace.
const PROXY: u16 = 8001;
/// Between two packets.
const PACE: Duration = Duration::from_micros(500);
/// Without a packet for so long, none comes any more.
const SILENCE: Duration = Duration::from_millis(400);

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
        let first = eventually_first(&packets, start)?;
        report.add("a rule comes", vec![("ms", first.as_secs_f64() * 1e3)]);
        let start = Instant::now();
        request(netns, "DELETE", &format!("{COLLECTION}/allow"), "")?;
        packets.wait_silence()?;
        let last = packets.last().saturating_duration_since(start);
        report.add("a rule goes", vec![("ms", last.as_secs_f64() * 1e3)]);
    }
    Ok(report)
}

fn eventually_first(packets: &Packets, start: Instant) -> Result<Duration> {
    while start.elapsed() < Duration::from_secs(10) {
        let last = packets.last();
        if last > start {
            return Ok(last - start);
        }
        thread::sleep(Duration::from_micros(100));
    }
    anyhow::bail!("no packet within 10 s")
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

/// Packets from one pod to another, and when the last one came.
struct Packets {
    began: Instant,
    /// Microseconds since then; 0: none yet.
    last: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Packets {
    fn start(from: &Netns, to: &Netns, address: IpAddr) -> Result<Packets> {
        let at = SocketAddr::new(address, 9000);
        let receiver = to.run(|| Ok(UdpSocket::bind(at)?))?;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let sender = from.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        let began = Instant::now();
        let (last, end) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (seen, stop) = (Arc::clone(&last), Arc::clone(&end));
        let receiving = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !stop.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    let now = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    seen.store(now, Ordering::Relaxed);
                }
            }
        });
        let stop = Arc::clone(&end);
        let sending = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // What is dropped is what this is about.
                let _ = sender.send_to(b"x", at);
                thread::sleep(PACE);
            }
        });
        let threads = vec![receiving, sending];
        Ok(Packets {
            began,
            last,
            end,
            threads,
        })
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    fn wait_silence(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if self.last().elapsed() > SILENCE {
                return Ok(());
            }
            thread::sleep(SILENCE / 10);
        }
        Err(anyhow::anyhow!("packets come for 10 s")).context("the policy does not hold")
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
