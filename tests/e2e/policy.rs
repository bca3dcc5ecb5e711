//! NetworkPolicy from a YAML file to dropped packets: allow, deny, change, and what `why` says about it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::probe::Answer;
use selvage_lab::probe::tcp::{self, Conversation};
use selvage_lab::{Cluster, Lab, eventually_ok};
use serde_json::{Value, json};

use crate::harness::{Case, Need};
use crate::scene::{self, ATTEMPT, OWN, SOON, is_blocked, two_nodes, wait_blocked, wait_reaches};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::a_policy_blocks_what_it_should", OWN, blocks),
        Case::new("e2e::a_pod_starts_with_its_policy", OWN, starts_closed),
        Case::new("e2e::labels_decide_while_pods_run", OWN, labels),
        Case::new("e2e::addresses_decide_with_exceptions", OWN, addresses),
        Case::new("e2e::what_leaves_a_pod_is_decided_too", OWN, egress),
        Case::new("e2e::a_newly_denied_connection_is_cut", OWN, revoked),
        Case::new("e2e::why_names_the_policy", OWN, why),
        Case::new("e2e::selectors_decide_on_a_node_and_across", OWN, selectors),
        Case::new(
            "e2e::policy_judges_the_pod_behind_a_service",
            WITH_NFT,
            service,
        ),
    ]
}

const WITH_NFT: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("nft", "nftables"),
];

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}

fn default_deny() -> Value {
    policy(
        "default-deny",
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    )
}

/// TCP port 80 of `web` for pods of these labels, whatever their namespace.
fn allow_from(labels: Value) -> Value {
    let peer = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": labels}});
    policy(
        "allow",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [peer], "ports": [{"protocol": "TCP", "port": 80}]}],
        }),
    )
}

pub fn blocks(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    cluster.objects().write("deny", &default_deny())?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    is_blocked(&cluster, "default/client", "shop/web", None)?;
    // The node itself always reaches its own pods; other pods are not concerned.
    wait_reaches(&cluster, "n1", "shop/web", Some(80))?;
    wait_reaches(&cluster, "shop/web", "default/client", Some(80))?;
    cluster
        .objects()
        .write("allow", &allow_from(json!({"app": "client"})))?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    is_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    cluster.objects().remove("allow")?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    cluster.objects().remove("deny")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(81))
}

/// When ADD has returned, the policy is in force: there is no first open moment.
pub fn starts_closed(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write("deny", &default_deny())?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    for _ in 0..5 {
        cluster.stop_pod("shop/web")?;
        cluster.start_pod("shop/web")?;
        is_blocked(&cluster, "default/client", "shop/web", Some(80))?;
        wait_reaches(&cluster, "n1", "shop/web", Some(80))?;
    }
    Ok(())
}

pub fn labels(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write("deny", &default_deny())?;
    cluster
        .objects()
        .write("allow", &allow_from(json!({"role": "friend"})))?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    for friend in [true, false, true] {
        let mut client = cluster.pod("default/client")?.running.clone();
        let role = if friend { "friend" } else { "stranger" };
        client.pod.labels.insert("role".into(), role.into());
        cluster.node("n2")?.kubelet.update(&client)?;
        match friend {
            true => wait_reaches(&cluster, "default/client", "shop/web", Some(80))?,
            false => wait_blocked(&cluster, "default/client", "shop/web", Some(80))?,
        }
    }
    Ok(())
}

