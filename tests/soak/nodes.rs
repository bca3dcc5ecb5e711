//! The second world: nodes with agents, pods and policies, a top-of-rack router of BIRD, links that are cut.
//!
//! Nodes are replaced, agents are killed and stopped, pods and policies come and go. At a checkpoint the kernel's routes of each
//! node, the router's table, attachments and leases, and the verdicts of random connections are those of a naive model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::kubelet::{Kubelet, RunningPod};
use selvage_lab::objects::{self, Objects};
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::topology::{Pod, Topology};
use selvage_lab::{Agent, Cut, Lab, Link, Netns, Network, cluster, eventually_ok};
use selvage_netlink::nexthop;
use selvage_netlink::route::{self, Filter, Target};
use serde_json::{Value, json};

mod state;
mod steps;

use self::state::{addresses, attached, gateway, leases, outside, pod, routes, same};
use super::journal::{Journal, Random};
use super::policies::{APPS, Identity, NAMESPACES, PORTS, Policy, allowed};
use super::resources::{Usage, load};
use super::{Plan, Report, Stop};

/// How long it may take until everybody holds what it should.
const SETTLE: Duration = Duration::from_secs(120);
/// How long one verdict may take to be the right one.
const SOON: Duration = Duration::from_secs(30);
/// How long an attempt waits for an answer.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Routes of BGP in the kernel.
const PROTOCOL: u8 = 85;
/// The AS of the router.
const ROUTER: u32 = 65001;
/// The AS of the nodes, which nobody configures.
const NODES: u32 = 64512;
/// Steps between two checkpoints.
const STEPS: usize = 6;
/// Connections that are tried at a checkpoint.
const PROBES: usize = 12;
/// Longer than the restart time at the start, and than the long-lived stale time after it.
const AWAY: Duration = Duration::from_secs(10);
const MOST_PODS: usize = 9;
const MOST_POLICIES: usize = 6;

struct PodOn {
    running: RunningPod,
    identity: Identity,
    _servers: Vec<EchoServer>,
}

struct Node {
    name: String,
    netns: Netns,
    link: Link,
    agent: Agent,
    kubelet: Kubelet,
    cidrs: Vec<IpNet>,
    pods: BTreeMap<String, PodOn>,
}

#[derive(Default)]
struct Counts {
    replaced: u64,
    killed: u64,
    stopped: u64,
    away: u64,
    pods: u64,
    policies: u64,
    cuts: u64,
    changes: u64,
    checks: u64,
    probes: u64,
}

struct World<'a> {
    lab: Lab,
    plan: &'a Plan,
    stop: &'a Stop,
    journal: Journal,
    random: Random,
    rack: Network,
    objects: Objects,
    router: Router,
    router_link: Link,
    /// Prefixes of the router, by number.
    outside: BTreeSet<usize>,
    /// The nodes have a session with the router.
    peered: bool,
    nodes: Vec<Node>,
    policies: BTreeMap<String, Policy>,
    number: usize,
    counts: Counts,
    /// When people were told how it goes.
    told: Instant,
}

/// Runs the second world to its end.
pub(super) fn run(lab: &Lab, plan: &Plan, stop: &Stop) -> Result<Report> {
    let mut world = World::new(lab, plan, stop)?;
    let done = world.day();
    done.with_context(|| {
        let mut text = format!("seed {}\n{}", plan.seed, world.journal.tail());
        for node in &mut world.nodes {
            let log = node.agent.process().tail();
            text += &format!("\nthe agent of {} says:\n{log}", node.name);
        }
        text
    })
}

