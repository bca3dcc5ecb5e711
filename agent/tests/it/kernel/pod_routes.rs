//! Interfaces of another plugin's pods and the addresses behind them, as the kernel shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use selvage::{kernel::pod_routes::PodRoutes, pod_interfaces::PodInterfaces};

use super::{in_netns, sh, until};

/// Addresses by interface.
fn seen(routes: &PodRoutes) -> BTreeMap<String, BTreeSet<String>> {
    let all = routes.all().into_iter();
    all.map(|(name, interface)| {
        let addresses = interface.addresses.iter().map(ToString::to_string);
        (name, addresses.collect())
    })
    .collect()
}

fn wait(routes: &mut PodRoutes, what: &str, wanted: &[(&str, &[&str])]) {
    let wanted: BTreeMap<String, BTreeSet<String>> = wanted
        .iter()
        .map(|(name, addresses)| {
            let addresses = addresses.iter().map(ToString::to_string);
            ((*name).to_owned(), addresses.collect())
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        routes.update().unwrap();
        let now = seen(routes);
        if now == wanted {
            break;
        }
        assert!(Instant::now() < end, "{what}: {now:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    // What is kept current is what a new reading shows.
    let fresh = PodRoutes::open(PodInterfaces::named(["veth", "cali"])).unwrap();
    assert_eq!(seen(&fresh), wanted, "{what}");
}

/// As `ptp` leaves it: its gateway's addresses on every interface, with an IPv6 route of full length in table main.
#[test]
fn routes_of_pods_are_followed() {
    in_netns(|| {
        sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
            ip link add eth0 type veth peer name eth1; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip link set eth1 up
            ip route add 198.51.100.7 dev eth0
            for n in 1 2; do
                ip link add veth$n type veth peer name p$n; ip link set p$n up; ip link set veth$n up
                ip addr add 10.0.0.1/32 dev veth$n; ip addr add fd00::1/128 dev veth$n nodad
            done
            ip route add 10.0.0.2 dev veth1; ip route add fd00::2 dev veth1");
        let mut routes = PodRoutes::open(PodInterfaces::named(["veth", "cali"])).unwrap();
        let both = ["10.0.0.2", "fd00::2"];
        wait(&mut routes, "at first", &[("veth1", &both), ("veth2", &[])]);
        sh("ip route add 10.0.0.3 dev veth2; ip route add 10.0.0.0/24 dev veth2");
        let more = [("veth1", &both[..]), ("veth2", &["10.0.0.3"][..])];
        wait(&mut routes, "a route that comes", &more);
        sh("ip route del 10.0.0.2; ip -6 route del fd00::2");
        let less = [("veth1", &[][..]), ("veth2", &["10.0.0.3"][..])];
        wait(&mut routes, "routes that go", &less);
        sh("ip route add 10.0.0.3 dev veth1 metric 5");
        wait(&mut routes, "one behind another", &less);
        sh("ip route replace 10.0.0.3 dev veth1");
        let moved = [("veth1", &["10.0.0.3"][..]), ("veth2", &[])];
        wait(&mut routes, "one in the place of another", &moved);
        sh("ip route add blackhole 10.0.0.4 metric 1; ip route add 10.0.0.4 dev veth2 metric 2");
        wait(&mut routes, "one behind a blackhole", &moved);
        sh("ip route del blackhole 10.0.0.4 metric 1");
        let two = [("veth1", &["10.0.0.3"][..]), ("veth2", &["10.0.0.4"])];
        wait(&mut routes, "the blackhole is gone", &two);
        // Not told by the kernel: routes of IPv4 that go with their link.
        sh("ip link set veth1 down");
        let down = [("veth1", &[][..]), ("veth2", &["10.0.0.4"])];
        wait(&mut routes, "a link that is down", &down);
        sh("ip link set veth1 up");
        wait(&mut routes, "its routes do not come back", &down);
        // A gateway's address, many times: it is the node's own, even if the kernel is asked while it is being added.
        for _ in 0..200 {
            sh("ip addr add fd00::7/128 dev veth1 nodad");
            wait(&mut routes, "a gateway", &down);
            sh("ip addr del fd00::7/128 dev veth1");
        }
        sh("ip route add 10.0.0.3 dev veth1; ip link del veth2");
        wait(
            &mut routes,
            "a link that is gone",
            &[("veth1", &["10.0.0.3"])],
        );
        sh(
            "ip link set veth1 down; ip link set veth1 name other; ip link set other up
            ip route add 10.0.0.3 dev other",
        );
        wait(&mut routes, "another name", &[]);
        sh(
            "ip link add cali7 type veth peer name p7; ip link add br0 type bridge
            ip link set cali7 master br0; ip link set cali7 up",
        );
        wait(&mut routes, "a port of a bridge", &[("cali7", &[])]);
        until("the bridge is named", || {
            routes.update().unwrap();
            routes.all()["cali7"].bridge.as_deref() == Some("br0")
        });
    });
}
