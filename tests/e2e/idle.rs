//! An agent that has nothing to do costs nothing: its threads sleep until something happens.
//!
//! The trials count what the kernel has counted (CPU time, and how often a thread gave the processor up of its own will)
//! over one window of wall time, for many agents side by side. How fast the machine is does not matter, unless it is emulated: then
//! the same work is more CPU time.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::plain_kubeconfig;
use selvage_lab::process::Process;
use selvage_lab::{
    Agent, Lab, Netns, Network, cluster, deadline::patience, eventually, eventually_ok,
    objects::Objects, programs, usage,
};
use serde_json::json;

use crate::fake_api::Fake;
use crate::harness::{Case, Need};
use crate::scene::{self, OWN, SOON, TWO_NODES};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "e2e::an_agent_without_work_sleeps",
            &[Need::Own("selvage")],
            idle,
        ),
        Case::new("e2e::a_node_with_pods_at_rest_sleeps", OWN, cluster_at_rest),
    ]
}

/// How long the agents are watched.
const WINDOW: Duration = Duration::from_secs(20);

/// What a process has cost since its start.
#[derive(Clone, Debug, Default)]
struct Cost {
    /// CPU time of the threads that live, in nanoseconds.
    cpu: u64,
    /// How often each thread, by its name and number, has gone to sleep.
    sleeps: BTreeMap<String, u64>,
}

impl Cost {
    fn of(pid: u32) -> Result<Cost> {
        let mut cost = Cost::default();
        for thread in usage::threads(pid)? {
            let name = format!("{}/{}", thread.name, thread.id);
            cost.sleeps.insert(name, thread.sleeps);
            cost.cpu += thread.cpu;
        }
        Ok(cost)
    }

    /// What it has cost since an earlier look.
    fn since(&self, before: &Cost) -> Cost {
        let sleeps = self.sleeps.iter().filter_map(|(name, now)| {
            let before = before.sleeps.get(name).copied().unwrap_or_default();
            let grown = now.saturating_sub(before);
            (grown > 0).then(|| (name.clone(), grown))
        });
        Cost {
            cpu: self.cpu.saturating_sub(before.cpu),
            sleeps: sleeps.collect(),
        }
    }

    fn wakeups(&self) -> u64 {
        self.sleeps.values().sum()
    }
}

/// What an agent may cost in the window.
#[derive(Clone, Copy, Debug)]
struct Limit {
    milliseconds: u64,
    wakeups: u64,
}

/// Nothing wakes it; or the connection to the API server is pinged, and kinds that the server does not have are asked for
/// ever less often.
const ASLEEP: Limit = Limit {
    milliseconds: 10,
    wakeups: 20,
};

/// An agent that is watched.
struct Watched {
    what: String,
    agent: Agent,
    limit: Limit,
    /// Waits for something that does not come.
    waits: Option<Process>,
    _netns: Netns,
}

/// Watches all of them in one window.
fn watch(agents: &mut [(&str, &mut Agent, Limit)]) -> Result<()> {
    let mut before = Vec::new();
    for (_, agent, _) in agents.iter_mut() {
        before.push(Cost::of(agent.process().pid())?);
    }
    thread::sleep(WINDOW);
    let mut faults = Vec::new();
    for ((what, agent, limit), before) in agents.iter_mut().zip(before) {
        let cost = Cost::of(agent.process().pid())?.since(&before);
        let line = format!(
            "{what}: {:.1} ms of CPU time, {} wake-ups {:?}",
            cost.cpu as f64 / 1e6,
            cost.wakeups(),
            cost.sleeps
        );
        eprintln!("{line}");
        // An emulated machine counts the emulator's time.
        let busy = patience() == 1 && cost.cpu > limit.milliseconds * 1_000_000;
        if busy || cost.wakeups() > limit.wakeups {
            faults.push(format!("{line}; it may cost {limit:?}"));
        }
    }
    ensure!(
        faults.is_empty(),
        "within {WINDOW:?}:\n{}",
        faults.join("\n")
    );
    Ok(())
}

const ALL: &str = "bgp,kernel,cni,policy";
/// All features, and what `docs` recommend beside other networks and on routers.
const FEATURES: [&str; 6] = [ALL, "bgp", "bgp,kernel", "cni", "policy", "cni,policy"];

/// Policy without our plugin is about another one's pods.
fn pods_of_others(features: &str) -> &'static [&'static str] {
    match features {
        "policy" => &["--pod-interface-prefix", "veth"],
        _ => &[],
    }
}

/// What the agents of a trial stand on.
struct Scene<'a> {
    lab: &'a Lab,
    rack: Network,
    watched: Vec<Watched>,
    fakes: Vec<Fake>,
}

