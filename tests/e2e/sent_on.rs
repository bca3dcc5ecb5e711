//! What a node sends but did not make: packets that do not cross the forward hook, as IPVS and raw sockets send them.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::daemon::find_program;
use selvage_lab::network::add_route;
use selvage_lab::probe::Answer;
use selvage_lab::probe::raw::{SynEar, send_syn};
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::tcp::{self, Conversation};
use selvage_lab::process::output_of;
use selvage_lab::{Cluster, Lab, eventually_ok};
use selvage_netlink::{Prefix, addr, link};
use serde_json::{Value, json};

use crate::harness::{Case, Need};
use crate::scene::{ATTEMPT, OWN, SOON, prefix, two_nodes, wait_blocked, wait_reaches};

const WITH_IPVS: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("ipvsadm", "ipvsadm"),
    Need::Ipvs,
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "e2e::policy_judges_what_a_node_sends_for_others",
            OWN,
            raw_socket,
        ),
        Case::new("e2e::policy_holds_behind_ipvs", WITH_IPVS, ipvs),
    ]
}

/// One direction of the pods of `shop`: TCP port 80 and nothing else.
fn port_80(direction: &str) -> Value {
    let rules = json!([{"ports": [{"port": 80}]}]);
    policy(
        direction,
        match direction {
            "Ingress" => json!({"ingress": rules}),
            _ => json!({"egress": rules}),
        },
    )
}

fn policy(direction: &str, rules: Value) -> Value {
    let mut spec = json!({"podSelector": {}, "policyTypes": [direction]});
    if let (Some(spec), Value::Object(rules)) = (spec.as_object_mut(), rules) {
        spec.extend(rules);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": direction.to_lowercase(), "namespace": "shop"},
        "spec": spec,
    })
}

/// A SYN on the forbidden port, then one on the allowed port, from `n1` in the name of `from`; which of them `to` hears.
fn heard(
    cluster: &Cluster,
    from: IpAddr,
    to: (&str, IpAddr),
    source_port: u16,
) -> Result<Vec<u16>> {
    let node = cluster.netns("n1")?;
    let ear = SynEar::open(cluster.netns(to.0)?, to.1.is_ipv6())?;
    let from = SocketAddr::new(from, source_port);
    let mut ports = Vec::new();
    // The last one is allowed, and goes the same way: whatever comes has come before it.
    for port in [81, 80] {
        send_syn(node, from, SocketAddr::new(to.1, port))?;
    }
    loop {
        let (source, port) = ear.hear(SOON)?;
        if source == from {
            ports.push(port);
        }
        if source == from && port == 80 {
            return Ok(ports);
        }
    }
}

/// The node has a raw socket: what it sends in the name of a pod, here or elsewhere, is judged like the pod's own.
pub fn raw_socket(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let (web, client) = ("shop/web", "default/client");
    // Both are known: another plugin's ADD does not wait for that.
    wait_reaches(&cluster, client, web, Some(80))?;
    let ways = || {
        let (here, there) = (cluster.addresses(web), cluster.addresses(client));
        let node = cluster.addresses("n1");
        here.into_iter().zip(there).zip(node)
    };
    // Without a policy all of it arrives: the trial can see what it looks for.
    for ((here, there), _) in ways() {
        let open = heard(&cluster, there, (web, here), 40_001)?;
        ensure!(open == [81, 80], "no policy, into the pod: {open:?}");
        let open = heard(&cluster, here, (client, there), 40_002)?;
        ensure!(open == [81, 80], "no policy, out of the pod: {open:?}");
    }
    cluster.objects().write("ingress", &port_80("Ingress"))?;
    cluster.objects().write("egress", &port_80("Egress"))?;
    wait_blocked(&cluster, client, web, Some(81))?;
    wait_blocked(&cluster, web, client, Some(81))?;
    for ((here, there), node) in ways() {
        let into = heard(&cluster, there, (web, here), 40_003)?;
        ensure!(into == [80], "past the ingress policy: {into:?}");
        let out = heard(&cluster, here, (client, there), 40_004)?;
        ensure!(out == [80], "past the egress policy: {out:?}");
        // A stranger that is nobody's pod.
        let stranger: IpAddr = if here.is_ipv4() {
            "198.51.100.7".parse()?
        } else {
            "2001:db8:7::7".parse()?
        };
        let into = heard(&cluster, stranger, (web, here), 40_005)?;
        ensure!(into == [80], "a stranger past the ingress policy: {into:?}");
        // The node's own address is the node.
        let own = heard(&cluster, node, (web, here), 40_006)?;
        ensure!(own == [81, 80], "the node to its own pod: {own:?}");
    }
    Ok(())
}

