//! A drawing of the topology: a rail per network, routers above it, nodes with their pods below.
//!
//! ```text
//!          ┌─────────────────────────┐
//!          │ tor                     │
//!          └────────────┬────────────┘
//!   rack ═══════╤═══════╧═══════╤═════  192.0.2.0/24
//!         ┌─────┴─────┐   ┌─────┴─────┐
//!         │ n1        │   │ n2        │
//!         └───────────┘   └───────────┘
//! ```

use selvage_lab::Cluster;

use super::terminal::{Look, Terminal};

/// One line in a box.
struct Text(Look, String);

/// A member of a network.
struct Card {
    lines: Vec<Text>,
}

/// Columns between two boxes, and before the first.
const GAP: usize = 2;
const MARGIN: usize = 2;

impl Card {
    /// Columns with its border.
    fn width(&self) -> usize {
        self.lines
            .iter()
            .map(|Text(_, text)| text.chars().count())
            .max()
            .unwrap_or(0)
            + 4
    }
}

pub fn show(terminal: &Terminal, cluster: &Cluster) {
    println!();
    for network in &cluster.topology().networks {
        let name = &network.name.value;
        let routers = cluster.topology().routers.iter();
        let above: Vec<Card> = routers
            .filter(|router| {
                router
                    .networks
                    .first()
                    .is_some_and(|first| first.value == *name)
            })
            .map(|router| router_card(cluster, &router.name.value, router))
            .collect();
        let nodes = cluster.topology().nodes.iter();
        let below: Vec<Card> = nodes
            .filter(|node| {
                node.networks
                    .first()
                    .is_some_and(|first| first.value == *name)
            })
            .map(|node| node_card(cluster, &node.name.value))
            .collect();
        let cidrs: Vec<String> = network.cidrs.iter().map(ToString::to_string).collect();
        for line in draw(terminal, name, &cidrs.join("  "), &above, &below) {
            println!("{line}");
        }
        let guests = guests(cluster, name);
        if !guests.is_empty() {
            println!(
                "  {}",
                terminal.paint(Look::Dim, &format!("also on {name}: {}", guests.join(", ")))
            );
        }
    }
}

fn router_card(cluster: &Cluster, name: &str, router: &selvage_lab::topology::Router) -> Card {
    let daemon = match router.daemon.kind() {
        Some(kind) => kind.to_string(),
        None => "Selvage".to_owned(),
    };
    let mut lines = vec![
        Text(Look::Name, name.to_owned()),
        Text(Look::Plain, format!("{daemon}, AS {}", router.asn)),
    ];
    lines.extend(
        cluster
            .addresses(name)
            .iter()
            .map(|address| Text(Look::Dim, address.to_string())),
    );
    Card { lines }
}

fn node_card(cluster: &Cluster, name: &str) -> Card {
    let mut lines = vec![
        Text(Look::Name, name.to_owned()),
        Text(Look::Plain, format!("Selvage, AS {}", cluster.asn())),
    ];
    lines.extend(
        cluster
            .addresses(name)
            .iter()
            .map(|address| Text(Look::Dim, address.to_string())),
    );
    for pod in cluster
        .topology()
        .pods
        .iter()
        .filter(|pod| pod.node.value == name)
    {
        let ports: String = pod.ports.iter().map(|port| format!(" :{port}")).collect();
        lines.push(Text(Look::Good, format!("● {}{ports}", pod.key())));
        let addresses = cluster.addresses(&pod.key());
        lines.extend(
            addresses
                .iter()
                .map(|address| Text(Look::Dim, format!("  {address}"))),
        );
    }
    Card { lines }
}

/// Members whose first network is another one.
fn guests(cluster: &Cluster, network: &str) -> Vec<String> {
    let topology = cluster.topology();
    let routers = topology
        .routers
        .iter()
        .map(|router| (&router.name.value, &router.networks));
    let nodes = topology
        .nodes
        .iter()
        .map(|node| (&node.name.value, &node.networks));
    let others = routers
        .chain(nodes)
        .filter(|(_, networks)| networks.iter().skip(1).any(|n| n.value == network));
    let describe = |name: &String| match cluster.link(&format!("{network}/{name}")) {
        Ok(link) => format!(
            "{name} {}",
            link.addresses()
                .first()
                .map(|a| a.addr().to_string())
                .unwrap_or_default()
        ),
        Err(_) => name.clone(),
    };
    others.map(|(name, _)| describe(name)).collect()
}

