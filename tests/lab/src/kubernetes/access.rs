//! Who may do what: users, their kubeconfig files, and `kubectl` for the tests themselves.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::pki::Pki;
use crate::netns::Netns;

/// Somebody with a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// What `kubectl auth whoami` shows.
    pub name: String,
    /// Its groups.
    pub groups: Vec<String>,
}

impl User {
    /// A user in these groups.
    #[must_use]
    pub fn new(name: &str, groups: &[&str]) -> User {
        User {
            name: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        }
    }

    /// May do everything.
    #[must_use]
    pub fn admin() -> User {
        User::new("admin", &["system:masters"])
    }

    /// The kubelet of a node.
    #[must_use]
    pub fn node(name: &str) -> User {
        User::new(&format!("system:node:{name}"), &["system:nodes"])
    }

    pub(super) fn file_name(&self) -> String {
        self.name.replace([':', '/'], "-")
    }
}

/// How a user proves who it is.
pub(super) enum Proof<'a> {
    Certificate(&'a User),
    Token(&'a str),
}

/// A kubeconfig for a server of a test, without TLS and without a proof of who asks.
#[must_use]
pub fn plain_kubeconfig(server: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    })
}

/// Writes a kubeconfig for a server. Everything is in the one file, so that it can be handed to anybody.
pub(super) fn write_kubeconfig(
    file: &Path,
    server: SocketAddr,
    pki: &Pki,
    proof: &Proof<'_>,
) -> Result<()> {
    let user = match proof {
        Proof::Certificate(user) => {
            let identity = pki.client(user)?;
            json!({
                "client-certificate-data": STANDARD.encode(fs::read(identity.certificate)?),
                "client-key-data": STANDARD.encode(fs::read(identity.key)?),
            })
        }
        Proof::Token(token) => json!({"token": token}),
    };
    let authority = STANDARD.encode(fs::read(pki.authority().certificate)?);
    let text = serde_json::to_string_pretty(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "lab",
            "cluster": {"server": format!("https://{server}"), "certificate-authority-data": authority},
        }],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }))?;
    // Whole for whoever reads it meanwhile.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let draft = file.with_extension(format!("draft{number}"));
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut draft| draft.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&draft, file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// `kubectl` in a namespace, with a user's kubeconfig. A plain value: threads may have one each.
#[derive(Clone, Debug)]
pub struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) netns: Netns,
    pub(super) kubeconfig: PathBuf,
    pub(super) cache: PathBuf,
}

impl Kubectl {
    /// The user's kubeconfig file.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A command that is not run yet, for what outlives a call (`logs -f`, `port-forward`).
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache);
        command
    }

    /// Runs it to its end, with this text on its standard input.
    ///
    /// # Errors
    /// When it cannot be run; its exit code is in the output.
    pub fn output(&self, words: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.netns.run(|| {
            let mut child = command.spawn().context("cannot start kubectl")?;
            let mut stdin = child.stdin.take().context("no pipe to kubectl")?;
            // Written beside the reading of its output: both may be longer than a pipe.
            std::thread::scope(|scope| {
                scope.spawn(move || stdin.write_all(input.as_bytes()));
                Ok(child.wait_with_output()?)
            })
        })
    }

    /// What it prints.
    ///
    /// # Errors
    /// When it does not succeed; the message has what it says.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.run_with(words, "")
    }

    /// As [`Kubectl::run`], with this text on its standard input.
    ///
    /// # Errors
    /// When it does not succeed; the message has what it says.
    pub fn run_with(&self, words: &[&str], input: &str) -> Result<String> {
        let output = self.output(words, input)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}{}", words.join(" "), text, error.trim());
        }
        Ok(text)
    }

    /// As [`Kubectl::run`] with `-o json`.
    ///
    /// # Errors
    /// When it does not succeed or print JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.run(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}: {text}", words.join(" ")))
    }

    /// Applies objects in YAML or JSON, by the server.
    ///
    /// # Errors
    /// When one is refused.
    pub fn apply(&self, objects: &str) -> Result<String> {
        self.run_with(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            objects,
        )
    }

    /// Replaces the status of an object of this kind and name: what kubelets and controllers do.
    ///
    /// # Errors
    /// When it is refused.
    pub fn patch_status(&self, namespace: &str, object: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        self.run(&[
            "-n",
            namespace,
            "patch",
            object,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
        Ok(())
    }
}
