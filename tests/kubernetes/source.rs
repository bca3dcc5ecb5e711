//! The Kubernetes API as the source of objects, on a real API server behind a proxy that breaks connections.
//!
//! Bodies of the trials of the directory run here again: one test, two sources.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::Settings;
use selvage_lab::probe::Answer;
use selvage_lab::topology::Topology;
use selvage_lab::{Cluster, Cut, Lab, eventually_ok, objects};
use serde_json::{Value, json};

use crate::e2e::{closed, control, idle, policy, routes};
use crate::faults::agent;
use crate::harness::{Case, Need};
use crate::scene::{
    self, SOON, TWO_NODES, flows, is_blocked, nothing_lost, prefix, two_nodes, wait_blocked,
    wait_kernel_route, wait_reaches,
};

/// An API server, our own agents and the plugin.
const NEEDS: &[Need] = &[
    Need::ControlPlane,
    Need::System("openssl", "openssl"),
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
];

pub fn cases() -> Vec<Case> {
    let on_api = |name, run| Case::on_api(name, NEEDS, run);
    vec![
        on_api(
            "kubernetes::source::pods_reach_each_other_across_nodes",
            routes::across,
        ),
        on_api(
            "kubernetes::source::a_node_that_goes_takes_its_routes_with_it",
            routes::goes,
        ),
        on_api(
            "kubernetes::source::a_node_that_changes_its_address_is_followed",
            routes::moves,
        ),
        on_api(
            "kubernetes::source::a_pod_that_goes_frees_its_addresses",
            routes::pod_goes,
        ),
        on_api(
            "kubernetes::source::a_policy_blocks_what_it_should",
            policy::blocks,
        ),
        on_api(
            "kubernetes::source::a_pod_starts_with_its_policy",
            policy::starts_closed,
        ),
        on_api(
            "kubernetes::source::labels_decide_while_pods_run",
            policy::labels,
        ),
        on_api(
            "kubernetes::source::what_leaves_a_pod_is_decided_too",
            policy::egress,
        ),
        on_api(
            "kubernetes::source::a_new_pod_is_isolated_from_its_first_packet",
            closed::first_packet,
        ),
        on_api(
            "kubernetes::source::a_password_is_changed_by_its_secret",
            control::password,
        ),
        on_api(
            "kubernetes::source::policy_holds_while_the_agent_is_dead",
            agent::closed_without_agent,
        ),
        on_api(
            "kubernetes::source::what_the_api_does_wrong_loses_nothing",
            broken,
        ),
        on_api(
            "kubernetes::source::an_agent_without_work_sleeps",
            idle::cluster_at_rest,
        ),
        on_api("kubernetes::source::a_start_without_the_api", without),
        on_api("kubernetes::source::marks_of_large_kinds_are_exact", large),
        on_api("kubernetes::source::lists_come_in_pages_too", pages),
        on_api("kubernetes::source::a_link_that_drops_is_noticed", dropped),
        on_api("kubernetes::source::kinds_come_and_go", kinds),
        on_api(
            "kubernetes::source::policies_that_are_not_enforced_are_named",
            not_enforced,
        ),
        on_api(
            "kubernetes::source::an_address_that_is_used_again_before_its_pod_is_gone",
            reused,
        ),
    ]
}

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

