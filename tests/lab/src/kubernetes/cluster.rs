//! A whole cluster: a fabric, a control plane, nodes, and a router if asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::access::Kubectl;
use super::control_plane::{ControlPlane, Settings};
use super::images;
use super::node::{KubeProxy, Node};
use super::programs::Programs;
use crate::daemon::{Kind, Neighbour, Router, Speaker};
use crate::deadline::{eventually_ok, scaled};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::network::{Cut, Link, Network, add_route};

/// How long a cluster may take for what it does by itself: seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Its nodes begin as `n1` to `nN`.
    pub nodes: usize,
    /// kube-proxy on each node, if it is to be there.
    pub kube_proxy: Option<KubeProxy>,
    /// A BIRD top-of-rack router of this autonomous system, and the nodes' autonomous system.
    pub router: Option<(u32, u32)>,
    /// The fabric's prefixes. The control plane has the first address, then comes the router, then the nodes.
    pub fabric: Vec<IpNet>,
    /// Archives of images that each node has, beside those of the tests.
    pub images: Vec<PathBuf>,
    /// Labels of nodes.
    pub labels: BTreeMap<String, Vec<(String, String)>>,
    /// The control plane.
    pub control: Settings,
}

impl ClusterSettings {
    /// Dual-stack nodes with kube-proxy in nftables mode, no router.
    #[must_use]
    pub fn new(nodes: usize) -> ClusterSettings {
        let fabric = ["192.0.2.0/24", "2001:db8::/64"];
        ClusterSettings {
            nodes,
            kube_proxy: Some(KubeProxy::Nftables),
            router: None,
            fabric: fabric.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            images: Vec::new(),
            labels: BTreeMap::new(),
            control: Settings {
                controllers: true,
                ..Settings::default()
            },
        }
    }
}

impl ClusterSettings {
    /// The second family becomes the first, of nodes, pods and services.
    pub fn reverse_families(&mut self) {
        self.fabric.reverse();
        self.control.pod_cidrs.reverse();
        self.control.service_cidrs.reverse();
    }
}

/// A running cluster. Dropping it ends it.
///
/// Each step is a call of its own, so that a program can show what happens; [`KubernetesCluster::start`] takes all.
#[derive(Debug)]
pub struct KubernetesCluster {
    lab: Lab,
    settings: ClusterSettings,
    programs: Programs,
    images: Vec<PathBuf>,
    nodes: BTreeMap<String, Node>,
    router: Option<(Router, Link)>,
    control: ControlPlane,
    control_link: Link,
    fabric: Network,
}

/// A pod as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Where it runs, once that is known.
    pub node: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `Pending`, `Running`, …
    pub phase: String,
    /// All its containers are ready.
    pub ready: bool,
}

impl KubernetesCluster {
    /// Makes the fabric and starts the control plane.
    ///
    /// # Errors
    /// When a program is not built or does not come up.
    pub fn new(lab: &Lab, settings: ClusterSettings) -> Result<KubernetesCluster> {
        let programs = Programs::of_cluster()?;
        let fabric = lab.network("fabric", &settings.fabric)?;
        let netns = lab.netns("control")?;
        netns.forward()?;
        let control_link = fabric.join(&netns)?;
        let (control, own) = thread::scope(|scope| {
            let own = scope.spawn(|| images::write(lab, &programs));
            let control = ControlPlane::start(&netns, control_link.addresses(), &settings.control);
            let own = own
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, anyhow::Error>((control?, own?))
        })?;
        Ok(KubernetesCluster {
            lab: lab.clone(),
            images: own.into_iter().chain(settings.images.clone()).collect(),
            settings,
            programs,
            nodes: BTreeMap::new(),
            router: None,
            control,
            control_link,
            fabric,
        })
    }

