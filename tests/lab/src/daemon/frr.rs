//! FRR: zebra and bgpd, asked in JSON through vtysh.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::Deserialize;

use super::{Kind, Route, Router, START, Session, Speaker};
use crate::process::output_of;

pub(super) fn start(router: &mut Router) -> Result<()> {
    let directory = router.directory.clone();
    fs::write(directory.join("bgpd.conf"), configuration(&router.speaker))?;
    fs::write(directory.join("zebra.conf"), "log stdout\n")?;
    // The daemons leave root for a user that is compiled in, and make their sockets as that.
    let (uid, gid) = frr_user()?;
    chown(&directory, Some(uid), Some(gid))
        .context("FRR needs root: its daemons change to a user of their own")?;
    // Sockets of a run that was killed would be taken for those of this one.
    for left in ["zebra.vty", "bgpd.vty", "zserv.api"] {
        let _ = fs::remove_file(directory.join(left));
    }
    for name in ["zebra", "bgpd"] {
        let mut command = Command::new(Kind::Frr.program(name)?);
        command.current_dir(&directory).args([
            "-f",
            &format!("{name}.conf"),
            "-i",
            &format!("{name}.pid"),
        ]);
        // Relative paths in these would be taken from the root.
        command
            .arg("-z")
            .arg(directory.join("zserv.api"))
            .arg("--vty_socket")
            .arg(&directory);
        command.args(["-A", "127.0.0.1", "-P", "0", "--log", "stdout"]);
        if name == "bgpd" {
            command.args(["-p", &router.speaker.port.to_string()]);
            if !router.speaker.kernel {
                command.arg("--no_kernel");
            }
        }
        let log = format!("{}-{name}", router.netns.name());
        let mut process = router.netns.lab().spawn(&router.netns, &log, command)?;
        process.wait_path(&directory.join(format!("{name}.vty")), START)?;
        router.processes.push(process);
    }
    if let [.., bgpd] = &mut router.processes[..] {
        let (netns, speaker_dir) = (router.netns.clone(), directory);
        bgpd.wait_for(START, "an answer to vtysh", || {
            vtysh_in(&netns, &speaker_dir, &["show bgp summary json"])
                .is_ok_and(|text| text.contains("routerId"))
        })?;
    }
    Ok(())
}

fn frr_user() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let line = passwd
        .lines()
        .find(|line| line.starts_with("frr:"))
        .context("no user frr in /etc/passwd")?;
    let mut fields = line.split(':').skip(2);
    let mut number = || {
        fields
            .next()
            .and_then(|text| text.parse().ok())
            .context("/etc/passwd")
    };
    Ok((number()?, number()?))
}

fn vtysh(router: &Router, commands: &[&str]) -> Result<String> {
    vtysh_in(&router.netns, &router.directory, commands)
}

fn vtysh_in(
    netns: &crate::Netns,
    directory: &std::path::Path,
    commands: &[&str],
) -> Result<String> {
    let mut command = Command::new(Kind::Frr.program("vtysh")?);
    command.arg("--vty_socket").arg(directory);
    for line in commands {
        command.args(["-c", line]);
    }
    output_of(netns, command)
}

fn configuration(speaker: &Speaker) -> String {
    let mut text = String::new();
    let t = &mut text;
    let _ = writeln!(
        t,
        "frr defaults datacenter\nlog stdout\nrouter bgp {}",
        speaker.asn
    );
    let _ = writeln!(t, " bgp router-id {}", speaker.router_id);
    // RFC 8212 is FRR's default; without this an eBGP session exchanges nothing.
    let _ = writeln!(
        t,
        " no bgp ebgp-requires-policy\n no bgp network import-check\n no bgp default ipv4-unicast"
    );
    let _ = writeln!(t, " bgp bestpath as-path multipath-relax");
    let _ = writeln!(
        t,
        " bgp graceful-restart\n bgp graceful-restart restart-time {}",
        speaker.restart_time
    );
    let _ = writeln!(
        t,
        " bgp graceful-restart stalepath-time {}",
        speaker.restart_time
    );
    if let Some(time) = speaker.long_lived {
        let _ = writeln!(t, " bgp long-lived-graceful-restart stale-time {time}");
    }
    for neighbour in &speaker.neighbours {
        let peer = neighbour.address;
        let _ = writeln!(t, " neighbor {peer} remote-as {}", neighbour.asn);
        if speaker.quick {
            let _ = writeln!(
                t,
                " neighbor {peer} timers 3 9\n neighbor {peer} timers connect 1"
            );
        }
        if neighbour.port != 179 {
            let _ = writeln!(t, " neighbor {peer} port {}", neighbour.port);
        }
        if let Some(key) = &neighbour.password {
            let _ = writeln!(t, " neighbor {peer} password {key}");
        }
        if neighbour.passive {
            let _ = writeln!(t, " neighbor {peer} passive");
        }
        if neighbour.multihop {
            let _ = writeln!(t, " neighbor {peer} ebgp-multihop");
        }
    }
    for (family, v4) in [("ipv4", true), ("ipv6", false)] {
        let _ = writeln!(t, " address-family {family} unicast");
        for network in speaker
            .networks
            .iter()
            .filter(|network| network.addr().is_ipv4() == v4)
        {
            let _ = writeln!(t, "  network {network}");
        }
        for neighbour in &speaker.neighbours {
            if !(if v4 { neighbour.ipv4 } else { neighbour.ipv6 }) {
                continue;
            }
            let peer = neighbour.address;
            let _ = writeln!(t, "  neighbor {peer} activate");
            if neighbour.reflector_client {
                let _ = writeln!(t, "  neighbor {peer} route-reflector-client");
            }
            if neighbour.next_hop_self {
                let _ = writeln!(t, "  neighbor {peer} next-hop-self");
            }
        }
        let _ = writeln!(t, " exit-address-family");
    }
    text
}

