//! Looking around in a running topology: a shell whose commands run where they should, from a description of the lab
//! that any process of the sandbox can read.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use selvage_lab::cluster::RunningRouter;
use selvage_lab::daemon::{Kind, find_program};
use selvage_lab::network::Port;
use selvage_lab::topology::Expect;
use selvage_lab::{Cluster, Cut, programs};
use selvage_netlink::netns;
use serde::{Deserialize, Serialize};

use super::terminal::{Look, Terminal};

/// Names the description's file.
const DESCRIPTION: &str = "SELVAGE_LAB";

/// A running topology, for other processes of its sandbox.
#[derive(Default, Serialize, Deserialize)]
struct Description {
    members: BTreeMap<String, Member>,
    /// By `NETWORK/MEMBER`.
    links: BTreeMap<String, Port>,
}

#[derive(Serialize, Deserialize)]
struct Member {
    netns: PathBuf,
    /// Of its agent.
    run_dir: Option<PathBuf>,
    /// Of another daemon.
    directory: Option<PathBuf>,
}

impl Description {
    fn read() -> Result<Description> {
        let file = env::var_os(DESCRIPTION)
            .context("this works in the shell that `selvage-lab up` leaves")?;
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }

    fn link(&self, name: &str) -> Result<&Port> {
        self.links
            .get(name)
            .with_context(|| format!("no link {name:?}; there are: {}", names(&self.links)))
    }
}

fn names<T>(map: &BTreeMap<String, T>) -> String {
    map.keys().cloned().collect::<Vec<_>>().join(", ")
}

fn file(cluster: &Cluster) -> PathBuf {
    cluster.lab().directory().join("lab.json")
}

/// Writes the description.
///
/// # Errors
/// When it cannot be written.
pub fn describe(cluster: &mut Cluster) -> Result<()> {
    let mut description = Description::default();
    let topology = cluster.topology().clone();
    for router in &topology.routers {
        let name = &router.name.value;
        let netns = cluster.netns(name)?.path().to_owned();
        let member = match cluster.router(name)? {
            RunningRouter::Other(other) => Member {
                netns,
                run_dir: None,
                directory: Some(other.directory().to_owned()),
            },
            RunningRouter::Own(agent) => Member {
                netns,
                run_dir: Some(agent.run_dir().to_owned()),
                directory: None,
            },
        };
        description.members.insert(name.clone(), member);
    }
    for node in &topology.nodes {
        let name = &node.name.value;
        let netns = cluster.netns(name)?.path().to_owned();
        let run_dir = Some(cluster.node(name)?.agent.run_dir().to_owned());
        description.members.insert(
            name.clone(),
            Member {
                netns,
                run_dir,
                directory: None,
            },
        );
    }
    for pod in topology.pods.iter().map(selvage_lab::topology::Pod::key) {
        let netns = cluster.netns(&pod)?.path().to_owned();
        description.members.insert(
            pod,
            Member {
                netns,
                run_dir: None,
                directory: None,
            },
        );
    }
    description.links = cluster
        .links()
        .iter()
        .map(|(name, link)| (name.clone(), link.port()))
        .collect();
    fs::write(file(cluster), serde_json::to_vec(&description)?)?;
    Ok(())
}

/// Runs a command on a member: in its network namespace, and for its own agent or daemon.
///
/// # Errors
/// When there is no such member or program.
pub fn on(name: &str, words: &[String]) -> Result<ExitCode> {
    let description = Description::read()?;
    let member = description.members.get(name);
    let member = member
        .with_context(|| format!("no {name:?}; there are: {}", names(&description.members)))?;
    let netns = netns::open(&member.netns)?;
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
    let (program, rest) = match words.split_first() {
        Some((program, rest)) => (program.clone(), rest.to_vec()),
        None => (
            env::var("SHELL").unwrap_or_else(|_| "sh".to_owned()),
            Vec::new(),
        ),
    };
    let own = matches!(program.as_str(), "selvage" | "selvage-cni" | "selvage-lab");
    let path = if own {
        programs::find(&program).ok()
    } else {
        find_program(&program)
    };
    let mut command = Command::new(path.unwrap_or_else(|| PathBuf::from(&program)));
    if let Some(run_dir) = &member.run_dir {
        command.env("SELVAGE_RUN_DIR", run_dir);
    }
    if let Some(directory) = &member.directory {
        match program.as_str() {
            "birdc" => command.arg("-s").arg(directory.join("bird.ctl")),
            "vtysh" => command.arg("--vty_socket").arg(directory),
            _ => &mut command,
        };
    }
    let error = command.args(rest).exec();
    bail!("{program}: {error}")
}

