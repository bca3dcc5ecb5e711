//! GoBGP: gobgpd with a TOML file, asked in JSON through gobgp.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::Deserialize;

use super::{Kind, LLGR_STALE, Neighbour, Route, Router, START, Session, Speaker};
use crate::process::output_of;

pub(super) fn start(router: &mut Router, restarting: bool) -> Result<()> {
    let directory = router.directory.clone();
    fs::write(
        directory.join("gobgpd.toml"),
        configuration(&router.speaker),
    )?;
    let mut command = Command::new(Kind::Gobgp.program("gobgpd")?);
    command.args([
        "-f",
        "gobgpd.toml",
        "-t",
        "toml",
        "--api-hosts",
        "127.0.0.1:50051",
        "--pprof-disable",
    ]);
    command.current_dir(&directory);
    if restarting {
        command.arg("--graceful-restart");
    }
    let name = format!("{}-gobgpd", router.netns.name());
    let mut process = router.netns.lab().spawn(&router.netns, &name, command)?;
    process.wait_for(START, "an answer to gobgp", || {
        gobgp(router, &["global", "-j"]).is_ok_and(|t| t.contains("asn"))
    })?;
    router.processes.push(process);
    for network in router.speaker.networks.clone() {
        announce(router, network)?;
    }
    Ok(())
}

fn gobgp(router: &Router, words: &[&str]) -> Result<String> {
    let mut command = Command::new(Kind::Gobgp.program("gobgp")?);
    command.args(words);
    output_of(&router.netns, command)
}

fn configuration(speaker: &Speaker) -> String {
    let mut text = String::new();
    let t = &mut text;
    let _ = writeln!(
        t,
        "[global.config]\nas = {}\nrouter-id = \"{}\"\nport = {}",
        speaker.asn, speaker.router_id, speaker.port
    );
    for neighbour in &speaker.neighbours {
        write_neighbour(t, speaker, neighbour);
    }
    text
}

fn write_neighbour(t: &mut String, speaker: &Speaker, neighbour: &Neighbour) {
    let _ = writeln!(
        t,
        "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"",
        neighbour.address
    );
    let _ = writeln!(t, "peer-as = {}", neighbour.asn);
    if let Some(key) = &neighbour.password {
        let _ = writeln!(t, "auth-password = \"{key}\"");
    }
    if speaker.quick {
        let _ = writeln!(
            t,
            "[neighbors.timers.config]\nhold-time = 9\nkeepalive-interval = 3\nconnect-retry = 1"
        );
        let _ = writeln!(t, "idle-hold-time-after-reset = 1");
    }
    let _ = writeln!(
        t,
        "[neighbors.transport.config]\npassive-mode = {}\nremote-port = {}",
        neighbour.passive, neighbour.port
    );
    if neighbour.multihop {
        let _ = writeln!(
            t,
            "[neighbors.ebgp-multihop.config]\nenabled = true\nmultihop-ttl = 64"
        );
    }
    if neighbour.reflector_client {
        let _ = writeln!(
            t,
            "[neighbors.route-reflector.config]\nroute-reflector-client = true"
        );
        let _ = writeln!(t, "route-reflector-cluster-id = \"{}\"", speaker.router_id);
    }
    let _ = writeln!(
        t,
        "[neighbors.graceful-restart.config]\nenabled = true\nrestart-time = {}",
        speaker.restart_time
    );
    if speaker.long_lived.is_some() {
        let _ = writeln!(t, "long-lived-enabled = true");
    }
    for (family, wanted) in [
        ("ipv4-unicast", neighbour.ipv4),
        ("ipv6-unicast", neighbour.ipv6),
    ] {
        if wanted {
            let _ = writeln!(
                t,
                "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\""
            );
            let _ = writeln!(
                t,
                "[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true"
            );
            if let Some(time) = speaker.long_lived {
                let _ = writeln!(
                    t,
                    "[neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true\nrestart-time = {time}"
                );
            }
        }
    }
}

fn family_of(prefix: IpNet) -> &'static str {
    if prefix.addr().is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    }
}

/// An IPv6 path of its own carries the address of the session unless told otherwise: over an IPv4 session that would
/// be a mapped one, which nobody can use.
pub(super) fn announce(router: &Router, prefix: IpNet) -> Result<()> {
    let text = prefix.to_string();
    let mut words = vec![
        "global",
        "rib",
        "add",
        "-a",
        family_of(prefix),
        &text,
        "origin",
        "igp",
    ];
    let hop = router
        .speaker
        .own_v6()
        .filter(|_| prefix.addr().is_ipv6())
        .map(|hop| hop.to_string());
    if let Some(hop) = &hop {
        words.extend(["nexthop", hop]);
    }
    gobgp(router, &words).map(|_| ())
}

pub(super) fn withdraw(router: &Router, prefix: IpNet) -> Result<()> {
    gobgp(
        router,
        &[
            "global",
            "rib",
            "del",
            "-a",
            family_of(prefix),
            &prefix.to_string(),
        ],
    )
    .map(|_| ())
}

#[derive(Deserialize)]
struct Peer {
    state: PeerState,
}

#[derive(Deserialize)]
struct PeerState {
    neighbor_address: IpAddr,
    #[serde(default)]
    session_state: u32,
}

/// `api.PeerState_SessionState`.
const STATES: [&str; 7] = [
    "Unknown",
    "Idle",
    "Connect",
    "Active",
    "OpenSent",
    "OpenConfirm",
    "Established",
];

