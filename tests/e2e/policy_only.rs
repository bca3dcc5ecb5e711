//! Policy beside another plugin: the pods are those of `ptp` and `host-local`, and the agents do nothing but policy.
//!
//! Bodies of the trials with our own plugin run here again: one test, two kinds of pods.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use selvage_lab::daemon::find_program;
use selvage_lab::kubelet::RunningPod;
use selvage_lab::network::add_route;
use selvage_lab::probe::Answer;
use selvage_lab::probe::flow::Flow;
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::tcp::Conversation;
use selvage_lab::process::output_of;
use selvage_lab::{Agent, Cluster, Lab, Netns, eventually, eventually_ok, objects};
use selvage_netlink::{Protocol, Socket, conntrack};
use serde_json::{Value, json};

use crate::e2e::control::http;
use crate::e2e::{closed, policy, sent_on};
use crate::faults::{agent, flows, obstacles, table};
use crate::harness::{Case, Need};
use crate::scene::{
    self, ATTEMPT, PTP_PREFIX, SOON, is_blocked, prefix, two_nodes, wait_blocked, wait_reaches,
};

const NEEDS: &[Need] = &[
    Need::Own("selvage"),
    Need::File("/usr/lib/cni/ptp", "containernetworking-plugins"),
];
const WITH_NFT: &[Need] = &[
    Need::Own("selvage"),
    Need::File("/usr/lib/cni/ptp", "containernetworking-plugins"),
    Need::System("nft", "nftables"),
];
const WITH_IPVS: &[Need] = &[
    Need::Own("selvage"),
    Need::File("/usr/lib/cni/ptp", "containernetworking-plugins"),
    Need::System("ipvsadm", "ipvsadm"),
    Need::Ipvs,
];

pub fn cases() -> Vec<Case> {
    let shared = |name, run| Case::beside_ptp(name, NEEDS, run);
    let with_nft = |name, run| Case::beside_ptp(name, WITH_NFT, run);
    vec![
        shared(
            "e2e::policy_only::a_policy_blocks_what_it_should",
            policy::blocks,
        ),
        shared(
            "e2e::policy_only::a_pod_starts_with_its_policy",
            policy::starts_closed,
        ),
        shared(
            "e2e::policy_only::labels_decide_while_pods_run",
            policy::labels,
        ),
        shared(
            "e2e::policy_only::addresses_decide_with_exceptions",
            policy::addresses,
        ),
        shared(
            "e2e::policy_only::what_leaves_a_pod_is_decided_too",
            policy::egress,
        ),
        shared(
            "e2e::policy_only::a_newly_denied_connection_is_cut",
            policy::revoked,
        ),
        shared("e2e::policy_only::why_names_the_policy", policy::why),
        shared(
            "e2e::policy_only::a_false_source_is_dropped",
            closed::spoofed,
        ),
        shared(
            "e2e::policy_only::policy_judges_what_a_node_sends_for_others",
            sent_on::raw_socket,
        ),
        Case::beside_ptp(
            "e2e::policy_only::policy_holds_behind_ipvs",
            WITH_IPVS,
            sent_on::ipvs,
        ),
        shared(
            "e2e::policy_only::policy_holds_while_the_agent_is_dead",
            agent::closed_without_agent,
        ),
        shared(
            "e2e::policy_only::nothing_denied_passes_while_agents_end_and_start",
            flows::ends,
        ),
        with_nft(
            "e2e::policy_only::a_flushed_ruleset_is_repaired",
            table::flushed,
        ),
        with_nft(
            "e2e::policy_only::allowed_flows_live_through_a_flush",
            flows::flushed,
        ),
        with_nft(
            "e2e::policy_only::no_flow_of_the_open_window_lives_on",
            table::window,
        ),
        shared(
            "e2e::policy_only::forwarding_switched_off_is_named",
            obstacles::forwarding,
        ),
        with_nft(
            "e2e::policy_only::a_foreign_chain_that_drops_is_named",
            obstacles::dropper,
        ),
        shared(
            "e2e::policy_only::selectors_decide_on_a_node_and_across",
            policy::selectors,
        ),
        with_nft(
            "e2e::policy_only::policy_judges_the_pod_behind_a_service",
            policy::service,
        ),
        shared(
            "e2e::policy_only::a_pod_is_closed_until_its_pod_is_known",
            unknown,
        ),
        shared(
            "e2e::policy_only::a_reused_address_brings_no_rules_and_no_flows",
            reused,
        ),
        shared(
            "e2e::policy_only::pods_that_change_while_the_agent_is_dead",
            away,
        ),
        shared("e2e::policy_only::routes_come_and_go", routes),
        shared("e2e::policy_only::pods_that_are_not_found_are_named", named),
        with_nft(
            "e2e::policy_only::nothing_of_ours_is_installed_but_policy",
            nothing_else,
        ),
        shared("e2e::policy_only::an_uplink_is_not_taken_for_a_pod", uplink),
    ]
}

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";
/// Only pods with this label are isolated.
const SECRET: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: secret, namespace: shop}
spec: {podSelector: {matchLabels: {app: secret}}, policyTypes: [Ingress, Egress]}
";

