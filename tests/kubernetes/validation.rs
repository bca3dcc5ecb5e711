//! Which policies an API server refuses: the table that `selvage check` and the directory of objects are tested with.

use anyhow::{Context, Result, ensure};
use selvage_lab::Lab;
use selvage_lab::eventually_ok;
use selvage_lab::kubernetes::{ControlPlane, Rest, Settings};
use serde_json::{Value, json};

use super::CONTROL_PLANE;
use crate::harness::Case;
use crate::scene::SOON;

const TABLE: &str = include_str!("../../agent/tests/it/objects/policies.txt");

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "kubernetes::the_table_of_refused_policies_is_the_api_servers",
        CONTROL_PLANE,
        table,
    )]
}

fn table(lab: &Lab) -> Result<()> {
    let rack = lab.network("rack", &["192.0.2.0/24".parse()?])?;
    let netns = lab.netns("control")?;
    let link = rack.join(&netns)?;
    let control = ControlPlane::start(&netns, link.addresses(), &Settings::default())?;
    let api = Rest::start(&control)?;
    let policy = |number: usize, spec: &Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{number}"), "namespace": "default"},
            "spec": spec,
        })
    };
    eventually_ok(SOON, "there is a namespace to make them in", || {
        api.apply(&policy(0, &json!({"podSelector": {}}))).map(drop)
    })?;
    let mut wrong = Vec::new();
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    for (number, line) in (1..).zip(lines) {
        let (field, spec) = line.split_once(" | ").context("no field")?;
        let spec: Value = serde_json::from_str(spec)?;
        let answer = api.apply(&policy(number, &spec));
        if answer.is_ok() != (field == "-") {
            wrong.push(format!("{line}: {answer:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
