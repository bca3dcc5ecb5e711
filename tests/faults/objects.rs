//! Objects that are wrong: refused with file and line, while what was good stays in force.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use selvage_lab::process::Process;
use selvage_lab::{Lab, eventually_ok, programs};
use serde_json::Value;

use crate::harness::{Case, Need};
use crate::scene::{OWN, SOON, is_blocked, kernel_route, prefix, two_nodes, wait_blocked};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "faults::check_names_file_line_and_column",
            &[Need::Own("selvage")],
            check,
        ),
        Case::new(
            "faults::a_bad_object_leaves_the_last_good_one",
            OWN,
            last_good,
        ),
    ]
}

const GOOD: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
";

/// Text, the line that is wrong, a word of the reason.
const WRONG: [(&str, usize, &str); 4] = [
    (
        "apiVersion: selvage.io/v1alpha1\nkind: BGPPeer\nmetadata: {name: x}\nspec:\n  address: 192.0.2.1\n  asnn: 1\n",
        6,
        "asnn",
    ),
    (
        "apiVersion: selvage.io/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\nspec:\n  networks: [10.0.0.0/33]\n",
        5,
        "10.0.0.0/33",
    ),
    (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x, namespace: y}\nspec:\n  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: 10.0.0.0/40}}]\n",
        7,
        "10.0.0.0/40",
    ),
    (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x\n",
        3,
        "",
    ),
];

fn check(lab: &Lab) -> Result<()> {
    let netns = lab.netns("host")?;
    let run = |name: &str, text: &str| -> Result<(Option<i32>, String)> {
        let file = lab.directory().join(name);
        std::fs::write(&file, text)?;
        let mut command = Command::new(programs::find("selvage")?);
        command.arg("check").arg(&file).env("NO_COLOR", "1");
        let mut process: Process = lab.spawn(&netns, &format!("check-{name}"), command)?;
        Ok((process.wait_end(SOON)?.code(), process.output()))
    };
    let (code, output) = run("good.yaml", GOOD)?;
    ensure!(code == Some(0), "a good file: {code:?} {output}");
    for (number, (text, line, reason)) in WRONG.iter().enumerate() {
        let name = format!("wrong{number}.yaml");
        let (code, output) = run(&name, text)?;
        ensure!(code == Some(1), "{text}: {code:?} {output}");
        ensure!(
            output.contains(&format!("{name}:{line}:")) && output.contains(reason),
            "{text}: {output}"
        );
    }
    Ok(())
}

fn last_good(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.objects().write_text("deny", GOOD)?;
    wait_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    let text = GOOD.replace("policyTypes", "policyTipes");
    cluster.objects().write_text("deny", &text)?;
    let problem = eventually_ok(SOON, "status names the file and the line", || {
        let status = cluster.node("n1")?.agent.json(&["status"])?;
        let problems = status["source"]["problems"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        problems
            .into_iter()
            .find(|p| {
                p["at"]
                    .as_str()
                    .is_some_and(|at| at.contains("deny.yaml:6"))
            })
            .context("none")
    })?;
    ensure!(problem["reason"] != Value::Null, "{problem}");
    is_blocked(&cluster, "default/client", "shop/web", Some(80))?;
    // Rubbish, half a file, nothing at all.
    for text in ["{{{{", "apiVersion: v1\nki", ""] {
        cluster.objects().write_text("rubbish", text)?;
    }
    cluster.objects().write_text(
        "deny",
        &GOOD.replace("namespace: shop", "namespace: elsewhere"),
    )?;
    crate::scene::wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    ensure!(
        kernel_route(cluster.netns("n2")?, prefix("10.244.1.0/24")?)?.is_some(),
        "the route went"
    );
    Ok(())
}
