//! Which ways packets take: equal paths, a reflector between nodes, routes that follow a node's object, and how all of
//! it lies in the kernel.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::network::add_route;
use selvage_lab::objects::Objects;
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::{Agent, Cluster, Cut, Lab, Netns, cluster, eventually_ok, objects};
use selvage_netlink::route::{Kind as RouteKind, Target};
use selvage_netlink::{Prefix, addr, link, nexthop};
use serde_json::json;

use crate::harness::Case;
use crate::scene::{
    self, ATTEMPT, OWN, PROTOCOL, SOON, TWO_NODES, WITH_BIRD, flows, kernel_route, nothing_lost,
    other, prefix, two_nodes, wait_kernel_route, wait_no_kernel_route, wait_reaches,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::learned_routes_stand_on_nexthop_groups", OWN, groups),
        Case::new(
            "e2e::equal_paths_share_what_goes_there",
            WITH_BIRD,
            equal_paths,
        ),
        Case::new(
            "e2e::a_reflector_passes_on_what_its_clients_say",
            OWN,
            reflected,
        ),
        Case::new("e2e::routes_follow_the_node_object", OWN, follow),
        Case::new(
            "e2e::a_session_over_ipv6_carries_both_families",
            OWN,
            over_ipv6,
        ),
        Case::new(
            "e2e::changes_that_need_no_reset_reset_nothing",
            OWN,
            no_reset,
        ),
    ]
}

/// Nexthop objects that are ours.
const IDS: std::ops::RangeInclusive<u32> = 0x5e10_0000..=0x5e1f_ffff;
/// Metric of learned routes in both families.
const METRIC: u32 = 1085;

/// The gateways of our route to `to`; an error if it does not stand on a nexthop group of ours.
pub fn gateways(netns: &Netns, to: &str) -> Result<Vec<IpAddr>> {
    let route = kernel_route(netns, prefix(to)?)?.with_context(|| format!("no route to {to}"))?;
    ensure!(
        route.metric == METRIC && route.kind == RouteKind::Unicast,
        "{route:?}"
    );
    let Target::Nexthop(id) = route.target else {
        bail!("not by a nexthop object: {route:?}")
    };
    let mut socket = netns.rtnetlink()?;
    let group = nexthop::get(&mut socket, id)?;
    let nexthop::Kind::Group(members) = &group.kind else {
        bail!("not a group: {group:?}")
    };
    ensure!(
        IDS.contains(&id) && group.protocol == PROTOCOL,
        "not marked as ours: {group:?}"
    );
    let mut gateways = Vec::new();
    for member in members {
        let hop = nexthop::get(&mut socket, member.id)?;
        ensure!(
            IDS.contains(&member.id) && hop.protocol == PROTOCOL,
            "not marked as ours: {hop:?}"
        );
        match hop.kind {
            nexthop::Kind::Hop(hop) => gateways.push(hop.gateway.context("no gateway")?),
            other => bail!("a member that is no hop: {other:?}"),
        }
    }
    gateways.sort();
    Ok(gateways)
}

fn wait_gateways(netns: &Netns, to: &str, wanted: &[IpAddr]) -> Result<()> {
    eventually_ok(
        SOON,
        &format!("{} reaches {to} by {wanted:?}", netns.name()),
        || match gateways(netns, to)? {
            found if found == wanted => Ok(()),
            found => bail!("{found:?}"),
        },
    )
}

fn groups(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let hops = cluster.addresses("n1");
    let netns = cluster.netns("n2")?;
    for (pods, hop) in ["10.244.1.0/24", "fd00:10:244:1::/64"].iter().zip(&hops) {
        wait_gateways(netns, pods, &[*hop])?;
    }
    Ok(())
}

/// A node between two routers that both have the way to the same prefixes.
pub const TWO_ROUTERS: &str = "
networks:
  - {name: left, cidrs: [192.0.2.0/24, '2001:db8:1::/64']}
  - {name: right, cidrs: [198.51.100.0/24, '2001:db8:2::/64']}
routers:
  - {name: r1, daemon: bird, asn: 65001, networks: [left]}
  - {name: r2, daemon: bird, asn: 65001, networks: [right]}
nodes: [{name: n1, networks: [left, right], podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}]
";
const OUTSIDE: [&str; 2] = ["10.99.0.0/16", "fd99::/48"];
/// How many destinations; by which of two paths each goes is a coin.
const DESTINATIONS: u16 = 24;

fn destinations(v6: bool) -> Result<Vec<IpAddr>> {
    let text = |n| match v6 {
        false => format!("10.99.0.{n}"),
        true => format!("fd99::{n:x}"),
    };
    (1..=DESTINATIONS).map(|n| Ok(text(n).parse()?)).collect()
}

