//! `selvage why`: one flow, and the policies that decide about it.

use std::net::IpAddr;

use super::screen::Screen;
use super::{Failure, Outcome, OutputArgs, print};
use crate::api::{DirectionView, EndView, WhyQuestion, WhyView};
use crate::control::client::Client;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Who sends: namespace/pod or an address
    #[arg(value_name = "SRC")]
    source: String,
    /// Who receives: namespace/pod or an address, then :PORT or :PORT/PROTOCOL; without a port, a ping
    #[arg(value_name = "DST[:PORT[/PROTOCOL]]")]
    destination: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &Args) -> Outcome {
    let question = question(&args.source, &args.destination).map_err(|reason| {
        Failure::new(reason)
            .hint("as in `selvage why default/web default/db:5432/tcp`")
            .usage()
    })?;
    let answer: WhyView = client.post("/v1/why", &question).await?;
    print(args.output.output, &answer, |screen| {
        render(screen, &answer)
    })?;
    Ok(answer.allowed)
}

fn question(source: &str, destination: &str) -> Result<WhyQuestion, String> {
    let (destination, port, protocol) = split(destination)?;
    let protocol = protocol.unwrap_or(if port.is_some() { "tcp" } else { "icmp" });
    Ok(WhyQuestion {
        source: source.trim_start_matches('[').trim_end_matches(']').into(),
        destination: destination.into(),
        port,
        protocol: protocol.to_ascii_lowercase(),
    })
}

/// Destination, port, protocol. A bare IPv6 address has no port; with one it stands in brackets.
fn split(text: &str) -> Result<(&str, Option<u16>, Option<&str>), String> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, None, None));
    }
    let (head, tail) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return Ok((address, None, None)),
        Some((address, tail)) => (
            address,
            tail.strip_prefix(':')
                .ok_or(format!("`{tail}` is no port"))?,
        ),
        None => match text.rsplit_once(':') {
            Some(parts) => parts,
            None => return Ok((text, None, None)),
        },
    };
    let (port, protocol) = match tail.split_once('/') {
        Some((port, protocol)) => (port, Some(protocol)),
        None => (tail, None),
    };
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((head, Some(port), protocol)),
        _ => Err(format!("`{port}` is no port")),
    }
}

/// The flow, what each end says, and the sum.
pub fn render(screen: &Screen, answer: &WhyView) -> String {
    let verdict = if answer.allowed {
        screen.good("allowed")
    } else {
        screen.bad("denied")
    };
    let (source, destination) = (end(&answer.source), end(&answer.destination));
    let mut text = format!(
        "{} -> {} {}: {verdict}\n  out of {source}: {}\n  into {destination}: {}\n",
        screen.bold(&source),
        screen.bold(&destination),
        answer.service,
        direction(screen, &answer.egress),
        direction(screen, &answer.ingress),
    );
    for obstacle in &answer.obstacles {
        text.push_str(&format!("  on this node: {}\n", screen.bad(&obstacle.what)));
        if let Some(todo) = &obstacle.todo {
            text.push_str(&format!("    {todo}\n"));
        }
    }
    text
}

fn end(end: &EndView) -> String {
    match &end.identity {
        Some(identity) => format!("{identity} ({})", end.address),
        None => end.address.clone(),
    }
}

fn direction(screen: &Screen, direction: &DirectionView) -> String {
    let reason = if direction.allowed {
        direction.reason.clone()
    } else {
        screen.bad(&direction.reason)
    };
    match &direction.rule {
        Some(rule) => format!("{reason} ({rule})"),
        None => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (text, expected) in [
            ("default/web", Ok(("default/web", None, None))),
            ("default/web:80", Ok(("default/web", Some(80), None))),
            (
                "default/web:53/udp",
                Ok(("default/web", Some(53), Some("udp"))),
            ),
            ("10.0.0.1:80/tcp", Ok(("10.0.0.1", Some(80), Some("tcp")))),
            ("fd00::1", Ok(("fd00::1", None, None))),
            ("[fd00::1]:80", Ok(("fd00::1", Some(80), None))),
            ("[fd00::1]", Ok(("fd00::1", None, None))),
            ("default/web:http", Err("`http` is no port".to_owned())),
            ("default/web:0", Err("`0` is no port".to_owned())),
            ("[fd00::1]80", Err("`80` is no port".to_owned())),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }
}
