//! The topology file: what `selvage-lab up` brings up.
//!
//! Parsing is strict. An unknown field, an unknown name or a wrong prefix is refused with file, line and column, so
//! that what is left is a [`Topology`] in which every name means something.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::daemon::Kind;

/// Networks, routers, nodes, pods, and what is expected of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Topology {
    /// A sentence about it, shown when it comes up.
    #[serde(default)]
    pub description: String,
    /// Ethernet segments, a bridge each.
    pub networks: Vec<Network>,
    /// Routers that are not nodes.
    #[serde(default)]
    pub routers: Vec<Router>,
    /// Nodes that run the agent.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Pods, in the order in which they start.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// A directory of YAML objects for the agents, relative to the topology file.
    pub objects: Option<PathBuf>,
    /// Who should reach whom.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// An Ethernet segment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name.
    pub name: Spanned<String>,
    /// Its prefixes; members get addresses in the order of the file, routers first.
    pub cidrs: Vec<IpNet>,
}

/// Which daemon a router runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Daemon {
    /// BIRD if it is installed, else Selvage.
    #[default]
    Auto,
    /// Selvage itself.
    Selvage,
    /// BIRD 2.
    Bird,
    /// FRR.
    Frr,
    /// GoBGP, which does not forward.
    Gobgp,
}

impl Daemon {
    /// The daemon of others that is meant; none for Selvage.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        match self {
            Daemon::Auto => Some(Kind::Bird).filter(|kind| kind.is_installed()),
            Daemon::Selvage => None,
            Daemon::Bird => Some(Kind::Bird),
            Daemon::Frr => Some(Kind::Frr),
            Daemon::Gobgp => Some(Kind::Gobgp),
        }
    }
}

/// A router; it speaks BGP with every router and node on its networks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Its name.
    pub name: Spanned<String>,
    /// What it runs.
    #[serde(default)]
    pub daemon: Daemon,
    /// Its autonomous system.
    pub asn: u32,
    /// The networks it is on.
    pub networks: Vec<Spanned<String>>,
    /// TCP-MD5 key of all its sessions.
    pub password: Option<String>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: Spanned<String>,
    /// Labels of its Node object.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The networks it is on; its addresses on the first are its InternalIPs.
    pub networks: Vec<Spanned<String>>,
    /// `spec.podCIDRs`: at most one of each family.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its name.
    pub name: Spanned<String>,
    /// Its namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// The node it runs on.
    pub node: Spanned<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Ports on which it echoes, TCP and UDP.
    #[serde(default)]
    pub ports: Vec<u16>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

impl Pod {
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name.value)
    }
}

/// What should come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// It gets through.
    Allow,
    /// It is dropped.
    Deny,
}

/// Who should reach whom.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// A pod (`NAMESPACE/NAME`), node or router.
    pub from: Spanned<String>,
    /// A pod, node or router.
    pub to: Spanned<String>,
    /// A TCP port; a ping without one.
    pub port: Option<u16>,
    /// What should come of it.
    pub expect: Expect,
}

/// Why a file is not a topology.
#[derive(Debug)]
pub struct Refusal {
    file: PathBuf,
    at: Option<(u64, u64)>,
    reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for Refusal {}

impl Topology {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is refused; the message has file, line and column.
    pub fn read(file: &Path) -> Result<Topology, Refusal> {
        let text = fs::read_to_string(file).map_err(|error| Refusal {
            file: file.to_owned(),
            at: None,
            reason: error.to_string(),
        })?;
        let mut topology = Topology::parse(&text, file)?;
        if let Some(objects) = &mut topology.objects {
            *objects = file.parent().unwrap_or(Path::new(".")).join(&*objects);
        }
        Ok(topology)
    }

    /// Reads the text of a file; `file` is for messages.
    ///
    /// # Errors
    /// When it is refused; the message has file, line and column.
    pub fn parse(text: &str, file: &Path) -> Result<Topology, Refusal> {
        let refusal = |at: Option<Location>, reason: String| Refusal {
            file: file.to_owned(),
            at: at.map(|at| (at.line(), at.column())),
            reason,
        };
        let topology: Topology = serde_saphyr::from_str(text)
            .map_err(|error| refusal(error.location(), bare_message(&error.to_string())))?;
        topology
            .validate()
            .map_err(|(at, reason)| refusal(Some(at), reason))?;
        Ok(topology)
    }

