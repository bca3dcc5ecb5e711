//! The demo as a new user runs it, without asking anything.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use selvage_lab::{Lab, programs};

use crate::harness::{Case, Need};

const NEEDS: &[Need] = &[
    Need::Own("selvage-lab"),
    Need::Own("selvage"),
    Need::Own("selvage-cni"),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::the_demo_checks_itself", NEEDS, demo),
        Case::new(
            "e2e::a_mistake_in_the_topology_is_named",
            &[Need::Own("selvage-lab")],
            mistake,
        ),
    ]
}

/// The file of the demo in the source tree.
fn file() -> String {
    format!("{}/lab/demo.yaml", env!("CARGO_MANIFEST_DIR"))
}

fn demo(lab: &Lab) -> Result<()> {
    let host = lab.netns("host")?;
    let mut command = Command::new(programs::find("selvage-lab")?);
    command.args(["up", &file(), "--check"]);
    let mut process = lab.spawn(&host, "demo", command)?;
    let status = process.wait_end(Duration::from_secs(120))?;
    ensure!(
        status.success(),
        "ended with {status}:\n{}",
        process.output()
    );
    ensure!(
        process.output().contains("all checks passed"),
        "{}",
        process.output()
    );
    Ok(())
}

fn mistake(lab: &Lab) -> Result<()> {
    let host = lab.netns("host")?;
    let text = std::fs::read_to_string(file())?.replace("asn: 65001", "ans: 65001");
    let path = lab.directory().join("wrong.yaml");
    std::fs::write(&path, text)?;
    let mut command = Command::new(programs::find("selvage-lab")?);
    command.arg("up").arg(&path).arg("--check");
    let mut process = lab.spawn(&host, "wrong", command)?;
    let status = process.wait_end(Duration::from_secs(10))?;
    let output = process.output();
    ensure!(status.code() == Some(1), "ended with {status}: {output}");
    ensure!(
        output.contains("wrong.yaml:11:") && output.contains("unknown field `ans`"),
        "{output}"
    );
    Ok(())
}