/// Cuts a link of the running topology.
///
/// # Errors
/// When there is none of this name.
pub fn cut(link: &str, how: Cut) -> Result<ExitCode> {
    Description::read()?.link(link)?.cut(how)?;
    Ok(ExitCode::SUCCESS)
}

/// Repairs a link of the running topology.
///
/// # Errors
/// When there is none of this name.
pub fn repair(link: &str) -> Result<ExitCode> {
    Description::read()?.link(link)?.repair()?;
    Ok(ExitCode::SUCCESS)
}

/// Says how to look around, then leaves a shell, or waits for Ctrl-C where there is no terminal to type in.
pub fn look_around(terminal: &Terminal, cluster: &Cluster, interactive: bool) -> Result<()> {
    terminal.section("look around");
    for (command, what) in hints(cluster) {
        terminal.line(&format!(
            "  {}  {}",
            terminal.paint(Look::Name, &format!("{command:<44}")),
            terminal.paint(Look::Dim, &what)
        ));
    }
    if !interactive {
        terminal.line("  Ctrl-C ends it and removes everything");
        loop {
            std::thread::park();
        }
    }
    terminal.line(&format!(
        "  {}",
        terminal.paint(Look::Dim, "exit, or Ctrl-D, ends it and removes everything")
    ));
    terminal.line("");
    let (rc, own) = (
        cluster.lab().directory().join("shellrc"),
        env::current_exe()?,
    );
    fs::write(&rc, rc_file(&own))?;
    let mut command = match find_program("bash") {
        Some(bash) => {
            let mut command = Command::new(bash);
            command.arg("--rcfile").arg(&rc).arg("-i");
            command
        }
        None => {
            let mut command = Command::new("/bin/sh");
            command.env("ENV", &rc).arg("-i");
            command
        }
    };
    command
        .env(DESCRIPTION, file(cluster))
        .current_dir(cluster.lab().directory());
    command.status().context("no shell")?;
    Ok(())
}

/// What is worth a look in this topology.
fn hints(cluster: &Cluster) -> Vec<(String, String)> {
    let topology = cluster.topology();
    let mut hints = Vec::new();
    if let Some(node) = topology.nodes.first() {
        let name = &node.name.value;
        hints.push((
            format!("on {name} selvage status"),
            "health, sessions, routes, policy".to_owned(),
        ));
        hints.push((
            format!("on {name} selvage routes"),
            "what BGP brought, what the kernel has".to_owned(),
        ));
    }
    let denied = topology
        .checks
        .iter()
        .find(|check| check.expect == Expect::Deny);
    let pods = denied.and_then(|check| {
        let (from, to) = (
            topology.pod(&check.from.value)?,
            topology.pod(&check.to.value)?,
        );
        Some((from.key(), to.key(), to.node.value.clone(), check.port?))
    });
    if let Some((from, to, node, port)) = pods {
        let command = format!("on {node} selvage why {from} {to}:{port}");
        hints.push((command, "may this pass, and who says so".to_owned()));
    }
    if let Some(router) = topology.routers.first() {
        let name = &router.name.value;
        let (command, what) = match router.daemon.kind() {
            Some(Kind::Bird) => ("birdc show route", "the routes as BIRD has them"),
            Some(Kind::Frr) => (
                "vtysh -c 'show bgp summary'",
                "the sessions as FRR has them",
            ),
            Some(Kind::Gobgp) => ("gobgp global rib", "the routes as GoBGP has them"),
            None => ("selvage routes", "the routes of the router"),
        };
        hints.push((format!("on {name} {command}"), what.to_owned()));
    }
    if let Some(link) = cluster.links().keys().next_back() {
        hints.push((
            format!("cut {link}; repair {link}"),
            "pull a cable (--drop: lose packets)".to_owned(),
        ));
    }
    hints.push((
        format!("ls {}", cluster.objects().directory().display()),
        "the objects: change one".to_owned(),
    ));
    hints
}

fn rc_file(own: &Path) -> String {
    let own = format!("'{}'", own.display().to_string().replace('\'', r"'\''"));
    format!(
        "[ -r ~/.bashrc ] && [ -n \"$BASH_VERSION\" ] && . ~/.bashrc\n\
         on() {{ {own} on \"$@\"; }}\n\
         cut() {{ {own} cut \"$@\"; }}\n\
         repair() {{ {own} repair \"$@\"; }}\n\
         PS1='lab$ '\n"
    )
}