    /// Every name is there once, and every mention means something.
    fn validate(&self) -> Result<(), (Location, String)> {
        let networks = unique("network", self.networks.iter().map(|network| &network.name))?;
        let members = self
            .routers
            .iter()
            .map(|router| &router.name)
            .chain(self.nodes.iter().map(|node| &node.name));
        let members = unique("router or node", members)?;
        let mentions = self.routers.iter().flat_map(|router| &router.networks);
        for mention in mentions.chain(self.nodes.iter().flat_map(|node| &node.networks)) {
            known(mention, &networks, "network")?;
        }
        for node in &self.nodes {
            for v4 in [true, false] {
                if node
                    .pod_cidrs
                    .iter()
                    .filter(|cidr| cidr.addr().is_ipv4() == v4)
                    .count()
                    > 1
                {
                    let reason =
                        format!("node {:?} has two podCIDRs of one family", node.name.value);
                    return Err((node.name.referenced, reason));
                }
            }
            if node.networks.is_empty() {
                return Err((
                    node.name.referenced,
                    format!("node {:?} is on no network", node.name.value),
                ));
            }
        }
        let nodes: BTreeSet<&str> = self
            .nodes
            .iter()
            .map(|node| node.name.value.as_str())
            .collect();
        let mut pods = BTreeSet::new();
        for pod in &self.pods {
            known(&pod.node, &nodes, "node")?;
            if !pods.insert(pod.key()) {
                return Err((
                    pod.name.referenced,
                    format!("pod {:?} is there twice", pod.key()),
                ));
            }
        }
        let mut ends: BTreeSet<&str> = pods.iter().map(String::as_str).collect();
        ends.extend(members);
        for check in &self.checks {
            known(&check.from, &ends, "pod (NAMESPACE/NAME), node or router")?;
            known(&check.to, &ends, "pod (NAMESPACE/NAME), node or router")?;
        }
        Ok(())
    }

    /// The pod of this `NAMESPACE/NAME`.
    #[must_use]
    pub fn pod(&self, key: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.key() == key)
    }
}

/// A name becomes part of file names and of interface names.
fn is_name(text: &str) -> bool {
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 40 && text.chars().all(fit)
}

fn unique<'a>(
    what: &str,
    names: impl Iterator<Item = &'a Spanned<String>>,
) -> Result<BTreeSet<&'a str>, (Location, String)> {
    let mut all = BTreeSet::new();
    for name in names {
        if !is_name(&name.value) {
            let reason = format!(
                "{:?} cannot be a {what}'s name: lower-case letters, digits and - only",
                name.value
            );
            return Err((name.referenced, reason));
        }
        if !all.insert(name.value.as_str()) {
            return Err((
                name.referenced,
                format!("{what} {:?} is there twice", name.value),
            ));
        }
    }
    Ok(all)
}

fn known(
    mention: &Spanned<String>,
    names: &BTreeSet<&str>,
    what: &str,
) -> Result<(), (Location, String)> {
    if names.contains(mention.value.as_str()) {
        return Ok(());
    }
    let list: Vec<&str> = names.iter().copied().collect();
    Err((
        mention.referenced,
        format!(
            "no {what} {:?}; there are: {}",
            mention.value,
            list.join(", ")
        ),
    ))
}

/// The parser's message without its own place and picture: ours says the place.
fn bare_message(text: &str) -> String {
    let line = text.lines().next().unwrap_or(text);
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match line
        .find("line ")
        .and_then(|start| line[start..].find(": ").map(|end| start + end + 2))
    {
        Some(end) if line.starts_with("line ") => line[end..].to_owned(),
        _ => line.split(" at line ").next().unwrap_or(line).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
routers: [{name: tor, asn: 65001, networks: [rack]}]
nodes:
  - {name: n1, networks: [rack], podCIDRs: [10.244.1.0/24]}
pods:
  - {name: web, namespace: shop, node: n1, ports: [80]}
checks:
  - {from: tor, to: shop/web, port: 80, expect: allow}
";

    #[test]
    fn a_good_file_is_read() {
        let topology = Topology::parse(GOOD, Path::new("t.yaml")).expect("good");
        assert_eq!(topology.pods[0].key(), "shop/web");
        assert_eq!(topology.checks[0].expect, Expect::Allow);
        assert!(topology.pod("shop/web").is_some() && topology.pod("web").is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (from, to, place, reason) in [
            ("asn: 65001", "asnn: 65001", "t.yaml:2:23:", "asnn"),
            ("192.0.2.0/24", "192.0.2.0/33", "t.yaml:1:33:", "IP"),
            (
                "networks: [rack], pod",
                "networks: [rock], pod",
                "t.yaml:4:27:",
                "no network \"rock\"; there are: rack",
            ),
            ("node: n1", "node: tor", "t.yaml:6:40:", "no node \"tor\""),
            ("to: shop/web", "to: web", "t.yaml:8:21:", "no pod"),
            ("name: n1", "name: tor", "t.yaml:4:12:", "there twice"),
            ("name: n1", "name: ../n1", "t.yaml:4:12:", "cannot be"),
            ("expect: allow", "expect: maybe", "t.yaml:8:", "maybe"),
        ] {
            let refusal = Topology::parse(&GOOD.replacen(from, to, 1), Path::new("t.yaml"))
                .expect_err(to)
                .to_string();
            assert!(
                refusal.starts_with(place) && refusal.contains(reason),
                "{to}: {refusal}"
            );
            assert!(!refusal.contains('\n'), "{refusal}");
        }
    }
}
