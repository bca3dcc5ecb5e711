//! What many trials stand on: a cluster from a few lines of text, what is in a node's kernel, who reaches whom.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use selvage_lab::cluster::{RunningRouter, object};
use selvage_lab::daemon::{Kind, Router, find_program};
use selvage_lab::kubernetes::Settings;
use selvage_lab::probe::flow::Flow;
use selvage_lab::probe::ping::ping;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::process::output_of;
use selvage_lab::topology::Topology;
use selvage_lab::{Cluster, Lab, Netns, eventually, eventually_ok};
use selvage_netlink::Prefix;
use selvage_netlink::route::{self, Filter, Route};
use serde_json::json;

use crate::harness::Need;

/// What may take a moment: sessions, routes, rules.
pub const SOON: Duration = Duration::from_secs(20);
/// How long an attempt waits for an answer.
pub const ATTEMPT: Duration = Duration::from_millis(500);
/// Our routes in the kernel.
pub const PROTOCOL: u8 = 85;

/// The agent and the plugin.
pub const OWN: &[Need] = &[Need::Own("selvage"), Need::Own("selvage-cni")];
/// The same, and another daemon.
pub const WITH_BIRD: &[Need] = &[OWN[0], OWN[1], Need::Daemon(Kind::Bird)];
pub const WITH_FRR: &[Need] = &[OWN[0], OWN[1], Need::Daemon(Kind::Frr)];
pub const WITH_GOBGP: &[Need] = &[OWN[0], OWN[1], Need::Daemon(Kind::Gobgp)];

/// Two nodes that mesh, a pod on each.
pub const TWO_NODES: &str = "
networks: [{name: rack, cidrs: [192.0.2.0/24, '2001:db8::/64']}]
nodes:
  - {name: n1, networks: [rack], podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
  - {name: n2, networks: [rack], podCIDRs: [10.244.2.0/24, 'fd00:10:244:2::/64']}
pods:
  - {name: web, namespace: shop, node: n1, labels: {app: web}, ports: [80, 81]}
  - {name: client, namespace: default, node: n2, labels: {app: client}, ports: [80]}
";

/// Where the agents of a trial have their objects from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML.
    #[default]
    Directory,
    /// A real API server.
    Api,
}

/// Who makes the pods of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plugin {
    /// Our plugin; agents with all features.
    #[default]
    Own,
    /// The reference plugins `ptp` and `host-local`, with static routes between nodes; agents with the feature `policy`.
    Ptp,
}

/// Where Debian puts the reference plugins.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// How `ptp` begins the names of its interfaces.
pub const PTP_PREFIX: &str = "veth";

thread_local! {
    /// Of the trial that this thread runs: one body, two sources.
    static SOURCE: Cell<Source> = const { Cell::new(Source::Directory) };
    /// Of the trial that this thread runs: one body, two kinds of pods.
    static PLUGIN: Cell<Plugin> = const { Cell::new(Plugin::Own) };
}

/// Says where the trial that this thread is about to run has its objects from.
pub fn set_source(source: Source) {
    SOURCE.set(source);
}

/// Says who makes the pods of the trial that this thread is about to run.
pub fn set_plugin(plugin: Plugin) {
    PLUGIN.set(plugin);
}

/// A cluster that does not run yet, from the text of a topology file.
pub fn cluster(lab: &Lab, text: &str) -> Result<Cluster> {
    let topology = Topology::parse(text, Path::new("topology"))?;
    let mut cluster = match SOURCE.get() {
        Source::Directory => Cluster::new(lab, topology),
        Source::Api => Cluster::on_api(lab, topology, &Settings::default()),
    }?;
    if PLUGIN.get() == Plugin::Ptp {
        cluster.use_ptp(Path::new(REFERENCE_PLUGINS), PTP_PREFIX)?;
    }
    Ok(cluster)
}

/// Two nodes that mesh, a pod on each, everything up: each pod reaches the other at every address. So what is blocked
/// later was open before, and an agent that is killed had told the kernel of all that there is.
pub fn two_nodes(lab: &Lab) -> Result<Cluster> {
    let mut cluster = cluster(lab, TWO_NODES)?;
    cluster.start(2 * SOON)?;
    for (from, to) in [
        ("default/client", "shop/web"),
        ("shop/web", "default/client"),
    ] {
        wait_reaches(&cluster, from, to, Some(80))?;
    }
    Ok(cluster)
}

/// Sessions of the mesh have no hold time: if one ends, that is no slow machine's doing.
pub fn without_hold_time(cluster: &Cluster) -> Result<()> {
    let spec = json!({"timers": {"hold": "0s"}});
    let configuration = object("BGPConfiguration", "default", spec);
    cluster.objects().write("configuration", &configuration)
}

