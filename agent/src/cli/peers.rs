//! `selvage peers`.

use std::net::IpAddr;

use super::screen::{Screen, age};
use super::{Outcome, OutputArgs, print};
use crate::api::{PeerQuestion, PeerView};
use crate::control::client::Client;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// This neighbour only, in detail
    address: Option<IpAddr>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &Args) -> Outcome {
    let question = PeerQuestion {
        address: args.address,
    };
    let peers: Vec<PeerView> = client.post("/v1/peers", &question).await?;
    print(args.output.output, &peers, |screen| match args.address {
        None => table(screen, &peers),
        Some(_) => peers.iter().map(|peer| detail(screen, peer)).collect(),
    })?;
    Ok(true)
}

/// One line per neighbour.
pub fn table(screen: &Screen, peers: &[PeerView]) -> String {
    if peers.is_empty() {
        return "No neighbours.\n".into();
    }
    let rows: Vec<[String; 7]> = peers
        .iter()
        .map(|peer| {
            let note = match &peer.last_error {
                Some(error) if !peer.up => error.clone(),
                _ if peer.stale => "routes kept as stale".into(),
                _ => peer.description.clone(),
            };
            [
                peer.address.to_string(),
                peer.asn.clone(),
                state(screen, peer),
                age(peer.since),
                pair(peer.up, peer.received),
                pair(peer.up, peer.advertised),
                if note.is_empty() {
                    peer.origin.clone()
                } else {
                    format!("{}: {note}", peer.origin)
                },
            ]
        })
        .collect();
    screen.table(
        [
            "NEIGHBOUR",
            "ASN",
            "STATE",
            "SINCE",
            "RECEIVED",
            "ADVERTISED",
            "FROM",
        ],
        &rows,
    )
}

fn state(screen: &Screen, peer: &PeerView) -> String {
    match peer.state.as_str() {
        state if peer.up => screen.good(state),
        "Idle" => screen.bad("Idle"),
        state => screen.warn(state),
    }
}

/// IPv4 and IPv6 beside each other.
fn pair(up: bool, [v4, v6]: [u64; 2]) -> String {
    if up { format!("{v4}+{v6}") } else { "-".into() }
}

/// All about one neighbour.
pub fn detail(screen: &Screen, peer: &PeerView) -> String {
    let or_none = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let [received4, received6] = peer.received;
    let [advertised4, advertised6] = peer.advertised;
    let mut lines = vec![
        (
            "state",
            format!(
                "{} for {}, Established {}",
                state(screen, peer),
                age(peer.since),
                times(peer.established)
            ),
        ),
        ("configured by", peer.origin.clone()),
        ("ASN", peer.asn.clone()),
        (
            "identifier",
            or_none(peer.router_id.as_deref().unwrap_or_default()),
        ),
        ("families", or_none(&peer.families.join(", "))),
        ("hold time", format!("{}s", peer.hold)),
        (
            "received",
            format!("{received4} IPv4, {received6} IPv6 prefixes"),
        ),
        (
            "advertised",
            format!("{advertised4} IPv4, {advertised6} IPv6 prefixes"),
        ),
        (
            "End-of-RIB",
            if peer.end_of_rib {
                "received".into()
            } else {
                "not yet".to_owned()
            },
        ),
    ];
    if !peer.next_session.is_empty() {
        lines.push((
            "next session",
            screen.warn(&format!(
                "{}: changed since this session began",
                peer.next_session.join(", ")
            )),
        ));
    }
    for unused in &peer.unused_families {
        lines.push((
            "not in use",
            screen.warn(&format!("{}: {}", unused.family, unused.reason)),
        ));
    }
    for stale in &peer.stale_families {
        let how = match stale.long_lived {
            true => "kept as a last resort (RFC 9494)",
            false => "routes of an earlier session are kept",
        };
        let left = age(stale.remaining);
        lines.push((
            "stale",
            screen.warn(&format!("{}: {how}, for {left} at most", stale.family)),
        ));
    }
    for count in &peer.faults {
        lines.push((
            "survived",
            screen.warn(&format!(
                "{} in {}, {} prefixes",
                fault_kind(&count.kind),
                messages(count.messages),
                count.prefixes
            )),
        ));
    }
    if let Some(fault) = &peer.last_fault {
        lines.push((
            "last fault",
            screen.warn(&format!("{} ({} ago)", fault.text, age(fault.since))),
        ));
    }
    if let Some(error) = &peer.last_error {
        lines.push(("last error", screen.bad(error)));
    }
    if let Some(hint) = &peer.hint {
        lines.push(("what to do", hint.clone()));
    }
    if !peer.description.is_empty() {
        lines.push(("description", peer.description.clone()));
    }
    let mut text = format!("{}\n", screen.bold(&format!("Neighbour {}", peer.address)));
    for (name, value) in lines {
        text.push_str(&format!("  {name:<14} {value}\n"));
    }
    text
}

/// A kind of fault in words.
fn fault_kind(kind: &str) -> &str {
    match kind {
        "treatAsWithdraw" => "routes treated as withdrawn",
        "attributeDiscard" => "attributes left out",
        "openRefused" => "OPEN refused",
        "unusableNextHop" => "next hop unusable",
        other => other,
    }
}

fn messages(number: u64) -> String {
    format!("{number} message{}", if number == 1 { "" } else { "s" })
}

/// `once`, `3 times`.
fn times(number: u64) -> String {
    match number {
        0 => "never".into(),
        1 => "once".into(),
        n => format!("{n} times"),
    }
}
