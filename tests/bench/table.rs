//! B3: a full table with realistic sharing of attributes, from one neighbour to one receiver; then all of it withdrawn.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use selvage_lab::Lab;
use selvage_tests::fleet::{self, Event, Fleet, Spec};

use crate::{
    daemon::{self, ADDRESS, Daemon, Role},
    report::Figures,
    scrape::Scrapes,
};

const SENDER: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 0, 1, 1), 65001);
const RECEIVER: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 0, 1, 2), 65002);

pub(crate) fn run(lab: &Lab, daemon: Daemon, routes: usize, run: usize) -> Result<Figures> {
    let name = format!("b3-{daemon}-{run}").to_lowercase();
    let netns = daemon::netns(lab, &name)?;
    let running = daemon.start(&netns, &name, Role::Transit(&[SENDER, RECEIVER]))?;
    let (announce, withdraw) = messages(routes);
    let scrapes = (daemon == Daemon::Selvage).then(|| Scrapes::start(&netns));
    let (full, sent, gone) = netns.run(|| transfer(&announce, &withdraw, routes))?;
    let scrapes = scrapes.map(Scrapes::stop).transpose()?;
    let mut figures = vec![
        ("full table, s", full.as_secs_f64()),
        ("sender done, s", sent.as_secs_f64()),
    ];
    figures.extend(running.usage()?);
    figures.push(("withdrawn, s", gone.as_secs_f64()));
    figures.extend(scrapes.into_iter().flatten());
    Ok(figures)
}

fn transfer(
    announce: &[Bytes],
    withdraw: &[Bytes],
    routes: usize,
) -> Result<(Duration, Duration, Duration)> {
    let specs = [SENDER, RECEIVER].map(|(address, asn)| Spec::new(address, asn));
    let mut fleet = Fleet::connect(SocketAddrV4::new(ADDRESS, 179), specs.into())?;
    let mut up = 0;
    fleet.drive(
        Duration::from_secs(30),
        "both sessions are up",
        |_, event| {
            up += usize::from(matches!(event, Event::Established));
            up == 2
        },
    )?;
    // FRR 8.4 may take a quick UPDATE before it has taken the KEEPALIVE in front of it, and ends the session.
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    let mut sent = Duration::ZERO;
    let mut held = 0;
    fleet.send(0, announce);
    let full = fleet.drive(
        Duration::from_secs(90),
        "the receiver holds all",
        |i, event| {
            match event {
                Event::Drained if i == 0 && sent.is_zero() => sent = begin.elapsed(),
                Event::Update { announced, .. } if i == 1 => {
                    held += fleet::prefixes(announced).count()
                }
                _ => {}
            }
            held >= routes
        },
    )?;
    fleet.send(0, withdraw);
    let mut gone = 0;
    let took = fleet.drive(
        Duration::from_secs(90),
        "the receiver holds none",
        |i, event| {
            if let Event::Update { withdrawn, .. } = event
                && i == 1
            {
                gone += fleet::prefixes(withdrawn).count();
            }
            gone >= routes
        },
    )?;
    anyhow::ensure!(fleet.retries == 0, "{} sessions were lost", fleet.retries);
    Ok((full, sent, took))
}

/// Prefixes as in the Internet: mostly /24, the rest /16 to /23, about six to an attribute set, paths of two to six.
fn messages(routes: usize) -> (Vec<Bytes>, Vec<Bytes>) {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let mut announce = Vec::new();
    let mut all = Vec::with_capacity(routes);
    // Prefixes of each length count up from a place of their own, so that none repeats: /24 in 20/8, /20 to /23 further up.
    let mut next = [64u32, 48, 40, 32, 20].map(|first| first << 24);
    while all.len() < routes {
        let path: Vec<u32> = std::iter::once(SENDER.1)
            .chain((0..1 + random(5)).map(|_| 1000 + random(60_000) as u32))
            .collect();
        let communities: Vec<u8> = (0..random(4))
            .flat_map(|_| (random(1 << 32) as u32).to_be_bytes())
            .collect();
        let mut extra = Vec::new();
        if !communities.is_empty() {
            extra.extend([0xc0, 8, communities.len() as u8]);
            extra.extend(&communities);
        }
        let attributes = fleet::attributes(&path, SENDER.0, false, &extra);
        let count = (1 + random(11) as usize).min(routes - all.len());
        let set: Vec<(u32, u8)> = (0..count)
            .map(|_| {
                let length = if random(10) < 6 {
                    24
                } else {
                    20 + random(4) as u8
                };
                let prefix = &mut next[usize::from(length) - 20];
                *prefix += 1 << (32 - length);
                (*prefix, length)
            })
            .collect();
        announce.push(fleet::announce(&attributes, set.iter().copied()));
        all.extend(set);
    }
    let withdraw = all
        .chunks(800)
        .map(|c| fleet::withdraw(c.iter().copied()))
        .collect();
    (announce, withdraw)
}
