//! CNI with the agent: pods made and unmade one after the other under policy, on a node at rest, beside a large table of
//! flows, and while the agent takes in a long list of blocks again and again.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use selvage_lab::{Cluster, Lab, Netns, cluster::RunningNode, topology::Topology};
use serde_json::json;

use crate::{
    cni::{last, median, milliseconds},
    report::Report,
};

/// The longest start of an agent.
const SOON: Duration = Duration::from_secs(30);
/// Between two writes of the long policy.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn run(lab: &Lab, pods: usize, flows: usize, blocks: usize, runs: usize) -> Result<()> {
    let mut report = Report::new(&format!("CNI with the agent, policy in force, {pods} pods"));
    for run in 0..runs {
        let mut cluster = cluster(lab, pods)?;
        let rounds = (|| {
            add(&mut report, "at rest", &mut cluster)?;
            let over = AtomicBool::new(false);
            let objects = cluster.objects().directory().to_owned();
            let written = thread::scope(|scope| {
                let writer = scope.spawn(|| rewrite(&objects, blocks, &over));
                let added = add(&mut report, "a long policy changes", &mut cluster);
                over.store(true, Ordering::Relaxed);
                let written = writer.join();
                added?;
                written.map_err(|_| anyhow::anyhow!("the writer panicked"))?
            })?;
            let there = fill(cluster.netns("n1")?, flows)?;
            add(&mut report, "beside a large table of flows", &mut cluster)?;
            println!(
                "run {run}: {there} flows; a policy of {blocks} blocks written {written} times"
            );
            Ok::<_, anyhow::Error>(())
        })();
        rounds.with_context(|| format!("run {run}"))?;
    }
    print!("{report}");
    Ok(())
}

/// A node, the pod that the long policy selects, and the policy of the others.
fn cluster(lab: &Lab, pods: usize) -> Result<Cluster> {
    let mut text = "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
nodes: [{name: n1, networks: [rack], podCIDRs: [10.244.0.0/16, 'fd00:10:244::/64']}]
pods:
  - {name: long, node: n1, labels: {app: long}}
"
    .to_owned();
    for i in 0..pods {
        text += &format!("  - {{name: p{i}, node: n1, labels: {{app: web}}}}\n");
    }
    let mut cluster = Cluster::new(lab, Topology::parse(&text, Path::new("bench"))?)?;
    cluster.objects().write(
        "policy",
        &json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"podSelector": {}}]}],
            },
        }),
    )?;
    cluster.start_node("n1")?;
    cluster.node("n1")?.agent.wait_ready(SOON)?;
    cluster.start_pod("default/long")?;
    Ok(cluster)
}

/// A row: all pods made one after the other, then unmade.
fn add(report: &mut Report, row: &str, cluster: &mut Cluster) -> Result<()> {
    let pods: Vec<_> = cluster.topology().pods.iter().skip(1).cloned().collect();
    let RunningNode { kubelet, .. } = cluster.node("n1")?;
    let mut running = Vec::new();
    for pod in &pods {
        running.push(kubelet.prepare(pod)?);
    }
    let mut times = [Vec::new(), Vec::new()];
    for pod in &mut running {
        let begin = Instant::now();
        kubelet.add(pod)?;
        times[0].push(milliseconds(begin.elapsed()));
        kubelet.update(pod)?;
    }
    for pod in &running {
        let begin = Instant::now();
        kubelet.call("DEL", pod)?;
        times[1].push(milliseconds(begin.elapsed()));
        kubelet.forget(pod)?;
    }
    times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
    let [adds, dels] = &times;
    report.add(
        row,
        vec![
            ("ADD p50 ms", median(adds)),
            ("ADD max ms", last(adds)),
            ("DEL p50 ms", median(dels)),
            ("DEL max ms", last(dels)),
        ],
    );
    Ok(())
}

/// Writes a policy of so many blocks, others each time, until it is over; how often.
fn rewrite(objects: &Path, blocks: usize, over: &AtomicBool) -> Result<usize> {
    let mut written = 0;
    while !over.load(Ordering::Relaxed) {
        let peers: Vec<_> = (0..blocks)
            .map(|n| {
                let at = u32::try_from(n * 8 + written % 2 * 4).unwrap_or(u32::MAX);
                let cidr = Ipv4Addr::from(0xac10_0000_u32.wrapping_add(at));
                json!({"ipBlock": {"cidr": format!("{cidr}/30")}})
            })
            .collect();
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "long", "namespace": "default"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "long"}},
                "ingress": [{"from": peers}],
            },
        });
        let draft = objects.join(".long.draft");
        fs::write(&draft, policy.to_string())?;
        fs::rename(&draft, objects.join("long.yaml"))?;
        written += 1;
        thread::sleep(PAUSE);
    }
    Ok(written)
}

/// Makes flows of UDP on the node until the table has so many, or as many as the kernel lets it have; how many that are.
fn fill(netns: &Netns, flows: usize) -> Result<usize> {
    netns.set_sysctl("net/netfilter/nf_conntrack_udp_timeout", "3600")?;
    netns.run(|| {
        for (sender, first) in (0..flows).step_by(60_000).enumerate() {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 0)) + sender as u32);
            for port in 1..=(flows - first).min(60_000) {
                // Nobody is there, and the answer to an earlier packet says so.
                let _ = socket.send_to(b"x", (to, port as u16));
            }
        }
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
        Ok(count.trim().parse()?)
    })
}
