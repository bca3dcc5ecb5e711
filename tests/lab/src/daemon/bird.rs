//! BIRD 2: its configuration and the output of `birdc`.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Kind, LLGR_STALE, Neighbour, Route, Router, START, Session, Speaker};
use crate::process::output_of;

pub(super) fn start(router: &mut Router, restarting: bool) -> Result<()> {
    let directory = router.directory.clone();
    fs::write(directory.join("bird.conf"), configuration(&router.speaker))?;
    let mut command = Command::new(Kind::Bird.program("bird")?);
    command
        .arg("-f")
        .args(["-c", "bird.conf", "-s", "bird.ctl", "-P", "bird.pid"])
        .current_dir(&directory);
    if restarting {
        // Recovery: routes in the kernel stay until the neighbours have said theirs.
        command.arg("-R");
    }
    let name = format!("{}-bird", router.netns.name());
    let mut process = router.netns.lab().spawn(&router.netns, &name, command)?;
    process.wait_for(START, "an answer to birdc", || {
        birdc(router, &["show", "status"]).is_ok()
    })?;
    router.processes.push(process);
    Ok(())
}

/// Writes the configuration anew and has it read; sessions that did not change stay up.
pub(super) fn reconfigure(router: &Router) -> Result<()> {
    fs::write(
        router.directory.join("bird.conf"),
        configuration(&router.speaker),
    )?;
    let answer = birdc(router, &["configure"])?;
    match answer.contains("Reconfigur") {
        true => Ok(()),
        false => bail!("birdc configure: {answer}"),
    }
}

fn birdc(router: &Router, words: &[&str]) -> Result<String> {
    let mut command = Command::new(Kind::Bird.program("birdc")?);
    command
        .args(["-s", "bird.ctl"])
        .args(words)
        .current_dir(&router.directory);
    output_of(&router.netns, command)
}

fn configuration(speaker: &Speaker) -> String {
    let mut text = String::new();
    let t = &mut text;
    // Writing to a String cannot fail.
    let _ = writeln!(t, "log stderr all;\nrouter id {};", speaker.router_id);
    let _ = writeln!(t, "graceful restart wait {};", speaker.restart_time);
    let _ = writeln!(t, "protocol device {{ scan time 10; }}");
    if speaker.kernel {
        for family in ["ipv4", "ipv6"] {
            let _ = writeln!(
                t,
                "protocol kernel kernel_{family} {{ merge paths on; {family} {{ import none; export where source = RTS_BGP; }}; }}"
            );
        }
    }
    for (family, v4) in [("ipv4", true), ("ipv6", false)] {
        let _ = writeln!(t, "protocol static own_{family} {{ {family};");
        for network in speaker
            .networks
            .iter()
            .filter(|network| network.addr().is_ipv4() == v4)
        {
            let _ = writeln!(t, "  route {network} unreachable;");
        }
        let _ = writeln!(t, "}}");
    }
    for (number, neighbour) in speaker.neighbours.iter().enumerate() {
        write_neighbour(t, speaker, number, neighbour);
    }
    text
}

fn write_neighbour(t: &mut String, speaker: &Speaker, number: usize, neighbour: &Neighbour) {
    let _ = writeln!(t, "protocol bgp peer{number} {{");
    let _ = writeln!(t, "  local port {} as {};", speaker.port, speaker.asn);
    let _ = writeln!(
        t,
        "  neighbor {} port {} as {};",
        neighbour.address, neighbour.port, neighbour.asn
    );
    if speaker.quick {
        let _ = writeln!(
            t,
            "  hold time 9; keepalive time 3; connect delay time 1; connect retry time 1;"
        );
    }
    if let Some(time) = speaker.long_lived {
        let _ = writeln!(
            t,
            "  long lived graceful restart on; long lived stale time {time};"
        );
    }
    let _ = writeln!(
        t,
        "  graceful restart on; graceful restart time {};",
        speaker.restart_time
    );
    if let Some(key) = &neighbour.password {
        let _ = writeln!(t, "  password \"{key}\";");
    }
    if neighbour.passive {
        let _ = writeln!(t, "  passive on;");
    }
    if neighbour.multihop {
        let _ = writeln!(t, "  multihop;");
    }
    if neighbour.reflector_client {
        let _ = writeln!(t, "  rr client; rr cluster id {};", speaker.router_id);
    }
    for (family, wanted, own) in [
        ("ipv4", neighbour.ipv4, speaker.own_v4()),
        ("ipv6", neighbour.ipv6, speaker.own_v6()),
    ] {
        if !wanted {
            continue;
        }
        let own_session = neighbour.address.is_ipv4() == (family == "ipv4");
        let address = match own {
            Some(address) if !own_session => format!(" next hop address {address};"),
            _ => String::new(),
        };
        let own_hop = if neighbour.next_hop_self {
            " next hop self;"
        } else {
            ""
        };
        let _ = writeln!(
            t,
            "  {family} {{ import all; export where source = RTS_BGP || source = RTS_STATIC;{address}{own_hop} }};"
        );
    }
    let _ = writeln!(t, "}}");
}

pub(super) fn sessions(router: &Router) -> Result<Vec<Session>> {
    parse_sessions(&birdc(router, &["show", "protocols", "all"])?)
}

