//! What users of a cluster see of Selvage: addresses, policies, upgrades that nobody notices, a router beside the nodes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};
use selvage_lab::kubernetes::{
    AGNHOST, ClusterSettings, KubeProxy, KubernetesCluster, PATIENCE, Pod,
};
use selvage_lab::probe::flow::Flow;
use selvage_lab::probe::{Answer, tcp};
use selvage_lab::{Lab, Netns, eventually, eventually_ok};
use selvage_netlink::link;

use super::{SELVAGE, install, statuses};
use crate::harness::{Case, Need};
use crate::scene::{ATTEMPT, SOON, attempt, kernel_route, wait_kernel_route};

/// With a router beside the nodes.
const ROUTER: &[Need] = &[
    Need::Cluster,
    Need::Image,
    Need::System("runc", "runc"),
    Need::Daemon(selvage_lab::daemon::Kind::Bird),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::alone("kubernetes::pods_and_their_policies", SELVAGE, policies),
        Case::alone("kubernetes::nothing_is_lost", SELVAGE, nothing_is_lost),
        Case::alone("kubernetes::nodes_and_a_router", ROUTER, router),
    ]
}

/// A cluster whose nodes are Ready through us.
fn start(lab: &Lab, change: impl FnOnce(&mut ClusterSettings)) -> Result<KubernetesCluster> {
    let cluster = install::cluster(lab, change)?;
    cluster.install_selvage("overlays/mesh")?;
    Ok(cluster)
}

/// A pod that answers at TCP 8080, on a node.
fn server(name: &str, labels: &str, node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
    - name: server
      image: {AGNHOST}
      args: [netexec, --http-port=8080]
      readinessProbe: {{httpGet: {{path: /hostname, port: 8080}}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 2}}
      livenessProbe: {{httpGet: {{path: /hostname, port: 8080}}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 4}}
---
"
    )
}

const SHOP: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";

/// Makes these pods and waits until their probes pass.
fn serve(cluster: &KubernetesCluster, pods: &[(&str, &str, &str)]) -> Result<Vec<Pod>> {
    let kubectl = cluster.kubectl();
    kubectl.apply(SHOP)?;
    eventually_ok(PATIENCE, "the namespace has its ServiceAccount", || {
        kubectl.run(&["-n", "shop", "get", "serviceaccount", "default"])
    })?;
    let objects: String = pods
        .iter()
        .map(|(name, labels, node)| server(name, labels, node))
        .collect();
    kubectl.apply(&objects)?;
    kubectl.run(&[
        "-n",
        "shop",
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=120s",
    ])?;
    pods.iter()
        .map(|(name, ..)| cluster.pod("shop", name))
        .collect()
}

