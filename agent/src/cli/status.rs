//! `selvage status`: one screen.

use std::fmt::Write;

use super::screen::{Screen, age};
use super::{Failure, Outcome, Output, OutputArgs, peers, print, say};
use crate::api::{Health, StatusView};
use crate::control::client::Client;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Follow
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &Args) -> Outcome {
    if args.watch {
        return follow(client, args.output.output).await;
    }
    let status: StatusView = client.get("/v1/status").await?;
    print(args.output.output, &status, |screen| {
        render(screen, &status)
    })?;
    Ok(status.health != Health::Starting)
}

async fn follow(client: &Client, output: Output) -> Outcome {
    let mut failure: Option<Failure> = None;
    let each = |status: StatusView| {
        let shown = match output {
            Output::Json => match serde_json::to_string(&status) {
                Ok(line) => say(&(line + "\n")),
                Err(error) => Err(Failure::new(error)),
            },
            Output::Yaml => say("---\n").and_then(|()| print(output, &status, |_| String::new())),
            Output::Text => print(output, &status, |screen| {
                // On a terminal the screen is replaced, elsewhere the views follow each other.
                let clear = if screen.coloured() {
                    "\x1b[H\x1b[2J"
                } else {
                    ""
                };
                format!("{clear}{}\n", render(screen, &status))
            }),
        };
        failure = shown.err();
        failure.is_none()
    };
    client.follow("/v1/status/watch", each).await?;
    failure.map_or(Ok(true), Err)
}

/// Everything on one screen, what is wrong last, where the eye stops.
pub fn render(screen: &Screen, status: &StatusView) -> String {
    let mut text = String::new();
    let health = match status.health {
        Health::Good => screen.good("good"),
        Health::Degraded => screen.warn("degraded"),
        Health::Starting => screen.warn("starting"),
    };
    let _ = writeln!(
        text,
        "{} {health}, up {}, version {}, process {}",
        screen.bold(&format!("Node {}:", status.node)),
        age(status.uptime),
        status.version,
        status.pid
    );
    let ready = if status.ready.ready {
        screen.good("yes")
    } else {
        screen.warn("not yet")
    };
    let missing = match status.ready.missing.as_slice() {
        [] => String::new(),
        missing => format!(" ({})", missing.join("; ")),
    };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<9} {value}");
    };
    line("ready", format!("{ready}{missing}"));
    line("features", status.features.join(", "));
    line("objects", source(status));
    if let Some(bgp) = &status.bgp {
        let up = bgp.peers.iter().filter(|peer| peer.up).count();
        let networks = match bgp.networks.as_slice() {
            [] => "nothing".into(),
            networks => networks.join(", "),
        };
        let sessions = format!("{up} of {} sessions up", bgp.peers.len());
        let sessions = if up == bgp.peers.len() {
            screen.good(&sessions)
        } else {
            screen.warn(&sessions)
        };
        line(
            "bgp",
            format!(
                "AS {}, identifier {}, {sessions}, announcing {networks}",
                bgp.asn, bgp.router_id
            ),
        );
    }
    if let Some(bgp) = status
        .bgp
        .as_ref()
        .filter(|bgp| bgp.unknown_connections > 0)
    {
        let last = bgp.unknown_sources.iter().take(3);
        let last: Vec<String> = last
            .map(|source| format!("{} ({} ago)", source.address, age(source.since)))
            .collect();
        let connections = usize::try_from(bgp.unknown_connections).unwrap_or(usize::MAX);
        let connections = counted(connections, "connection", "connections");
        line(
            "unknown",
            format!(
                "{connections} from addresses that no BGPPeer has, last {}",
                last.join(", ")
            ),
        );
    }
    if let Some(routes) = &status.routes {
        let mut value = format!("{} IPv4, {} IPv6 in the kernel", routes.ipv4, routes.ipv6);
        if routes.unresolved + routes.failed > 0 {
            value += &screen.bad(&format!(
                ", {} unresolved, {} failed",
                routes.unresolved, routes.failed
            ));
        }
        line("routes", value);
    }
    if let Some(policy) = &status.policy {
        let generation = if policy.enforced >= policy.planned {
            screen.good(&format!("in the kernel (generation {})", policy.enforced))
        } else {
            screen.warn(&format!(
                "generation {} of {} in the kernel",
                policy.enforced, policy.planned
            ))
        };
        let policies = counted(policy.policies, "policy", "policies");
        let mut pods = format!(
            "{policies}, {}",
            counted(policy.local_pods, "local pod", "local pods")
        );
        if !policy.pod_interfaces.is_empty() {
            pods += &format!(" behind {}", policy.pod_interfaces.join(", "));
        }
        if policy.unrouted > 0 {
            pods += &screen.bad(&format!(" and {} elsewhere", policy.unrouted));
        }
        line("policy", format!("{pods}, {generation}"));
    }
    if let Some(bgp) = status.bgp.as_ref().filter(|bgp| !bgp.peers.is_empty()) {
        let _ = write!(text, "\n{}", peers::table(screen, &bgp.peers));
    }
    if !status.wrong.is_empty() {
        let _ = writeln!(text, "\n{}", screen.bad("What is wrong:"));
        for finding in &status.wrong {
            let _ = writeln!(text, "  - {}", finding.what);
            if let Some(todo) = &finding.todo {
                let _ = writeln!(text, "    {}", screen.dim(todo));
            }
        }
    }
    text
}

fn source(status: &StatusView) -> String {
    let source = &status.source;
    let counts = source.objects.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<String> = counts
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let synced = if source.synced { "" } else { ", still reading" };
    let held = if counts.is_empty() {
        "none".into()
    } else {
        counts.join(", ")
    };
    format!("{held} (from {}{synced})", source.from)
}

/// `1 policy`, `2 policies`.
fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
