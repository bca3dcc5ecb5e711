//! Where the programs of a cluster are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::programs::build_script;

/// Names the folder with the programs, for those who built them elsewhere.
const DIRECTORY: &str = "SELVAGE_CLUSTER_DIR";

/// What a control plane needs.
const CONTROL_PLANE: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
];

/// What a node needs, and the images of its tests.
const NODE: &[&str] = &[
    "agnhost",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "kube-proxy",
    "kubelet",
    "pause",
];

/// The programs of Kubernetes, etcd and containerd, as `tests/cluster/build.sh` builds them.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The programs of a control plane.
    ///
    /// # Errors
    /// When one is not built; the message says how to.
    pub fn of_control_plane() -> Result<Programs> {
        Programs::with(CONTROL_PLANE)
    }

    /// The programs of a whole cluster.
    ///
    /// # Errors
    /// When one is not built; the message says how to.
    pub fn of_cluster() -> Result<Programs> {
        Programs::with(&[CONTROL_PLANE, NODE].concat())
    }

    fn with(names: &[&str]) -> Result<Programs> {
        let programs = Programs { folder: folder()? };
        for name in names {
            programs.find(name)?;
        }
        Ok(programs)
    }

    /// The folder they are in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of them.
    ///
    /// # Errors
    /// When it is not built; the message says how to.
    pub fn find(&self, name: &str) -> Result<PathBuf> {
        let program = self.folder.join(name);
        if !program.is_file() {
            bail!(
                "no {} (build it: make cluster-programs, a quarter of an hour the first time)",
                program.display()
            );
        }
        Ok(program)
    }

    /// A command that runs one of them.
    ///
    /// # Errors
    /// When it is not built; the message says how to.
    pub fn command(&self, name: &str) -> Result<Command> {
        Ok(Command::new(self.find(name)?))
    }
}

/// The build script knows, for the folder is named by what it builds.
fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(DIRECTORY) {
        return Ok(folder.into());
    }
    build_script("where")
        .with_context(|| format!("{DIRECTORY} can name the folder with the programs instead"))
}