/// All addresses of a pod answer, or none of them.
fn wait_answers(from: &Netns, to: &Pod, wanted: Answer) -> Result<()> {
    ensure!(to.addresses.len() == 2, "{to:?}");
    for address in &to.addresses {
        let what = format!("{} to {} at {address}: {wanted:?}", from.name(), to.name);
        eventually_ok(SOON, &what, || {
            let answer = attempt(from, *address, Some(8080))?;
            ensure!(answer == wanted, "{answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

const ALLOW: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]
";

fn policies(lab: &Lab) -> Result<()> {
    let cluster = start(lab, |_| {})?;
    let pods = serve(
        &cluster,
        &[
            ("web-1", "app: web", "n1"),
            ("web-2", "app: web", "n2"),
            ("client", "app: client", "n1"),
            ("other", "app: other", "n2"),
        ],
    )?;
    for pod in &pods {
        let node = pod.node.as_deref().unwrap_or_default();
        let cidrs = cluster.pod_cidrs(node)?;
        let inside = |address: &IpAddr| cidrs.iter().any(|cidr: &IpNet| cidr.contains(address));
        ensure!(pod.addresses.iter().all(inside), "{pod:?} {cidrs:?}");
    }
    let [web1, web2, client, other] = pods.as_slice() else {
        bail!("{pods:?}")
    };
    let (from_client, from_other) = (cluster.pod_netns(client)?, cluster.pod_netns(other)?);
    for from in [&from_client, &from_other] {
        for to in [web1, web2] {
            wait_answers(from, to, Answer::Yes)?;
        }
    }
    let kubectl = cluster.kubectl();
    kubectl.apply(DENY)?;
    for from in [&from_client, &from_other] {
        for to in [web1, web2] {
            wait_answers(from, to, Answer::Silence)?;
        }
    }
    // Whatever policies say, a node reaches its own pods: kubelet asks them how they are.
    for (node, own) in [("n1", web1), ("n2", web2)] {
        wait_answers(cluster.node(node)?.netns(), own, Answer::Yes)?;
    }
    new_pods_are_closed(&cluster, &from_other)?;
    kubectl.apply(ALLOW)?;
    for to in [web1, web2] {
        wait_answers(&from_client, to, Answer::Yes)?;
        wait_answers(&from_other, to, Answer::Silence)?;
    }
    // The label counts, not the pod.
    kubectl.run(&[
        "-n",
        "shop",
        "label",
        "pod",
        "other",
        "app=client",
        "--overwrite",
    ])?;
    wait_answers(&from_other, web1, Answer::Yes)?;
    kubectl.run(&[
        "-n",
        "shop",
        "label",
        "pod",
        "other",
        "app=other",
        "--overwrite",
    ])?;
    wait_answers(&from_other, web1, Answer::Silence)?;
    // Probes of the node pass all the time: nothing was restarted, all is Ready.
    for pod in cluster.pods(&["-n", "shop", "-l", "app in (web,client,other)"])? {
        eventually_ok(SOON, "it is Ready", || {
            ensure!(cluster.pod("shop", &pod.name)?.ready, "{}", pod.name);
            Ok(())
        })?;
        let object = kubectl.json(&["-n", "shop", "get", "pod", &pod.name])?;
        ensure!(
            object["status"]["containerStatuses"][0]["restartCount"] == 0,
            "{}",
            object["status"]
        );
    }
    kubectl.run(&["-n", "shop", "delete", "networkpolicy", "--all"])?;
    wait_answers(&from_other, web2, Answer::Yes)?;
    host_port(&cluster)
}

/// A port of the node and a limit, as ingress controllers have them: they come and go with the pod.
fn host_port(cluster: &KubernetesCluster) -> Result<()> {
    const PORT: u16 = 8088;
    let pod = server("front", "app: front", "n1")
        .replace("args:", "ports: [{containerPort: 8080, hostPort: 8088}]\n      args:")
        .replace(
            "labels:",
            "annotations: {kubernetes.io/ingress-bandwidth: 100M, kubernetes.io/egress-bandwidth: 100M}, labels:",
        );
    let kubectl = cluster.kubectl();
    kubectl.apply(&pod)?;
    let (node, far) = (cluster.node("n1")?, cluster.node("n2")?.netns());
    let mut ways: Vec<(&Netns, IpAddr)> = Vec::new();
    ways.extend(node.addresses().into_iter().map(|to| (far, to)));
    ways.extend(node.addresses().into_iter().map(|to| (node.netns(), to)));
    ways.push((node.netns(), IpAddr::from([127, 0, 0, 1])));
    ensure!(ways.len() == 5, "{ways:?}");
    let wait = |wanted: Answer| -> Result<()> {
        for (from, to) in &ways {
            let what = format!("{} to port {PORT} of {to}: {wanted:?}", from.name());
            eventually_ok(PATIENCE, &what, || {
                let answer = attempt(from, *to, Some(PORT))?;
                ensure!(answer == wanted, "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    };
    let limited = || -> Result<usize> {
        let links = link::list(&mut node.netns().rtnetlink()?)?;
        Ok(links.iter().filter(|link| link.kind == "ifb").count())
    };
    wait(Answer::Yes)?;
    ensure!(limited()? == 1, "the pod is not limited");
    kubectl.run(&["-n", "shop", "delete", "pod", "front"])?;
    wait(Answer::Refused)?;
    eventually_ok(SOON, "nothing of the limit is left", || {
        let left = limited()?;
        ensure!(left == 0, "{left}");
        Ok(())
    })
}

/// Somebody asks the next addresses of a node again and again while a pod comes up there: it never answers.
fn new_pods_are_closed(cluster: &KubernetesCluster, stranger: &Netns) -> Result<()> {
    let kubectl = cluster.kubectl();
    for (name, expected) in [("closed", false), ("open", true)] {
        // In a namespace without a policy the same stranger is answered: it asks the right addresses.
        let namespace = if expected { "default" } else { "shop" };
        let next = next_addresses(cluster, "n1")?;
        let (end, heard) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let askers: Vec<_> = next
            .into_iter()
            .map(|address| {
                let (netns, end, heard) = (stranger.clone(), Arc::clone(&end), Arc::clone(&heard));
                let at = SocketAddr::new(address, 8080);
                thread::spawn(move || {
                    while !end.load(Ordering::Relaxed) {
                        let limit = Duration::from_millis(20);
                        // A refusal is an answer, too.
                        if tcp::connect(&netns, at, limit)
                            .is_ok_and(|answer| answer != Answer::Silence)
                        {
                            heard.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let pod = server(name, "app: late", "n1")
            .replace("namespace: shop", &format!("namespace: {namespace}"));
        kubectl.apply(&pod)?;
        let words = [
            "-n",
            namespace,
            "wait",
            "--for=condition=Ready",
            "--timeout=60s",
        ];
        kubectl.run(&[&words[..], &[&format!("pod/{name}")]].concat())?;
        let result = match expected {
            true => eventually(SOON, "a pod without a policy answers", || {
                heard.load(Ordering::Relaxed) > 0
            }),
            false => Ok(Duration::ZERO),
        };
        end.store(true, Ordering::Relaxed);
        for asker in askers {
            asker
                .join()
                .map_err(|_| anyhow::anyhow!("an asker failed"))?;
        }
        result?;
        let heard = heard.load(Ordering::Relaxed);
        ensure!(
            expected || heard == 0,
            "{heard} answers of a pod that is closed"
        );
    }
    Ok(())
}

/// Those that pods of a node get next, of its first range.
fn next_addresses(cluster: &KubernetesCluster, node: &str) -> Result<Vec<IpAddr>> {
    let field = format!("--field-selector=spec.nodeName={node}");
    let pods = cluster.pods(&["-A", &field])?;
    let cidrs = cluster.pod_cidrs(node)?;
    let used = pods.iter().flat_map(|pod| &pod.addresses);
    let last = used
        .filter(|address| address.is_ipv4() && cidrs.iter().any(|cidr| cidr.contains(*address)))
        .max();
    let Some(IpAddr::V4(last)) = last else {
        bail!("no pod on {node}: {pods:?}")
    };
    Ok((1..=4)
        .map(|n| IpAddr::from(last.to_bits().wrapping_add(n).to_be_bytes()))
        .collect())
}

/// Flows both ways, in both families.
fn flows(cluster: &KubernetesCluster, one: &Pod, other: &Pod) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        let (source, target) = (cluster.pod_netns(from)?, cluster.pod_netns(to)?);
        for (port, address) in (6000..).zip(&to.addresses) {
            flows.push(Flow::start(
                &source,
                &target,
                SocketAddr::new(*address, port),
                200,
            )?);
        }
    }
    for flow in &flows {
        eventually(SOON, "packets come", || flow.received() >= 20)?;
    }
    Ok(flows)
}

fn nothing_is_lost(lab: &Lab) -> Result<()> {
    let mut cluster = start(lab, |settings| {
        settings.kube_proxy = Some(KubeProxy::Iptables);
    })?;
    let pods = serve(
        &cluster,
        &[
            ("web-1", "app: web", "n1"),
            ("web-2", "app: web", "n2"),
            ("stranger", "app: stranger", "n2"),
        ],
    )?;
    let [one, two, stranger] = pods.as_slice() else {
        bail!("{pods:?}")
    };
    let kubectl = cluster.kubectl();
    kubectl.apply(DENY)?;
    kubectl.apply(
        &ALLOW
            .replace("app: client", "app: web")
            .replace(", ports: [{port: 8080}]", ""),
    )?;
    let from_stranger = cluster.pod_netns(stranger)?;
    for to in [one, two] {
        wait_answers(&from_stranger, to, Answer::Silence)?;
    }
    let through = flows(&cluster, one, two)?;
    let mut shut = Vec::new();
    for (port, address) in (7000..).zip(&one.addresses) {
        let target = cluster.pod_netns(one)?;
        shut.push(Flow::start(
            &from_stranger,
            &target,
            SocketAddr::new(*address, port),
            200,
        )?);
    }

    kubectl.run(&[
        "-n",
        "selvage-system",
        "rollout",
        "restart",
        "daemonset/selvage",
    ])?;
    cluster.wait_rollout("selvage-system", "daemonset/selvage", PATIENCE)?;
    kill_agent(&cluster, "n1")?;
    cluster.control_mut().restart_apiserver()?;
    let restarted = ["-n", "shop", "label", "pod", "web-1", "seen=restart"];
    eventually_ok(PATIENCE, "the API server is back", || {
        cluster.kubectl().run(&restarted)
    })?;
    a_deployment_is_rolled_out(&cluster)?;

    for flow in through {
        let account = flow.stop(SOON)?;
        ensure!(account.lost == 0, "{account:?}");
    }
    for flow in shut {
        let account = flow.stop(Duration::from_millis(200))?;
        ensure!(account.received == 0 && account.sent > 1000, "{account:?}");
    }
    Ok(())
}

/// SIGKILL for the agent of a node; another one takes over.
fn kill_agent(cluster: &KubernetesCluster, node: &str) -> Result<()> {
    let pod = cluster.agent_pod(node)?;
    ensure!(pod.ready, "{pod:?}");
    let running = || {
        cluster
            .node(node)
            .map(|node| node.pod_processes(&pod.uid, "selvage"))
    };
    let before = running()?;
    ensure!(!before.is_empty(), "no process of {pod:?}");
    for pid in &before {
        let pid = Pid::from_raw(i32::try_from(*pid)?).context("no pid")?;
        kill_process(pid, Signal::KILL)?;
    }
    eventually_ok(PATIENCE, "another agent is ready", || {
        let now = running()?;
        ensure!(now.iter().any(|pid| !before.contains(pid)), "{now:?}");
        let pod = cluster.agent_pod(node)?;
        ensure!(pod.ready, "{pod:?}");
        Ok(())
    })
}

const ROLLED: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolled, namespace: default}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: rolled}}
  template:
    metadata: {labels: {app: rolled}}
    spec:
      containers:
        - name: server
          image: IMAGE
          args: [netexec, --http-port=8080]
          readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 5}
          # Until the last kube-proxy knows that it goes, on a machine that is busy as well.
          lifecycle: {preStop: {sleep: {seconds: 15}}}
---
apiVersion: v1
kind: Service
metadata: {name: rolled, namespace: default}
spec: {selector: {app: rolled}, ports: [{port: 80, targetPort: 8080}]}
";

/// Every connection to a service is answered while the pods behind it are replaced.
fn a_deployment_is_rolled_out(cluster: &KubernetesCluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.apply(&ROLLED.replace("IMAGE", AGNHOST))?;
    cluster.wait_rollout("default", "deployment/rolled", PATIENCE)?;
    let service = kubectl.json(&["get", "service", "rolled"])?;
    let address: IpAddr = service["spec"]["clusterIP"]
        .as_str()
        .context("no address")?
        .parse()?;
    let at = SocketAddr::new(address, 80);
    let client = cluster.pod_netns(&cluster.pod("shop", "stranger")?)?;
    eventually_ok(PATIENCE, "the service answers", || {
        let answer = attempt(&client, address, Some(80))?;
        ensure!(answer == Answer::Yes, "{answer:?}");
        Ok(())
    })?;
    let end = Arc::new(AtomicBool::new(false));
    let asking = {
        let end = Arc::clone(&end);
        thread::spawn(move || -> Result<u64> {
            let mut asked = 0;
            while !end.load(Ordering::Relaxed) {
                let answer = tcp::connect(&client, at, ATTEMPT * 12)?;
                ensure!(answer == Answer::Yes, "connection {asked}: {answer:?}");
                asked += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(asked)
        })
    };
    kubectl.run(&["rollout", "restart", "deployment/rolled"])?;
    let rolled = cluster.wait_rollout("default", "deployment/rolled", PATIENCE);
    end.store(true, Ordering::Relaxed);
    let asked = asking
        .join()
        .map_err(|_| anyhow::anyhow!("the asker failed"))??;
    rolled?;
    ensure!(asked > 100, "{asked} connections only");
    Ok(())
}

const PEER: &str = "
apiVersion: selvage.io/v1alpha1
kind: BGPPeer
metadata: {name: rack}
spec: {address: ADDRESS, asn: 65001}
";

fn router(lab: &Lab) -> Result<()> {
    let mut cluster = start(lab, |settings| settings.router = Some((65001, 64512)))?;
    let address = cluster.router_addresses().into_iter().find(IpAddr::is_ipv4);
    let address = address.context("no router")?.to_string();
    let kubectl = cluster.kubectl();
    kubectl.apply(&PEER.replace("ADDRESS", &address))?;
    let pods = serve(
        &cluster,
        &[("web-1", "app: web", "n1"), ("web-2", "app: web", "n2")],
    )?;
    let tor = cluster.router()?.netns().clone();
    for pod in &pods {
        wait_answers(&tor, pod, Answer::Yes)?;
    }
    let kubectl = cluster.kubectl();
    statuses::wait(
        kubectl,
        "bgppeer/rack",
        "Accepted",
        "True Valid",
        "in force",
    )?;
    eventually_ok(SOON, "the node's report has both sessions", || {
        let report = kubectl.json(&["get", "bgpnodestatus", "n1"])?;
        let sessions = &report["status"]["sessions"];
        ensure!(
            sessions["configured"] == 2 && sessions["established"] == 2,
            "{sessions}"
        );
        Ok(())
    })?;

    // A node joins; nobody else's session is touched.
    let before = established(&cluster)?;
    cluster.add_nodes(&["n3"])?;
    cluster.wait_ready(PATIENCE)?;
    let cidrs = cluster.pod_cidrs("n3")?;
    for cidr in &cidrs {
        wait_kernel_route(cluster.node("n1")?.netns(), *cidr)?;
    }
    eventually_ok(SOON, "n1 has three sessions", || {
        let after = established(&cluster)?;
        ensure!(after.len() == 3, "{after:?}");
        ensure!(
            before.iter().all(|session| after.contains(session)),
            "{before:?} {after:?}"
        );
        Ok(())
    })?;
    // Its object is deleted: the others forget it at once, though it still speaks.
    cluster.kubectl().run(&["delete", "node", "n3"])?;
    for cidr in &cidrs {
        wait_gone(&cluster, *cidr, SOON)?;
    }
    // A node fails: it is missed after the hold time, not before and not much later.
    let cidrs = cluster.pod_cidrs("n2")?;
    cluster.kill_node("n2")?;
    for cidr in &cidrs {
        ensure!(
            kernel_route(cluster.node("n1")?.netns(), *cidr)?.is_some(),
            "gone too early"
        );
    }
    for cidr in &cidrs {
        wait_gone(&cluster, *cidr, Duration::from_secs(25))?;
    }
    Ok(())
}

fn wait_gone(cluster: &KubernetesCluster, cidr: IpNet, limit: Duration) -> Result<()> {
    eventually_ok(
        limit,
        &format!("n1 has no route to {cidr}"),
        || match kernel_route(cluster.node("n1")?.netns(), cidr)? {
            Some(route) => bail!("{route:?}"),
            None => Ok(()),
        },
    )
}

/// The sessions of n1: with whom, and how often they came up.
fn established(cluster: &KubernetesCluster) -> Result<Vec<(String, u64)>> {
    let peers = cluster.node("n1")?.selvage_json(&["peers"])?;
    let peers = peers.as_array().context("no list")?;
    let up = peers.iter().filter(|peer| peer["up"] == true);
    Ok(up
        .map(|peer| {
            let count = peer["established"].as_u64().unwrap_or_default();
            (peer["address"].to_string(), count)
        })
        .collect())
}
