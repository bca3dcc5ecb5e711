//! Selvage on a cluster, as its users put it there: an image and manifests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::access::Kubectl;
use super::cluster::{KubernetesCluster, PATIENCE, Pod};
use super::node::Node;
use crate::deadline::{eventually_ok, scaled};
use crate::programs;

/// Where the manifests are.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests");

/// How long new kinds may take to be known.
const KINDS: Duration = Duration::from_secs(20);

/// Its namespace.
const NAMESPACE: &str = "selvage-system";

/// A folder of the manifests, as in `overlays/mesh`.
#[must_use]
pub fn manifests(name: &str) -> PathBuf {
    Path::new(MANIFESTS).join(name)
}

impl Kubectl {
    /// Applies a folder, which may be a kustomization, or a file. One that brings kinds and objects of them needs a
    /// second attempt.
    ///
    /// # Errors
    /// When an object is refused.
    pub fn apply_path(&self, path: &Path) -> Result<String> {
        let how = match path.join("kustomization.yaml").is_file() {
            true => "-k",
            false => "-f",
        };
        let name = path.to_str().context("a path that is not UTF-8")?;
        let words = ["apply", "--server-side", "--force-conflicts", how, name];
        eventually_ok(KINDS, &format!("{name} is applied"), || self.run(&words))
    }

    /// Applies the definitions of our kinds; they can be used when this returns.
    ///
    /// # Errors
    /// When one is refused.
    pub fn install_kinds(&self) -> Result<()> {
        self.apply_path(&manifests("crds"))?;
        let timeout = format!("--timeout={}s", scaled(KINDS).as_secs());
        let established = [
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            &timeout,
        ];
        self.run(&established).map(drop)
    }
}

impl KubernetesCluster {
    /// Applies an overlay of Selvage's manifests; nodes are Ready, and agents too, when this returns.
    ///
    /// # Errors
    /// With what agents and nodes say when they do not get there.
    pub fn install_selvage(&self, overlay: &str) -> Result<()> {
        self.kubectl().apply_path(&manifests(overlay))?;
        self.wait_selvage(PATIENCE)
    }

    /// Waits until the agents are ready, and all nodes.
    ///
    /// # Errors
    /// With what agents and nodes say when they do not get there within `limit`.
    pub fn wait_selvage(&self, limit: Duration) -> Result<()> {
        let ready = self
            .wait_rollout(NAMESPACE, "daemonset/selvage", limit)
            .and_then(|()| self.wait_ready(limit));
        ready.map_err(|error| {
            let words = [
                "-n",
                NAMESPACE,
                "logs",
                "--all-containers",
                "--tail=20",
                "--prefix",
            ];
            let select = ["-l", "app.kubernetes.io/name=selvage"];
            let logs = self.kubectl().run(&[&words[..], &select].concat());
            error.context(logs.unwrap_or_else(|error| error.to_string()))
        })
    }

    /// The agent's pod on a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn agent_pod(&self, node: &str) -> Result<Pod> {
        let select = ["-n", NAMESPACE, "-l", "app.kubernetes.io/name=selvage"];
        let mut pods = self.pods(&select)?.into_iter();
        pods.find(|pod| pod.node.as_deref() == Some(node))
            .with_context(|| format!("no agent on {node}"))
    }
}

impl Node {
    /// Runs a command of Selvage's command line against the agent of the node.
    ///
    /// # Errors
    /// When it cannot be run; its exit code is in the output.
    pub fn selvage(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(programs::find("selvage")?);
        command
            .args(words)
            .arg("--run-dir")
            .arg(self.path("/run/selvage")?)
            .env("NO_COLOR", "1");
        self.netns().run(|| Ok(command.output()?))
    }

    /// As [`Node::selvage`], in JSON.
    ///
    /// # Errors
    /// When it does not succeed or print JSON.
    pub fn selvage_json(&self, words: &[&str]) -> Result<Value> {
        let output = self.selvage(&[words, &["-o", "json"]].concat())?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("selvage {} on {}: {error}", words.join(" "), self.name());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
