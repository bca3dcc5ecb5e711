//! B7: a node of a large cluster, from an event of the API server to the first packet with the new verdict; and what the
//! agent costs at a start.
//!
//! The API server is this process, the agent and the plugin are the real programs, and the packets are real: from a
//! namespace that plays a pod of another node to a pod of the node.

mod objects;
mod server;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_lab::kubelet::{Kubelet, RunningPod};
use selvage_lab::network::{Link, add_route};
use selvage_lab::objects::{Objects, pod as pod_object};
use selvage_lab::topology::Topology;
use selvage_lab::{Agent, Lab, Netns, usage};
use serde_json::{Value, json};

use crate::packets::Packets;
use crate::report::{Figures, Report};
pub(crate) use objects::Size;
use objects::{SOURCE, allow, source};
use server::Server;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A plugin that was started so long ago waits for its pod.
const WAITS: Duration = Duration::from_millis(60);
/// Pods of the node that come and go.
const NEWCOMERS: usize = 30;

/// Prints a table of latencies and one of costs.
pub(crate) fn run(lab: &Lab, size: Size, local: usize, times: usize) -> Result<()> {
    let title = format!("{} policies, {} pods", size.policies, size.pods);
    let mut costs = Report::new(&format!("B8, B11: a start with {title}, {local} pods here"));
    let mut scene = Scene::start(lab, size, local)?;
    costs.add("first start", scene.cost()?);
    scene.attach(local)?;
    scene.restart()?;
    costs.add("restart, nothing has changed", scene.cost()?);
    let mut report = Report::new(&format!(
        "B7: {title}, {local} here, event to packet, {times} times"
    ));
    scene.measure(times, &mut report)?;
    costs.add("after the changes below", scene.cost()?);
    print!("{costs}{report}");
    Ok(())
}

/// A node with its agent, and a link to the namespace that plays another node's pod.
struct Scene {
    lab: Lab,
    server: Server,
    agent: Agent,
    kubelet: Kubelet,
    remote: Netns,
    /// Dropped, they would end the network.
    _links: [Link; 2],
    topology: Topology,
    pods: Vec<RunningPod>,
    /// When the agent was started last, and how long that took.
    ready: Duration,
}

impl Scene {
    fn start(lab: &Lab, size: Size, local: usize) -> Result<Scene> {
        let name = format!("b7-{}", size.policies);
        let lab = lab.clone();
        let (node, remote) = (lab.netns(&name)?, lab.netns(&format!("{name}-remote"))?);
        node.forward()?;
        let network = lab.network(&name, &["10.250.0.0/24".parse()?])?;
        let links = [network.join(&node)?, network.join(&remote)?];
        let [_, link] = &links;
        ensure!(link.ipv4()?.to_string() == SOURCE, "another address");
        add_route(&remote, "10.244.1.0/24".parse()?, "10.250.0.1".parse()?)?;
        let server = Server::start(&node, Box::new(move |plural| size.initial(plural)))?;
        let folder = lab.subdirectory(&name)?;
        let kubeconfig = folder.join("kubeconfig");
        fs::write(&kubeconfig, server.kubeconfig().to_string())?;
        let mut agent = Agent::start_on_api(
            &node,
            &size.node(),
            &kubeconfig,
            &["--features", "cni,policy", "--cni-conf", "off"],
        )?;
        let ready = agent.wait_ready(PATIENCE)?;
        let objects = Objects::create(folder.join("unused"))?;
        let cidrs = ["10.244.1.0/24".parse()?];
        let kubelet = Kubelet::new(&node, &objects, agent.run_dir(), agent.state_dir(), &cidrs)?;
        Ok(Scene {
            topology: topology(local, &size.node())?,
            lab,
            server,
            agent,
            kubelet,
            remote,
            _links: links,
            pods: Vec::new(),
            ready,
        })
    }

    /// Starts the node's pods; the first is the target of the packets.
    fn attach(&mut self, local: usize) -> Result<()> {
        for number in 0..local {
            let pod = self.pod(number)?;
            self.server.send("ADDED", "pods", object(&pod))?;
            let pod = self.add(pod)?;
            self.server.send("MODIFIED", "pods", object(&pod))?;
            self.pods.push(pod);
        }
        Ok(())
    }

    fn pod(&self, number: usize) -> Result<RunningPod> {
        let pod = self.topology.pods.get(number).context("no such pod")?;
        let name = format!("{}-{}", self.lab.name(), pod.name.value);
        Ok(RunningPod {
            uid: format!("00000000-0000-4000-8000-{number:012}"),
            container_id: name.clone(),
            netns: self.lab.netns(&pod.name.value)?,
            pod: pod.clone(),
            addresses: Vec::new(),
        })
    }

    fn add(&self, mut pod: RunningPod) -> Result<RunningPod> {
        self.kubelet.add(&mut pod)?;
        Ok(pod)
    }

    fn restart(&mut self) -> Result<()> {
        fs::remove_file(self.agent.run_dir().join("ready"))?;
        self.agent.process().stop(PATIENCE)?;
        self.agent.restart()?;
        self.ready = self.agent.wait_ready(PATIENCE)?;
        Ok(())
    }

