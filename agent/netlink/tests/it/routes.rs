//! Routes, and opening a pod's interface.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use selvage_netlink::addr::{self, Address};
use selvage_netlink::neigh::{self, Neighbour};
use selvage_netlink::route::{self, Filter, Hop, Kind, Route, Target};
use selvage_netlink::{Mac, Prefix, Socket, close_interface, link, netns, open, open_interface};

use crate::space::Space;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(ip(addr), len.parse().unwrap())
}

pub fn via(gateway: &str, weight: u16) -> Hop {
    Hop {
        gateway: Some(ip(gateway)),
        weight,
        ..Hop::default()
    }
}

/// A namespace with an interface up at 10.0.0.1/24 and fd00::1/64.
pub fn wired() -> (Space, Space, u32) {
    let (space, other) = (Space::new(), Space::new());
    let (index, far) = space.veth("a0", &other, "a1");
    other
        .route()
        .apply(|batch| link::set_up(batch, far, true))
        .unwrap();
    space
        .route()
        .apply(|batch| {
            link::set_up(batch, index, true);
            addr::add(batch, &Address::new(index, prefix("10.0.0.1/24")));
            addr::add(batch, &Address::new(index, prefix("fd00::1/64")));
        })
        .unwrap();
    (space, other, index)
}

fn by_maker(socket: &mut Socket, v6: bool, protocol: u8) -> Vec<Route> {
    let filter = Filter {
        protocol: Some(protocol),
        ..Filter::default()
    };
    route::list(socket, v6, &filter).unwrap()
}

#[test]
fn routes_of_both_families_are_read_back_as_written() {
    let (space, _other, index) = wired();
    let mut socket = space.route();
    let hop = |gateway: &str| {
        Target::Hop(Hop {
            oif: Some(index),
            ..via(gateway, 1)
        })
    };
    let onlink = Hop {
        onlink: true,
        oif: Some(index),
        ..via("172.16.0.1", 1)
    };
    let both = |a: &str, b: &str| {
        let hop = |gateway, weight| Hop {
            oif: Some(index),
            ..via(gateway, weight)
        };
        Target::Multipath(vec![hop(a, 1), hop(b, 7)])
    };
    let mut wanted = vec![
        Route::new(prefix("10.1.0.0/16"), hop("10.0.0.2"), 85),
        Route::new(prefix("10.2.0.0/16"), hop("fd00::2"), 85),
        Route::new(prefix("10.3.0.0/16"), Target::Nothing, 85),
        Route::new(prefix("10.4.0.0/16"), Target::Hop(onlink), 85),
        Route::new(prefix("10.5.0.0/16"), both("10.0.0.2", "10.0.0.3"), 85),
        Route::new(prefix("0.0.0.0/0"), hop("10.0.0.9"), 85),
        Route::new(prefix("fd01::/48"), hop("fd00::2"), 85),
        Route::new(prefix("fd02::/48"), Target::Nothing, 85),
        Route::new(prefix("fd03::/48"), both("fd00::2", "fd00::3"), 85),
        Route::new(prefix("::/0"), hop("fd00::9"), 85),
    ];
    for route in &mut wanted {
        route.metric = 1085;
    }
    let mut with_source = Route::new(prefix("10.6.0.0/16"), hop("10.0.0.2"), 85);
    (with_source.source, with_source.table, with_source.metric) = (Some(ip("10.0.0.1")), 1000, 1);
    wanted.push(with_source);
    let foreign = Route::new(prefix("10.1.0.0/16"), hop("10.0.0.7"), 4);
    socket
        .apply(|batch| {
            wanted.iter().for_each(|route| route::add(batch, route));
            wanted.iter().for_each(|route| route::replace(batch, route));
            route::add(batch, &foreign);
        })
        .unwrap();
    let mut found = by_maker(&mut socket, false, 85);
    found.extend(by_maker(&mut socket, true, 85));
    for route in &mut found {
        route.flags = 0;
    }
    for route in &wanted {
        assert!(found.contains(route), "{route:#?} not in {found:#?}");
    }
    assert_eq!(found.len(), wanted.len());
    let filter = Filter {
        table: Some(1000),
        ..Filter::default()
    };
    assert_eq!(route::list(&mut socket, false, &filter).unwrap().len(), 1);
    let filter = Filter {
        table: Some(77),
        ..Filter::default()
    };
    assert_eq!(route::list(&mut socket, true, &filter).unwrap(), []);
    assert_eq!(route::list(&mut socket, false, &filter).unwrap(), []);

    let (half, rest) = wanted.split_at(5);
    socket
        .apply(|batch| {
            half.iter().for_each(|route| route::delete(batch, route));
            for r in rest {
                route::delete_any_target(batch, r.prefix, r.table, r.metric, 85);
            }
        })
        .unwrap();
    assert_eq!(by_maker(&mut socket, false, 85), []);
    assert_eq!(by_maker(&mut socket, true, 85), []);
    assert_eq!(by_maker(&mut socket, false, 4).len(), 1);
}