/// What `selvage status` has to say of a node.
fn status(cluster: &mut Cluster, node: &str) -> Result<Value> {
    let output = cluster
        .node(node)?
        .agent
        .command(&["status", "-o", "json"])?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until `status` of a node says something, or says it no longer.
fn wait_says(cluster: &mut Cluster, node: &str, words: &str, says: bool) -> Result<()> {
    eventually_ok(
        3 * SOON,
        &format!("status of {node} says {words:?}: {says}"),
        || {
            let status = status(cluster, node)?;
            ensure!(status.to_string().contains(words) == says, "{status}");
            Ok(())
        },
    )
}

/// A policy that comes, and one that goes, while the watches are cut, stalled and slow, and while the API server is
/// restarted. Under counted flows: not one packet is lost but those that the policy means.
fn broken(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let control = cluster.control()?;
    eventually_ok(SOON, "an agent follows all kinds on one connection", || {
        let connections = control.proxy().connections();
        ensure!(connections == 2, "{connections} of two agents");
        Ok(())
    })?;
    let flows = flows(&cluster)?;
    let other = DENY.replace("shop", "default");
    let changes = |cluster: &mut Cluster| -> Result<()> {
        // Of another pod, so that the flows go on.
        cluster.objects().write_text("other", &other)?;
        wait_blocked(cluster, "shop/web", "default/client", Some(80))?;
        cluster.objects().remove("other")?;
        wait_reaches(cluster, "shop/web", "default/client", Some(80))
    };
    for _ in 0..3 {
        cluster.control()?.proxy().cut();
        changes(&mut cluster)?;
    }
    cluster.control()?.proxy().delay(Duration::from_millis(200));
    changes(&mut cluster)?;
    cluster.control()?.proxy().delay(Duration::ZERO);
    // Bytes stay somewhere on the way for a while, nothing is closed.
    cluster.control()?.proxy().pause();
    cluster.objects().write_text("other", &other)?;
    for _ in 0..3 {
        ensure!(
            scene_reaches(&cluster)?,
            "something was told that cannot be known"
        );
    }
    cluster.control()?.proxy().resume();
    wait_blocked(&cluster, "shop/web", "default/client", Some(80))?;
    cluster.objects().remove("other")?;
    wait_reaches(&cluster, "shop/web", "default/client", Some(80))?;

    cluster.control()?.stop_apiserver()?;
    for node in ["n1", "n2"] {
        wait_says(&mut cluster, node, "the Kubernetes API is away since", true)?;
    }
    cluster.control()?.start_apiserver()?;
    for node in ["n1", "n2"] {
        wait_says(
            &mut cluster,
            node,
            "the Kubernetes API is away since",
            false,
        )?;
    }
    changes(&mut cluster)?;
    nothing_lost(flows)
}

fn scene_reaches(cluster: &Cluster) -> Result<bool> {
    let to = *cluster
        .addresses("default/client")
        .first()
        .context("an address")?;
    let answer = scene::attempt(cluster.netns("shop/web")?, to, Some(80))?;
    Ok(answer == Answer::Yes)
}

/// An agent that is killed and starts again while the API server is away: sessions, routes and policy are there again, new
/// pods of known objects are not needed for that. Then the API server comes back, and what has gone meanwhile goes.
fn without(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", DENY)?;
    let allow = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "allow", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}, {"protocol": "UDP", "port": 6000, "endPort": 6001}], "from": [
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}},
        ]}]},
    });
    cluster.objects().write("allow", &allow)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    let state = cluster.node("n1")?.agent.state_dir().to_owned();
    eventually_ok(4 * SOON, "both snapshots are written", || {
        let has = |name: &str, word: &str| -> Result<()> {
            let text = std::fs::read_to_string(state.join(name))?;
            ensure!(text.contains(word), "{text}");
            Ok(())
        };
        has("snapshot", "\"allow\"")?;
        has("snapshot.pods", "\"client\"")
    })?;
    let flows = flows(&cluster)?;
    cluster.control()?.stop_apiserver()?;
    cluster.node("n1")?.agent.process().kill()?;
    cluster.node("n1")?.agent.restart()?;
    wait_says(&mut cluster, "n1", "working from the snapshot of", true)?;
    let n2 = *cluster.addresses("n2").first().context("an address")?;
    cluster.node("n1")?.agent.wait_established(n2, SOON)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    is_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    for pods in ["10.244.2.0/24", "fd00:10:244:2::/64"] {
        wait_kernel_route(cluster.netns("n1")?, prefix(pods)?)?;
    }
    cluster.control()?.start_apiserver()?;
    cluster.objects().remove("deny")?;
    cluster.objects().remove("allow")?;
    wait_says(&mut cluster, "n1", "working from the snapshot of", false)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(81))?;
    nothing_lost(flows)
}

