//! B6: routes from an internal neighbour into the kernel's table; the next hop of all of them changes; all withdrawn.
//! Seen by a listener to the kernel's own notifications and, in the end, by a dump.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use selvage_lab::Lab;
use selvage_netlink::{
    Monitor, Prefix, Protocol, RouteEvent, Socket,
    addr::{self, Address},
    link::{self, VethEnd},
    monitor::Group,
    nexthop, route,
};
use selvage_tests::fleet::{self, Event, Fleet, Spec};

use crate::{
    daemon::{self, ADDRESS, Daemon, Role},
    report::Figures,
};

const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// On the link: our end, and two gateways.
const LINK: [Ipv4Addr; 3] = [
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(192, 0, 2, 2),
    Ipv4Addr::new(192, 0, 2, 3),
];

pub(crate) fn run(lab: &Lab, daemon: Daemon, routes: usize, run: usize) -> Result<Figures> {
    let name = format!("b6-{daemon}-{run}").to_lowercase();
    let netns = daemon::netns(lab, &name)?;
    netns.run(make_link)?;
    // Where routes share nexthop objects, the kernel need not tell of each route when one of those changes.
    netns.set_sysctl("net/ipv4/nexthop_compat_mode", "0")?;
    let running = daemon.start(&netns, &name, Role::Node(&[NEIGHBOUR]))?;
    let [add, other, gone] = netns.run(|| phases(routes))?;
    let mut figures = vec![
        ("in the FIB, s", add.as_secs_f64()),
        ("other next hop, s", other.as_secs_f64()),
        ("withdrawn, s", gone.as_secs_f64()),
    ];
    figures.extend(running.usage()?);
    Ok(figures)
}

fn make_link() -> Result<()> {
    let mut socket = Socket::open(Protocol::Route)?;
    let end = |name| VethEnd {
        name,
        ..VethEnd::default()
    };
    socket.apply(|batch| link::add_veth(batch, &end("v0"), &end("v1")))?;
    let ours = link::get_by_name(&mut socket, "v0")?.index;
    let peer = link::get_by_name(&mut socket, "v1")?.index;
    socket.apply(|batch| link::set_up(batch, ours, true))?;
    socket.apply(|batch| link::set_up(batch, peer, true))?;
    socket.apply(|batch| addr::add(batch, &Address::new(ours, Prefix::new(LINK[0].into(), 24))))?;
    Ok(())
}

/// Which of the routes is meant, by its destination.
fn number(prefix: (u32, u8)) -> u32 {
    (prefix.0 >> 8).wrapping_sub(20 << 16)
}

fn prefix(i: usize) -> (u32, u8) {
    ((20 << 24) + ((i as u32) << 8), 24)
}

