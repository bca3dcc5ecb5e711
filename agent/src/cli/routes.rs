//! `selvage routes`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::screen::Screen;
use super::{Failure, Outcome, Output, OutputArgs, print, say};
use crate::api::{RoutePage, RouteQuestion, RouteView};
use crate::control::client::Client;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// A prefix, or an address: then the routes that hold it
    prefix: Option<String>,
    /// Only what this neighbour sent
    #[arg(long, value_name = "PEER", conflicts_with = "advertised")]
    received: Option<IpAddr>,
    /// Only what is announced to this neighbour
    #[arg(long, value_name = "PEER")]
    advertised: Option<IpAddr>,
    /// Only the best path of each prefix
    #[arg(long)]
    best: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &Args) -> Outcome {
    if let Some(text) = &args.prefix
        && text.parse::<IpNet>().is_err()
        && text.parse::<IpAddr>().is_err()
    {
        return Err(
            Failure::new(format!("`{text}` is neither a prefix nor an address"))
                .hint("write a prefix such as 10.244.1.0/24, or an address")
                .usage(),
        );
    }
    let mut question = RouteQuestion {
        prefix: args.prefix.clone(),
        received: args.received,
        advertised: args.advertised,
        ..RouteQuestion::default()
    };
    let mut rows: Vec<RouteView> = Vec::new();
    loop {
        let page: RoutePage = client.post("/v1/routes", &question).await?;
        rows.extend(page.rows);
        match page.next {
            Some(next) => question.after = Some(next),
            None => break,
        }
    }
    if args.best {
        for row in &mut rows {
            row.paths.retain(|path| path.best);
        }
        rows.retain(|row| !row.paths.is_empty());
    }
    sort(&mut rows);
    let found = !rows.is_empty();
    if !found && args.output.output == Output::Text {
        say(&absent(args))?;
    } else {
        print(args.output.output, &rows, |screen| table(screen, &rows))?;
    }
    Ok(found || args.prefix.is_none())
}

fn absent(args: &Args) -> String {
    match &args.prefix {
        Some(prefix) => format!("No route to {prefix}.\n"),
        None => "No routes.\n".into(),
    }
}

/// By address and length, IPv4 first; pages come in no order.
pub fn sort(rows: &mut [RouteView]) {
    rows.sort_by_cached_key(|row| (row.prefix.parse::<IpNet>().ok(), row.prefix.clone()));
}

/// One line per path: `>` the best one, `=` used beside it, `s` stale.
pub fn table(screen: &Screen, rows: &[RouteView]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        for (i, path) in row.paths.iter().enumerate() {
            let mark = match (path.best, path.multipath) {
                (true, _) => screen.good(">"),
                (false, true) => screen.good("="),
                (false, false) => " ".into(),
            };
            let stale = if path.stale {
                screen.warn("s")
            } else {
                String::new()
            };
            let first = i == 0;
            let kernel = row.kernel.as_deref().filter(|_| first).unwrap_or_default();
            lines.push([
                format!("{mark}{stale}"),
                if first {
                    row.prefix.clone()
                } else {
                    String::new()
                },
                if path.next_hops.is_empty() {
                    "local".into()
                } else {
                    path.next_hops.join(", ")
                },
                path.peer
                    .map_or_else(|| "-".into(), |peer| peer.to_string()),
                if path.as_path.is_empty() {
                    "-".into()
                } else {
                    path.as_path.clone()
                },
                path.local_pref
                    .map_or_else(|| "-".into(), |preference| preference.to_string()),
                if kernel == "installed" || kernel.is_empty() {
                    kernel.to_owned()
                } else {
                    screen.bad(kernel)
                },
                path.reason.clone(),
            ]);
        }
    }
    let headings = [
        "",
        "PREFIX",
        "NEXT HOP",
        "FROM",
        "AS PATH",
        "PREF",
        "KERNEL",
        "DECIDED BY",
    ];
    // Of large tables the daemon does not say what the kernel has.
    if rows.iter().all(|row| row.kernel.is_none()) {
        let lines: Vec<_> = lines.into_iter().map(without_kernel).collect();
        return screen.table(without_kernel(headings), &lines);
    }
    screen.table(headings, &lines)
}

fn without_kernel<T>([mark, prefix, hop, from, path, pref, _, decided]: [T; 8]) -> [T; 7] {
    [mark, prefix, hop, from, path, pref, decided]
}
