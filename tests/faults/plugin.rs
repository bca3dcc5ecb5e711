//! The plugin when disk, namespace or agent are not there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use selvage_lab::{Cluster, Lab, eventually_ok};
use selvage_netlink::link;

use crate::harness::Case;
use crate::scene::{OWN, SOON, two_nodes, wait_reaches};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "faults::a_full_disk_refuses_an_add_and_leaves_nothing",
            OWN,
            full_disk,
        ),
        Case::new(
            "faults::a_namespace_deleted_under_its_pod",
            OWN,
            namespace_gone,
        ),
        Case::new(
            "faults::an_add_without_the_agent_is_undone",
            OWN,
            without_agent,
        ),
    ]
}

/// Names of the pods' interfaces on a node.
fn interfaces(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let links = link::list(&mut cluster.netns(node)?.rtnetlink()?)?;
    Ok(links
        .into_iter()
        .map(|link| link.name)
        .filter(|name| name.starts_with("sv"))
        .collect())
}

/// Names of leases and attachments; of a directory that is not there, none.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files(&path)?),
            // It is locked, whatever comes of it.
            false if path.ends_with("lock") => {}
            false => all.push(path),
        }
    }
    all.sort();
    Ok(all)
}

fn full_disk(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.stop_pod("shop/web")?;
    let leases = cluster.node("n1")?.agent.state_dir().join("leases");
    fs::create_dir_all(&leases)?;
    mount(
        "full",
        &leases,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=64k"),
    )
    .context("a small disk")?;
    let filler = leases.join("filler");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0; 512]).is_ok() {}
    let attachments = cluster.node("n1")?.agent.state_dir().join("attachments");
    let before: Vec<_> = [files(&leases)?, files(&attachments)?].concat();
    let refused = match cluster.start_pod("shop/web") {
        Ok(_) => bail!("ADD succeeded with a full disk"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        refused.contains("\"code\""),
        "not an error object: {refused}"
    );
    ensure!(
        interfaces(&cluster, "n1")?.is_empty(),
        "an interface is left: {refused}"
    );
    ensure!(
        refused.contains("full") && refused.contains("leases"),
        "does not say what is wrong and where: {refused}"
    );
    let left: Vec<_> = [files(&leases)?, files(&attachments)?].concat();
    ensure!(
        left == before,
        "left on the disk: {left:?}, before {before:?}"
    );
    fs::remove_file(&filler)?;
    drop(file);
    cluster.start_pod("shop/web")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))?;
    unmount(&leases, UnmountFlags::DETACH)?;
    Ok(())
}

fn namespace_gone(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let running = cluster.pod("shop/web")?.running.clone();
    // The servers' sockets would keep it.
    cluster.stop_servers("shop/web")?;
    running.netns.delete()?;
    eventually_ok(
        SOON,
        "the interface goes with the namespace",
        || match interfaces(&cluster, "n1")? {
            left if left.is_empty() => Ok(()),
            left => bail!("{left:?}"),
        },
    )?;
    // DEL succeeds, as often as it is asked for, and the pod can come again.
    let kubelet = cluster.node("n1")?.kubelet.clone();
    kubelet.call("DEL", &running)?;
    kubelet.call("DEL", &running)?;
    cluster.start_pod("shop/web")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

fn without_agent(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    cluster.stop_pod("shop/web")?;
    cluster.node("n1")?.agent.process().kill()?;
    let refused = match cluster.start_pod("shop/web") {
        Ok(_) => bail!("ADD succeeded without the agent"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        refused.contains("\"code\":11") || refused.contains("\"code\": 11"),
        "{refused}"
    );
    ensure!(
        interfaces(&cluster, "n1")?.is_empty(),
        "an interface is left: {refused}"
    );
    cluster.node("n1")?.agent.restart()?;
    cluster.node("n1")?.agent.wait_synced()?;
    cluster.start_pod("shop/web")?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}