/// How many destinations answer, and how many refuse: the first router has a server, the second has none.
fn ways(from: &Netns, v6: bool) -> Result<(usize, usize)> {
    let (mut first, mut second) = (0, 0);
    for to in destinations(v6)? {
        match tcp::connect(from, SocketAddr::new(to, 80), ATTEMPT)? {
            Answer::Yes => first += 1,
            Answer::Refused => second += 1,
            other => bail!("{to}: {other:?}"),
        }
    }
    Ok((first, second))
}

fn wait_ways(from: &Netns, what: &str, hold: impl Fn(usize, usize) -> bool) -> Result<()> {
    for v6 in [false, true] {
        eventually_ok(SOON, &format!("{what}, IPv6: {v6}"), || {
            match ways(from, v6)? {
                (first, second) if hold(first, second) => Ok(()),
                ways => bail!("{ways:?}"),
            }
        })?;
    }
    Ok(())
}

fn equal_paths(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(lab, TWO_ROUTERS)?;
    for (name, address) in [("r1", "192.0.2.1"), ("r2", "198.51.100.1")] {
        let spec = json!({"address": address, "asn": 65001});
        cluster
            .objects()
            .write(name, &cluster::object("BGPPeer", name, spec))?;
    }
    for router in ["r1", "r2"] {
        let netns = cluster.netns(router)?;
        let mut socket = netns.rtnetlink()?;
        let lo = link::get_by_name(&mut socket, "lo")?.index;
        let all = [destinations(false)?, destinations(true)?].concat();
        socket.apply(|batch| {
            for to in &all {
                let host = Prefix::host(*to);
                addr::add(batch, &addr::Address::new(lo, host));
            }
        })?;
    }
    // The node's address is that of either link, whichever way a packet takes.
    for (router, far, near) in [
        (
            "r1",
            ["198.51.100.0/24", "2001:db8:2::/64"],
            ["192.0.2.2", "2001:db8:1::2"],
        ),
        (
            "r2",
            ["192.0.2.0/24", "2001:db8:1::/64"],
            ["198.51.100.2", "2001:db8:2::2"],
        ),
    ] {
        for (to, gateway) in far.iter().zip(near) {
            add_route(cluster.netns(router)?, prefix(to)?, gateway.parse()?)?;
        }
    }
    let _server = EchoServer::start(cluster.netns("r1")?, 80)?;
    cluster.start(2 * SOON)?;
    for router in ["r1", "r2"] {
        for to in OUTSIDE {
            other(&mut cluster, router)?.announce(prefix(to)?)?;
        }
    }
    let node = cluster.netns("n1")?.clone();
    let hops = [cluster.addresses("r1"), cluster.addresses("r2")];
    let both = |v6: bool| -> Vec<IpAddr> {
        let family = hops.iter().flatten().filter(|hop| hop.is_ipv6() == v6);
        family.copied().collect()
    };
    for (to, v6) in OUTSIDE.iter().zip([false, true]) {
        wait_gateways(&node, to, &both(v6))?;
    }
    wait_ways(&node, "both paths are used", |first, second| {
        first > 0 && second > 0
    })?;

    // A path that is lost leaves its share to the other one, and takes it back.
    let right = cluster.link("right/n1")?.clone();
    right.cut(Cut::Carrier)?;
    wait_ways(&node, "only the first path is used", |_, second| {
        second == 0
    })?;
    right.repair()?;
    wait_ways(&node, "both paths are used again", |first, second| {
        first > 0 && second > 0
    })?;

    for to in OUTSIDE {
        other(&mut cluster, "r2")?.withdraw(prefix(to)?)?;
    }
    for (to, v6) in OUTSIDE.iter().zip([false, true]) {
        let first: Vec<IpAddr> = both(v6).into_iter().take(1).collect();
        wait_gateways(&node, to, &first)?;
    }
    wait_ways(&node, "only the first path is left", |_, second| {
        second == 0
    })
}

/// A reflector as a third host, without routes, pods or policy; its clients connect from a range and are not named.
fn reflector(cluster: &Cluster, lab: &Lab) -> Result<Agent> {
    let netns = lab.netns("rr")?;
    let link = cluster.link("rack/n1")?.network().join(&netns)?;
    let own = Objects::create(lab.directory().join("objects-rr"))?;
    let configuration = json!({
        "routerId": link.ipv4()?,
        "routeReflector": {"clusterId": link.ipv4()?},
        "networks": ["10.9.0.0/24"],
    });
    own.write(
        "configuration",
        &cluster::object("BGPConfiguration", "default", configuration),
    )?;
    let clients = json!({"range": "192.0.2.0/24", "asn": "internal", "routeReflectorClient": true});
    own.write("clients", &cluster::object("BGPPeer", "clients", clients))?;
    Agent::start(&netns, "rr", own.directory(), &["--features", "bgp"])
}

