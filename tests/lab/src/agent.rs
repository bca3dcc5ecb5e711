//! Our own agent as a value.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::deadline::{eventually_ok, scaled};
use crate::netns::Netns;
use crate::process::Process;
use crate::programs;

/// A running agent with its own run and state directories.
#[derive(Debug)]
pub struct Agent {
    node: String,
    netns: Netns,
    program: PathBuf,
    arguments: Vec<String>,
    run_dir: PathBuf,
    state_dir: PathBuf,
    process: Process,
}

impl Agent {
    /// Starts `selvage agent` for `node` in `netns`, with further arguments.
    ///
    /// # Errors
    /// When it is not built or cannot be started.
    pub fn start(netns: &Netns, node: &str, objects: &Path, more: &[&str]) -> Result<Agent> {
        Agent::start_from(netns, node, ("--objects", objects), more)
    }

    /// As [`Agent::start`], with the objects of a Kubernetes API.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_on_api(
        netns: &Netns,
        node: &str,
        kubeconfig: &Path,
        more: &[&str],
    ) -> Result<Agent> {
        Agent::start_from(netns, node, ("--kubeconfig", kubeconfig), more)
    }

    fn start_from(
        netns: &Netns,
        node: &str,
        (flag, source): (&str, &Path),
        more: &[&str],
    ) -> Result<Agent> {
        let lab = netns.lab();
        let run_dir = lab.subdirectory(&format!("{node}/run"))?;
        let state_dir = lab.subdirectory(&format!("{node}/state"))?;
        let program = programs::find("selvage")?;
        let mut arguments: Vec<String> = ["agent", "--node", node, flag]
            .iter()
            .map(|word| (*word).to_owned())
            .collect();
        for path in [
            source,
            Path::new("--run-dir"),
            &run_dir,
            Path::new("--state-dir"),
            &state_dir,
        ] {
            arguments.push(
                path.to_str()
                    .context("a path that is not UTF-8")?
                    .to_owned(),
            );
        }
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let process = launch(netns, node, &program, &arguments)?;
        Ok(Agent {
            node: node.to_owned(),
            netns: netns.clone(),
            program,
            arguments,
            run_dir,
            state_dir,
            process,
        })
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where it runs.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// `--run-dir`.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// `--state-dir`.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it once more with the same arguments, after it was stopped or killed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.process = launch(&self.netns, &self.node, &self.program, &self.arguments)?;
        Ok(())
    }

    /// As [`Agent::restart`], with further arguments from now on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_with(&mut self, more: &[&str]) -> Result<()> {
        self.arguments
            .extend(more.iter().map(|word| (*word).to_owned()));
        self.restart()
    }

    /// Runs a command of the command line against this agent. The seconds after `--timeout` are a deadline of the lab,
    /// and [`scaled`] as each of them.
    ///
    /// # Errors
    /// When it cannot be run; its exit code is in the output.
    pub fn command(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        let mut before = "";
        for word in words {
            let seconds = word
                .strip_suffix('s')
                .and_then(|number| number.parse().ok());
            match seconds.filter(|_| before == "--timeout") {
                Some(seconds) => {
                    let limit = scaled(Duration::from_secs(seconds));
                    command.arg(format!("{}s", limit.as_secs()))
                }
                None => command.arg(word),
            };
            before = word;
        }
        command
            .arg("--run-dir")
            .arg(&self.run_dir)
            .env("NO_COLOR", "1");
        self.netns.run(|| Ok(command.output()?))
    }

    /// As [`Agent::command`]; what it printed.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!(
                "selvage {} on {}: {} {}",
                words.join(" "),
                self.node,
                text.trim(),
                error.trim()
            );
        }
        Ok(text)
    }

    /// As [`Agent::ask`], in JSON.
    ///
    /// # Errors
    /// When it does not succeed or print JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.ask(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("selvage {}: {text}", words.join(" ")))
    }

    /// Waits until everything that the agent was told is in the kernel.
    ///
    /// # Errors
    /// When it is not within 30 s.
    pub fn wait_synced(&self) -> Result<()> {
        self.ask(&["wait", "--for", "synced", "--timeout", "30s"])
            .map(drop)
    }

    /// Waits until the agent says that it is ready.
    ///
    /// # Errors
    /// When it ends, or is not within `limit`.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<Duration> {
        let ready = self.run_dir.join("ready");
        self.process.wait_for(limit, "ready", || ready.exists())
    }

    /// Waits until the session with `peer` is established.
    ///
    /// # Errors
    /// When it is not within `limit`; the message has what the agent says about it.
    pub fn wait_established(&self, peer: IpAddr, limit: Duration) -> Result<()> {
        let what = format!("the agent on {} has a session with {peer}", self.node);
        eventually_ok(limit, &what, || {
            let peers = self.peers()?;
            match peers.iter().find(|other| other.address == peer) {
                Some(found) if found.up => Ok(()),
                Some(found) => bail!("{found:?}"),
                None => bail!("no such peer among {peers:?}"),
            }
        })
    }

    /// The neighbours as `selvage peers -o json` lists them.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        Ok(serde_json::from_value(self.json(&["peers"])?)?)
    }
}

/// What is of interest in a neighbour of the agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Established.
    pub up: bool,
    /// State of RFC 4271.
    pub state: String,
    /// How often it was Established.
    pub established: u64,
    /// Why it is down, or went down last.
    pub last_error: Option<String>,
}

fn launch(netns: &Netns, node: &str, program: &Path, arguments: &[String]) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(arguments).env("NO_COLOR", "1");
    netns.lab().spawn(netns, &format!("{node}-agent"), command)
}