impl<'a> World<'a> {
    fn new(lab: &Lab, plan: &'a Plan, stop: &'a Stop) -> Result<World<'a>> {
        let cidrs = ["172.29.0.0/16".parse()?, "fd29::/64".parse()?];
        let rack = lab.network("rack", &cidrs)?;
        let netns = lab.netns("tor")?;
        netns.forward()?;
        let router_link = rack.join(&netns)?;
        let IpAddr::V4(router_id) = router_link.ipv4()? else {
            bail!("no IPv4 address")
        };
        let mut speaker = Speaker::new(ROUTER, router_id);
        speaker.addresses = addresses(&router_link);
        speaker.restart_time = 10;
        let router = Router::start(Kind::Bird, &netns, speaker)?;
        let objects = Objects::create(lab.directory().join("objects"))?;
        for name in NAMESPACES.iter().chain(&["default", "selvage-system"]) {
            objects.write(&format!("namespace-{name}"), &objects::namespace(name))?;
        }
        Ok(World {
            lab: lab.clone(),
            plan,
            stop,
            journal: Journal::new("the nodes' world", plan.loud),
            random: Random::new(plan.seed ^ 0x6e6f_6465_7300),
            rack,
            objects,
            router,
            router_link,
            outside: BTreeSet::new(),
            peered: false,
            nodes: Vec::new(),
            policies: BTreeMap::new(),
            number: 0,
            counts: Counts::default(),
            told: Instant::now(),
        })
    }

    fn day(&mut self) -> Result<Report> {
        self.set(16, 5)?;
        for _ in 0..self.plan.nodes {
            self.add_node(None)?;
        }
        for node in &mut self.nodes {
            node.agent.wait_ready(SETTLE)?;
        }
        self.peer()?;
        self.rest()?;
        self.check()?;
        // The first node lives through all of it.
        let pid = self.nodes[0].agent.process().pid();
        let before = Usage::of(pid, self.plan.watched)?;
        self.journal.step(format!("quiet: {before}"));
        // The other world takes so much longer at least.
        let end = Instant::now() + self.plan.time + self.plan.linger;
        let mut steps = 0;
        while Instant::now() < end && !self.stop.is_told() {
            self.step()?;
            steps += 1;
            if steps % STEPS == 0 {
                self.check()?;
            }
            self.tell_of_it()?;
        }
        self.rest()?;
        self.check()?;
        let after = Usage::of(pid, self.plan.watched)?;
        self.journal.step(format!("quiet again: {after}"));
        after.is_as_before(&before).context("the first node")?;
        let c = &self.counts;
        Ok(Report {
            name: "nodes",
            lines: vec![
                format!(
                    "{} nodes replaced, {} agents killed and {} stopped, {} of them past their restart time, {} links cut, {} pods and {} policies made",
                    c.replaced, c.killed, c.stopped, c.away, c.cuts, c.pods, c.policies
                ),
                format!(
                    "{} changes of the configuration, {} steps, {} checkpoints, {} connections judged",
                    c.changes,
                    self.journal.number(),
                    c.checks,
                    c.probes
                ),
            ],
            usage: (before, after),
        })
    }

    /// Tells people how it goes, if they want to know.
    fn tell_of_it(&mut self) -> Result<()> {
        let Some(every) = self.plan.told else {
            return Ok(());
        };
        if self.told.elapsed() < every {
            return Ok(());
        }
        self.told = Instant::now();
        let c = &self.counts;
        let mut line = format!(
            "{:>5} s  nodes: {} steps, {} replaced, {} killed, {} stopped, {} links cut, {} pods, {} policies, {} changes, {} checkpoints, {} connections",
            self.journal.elapsed().as_secs(),
            self.journal.number(),
            c.replaced,
            c.killed,
            c.stopped,
            c.cuts,
            c.pods,
            c.policies,
            c.changes,
            c.checks,
            c.probes,
        );
        for node in &mut self.nodes {
            let usage = Usage::of(node.agent.process().pid(), Duration::ZERO)?;
            line += &format!(
                "; {} RSS {:.1} MiB, anonymous {:.1} MiB, {} descriptors, {} threads",
                node.name,
                usage.rss as f64 / 1024.0,
                usage.anonymous as f64 / 1024.0,
                usage.descriptors,
                usage.threads
            );
        }
        println!("{line}; load {}", load());
        Ok(())
    }

    /// The routes of BGP that a node should have, and by which way.
    fn wanted_routes(&self, place: usize) -> Result<BTreeMap<IpNet, String>> {
        let mut wanted = BTreeMap::new();
        for (other, node) in self.nodes.iter().enumerate() {
            for cidr in &node.cidrs {
                let way = match other == place {
                    true => "nowhere".to_owned(),
                    false => gateway(&node.link, cidr)?,
                };
                wanted.insert(*cidr, way);
            }
        }
        if self.peered {
            for n in &self.outside {
                for prefix in outside(*n)? {
                    wanted.insert(prefix, gateway(&self.router_link, &prefix)?);
                }
            }
        }
        Ok(wanted)
    }

    /// Everything but verdicts is as the model says.
    fn look(&mut self) -> Result<()> {
        for place in 0..self.nodes.len() {
            let wanted = self.wanted_routes(place)?;
            let node = &mut self.nodes[place];
            let name = node.name.clone();
            if let Some(status) = node.agent.process().ended() {
                bail!(
                    "the agent of {name} has ended: {status}\n{}",
                    node.agent.process().tail()
                );
            }
            same(&format!("routes of {name}"), &routes(&node.netns)?, &wanted)?;
            let pods: BTreeSet<IpAddr> = node
                .pods
                .values()
                .flat_map(|pod| pod.running.addresses.iter().copied())
                .collect();
            let attached = attached(node.agent.state_dir())?;
            ensure!(
                attached == pods,
                "attachments of {name}: {attached:?}, wanted {pods:?}"
            );
            let leases = leases(node.agent.state_dir())?;
            ensure!(
                leases == pods,
                "leases of {name}: {leases:?}, wanted {pods:?}"
            );
            let status = node.agent.json(&["status"])?;
            ensure!(status["health"] == "good", "{name}: {status}");
        }
        let own: BTreeSet<IpNet> = self.nodes.iter().flat_map(|n| n.cidrs.clone()).collect();
        let wanted = if self.peered { own } else { BTreeSet::new() };
        let learned = self.router.routes()?.into_iter();
        let learned: BTreeSet<IpNet> = learned
            .filter(|route| route.next_hop.is_some())
            .map(|route| route.prefix)
            .collect();
        ensure!(
            learned == wanted,
            "routes of the router: {learned:?}, wanted {wanted:?}"
        );
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.journal.step("a checkpoint");
        let end = Instant::now() + SETTLE;
        loop {
            let Err(error) = self.look() else { break };
            if Instant::now() >= end {
                return Err(error.context(format!("not within {SETTLE:?}")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.counts.checks += 1;
        for _ in 0..PROBES {
            self.probe()?;
        }
        Ok(())
    }

    /// One connection between two pods, in both families.
    fn probe(&mut self) -> Result<()> {
        let (Some(from), Some(to)) = (self.any_pod(), self.any_pod()) else {
            return Ok(());
        };
        let port = self.random.pick(&PORTS).unwrap_or(80);
        if from == to {
            return Ok(());
        }
        let pod = |(place, name): &(usize, String)| &self.nodes[*place].pods[name];
        let (source, target) = (pod(&from), pod(&to));
        let policies = self.policies.values();
        let passes = allowed(policies, &source.identity, &target.identity, port);
        let wanted = match passes {
            true => Answer::Yes,
            false => Answer::Silence,
        };
        for address in &target.running.addresses {
            let to_port = SocketAddr::new(*address, port);
            let what = format!("{} to {} at {to_port}: {wanted:?}", from.1, to.1);
            let answer = eventually_ok(SOON, &what, || {
                let answer = tcp::connect(&source.running.netns, to_port, ATTEMPT)?;
                ensure!(answer == wanted, "{answer:?}");
                Ok(())
            });
            answer.with_context(|| {
                let policies = self.policies.iter();
                let policies: Vec<String> = policies
                    .map(|(name, policy)| policy.object(name).to_string())
                    .collect();
                format!("{:?} {:?} {policies:?}", source.identity, target.identity)
            })?;
            self.counts.probes += 1;
        }
        Ok(())
    }
}
