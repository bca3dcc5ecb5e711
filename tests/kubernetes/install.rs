//! Selvage from its image and its manifests: what `kubectl apply -k` makes of a cluster, and what clean-up leaves.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::{ClusterSettings, KubernetesCluster, Node, PATIENCE, manifests};
use selvage_lab::{Lab, eventually_ok, usage};
use selvage_netlink::{Protocol, Socket, link, nexthop, nft, route};
use serde_json::Value;

use super::SELVAGE;
use super::cluster::{serves, web};
use crate::harness::{Case, image};
use crate::scene::SOON;

pub fn cases() -> Vec<Case> {
    vec![Case::alone(
        "kubernetes::installed_and_removed_by_manifests",
        SELVAGE,
        comes_and_goes,
    )]
}

/// A cluster of two nodes that have the image.
pub fn cluster(lab: &Lab, change: impl FnOnce(&mut ClusterSettings)) -> Result<KubernetesCluster> {
    let mut settings = ClusterSettings::new(2);
    settings.images = vec![image()?];
    change(&mut settings);
    KubernetesCluster::start(lab, settings)
}

fn comes_and_goes(lab: &Lab) -> Result<()> {
    let cluster = cluster(lab, |_| {})?;
    let manifests = |folder: &str| manifests(folder).display().to_string();
    let before = sysctls(&cluster)?;
    let kubectl = cluster.kubectl();
    kubectl.run(&["apply", "-k", &manifests("overlays/mesh")])?;
    cluster.wait_rollout("selvage-system", "daemonset/selvage", PATIENCE)?;
    cluster.wait_ready(PATIENCE)?;
    kubectl.apply(&web())?;
    cluster.wait_rollout("default", "deployment/web", PATIENCE)?;
    serves(&cluster)?;
    listens(&cluster)?;
    nothing_is_refused(&cluster)?;
    is_small()?;
    servers_are_remembered(&cluster)?;

    kubectl.run(&["delete", "-k", &manifests("overlays/mesh"), "--wait=false"])?;
    kubectl.run(&["apply", "-k", &manifests("cleanup")])?;
    cluster.wait_rollout("selvage-cleanup", "daemonset/selvage-cleanup", PATIENCE)?;
    for node in cluster.nodes().values() {
        clean(node).with_context(|| format!("on {}", node.name()))?;
    }
    ensure!(sysctls(&cluster)? == before, "sysctls differ");
    kubectl.run(&["delete", "-k", &manifests("cleanup")])?;
    eventually_ok(PATIENCE, "nothing of ours is at the API server", || {
        let words = [
            "get",
            "crds,clusterroles,clusterrolebindings,namespaces",
            "-o",
            "name",
        ];
        let left = kubectl.run(&words)?;
        ensure!(!left.contains("selvage"), "{left}");
        Ok(())
    })
}

/// What `install` may write, on each node.
fn sysctls(cluster: &KubernetesCluster) -> Result<Vec<String>> {
    let names = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/eth0/accept_ra",
        "net/ipv4/conf/eth0/rp_filter",
        "net/ipv4/nexthop_compat_mode",
        "net/ipv4/fib_multipath_hash_policy",
        "net/ipv6/fib_multipath_hash_policy",
    ];
    let nodes = cluster.nodes().values();
    nodes
        .flat_map(|node| names.map(|name| node.netns().sysctl(name)))
        .collect()
}

/// Health is on loopback only, metrics are on the node's address, too.
fn listens(cluster: &KubernetesCluster) -> Result<()> {
    for node in cluster.nodes().values() {
        for address in node.addresses() {
            let outside = SocketAddr::new(address, 9179);
            let first = node.addresses()[0] == address;
            for (path, wanted) in [("/metrics", true), ("/readyz", false), ("/", false)] {
                let line = cluster.control().netns().run(|| ask(outside, path));
                let answered = line.as_ref().is_ok_and(|line| line.contains(" 200 "));
                ensure!(answered == (wanted && first), "{outside}{path}: {line:?}");
            }
        }
        for path in ["/livez", "/readyz", "/metrics", "/"] {
            let line = node
                .netns()
                .run(|| ask(([127, 0, 0, 1], 9179).into(), path))?;
            ensure!(line.contains(" 200 "), "{path}: {line}");
        }
    }
    Ok(())
}