fn phases(routes: usize) -> Result<[Duration; 3]> {
    let mut monitor = Monitor::open(&[Group::Ipv4Route])?;
    let stop = Arc::new(AtomicBool::new(false));
    let (added, deleted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = (stop.clone(), added.clone(), deleted.clone());
    let ours = move |r: &route::Route| {
        let IpAddr::V4(a) = r.prefix.addr else {
            return false;
        };
        (number((a.into(), r.prefix.len)) as usize) < routes
    };
    let watcher = thread::spawn(move || -> Result<()> {
        monitor.socket().set_receive_buffer(256 << 20)?;
        while !seen.0.load(Ordering::Relaxed) {
            // Nobody waits in the kernel for these: the daemon under test shall not pay for waking us.
            thread::sleep(Duration::from_millis(1));
            monitor.receive(usize::MAX, |event, _| match event {
                RouteEvent::Route(r) if ours(&r) => _ = seen.1.fetch_add(1, Ordering::Relaxed),
                RouteEvent::RouteGone(r) if ours(&r) => _ = seen.2.fetch_add(1, Ordering::Relaxed),
                _ => {}
            })?;
        }
        Ok(())
    });
    let result = run_phases(routes, &added, &deleted);
    stop.store(true, Ordering::Relaxed);
    watcher
        .join()
        .map_err(|_| anyhow::anyhow!("the watcher died"))??;
    result
}

fn run_phases(routes: usize, added: &AtomicUsize, deleted: &AtomicUsize) -> Result<[Duration; 3]> {
    let spec = Spec::new(NEIGHBOUR, daemon::ASN);
    let mut fleet = Fleet::connect(SocketAddrV4::new(ADDRESS, 179), vec![spec])?;
    fleet.drive(Duration::from_secs(30), "the session is up", |_, e| {
        matches!(e, Event::Established)
    })?;
    // FRR 8.4 may take a quick UPDATE before it has taken the KEEPALIVE in front of it, and ends the session.
    thread::sleep(Duration::from_millis(300));
    let messages = |hop: Ipv4Addr| -> Vec<Bytes> {
        let attributes = fleet::attributes(&[], hop, true, &[]);
        let all: Vec<_> = (0..routes).map(prefix).collect();
        all.chunks(900)
            .map(|c| fleet::announce(&attributes, c.iter().copied()))
            .collect()
    };
    let all: Vec<_> = (0..routes).map(prefix).collect();
    let withdraw: Vec<Bytes> = all
        .chunks(900)
        .map(|c| fleet::withdraw(c.iter().copied()))
        .collect();
    let mut times = [Duration::ZERO; 3];
    let phases = [
        (messages(LINK[1]), LINK[1]),
        (messages(LINK[2]), LINK[2]),
        (withdraw, LINK[2]),
    ];
    for (i, (messages, hop)) in phases.into_iter().enumerate() {
        let before = (
            added.load(Ordering::Relaxed),
            deleted.load(Ordering::Relaxed),
        );
        let begin = Instant::now();
        fleet.send(0, &messages);
        fleet.drive(Duration::from_secs(60), "it is all sent", |_, e| {
            matches!(e, Event::Drained)
        })?;
        // The kernel tells of each route, but not where a group goes with all its routes: then only reading shows it.
        loop {
            let added = added.load(Ordering::Relaxed) - before.0;
            let deleted = deleted.load(Ordering::Relaxed) - before.1;
            times[i] = begin.elapsed();
            if (i < 2 && added >= routes)
                || (i == 2 && (deleted >= routes || installed(routes, hop)? == 0))
            {
                break;
            }
            ensure!(
                begin.elapsed() < Duration::from_secs(60),
                "phase {i}: {added} added and {deleted} deleted of {routes}"
            );
            thread::sleep(Duration::from_millis(1));
        }
        let there = installed(routes, hop)?;
        let expected = if i == 2 { 0 } else { routes };
        ensure!(
            there == expected,
            "phase {i}: {there} routes in the kernel by the right next hop, not {expected}"
        );
    }
    Ok(times)
}

/// How many of the routes the kernel has by this gateway.
fn installed(routes: usize, hop: Ipv4Addr) -> Result<usize> {
    let mut socket = Socket::open(Protocol::Route)?;
    let objects: HashMap<u32, nexthop::Kind> = nexthop::list(&mut socket)?
        .into_iter()
        .map(|n| (n.id, n.kind))
        .collect();
    let is_hop = |h: &route::Hop| h.gateway == Some(hop.into());
    let single = |id: &u32| matches!(objects.get(id), Some(nexthop::Kind::Hop(h)) if is_hop(h));
    let by_id = |id: &u32| match objects.get(id) {
        Some(nexthop::Kind::Group(members)) => members.iter().all(|m| single(&m.id)),
        _ => single(id),
    };
    let mut known: HashMap<u32, bool> = HashMap::new();
    let filter = route::Filter {
        table: Some(route::MAIN),
        ..route::Filter::default()
    };
    let all = route::list(&mut socket, false, &filter)?;
    let ours = all.iter().filter(|r| {
        matches!(r.prefix.addr, IpAddr::V4(a) if (number((a.into(), r.prefix.len)) as usize) < routes)
    });
    Ok(ours
        .filter(|r| match &r.target {
            route::Target::Hop(h) => is_hop(h),
            route::Target::Nexthop(id) => *known.entry(*id).or_insert_with(|| by_id(id)),
            _ => false,
        })
        .count())
}