impl Scene<'_> {
    /// A namespace with a link to the rack.
    fn host(&self, name: &str) -> Result<Netns> {
        let netns = self.lab.netns(name)?;
        netns.set_sysctl("net/ipv4/nexthop_compat_mode", "0")?;
        self.rack.join(&netns)?;
        Ok(netns)
    }

    fn keep(&mut self, what: String, netns: Netns, agent: Agent, limit: Limit) -> &mut Watched {
        self.watched.push(Watched {
            what,
            agent,
            limit,
            waits: None,
            _netns: netns,
        });
        let last = self.watched.len() - 1;
        &mut self.watched[last]
    }

    /// An agent with a directory of its own.
    fn directory(
        &mut self,
        name: &str,
        features: &str,
        objects: &[(&str, serde_json::Value)],
        limit: Limit,
    ) -> Result<&mut Watched> {
        let netns = self.host(name)?;
        let directory = Objects::create(self.lab.directory().join(format!("{name}-objects")))?;
        for (file, object) in objects {
            directory.write(file, object)?;
        }
        let conf = self.conf(name)?;
        let mut more = vec!["--features", features, "--cni-conf", &conf];
        more.extend(pods_of_others(features));
        let agent = Agent::start(&netns, name, directory.directory(), &more)?;
        let what = format!("{name}: a directory, {features}");
        Ok(self.keep(what, netns, agent, limit))
    }

    /// An agent with an API server of its own, in the same namespace.
    fn api(
        &mut self,
        name: &str,
        features: &str,
        objects: &[(&str, serde_json::Value)],
    ) -> Result<&mut Watched> {
        let netns = self.host(name)?;
        let fake = netns.run(|| Ok(Fake::start()))?;
        for (plural, object) in objects {
            fake.put(plural, object.clone());
        }
        let kubeconfig = self.lab.directory().join(format!("{name}.kubeconfig"));
        let text = plain_kubeconfig(fake.addr);
        fs::write(&kubeconfig, text.to_string())?;
        self.fakes.push(fake);
        let conf = self.conf(name)?;
        let mut more = vec!["--features", features, "--cni-conf", &conf];
        more.extend(pods_of_others(features));
        let agent = Agent::start_on_api(&netns, name, &kubeconfig, &more)?;
        let what = format!("{name}: an API server, {features}");
        Ok(self.keep(what, netns, agent, ASLEEP))
    }

    fn conf(&self, name: &str) -> Result<String> {
        let folder = self.lab.subdirectory(&format!("{name}/net.d"))?;
        let path = folder.join("10-selvage.conflist");
        Ok(path
            .to_str()
            .context("a path that is not UTF-8")?
            .to_owned())
    }
}

impl Watched {
    /// Has somebody wait for this agent, without end.
    fn wait_for(&mut self, lab: &Lab, what: &str) -> Result<()> {
        let mut command = Command::new(programs::find("selvage")?);
        command
            .args(["wait", "--for", what, "--timeout", "10m", "--run-dir"])
            .arg(self.agent.run_dir());
        let name = format!("{}-waits", self.agent.node());
        self.waits = Some(lab.spawn(self.agent.netns(), &name, command)?);
        Ok(())
    }
}

fn node(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name},
        "spec": {"podCIDRs": ["10.244.7.0/24", "fd00:10:244:7::/64"]}})
}

fn peer(spec: serde_json::Value) -> serde_json::Value {
    cluster::object("BGPPeer", "peer", spec)
}

