//! B1: many clients of a reflector start at once; until the last one holds the routes of all others. Then one route changes.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::Result;
use selvage_lab::Lab;
use selvage_tests::fleet::{self, Event, Fleet, Spec};

use crate::{
    daemon::{self, ADDRESS, Daemon, Role},
    report::Figures,
};

fn client(i: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + 2 + i as u32)
}

/// The pod CIDR of a client: a /24 of 100.64.0.0/10 and beyond.
fn pod_cidr(i: usize) -> (u32, u8) {
    (
        u32::from(Ipv4Addr::new(100, 64, 0, 0)) + ((i as u32) << 8),
        24,
    )
}

fn index(prefix: (u32, u8)) -> Option<usize> {
    let base = u32::from(Ipv4Addr::new(100, 64, 0, 0));
    (prefix.1 == 24).then(|| prefix.0.checked_sub(base).map(|n| (n >> 8) as usize))?
}

pub(crate) fn run(lab: &Lab, daemon: Daemon, clients: usize, run: usize) -> Result<Figures> {
    let name = format!("b1-{clients}-{daemon}-{run}").to_lowercase();
    let netns = daemon::netns(lab, &name)?;
    let running = daemon.start(&netns, &name, Role::Reflector)?;
    let specs: Vec<Spec> = (0..clients)
        .map(|i| {
            let attributes = fleet::attributes(&[], client(i), true, &[]);
            let announce = vec![fleet::announce(&attributes, [pod_cidr(i)].into_iter())];
            Spec {
                announce,
                ..Spec::new(client(i), daemon::ASN)
            }
        })
        .collect();
    let (took, mark, retries) = netns.run(|| storm(specs))?;
    let mut figures = vec![("all hold all, s", took.as_secs_f64())];
    figures.extend(running.usage()?);
    figures.push(("one change, ms", mark.as_secs_f64() * 1e3));
    figures.push(("retries", retries as f64));
    Ok(figures)
}

fn storm(specs: Vec<Spec>) -> Result<(Duration, Duration, usize)> {
    let clients = specs.len();
    let words = clients.div_ceil(64);
    let mut held = vec![0u64; clients * words];
    let mut missing = clients * (clients - 1);
    let begin = std::time::Instant::now();
    let mut fleet = Fleet::connect(SocketAddrV4::new(ADDRESS, 179), specs)?;
    fleet.drive(
        Duration::from_secs(40),
        "every client holds the routes of all others",
        |i, event| {
            if let Event::Update {
                withdrawn,
                announced,
                ..
            } = event
            {
                for j in fleet::prefixes(announced)
                    .filter_map(index)
                    .filter(|j| *j != i && *j < clients)
                {
                    let (word, bit) = (i * words + j / 64, 1 << (j % 64));
                    missing -= usize::from(held[word] & bit == 0);
                    held[word] |= bit;
                }
                for j in fleet::prefixes(withdrawn)
                    .filter_map(index)
                    .filter(|j| *j != i && *j < clients)
                {
                    let (word, bit) = (i * words + j / 64, 1 << (j % 64));
                    missing += usize::from(held[word] & bit != 0);
                    held[word] &= !bit;
                }
            }
            missing == 0
        },
    )?;
    let took = begin.elapsed();
    // The first client changes its route: another MED.
    let attributes = fleet::attributes(&[], client(0), true, &[0x80, 4, 4, 0, 0, 0, 7]);
    fleet.send(
        0,
        &[fleet::announce(&attributes, [pod_cidr(0)].into_iter())],
    );
    let mut seen = vec![false; clients];
    let mut left = clients - 1;
    let mark = fleet.drive(
        Duration::from_secs(10),
        "every client has the change",
        |i, event| {
            if let Event::Update { announced, .. } = event
                && i != 0
                && !seen[i]
                && fleet::prefixes(announced).any(|p| p == pod_cidr(0))
            {
                seen[i] = true;
                left -= 1;
            }
            left == 0
        },
    )?;
    Ok((took, mark, fleet.retries))
}
