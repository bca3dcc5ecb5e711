//! What the command line and the web say, and with which exit codes; what cleanup leaves.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use selvage_lab::network::add_route;
use selvage_lab::{Agent, Cluster, Lab, Netns, cluster, eventually_ok};
use selvage_netlink::{Protocol, Socket, link, nexthop, nft, route};
use serde_json::{Value, json};

use crate::harness::{Case, Need};
use crate::scene::{self, OWN, SOON, TWO_NODES, prefix, two_nodes, wait_blocked, wait_reaches};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::the_command_line_answers_programs", OWN, answers),
        Case::new("e2e::exit_codes_tell_no_from_wrong_usage", OWN, exit_codes),
        Case::new("e2e::why_agrees_with_packets", OWN, why_agrees),
        Case::new("e2e::health_and_metrics_tell_the_truth", OWN, web),
        Case::new(
            "e2e::policies_that_are_not_enforced_are_named",
            OWN,
            not_enforced,
        ),
        Case::new(
            "e2e::ready_names_what_it_waits_for",
            &[Need::Own("selvage")],
            not_ready,
        ),
        Case::new("e2e::cleanup_leaves_nothing", OWN, cleanup),
        Case::new("e2e::a_password_is_changed_by_its_secret", OWN, password),
    ]
}

fn answers(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let node = cluster.node("n1")?;
    let pid = node.agent.process().pid();
    let agent = &node.agent;
    agent.ask(&["wait", "--for", "synced", "--timeout", "30s"])?;
    let status = eventually_ok(SOON, "good health", || {
        let status = agent.json(&["status"])?;
        ensure!(status["health"] == "good", "{status}");
        Ok(status)
    })?;
    for (path, wanted) in [
        ("/node", json!("n1")),
        ("/pid", json!(pid)),
        ("/ready/ready", json!(true)),
        ("/features", json!(["bgp", "kernel", "cni", "policy"])),
        ("/source/synced", json!(true)),
        ("/source/objects/Node", json!(2)),
        ("/source/objects/Pod", json!(2)),
        ("/source/problems", json!([])),
        ("/bgp/asn", json!(64512)),
        ("/bgp/routerId", json!("192.0.2.1")),
        ("/policy/localPods", json!(1)),
        ("/policy/waiting", json!(0)),
        ("/routes/unresolved", json!(0)),
        ("/routes/failed", json!(0)),
        ("/wrong", json!([])),
    ] {
        ensure!(
            status.pointer(path) == Some(&wanted),
            "{path}, wanted {wanted}: {status}"
        );
    }
    for family in ["ipv4", "ipv6"] {
        ensure!(status["routes"][family] == 1, "{}", status["routes"]);
    }

    // Numbers are told once a second.
    eventually_ok(SOON, "the neighbour with its numbers", || {
        let peers = agent.json(&["peers", "192.0.2.2"])?;
        let peer = &peers[0];
        ensure!(
            peer["state"] == "Established" && peer["up"] == true && peer["origin"] == "mesh",
            "{peers}"
        );
        ensure!(
            peer["received"] == json!([1, 1]) && peer["advertised"] == json!([1, 1]),
            "{peers}"
        );
        ensure!(
            peer["endOfRib"] == true && peer["stale"] == false,
            "{peers}"
        );
        Ok(())
    })?;

    for (pods, hop) in ["10.244.2.0/24", "fd00:10:244:2::/64"]
        .iter()
        .zip(cluster.addresses("n2"))
    {
        let agent = &cluster.node("n1")?.agent;
        let routes = agent.json(&["routes", pods])?;
        let row = &routes
            .as_array()
            .context("a list")?
            .first()
            .context("no row")?;
        ensure!(
            row["prefix"] == *pods && row["kernel"] == "installed",
            "{routes}"
        );
        let best = &row["paths"][0];
        ensure!(
            best["best"] == true && best["nextHops"][0].as_str() == Some(&hop.to_string()),
            "{routes}"
        );
    }
    let agent = &cluster.node("n1")?.agent;
    let told = agent
        .json(&["routes", "--advertised", "192.0.2.2"])?
        .to_string();
    ensure!(
        told.contains("10.244.1.0/24") && !told.contains("10.244.2.0/24"),
        "{told}"
    );
    let heard = agent
        .json(&["routes", "--received", "192.0.2.2"])?
        .to_string();
    ensure!(
        heard.contains("10.244.2.0/24") && !heard.contains("10.244.1.0/24"),
        "{heard}"
    );
    for words in [&["status"][..], &["peers"], &["routes"]] {
        let yaml = agent.ask(&[words, &["-o", "yaml"]].concat())?;
        ensure!(yaml.contains(": ") && !yaml.starts_with('{'), "{yaml}");
        // For people: no escape sequences where there is no terminal.
        let text = agent.ask(words)?;
        ensure!(!text.is_empty() && !text.contains('\x1b'), "{text:?}");
    }
    Ok(())
}