/// The runtime has given the address of a pod to another one before the API server knows that the first is gone: the new
/// one has its own policy, and whoever may reach it is told by its own labels.
fn reused(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let allow = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "allow", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": [{"from": [
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}},
        ]}]},
    });
    cluster.objects().write("allow", &allow)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    // A pod elsewhere with the client's addresses, younger, and nobody's friend.
    let client = cluster.pod("default/client")?.running.clone();
    let mut usurper = client.pod.clone();
    usurper.name.value = "usurper".into();
    usurper.labels = [("app".to_owned(), "stranger".to_owned())].into();
    eventually_ok(SOON, "a second has passed", || {
        // Whoever is younger has the address, and creation is told in seconds.
        let object = objects::pod(&usurper, "usurper", &client.addresses);
        cluster.objects().write("pod-default-usurper", &object)?;
        let there = |name: &str| -> Result<String> {
            let api = cluster.objects().api().context("no API server")?;
            let pod = api.call(
                "GET",
                &format!("/api/v1/namespaces/default/pods/{name}"),
                None,
            )?;
            Ok(pod["metadata"]["creationTimestamp"].to_string())
        };
        let younger = there("usurper")? > there("client")?;
        if !younger {
            cluster.objects().remove("pod-default-usurper")?;
        }
        ensure!(younger, "of the same second");
        Ok(())
    })?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.objects().remove("pod-default-usurper")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    // The end of the first one is told long after the second has its addresses: they stay the second one's.
    usurper.labels = client.pod.labels.clone();
    let object = objects::pod(&usurper, "usurper", &client.addresses);
    cluster.objects().write("pod-default-usurper", &object)?;
    wait_why(&mut cluster, &client.addresses, true)?;
    cluster.objects().remove("pod-default-client")?;
    cluster.node("n1")?.agent.wait_synced()?;
    wait_why(&mut cluster, &client.addresses, true)?;
    cluster.objects().remove("pod-default-usurper")?;
    wait_why(&mut cluster, &client.addresses, false)
}

