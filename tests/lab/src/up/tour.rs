//! What `make demo-kubernetes` shows: who reaches whom and why not, and agents that restart under traffic.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::{KubernetesCluster, PATIENCE, Pod};
use selvage_lab::probe::flow::Flow;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::{Netns, eventually, eventually_ok};

use super::terminal::{Terminal, seconds};

/// How long one attempt waits for an answer.
const ATTEMPT: Duration = Duration::from_millis(800);
/// How long what should get through may take to do so.
const CONVERGE: Duration = Duration::from_secs(20);
/// Datagrams a second of a counted flow.
const RATE: u32 = 200;

/// What is expected: from, to, port, whether it connects.
const CHECKS: [(&str, &str, u16, bool); 7] = [
    ("default/visitor", "shop/web", 80, true),
    ("default/visitor", "service shop/web", 80, true),
    ("tor", "shop/web", 80, true),
    ("shop/web", "shop/db", 5432, true),
    ("shop/web", "shop/db", 22, false),
    ("default/visitor", "shop/db", 5432, false),
    ("tor", "shop/db", 5432, false),
];

/// Where one end of a check is.
struct End {
    netns: Option<Netns>,
    addresses: Vec<IpAddr>,
    pod: Option<Pod>,
}

/// The whole tour; false when something was not as expected.
///
/// # Errors
/// When the shop does not open.
pub fn run(terminal: &Terminal, cluster: &mut KubernetesCluster, shop: &Path) -> Result<bool> {
    let ends = terminal.step("the shop opens", || {
        cluster.kubectl().apply_path(shop)?;
        for (namespace, name) in [("shop", "web"), ("shop", "db"), ("default", "visitor")] {
            cluster.wait_rollout(namespace, &format!("deployment/{name}"), PATIENCE)?;
        }
        Ok((ends(cluster)?, "Deployments web, db, visitor".to_owned()))
    })?;
    terminal.section("who reaches whom");
    let mut passed = true;
    for (from, to, port, connects) in CHECKS {
        let good = check(terminal, &ends, (from, to, port), connects)?;
        if !connects || !good {
            why(terminal, cluster, &ends, (from, to, port))?;
        }
        passed &= good;
    }
    passed &= restart(terminal, cluster, &ends)?;
    Ok(passed)
}

fn ends(cluster: &mut KubernetesCluster) -> Result<BTreeMap<&'static str, End>> {
    let mut ends = BTreeMap::new();
    for key in ["shop/web", "shop/db", "default/visitor"] {
        let (namespace, app) = key.split_once('/').context("no namespace")?;
        let pods = cluster.pods(&["-n", namespace, "-l", &format!("app={app}")])?;
        let pod = pods.into_iter().find(|pod| pod.ready);
        let pod = pod.with_context(|| format!("no pod of {key} is ready"))?;
        let end = End {
            netns: Some(cluster.pod_netns(&pod)?),
            addresses: pod.addresses.clone(),
            pod: Some(pod),
        };
        ends.insert(key, end);
    }
    let service = cluster
        .kubectl()
        .json(&["-n", "shop", "get", "service", "web"])?;
    let addresses = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten();
    let service = End {
        netns: None,
        addresses: addresses
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect(),
        pod: None,
    };
    ends.insert("service shop/web", service);
    let router = End {
        netns: Some(cluster.router()?.netns().clone()),
        addresses: cluster.router_addresses(),
        pod: None,
    };
    ends.insert("tor", router);
    Ok(ends)
}

fn check(
    terminal: &Terminal,
    ends: &BTreeMap<&str, End>,
    (from, to, port): (&str, &str, u16),
    connects: bool,
) -> Result<bool> {
    let netns = ends[from].netns.as_ref().context("nowhere to start from")?;
    let mut parts = Vec::new();
    let mut good = true;
    for address in &ends[to].addresses {
        let target = SocketAddr::new(*address, port);
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let start = Instant::now();
        let part = if connects {
            let outcome = eventually_ok(CONVERGE, "an answer", || {
                let answer = tcp::connect(netns, target, ATTEMPT)?;
                ensure!(answer == Answer::Yes, "{answer:?}");
                Ok(())
            });
            good &= outcome.is_ok();
            outcome.map_or_else(
                |error| error.root_cause().to_string(),
                |()| seconds(start.elapsed()),
            )
        } else {
            let answer = tcp::connect(netns, target, ATTEMPT)?;
            good &= answer == Answer::Silence;
            match answer {
                Answer::Silence => "dropped".to_owned(),
                other => format!("{other:?}"),
            }
        };
        parts.push(format!("{family} {part:<9}"));
    }
    let verb = match (connects, good) {
        (true, true) => "connects",
        (true, false) => "fails",
        (false, true) => "blocked",
        (false, false) => "passes",
    };
    terminal.row(
        good,
        &format!("{:<38}", format!("{from} → {to}:{port}")),
        &format!("{verb:<9} {}", parts.join(" ")),
        None,
    );
    Ok(good)
}

/// What the agent of the destination's node says about it.
fn why(
    terminal: &Terminal,
    cluster: &KubernetesCluster,
    ends: &BTreeMap<&str, End>,
    (from, to, port): (&str, &str, u16),
) -> Result<()> {
    let key = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
    let Some(pod) = &ends[to].pod else {
        return Ok(());
    };
    let source = match &ends[from].pod {
        Some(pod) => key(pod),
        None => ends[from]
            .addresses
            .first()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
    };
    let destination = format!("{}:{port}", key(pod));
    let node = cluster.node(pod.node.as_deref().context("a pod on no node")?)?;
    let output = node.selvage(&["why", &source, &destination])?;
    terminal.remark(&format!("selvage why {source} {destination}"));
    terminal.remark(&String::from_utf8_lossy(&output.stdout));
    terminal.remark(&String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// All agents are replaced while packets flow from the router to a pod.
fn restart(
    terminal: &Terminal,
    cluster: &KubernetesCluster,
    ends: &BTreeMap<&str, End>,
) -> Result<bool> {
    terminal.section("kubectl -n selvage-system rollout restart daemonset/selvage");
    let (router, visitor) = (&ends["tor"], &ends["default/visitor"]);
    let from = router.netns.as_ref().context("no router")?;
    let to = visitor.netns.as_ref().context("no visitor")?;
    let flows: Vec<Flow> = (6000..)
        .zip(&visitor.addresses)
        .map(|(port, address)| Flow::start(from, to, SocketAddr::new(*address, port), RATE))
        .collect::<Result<_>>()?;
    for flow in &flows {
        eventually(CONVERGE, "packets come", || flow.received() >= 20)?;
    }
    terminal.step("all agents restart", || {
        let restart = [
            "-n",
            "selvage-system",
            "rollout",
            "restart",
            "daemonset/selvage",
        ];
        cluster.kubectl().run(&restart)?;
        cluster.wait_rollout("selvage-system", "daemonset/selvage", PATIENCE)?;
        Ok((
            (),
            format!("on {} nodes, one after the other", cluster.nodes().len()),
        ))
    })?;
    let mut good = true;
    for (flow, address) in flows.into_iter().zip(&visitor.addresses) {
        let account = flow.stop(CONVERGE)?;
        good &= account.lost == 0;
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        terminal.row(
            account.lost == 0,
            &format!("tor → visitor, {family}"),
            &format!("{} packets meanwhile, {} lost", account.sent, account.lost),
            None,
        );
    }
    Ok(good)
}