    /// Everything of the settings, up to the kubelets. Nodes are Ready when they have a CNI configuration.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(lab: &Lab, settings: ClusterSettings) -> Result<KubernetesCluster> {
        let names: Vec<String> = (1..=settings.nodes).map(|n| format!("n{n}")).collect();
        let mut cluster = KubernetesCluster::new(lab, settings)?;
        cluster.start_router()?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.add_nodes(&names)?;
        Ok(cluster)
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What it was made from.
    #[must_use]
    pub fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    /// The programs that it runs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The network of nodes, router and control plane.
    #[must_use]
    pub fn fabric(&self) -> &Network {
        &self.fabric
    }

    /// The control plane.
    #[must_use]
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// The control plane, to be stopped and started.
    pub fn control_mut(&mut self) -> &mut ControlPlane {
        &mut self.control
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.control.kubectl()
    }

    /// The nodes by name.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    /// A node.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .get(name)
            .with_context(|| format!("no node {name} runs"))
    }

    /// A node, to be changed.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .get_mut(name)
            .with_context(|| format!("no node {name} runs"))
    }

    /// The router.
    ///
    /// # Errors
    /// When none was asked for.
    pub fn router(&mut self) -> Result<&mut Router> {
        let router = self.router.as_mut().map(|(router, _)| router);
        router.context("the cluster has no router")
    }

    /// The router's addresses.
    #[must_use]
    pub fn router_addresses(&self) -> Vec<IpAddr> {
        let addresses = self.router.iter().flat_map(|(_, link)| link.addresses());
        addresses.map(IpNet::addr).collect()
    }

    /// Starts the router if one was asked for. Nodes and control plane have it as their default gateway; it has a
    /// session with each node, over IPv4, once the node begins one.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_router(&mut self) -> Result<()> {
        let Some((asn, nodes)) = self.settings.router else {
            return Ok(());
        };
        let netns = self.lab.netns("tor")?;
        netns.forward()?;
        let link = self.fabric.join(&netns)?;
        let addresses: Vec<IpAddr> = link.addresses().iter().map(IpNet::addr).collect();
        let id = addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let mut speaker = Speaker::new(asn, id.unwrap_or(Ipv4Addr::new(192, 0, 2, 255)));
        speaker.addresses = addresses;
        // Those that come later have a place already.
        let expected = u32::try_from(self.settings.nodes)? + SPARE;
        for number in 3..3 + expected {
            if let Some(address) = self
                .settings
                .fabric
                .first()
                .and_then(|cidr| crate::network::host_address(cidr, number))
            {
                speaker
                    .neighbours
                    .push(Neighbour::new(address.addr(), nodes).passive());
            }
        }
        let router = Router::start(Kind::Bird, &netns, speaker)?;
        self.router = Some((router, link));
        self.set_gateway(self.control.netns())
    }

    /// Adds nodes, side by side, up to their kubelets and kube-proxies.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn add_nodes(&mut self, names: &[&str]) -> Result<()> {
        let mut places = Vec::new();
        for name in names {
            ensure!(!self.nodes.contains_key(*name), "node {name} runs already");
            let netns = self.lab.netns(name)?;
            // Addresses in the order of names.
            places.push((netns.clone(), self.fabric.join(&netns)?));
            self.set_gateway(&netns)?;
        }
        let this = &*self;
        let nodes: Vec<Result<Node>> = thread::scope(|scope| {
            let started: Vec<_> = places
                .iter()
                .map(|(netns, link)| scope.spawn(|| this.start_node(netns, link)))
                .collect();
            started
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        for node in nodes {
            let node = node?;
            self.nodes.insert(node.name().to_owned(), node);
        }
        Ok(())
    }

    fn start_node(&self, netns: &Netns, link: &Link) -> Result<Node> {
        let mut node = Node::create(netns, link, &self.programs, &self.images)?;
        let labels = self.settings.labels.get(netns.name());
        node.start_kubelet(&self.control, labels.map_or(&[], Vec::as_slice))?;
        if let Some(mode) = self.settings.kube_proxy {
            node.start_kube_proxy(&self.control, mode, &self.settings.control.pod_cidrs)?;
        }
        let name = netns.name();
        eventually_ok(PATIENCE, &format!("node {name} is registered"), || {
            self.kubectl().run(&["get", "node", name])
        })?;
        Ok(node)
    }

    /// The way out is the router's; without one, the control plane's, who knows no way back to a pod.
    fn set_gateway(&self, netns: &Netns) -> Result<()> {
        let link = self
            .router
            .as_ref()
            .map_or(&self.control_link, |(_, link)| link);
        for address in link.addresses() {
            let all = match address {
                IpNet::V4(_) => "0.0.0.0/0",
                IpNet::V6(_) => "::/0",
            };
            add_route(netns, all.parse()?, address.addr())?;
        }
        Ok(())
    }

    /// Deletes a node's object and ends it.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let mut node = self
            .nodes
            .remove(name)
            .with_context(|| format!("no node {name} runs"))?;
        self.kubectl().run(&["delete", "node", name])?;
        node.kill()
    }

    /// A node fails: its cable is dead and everything on it is killed. Its object stays.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn kill_node(&mut self, name: &str) -> Result<()> {
        let node = self.node_mut(name)?;
        node.link().cut(Cut::Drop)?;
        node.kill()
    }

    /// Waits until every node that runs is Ready.
    ///
    /// # Errors
    /// With what the nodes say when they are not within `limit`.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        eventually_ok(limit, "all nodes are Ready", || {
            let nodes = self.kubectl().json(&["get", "nodes"])?;
            let nodes = nodes["items"].as_array().context("no list")?;
            for name in self.nodes.keys() {
                let node = nodes.iter().find(|node| node["metadata"]["name"] == **name);
                let node = node.with_context(|| format!("no node {name}"))?;
                let ready = condition(node, "Ready").context("no condition")?;
                ensure!(ready["status"] == "True", "{name}: {}", ready["message"]);
            }
            Ok(())
        })
    }

    /// Waits until a Deployment or DaemonSet (`deployment/web`) has rolled out.
    ///
    /// # Errors
    /// With what its pods say when it has not within `limit`.
    pub fn wait_rollout(&self, namespace: &str, object: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", scaled(limit).as_secs());
        let kubectl = self.kubectl();
        let rolled = kubectl.run(&["-n", namespace, "rollout", "status", object, &timeout]);
        rolled.map(drop).map_err(|error| {
            let said = |words: &[&str]| {
                let answer = kubectl.run(&[&["-n", namespace], words].concat());
                answer.unwrap_or_else(|error| error.to_string())
            };
            let log = [
                "logs",
                object,
                "--all-pods",
                "--all-containers",
                "--prefix",
                "--tail=20",
            ];
            let pods = said(&["describe", "pods"]);
            error.context(format!("{pods}\n{}", said(&log)))
        })
    }

    /// The pods that `words` select, as in `["-n", "shop", "-l", "app=web"]` or `["-A"]`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn pods(&self, words: &[&str]) -> Result<Vec<Pod>> {
        let list = self.kubectl().json(&[&["get", "pods"], words].concat())?;
        let pods = list["items"].as_array().context("no list")?;
        pods.iter().map(Pod::read).collect()
    }

    /// A pod.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        Pod::read(
            &self
                .kubectl()
                .json(&["-n", namespace, "get", "pod", name])?,
        )
    }

    /// The namespace of a pod.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pod_netns(&self, pod: &Pod) -> Result<Netns> {
        let node = pod.node.as_deref();
        let node = node.with_context(|| format!("pod {} is on no node", pod.name))?;
        self.node(node)?.pod_netns(&pod.uid)
    }

    /// Makes the nodes Ready with the reference plugins, for comparison: ptp and host-local from `folder`, and static
    /// routes between the nodes.
    ///
    /// # Errors
    /// When a plugin is not there, or a node has no addresses for its pods.
    pub fn use_reference_plugins(&self, folder: &Path) -> Result<()> {
        let names: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        self.use_reference_plugins_on(folder, &names)
    }

    /// As [`KubernetesCluster::use_reference_plugins`], on some nodes.
    ///
    /// # Errors
    /// When a plugin is not there, or a node has no addresses for its pods.
    pub fn use_reference_plugins_on(&self, folder: &Path, names: &[&str]) -> Result<()> {
        let mut cidrs: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for name in names {
            cidrs.insert(name, self.pod_cidrs(name)?);
        }
        for name in names {
            let node = self.node(name)?;
            node.netns().forward()?;
            self.add_routes(node.netns(), &cidrs, Some(name))?;
            let own = cidrs.get(name).context("a node without ranges")?;
            for plugin in ["ptp", "host-local", "portmap", "loopback"] {
                let from = folder.join(plugin);
                std::fs::copy(&from, node.path("/opt/cni/bin")?.join(plugin))
                    .with_context(|| from.display().to_string())?;
            }
            let file = node.path("/etc/cni/net.d")?.join("10-ptp.conflist");
            let draft = file.with_extension("draft");
            std::fs::write(&draft, reference_configuration(own).to_string())?;
            std::fs::rename(draft, file)?;
        }
        self.add_routes(self.control.netns(), &cidrs, None)
    }

    fn add_routes(
        &self,
        netns: &Netns,
        cidrs: &BTreeMap<&str, Vec<IpNet>>,
        except: Option<&str>,
    ) -> Result<()> {
        for (name, cidrs) in cidrs.iter().filter(|(name, _)| Some(**name) != except) {
            for cidr in cidrs {
                let mut ways = self.node(name)?.addresses().into_iter();
                let same = |way: &IpAddr| way.is_ipv4() == cidr.addr().is_ipv4();
                add_route(netns, *cidr, ways.find(same).context("another family")?)?;
            }
        }
        Ok(())
    }

    /// `spec.podCIDRs` of a node, once it has them.
    ///
    /// # Errors
    /// When it has none in time.
    pub fn pod_cidrs(&self, node: &str) -> Result<Vec<IpNet>> {
        eventually_ok(
            PATIENCE,
            &format!("node {node} has ranges for pods"),
            || {
                let object = self.kubectl().json(&["get", "node", node])?;
                let cidrs = object["spec"]["podCIDRs"].as_array();
                let cidrs = cidrs.context("no podCIDRs yet")?.iter();
                cidrs
                    .map(|cidr| Ok(cidr.as_str().context("no text")?.parse()?))
                    .collect()
            },
        )
    }
}

impl Drop for KubernetesCluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.lab.directory().join(images::FOLDER));
    }
}

/// Nodes that a router expects beside those of the beginning.
const SPARE: u32 = 4;

impl Pod {
    fn read(object: &Value) -> Result<Pod> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &object["metadata"];
        let addresses = object["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|ip| ip["ip"].as_str()?.parse().ok());
        Ok(Pod {
            namespace: text(&metadata["namespace"]).context("no namespace")?,
            name: text(&metadata["name"]).context("no name")?,
            uid: text(&metadata["uid"]).context("no UID")?,
            node: text(&object["spec"]["nodeName"]),
            addresses: addresses.collect(),
            phase: text(&object["status"]["phase"]).unwrap_or_default(),
            ready: condition(object, "Ready").is_some_and(|ready| ready["status"] == "True"),
        })
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, v4: bool) -> Result<IpAddr> {
        match self
            .addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
        {
            Some(address) => Ok(*address),
            None => bail!("{self:?} has no such address"),
        }
    }
}

/// A condition of an object.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
}

fn reference_configuration(cidrs: &[IpNet]) -> Value {
    let ranges: Vec<Value> = cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "ptp",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}
