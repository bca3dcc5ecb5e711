//! One experiment: a directory for its files and a prefix for its names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;

use crate::netns::Netns;
use crate::network::Network;
use crate::process::Process;

/// One experiment inside the sandbox. Any number of them run side by side in threads: names of namespaces
/// and files carry the lab's name, which is unique.
///
/// A cheap handle; the directory goes with the sandbox, so that it can be looked at after a failure.
#[derive(Clone, Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    directory: PathBuf,
}

impl Lab {
    /// Begins an experiment called `name`: letters, digits, `-` and `_`, not in use by another one.
    ///
    /// # Errors
    /// When the name is taken or unfit, or this process is not inside the sandbox.
    pub fn new(name: &str) -> Result<Lab> {
        ensure!(
            crate::sandbox::is_inside(),
            "a lab needs the sandbox: call sandbox::enter first in main"
        );
        let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        ensure!(
            !name.is_empty() && name.chars().all(fit),
            "{name:?} cannot be the name of a lab"
        );
        let directory = Path::new("/run/lab").join(name);
        fs::create_dir(&directory).with_context(|| format!("lab {name} exists"))?;
        Ok(Lab {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                directory,
            }),
        })
    }

    /// The name given to [`Lab::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The directory of this experiment, on a tmpfs that nobody outside sees.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// A directory of its own below [`Lab::directory`], made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory().join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// A network namespace called `name` within this lab: a host, a router, a node or a pod.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn netns(&self, name: &str) -> Result<Netns> {
        Netns::create(self, name)
    }

    /// An Ethernet segment with these prefixes: a bridge in a namespace of its own.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn network(&self, name: &str, prefixes: &[IpNet]) -> Result<Network> {
        Network::create(self, name, prefixes)
    }

    /// Starts a program in a namespace; its output goes to `NAME.log` in the lab's directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, netns: &Netns, name: &str, command: Command) -> Result<Process> {
        Process::spawn(
            netns,
            name,
            &self.directory().join(format!("{name}.log")),
            command,
        )
    }
}
