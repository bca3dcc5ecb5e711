//! The control groups of nodes.
//!
//! ```text
//!   /sys/fs/cgroup[/CONTROLLER] / selvage-lab-SPACE-PID / LAB / NODE / kubepods / …
//! ```
//! `PID` is the process outside the sandbox in its pid namespace. It removes the folders when everything inside is gone;
//! those of one that is gone itself are removed by the next in the same namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "selvage-lab-";

/// What a kubelet asks for.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// How the sandbox of this process calls its group.
pub(crate) fn name(pid: i32) -> Result<String> {
    Ok(format!("{}{pid}", prefix()?))
}

fn prefix() -> Result<String> {
    let space = fs::metadata("/proc/self/ns/pid").context("no pid namespaces here")?;
    Ok(format!("{PREFIX}{}-", space.ino()))
}

/// Makes the group of a node in every hierarchy, and names it as a kubelet wants it.
pub(super) fn create(lab: &str, node: &str) -> Result<String> {
    let root = crate::sandbox::control_group().context("a node needs the sandbox")?;
    let group = format!("/{root}/{lab}/{node}");
    for hierarchy in hierarchies() {
        create_in(&hierarchy, &group)
            .with_context(|| format!("cannot make {group} in {}", hierarchy.display()))?;
    }
    Ok(group)
}

/// Removes a group that no process is in, and all below it.
pub(crate) fn remove(group: &str) {
    for hierarchy in hierarchies() {
        remove_tree(&hierarchy.join(group.trim_start_matches('/')));
    }
}

/// Removes the groups of sandboxes whose process outside is gone.
pub(crate) fn sweep() {
    let Ok(prefix) = prefix() else { return };
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(&hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_tree(&entry.path());
            }
        }
    }
}

/// Where groups are made: the one tree, or one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    if is_unified() {
        return vec![ROOT.into()];
    }
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    entries
        // Controllers that share a tree are links to it.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn create_in(hierarchy: &Path, group: &str) -> Result<()> {
    let mut path = hierarchy.to_owned();
    for part in group.split('/').filter(|part| !part.is_empty()) {
        let parent = path.clone();
        path.push(part);
        if is_unified() {
            for controller in CONTROLLERS {
                // Not every kernel has all of them.
                let _ = fs::write(
                    parent.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                );
            }
        }
        fs::create_dir_all(&path)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // The old kind begins without any, and takes no process then.
            if path.join(file).exists() && !is_unified() {
                fs::write(path.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// The deepest first; one that is in use stays.
fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