pub(super) fn sessions(router: &Router) -> Result<Vec<Session>> {
    parse_sessions(&gobgp(router, &["neighbor", "-j"])?)
}

fn parse_sessions(text: &str) -> Result<Vec<Session>> {
    let peers: Vec<Peer> = serde_json::from_str(text).context("gobgp neighbor -j")?;
    let session = |peer: Peer| {
        let state = STATES
            .get(usize::try_from(peer.state.session_state).unwrap_or(0))
            .copied()
            .unwrap_or("Unknown");
        Session {
            peer: peer.state.neighbor_address,
            established: state == "Established",
            stale: false,
            state: state.to_owned(),
        }
    };
    Ok(peers.into_iter().map(session).collect())
}

#[derive(Deserialize)]
struct Path {
    #[serde(default)]
    best: bool,
    #[serde(default)]
    stale: bool,
    #[serde(default)]
    attrs: Vec<Attribute>,
}

/// The attributes differ by `type`; only these fields are of interest.
#[derive(Deserialize)]
struct Attribute {
    #[serde(rename = "type")]
    code: u8,
    #[serde(default)]
    as_paths: Vec<Segment>,
    nexthop: Option<IpAddr>,
    metric: Option<u32>,
    #[serde(default)]
    communities: Vec<u32>,
    value: Option<serde_json::Value>,
}

impl Path {
    fn is_last_resort(&self) -> bool {
        let mut communities = self.attrs.iter().flat_map(|attr| &attr.communities);
        communities.any(|community| *community == LLGR_STALE)
    }
}

#[derive(Deserialize)]
struct Segment {
    #[serde(default)]
    asns: Vec<u32>,
}

pub(super) fn routes(router: &Router) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in ["ipv4", "ipv6"] {
        routes.extend(parse_routes(&gobgp(
            router,
            &["global", "rib", "-a", family, "-j"],
        )?)?);
    }
    Ok(routes)
}

pub(super) fn last_resorts(router: &Router) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = gobgp(router, &["global", "rib", "-a", family, "-j"])?;
        for (prefix, paths) in parse_table(&text)? {
            let stale = paths.iter().filter(|path| path.is_last_resort());
            routes.extend(stale.map(|path| route(prefix, path)));
        }
    }
    Ok(routes)
}

fn parse_routes(text: &str) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (prefix, paths) in parse_table(text)? {
        routes.extend(paths.iter().map(|path| route(prefix, path)));
    }
    Ok(routes)
}

fn parse_table(text: &str) -> Result<BTreeMap<IpNet, Vec<Path>>> {
    // An empty table is printed as words, not as JSON.
    if !text.trim_start().starts_with('{') {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(text).context("gobgp global rib -j")
}

fn route(prefix: IpNet, path: &Path) -> Route {
    let mut route = Route {
        prefix,
        next_hop: None,
        as_path: Vec::new(),
        local_pref: None,
        med: None,
        best: path.best,
        stale: path.stale,
    };
    for attribute in &path.attrs {
        let number = || {
            attribute
                .value
                .as_ref()
                .and_then(serde_json::Value::as_u64)
                .and_then(|n| u32::try_from(n).ok())
        };
        match attribute.code {
            2 => {
                route.as_path = attribute
                    .as_paths
                    .iter()
                    .flat_map(|segment| segment.asns.clone())
                    .collect()
            }
            3 | 14 => route.next_hop = attribute.nexthop.filter(|hop| !hop.is_unspecified()),
            4 => route.med = attribute.metric.or_else(number),
            5 => route.local_pref = number(),
            _ => {}
        }
    }
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_gobgp_3_10_prints_them() {
        let text = r#"{"10.1.0.0/24":[{"nlri":{"prefix":"10.1.0.0/24"},"best":true,"attrs":[{"type":1,"value":0},
              {"type":2,"as_paths":[{"segment_type":2,"num":2,"asns":[65001,65009]}]},{"type":3,"nexthop":"192.0.2.1"},
              {"type":4,"metric":3},{"type":5,"value":200}]}],
            "fd00:3::/64":[{"attrs":[{"type":14,"nexthop":"2001:db8::3","afi":2,"safi":1,"value":[{"prefix":"fd00:3::/64"}]}],"stale":true}]}"#;
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
                    vec![65001, 65009],
                    Some(200),
                    Some(3),
                    true,
                    false
                ),
                (Some("2001:db8::3".into()), vec![], None, None, false, true),
            ]
        );
        assert_eq!(parse_routes("Network not in table\n").expect("empty"), []);
    }

    #[test]
    fn a_last_resort_is_known_by_its_community() {
        let text = r#"{"10.1.0.0/24":[{"attrs":[{"type":8,"communities":[65537,4294901766]}],"stale":true},
            {"attrs":[{"type":8,"communities":[65537]}],"stale":true},{"attrs":[]}]}"#;
        let table = parse_table(text).expect("readable");
        let paths = table.values().flatten();
        let found: Vec<bool> = paths.map(Path::is_last_resort).collect();
        assert_eq!(found, [true, false, false]);
    }

    #[test]
    fn session_states_have_names() {
        let text = r#"[{"state":{"neighbor_address":"192.0.2.1","session_state":6}},{"state":{"neighbor_address":"192.0.2.2"}}]"#;
        let sessions = parse_sessions(text).expect("readable");
        assert_eq!(
            sessions
                .iter()
                .map(|s| s.state.as_str())
                .collect::<Vec<_>>(),
            ["Established", "Unknown"]
        );
    }
}