fn reflected(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(lab, TWO_NODES)?;
    let mut rr = reflector(&cluster, lab)?;
    let off = json!({"nodeMesh": {"mode": "off"}});
    cluster.objects().write(
        "configuration",
        &cluster::object("BGPConfiguration", "default", off),
    )?;
    let peer = json!({"address": "192.0.2.3", "asn": "internal"});
    cluster
        .objects()
        .write("rr", &cluster::object("BGPPeer", "rr", peer))?;
    cluster.start(2 * SOON)?;
    for node in ["n1", "n2"] {
        let peers = cluster.node(node)?.agent.peers()?;
        ensure!(peers.len() == 1, "more than the reflector: {peers:?}");
        let netns = cluster.netns(node)?;
        wait_kernel_route(netns, prefix("10.9.0.0/24")?)?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let netns = cluster.netns("n2")?.clone();
    // The next hop is the node that has the pods, not the reflector.
    for (pods, hop) in ["10.244.1.0/24", "fd00:10:244:1::/64"]
        .iter()
        .zip(cluster.addresses("n1"))
    {
        wait_gateways(&netns, pods, &[hop])?;
    }
    let seen = rr.peers()?;
    ensure!(
        seen.iter().filter(|peer| peer.up).count() == 2,
        "clients of the range: {seen:?}"
    );
    let shown = rr.json(&["peers"])?;
    for peer in shown.as_array().context("no list of neighbours")? {
        ensure!(
            peer["origin"] == "BGPPeer clients",
            "who comes by a range: {peer}"
        );
    }
    // It writes no routes: that the kernel has none is nothing to report.
    for words in [&["routes"][..], &["routes", "10.244.1.0/24"]] {
        let routes = rr.json(words)?;
        let rows = routes.as_array().context("a list")?;
        ensure!(!rows.is_empty(), "{words:?}: {routes}");
        ensure!(rows.iter().all(|row| row["kernel"].is_null()), "{routes}");
    }
    let quiet = rr.netns().clone();
    ensure!(
        kernel_route(&quiet, prefix("10.244.1.0/24")?)?.is_none(),
        "a reflector installs routes"
    );

    // From then on it restarts gracefully; before, it has nothing that anybody could miss.
    rr.wait_ready(2 * SOON)?;
    // It dies and comes back: nothing is lost, since its clients keep what they have.
    let flows = flows(&cluster)?;
    rr.process().kill()?;
    eventually_ok(SOON, "the nodes see it go", || {
        let peers = cluster.node("n2")?.agent.peers()?;
        ensure!(peers.iter().all(|peer| !peer.up), "{peers:?}");
        Ok(())
    })?;
    rr.restart()?;
    for node in ["n1", "n2"] {
        let agent = &cluster.node(node)?.agent;
        agent.wait_established("192.0.2.3".parse()?, SOON)?;
        agent.ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
    }
    nothing_lost(flows)?;
    // A withdrawal goes through.
    cluster.objects().remove("node-n1")?;
    for pods in ["10.244.1.0/24", "fd00:10:244:1::/64"] {
        wait_no_kernel_route(&netns, prefix(pods)?)?;
    }
    Ok(())
}

/// Other podCIDRs: the new ones are announced and black holes, the old ones are neither any more.
fn follow(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let (own, neighbour) = (cluster.netns("n2")?, cluster.netns("n1")?);
    let (before, after) = (
        ["10.244.2.0/24", "fd00:10:244:2::/64"],
        ["10.244.7.0/24", "fd00:10:244:7::/64"],
    );
    let mut node = cluster
        .topology()
        .nodes
        .iter()
        .find(|node| node.name.value == "n2")
        .context("n2")?
        .clone();
    for (old, new) in [(before, after), (after, before)] {
        for pods in old {
            wait_kernel_route(neighbour, prefix(pods)?)?;
        }
        node.pod_cidrs = new.iter().map(|pods| prefix(pods)).collect::<Result<_>>()?;
        let object = objects::node(&node, &cluster.addresses("n2"));
        cluster.objects().write("node-n2", &object)?;
        for pods in new {
            wait_kernel_route(neighbour, prefix(pods)?)?;
            let hole = wait_kernel_route(own, prefix(pods)?)?;
            ensure!(hole.kind == RouteKind::Blackhole, "{hole:?}");
        }
        for pods in old {
            wait_no_kernel_route(neighbour, prefix(pods)?)?;
            wait_no_kernel_route(own, prefix(pods)?)?;
        }
    }
    Ok(())
}

/// Two nodes without a mesh, each the other's neighbour by its IPv6 address.
fn ipv6_pair(lab: &Lab) -> Result<Cluster> {
    let text = TWO_NODES
        .replace("{name: n1,", "{name: n1, labels: {side: left},")
        .replace("{name: n2,", "{name: n2, labels: {side: right},");
    let mut cluster = scene::cluster(lab, &text)?;
    write_configuration(&cluster, json!({}))?;
    for side in ["left", "right"] {
        write_neighbour(&cluster, side, json!({}))?;
    }
    cluster.start(2 * SOON)?;
    for (node, other) in [("n1", "n2"), ("n2", "n1")] {
        let address = cluster.addresses(other).into_iter().find(IpAddr::is_ipv6);
        let agent = &cluster.node(node)?.agent;
        agent.wait_established(address.context("no IPv6 address")?, SOON)?;
    }
    Ok(cluster)
}

fn write_configuration(cluster: &Cluster, more: serde_json::Value) -> Result<()> {
    let spec = with(json!({"nodeMesh": {"mode": "off"}}), &more);
    cluster.objects().write(
        "configuration",
        &cluster::object("BGPConfiguration", "default", spec),
    )
}

/// The neighbour of the node on this side.
fn write_neighbour(cluster: &Cluster, side: &str, more: serde_json::Value) -> Result<()> {
    let address = if side == "left" {
        "2001:db8::2"
    } else {
        "2001:db8::1"
    };
    let spec = json!({
        "nodeSelector": {"matchLabels": {"side": side}},
        "address": address,
        "asn": "internal",
        // If the session ends, that is no slow machine's doing.
        "timers": {"hold": "0s"},
    });
    cluster
        .objects()
        .write(side, &cluster::object("BGPPeer", side, with(spec, &more)))
}

fn with(mut spec: serde_json::Value, more: &serde_json::Value) -> serde_json::Value {
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    spec
}

fn over_ipv6(lab: &Lab) -> Result<()> {
    let mut cluster = ipv6_pair(lab)?;
    for node in ["n1", "n2"] {
        let peers = cluster.node(node)?.agent.peers()?;
        ensure!(
            peers.len() == 1 && peers.iter().all(|peer| peer.address.is_ipv6()),
            "{peers:?}"
        );
    }
    let netns = cluster.netns("n2")?;
    for (pods, hop) in ["10.244.1.0/24", "fd00:10:244:1::/64"]
        .iter()
        .zip(cluster.addresses("n1"))
    {
        wait_gateways(netns, pods, &[hop])?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

/// What the session has not told the other side in its OPEN can change under it.
fn no_reset(lab: &Lab) -> Result<()> {
    let mut cluster = ipv6_pair(lab)?;
    let flows = flows(&cluster)?;
    let configurations = [
        json!({"maximumPaths": 2}),
        json!({"timers": {"connectRetry": "2s"}}),
        json!({"networks": ["10.9.0.0/24"]}),
        json!({"networks": ["10.9.0.0/24", "fd09::/64"], "maximumPaths": 4}),
    ];
    let neighbours = [
        json!({"description": "the one next door"}),
        json!({"maxPrefix": {"limit": 1000, "action": "warn"}}),
        json!({"import": ["accept-all"], "export": ["accept-all"]}),
        json!({}),
    ];
    for (configuration, neighbour) in configurations.into_iter().zip(neighbours) {
        write_configuration(&cluster, configuration)?;
        for side in ["left", "right"] {
            write_neighbour(&cluster, side, neighbour.clone())?;
        }
        let stranger = json!({"address": "192.0.2.99", "asn": 65099, "passive": true});
        cluster.objects().write(
            "stranger",
            &cluster::object("BGPPeer", "stranger", stranger),
        )?;
        for node in ["n1", "n2"] {
            let agent = &cluster.node(node)?.agent;
            agent.ask(&["wait", "--for", "synced", "--timeout", "30s"])?;
        }
        cluster.objects().remove("stranger")?;
    }
    // Both announce them now; each hears the other.
    eventually_ok(SOON, "the new prefixes arrive", || {
        let agent = &cluster.node("n2")?.agent;
        let heard = agent.json(&["routes", "--received", "2001:db8::1"])?;
        let heard = heard.to_string();
        ensure!(
            heard.contains("10.9.0.0/24") && heard.contains("fd09::/64"),
            "{heard}"
        );
        Ok(())
    })?;
    for node in ["n1", "n2"] {
        let peers = cluster.node(node)?.agent.peers()?;
        let neighbour = peers.iter().find(|peer| peer.address.is_ipv6());
        ensure!(
            neighbour.is_some_and(|peer| peer.up && peer.established == 1),
            "{peers:?}"
        );
    }
    nothing_lost(flows)
}