pub fn prefix(text: &str) -> Result<IpNet> {
    text.parse().with_context(|| text.to_owned())
}

/// A router of another daemon.
pub fn other<'a>(cluster: &'a mut Cluster, name: &str) -> Result<&'a mut Router> {
    match cluster.router(name)? {
        RunningRouter::Other(router) => Ok(router),
        RunningRouter::Own(_) => bail!("{name} is our own"),
    }
}

/// Runs `nft` in a namespace; what it printed.
pub fn nft(netns: &Netns, words: &[&str]) -> Result<String> {
    let mut command = Command::new(find_program("nft").context("nft")?);
    command.args(words);
    output_of(netns, command)
}

/// Our route to exactly `to` in the kernel.
pub fn kernel_route(netns: &Netns, to: IpNet) -> Result<Option<Route>> {
    let filter = Filter {
        protocol: Some(PROTOCOL),
        ..Filter::default()
    };
    let routes = route::list(&mut netns.rtnetlink()?, to.addr().is_ipv6(), &filter)?;
    let wanted = Prefix::new(to.network(), to.prefix_len());
    Ok(routes.into_iter().find(|route| route.prefix == wanted))
}

pub fn wait_kernel_route(netns: &Netns, to: IpNet) -> Result<Route> {
    eventually_ok(
        SOON,
        &format!("a kernel route to {to} on {}", netns.name()),
        || kernel_route(netns, to)?.context("there is none"),
    )
}

pub fn wait_no_kernel_route(netns: &Netns, to: IpNet) -> Result<()> {
    eventually_ok(
        SOON,
        &format!("no kernel route to {to} on {}", netns.name()),
        || match kernel_route(netns, to)? {
            Some(route) => bail!("{route:?}"),
            None => Ok(()),
        },
    )
}

/// What a single attempt brings: a ping, or a TCP connection.
pub fn attempt(from: &Netns, to: IpAddr, port: Option<u16>) -> Result<Answer> {
    match port {
        Some(port) => tcp::connect(from, SocketAddr::new(to, port), ATTEMPT),
        None => Ok(ping(from, to, ATTEMPT)?.0),
    }
}

/// Every address of `to` answers, after a moment.
pub fn wait_reaches(cluster: &Cluster, from: &str, to: &str, port: Option<u16>) -> Result<()> {
    let addresses = cluster.addresses(to);
    ensure!(!addresses.is_empty(), "{to} has no addresses");
    for address in addresses {
        eventually_ok(
            SOON,
            &format!("{from} reaches {to} at {address} {port:?}"),
            || match attempt(cluster.netns(from)?, address, port)? {
                Answer::Yes => Ok(()),
                other => bail!("{other:?}"),
            },
        )?;
    }
    Ok(())
}

/// No address of `to` lets anything back, after a moment.
pub fn wait_blocked(cluster: &Cluster, from: &str, to: &str, port: Option<u16>) -> Result<()> {
    for address in cluster.addresses(to) {
        eventually_ok(
            SOON,
            &format!("{from} is kept from {to} at {address} {port:?}"),
            || match attempt(cluster.netns(from)?, address, port)? {
                Answer::Silence => Ok(()),
                other => bail!("{other:?}"),
            },
        )?;
    }
    Ok(())
}

/// Nothing gets through right now.
pub fn is_blocked(cluster: &Cluster, from: &str, to: &str, port: Option<u16>) -> Result<()> {
    for address in cluster.addresses(to) {
        let answer = attempt(cluster.netns(from)?, address, port)?;
        ensure!(
            answer == Answer::Silence,
            "{from} to {to} at {address} {port:?}: {answer:?}"
        );
    }
    Ok(())
}

/// Counted flows in both families from `default/client` to `shop/web`, under way.
pub fn flows(cluster: &Cluster) -> Result<Vec<Flow>> {
    let (from, to) = (cluster.netns("default/client")?, cluster.netns("shop/web")?);
    let start =
        |(port, address): (u16, IpAddr)| Flow::start(from, to, SocketAddr::new(address, port), 200);
    let flows: Vec<Flow> = (6000..)
        .zip(cluster.addresses("shop/web"))
        .map(start)
        .collect::<Result<_>>()?;
    for flow in &flows {
        eventually(SOON, "packets come", || flow.received() >= 20)?;
    }
    Ok(flows)
}

/// Ends flows; every packet has come.
pub fn nothing_lost(flows: Vec<Flow>) -> Result<()> {
    for flow in flows {
        let account = flow.stop(SOON)?;
        ensure!(account.lost == 0, "{account:?}");
    }
    Ok(())
}