/// Datagrams a second.
const KNOCKS: u32 = 1000;

/// A Pod of n1, labelled `app: NAME`, with its interface; its object has no addresses.
fn add_unnamed(cluster: &mut Cluster, name: &str) -> Result<RunningPod> {
    let lab = cluster.lab().clone();
    let netns = lab.netns(&format!("pod-{name}"))?;
    let mut pod = cluster
        .topology()
        .pod("shop/web")
        .context("shop/web")?
        .clone();
    pod.name.value = name.into();
    pod.labels = [("app".to_owned(), name.to_owned())].into();
    let mut running = RunningPod {
        uid: format!("{}-{name}", lab.name()),
        container_id: format!("{}-{name}", lab.name()),
        netns,
        addresses: Vec::new(),
        pod,
    };
    let kubelet = cluster.node("n1")?.kubelet.clone();
    kubelet.update(&running)?;
    kubelet.add(&mut running)?;
    Ok(running)
}

/// Knocks from one to each address of the other, of every family.
fn knock(from: &RunningPod, to: &RunningPod, first_port: u16) -> Result<Vec<Flow>> {
    let start = |(port, address): (u16, &IpAddr)| {
        let at = SocketAddr::new(*address, port);
        Flow::start(&from.netns, &to.netns, at, KNOCKS)
    };
    (first_port..).zip(&to.addresses).map(start).collect()
}

/// Not one of 200 more that are sent has come, nor any before.
fn none_came(flows: &[Flow], what: &str) -> Result<()> {
    for flow in flows {
        let before = flow.sent();
        eventually(SOON, "knocks are under way", || flow.sent() >= before + 200)?;
    }
    let came: Vec<u64> = flows.iter().map(Flow::received).collect();
    ensure!(came.iter().all(|came| *came == 0), "{what}: {came:?}");
    Ok(())
}

fn all_come(flows: &[Flow], what: &str) -> Result<()> {
    for flow in flows {
        eventually(SOON, what, || flow.received() > 100)?;
    }
    Ok(())
}

fn end(flows: Vec<Flow>) -> Result<()> {
    flows
        .into_iter()
        .try_for_each(|flow| flow.stop(Duration::ZERO).map(drop))
}

fn wait_wrong(cluster: &mut Cluster, parts: &[&str]) -> Result<()> {
    eventually_ok(SOON, &format!("status names {parts:?}"), || {
        let status = cluster.node("n1")?.agent.json(&["status"])?;
        let wrong = status["wrong"].to_string();
        ensure!(parts.iter().all(|part| wrong.contains(part)), "{wrong}");
        Ok(())
    })
}

