//! A topology that runs: networks, routers, nodes with agents, pods.
//!
//! Each step is a call of its own, so that a program can show what happens and a trial can stop half-way.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use selvage_netlink::Prefix;
use selvage_netlink::route::{self, Filter};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::daemon::{Kind, Neighbour, Router, Speaker};
use crate::kubelet::{Kubelet, RunningPod};
use crate::kubernetes::{ControlPlane, Rest, Settings, manifests};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::network::{Link, Network, add_route};
use crate::objects::{self, Objects};
use crate::probe::server::EchoServer;
use crate::topology::{self, Topology};

/// Who makes the agent's routes.
const PROTOCOL_BGP: u8 = 85;

/// Sysctls of a node that its agent may not be able to write: the installing container's work.
pub const NODE_SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/nexthop_compat_mode", "0"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    ("net/ipv6/fib_multipath_hash_policy", "1"),
];

/// A running topology. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    topology: Topology,
    objects: Objects,
    asn: u32,
    networks: BTreeMap<String, Network>,
    members: BTreeMap<String, Netns>,
    /// By `NETWORK/MEMBER`.
    links: BTreeMap<String, Link>,
    routers: BTreeMap<String, RunningRouter>,
    nodes: BTreeMap<String, RunningNode>,
    pods: BTreeMap<String, ServingPod>,
    control: Option<ControlPlane>,
    ptp: Option<Ptp>,
}

/// Pods made by the reference plugin `ptp`.
#[derive(Clone, Debug)]
struct Ptp {
    /// Where its program is, and that of `host-local`.
    folder: PathBuf,
    /// What the agents are told of the names of its interfaces.
    prefix: String,
}

/// A router of the topology.
#[derive(Debug)]
pub enum RunningRouter {
    /// A daemon of others.
    Other(Router),
    /// Our own agent.
    Own(Agent),
}

/// A node of the topology.
#[derive(Debug)]
pub struct RunningNode {
    /// Its agent.
    pub agent: Agent,
    /// Its runtime.
    pub kubelet: Kubelet,
}

/// A pod with its echo servers.
#[derive(Debug)]
pub struct ServingPod {
    /// The pod.
    pub running: RunningPod,
    /// One per port.
    pub servers: Vec<EchoServer>,
}

impl Cluster {
    /// Makes networks, namespaces and links, and writes the objects: everything but processes.
    ///
    /// # Errors
    /// When the kernel refuses or the objects cannot be read.
    pub fn new(lab: &Lab, topology: Topology) -> Result<Cluster> {
        Cluster::wired(lab, topology)?.with_objects()
    }

    /// The same with a real API server, joined to the first network after everybody else; the agents read from it,
    /// through its proxy, and the objects are written to it.
    ///
    /// # Errors
    /// When it does not come up as well.
    pub fn on_api(lab: &Lab, topology: Topology, settings: &Settings) -> Result<Cluster> {
        let mut cluster = Cluster::wired(lab, topology)?;
        let network = cluster.topology.networks.first().context("no network")?;
        let network = &network.name.value;
        let netns = lab.netns("control")?;
        let link = cluster.networks.get(network).context("no network")?;
        let link = link.join(&netns)?;
        let control = ControlPlane::start(&netns, link.addresses(), settings)?;
        control.kubectl().install_kinds()?;
        for part in ["base/namespace.yaml", "base/rbac.yaml"] {
            control.kubectl().apply_path(&manifests(part))?;
        }
        cluster.objects =
            Objects::create_at(lab.directory().join("objects"), Rest::start(&control)?)?;
        cluster.links.insert(format!("{network}/control"), link);
        cluster.members.insert("control".into(), netns);
        cluster.control = Some(control);
        cluster.with_objects()
    }

    fn with_objects(mut self) -> Result<Cluster> {
        self.write_objects()?;
        if let Some(directory) = &self.topology.objects {
            self.objects.copy_from(directory)?;
        }
        self.asn = self.objects.asn()?;
        Ok(self)
    }