    fn measure(&mut self, times: usize, report: &mut Report) -> Result<()> {
        let target = self.pods.first().context("no pod here")?;
        let address = *target.addresses.first().context("no address")?;
        let packets = Packets::start(&self.remote, &target.netns, address)?;
        // Other policies of the namespace allow its own pods, which the source is not.
        packets.wait_silence()?;
        for everywhere in [false, true] {
            self.server.send("ADDED", "pods", source())?;
            let whose = match everywhere {
                false => "a policy for pods of one namespace",
                true => "a policy for pods of all namespaces",
            };
            let changes = [
                (format!("{whose} added"), "ADDED", true),
                (format!("{whose} deleted"), "DELETED", false),
            ];
            let policy = allow(everywhere);
            self.toggle(&packets, times, report, "networkpolicies", &policy, changes)?;
            self.server.send("DELETED", "pods", source())?;
        }
        self.server.send("ADDED", "networkpolicies", allow(true))?;
        let changes = [
            ("a pod of another node added".to_owned(), "ADDED", true),
            ("a pod of another node deleted".to_owned(), "DELETED", false),
        ];
        self.toggle(&packets, times, report, "pods", &source(), changes)?;
        self.server.send("ADDED", "pods", source())?;
        packets.wait_first(Instant::now())?;
        let mut took = Vec::new();
        for _ in 0..2 * times {
            thread::sleep(WAITS / 2);
            took.push(packets.wait_first(Instant::now())?);
        }
        report.add("no change: until the next packet", percentiles(took));
        drop(packets);
        self.newcomers(report)
    }

    /// Sends an object and takes it back, again and again.
    fn toggle(
        &self,
        packets: &Packets,
        times: usize,
        report: &mut Report,
        plural: &str,
        object: &Value,
        changes: [(String, &str, bool); 2],
    ) -> Result<()> {
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..times {
            for ((_, event, opens), took) in changes.iter().zip(&mut took) {
                let start = Instant::now();
                self.server.send(event, plural, object.clone())?;
                took.push(if *opens {
                    let first = packets.wait_first(start)?;
                    // What follows a change in the kernel's tables is not to disturb the next one.
                    thread::sleep(WAITS);
                    first
                } else {
                    packets.wait_silence()?;
                    packets.last().saturating_duration_since(start)
                });
            }
        }
        for ((row, ..), took) in changes.iter().zip(took) {
            report.add(row, percentiles(took));
        }
        Ok(())
    }

    /// Pods of the node, whose plugin waits already when the API server tells of them.
    fn newcomers(&mut self, report: &mut Report) -> Result<()> {
        let mut took = Vec::new();
        for number in self.pods.len()..self.topology.pods.len() {
            let pod = self.pod(number)?;
            let event = object(&pod);
            let start = thread::scope(|scope| {
                let adding = scope.spawn(|| self.add(pod).map(|pod| (pod, Instant::now())));
                thread::sleep(WAITS);
                let start = Instant::now();
                self.server.send("ADDED", "pods", event)?;
                let joined = adding.join().map_err(|_| anyhow::anyhow!("a panic"))?;
                let (pod, end) = joined?;
                Ok::<_, anyhow::Error>((pod, end.saturating_duration_since(start)))
            });
            let (pod, time) = start?;
            took.push(time);
            self.kubelet.call("DEL", &pod)?;
            self.server.send("DELETED", "pods", object(&pod))?;
            pod.netns.delete()?;
        }
        report.add(
            "a pod of this node added, until ADD returns",
            percentiles(took),
        );
        Ok(())
    }

    /// What the agent has cost since its start.
    fn cost(&mut self) -> Result<Figures> {
        let pid = self.agent.process().pid();
        let threads = usage::threads(pid)?;
        let used = |is_wanted: &dyn Fn(&str) -> bool| -> f64 {
            let wanted = threads.iter().filter(|thread| is_wanted(&thread.name));
            wanted.map(|thread| thread.cpu as f64 / 1e9).sum()
        };
        let seconds = |name: &str| used(&|of| of == name);
        Ok(vec![
            (
                "anonymous MiB",
                usage::status(pid, "RssAnon")? as f64 / 1024.0,
            ),
            ("ready after, s", self.ready.as_secs_f64()),
            ("CPU, reading, s", seconds("kubernetes")),
            ("CPU, owner of the world, s", seconds("selvage")),
            ("CPU, writer, s", seconds("nft")),
            ("CPU, flows, s", seconds("conntrack")),
            ("CPU, all, s", used(&|_| true)),
        ])
    }
}

fn topology(local: usize, node: &str) -> Result<Topology> {
    let mut pods = vec![
        json!({"name": "target", "namespace": "ns0", "node": node, "labels": {"app": "target"}}),
    ];
    for n in 1..local + NEWCOMERS {
        let tier = if n / 3 % 2 == 0 { "front" } else { "back" };
        let labels = json!({"app": format!("a{}", n % 10), "tier": tier});
        pods.push(json!({"name": format!("local-{n}"), "namespace": format!("ns{}", n % 40), "node": node, "labels": labels}));
    }
    let text = json!({"networks": [{"name": "rack", "cidrs": ["192.0.2.0/24"]}],
        "nodes": [{"name": node, "networks": ["rack"]}], "pods": pods});
    Topology::parse(&text.to_string(), Path::new("topology")).map_err(Into::into)
}

fn object(pod: &RunningPod) -> Value {
    pod_object(&pod.pod, &pod.uid, &pod.addresses)
}

fn percentiles(mut took: Vec<Duration>) -> Figures {
    took.sort();
    let at = |percent: usize| {
        let found = took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
        found.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    vec![("p50 ms", at(50)), ("p99 ms", at(99)), ("max ms", at(100))]
}