fn wait_good(cluster: &mut Cluster) -> Result<()> {
    eventually_ok(SOON, "status is good", || {
        let status = cluster.node("n1")?.agent.json(&["status"])?;
        ensure!(status["health"] == "good", "{status}");
        Ok(())
    })
}

fn synced(cluster: &mut Cluster) -> Result<()> {
    cluster.node("n1")?.agent.wait_synced()
}

fn ip_in(netns: &Netns, words: &str) -> Result<String> {
    let mut command = Command::new(find_program("ip").context("ip")?);
    command.args(words.split(' '));
    output_of(netns, command).with_context(|| words.to_owned())
}

fn ip(cluster: &Cluster, words: &str) -> Result<String> {
    ip_in(cluster.netns("n1")?, words)
}

/// The interface of n1 over which an address is reached.
fn interface_of(cluster: &Cluster, address: IpAddr) -> Result<String> {
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    let text = ip(cluster, &format!("{family} route show {address}"))?;
    let mut words = text.split(' ').skip_while(|word| *word != "dev");
    let name = words.nth(1).with_context(|| format!("{address}: {text}"))?;
    ensure!(name.starts_with(PTP_PREFIX), "{address}: {text}");
    Ok(name.to_owned())
}

/// Between the plugin's ADD and the address in the Pod's status nothing passes, in or out.
fn unknown(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    wait_good(&mut cluster)?;
    let new = add_unnamed(&mut cluster, "new")?;
    let address = *new.addresses.first().context("an address")?;
    let client = cluster.pod("default/client")?.running.clone();
    let web = cluster.pod("shop/web")?.running.clone();
    let mut flows = Vec::new();
    for (from, to, port) in [
        (&client, &new, 7000),
        (&new, &client, 7002),
        (&web, &new, 7004),
        (&new, &web, 7006),
    ] {
        flows.extend(knock(from, to, port)?);
    }
    none_came(&flows, "to or from a pod that nobody knows")?;
    // Nor to its own node.
    for address in cluster.addresses("n1") {
        let answer = scene::attempt(&new.netns, address, None)?;
        ensure!(answer == Answer::Silence, "n1 at {address}: {answer:?}");
    }
    let host = interface_of(&cluster, address)?;
    let text = "no Pod of this node is known to have that address";
    wait_wrong(&mut cluster, &[&host, text])?;
    let agent = &cluster.node("n1")?.agent;
    let policy = &agent.json(&["status"])?["policy"];
    ensure!(
        policy["localPods"] == 2 && policy["waiting"] == 1,
        "{policy}"
    );
    let output = agent.command(&["why", "default/client", &format!("{address}:80/tcp")])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(1) && text.contains("closed until its pod is known"),
        "{output:?}"
    );
    cluster.node("n1")?.kubelet.update(&new)?;
    all_come(&flows, "a known pod sends and hears")?;
    wait_good(&mut cluster)?;
    end(flows)
}

/// How many TCP connections to port 80 of each address the kernel of n1 knows.
fn flows_of(cluster: &Cluster, addresses: &[IpAddr]) -> Result<Vec<(IpAddr, usize)>> {
    let netns = cluster.netns("n1")?.open()?;
    let mut socket = Socket::open_in(netns.as_fd(), Protocol::Netfilter)?;
    let all = conntrack::list(&mut socket, &conntrack::Filter::default())?;
    let of = |address: &IpAddr| {
        let to_it = |flow: &&conntrack::Flow| {
            let web = matches!(flow.orig.ports, conntrack::Ports::Ports { dst: 80, .. });
            flow.orig.dst == *address && flow.orig.proto == 6 && web
        };
        (*address, all.iter().filter(to_it).count())
    };
    Ok(addresses.iter().map(of).collect())
}