fn ask(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: selvage\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What an agent with nothing to do may take: memory of its own, without what is mapped from its program. Some MB more than it
/// should (6 MB): what is tried here has assertions, and has just read all kinds.
const IDLE: u64 = 16_384;

/// The agents of both nodes.
fn is_small() -> Result<()> {
    let mut sizes = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        if !read("cmdline").starts_with("/selvage\0agent\0") {
            continue;
        }
        let pid = process.file_name().to_string_lossy().parse()?;
        sizes.push(usage::status(pid, "RssAnon")?);
    }
    ensure!(
        sizes.len() == 2 && sizes.iter().all(|size| *size <= IDLE),
        "agents take {sizes:?} kB"
    );
    Ok(())
}

/// The rights in the manifests are enough: whoever is refused says so.
fn nothing_is_refused(cluster: &KubernetesCluster) -> Result<()> {
    for pod in cluster.pods(&["-n", "selvage-system"])? {
        let kubectl = cluster.kubectl();
        let inside = [
            "-n",
            "selvage-system",
            "exec",
            &pod.name,
            "-c",
            "agent",
            "--",
            "/selvage",
        ];
        // What lasts a moment on a busy machine is nothing that is wrong.
        eventually_ok(PATIENCE, "nothing is wrong", || {
            let status = kubectl.run(&[&inside[..], &["status", "-o", "json"]].concat())?;
            let status: Value = serde_json::from_str(&status)?;
            ensure!(
                status["wrong"] == Value::Array(Vec::new()),
                "{}",
                status["wrong"]
            );
            Ok(())
        })?;
        let log = kubectl.run(&["-n", "selvage-system", "logs", &pod.name, "-c", "agent"])?;
        ensure!(
            !log.contains("forbidden") && !log.contains("ERROR"),
            "{log}"
        );
    }
    Ok(())
}

/// For a start at which the service address leads nowhere.
fn servers_are_remembered(cluster: &KubernetesCluster) -> Result<()> {
    let servers = cluster.control().servers();
    let server = servers.first().context("no address")?.to_string();
    for node in cluster.nodes().values() {
        let path = node.path("/var/lib/selvage/api-servers")?;
        eventually_ok(PATIENCE, "where the API server is has been written", || {
            let text = std::fs::read_to_string(&path)?;
            ensure!(text.lines().any(|line| line == server), "{text}");
            Ok(())
        })?;
    }
    Ok(())
}

/// No trace is on a node, in its kernel and its folders.
fn clean(node: &Node) -> Result<()> {
    let mut socket = node.netns().rtnetlink()?;
    for v6 in [false, true] {
        let routes = route::list(&mut socket, v6, &route::Filter::default())?;
        let ours = routes
            .iter()
            .find(|route| [85, 86].contains(&route.protocol));
        ensure!(ours.is_none(), "a route is left: {ours:?}");
    }
    let nexthops = nexthop::list(&mut socket)?;
    ensure!(nexthops.is_empty(), "nexthops are left: {nexthops:?}");
    let links = link::list(&mut socket)?;
    let ours = links.iter().find(|link| link.name.starts_with("sv"));
    ensure!(ours.is_none(), "an interface is left: {ours:?}");
    let tables = node
        .netns()
        .run(|| Ok(nft::list::tables(&mut Socket::open(Protocol::Netfilter)?)?))?;
    let ours = tables
        .iter()
        .find(|table| table.name.starts_with("selvage"));
    ensure!(ours.is_none(), "a table is left: {ours:?}");
    for folder in [
        "/run",
        "/etc/cni",
        "/opt/cni",
        "/var/lib/cni",
        "/var/lib/selvage",
    ] {
        let (top, mut found) = (node.path(folder)?, Vec::new());
        named_selvage(&top, &top, &mut found);
        ensure!(found.is_empty(), "files are left: {found:?}");
    }
    Ok(())
}

/// Files with our name, or below a folder with it. What the runtime keeps of its containers is not meant.
fn named_selvage(top: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix(top).unwrap_or(&path).to_path_buf();
        let text = name.display().to_string();
        match path.is_dir() && !path.is_symlink() {
            _ if text.starts_with("containerd") => {}
            true => named_selvage(top, &path, found),
            false if text.contains("selvage") => found.push(path),
            false => {}
        }
    }
}
