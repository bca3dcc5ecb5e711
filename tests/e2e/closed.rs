//! What must never get through: a new pod's first packets, a pod that nobody has judged yet, a false source, an
//! interface that nobody knows.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use selvage_lab::kubelet::RunningPod;
use selvage_lab::network::add_route;
use selvage_lab::probe::flow::Flow;
use selvage_lab::probe::server::EchoServer;
use selvage_lab::topology::Pod;
use selvage_lab::{Cluster, Lab, Netns, eventually, eventually_ok, objects};
use selvage_netlink::link::{self, VethEnd};
use selvage_netlink::{Prefix, addr, netns};
use serde_json::json;

use crate::harness::Case;
use crate::scene::{
    self, ATTEMPT, OWN, SOON, is_blocked, prefix, two_nodes, wait_blocked, wait_reaches,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "e2e::a_new_pod_is_isolated_from_its_first_packet",
            OWN,
            first_packet,
        ),
        Case::new("e2e::an_optional_pod_waits_for_the_agent", OWN, optional),
        Case::new("e2e::a_false_source_is_dropped", OWN, spoofed),
        Case::new("e2e::an_unknown_pod_interface_is_dropped", OWN, unknown),
    ]
}

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

/// TCP port 80 only.
const PORT_80: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: port-80, namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
";

/// Datagrams a second that knock at an address before there is a pod.
const KNOCKS: u32 = 1000;

/// What the plugin needs to know of a pod in a namespace that is there already.
fn pod(cluster: &Cluster, name: &str, netns: &Netns) -> Result<RunningPod> {
    let mut pod: Pod = cluster
        .topology()
        .pod("shop/web")
        .context("shop/web")?
        .clone();
    pod.name.value = name.into();
    let mut running = RunningPod {
        uid: format!("{}-{name}", netns.lab().name()),
        container_id: format!("{}-{name}", netns.lab().name()),
        netns: netns.clone(),
        addresses: Vec::new(),
        pod,
    };
    let object = objects::pod(&running.pod, &running.uid, &[]);
    let objects = cluster.objects();
    if let Some(uid) = objects.put(&format!("pod-shop-{name}"), &object)? {
        running.uid = uid;
    }
    Ok(running)
}

/// ADD; the addresses that it gave.
fn add(cluster: &mut Cluster, pod: &RunningPod) -> Result<Vec<IpAddr>> {
    let kubelet = cluster.node("n1")?.kubelet.clone();
    let mut pod = pod.clone();
    kubelet.add(&mut pod)?;
    Ok(pod.addresses)
}

/// The address after this one.
fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() + 1).into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() + 1).into(),
    }
}

/// Packets knock at an address from before its pod is made; with a policy none gets in, without one some do.
pub fn first_packet(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let client = cluster.netns("default/client")?.clone();
    let mut before = cluster.addresses("shop/web");
    for (round, isolated) in [true, false, true].into_iter().enumerate() {
        if isolated {
            cluster.objects().write_text("deny", DENY)?;
            wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
        } else {
            cluster.objects().remove("deny")?;
            wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
        }
        let netns = lab.netns(&format!("knocked-{round}"))?;
        let pod = pod(&cluster, &format!("knocked-{round}"), &netns)?;
        let expected: Vec<IpAddr> = before.iter().copied().map(next).collect();
        let knock = |(port, to): (u16, &IpAddr)| {
            Flow::start(&client, &netns, SocketAddr::new(*to, port), KNOCKS)
        };
        let flows: Vec<Flow> = (7000..).zip(&expected).map(knock).collect::<Result<_>>()?;
        for flow in &flows {
            eventually(SOON, "knocks are under way", || flow.sent() >= 20)?;
        }
        before = add(&mut cluster, &pod)?;
        ensure!(
            before == expected,
            "addresses {before:?}, knocked at {expected:?}"
        );
        for address in &before {
            eventually_ok(SOON, "the node reaches its pod", || {
                let answer = scene::attempt(cluster.netns("n1")?, *address, None)?;
                ensure!(answer.is_yes(), "{answer:?}");
                Ok(())
            })?;
        }
        for flow in flows {
            let sent = flow.sent();
            eventually(SOON, "more knocks", || flow.sent() >= sent + 200)?;
            if !isolated {
                eventually(SOON, "an open pod hears them", || flow.received() > 0)?;
            }
            let account = flow.stop(Duration::ZERO)?;
            ensure!(
                (account.received == 0) == isolated,
                "isolated {isolated}: {account:?}"
            );
        }
    }
    Ok(())
}

/// The plugin does not wait, so the interface does: down until an agent has seen it.
fn optional(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("port-80", PORT_80)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    cluster.stop_pod("shop/web")?;
    let node = cluster.node("n1")?;
    node.kubelet.configuration()["policy"] = json!("optional");
    node.agent.process().kill()?;
    cluster.start_pod("shop/web")?;
    let links = link::list(&mut cluster.netns("n1")?.rtnetlink()?)?;
    let ours: Vec<_> = links
        .iter()
        .filter(|link| link.name.starts_with("sv"))
        .collect();
    ensure!(
        ours.len() == 1 && ours.iter().all(|link| !link.is_up()),
        "not closed: {ours:?}"
    );
    for from in ["default/client", "n1"] {
        for address in cluster.addresses("shop/web") {
            let answer = scene::attempt(cluster.netns(from)?, address, Some(80))?;
            ensure!(
                !answer.is_yes(),
                "{from} reaches {address} without an agent"
            );
        }
    }
    cluster.node("n1")?.agent.restart()?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    is_blocked(&cluster, "default/client", "shop/web", Some(81))
}