/// The address of an open pod goes to an isolated one, while the object of the former still says that it has it.
fn reused(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("secret", SECRET)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let client = cluster.pod("default/client")?.running.clone();
    let before = cluster.pod("shop/web")?.running.clone();
    let mut conversations = Vec::new();
    for address in &before.addresses {
        let to = SocketAddr::new(*address, 80);
        let mut conversation = Conversation::open(&client.netns, to, SOON)?;
        ensure!(
            conversation.say(SOON)? == Answer::Yes,
            "a fresh connection says nothing"
        );
        conversations.push(conversation);
    }
    // The runtime's part of the pod's end; the kubelet has not told the API yet.
    let n1 = cluster.node("n1")?;
    n1.kubelet.call("DEL", &before)?;
    let leases = n1.agent.state_dir().join("leases/ptp");
    for family in 0..2 {
        // From the first address again.
        fs::remove_file(leases.join(format!("last_reserved_ip.{family}")))?;
    }
    let secret = add_unnamed(&mut cluster, "secret")?;
    ensure!(
        secret.addresses == before.addresses,
        "{:?}, not {:?}",
        secret.addresses,
        before.addresses
    );
    let _server = EchoServer::start(&secret.netns, 80)?;
    let flows = [
        knock(&client, &secret, 7000)?,
        knock(&secret, &client, 7002)?,
    ];
    let flows: Vec<Flow> = flows.into_iter().flatten().collect();
    let mut closed = |what: &str| -> Result<()> {
        none_came(&flows, what)?;
        for conversation in &mut conversations {
            let answer = conversation.say(ATTEMPT)?;
            ensure!(
                answer == Answer::Silence,
                "a flow of the former owner, {what}: {answer:?}"
            );
        }
        Ok(())
    };
    closed("the API says it is the former pod's")?;
    // The kernel has forgotten what the former owner had: nothing of it is established.
    for (address, left) in flows_of(&cluster, &before.addresses)? {
        ensure!(left == 0, "{left} flows of {address} are left");
    }
    // Anything else that it says of the former pod is no news of the address.
    let mut labelled = before.clone();
    labelled.pod.labels.insert("leaving".into(), "true".into());
    cluster.node("n1")?.kubelet.update(&labelled)?;
    synced(&mut cluster)?;
    closed("the former pod has another label")?;
    cluster.node("n1")?.kubelet.update(&secret)?;
    synced(&mut cluster)?;
    closed("both say that it is theirs")?;
    cluster.objects().remove("pod-shop-web")?;
    synced(&mut cluster)?;
    closed("it is isolated")?;
    for address in &secret.addresses {
        eventually_ok(SOON, "the node reaches the new pod", || {
            let answer = scene::attempt(cluster.netns("n1")?, *address, Some(80))?;
            ensure!(answer.is_yes(), "{answer:?}");
            Ok(())
        })?;
    }
    cluster.objects().remove("secret")?;
    all_come(&flows, "without the policy")?;
    end(flows)
}

/// What ends and begins while nobody looks is right afterwards, and open at no time.
fn away(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    let client = cluster.pod("default/client")?.running.clone();
    cluster.node("n1")?.agent.process().kill()?;
    cluster.stop_pod("shop/web")?;
    let new = add_unnamed(&mut cluster, "new")?;
    cluster.node("n1")?.kubelet.update(&new)?;
    let (into, out) = (knock(&client, &new, 7000)?, knock(&new, &client, 7002)?);
    none_came(&into, "without an agent")?;
    none_came(&out, "without an agent")?;
    cluster.node("n1")?.agent.restart()?;
    synced(&mut cluster)?;
    none_came(&into, "isolated")?;
    all_come(&out, "what it may send")?;
    cluster.objects().remove("deny")?;
    all_come(&into, "without the policy")?;
    end(into)?;
    end(out)
}