#[test]
fn a_lookup_gives_the_entry_that_matches() {
    let (space, _other, index) = wired();
    let mut socket = space.route();
    let hop = Target::Hop(Hop {
        oif: Some(index),
        ..via("10.0.0.2", 1)
    });
    let blackhole = Route::new(prefix("10.1.0.0/16"), Target::Nothing, 85);
    let specific = Route::new(prefix("10.1.1.0/24"), hop, 85);
    socket
        .apply(|batch| {
            route::add(batch, &blackhole);
            route::add(batch, &specific);
        })
        .unwrap();
    let found = route::lookup(&mut socket, ip("10.1.1.9")).unwrap();
    assert_eq!((found.prefix, found.protocol), (specific.prefix, 85));
    let found = route::lookup(&mut socket, ip("fd00::9")).unwrap();
    assert_eq!(
        (found.prefix, found.kind),
        (prefix("fd00::/64"), Kind::Unicast)
    );
    let error = route::lookup(&mut socket, ip("192.0.2.1")).unwrap_err();
    assert!(error.is(Errno::NETUNREACH), "{error}");
}

#[test]
fn opening_and_closing_an_interface_can_be_repeated() {
    let (space, other) = (Space::new(), Space::new());
    let (index, _) = space.veth("sv1", &other, "eth0");
    let (second, _) = space.veth("sv2", &other, "eth1");
    let mut socket = space.route();
    let addrs = [ip("10.9.0.1"), ip("fd09::1")];
    let error = socket
        .apply(|batch| route::add(batch, &open::pod_route(index, addrs[0])))
        .unwrap_err();
    assert!(error.is(Errno::NETDOWN), "{error}");
    for _ in 0..2 {
        open_interface(&mut socket, index, &addrs).unwrap();
        assert!(link::get(&mut socket, index).unwrap().is_up());
        for (v6, addr) in [(false, addrs[0]), (true, addrs[1])] {
            let found = by_maker(&mut socket, v6, open::PROTOCOL_POD);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].prefix, Prefix::host(addr));
        }
    }
    open_interface(&mut socket, second, &addrs).unwrap();
    for v6 in [false, true] {
        let found = by_maker(&mut socket, v6, open::PROTOCOL_POD);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(matches!(found[0].target, Target::Hop(hop) if hop.oif == Some(second)));
    }
    close_interface(&mut socket, index, &addrs).unwrap();
    assert_eq!(by_maker(&mut socket, false, open::PROTOCOL_POD).len(), 1);
    for _ in 0..2 {
        close_interface(&mut socket, second, &addrs).unwrap();
        assert_eq!(by_maker(&mut socket, false, open::PROTOCOL_POD), []);
        assert_eq!(by_maker(&mut socket, true, open::PROTOCOL_POD), []);
        assert!(!link::get(&mut socket, second).unwrap().is_up());
    }
    close_interface(&mut socket, 4_000_000, &addrs).unwrap();
}

/// Before Linux 6.8 the kernel takes note of a carrier when it gets to it, and discards what is sent until then.
#[test]
fn the_first_packet_of_a_pod_is_not_lost() {
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    let node: IpAddr = "192.0.2.1".parse().unwrap();
    let address: IpAddr = "192.0.2.2".parse().unwrap();
    for round in 0..20 {
        let (host, pod) = (Space::new(), Space::new());
        let (index, eth0) = host.veth("sv1", &pod, "eth0");
        let mut socket = host.route();
        let mac = link::get(&mut socket, index).unwrap().address;
        pod.route()
            .apply(|batch| {
                link::set_up(batch, eth0, true);
                addr::add(batch, &Address::new(eth0, Prefix::new(address, 24)));
                neigh::replace(batch, &Neighbour::permanent(eth0, node, mac.unwrap_or(MAC)));
            })
            .unwrap();
        socket
            .apply(|batch| addr::add(batch, &Address::new(index, Prefix::host(node))))
            .unwrap();
        let bind = |space: &Space, to: IpAddr| {
            netns::within(space.netns.as_fd(), || UdpSocket::bind((to, 9)).unwrap()).unwrap()
        };
        let (server, client) = (bind(&host, node), bind(&pod, address));
        open_interface(&mut socket, index, &[address]).unwrap();
        client.send_to(b"first", (node, 9)).unwrap();
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let read = server.recv(&mut [0; 8]);
        assert!(matches!(read, Ok(5)), "round {round}: {read:?}");
    }
}