/// What the agent of the protected pod has to say of its client's addresses.
fn wait_why(cluster: &mut Cluster, from: &[std::net::IpAddr], allowed: bool) -> Result<()> {
    for address in from {
        let what = format!("{address} may: {allowed}");
        eventually_ok(SOON, &what, || {
            let agent = &cluster.node("n1")?.agent;
            let output = agent.command(&["why", &address.to_string(), "shop/web:80/tcp"])?;
            ensure!(
                output.status.code() == Some(i32::from(!allowed)),
                "{output:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// How many lists came as streams, by the API server's account.
fn streams(cluster: &Cluster) -> Result<usize> {
    let api = cluster.objects().api().context("no API server")?;
    let text = api.text("GET", "/metrics", None)?;
    let name = "apiserver_watch_list_duration_seconds_count";
    let lines = text.lines().filter(|line| line.starts_with(name));
    Ok(lines.filter(|line| line.contains("pods")).count())
}

/// A kind with more objects than a page is not listed anew for a mark.
fn large(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    ensure!(streams(&cluster)? > 0, "pods did not come as a stream");
    let api = cluster.objects().api().context("no API server")?.clone();
    for number in 0..520 {
        api.apply(&objects::namespace(&format!("many-{number}")))?;
    }
    for number in 0..3 {
        // Nothing else happens to namespaces: only the API server can tell that nothing is missing.
        api.apply(&objects::namespace(&format!("more-{number}")))?;
        let agent = &cluster.node("n1")?.agent;
        agent.ask(&["wait", "--for", "synced", "--timeout", "60s"])?;
        let status = agent.json(&["status"])?;
        let known = status["source"]["objects"]["Namespace"].as_u64();
        let there = api.call("GET", "/api/v1/namespaces", None)?;
        let there = there["items"].as_array().map(Vec::len);
        ensure!(
            known == there.map(|count| count as u64),
            "{known:?} of {there:?}"
        );
    }
    Ok(())
}

/// As of an API server that does not know streams.
fn pages(lab: &Lab) -> Result<()> {
    let topology = Topology::parse(TWO_NODES, Path::new("topology"))?;
    let settings = Settings {
        apiserver: vec!["--feature-gates=WatchList=false".into()],
        ..Settings::default()
    };
    let mut cluster = Cluster::on_api(lab, topology, &settings)?;
    cluster.start(2 * SOON)?;
    ensure!(streams(&cluster)? == 0, "pods came as a stream");
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.objects().write_text("deny", DENY)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))
}

/// Nobody tells that the API server cannot be reached any more: connections just lead nowhere.
fn dropped(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let link = cluster.link("rack/control")?.clone();
    link.cut(Cut::Drop)?;
    for node in ["n1", "n2"] {
        wait_says(
            &mut cluster,
            node,
            "; what it said last stays in force",
            true,
        )?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.objects().write_text("deny", DENY)?;
    link.repair()?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))
}

/// Definitions that are removed under a running agent, and installed again.
/// As network-policy-api has it, but for the schema.
const CLUSTER_POLICIES: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: clusternetworkpolicies.policy.networking.k8s.io
  annotations: {api-approved.kubernetes.io: 'https://github.com/kubernetes-sigs/network-policy-api/pull/300'}
spec:
  group: policy.networking.k8s.io
  scope: Cluster
  names: {kind: ClusterNetworkPolicy, plural: clusternetworkpolicies, singular: clusternetworkpolicy, listKind: ClusterNetworkPolicyList}
  versions:
    - name: v1alpha2
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// The kind comes while the agents run, with an object; both go again. The rights are those of the manifests.
fn not_enforced(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let directory = lab.subdirectory("cluster-policies")?;
    let definition = directory.join("crd.yaml");
    std::fs::write(&definition, CLUSTER_POLICIES)?;
    let object = directory.join("policy.yaml");
    let text = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: no-one-talks}\nspec: {tier: Admin, priority: 1}\n";
    std::fs::write(&object, text)?;
    let kubectl = cluster.control()?.kubectl().clone();
    kubectl.apply_path(&definition)?;
    kubectl.apply_path(&object)?;
    // Who waits for all that the API server holds has the question asked at once.
    let wait = ["wait", "--for", "synced", "--timeout", "30s"];
    for node in ["n1", "n2"] {
        cluster.node(node)?.agent.ask(&wait)?;
        wait_says(
            &mut cluster,
            node,
            "1 ClusterNetworkPolicy is not enforced: no-one-talks",
            true,
        )?;
    }
    eventually_ok(3 * SOON, "an event tells its author", || {
        let events = kubectl.json(&["get", "events.events.k8s.io", "-n", "default"])?;
        let items = events["items"].as_array().cloned().unwrap_or_default();
        let mine = |event: &&Value| event["regarding"]["name"] == "no-one-talks";
        let mine: Vec<&Value> = items.iter().filter(mine).collect();
        // One, whoever of the agents came first.
        ensure!(
            mine.len() == 1 && mine[0]["reason"] == "NotEnforced",
            "{mine:?}"
        );
        Ok(())
    })?;
    kubectl.run(&[
        "delete",
        "crd",
        "clusternetworkpolicies.policy.networking.k8s.io",
    ])?;
    for node in ["n1", "n2"] {
        wait_says(&mut cluster, node, "is not enforced", false)?;
    }
    Ok(())
}

fn kinds(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let control = cluster.control()?;
    control
        .kubectl()
        .run(&["delete", "crd", "bgppeers.selvage.io"])?;
    wait_says(&mut cluster, "n1", "does not know BGPPeer", true)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.control()?.kubectl().install_kinds()?;
    wait_says(&mut cluster, "n1", "does not know BGPPeer", false)?;
    // It is followed again.
    let spec = json!({"address": "192.0.2.77", "asn": 65077});
    let peer = selvage_lab::cluster::object("BGPPeer", "nobody", spec);
    cluster.objects().write("nobody", &peer)?;
    eventually_ok(SOON, "the new peer is known", || {
        let peers = cluster.node("n1")?.agent.peers()?;
        let known = peers
            .iter()
            .any(|peer| peer.address.to_string() == "192.0.2.77");
        ensure!(known, "{peers:?}");
        Ok(())
    })
}