/// A route that goes closes the pod, one that comes opens it, and one more address is the same pod's.
fn routes(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let web = cluster.pod("shop/web")?.running.clone();
    let of = |v6: bool| web.addresses.iter().find(|addr| addr.is_ipv6() == v6);
    let (v4, v6) = (
        *of(false).context("no IPv4 address")?,
        *of(true).context("no IPv6 address")?,
    );
    let host = interface_of(&cluster, v4)?;
    ensure!(interface_of(&cluster, v6)? == host, "not one interface");
    let from = cluster.netns("default/client")?.clone();
    let mut conversation = Conversation::open(&from, SocketAddr::new(v4, 80), SOON)?;
    let answer = conversation.say(SOON)?;
    ensure!(answer == Answer::Yes, "a fresh connection: {answer:?}");
    let numbers = |cluster: &mut Cluster, local: u64, unrouted: u64| {
        eventually_ok(SOON, "the numbers of pods", || {
            let status = cluster.node("n1")?.agent.json(&["status"])?;
            let policy = &status["policy"];
            ensure!(
                policy["localPods"] == local && policy["unrouted"] == unrouted,
                "{policy}"
            );
            Ok(())
        })
    };
    let reached = |address: IpAddr, wanted: Answer| {
        eventually_ok(SOON, &format!("{address}: {wanted:?}"), || {
            let answer = scene::attempt(&from, address, Some(80))?;
            ensure!(answer == wanted, "{answer:?}");
            Ok(())
        })
    };
    let add_both = |cluster: &Cluster| -> Result<()> {
        ip(cluster, &format!("route add {v4} dev {host}"))?;
        ip(cluster, &format!("-6 route add {v6} dev {host}"))?;
        reached(v4, Answer::Yes)?;
        reached(v6, Answer::Yes)
    };
    numbers(&mut cluster, 1, 0)?;

    // Without one of its routes the pod is known by the other; without both it is not.
    ip(&cluster, &format!("route del {v4}"))?;
    numbers(&mut cluster, 1, 1)?;
    reached(v6, Answer::Yes)?;
    ip(&cluster, &format!("-6 route del {v6}"))?;
    numbers(&mut cluster, 0, 1)?;
    let address = v4.to_string();
    wait_wrong(
        &mut cluster,
        &["policy is not enforced for 1 pod", "shop/web", &address],
    )?;
    add_both(&cluster)?;
    numbers(&mut cluster, 1, 0)?;
    // A moment without a route is no end of a pod.
    let answer = conversation.say(SOON)?;
    ensure!(answer == Answer::Yes, "the connection is lost: {answer:?}");

    // The kernel takes the routes of a link that goes down, and says nothing of the IPv4 one.
    ip(&cluster, &format!("link set {host} down"))?;
    numbers(&mut cluster, 0, 1)?;
    ip(&cluster, &format!("link set {host} up"))?;
    // The pod's gateway, which `ptp` has put there.
    ip(
        &cluster,
        &format!("-6 address add fd00:10:244:1::1/128 dev {host} nodad"),
    )?;
    add_both(&cluster)?;

    // One more address over the same interface. What counts is where the kernel sends packets.
    let second: IpAddr = "10.244.1.77".parse()?;
    ip_in(&web.netns, &format!("address add {second}/32 dev eth0"))?;
    ip(&cluster, &format!("route add {second} dev {host} metric 7"))?;
    reached(second, Answer::Yes)?;
    cluster.objects().write_text("deny", DENY)?;
    for address in [v4, v6, second] {
        reached(address, Answer::Silence)?;
    }
    cluster.objects().remove("deny")?;
    reached(second, Answer::Yes)?;
    ip(&cluster, &format!("route add blackhole {second} metric 3"))?;
    cluster.objects().write_text("deny", DENY)?;
    reached(v4, Answer::Silence)?;
    ip(&cluster, &format!("route del blackhole {second} metric 3"))?;
    synced(&mut cluster)?;
    reached(second, Answer::Silence)?;
    numbers(&mut cluster, 1, 0)?;
    cluster.objects().remove("deny")?;
    reached(second, Answer::Yes)
}