fn draw(
    terminal: &Terminal,
    name: &str,
    cidrs: &str,
    above: &[Card],
    below: &[Card],
) -> Vec<String> {
    let label = name.chars().count() + 1;
    let indent = MARGIN + label + 1;
    let mut rows = rows(below, terminal.width.saturating_sub(indent));
    if rows.is_empty() {
        rows.push(&[]);
    }
    let mut lines = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let above = if number == 0 { above } else { &[] };
        let span = span(row).max(span(above));
        // The routers are centred above the nodes, and the reverse.
        let (up, down) = (
            centres(above, indent + (span - self::span(above)) / 2),
            centres(row, indent + (span - self::span(row)) / 2),
        );
        lines.extend(boxes(terminal, above, &up, Side::Bottom));
        let mut rail: Vec<char> = vec!['═'; span + 2];
        for (centre, both) in up
            .iter()
            .map(|c| (c, '╧'))
            .chain(down.iter().map(|c| (c, '╤')))
        {
            if let Some(place) = rail.get_mut(centre - (indent - 1)) {
                *place = if *place == '═' { both } else { '╪' };
            }
        }
        let rail: String = rail.into_iter().collect();
        let label = terminal.paint(Look::Bold, name);
        let cidrs = if number == 0 {
            terminal.paint(Look::Dim, cidrs)
        } else {
            String::new()
        };
        lines.push(format!("{:MARGIN$}{label} {rail}", ""));
        lines.extend(boxes(terminal, row, &down, Side::Top));
        if number + 1 == rows.len() || number == 0 {
            // Below the boxes the line stays short enough for any terminal.
            lines.push(format!("{:indent$}{cidrs}", "").trim_end().to_owned());
        }
    }
    lines
}

/// Splits boxes into rows that fit.
fn rows(cards: &[Card], width: usize) -> Vec<&[Card]> {
    let mut rows = Vec::new();
    let mut start = 0;
    for end in 1..=cards.len() {
        let is_last = end == cards.len();
        if is_last || span(&cards[start..=end]) > width {
            rows.push(&cards[start..end]);
            start = end;
        }
    }
    rows
}

/// Columns of a row of boxes.
fn span(cards: &[Card]) -> usize {
    cards
        .iter()
        .map(|card| card.width() + GAP)
        .sum::<usize>()
        .saturating_sub(GAP)
}

/// The column of the middle of each box when the first begins at `start`.
fn centres(cards: &[Card], start: usize) -> Vec<usize> {
    let mut column = start;
    let mut centres = Vec::new();
    for card in cards {
        centres.push(column + card.width() / 2);
        column += card.width() + GAP;
    }
    centres
}

/// Where a box is tied to the rail.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Top,
    Bottom,
}

fn boxes(terminal: &Terminal, cards: &[Card], centres: &[usize], tie: Side) -> Vec<String> {
    let Some(height) = cards.iter().map(|card| card.lines.len()).max() else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for number in 0..height + 2 {
        let mut line = String::new();
        let mut column = 0;
        for (card, centre) in cards.iter().zip(centres) {
            let start = centre - card.width() / 2;
            line.push_str(&" ".repeat(start - column));
            column = start + card.width();
            let inner = card.width() - 4;
            match number {
                0 => line.push_str(&border(
                    card.width(),
                    '┌',
                    '┐',
                    (tie == Side::Top).then_some('┴'),
                )),
                n if n == height + 1 => {
                    line.push_str(&border(
                        card.width(),
                        '└',
                        '┘',
                        (tie == Side::Bottom).then_some('┬'),
                    ));
                }
                n => {
                    let (look, text) = card
                        .lines
                        .get(n - 1)
                        .map_or((Look::Plain, ""), |Text(look, text)| (*look, text));
                    line.push_str(&format!(
                        "│ {} │",
                        terminal.paint(look, &format!("{text:<inner$}"))
                    ));
                }
            }
        }
        lines.push(line);
    }
    lines
}

fn border(width: usize, left: char, right: char, tie: Option<char>) -> String {
    let mut line: Vec<char> = vec!['─'; width];
    line[0] = left;
    line[width - 1] = right;
    if let Some(tie) = tie {
        line[width / 2] = tie;
    }
    line.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(text: &str) -> Card {
        Card {
            lines: vec![Text(Look::Name, text.to_owned())],
        }
    }

    #[test]
    fn a_rack_is_drawn() {
        let mut terminal = Terminal::new(true);
        terminal.width = 80;
        let lines = draw(
            &terminal,
            "rack",
            "192.0.2.0/24",
            &[card("tor")],
            &[card("n1"), card("n2")],
        );
        let wanted = "
           ┌─────┐
           │ tor │
           └──┬──┘
  rack ════╤══╧════╤═══
        ┌──┴─┐  ┌──┴─┐
        │ n1 │  │ n2 │
        └────┘  └────┘
        192.0.2.0/24";
        assert_eq!(lines.join("\n"), wanted.trim_start_matches('\n'));
    }

    #[test]
    fn boxes_that_do_not_fit_go_to_the_next_row() {
        let cards: Vec<Card> = (0..5).map(|_| card("node")).collect();
        assert_eq!(
            rows(&cards, 30)
                .iter()
                .map(|row| row.len())
                .collect::<Vec<_>>(),
            [3, 2]
        );
        assert_eq!(rows(&cards, 1).len(), 5);
        assert!(rows(&[], 30).is_empty());
    }
}