fn code(output: &Output) -> String {
    format!(
        "{:?} {} {}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn exit_codes(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    // A neighbour that never comes.
    let absent = json!({"address": "192.0.2.77", "asn": 65077});
    cluster
        .objects()
        .write("absent", &cluster::object("BGPPeer", "absent", absent))?;
    let agent = &cluster.node("n1")?.agent;
    agent.ask(&["wait", "--for", "synced", "--timeout", "30s"])?;
    for (words, wanted, said) in [
        (&["status"][..], 0, ""),
        (&["why", "default/client", "shop/web:80"], 0, "allowed"),
        (
            &["why", "default/nobody", "shop/web:80"],
            1,
            "default/nobody",
        ),
        (&["why", "default/client", "shop/web:http"], 2, "port"),
        (&["why", "default/client"], 2, "DST"),
        (
            &["wait", "--for", "peers", "--timeout", "100ms"],
            1,
            "192.0.2.77",
        ),
        (&["wait", "--for", "nothing"], 2, "nothing"),
        (&["routes", "10.244.2.0/33"], 2, "10.244.2.0/33"),
        (&["peers", "here"], 2, "here"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["version"], 0, "selvage"),
    ] {
        let output = agent.command(words)?;
        ensure!(
            output.status.code() == Some(wanted) && code(&output).contains(said),
            "{words:?}, wanted {wanted} and {said:?}: {}",
            code(&output)
        );
    }
    // Nobody there: no, and what to do.
    cluster.node("n1")?.agent.process().kill()?;
    let output = cluster.node("n1")?.agent.command(&["status"])?;
    ensure!(
        output.status.code() == Some(1) && code(&output).contains("selvage agent"),
        "{}",
        code(&output)
    );
    Ok(())
}

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}}]
      ports: [{port: 80}]
  egress:
    - to: [{ipBlock: {cidr: 10.244.0.0/16}}]
      ports: [{port: 80, endPort: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: stranger, namespace: default}
spec:
  podSelector: {matchLabels: {app: stranger}}
  egress: [{to: [{podSelector: {}}]}]
";

/// Every pair, port and family: the answer of the source's and of the destination's agent is what packets get.
fn why_agrees(lab: &Lab) -> Result<()> {
    let text = format!(
        "{TWO_NODES}  - {{name: stranger, namespace: default, node: n1, labels: {{app: stranger}}, ports: [80, 81]}}\n"
    );
    let mut cluster = scene::cluster(lab, &text)?;
    cluster.start(2 * SOON)?;
    cluster.objects().write_text("policies", POLICIES)?;
    let pods = ["shop/web", "default/client", "default/stranger"];
    wait_blocked(&cluster, "default/stranger", "shop/web", Some(80))?;
    for node in ["n1", "n2"] {
        let agent = &cluster.node(node)?.agent;
        agent.ask(&["wait", "--for", "synced", "--timeout", "30s"])?;
    }
    let (mut allowed, mut denied) = (0, 0);
    for from in pods {
        for to in pods.iter().filter(|to| **to != from) {
            let ends = cluster.addresses(to).into_iter();
            let ends: Vec<(IpAddr, u16)> = ends.flat_map(|a| [(a, 80), (a, 81)]).collect();
            for (address, port) in ends {
                let answer = scene::attempt(cluster.netns(from)?, address, Some(port))?;
                // A port without a server that refuses was reached, too.
                let passes = answer != selvage_lab::probe::Answer::Silence;
                let end = match address.is_ipv4() {
                    true => format!("{address}:{port}/TCP"),
                    false => format!("[{address}]:{port}/TCP"),
                };
                for node in ["n1", "n2"] {
                    let agent = &cluster.node(node)?.agent;
                    let output = agent.command(&["why", from, &end, "-o", "json"])?;
                    let view: Value =
                        serde_json::from_slice(&output.stdout).with_context(|| code(&output))?;
                    ensure!(
                        view["allowed"] == passes
                            && output.status.code() == Some(i32::from(!passes)),
                        "{from} to {to} {end}: packets {answer:?}, {node} says {view}"
                    );
                }
                *(if passes { &mut allowed } else { &mut denied }) += 1;
            }
        }
    }
    ensure!(
        allowed >= 4 && denied >= 4,
        "too much of one kind: {allowed} allowed, {denied} denied"
    );
    Ok(())
}

/// Status line and body.
/// The status line and the body of what the agent's web server answers.
pub fn http(netns: &Netns, path: &str) -> Result<(String, String)> {
    let text = netns.run(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", 9179))?;
        stream.set_read_timeout(Some(SOON))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP")?;
    let line = head.lines().next().unwrap_or_default();
    Ok((line.to_owned(), body.to_owned()))
}

fn web(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let node = cluster.netns("n1")?.clone();
    for path in ["/livez", "/healthz", "/readyz", "/"] {
        let (line, body) = http(&node, path)?;
        ensure!(
            line.contains(" 200 ") && !body.is_empty(),
            "{path}: {line} {body}"
        );
    }
    let (line, body) = http(&node, "/nothing")?;
    ensure!(line.contains(" 404 "), "{line} {body}");
    let metric = |wanted: &str| {
        eventually_ok(SOON, wanted, || {
            let (_, text) = http(&node, "/metrics")?;
            ensure!(text.lines().any(|line| line == wanted), "{text}");
            Ok(())
        })
    };
    for wanted in [
        "selvage_ready 1",
        "selvage_source_synced 1",
        "selvage_source_problems 0",
        "selvage_local_pods 1",
        "selvage_kernel_routes_unresolved 0",
        "selvage_policy_failing 0",
        "selvage_bgp_peer_up{asn=\"64512\",peer=\"192.0.2.2\"} 1",
        "selvage_kernel_routes{family=\"ipv4\"} 1",
    ] {
        metric(wanted)?;
    }
    // They follow what happens.
    cluster.objects().write_text("bad", "kind: Nonsense\n")?;
    metric("selvage_source_problems 1")?;
    cluster.objects().remove("bad")?;
    metric("selvage_source_problems 0")?;
    cluster.node("n2")?.agent.process().kill()?;
    metric("selvage_bgp_peer_up{asn=\"64512\",peer=\"192.0.2.2\"} 0")
}

/// A policy that is accepted and not enforced is no secret: status, metric, `check`; and when it is gone it is gone.
fn not_enforced(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let node = cluster.netns("n1")?.clone();
    let policy = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: no-one-talks}\nspec: {tier: Admin, priority: 1}\n";
    let says = |cluster: &mut Cluster, says: bool| {
        let metric = format!(
            "selvage_policies_not_enforced{{kind=\"ClusterNetworkPolicy\"}} {}",
            usize::from(says)
        );
        eventually_ok(SOON, &metric, || {
            let (_, text) = http(&node, "/metrics")?;
            ensure!(text.lines().any(|line| line == metric), "{text}");
            let output = cluster
                .node("n1")?
                .agent
                .command(&["status", "-o", "json"])?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            let named = "1 ClusterNetworkPolicy is not enforced: no-one-talks";
            let wrong = status["wrong"].to_string();
            ensure!(wrong.contains(named) == says, "{status}");
            ensure!((status["health"] == "good") != says, "{status}");
            Ok(())
        })
    };
    says(&mut cluster, false)?;
    cluster.objects().write_text("cluster-policy", policy)?;
    says(&mut cluster, true)?;
    let file = cluster.objects().directory().join("cluster-policy.yaml");
    let file = file.to_str().context("path")?;
    let checked = cluster.node("n1")?.agent.command(&["check", file])?;
    let text = String::from_utf8_lossy(&checked.stdout);
    ensure!(
        checked.status.code() == Some(1)
            && text.contains("cluster-policy.yaml:1:1: ClusterNetworkPolicy no-one-talks")
            && text.contains("not enforced"),
        "{checked:?}"
    );
    cluster.objects().remove("cluster-policy")?;
    says(&mut cluster, false)
}

/// Without its Node there are no pod CIDRs and no addresses: it lives, and says what it waits for.
fn not_ready(lab: &Lab) -> Result<()> {
    let netns = lab.netns("n1")?;
    let objects = lab.subdirectory("objects")?;
    let mut agent = Agent::start(&netns, "n1", &objects, &[])?;
    eventually_ok(SOON, "it lives", || {
        let (line, _) = http(&netns, "/healthz")?;
        ensure!(line.contains(" 200 "), "{line}");
        Ok(())
    })?;
    eventually_ok(SOON, "status says that there is no Node", || {
        let output = agent.command(&["status", "-o", "json"])?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let wrong = status["wrong"].to_string();
        ensure!(wrong.contains("Node"), "{status}");
        Ok(())
    })?;
    let status = agent.process().stop(SOON)?;
    ensure!(status.success(), "{status}");
    Ok(())
}

fn files(directory: &std::path::Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files(&path)?),
            false => all.push(path),
        }
    }
    Ok(all)
}