/// A pod that says that it is somebody else is not heard, whatever the policies.
pub fn spoofed(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    wait_reaches(&cluster, "shop/web", "default/client", None)?;
    let (web, client) = (cluster.netns("shop/web")?, cluster.netns("default/client")?);
    let own = cluster.addresses("shop/web");
    let false_ones: [IpAddr; 3] = [
        "10.244.1.200".parse()?,
        "198.51.100.7".parse()?,
        "fd00:10:244:1::dead".parse()?,
    ];
    let mut socket = web.rtnetlink()?;
    let lo = link::get_by_name(&mut socket, "lo")?.index;
    socket.apply(|batch| {
        for address in false_ones {
            let host = Prefix::host(address);
            addr::add(batch, &addr::Address::new(lo, host));
        }
    })?;
    for to in cluster.addresses("default/client") {
        let at = SocketAddr::new(to, 5353);
        let sink = client.run(|| Ok(UdpSocket::bind(at)?))?;
        sink.set_read_timeout(Some(SOON))?;
        let say =
            |from: &IpAddr| web.run(|| Ok(UdpSocket::bind((*from, 0))?.send_to(b"it is me", at)?));
        let same = |from: &&IpAddr| from.is_ipv4() == to.is_ipv4();
        for from in false_ones.iter().filter(same) {
            for _ in 0..5 {
                say(from)?;
            }
        }
        // Said last on the same way, so that all the others have had their chance.
        let honest = own.iter().find(same).context("an address")?;
        say(honest)?;
        let (_, heard) = sink.recv_from(&mut [0; 16])?;
        ensure!(heard.ip() == *honest, "a false source got through: {heard}");
    }
    Ok(())
}

/// An interface in the pods' group that no plugin has announced: neither in nor out.
fn unknown(lab: &Lab) -> Result<()> {
    const GROUP: u32 = 0x5e1;
    let cluster = two_nodes(lab)?;
    let (node, client) = (cluster.netns("n1")?, cluster.netns("default/client")?);
    let rogue = lab.netns("rogue")?;
    let inside_of = netns::open(rogue.path())?;
    let (host, end) = (
        VethEnd {
            name: "svrogue",
            ..VethEnd::default()
        },
        VethEnd {
            name: "eth0",
            netns: Some(inside_of.as_fd()),
            ..VethEnd::default()
        },
    );
    let mut socket = node.rtnetlink()?;
    socket.apply(|batch| link::add_veth(batch, &host, &end))?;
    let mut inside = rogue.rtnetlink()?;
    let outer = link::get_by_name(&mut socket, "svrogue")?.index;
    let inner = link::get_by_name(&mut inside, "eth0")?.index;
    let subnets = [
        ("10.251.0.0/24", "10.251.0.1", "10.251.0.2"),
        ("fd51::/64", "fd51::1", "fd51::2"),
    ];
    for (subnet, outside, address) in subnets {
        let subnet = prefix(subnet)?;
        let at =
            |text: &str| -> Result<Prefix> { Ok(Prefix::new(text.parse()?, subnet.prefix_len())) };
        let (outside_at, address_at) = (at(outside)?, at(address)?);
        socket.apply(|batch| {
            link::set_up(batch, outer, true);
            addr::add(batch, &addr::Address::new(outer, outside_at));
        })?;
        inside.apply(|batch| {
            link::set_up(batch, inner, true);
            addr::add(batch, &addr::Address::new(inner, address_at));
        })?;
        let default = prefix(if subnet.addr().is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        })?;
        add_route(&rogue, default, outside.parse()?)?;
        let hop = cluster
            .addresses("n1")
            .into_iter()
            .find(|hop| hop.is_ipv4() == subnet.addr().is_ipv4());
        add_route(
            cluster.netns("n2")?,
            subnet,
            hop.context("an address of n1")?,
        )?;
    }
    let _server = EchoServer::start(&rogue, 80)?;
    let reach = |wanted: bool| -> Result<()> {
        for (_, _, address) in subnets {
            let address: IpAddr = address.parse()?;
            let out = cluster.addresses("default/client");
            let out = out.iter().find(|to| to.is_ipv4() == address.is_ipv4());
            for (from, to) in [(client, address), (&rogue, *out.context("an address")?)] {
                eventually_ok(
                    SOON,
                    &format!("{} reaches {to}: {wanted}", from.name()),
                    || {
                        let answer = selvage_lab::probe::tcp::connect(
                            from,
                            SocketAddr::new(to, 80),
                            ATTEMPT,
                        )?;
                        ensure!(answer.is_yes() == wanted, "{answer:?}");
                        Ok(())
                    },
                )?;
            }
        }
        Ok(())
    };
    reach(true)?;
    let group = link::Change {
        group: Some(GROUP),
        ..link::Change::default()
    };
    socket.apply(|batch| link::change(batch, outer, &group))?;
    reach(false)?;
    // Those that are known are not concerned.
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}