pub fn addresses(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let client = cluster.addresses("default/client");
    let (v4, v6) = (
        client.first().context("IPv4")?,
        client.get(1).context("IPv6")?,
    );
    let from = |except: Value| {
        let blocks = json!([
            {"ipBlock": {"cidr": "10.244.0.0/16", "except": except}},
            {"ipBlock": {"cidr": "fd00::/8"}},
        ]);
        policy(
            "allow",
            json!({
                "podSelector": {},
                "ingress": [{"from": blocks, "ports": [{"protocol": "TCP", "port": 79, "endPort": 80}]}],
            }),
        )
    };
    cluster.objects().write("allow", &from(json!([])))?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    // An exception for the client's IPv4 address closes that family and leaves the other.
    cluster
        .objects()
        .write("allow", &from(json!([format!("{v4}/32")])))?;
    let netns = cluster.netns("default/client")?;
    let web = cluster.addresses("shop/web");
    eventually_ok(SOON, "the exception holds", || match crate::scene::attempt(
        netns,
        *web.first().context("IPv4")?,
        Some(80),
    )? {
        Answer::Silence => Ok(()),
        other => bail!("{other:?}"),
    })?;
    let other = crate::scene::attempt(netns, *web.get(1).context("IPv6")?, Some(80))?;
    ensure!(
        other == Answer::Yes,
        "{v6} is concerned by an exception for {v4}: {other:?}"
    );
    Ok(())
}

pub fn egress(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    wait_reaches(&cluster, "shop/web", "default/client", Some(80))?;
    let none = policy(
        "no-egress",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]}),
    );
    cluster.objects().write("egress", &none)?;
    wait_blocked(&cluster, "shop/web", "default/client", Some(80))?;
    // Answers of an allowed connection are not egress.
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let to_clients =
        json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}});
    let some = policy(
        "no-egress",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": [to_clients]}],
        }),
    );
    cluster.objects().write("egress", &some)?;
    wait_reaches(&cluster, "shop/web", "default/client", Some(80))
}

fn conversations(cluster: &Cluster, port: u16) -> Result<Vec<Conversation>> {
    let from = cluster.netns("default/client")?;
    let open = |address| Conversation::open(from, SocketAddr::new(address, port), SOON);
    cluster
        .addresses("shop/web")
        .into_iter()
        .map(open)
        .collect()
}

pub fn revoked(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(81))?;
    let (mut kept, mut cut) = (conversations(&cluster, 80)?, conversations(&cluster, 81)?);
    for conversation in kept.iter_mut().chain(&mut cut) {
        ensure!(
            conversation.say(SOON)? == Answer::Yes,
            "a fresh connection says nothing"
        );
    }
    // Allowed first, so that there is no moment in which everything is denied.
    cluster
        .objects()
        .write("allow", &allow_from(json!({"app": "client"})))?;
    for conversation in &mut cut {
        eventually_ok(
            SOON,
            "a connection that is denied by now is cut",
            || match conversation.say(ATTEMPT)? {
                Answer::Yes => bail!("it still carries bytes"),
                _ => Ok(()),
            },
        )?;
    }
    for conversation in &mut kept {
        ensure!(
            conversation.say(SOON)? == Answer::Yes,
            "an allowed connection was cut"
        );
    }
    Ok(())
}

pub fn why(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write("deny", &default_deny())?;
    cluster
        .objects()
        .write("allow", &allow_from(json!({"app": "client"})))?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(81))?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    let agent = &cluster.node("n1")?.agent;
    for (port, allowed, named) in [(80, true, "shop/allow"), (81, false, "shop/default-deny")] {
        let destination = format!("shop/web:{port}/tcp");
        let output = agent.command(&["why", "default/client", &destination, "-o", "json"])?;
        // The exit code answers, too.
        ensure!(
            output.status.code() == Some(i32::from(!allowed)),
            "{output:?}"
        );
        let answer: Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        ensure!(answer["allowed"] == allowed, "{answer}");
        ensure!(answer["ingress"].to_string().contains(named), "{answer}");
    }
    Ok(())
}

/// Two more pods on the first node of [`scene::TWO_NODES`].
const TWO_MORE_PODS: &str =
    "  - {name: near, namespace: shop, node: n1, labels: {app: near}, ports: [80]}
  - {name: other, namespace: default, node: n1, labels: {app: near}, ports: [80]}
";