fn cleanup(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let netns = cluster.netns("n1")?.clone();
    // What others own stays.
    add_route(&netns, prefix("203.0.113.0/24")?, "192.0.2.2".parse()?)?;
    let conf = lab.subdirectory("net.d")?;
    std::fs::write(conf.join("10-selvage.conflist"), "{}")?;
    std::fs::write(conf.join("20-other.conflist"), "{}")?;
    let state = cluster.node("n1")?.agent.state_dir().to_owned();
    let run = cluster.node("n1")?.agent.run_dir().to_owned();
    let clean = |cluster: &mut Cluster| -> Result<Output> {
        let (state, conf) = (
            state.to_str().context("path")?,
            conf.to_str().context("path")?,
        );
        let words = [
            "cleanup",
            "--pods",
            "-o",
            "json",
            "--state-dir",
            state,
            "--cni-conf-dir",
            conf,
            "--cni-bin-dir",
            conf,
        ];
        cluster.node("n1")?.agent.command(&words)
    };
    // Not under an agent that runs.
    let pid = cluster.node("n1")?.agent.process().pid().to_string();
    let refused = clean(&mut cluster)?;
    ensure!(
        refused.status.code() == Some(1) && code(&refused).contains(&pid),
        "{}",
        code(&refused)
    );
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;

    cluster.node("n1")?.agent.process().kill()?;
    let first = clean(&mut cluster)?;
    ensure!(first.status.success(), "{}", code(&first));
    left(&netns).with_context(|| code(&first))?;
    let kept: Vec<_> = [files(&state)?, files(&run)?, files(&conf)?].concat();
    ensure!(
        kept == [conf.join("20-other.conflist")],
        "files are left: {kept:?}; {}",
        code(&first)
    );
    let second = clean(&mut cluster)?;
    let view: Value = serde_json::from_slice(&second.stdout).with_context(|| code(&second))?;
    let nothing = json!({"routes": 0, "nexthops": 0, "tables": [], "interfaces": [], "leases": 0, "files": [], "sysctls": [], "kept": []});
    ensure!(
        second.status.success() && view == nothing,
        "{}",
        code(&second)
    );

    // From nothing, everything comes again.
    cluster.node("n1")?.agent.restart()?;
    cluster.node("n1")?.agent.wait_ready(2 * SOON)?;
    cluster.stop_pod("shop/web")?;
    cluster.start_pod("shop/web")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

/// What cleanup must not leave in the kernel, and what it must.
fn left(netns: &Netns) -> Result<()> {
    let mut socket = netns.rtnetlink()?;
    let mut foreign = 0;
    for v6 in [false, true] {
        let routes = route::list(&mut socket, v6, &route::Filter::default())?;
        let ours: Vec<_> = routes
            .iter()
            .filter(|route| [85, 86].contains(&route.protocol))
            .collect();
        ensure!(ours.is_empty(), "routes are left: {ours:?}");
        foreign += routes.iter().filter(|route| route.protocol == 4).count();
    }
    ensure!(foreign == 1, "a foreign route went");
    let nexthops = nexthop::list(&mut socket)?;
    ensure!(nexthops.is_empty(), "nexthops are left: {nexthops:?}");
    let links = link::list(&mut socket)?;
    ensure!(
        !links.iter().any(|link| link.name.starts_with("sv")),
        "interfaces are left: {links:?}"
    );
    let tables = netns.run(|| Ok(nft::list::tables(&mut Socket::open(Protocol::Netfilter)?)?))?;
    ensure!(tables.is_empty(), "tables are left: {tables:?}");
    Ok(())
}

/// Both nodes read one Secret: when it changes, the session is there again with the new password.
pub fn password(lab: &Lab) -> Result<()> {
    let text = TWO_NODES
        .replace("{name: n1,", "{name: n1, labels: {side: left},")
        .replace("{name: n2,", "{name: n2, labels: {side: right},");
    let mut cluster = scene::cluster(lab, &text)?;
    let secret = |name: &str, password: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": "selvage-system"},
            "stringData": {"password": password},
        })
    };
    for (name, side, address) in [
        ("to-n1", "right", "192.0.2.1"),
        ("to-n2", "left", "192.0.2.2"),
    ] {
        let spec = json!({
            "nodeSelector": {"matchLabels": {"side": side}},
            "address": address,
            "asn": "internal",
            "passwordSecretRef": {"name": name, "key": "password"},
        });
        cluster
            .objects()
            .write(name, &cluster::object("BGPPeer", name, spec))?;
        cluster
            .objects()
            .write(&format!("secret-{name}"), &secret(name, "first"))?;
    }
    cluster.start(2 * SOON)?;
    let (n1, n2) = ("192.0.2.1".parse()?, "192.0.2.2".parse()?);
    cluster.node("n1")?.agent.wait_established(n2, SOON)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    // A plain connection without the password does not come about.
    let to = std::net::SocketAddr::new(n1, 179);
    let plain = selvage_lab::probe::tcp::connect(cluster.netns("n2")?, to, scene::ATTEMPT)?;
    ensure!(!plain.is_yes(), "a connection without the password");

    // One side only: the session ends, and stays down.
    cluster
        .objects()
        .write("secret-to-n1", &secret("to-n1", "second"))?;
    eventually_ok(2 * SOON, "different passwords end the session", || {
        let peers = cluster.node("n2")?.agent.peers()?;
        ensure!(peers.iter().all(|peer| !peer.up), "{peers:?}");
        Ok(())
    })?;
    cluster
        .objects()
        .write("secret-to-n2", &secret("to-n2", "second"))?;
    cluster.node("n1")?.agent.wait_established(n2, 2 * SOON)?;
    cluster.node("n2")?.agent.wait_established(n1, 2 * SOON)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}