fn idle(lab: &Lab) -> Result<()> {
    let mut scene = Scene {
        lab,
        rack: lab.network("rack", &["192.0.2.0/24".parse()?, "2001:db8::/64".parse()?])?,
        watched: Vec::new(),
        fakes: Vec::new(),
    };
    // Somebody whose kernel refuses connections to port 179.
    let nobody = scene.lab.netns("nobody")?;
    let nobody_link = scene.rack.join(&nobody)?;
    let refuses = nobody_link
        .addresses()
        .first()
        .context("an address")?
        .addr();
    for (number, features) in FEATURES.into_iter().enumerate() {
        let name = format!("d{number}");
        scene.directory(&name, features, &[("node", node(&name))], ASLEEP)?;
        let name = format!("k{number}");
        scene.api(&name, features, &[("nodes", node(&name))])?;
    }
    // Not ready, for there is no Node.
    scene.directory("absent", ALL, &[], ASLEEP)?;
    scene.api("unknown", ALL, &[])?.wait_for(lab, "ready")?;
    // A neighbour that never comes, waited for.
    let silent = peer(json!({"address": "192.0.2.250", "asn": 65001, "passive": true}));
    let objects = [("node", node("lonely")), ("peer", silent)];
    let lonely = scene.directory("lonely", ALL, &objects, ASLEEP)?;
    lonely.wait_for(lab, "peers")?;
    // A neighbour that refuses: each attempt of its retry timer (1 s, less up to a quarter) may wake a thread or two.
    let refusing = peer(json!({"address": refuses, "asn": 65001}));
    let objects = [("node", node("refused")), ("peer", refusing)];
    let refused = Limit {
        milliseconds: 50,
        wakeups: 20 + 4 * 27,
    };
    scene.directory("refused", ALL, &objects, refused)?;
    // Two with a session: keepalives come and go every 3 s, and each end looks at its hold timer.
    let session = Limit {
        milliseconds: 30,
        wakeups: 20 + 4 * 8,
    };
    for (name, other) in [("left", "192.0.2.253"), ("right", "192.0.2.252")] {
        let own = if name == "left" {
            "192.0.2.252"
        } else {
            "192.0.2.253"
        };
        let netns = scene.lab.netns(name)?;
        netns.set_sysctl("net/ipv4/nexthop_compat_mode", "0")?;
        scene
            .rack
            .join_with(&netns, &[format!("{own}/24").parse()?])?;
        let directory = Objects::create(lab.directory().join(format!("{name}-objects")))?;
        let neighbour = peer(json!({"address": other, "asn": "internal"}));
        directory.write("peer", &neighbour)?;
        let more = ["--features", "bgp,kernel"];
        let agent = Agent::start(&netns, name, directory.directory(), &more)?;
        scene.keep(format!("{name}: a session"), netns, agent, session);
    }
    // A directory that is taken away.
    scene.directory("robbed", ALL, &[("node", node("robbed"))], ASLEEP)?;

    for watched in &mut scene.watched {
        let name = watched.agent.node().to_owned();
        if !["absent", "unknown"].contains(&&*name) {
            watched.agent.wait_ready(3 * SOON)?;
        }
        let words = ["wait", "--for", "synced", "--timeout", "60s"];
        watched.agent.ask(&words).with_context(|| name.clone())?;
        match name.as_str() {
            "left" => {
                let other = "192.0.2.253".parse()?;
                watched.agent.wait_established(other, SOON)?;
            }
            "robbed" => {
                fs::remove_dir_all(lab.directory().join("robbed-objects"))?;
                let log = watched.agent.process().log().to_owned();
                eventually(SOON, "the agent sees that its objects are gone", || {
                    fs::read_to_string(&log).is_ok_and(|log| log.contains("is gone"))
                })?;
            }
            _ => {}
        }
    }
    let mut agents: Vec<(&str, &mut Agent, Limit)> = scene
        .watched
        .iter_mut()
        .map(|watched| (&*watched.what, &mut watched.agent, watched.limit))
        .collect();
    watch(&mut agents)?;
    // It is not deaf: what comes is taken in.
    fs::create_dir(lab.directory().join("robbed-objects"))?;
    for watched in &mut scene.watched {
        ensure!(
            watched
                .waits
                .as_mut()
                .is_none_or(|wait| wait.ended().is_none()),
            "{}: what it waits for has not come",
            watched.what
        );
        if watched.agent.node() == "refused" {
            forgets_its_neighbour(lab, &watched.agent)?;
        }
        if watched.agent.node() == "robbed" {
            let log = watched.agent.process().log().to_owned();
            eventually(SOON, "the agent sees that its objects are back", || {
                fs::read_to_string(&log).is_ok_and(|log| log.contains("is back"))
            })?;
        }
    }
    Ok(())
}

/// What it lacked when it became ready is not said of it for ever.
fn forgets_its_neighbour(lab: &Lab, agent: &Agent) -> Result<()> {
    let missing = || Ok::<_, anyhow::Error>(agent.json(&["status"])?["ready"]["missing"].clone());
    let before = missing()?.to_string();
    ensure!(before.contains("is not up"), "{before}");
    fs::remove_file(lab.directory().join("refused-objects/peer.yaml"))?;
    eventually_ok(SOON, "it lacks nothing", || {
        let missing = missing()?;
        ensure!(missing == json!([]), "{missing}");
        Ok(())
    })
}

/// Two nodes of a cluster with a pod each, on whatever source the trial has.
pub fn cluster_at_rest(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(lab, TWO_NODES)?;
    cluster.start(2 * SOON)?;
    for node in ["n1", "n2"] {
        let agent = &mut cluster.node(node)?.agent;
        agent.ask(&["wait", "--for", "peers", "--timeout", "60s"])?;
    }
    let limit = Limit {
        milliseconds: 40,
        wakeups: 20 + 4 * 8,
    };
    watch(&mut [("n1", &mut cluster.node("n1")?.agent, limit)])
}
