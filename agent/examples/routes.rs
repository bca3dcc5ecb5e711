//! How long learned routes take into the kernel: the figures of bench B6 without BGP in front.
//!
//! `unshare -rn cargo run --release -p selvage --example routes [ROUTES]`: it writes into the
//! network namespace in which it runs, so give it one of its own. Beside the time it prints that
//! on a processor, which counts on a busy machine.

use std::{error::Error, net::IpAddr, process::Command, time::Instant};

use selvage::kernel::{
    RoutePolicy,
    routes::{Kernel, RouteTable},
};
use selvage_bgp_core::{
    clock::Now,
    ids::Family,
    prefix::Prefix,
    rib::{RouteChange, RouteOrigin, RouteSet},
    wire::attr::NextHop,
};

type Failure = Box<dyn Error>;

const LINKS: &str = "
    ip link set lo up
    for l in v w; do ip link add ${l}0 type veth peer name ${l}1; ip link set ${l}1 up; ip link set ${l}0 up; done
    ip addr add 10.255.0.1/24 dev v0; ip addr add 10.255.1.1/24 dev w0
    ip route add 10.254.0.0/24 via 10.255.0.7";

fn main() -> Result<(), Failure> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(100_000), |n| n.parse())?;
    sh(LINKS)?;
    // As the thread does it.
    std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0")?;
    let mut kernel = Kernel::open()?;
    let underlay = kernel.read_underlay()?;
    let mut table = RouteTable::start(RoutePolicy::default(), underlay, true, &mut kernel)?;
    Family::ALL
        .into_iter()
        .for_each(|family| table.synced(family));

    let first = announce(count, Some(&["10.255.0.9", "10.255.1.9"]))?;
    let second = announce(count, Some(&["10.254.0.9"]))?;
    let withdrawn = announce(count, None)?;
    for (what, changes) in [("add", &first), ("other next hop", &second)] {
        timed(what, || write(&mut table, &mut kernel, changes));
    }
    sh("ip route replace 10.254.0.0/24 via 10.255.1.7")?;
    timed("gateway moves", || write(&mut table, &mut kernel, &[]));
    sh(
        "ip link set w1 down; while ! ip -o link show w0 | grep -q NO-CARRIER; do sleep 0.01; done",
    )?;
    timed("carrier lost", || write(&mut table, &mut kernel, &[]));
    sh("ip link set w1 up; while ip -o link show w0 | grep -q NO-CARRIER; do sleep 0.01; done")?;
    timed("carrier back", || write(&mut table, &mut kernel, &[]));
    timed("read and adopt", || {
        let underlay = kernel.read_underlay().unwrap_or_default();
        let _ = RouteTable::start(RoutePolicy::default(), underlay, true, &mut kernel);
    });
    let one = announce(1, None)?;
    let back = announce(1, Some(&["10.254.0.9"]))?;
    timed("one route, 1000 times", || {
        for _ in 0..500 {
            write(&mut table, &mut kernel, &one);
            write(&mut table, &mut kernel, &back);
        }
    });
    for _ in 0..2 {
        timed("withdraw", || write(&mut table, &mut kernel, &withdrawn));
        timed("add again", || write(&mut table, &mut kernel, &first));
    }
    let facts = table.facts();
    println!(
        "{} installed, {} messages, {} readings",
        facts.installed[0], facts.writes, facts.readings
    );
    Ok(())
}

fn announce(count: u32, next_hops: Option<&[&str]>) -> Result<Vec<RouteChange>, Failure> {
    let next_hops: Vec<NextHop> = next_hops
        .unwrap_or_default()
        .iter()
        .map(|hop| hop.parse::<IpAddr>().map(NextHop::from))
        .collect::<Result<_, _>>()?;
    let set = (!next_hops.is_empty()).then(|| RouteSet {
        origin: RouteOrigin::Ebgp,
        next_hops: next_hops.into(),
    });
    (0..count)
        .map(|n| {
            let addr = std::net::Ipv4Addr::from((20 << 24) + (n << 8));
            let prefix = Prefix::v4(addr, 24).ok_or("too long")?;
            Ok(RouteChange {
                prefix,
                set: set.clone(),
            })
        })
        .collect()
}

fn write(table: &mut RouteTable, kernel: &mut Kernel, changes: &[RouteChange]) {
    table.change(changes);
    kernel.listen(table);
    table.commit(kernel, Now(0));
    table.take_events();
}

fn timed(what: &str, run: impl FnOnce()) {
    let (start, before) = (Instant::now(), on_cpu());
    run();
    let (wall, cpu) = (start.elapsed(), on_cpu() - before);
    println!(
        "{what:<24}{:>9.3} ms {:>9.3} ms on a processor",
        wall.as_secs_f64() * 1e3,
        cpu / 1e6
    );
}

/// Nanoseconds that this thread ran.
fn on_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or_default()
}

fn sh(script: &str) -> Result<(), Failure> {
    match Command::new("sh").args(["-ec", script]).status()?.success() {
        true => Ok(()),
        false => Err(format!("failed: {script}").into()),
    }
}