fn change(router: &Router, prefix: IpNet, no: &str) -> Result<()> {
    let family = if prefix.addr().is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    vtysh(
        router,
        &[
            "configure terminal",
            &format!("router bgp {}", router.speaker.asn),
            &format!("address-family {family} unicast"),
            &format!("{no}network {prefix}"),
        ],
    )?;
    Ok(())
}

pub(super) fn announce(router: &Router, prefix: IpNet) -> Result<()> {
    change(router, prefix, "")
}

pub(super) fn withdraw(router: &Router, prefix: IpNet) -> Result<()> {
    change(router, prefix, "no ")
}

#[derive(Deserialize)]
struct Peer {
    state: String,
}

#[derive(Deserialize)]
struct Summary {
    #[serde(default)]
    peers: BTreeMap<IpAddr, Peer>,
}

pub(super) fn sessions(router: &Router) -> Result<Vec<Session>> {
    parse_sessions(&vtysh(router, &["show bgp summary json"])?)
}

/// One object per family, each with the same neighbours.
fn parse_sessions(text: &str) -> Result<Vec<Session>> {
    let families: BTreeMap<String, Summary> =
        serde_json::from_str(text).context("show bgp summary json")?;
    let mut sessions = BTreeMap::new();
    for summary in families.into_values() {
        for (peer, Peer { state }) in summary.peers {
            sessions.insert(
                peer,
                Session {
                    peer,
                    established: state == "Established",
                    stale: false,
                    state,
                },
            );
        }
    }
    Ok(sessions.into_values().collect())
}

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    routes: BTreeMap<IpNet, Vec<Path>>,
}

#[derive(Deserialize)]
struct Path {
    #[serde(default)]
    bestpath: bool,
    #[serde(default)]
    stale: bool,
    #[serde(default)]
    path: String,
    #[serde(rename = "locPrf")]
    local_pref: Option<u32>,
    metric: Option<u32>,
    #[serde(default)]
    nexthops: Vec<Hop>,
}

#[derive(Deserialize)]
struct Hop {
    ip: IpAddr,
    #[serde(default)]
    scope: String,
}

pub(super) fn routes(router: &Router) -> Result<Vec<Route>> {
    let mut routes = parse_routes(&vtysh(router, &["show bgp ipv4 unicast json"])?)?;
    routes.extend(parse_routes(&vtysh(
        router,
        &["show bgp ipv6 unicast json"],
    )?)?);
    Ok(routes)
}

pub(super) fn last_resorts(router: &Router) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let words = format!("show bgp {family} unicast community llgr-stale json");
        routes.extend(parse_routes(&vtysh(router, &[&words])?)?);
    }
    Ok(routes)
}

fn parse_routes(text: &str) -> Result<Vec<Route>> {
    let table: Table = serde_json::from_str(text).context("show bgp … unicast json")?;
    let mut routes = Vec::new();
    for (prefix, paths) in table.routes {
        for path in paths {
            let words = path
                .path
                .split(|c: char| !c.is_ascii_digit())
                .filter(|word| !word.is_empty());
            let hop = path
                .nexthops
                .iter()
                .find(|hop| hop.scope != "link-local")
                .map(|hop| hop.ip);
            routes.push(Route {
                prefix,
                next_hop: hop.filter(|hop| !hop.is_unspecified()),
                as_path: words.map(str::parse).collect::<Result<_, _>>()?,
                local_pref: path.local_pref,
                med: path.metric,
                best: path.bestpath,
                stale: path.stale,
            });
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_vtysh_8_4_prints_them() {
        let text = r#"{"vrfId": 0, "routes": { "10.1.0.0/24": [
            {"valid":true,"bestpath":true,"path":"65001","metric":5,"nexthops":[{"ip":"192.0.2.1","afi":"ipv4","used":true}]},
            {"valid":true,"path":"65003 {65001,65009}","locPrf":90,"stale":true,
             "nexthops":[{"ip":"fe80::1","scope":"link-local"},{"ip":"2001:db8::1","scope":"global"}]}],
          "10.2.0.0/24": [{"bestpath":true,"path":"","nexthops":[{"ip":"0.0.0.0"}]}] } }"#;
        let routes = parse_routes(text).expect("readable");
        let short: Vec<_> = routes
            .iter()
            .map(|r| {
                (
                    r.next_hop.map(|h| h.to_string()),
                    r.as_path.clone(),
                    r.local_pref,
                    r.med,
                    r.best,
                    r.stale,
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                (
                    Some("192.0.2.1".into()),
                    vec![65001],
                    None,
                    Some(5),
                    true,
                    false
                ),
                (
                    Some("2001:db8::1".into()),
                    vec![65003, 65001, 65009],
                    Some(90),
                    None,
                    false,
                    true
                ),
                (None, vec![], None, None, true, false),
            ]
        );
    }

    #[test]
    fn a_neighbour_of_two_families_is_one_session() {
        let text = r#"{"ipv4Unicast":{"peers":{"192.0.2.1":{"state":"Established"}}},
                       "ipv6Unicast":{"peers":{"192.0.2.1":{"state":"Established"},"192.0.2.9":{"state":"Active"}}}}"#;
        let sessions = parse_sessions(text).expect("readable");
        assert_eq!(
            sessions.iter().map(|s| s.established).collect::<Vec<_>>(),
            [true, false]
        );
    }
}