/// Peers by pod and by namespace, in both directions, on the pod's own node and on another.
pub fn selectors(lab: &Lab) -> Result<()> {
    let mut cluster = scene::cluster(lab, &format!("{}{TWO_MORE_PODS}", scene::TWO_NODES))?;
    cluster.start(2 * SOON)?;
    const OTHERS: [&str; 3] = ["shop/near", "default/other", "default/client"];
    let near = json!({"podSelector": {"matchLabels": {"app": "near"}}});
    let default =
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
    let nobody = json!({"podSelector": {"matchLabels": {"app": "nobody"}}});
    for direction in ["ingress", "egress"] {
        for (peer, allowed) in [
            (&near, &OTHERS[..1]),
            (&default, &OTHERS[1..]),
            (&nobody, &[][..]),
        ] {
            let (kind, list) = match direction {
                "ingress" => ("Ingress", json!([{"from": [peer]}])),
                _ => ("Egress", json!([{"to": [peer]}])),
            };
            let mut spec =
                json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": [kind]});
            spec[direction] = list;
            cluster.objects().write("policy", &policy("web", spec))?;
            for other in OTHERS {
                let (from, to) = match direction {
                    "ingress" => (other, "shop/web"),
                    _ => ("shop/web", other),
                };
                match allowed.contains(&other) {
                    true => wait_reaches(&cluster, from, to, Some(80))?,
                    false => wait_blocked(&cluster, from, to, Some(80))?,
                }
                // The other direction is not isolated.
                wait_reaches(&cluster, to, from, Some(80))?;
            }
        }
    }
    cluster.objects().remove("policy")?;
    for other in OTHERS {
        wait_reaches(&cluster, other, "shop/web", Some(80))?;
    }
    Ok(())
}

/// Addresses of a service, translated on each node as a service proxy does it.
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// What is sent to a service is judged by the pod that it goes to.
pub fn service(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let (web, client) = ("shop/web", "default/client");
    let pods = cluster.addresses(web);
    let rules: String = SERVICE
        .iter()
        .zip(&pods)
        .map(|(service, pod)| {
            let family = if pod.is_ipv4() { "ip" } else { "ip6" };
            format!("add rule inet services prerouting {family} daddr {service} dnat {family} to {pod}; ")
        })
        .collect();
    for node in ["n1", "n2"] {
        let chain =
            "add chain inet services prerouting { type nat hook prerouting priority -100; }";
        let script = format!("add table inet services; {chain}; {rules}");
        scene::nft(cluster.netns(node)?, &[&script])?;
    }
    let by_service = |port: u16, wanted: Answer| -> Result<()> {
        for service in SERVICE {
            let to = SocketAddr::new(service.parse::<IpAddr>()?, port);
            eventually_ok(
                SOON,
                &format!("{client} to {to}: {wanted:?}"),
                || match tcp::connect(cluster.netns(client)?, to, ATTEMPT)? {
                    answer if answer == wanted => Ok(()),
                    other => bail!("{other:?}"),
                },
            )?;
        }
        Ok(())
    };
    by_service(80, Answer::Yes)?;
    by_service(81, Answer::Yes)?;
    cluster.objects().write("deny", &default_deny())?;
    by_service(80, Answer::Silence)?;
    cluster
        .objects()
        .write("allow", &allow_from(json!({"app": "client"})))?;
    by_service(80, Answer::Yes)?;
    by_service(81, Answer::Silence)?;
    // The client's own policy is about the pod, not about the service.
    let spec =
        |to: Value| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [to]}]});
    let mut egress = policy("egress", spec(json!({"ipBlock": {"cidr": "10.96.0.0/16"}})));
    egress["metadata"]["namespace"] = json!("default");
    cluster.objects().write("egress", &egress)?;
    by_service(80, Answer::Silence)?;
    egress["spec"] =
        spec(json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}));
    cluster.objects().write("egress", &egress)?;
    by_service(80, Answer::Yes)
}