/// A pod on n1 as the plugin `bridge` makes it: the bridge has the route, the pod has none.
fn bridged(cluster: &Cluster, netns: &Netns) -> Result<IpAddr> {
    for words in [
        "link add cni0 type bridge",
        "address add 10.244.1.129/25 dev cni0",
        "link set cni0 up",
    ] {
        ip(cluster, words)?;
    }
    let inside = netns.path().display();
    ip(
        cluster,
        &format!("link add vethbridged type veth peer name eth0 netns {inside}"),
    )?;
    ip(cluster, "link set vethbridged master cni0 up")?;
    for words in [
        "address add 10.244.1.130/25 dev eth0",
        "link set eth0 up",
        "route add default via 10.244.1.129",
    ] {
        ip_in(netns, words)?;
    }
    Ok("10.244.1.130".parse()?)
}

/// Pods that policy does not reach are named, with what to do; `why` does not say that policy decides there.
fn named(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    wait_good(&mut cluster)?;
    let netns = lab.netns("bridged")?;
    let address = bridged(&cluster, &netns)?;
    let _server = EchoServer::start(&netns, 80)?;
    let mut pod = cluster.pod("shop/web")?.running.pod.clone();
    pod.name.value = "bridged".into();
    cluster
        .objects()
        .write("pod-bridged", &objects::pod(&pod, "bridged", &[address]))?;
    wait_wrong(
        &mut cluster,
        &[
            "policy is not enforced for 1 pod of this node",
            "shop/bridged (10.244.1.130)",
            "vethbridged of cni0",
        ],
    )?;
    // It says what is true: the policy denies, and the packet passes.
    let answer = scene::attempt(cluster.netns("default/client")?, address, Some(80))?;
    ensure!(answer == Answer::Yes, "a bridged pod: {answer:?}");
    let agent = &cluster.node("n1")?.agent;
    let why = |pod: &str| -> Result<(Option<i32>, Value)> {
        let to = format!("shop/{pod}:80/tcp");
        let output = agent.command(&["why", "default/client", &to, "-o", "json"])?;
        let answer = serde_json::from_slice(&output.stdout);
        Ok((
            output.status.code(),
            answer.with_context(|| format!("{output:?}"))?,
        ))
    };
    let (code, answer) = why("bridged")?;
    ensure!(
        code == Some(0)
            && answer["allowed"] == true
            && answer["ingress"]["allowed"] == false
            && answer["obstacles"].to_string().contains("not enforced"),
        "{answer}"
    );
    let (code, answer) = why("web")?;
    ensure!(code == Some(1) && answer["allowed"] == false, "{answer}");
    let (_, metrics) = http(cluster.netns("n1")?, "/metrics")?;
    for line in ["selvage_local_pods 1", "selvage_local_pods_unrouted 1"] {
        ensure!(
            metrics.lines().any(|found| found == line),
            "{line}: {metrics}"
        );
    }
    // A pod in the node's network has the node's address, and no interface.
    let mut host = objects::pod(&pod, "host", &cluster.addresses("n1"));
    host["metadata"]["name"] = json!("host");
    host["spec"]["hostNetwork"] = json!(true);
    cluster.objects().write("pod-host", &host)?;
    cluster.objects().remove("pod-bridged")?;
    wait_good(&mut cluster)?;
    is_blocked(&cluster, "default/client", "shop/web", Some(80))
}

fn nft(cluster: &Cluster, words: &str) -> Result<String> {
    let words: Vec<&str> = words.split(' ').collect();
    scene::nft(cluster.netns("n1")?, &words)
}