    fn wired(lab: &Lab, topology: Topology) -> Result<Cluster> {
        let objects = Objects::create(lab.directory().join("objects"))?;
        let mut cluster = Cluster {
            lab: lab.clone(),
            asn: 0,
            objects,
            networks: BTreeMap::new(),
            members: BTreeMap::new(),
            links: BTreeMap::new(),
            routers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            topology,
            control: None,
            ptp: None,
        };
        cluster.wire()?;
        Ok(cluster)
    }

    /// Has pods made by the reference plugin `ptp`, whose program and that of `host-local` are in `folder`. Agents do nothing
    /// but policy, and take interfaces whose names begin with `prefix` for those of pods. Static routes lead from node to node.
    /// Before anything is started.
    ///
    /// # Errors
    /// When a route is refused.
    pub fn use_ptp(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        for node in &self.topology.nodes {
            let gateways = self.addresses(&node.name.value);
            let others = self.topology.nodes.iter();
            for other in others.filter(|other| other.name.value != node.name.value) {
                for cidr in &node.pod_cidrs {
                    let same = |gateway: &&IpAddr| gateway.is_ipv4() == cidr.addr().is_ipv4();
                    if let Some(gateway) = gateways.iter().find(same) {
                        add_route(self.netns(&other.name.value)?, *cidr, *gateway)?;
                    }
                }
            }
        }
        self.ptp = Some(Ptp {
            folder: folder.to_owned(),
            prefix: prefix.to_owned(),
        });
        Ok(())
    }

    /// The control plane, if objects are at an API server.
    ///
    /// # Errors
    /// When they are not.
    pub fn control(&mut self) -> Result<&mut ControlPlane> {
        self.control.as_mut().context("there is no API server")
    }

    fn wire(&mut self) -> Result<()> {
        for network in &self.topology.networks {
            let name = &network.name.value;
            let network = self.lab.network(name, &network.cidrs)?;
            self.networks.insert(name.clone(), network);
        }
        let routers = self
            .topology
            .routers
            .iter()
            .map(|router| (&router.name.value, &router.networks, false));
        let nodes = self
            .topology
            .nodes
            .iter()
            .map(|node| (&node.name.value, &node.networks, true));
        for (name, mentions, is_node) in routers.chain(nodes) {
            let netns = self.lab.netns(name)?;
            netns.forward()?;
            for (key, value) in NODE_SYSCTLS.iter().filter(|_| is_node) {
                netns.set_sysctl(key, value)?;
            }
            for mention in mentions {
                let network = self.networks.get(&mention.value);
                let network = network.context("a network that was checked")?;
                self.links
                    .insert(format!("{}/{name}", mention.value), network.join(&netns)?);
            }
            self.members.insert(name.clone(), netns);
        }
        Ok(())
    }

