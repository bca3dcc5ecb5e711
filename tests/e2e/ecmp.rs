//! Equal paths and single connections: which of several ways a connection takes is decided by the kernel, connection by
//! connection only where `net.ipv4.fib_multipath_hash_policy` and its IPv6 sibling say so.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use selvage_lab::network::add_route;
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::{Cluster, Lab, cluster, eventually_ok, programs};
use selvage_netlink::{Prefix, addr, link};
use serde_json::{Value, json};

use super::paths::{TWO_ROUTERS, gateways};
use crate::harness::Case;
use crate::scene::{self, ATTEMPT, SOON, WITH_BIRD, other, prefix};

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "e2e::connections_between_two_addresses_take_all_equal_paths",
        WITH_BIRD,
        connections,
    )]
}

const POD: &str = "pods: [{name: client, namespace: default, node: n1, ports: [80]}]\n";
/// The same two addresses at both routers.
const OUTSIDE: [(&str, &str); 2] = [("10.99.0.0/16", "10.99.0.1"), ("fd99::/48", "fd99::1")];
/// What `install` sets.
const HASH: [&str; 2] = [
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv6/fib_multipath_hash_policy",
];
/// By which of two paths each connection goes is a coin.
const CONNECTIONS: usize = 24;

/// How many connections to one address are answered, and how many refused: the first router has a server, the second none.
fn ways(cluster: &Cluster, to: IpAddr) -> Result<(usize, usize)> {
    let from = cluster.netns("default/client")?;
    let (mut first, mut second) = (0, 0);
    for _ in 0..CONNECTIONS {
        match tcp::connect(from, SocketAddr::new(to, 80), ATTEMPT)? {
            Answer::Yes => first += 1,
            Answer::Refused => second += 1,
            other => bail!("{to}: {other:?}"),
        }
    }
    Ok((first, second))
}

/// The findings of `status` about the hash of equal paths: what, and what to do.
fn findings(cluster: &mut Cluster) -> Result<Vec<(String, String)>> {
    let output = cluster
        .node("n1")?
        .agent
        .command(&["status", "-o", "json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let wrong = status["wrong"].as_array().cloned().unwrap_or_default();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = wrong.iter().map(|f| (text(f, "what"), text(f, "todo")));
    Ok(findings
        .filter(|(what, _)| what.contains("fib_multipath_hash_policy"))
        .collect())
}

fn connections(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(lab, &format!("{TWO_ROUTERS}{POD}"))?;
    let node = cluster.netns("n1")?.clone();
    for name in HASH {
        node.set_sysctl(name, "0")?;
    }
    for (name, address) in [("r1", "192.0.2.1"), ("r2", "198.51.100.1")] {
        let spec = json!({"address": address, "asn": 65001});
        let peer = cluster::object("BGPPeer", name, spec);
        cluster.objects().write(name, &peer)?;
        let mut socket = cluster.netns(name)?.rtnetlink()?;
        let lo = link::get_by_name(&mut socket, "lo")?.index;
        for (_, to) in OUTSIDE {
            let host = Prefix::host(to.parse()?);
            socket.apply(|batch| addr::add(batch, &addr::Address::new(lo, host)))?;
        }
    }
    // The way back is by the link on which a packet came, whatever the routers have learned.
    for (router, back) in [
        ("r1", ["192.0.2.2", "2001:db8:1::2"]),
        ("r2", ["198.51.100.2", "2001:db8:2::2"]),
    ] {
        for (pods, gateway) in ["10.244.1.0/24", "fd00:10:244:1::/64"].iter().zip(back) {
            add_route(cluster.netns(router)?, prefix(pods)?, gateway.parse()?)?;
        }
    }
    let _server = EchoServer::start(cluster.netns("r1")?, 80)?;
    cluster.start(2 * SOON)?;
    for router in ["r1", "r2"] {
        for (to, _) in OUTSIDE {
            other(&mut cluster, router)?.announce(prefix(to)?)?;
        }
    }
    for (to, _) in OUTSIDE {
        eventually_ok(SOON, &format!("two ways to {to}"), || {
            let found = gateways(&node, to)?;
            ensure!(found.len() == 2, "{found:?}");
            Ok(())
        })?;
    }
    // With the kernel's default all IPv6 connections of who sets no flow label take one way, too.
    cluster
        .netns("default/client")?
        .set_sysctl("net/ipv6/auto_flowlabels", "0")?;
    for (_, to) in OUTSIDE {
        let (first, second) = ways(&cluster, to.parse()?)?;
        ensure!(first == 0 || second == 0, "{to}: {first} and {second}");
    }
    let found = findings(&mut cluster)?;
    ensure!(found.len() == 2, "{found:?}");
    for ((what, todo), name) in found.iter().zip(HASH) {
        let name = name.replace('/', ".");
        ensure!(what.starts_with(&format!("{name} is 0, not 1: ")), "{what}");
        ensure!(todo.ends_with(&format!("sysctl -w {name}=1")), "{todo}");
    }
    // What `status` says is what is so: after the advice was followed it says nothing.
    let mut install = Command::new(programs::find("selvage")?);
    install.args(["install", "--features", "bgp,kernel", "--state-dir"]);
    install.arg(lab.subdirectory("installed")?);
    let output = node.run(|| Ok(install.output()?))?;
    ensure!(output.status.success(), "{output:?}");
    let found = findings(&mut cluster)?;
    ensure!(found.is_empty(), "{found:?}");
    for (_, to) in OUTSIDE {
        let (first, second) = ways(&cluster, to.parse()?)?;
        ensure!(first > 0 && second > 0, "{to}: {first} and {second}");
    }
    Ok(())
}