/// One table, and nothing else: no route, no other table, no socket for the plugin, no sysctl.
fn nothing_else(lab: &Lab) -> Result<()> {
    const SYSCTLS: [&str; 6] = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/eth0/rp_filter",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/eth0/accept_ra",
        "net/netfilter/nf_conntrack_tcp_loose",
    ];
    let mut cluster = scene::cluster(lab, scene::TWO_NODES)?;
    let read = |cluster: &Cluster| -> Result<Vec<String>> {
        let netns = cluster.netns("n1")?;
        SYSCTLS.iter().map(|name| netns.sysctl(name)).collect()
    };
    // The kernel's own come with its addresses, when it is sure that nobody else has those.
    let routes = |cluster: &Cluster| -> Result<Vec<String>> {
        let v4 = ip(cluster, "-4 route show table all")?;
        let all = v4 + &ip(cluster, "-6 route show table all")?;
        let others = all.lines().filter(|line| !line.contains(" proto kernel "));
        Ok(others.map(str::to_owned).collect())
    };
    let only_policy = |cluster: &Cluster| -> Result<()> {
        let tables = nft(cluster, "list tables")?;
        ensure!(tables.trim() == "table inet selvage", "{tables}");
        Ok(())
    };
    let before = (read(&cluster)?, routes(&cluster)?);
    for node in ["n1", "n2"] {
        cluster.start_node(node)?;
        cluster.node(node)?.agent.wait_ready(SOON)?;
    }
    let after = (read(&cluster)?, routes(&cluster)?);
    ensure!(after == before, "{before:?}\n{after:?}");
    only_policy(&cluster)?;
    let nexthops = ip(&cluster, "nexthop show")?;
    ensure!(nexthops.is_empty(), "{nexthops}");
    for pod in ["shop/web", "default/client"] {
        cluster.start_pod(pod)?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    only_policy(&cluster)?;
    let agent = &cluster.node("n1")?.agent;
    for path in [
        agent.run_dir().join("cni.sock"),
        agent.state_dir().join("attachments"),
    ] {
        ensure!(!path.exists(), "{}", path.display());
    }
    let status = agent.json(&["status"])?;
    ensure!(
        status["features"] == json!(["policy"])
            && status["policy"]["podInterfaces"] == json!(["veth*"])
            && status["health"] == "good",
        "{status}"
    );
    let text = agent.ask(&["status"])?;
    ensure!(text.contains("1 local pod behind veth*"), "{text}");
    // What is read back is what was written: a second start changes nothing.
    let written = nft(&cluster, "-a list table inet selvage")?;
    ensure!(written.contains("iifname \"veth*\""), "{written}");
    cluster.node("n1")?.agent.process().kill()?;
    cluster.node("n1")?.agent.restart()?;
    synced(&mut cluster)?;
    let handles = |text: &str| -> Vec<String> {
        let handles = text.lines().filter_map(|line| line.split_once("# handle "));
        handles.map(|(_, handle)| handle.to_owned()).collect()
    };
    let again = nft(&cluster, "-a list table inet selvage")?;
    ensure!(handles(&again) == handles(&written), "{written}\n{again}");
    Ok(())
}

/// A prefix that the node's own link has would cut the node off: the agent refuses to start.
fn uplink(lab: &Lab) -> Result<()> {
    let cluster = scene::cluster(lab, scene::TWO_NODES)?;
    let netns = cluster.netns("n1")?;
    let hop = cluster.addresses("n2").into_iter().find(IpAddr::is_ipv4);
    let hop = hop.context("an address of n2")?;
    add_route(netns, prefix("0.0.0.0/0")?, hop)?;
    let objects = cluster.objects().directory();
    let more = ["--features", "policy", "--pod-interface-prefix", "veth,eth"];
    let mut agent = Agent::start(netns, "n1", objects, &more)?;
    let status = agent.process().wait_end(SOON)?;
    let output = agent.process().output();
    ensure!(status.code() == Some(1), "ended with {status}: {output}");
    for part in ["`eth0` has the default route", "eth*, veth*"] {
        ensure!(output.contains(part), "no {part}: {output}");
    }
    let answer = scene::attempt(netns, hop, None)?;
    ensure!(answer.is_yes(), "the node is cut off: {answer:?}");
    Ok(())
}