/// Addresses of the services, as kube-proxy has them on `kube-ipvs0`.
const TO_WEB: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const TO_CLIENT: [&str; 2] = ["10.96.0.20", "fd00:96::20"];

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn ipvsadm(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let mut command = Command::new(find_program("ipvsadm").context("ipvsadm")?);
    command.args(words);
    output_of(cluster.netns("n1")?, command)?;
    Ok(())
}

/// A service on `n1` with one endpoint, as kube-proxy makes it in its ipvs mode.
fn serve(cluster: &Cluster, service: IpAddr, endpoint: IpAddr) -> Result<()> {
    let mut socket = cluster.netns("n1")?.rtnetlink()?;
    let lo = link::get_by_name(&mut socket, "lo")?.index;
    socket.apply(|batch| addr::add(batch, &addr::Address::new(lo, Prefix::host(service))))?;
    for port in [80, 81] {
        let (service, endpoint) = (
            at(service, port).to_string(),
            at(endpoint, port).to_string(),
        );
        ipvsadm(cluster, &["-A", "-t", &service, "-s", "rr"])?;
        ipvsadm(cluster, &["-a", "-t", &service, "-r", &endpoint, "-m"])?;
    }
    Ok(())
}

fn wait_answer(cluster: &Cluster, from: &str, to: SocketAddr, wanted: Answer) -> Result<()> {
    eventually_ok(
        SOON,
        &format!("{from} to {to}: {wanted:?}"),
        || match tcp::connect(cluster.netns(from)?, to, ATTEMPT)? {
            answer if answer == wanted => Ok(()),
            other => bail!("{other:?}"),
        },
    )
}

/// Policy behind a service of IPVS: in, out, and under a connection that is there already.
pub fn ipvs(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let (web, client) = ("shop/web", "default/client");
    wait_reaches(&cluster, client, web, Some(80))?;
    let node = cluster.netns("n1")?;
    let (here, there) = (cluster.addresses(web), cluster.addresses(client));
    let parse = |texts: [&str; 2]| -> Result<Vec<IpAddr>> {
        texts.iter().map(|text| Ok(text.parse()?)).collect()
    };
    let (to_web, to_client) = (parse(TO_WEB)?, parse(TO_CLIENT)?);
    // Asking for a service loads the module, which brings the sysctl.
    ipvsadm(&cluster, &["-L", "-n"])?;
    node.set_sysctl("net.ipv4.vs.conntrack", "1")?;
    for i in 0..2 {
        serve(&cluster, to_web[i], here[i])?;
        serve(&cluster, to_client[i], there[i])?;
        let host = prefix(&format!("{}/{}", to_web[i], if i == 0 { 32 } else { 128 }))?;
        let hop = cluster.addresses("n1");
        let hop = hop.into_iter().find(|hop| hop.is_ipv4() == (i == 0));
        add_route(cluster.netns("n2")?, host, hop.context("an address of n1")?)?;
    }
    let _server = EchoServer::start(cluster.netns(client)?, 81)?;
    let mut cut = Vec::new();
    for i in 0..2 {
        for port in [80, 81] {
            wait_answer(&cluster, client, at(to_web[i], port), Answer::Yes)?;
            wait_answer(&cluster, web, at(to_client[i], port), Answer::Yes)?;
            wait_answer(&cluster, "n1", at(to_web[i], port), Answer::Yes)?;
        }
        let mut open = |from: &str, to| -> Result<()> {
            let mut conversation = Conversation::open(cluster.netns(from)?, to, SOON)?;
            ensure!(conversation.say(SOON)? == Answer::Yes, "{from} to {to}");
            cut.push(conversation);
            Ok(())
        };
        open(client, at(to_web[i], 81))?;
        open(web, at(to_client[i], 81))?;
    }
    cluster.objects().write("ingress", &port_80("Ingress"))?;
    cluster.objects().write("egress", &port_80("Egress"))?;
    wait_blocked(&cluster, client, web, Some(81))?;
    wait_blocked(&cluster, web, client, Some(81))?;
    for i in 0..2 {
        for (port, wanted) in [(80, Answer::Yes), (81, Answer::Silence)] {
            wait_answer(&cluster, client, at(to_web[i], port), wanted)?;
            wait_answer(&cluster, web, at(to_client[i], port), wanted)?;
            // The node reaches its own pod, by the service, too.
            wait_answer(&cluster, "n1", at(to_web[i], port), Answer::Yes)?;
        }
    }
    for conversation in &mut cut {
        eventually_ok(
            SOON,
            "a connection through the service is cut",
            || match conversation.say(Duration::from_millis(500))? {
                Answer::Yes => bail!("it still carries bytes"),
                _ => Ok(()),
            },
        )?;
    }
    Ok(())
}
