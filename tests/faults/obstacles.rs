//! Pods are cut off by something beside policy: `status` names it, and `why` does not say that all is well.

use std::fs;

use anyhow::{Context, Result, ensure};
use selvage_lab::{Cluster, Lab, eventually_ok};
use serde_json::{Value, json};

use crate::harness::{Case, Need};
use crate::scene::{self, OWN, SOON, two_nodes, wait_blocked, wait_reaches};

const WITH_NFT: &[Need] = &[
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
    Need::System("nft", "nftables"),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::a_lost_state_directory_is_named", OWN, lost_state),
        Case::new("faults::forwarding_switched_off_is_named", OWN, forwarding),
        Case::new(
            "faults::a_foreign_chain_that_drops_is_named",
            WITH_NFT,
            dropper,
        ),
        Case::new(
            "faults::a_pod_outside_of_the_prefixes_is_named",
            OWN,
            outside,
        ),
    ]
}

/// What `selvage status` of n1 finds wrong.
fn wrong(cluster: &mut Cluster) -> Result<String> {
    let status = cluster.node("n1")?.agent.json(&["status"])?;
    let wrong = status["wrong"].as_array().context("wrong")?;
    Ok(Value::from(wrong.clone()).to_string())
}

fn wait_named(cluster: &mut Cluster, text: &str) -> Result<()> {
    eventually_ok(SOON, &format!("status names {text}"), || {
        let wrong = wrong(cluster)?;
        ensure!(wrong.contains(text), "{wrong}");
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

/// What n1 says of the way from the client to an address of `web`: whether it passes, and all the rest.
fn why(cluster: &mut Cluster, v6: bool) -> Result<(bool, String)> {
    let addresses = cluster.addresses("shop/web");
    let address = addresses.iter().find(|address| address.is_ipv6() == v6);
    let address = address.context("an address of web")?;
    let to = match v6 {
        true => format!("[{address}]:80/tcp"),
        false => format!("{address}:80/tcp"),
    };
    let from = cluster.addresses("default/client");
    let from = from.iter().find(|address| address.is_ipv6() == v6);
    let from = from.context("an address of the client")?.to_string();
    let words = ["why", from.as_str(), to.as_str(), "-o", "json"];
    let output = cluster.node("n1")?.agent.command(&words)?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let allowed = answer["allowed"].as_bool().context("allowed")?;
    ensure!(
        output.status.success() == allowed,
        "{} beside {answer}",
        output.status
    );
    Ok((allowed, answer.to_string()))
}

fn lost_state(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let n1 = cluster.node("n1")?;
    n1.agent.process().kill()?;
    let state = n1.agent.state_dir().to_owned();
    fs::remove_dir_all(state.join("attachments"))?;
    fs::remove_dir_all(state.join("leases"))?;
    n1.agent.restart()?;
    n1.agent.wait_synced()?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    wait_named(&mut cluster, "1 pod interface has no attachment")?;
    let said = wrong(&mut cluster)?;
    ensure!(said.contains("shop/web"), "no name of the pod: {said}");
    for v6 in [false, true] {
        let (allowed, answer) = why(&mut cluster, v6)?;
        ensure!(!allowed && answer.contains("no attachment"), "{answer}");
    }
    // As it says: the pod is made anew.
    cluster.stop_pod("shop/web")?;
    cluster.start_pod("shop/web")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    wait_good(&mut cluster)
}

fn sysctl(cluster: &Cluster, path: &str, value: &str) -> Result<()> {
    cluster
        .netns("n1")?
        .run(|| Ok(fs::write(format!("/proc/sys/net/{path}"), value)?))
}

pub fn forwarding(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    wait_good(&mut cluster)?;
    for (v6, path, name) in [
        (false, "ipv4/ip_forward", "net.ipv4.ip_forward"),
        (
            true,
            "ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
        ),
    ] {
        sysctl(&cluster, path, "0")?;
        wait_named(&mut cluster, name)?;
        let (allowed, answer) = why(&mut cluster, v6)?;
        ensure!(!allowed && answer.contains(name), "{answer}");
        let (allowed, answer) = why(&mut cluster, !v6)?;
        ensure!(allowed, "the other family is not concerned: {answer}");
        sysctl(&cluster, path, "1")?;
        wait_good(&mut cluster)?;
        ensure!(why(&mut cluster, v6)?.0, "it is allowed again");
    }
    Ok(())
}

fn nft(cluster: &Cluster, script: &str) -> Result<String> {
    scene::nft(cluster.netns("n1")?, &[script])
}

pub fn dropper(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    wait_good(&mut cluster)?;
    // As iptables-nft makes it of `iptables -P FORWARD DROP`.
    let table = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy ";
    for round in 0..2 {
        nft(&cluster, &format!("{table} drop; }}"))?;
        wait_named(&mut cluster, "ip filter FORWARD")?;
        let (_, answer) = why(&mut cluster, false)?;
        ensure!(answer.contains("ip filter FORWARD"), "{answer}");
        match round {
            0 => nft(&cluster, &format!("{table} accept; }}"))?,
            _ => nft(&cluster, "delete table ip filter")?,
        };
        wait_good(&mut cluster)?;
        let (allowed, answer) = why(&mut cluster, false)?;
        ensure!(allowed && !answer.contains("FORWARD"), "{answer}");
    }
    // What was there before the agent is named as well.
    nft(&cluster, &format!("{table} drop; }}"))?;
    cluster.node("n1")?.agent.process().kill()?;
    cluster.node("n1")?.agent.restart()?;
    wait_named(&mut cluster, "ip filter FORWARD")
}

fn outside(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.stop_pod("shop/web")?;
    cluster.node("n1")?.kubelet.configuration()["ipam"]["ranges"] =
        json!([[{"subnet": "10.99.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]);
    cluster.start_pod("shop/web")?;
    wait_named(&mut cluster, "shop/web (10.99.1.")?;
    let (allowed, answer) = why(&mut cluster, false)?;
    ensure!(!allowed && answer.contains("10.99.1."), "{answer}");
    let (allowed, answer) = why(&mut cluster, true)?;
    ensure!(allowed, "the IPv6 address is announced: {answer}");
    Ok(())
}
