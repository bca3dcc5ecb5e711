//! A small cluster as plain data, and the same cluster as facts for the compiler.

use selvage_policy::api::NetworkPolicySpec;
use selvage_policy::model::{
    IfName, Labels, LocalPod, NamedPort, NamespaceFact, Phase, PodFact, PodKey, PodRef, PolicyKey,
    Proto,
};
use selvage_policy::{Change, Compiler, Config, lower};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub type Map = BTreeMap<String, String>;

/// The node whose compiler is tested.
pub const NODE: &str = "node1";
/// Its own addresses.
pub const NODE_ADDRESSES: [&str; 3] = ["172.16.0.1", "192.168.9.1", "fd99::1"];

#[derive(Clone, Debug)]
pub struct Namespace {
    pub name: String,
    pub labels: Map,
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Map,
    pub addresses: Vec<IpAddr>,
    /// Where the host end of its interface is here; `None`: it runs elsewhere.
    pub ifname: Option<String>,
    pub host_network: bool,
    pub finished: bool,
    pub ports: Vec<(String, Proto, u16)>,
    pub created: u32,
}

#[derive(Clone, Debug)]
pub struct Object {
    pub namespace: String,
    pub name: String,
    pub spec: NetworkPolicySpec,
}

#[derive(Clone, Debug, Default)]
pub struct World {
    pub namespaces: Vec<Namespace>,
    pub pods: Vec<Pod>,
    pub policies: Vec<Object>,
}

impl World {
    /// The changes that tell a compiler of this world.
    pub fn changes(&self) -> Vec<Change> {
        let mut out = vec![Change::Node(NODE.into(), addresses(&NODE_ADDRESSES))];
        out.extend(self.namespaces.iter().map(Namespace::change));
        for pod in &self.pods {
            out.push(pod.change());
            out.extend(pod.attachment());
        }
        out.extend(self.policies.iter().map(Object::change));
        out
    }

    pub fn compiler(&self) -> Compiler {
        self.compiler_with(config())
    }

    pub fn compiler_with(&self, config: Config) -> Compiler {
        let mut compiler = Compiler::new(config);
        self.changes()
            .into_iter()
            .for_each(|change| compiler.apply(change));
        compiler
    }
}

pub fn compiler() -> Compiler {
    Compiler::new(config())
}

pub fn config() -> Config {
    Config {
        node: NODE.into(),
        ..Config::default()
    }
}

pub fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts
        .iter()
        .map(|a| a.parse().expect("an address"))
        .collect()
}

impl Namespace {
    pub fn change(&self) -> Change {
        Change::Namespace(NamespaceFact {
            name: self.name.as_str().into(),
            labels: Labels::from(self.labels.clone()),
        })
    }
}

impl Pod {
    pub fn key(&self) -> PodKey {
        PodKey::new(self.namespace.as_str(), self.name.as_str())
    }

    pub fn change(&self) -> Change {
        let ports = self.ports.iter().map(|(name, protocol, port)| NamedPort {
            name: name.as_str().into(),
            protocol: *protocol,
            port: *port,
        });
        Change::Pod(Arc::new(PodFact {
            uid: format!("uid-{}-{}", self.namespace, self.name).into(),
            key: self.key(),
            labels: Labels::from(self.labels.clone()),
            ips: self.addresses.clone().into(),
            node: Some(if self.ifname.is_some() { NODE } else { "node2" }.into()),
            host_network: self.host_network,
            phase: if self.finished {
                Phase::Finished
            } else {
                Phase::Live
            },
            ports: ports.collect(),
            created: self.created,
        }))
    }

    pub fn attachment(&self) -> Option<Change> {
        let ifname: IfName = self.ifname.as_ref()?.parse().expect("an interface name");
        let pod = Some(PodRef {
            key: self.key(),
            uid: None,
        });
        Some(Change::Local(LocalPod {
            ifname,
            ifindex: 7,
            addresses: self.addresses.clone(),
            pod,
        }))
    }
}

impl Object {
    pub fn change(&self) -> Change {
        let key = PolicyKey::new(self.namespace.as_str(), self.name.as_str());
        Change::Policy(Arc::new(lower(key, &self.spec).expect("a valid policy")))
    }
}