    fn write_objects(&self) -> Result<()> {
        for node in &self.topology.nodes {
            let addresses = self.addresses(&node.name.value);
            self.objects.write(
                &format!("node-{}", node.name.value),
                &objects::node(node, &addresses),
            )?;
        }
        let mut namespaces: Vec<&str> = self
            .topology
            .pods
            .iter()
            .map(|pod| pod.namespace.as_str())
            .collect();
        namespaces.extend(["default", "selvage-system"]);
        namespaces.sort_unstable();
        namespaces.dedup();
        for name in namespaces {
            self.objects
                .write(&format!("namespace-{name}"), &objects::namespace(name))?;
        }
        Ok(())
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What it was made from.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The objects that the agents read.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The nodes' autonomous system.
    #[must_use]
    pub fn asn(&self) -> u32 {
        self.asn
    }

    /// A link by `NETWORK/MEMBER`.
    ///
    /// # Errors
    /// When there is none.
    pub fn link(&self, name: &str) -> Result<&Link> {
        self.links.get(name).with_context(|| {
            format!(
                "no link {name}; there are: {}",
                self.links.keys().cloned().collect::<Vec<_>>().join(", ")
            )
        })
    }

    /// All links by `NETWORK/MEMBER`.
    #[must_use]
    pub fn links(&self) -> &BTreeMap<String, Link> {
        &self.links
    }

    /// A router by name.
    ///
    /// # Errors
    /// When it was not started.
    pub fn router(&mut self, name: &str) -> Result<&mut RunningRouter> {
        self.routers
            .get_mut(name)
            .with_context(|| format!("no router {name} runs"))
    }

    /// A node by name.
    ///
    /// # Errors
    /// When it was not started.
    pub fn node(&mut self, name: &str) -> Result<&mut RunningNode> {
        self.nodes
            .get_mut(name)
            .with_context(|| format!("no node {name} runs"))
    }

    /// A pod by `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// When it was not started.
    pub fn pod(&self, key: &str) -> Result<&ServingPod> {
        self.pods
            .get(key)
            .with_context(|| format!("no pod {key} runs"))
    }

    /// The namespace of a pod, node or router.
    ///
    /// # Errors
    /// When there is none.
    pub fn netns(&self, name: &str) -> Result<&Netns> {
        let pod = self.pods.get(name).map(|pod| &pod.running.netns);
        pod.or_else(|| self.members.get(name))
            .with_context(|| format!("nothing called {name} runs"))
    }

    /// The addresses of a pod, or of a node or router on its first network.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        if let Some(pod) = self.pods.get(name) {
            return pod.running.addresses.clone();
        }
        let nodes = self
            .topology
            .nodes
            .iter()
            .map(|node| (&node.name.value, &node.networks));
        let routers = self
            .topology
            .routers
            .iter()
            .map(|router| (&router.name.value, &router.networks));
        let first = nodes
            .chain(routers)
            .find(|(member, _)| *member == name)
            .and_then(|(_, networks)| networks.first());
        let link = first.and_then(|network| self.links.get(&format!("{}/{name}", network.value)));
        link.map(|link| link.addresses().iter().map(IpNet::addr).collect())
            .unwrap_or_default()
    }

    /// How many of the nodes' sessions are established, and how many are configured; one between two nodes counts once.
    ///
    /// # Errors
    /// When an agent does not answer.
    pub fn sessions(&self) -> Result<(usize, usize)> {
        let nodes: Vec<IpAddr> = self
            .topology
            .nodes
            .iter()
            .flat_map(|node| self.addresses(&node.name.value))
            .collect();
        let (mut up, mut all) = ([0, 0], [0, 0]);
        for node in self.nodes.values() {
            for peer in node.agent.peers()? {
                let between_nodes = usize::from(nodes.contains(&peer.address));
                all[between_nodes] += 1;
                up[between_nodes] += usize::from(peer.up);
            }
        }
        let once = |[outside, inside]: [usize; 2]| outside + inside / 2;
        Ok((once(up), once(all)))
    }

    /// How many sessions with a node are established, as its neighbours see them.
    ///
    /// # Errors
    /// When a neighbour does not answer.
    pub fn sessions_with(&self, node: &str) -> Result<usize> {
        let links = self
            .links
            .iter()
            .filter(|(name, _)| name.ends_with(&format!("/{node}")));
        let own: Vec<IpAddr> = links
            .flat_map(|(_, link)| link.addresses())
            .map(IpNet::addr)
            .collect();
        let mut count = 0;
        for router in self.routers.values() {
            count += match router {
                RunningRouter::Other(router) => router
                    .sessions()?
                    .iter()
                    .filter(|s| s.established && own.contains(&s.peer))
                    .count(),
                RunningRouter::Own(agent) => established(agent, &own)?,
            };
        }
        for (_, other) in self.nodes.iter().filter(|(name, _)| *name != node) {
            count += established(&other.agent, &own)?;
        }
        Ok(count)
    }

    /// Whether another node's kernel has a route to the pods of a node.
    ///
    /// # Errors
    /// When a node's routes cannot be listed.
    pub fn routes_are_kept(&self, node: &str) -> Result<bool> {
        let nodes = self.topology.nodes.iter();
        let (own, others): (Vec<_>, Vec<_>) = nodes.partition(|other| other.name.value == node);
        let cidrs: Vec<IpNet> = own.iter().flat_map(|node| node.pod_cidrs.clone()).collect();
        let filter = Filter {
            protocol: Some(PROTOCOL_BGP),
            ..Filter::default()
        };
        for other in others {
            let mut socket = self.netns(&other.name.value)?.rtnetlink()?;
            for cidr in &cidrs {
                let wanted = Prefix::new(cidr.network(), cidr.prefix_len());
                let routes = route::list(&mut socket, cidr.addr().is_ipv6(), &filter)?;
                if routes.iter().any(|route| route.prefix == wanted) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Starts a router of the topology.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_router(&mut self, name: &str) -> Result<()> {
        let router = self
            .topology
            .routers
            .iter()
            .find(|router| router.name.value == name);
        let router = router.with_context(|| format!("no router {name}"))?.clone();
        let netns = self.netns(name)?.clone();
        let neighbours = self.neighbours(&router)?;
        let running = match router.daemon.kind() {
            Some(kind) => {
                RunningRouter::Other(self.start_other(kind, &router, &netns, neighbours)?)
            }
            None => RunningRouter::Own(self.start_own(&router, &netns, &neighbours)?),
        };
        self.routers.insert(name.to_owned(), running);
        Ok(())
    }

    /// Every router and node on the networks of `router`, by its first address there.
    fn neighbours(&self, router: &topology::Router) -> Result<Vec<Neighbour>> {
        let mut neighbours = Vec::new();
        let routers = self
            .topology
            .routers
            .iter()
            .map(|other| (&other.name.value, other.asn, other.password.as_ref()));
        let nodes = self
            .topology
            .nodes
            .iter()
            .map(|node| (&node.name.value, self.asn, None));
        for (name, asn, password) in routers
            .chain(nodes)
            .filter(|(name, ..)| **name != router.name.value)
        {
            for network in &router.networks {
                let Some(link) = self.links.get(&format!("{}/{name}", network.value)) else {
                    continue;
                };
                let address = link
                    .addresses()
                    .first()
                    .context("a network without prefixes")?
                    .addr();
                let mut neighbour = Neighbour::new(address, asn);
                neighbour.password = router.password.clone().or_else(|| password.cloned());
                neighbours.push(neighbour);
            }
        }
        Ok(neighbours)
    }

    fn start_other(
        &self,
        kind: Kind,
        router: &topology::Router,
        netns: &Netns,
        neighbours: Vec<Neighbour>,
    ) -> Result<Router> {
        let mut speaker = Speaker::new(router.asn, self.router_id(router)?);
        speaker.addresses = self.addresses(&router.name.value);
        speaker.neighbours = neighbours;
        Router::start(kind, netns, speaker)
    }

    /// Our own agent as a router, from a directory of objects of its own.
    fn start_own(
        &self,
        router: &topology::Router,
        netns: &Netns,
        neighbours: &[Neighbour],
    ) -> Result<Agent> {
        let name = &router.name.value;
        let objects = Objects::create(self.lab.directory().join(format!("objects-{name}")))?;
        let configuration = json!({
            "asn": router.asn,
            "routerId": self.router_id(router)?,
            "nodeMesh": {"mode": "off"},
        });
        objects.write(
            "configuration",
            &object("BGPConfiguration", "default", configuration),
        )?;
        for neighbour in neighbours {
            let mut spec = json!({"address": neighbour.address, "asn": neighbour.asn});
            if let Some(password) = &neighbour.password {
                spec["passwordSecretRef"] = json!({"name": "peers", "key": "password"});
                let secret = json!({
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": "peers", "namespace": "selvage-system"},
                    "stringData": {"password": password},
                });
                objects.write("secret", &secret)?;
            }
            let peer = format!("peer-{}", neighbour.address).replace([':', '.'], "-");
            objects.write(&peer, &object("BGPPeer", &peer, spec))?;
        }
        Agent::start(
            netns,
            name,
            objects.directory(),
            &["--features", "bgp,kernel"],
        )
    }

    fn router_id(&self, router: &topology::Router) -> Result<Ipv4Addr> {
        let addresses = self.addresses(&router.name.value);
        let v4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        v4.with_context(|| {
            format!(
                "router {} needs an IPv4 address for its identifier",
                router.name.value
            )
        })
    }

    /// Starts the agent of a node; it is not waited for.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_node(&mut self, name: &str) -> Result<()> {
        let node = self
            .topology
            .nodes
            .iter()
            .find(|node| node.name.value == name);
        let node = node.with_context(|| format!("no node {name}"))?;
        let netns = self.netns(name)?;
        let more: Vec<&str> = match &self.ptp {
            None => Vec::new(),
            Some(ptp) => [
                "--features",
                "policy",
                "--pod-interface-prefix",
                &*ptp.prefix,
            ]
            .into(),
        };
        let agent = match &self.control {
            None => Agent::start(netns, name, self.objects.directory(), &more)?,
            Some(control) => {
                // With the rights that it has in a cluster, and no others.
                let kubeconfig = control.service_account_kubeconfig("selvage-system", "selvage")?;
                let more = [&more[..], &["--cni-conf", "off"]].concat();
                Agent::start_on_api(netns, name, &kubeconfig, &more)?
            }
        };
        let (objects, cidrs) = (&self.objects, &node.pod_cidrs);
        let kubelet = match &self.ptp {
            None => Kubelet::new(netns, objects, agent.run_dir(), agent.state_dir(), cidrs)?,
            Some(ptp) => Kubelet::with_ptp(netns, objects, &ptp.folder, agent.state_dir(), cidrs),
        };
        self.nodes
            .insert(name.to_owned(), RunningNode { agent, kubelet });
        Ok(())
    }

    /// Starts a pod on its node, with its echo servers.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub fn start_pod(&mut self, key: &str) -> Result<&ServingPod> {
        let pod = self
            .topology
            .pod(key)
            .with_context(|| format!("no pod {key}"))?
            .clone();
        let running = self.node(&pod.node.value)?.kubelet.start(&pod)?;
        let servers = pod
            .ports
            .iter()
            .map(|port| EchoServer::start(&running.netns, *port))
            .collect::<Result<_>>()?;
        self.pods
            .insert(key.to_owned(), ServingPod { running, servers });
        self.pod(key)
    }

    /// Removes a pod as the kubelet does.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub fn stop_pod(&mut self, key: &str) -> Result<()> {
        let pod = self
            .pods
            .remove(key)
            .with_context(|| format!("no pod {key} runs"))?;
        let ServingPod { running, servers } = pod;
        drop(servers);
        self.node(&running.pod.node.value)?.kubelet.stop(&running)
    }

    /// Ends the echo servers of a pod, which keep its namespace.
    ///
    /// # Errors
    /// When it was not started.
    pub fn stop_servers(&mut self, key: &str) -> Result<()> {
        self.pods
            .get_mut(key)
            .with_context(|| format!("no pod {key} runs"))?
            .servers
            .clear();
        Ok(())
    }

    /// Everything: routers, nodes (all at once, then waited for), pods.
    ///
    /// # Errors
    /// When a part does not come up within `limit`.
    pub fn start(&mut self, limit: Duration) -> Result<()> {
        let routers: Vec<String> = self
            .topology
            .routers
            .iter()
            .map(|router| router.name.value.clone())
            .collect();
        let nodes: Vec<String> = self
            .topology
            .nodes
            .iter()
            .map(|node| node.name.value.clone())
            .collect();
        let pods: Vec<String> = self.topology.pods.iter().map(topology::Pod::key).collect();
        routers
            .iter()
            .try_for_each(|name| self.start_router(name))?;
        nodes.iter().try_for_each(|name| self.start_node(name))?;
        nodes
            .iter()
            .try_for_each(|name| self.node(name)?.agent.wait_ready(limit).map(|_| ()))?;
        pods.iter()
            .try_for_each(|key| self.start_pod(key).map(|_| ()))
    }
}

fn established(agent: &Agent, with: &[IpAddr]) -> Result<usize> {
    Ok(agent
        .peers()?
        .iter()
        .filter(|peer| peer.up && with.contains(&peer.address))
        .count())
}

/// An object of our own API.
#[must_use]
pub fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "selvage.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}
