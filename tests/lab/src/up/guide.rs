//! The guided check: who reaches whom and why not, then a link that is cut and repaired.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use selvage_lab::probe::Answer;
use selvage_lab::probe::ping::ping;
use selvage_lab::probe::tcp;
use selvage_lab::topology::{Check, Expect};
use selvage_lab::{Cluster, Cut, eventually, eventually_ok};

use super::terminal::Terminal;

pub struct Guide<'a> {
    pub terminal: &'a Terminal,
}

/// How long what should get through may take to do so.
const CONVERGE: Duration = Duration::from_secs(15);
/// How long one attempt waits for an answer.
const ATTEMPT: Duration = Duration::from_millis(800);
/// How long a flap lasts: noticed by the kernel, short for BGP.
const FLAP: Duration = Duration::from_secs(1);
/// Hold time and some more.
const HOLD: Duration = Duration::from_secs(30);

impl Guide<'_> {
    /// All of it; false when something was not as expected.
    pub fn run(&self, cluster: &mut Cluster) -> Result<bool> {
        let mut passed = true;
        self.terminal.section("who reaches whom");
        for check in cluster.topology().checks.clone() {
            passed &= self.check(cluster, &check)?;
        }
        if let Some(victim) = Victim::choose(cluster) {
            passed &= self.flap(cluster, &victim)?;
            passed &= self.lose(cluster, &victim)?;
        }
        Ok(passed)
    }

    fn check(&self, cluster: &mut Cluster, check: &Check) -> Result<bool> {
        let (from, to) = (&check.from.value, &check.to.value);
        let what = match check.port {
            Some(port) => format!("{from} → {to}:{port}"),
            None => format!("{from} → {to}"),
        };
        let mut parts = Vec::new();
        let mut good = true;
        for address in cluster.addresses(to) {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let (as_expected, part) = match check.expect {
                Expect::Allow => allowed(cluster, from, address, check.port)?,
                Expect::Deny => denied(cluster, from, address, check.port)?,
            };
            good &= as_expected;
            parts.push(format!("{family} {part:<9}"));
        }
        let verb = match (check.expect, check.port, good) {
            (Expect::Allow, Some(_), true) => "connects",
            (Expect::Allow, None, true) => "answers",
            (Expect::Allow, _, false) => "fails",
            (Expect::Deny, _, true) => "blocked",
            (Expect::Deny, _, false) => "passes",
        };
        self.terminal.row(
            good,
            &format!("{what:<31}"),
            &format!("{verb:<9} {}", parts.join(" ")),
            None,
        );
        if check.expect == Expect::Deny || !good {
            self.why(cluster, check)?;
        }
        Ok(good)
    }

    /// What the agent of the destination's node says about it.
    fn why(&self, cluster: &mut Cluster, check: &Check) -> Result<()> {
        let Some(pod) = cluster.topology().pod(&check.to.value).cloned() else {
            return Ok(());
        };
        let source = match cluster.topology().pod(&check.from.value) {
            Some(pod) => pod.key(),
            None => cluster
                .addresses(&check.from.value)
                .first()
                .map(IpAddr::to_string)
                .unwrap_or_default(),
        };
        let destination = match check.port {
            Some(port) => format!("{}:{port}", pod.key()),
            None => pod.key(),
        };
        let output =
            cluster
                .node(&pod.node.value)?
                .agent
                .command(&["why", &source, &destination])?;
        self.terminal
            .remark(&format!("selvage why {source} {destination}"));
        self.terminal
            .remark(&String::from_utf8_lossy(&output.stdout));
        self.terminal
            .remark(&String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A cable out and in again, before anybody's hold time is over.
    fn flap(&self, cluster: &Cluster, victim: &Victim) -> Result<bool> {
        self.terminal.section(&format!(
            "the cable of {} is pulled and put back",
            victim.node
        ));
        let sessions = cluster.sessions_with(&victim.node)?;
        let link = cluster.link(&victim.link)?.clone();
        link.cut(Cut::Carrier)?;
        let cut = Instant::now();
        let gone = !victim.reaches(cluster)?;
        self.terminal.row(
            gone,
            &victim.link,
            &format!("carrier gone, {} does not answer", victim.target),
            None,
        );
        std::thread::sleep(FLAP.saturating_sub(cut.elapsed()));
        link.repair()?;
        let back = victim.wait(cluster)?;
        self.terminal.row(
            true,
            &victim.link,
            &format!("repaired, {} answers again", victim.target),
            Some(back),
        );
        let still = cluster.sessions_with(&victim.node)?;
        let kept = still >= sessions;
        self.terminal.row(
            kept,
            "BGP sessions",
            &format!("{still} of {sessions} as before: none was reset"),
            None,
        );
        Ok(gone && kept)
    }

    /// A switch that swallows everything: only BGP can notice.
    fn lose(&self, cluster: &Cluster, victim: &Victim) -> Result<bool> {
        self.terminal.section(&format!(
            "a switch swallows what {} sends and gets",
            victim.node
        ));
        let link = cluster.link(&victim.link)?.clone();
        let before = cluster.sessions_with(&victim.node)?;
        link.cut(Cut::Drop)?;
        let took = eventually(HOLD, "the neighbours give the node up", || {
            cluster
                .sessions_with(&victim.node)
                .is_ok_and(|count| count == 0)
        });
        match took {
            Ok(took) => {
                self.terminal.row(
                    true,
                    &victim.link,
                    "carrier stays; noticed by the hold time",
                    Some(took),
                );
                if cluster.routes_are_kept(&victim.node)? {
                    self.terminal.remark(
                        "the others keep its routes for a while, as it may only be restarting (RFC 4724, RFC 8538)",
                    );
                }
            }
            Err(error) => {
                self.terminal
                    .row(false, &victim.link, &error.to_string(), None);
                link.repair()?;
                return Ok(false);
            }
        }
        let repaired = Instant::now();
        link.repair()?;
        victim.wait(cluster)?;
        self.terminal.row(
            true,
            &victim.link,
            &format!("repaired, {} answers again", victim.target),
            Some(repaired.elapsed()),
        );
        let all = eventually(HOLD, "all sessions are back", || {
            cluster
                .sessions_with(&victim.node)
                .is_ok_and(|count| count >= before)
        });
        self.terminal.row(
            all.is_ok(),
            "BGP sessions",
            &format!("{before} back"),
            Some(repaired.elapsed()),
        );
        Ok(all.is_ok())
    }
}

/// Whose link is cut, and who is watched meanwhile.
struct Victim {
    node: String,
    link: String,
    from: String,
    target: String,
    port: Option<u16>,
}

impl Victim {
    /// The node of the first pod that should be reached from elsewhere.
    fn choose(cluster: &Cluster) -> Option<Victim> {
        let topology = cluster.topology();
        let check = topology
            .checks
            .iter()
            .filter(|check| check.expect == Expect::Allow)
            .find(|check| {
                let host = |name: &str| topology.pod(name).map(|pod| pod.node.value.clone());
                host(&check.to.value).is_some() && host(&check.from.value) != host(&check.to.value)
            })?;
        let node = topology.pod(&check.to.value)?.node.value.clone();
        let network = &topology
            .nodes
            .iter()
            .find(|other| other.name.value == node)?
            .networks
            .first()?
            .value;
        Some(Victim {
            link: format!("{network}/{node}"),
            node,
            from: check.from.value.clone(),
            target: check.to.value.clone(),
            port: check.port,
        })
    }

    fn reaches(&self, cluster: &Cluster) -> Result<bool> {
        for address in cluster.addresses(&self.target) {
            if try_once(
                cluster,
                &self.from,
                address,
                self.port,
                Duration::from_millis(200),
            )?
            .0 != Answer::Yes
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How long until it answers in both families.
    fn wait(&self, cluster: &Cluster) -> Result<Duration> {
        let start = Instant::now();
        eventually_ok(
            HOLD,
            &format!("{} reaches {} again", self.from, self.target),
            || match self.reaches(cluster)? {
                true => Ok(()),
                false => bail!("no answer"),
            },
        )?;
        Ok(start.elapsed())
    }
}

fn try_once(
    cluster: &Cluster,
    from: &str,
    to: IpAddr,
    port: Option<u16>,
    limit: Duration,
) -> Result<(Answer, Duration)> {
    let netns = cluster.netns(from)?;
    match port {
        None => ping(netns, to, limit),
        Some(port) => {
            let start = Instant::now();
            Ok((
                tcp::connect(netns, SocketAddr::new(to, port), limit)?,
                start.elapsed(),
            ))
        }
    }
}

/// It gets through, at once or when everything has converged.
fn allowed(cluster: &Cluster, from: &str, to: IpAddr, port: Option<u16>) -> Result<(bool, String)> {
    let outcome = eventually_ok(CONVERGE, "an answer", || {
        match try_once(cluster, from, to, port, ATTEMPT)? {
            (Answer::Yes, took) => Ok(took),
            (other, _) => bail!("{other:?}"),
        }
    });
    Ok(match outcome {
        Ok(took) => (true, super::terminal::seconds(took)),
        Err(error) => (false, format!("{:#}", error.root_cause())),
    })
}

/// Nothing comes back: policy drops, it does not refuse.
fn denied(cluster: &Cluster, from: &str, to: IpAddr, port: Option<u16>) -> Result<(bool, String)> {
    match try_once(cluster, from, to, port, ATTEMPT)?.0 {
        Answer::Silence => Ok((true, "dropped".to_owned())),
        other => Ok((false, format!("{other:?}"))),
    }
}