/// A protocol begins in the first column; what is about it is indented.
fn parse_sessions(text: &str) -> Result<Vec<Session>> {
    let mut sessions = Vec::new();
    let mut head: Option<&str> = None;
    for line in text.lines() {
        if !line.starts_with(' ') {
            head = Some(line).filter(|line| line.split_whitespace().nth(1) == Some("BGP"));
            continue;
        }
        let Some(head) = head else { continue };
        if line.contains("Neighbor graceful restart active")
            && let Some(Session { stale, .. }) = sessions.last_mut()
        {
            *stale = true;
        }
        let Some(address) = line.trim().strip_prefix("Neighbor address:") else {
            continue;
        };
        let address = address.trim();
        // A link-local address carries its interface.
        let peer = address.split('%').next().unwrap_or(address);
        let peer = peer.parse().with_context(|| address.to_owned())?;
        // Name, Proto, Table, State, Since, Info.
        let state = head
            .split_whitespace()
            .skip(5)
            .collect::<Vec<_>>()
            .join(" ");
        sessions.push(Session {
            peer,
            established: state.starts_with("Established"),
            state,
            stale: false,
        });
    }
    Ok(sessions)
}

pub(super) fn routes(router: &Router) -> Result<Vec<Route>> {
    parse_routes(&birdc(router, &["show", "route", "all"])?)
}

pub(super) fn last_resorts(router: &Router) -> Result<Vec<Route>> {
    let (high, low) = (LLGR_STALE >> 16, LLGR_STALE & 0xffff);
    let mark = format!("({high},{low})");
    let words = ["show", "route", "all", "where", &mark, "~", "bgp_community"];
    parse_routes(&birdc(router, &words)?)
}

/// A destination begins in the first column; its further paths leave that column empty, and what is about a path is
/// indented by a tab.
fn parse_routes(text: &str) -> Result<Vec<Route>> {
    let mut routes: Vec<Route> = Vec::new();
    let mut prefix = None;
    for line in text.lines() {
        if let Some(attribute) = line.strip_prefix('\t') {
            if let Some(route) = routes.last_mut() {
                read_attribute(route, attribute)?;
            }
            continue;
        }
        let Some((column, path)) = line.split_once(' ') else {
            continue;
        };
        if ["BIRD ", "Table ", "Access restricted"]
            .iter()
            .any(|word| line.starts_with(word))
        {
            continue;
        }
        if !column.is_empty() {
            prefix = Some(
                column
                    .parse()
                    .with_context(|| format!("not a prefix: {line:?}"))?,
            );
        }
        let prefix = prefix.with_context(|| format!("a path before its destination: {line:?}"))?;
        routes.push(Route {
            prefix,
            next_hop: None,
            as_path: Vec::new(),
            local_pref: None,
            med: None,
            best: path.contains("] * ("),
            // "(100s)" is a preference of a stale path.
            stale: path
                .rsplit('(')
                .next()
                .is_some_and(|end| end.split(')').next().is_some_and(|p| p.ends_with('s'))),
        });
    }
    Ok(routes)
}

fn read_attribute(route: &mut Route, line: &str) -> Result<()> {
    let Some((name, value)) = line.split_once(": ") else {
        return Ok(());
    };
    match name {
        "BGP.as_path" => {
            let numbers = value
                .split(|c: char| !c.is_ascii_digit())
                .filter(|word| !word.is_empty());
            route.as_path = numbers.map(str::parse).collect::<Result<_, _>>()?;
        }
        // IPv6 paths may show a global and a link-local one.
        "BGP.next_hop" => {
            route.next_hop = value
                .split_whitespace()
                .next()
                .map(str::parse::<IpAddr>)
                .transpose()?;
        }
        "BGP.local_pref" => route.local_pref = Some(value.parse()?),
        "BGP.med" => route.med = Some(value.parse()?),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_as_birdc_2_0_12_prints_them() {
        let text = "BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     08:18:01.827  

peer0      BGP        ---        start  08:18:01.827  Active        Socket: Connection refused
  BGP state:          Active
    Neighbor address: 192.0.2.2
peer1      BGP        ---        up     08:18:02.703  Established   
  BGP state:          Established
    Neighbor address: fe80::1%eth0
    Neighbor graceful restart active
";
        let sessions = parse_sessions(text).expect("readable");
        let session = |peer: &str, established, state: &str, stale| Session {
            peer: peer.parse().expect("address"),
            established,
            state: state.into(),
            stale,
        };
        let expected = [
            session(
                "192.0.2.2",
                false,
                "Active Socket: Connection refused",
                false,
            ),
            session("fe80::1", true, "Established", true),
        ];
        assert_eq!(sessions, expected);
    }

    #[test]
    fn routes_are_read_as_birdc_2_0_12_prints_them() {
        let text = "BIRD 2.0.12 ready.
Access restricted
Table master4:
10.1.0.0/24          unreachable [own_ipv4 08:18:01.827] * (200)
\tType: static univ

Table master6:
fd00:3::/64          unicast [peer1 08:18:25.334 from 192.0.2.3] * (100) [AS65003?]
\tvia 2001:db8::3 on eth0
\tType: BGP univ
\tBGP.as_path: 65003
\tBGP.next_hop: 2001:db8::3 fe80::3
\tBGP.med: 7
\tBGP.local_pref: 100
                     unicast [peer0 08:18:25.372 from 192.0.2.2] (100s) [AS65003?]
\tBGP.as_path: 65002 {65003}
\tBGP.next_hop: 2001:db8::2
";
        let routes = parse_routes(text).expect("readable");
        let short: Vec<_> = routes
            .iter()
            .map(|r| {
                (
                    r.prefix.to_string(),
                    r.next_hop.map(|h| h.to_string()),
                    r.as_path.clone(),
                    r.best,
                    r.stale,
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("10.1.0.0/24".into(), None, vec![], true, false),
                (
                    "fd00:3::/64".into(),
                    Some("2001:db8::3".into()),
                    vec![65003],
                    true,
                    false
                ),
                (
                    "fd00:3::/64".into(),
                    Some("2001:db8::2".into()),
                    vec![65002, 65003],
                    false,
                    true
                ),
            ]
        );
        assert_eq!((routes[1].med, routes[1].local_pref), (Some(7), Some(100)));
    }
}
