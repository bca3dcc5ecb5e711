//! Links, addresses, neighbours and namespaces.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;

use rustix::io::Errno;
use selvage_netlink::addr::{self, Address};
use selvage_netlink::link::{self, Change, Link, Mac, VethEnd};
use selvage_netlink::neigh::{self, Neighbour};
use selvage_netlink::{Prefix, netns};

use crate::space::Space;

#[test]
fn a_new_namespace_has_loopback_only_and_it_is_down() {
    let space = Space::new();
    let links = link::list(&mut space.route()).unwrap();
    let names: Vec<_> = links
        .iter()
        .map(|link| (link.name.as_str(), link.is_up()))
        .collect();
    assert_eq!(names, [("lo", false)]);
}

#[test]
fn the_peer_of_a_veth_is_born_in_its_namespace() {
    let (host, pod) = (Space::new(), Space::new());
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let mut socket = host.route();
    let near = VethEnd {
        name: "sv1",
        mtu: Some(1400),
        group: Some(0x5e1),
        ..Default::default()
    };
    let far = VethEnd {
        name: "eth0",
        address: Some(mac),
        mtu: Some(1400),
        queues: Some((2, 2)),
        netns: Some(pod.netns.as_fd()),
        ..Default::default()
    };
    socket
        .apply(|batch| link::add_veth(batch, &near, &far))
        .unwrap();
    let near = link::get_by_name(&mut socket, "sv1").unwrap();
    let far = link::get_by_name(&mut pod.route(), "eth0").unwrap();
    assert_eq!(
        (near.kind.as_str(), near.mtu, near.group),
        ("veth", 1400, 0x5e1)
    );
    assert!(!near.is_up());
    assert_eq!((far.mtu, far.address, far.group), (1400, Some(mac), 0));
    assert_eq!((near.link, far.link), (Some(far.index), Some(near.index)));
    assert!(near.link_netns.is_some());
    assert_eq!(link::get(&mut socket, near.index).unwrap(), near);
    assert_eq!(
        link::list(&mut socket)
            .unwrap()
            .iter()
            .find(|l| l.name == "sv1"),
        Some(&near)
    );
    let again = VethEnd {
        name: "sv1",
        ..Default::default()
    };
    let other = VethEnd {
        name: "x",
        ..Default::default()
    };
    let error = socket
        .apply(|batch| link::add_veth(batch, &again, &other))
        .unwrap_err();
    assert!(error.is(Errno::EXIST), "{error}");
}

#[test]
fn links_are_changed_enslaved_and_deleted() {
    let (space, other) = (Space::new(), Space::new());
    let (a, _) = space.veth("a0", &other, "a1");
    let (b, _) = space.veth("b0", &other, "b1");
    let mut socket = space.route();
    socket
        .apply(|batch| {
            link::add_bridge(batch, "br0");
            link::rename(batch, a, "c0");
            link::set_up(batch, b, true);
        })
        .unwrap();
    let bridge = link::get_by_name(&mut socket, "br0").unwrap();
    assert_eq!(bridge.kind, "bridge");
    let change = Change {
        up: Some(true),
        mtu: Some(1300),
        group: Some(7),
        address: Some(Mac([2, 0, 0, 0, 0, 9])),
        master: Some(bridge.index),
        alias: Some("a port"),
        ..Default::default()
    };
    socket
        .apply(|batch| link::change(batch, a, &change))
        .unwrap();
    let port = link::get(&mut socket, a).unwrap();
    assert_eq!((port.name.as_str(), port.mtu, port.group), ("c0", 1300, 7));
    assert_eq!((port.address, port.master), (change.address, change.master));
    assert_eq!(port.alias, "a port");
    assert!(port.is_up() && !port.is_running());
    socket
        .apply(|batch| {
            link::change(
                batch,
                a,
                &Change {
                    group: Some(9),
                    ..Default::default()
                },
            );
            link::change(
                batch,
                b,
                &Change {
                    group: Some(9),
                    ..Default::default()
                },
            );
            link::delete_group(batch, 9);
            link::delete(batch, bridge.index);
        })
        .unwrap();
    let error = socket
        .apply(|batch| link::delete_group(batch, 9))
        .unwrap_err();
    assert!(error.is(Errno::NODEV), "{error}");
    let rest: Vec<Link> = link::list(&mut socket).unwrap();
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert!(link::get(&mut socket, a).unwrap_err().is(Errno::NODEV));
}

#[test]
fn a_refused_message_is_named_and_the_others_take_effect() {
    let space = Space::new();
    let mut socket = space.route();
    let report = socket
        .report(|batch| {
            link::add_bridge(batch, "br0");
            link::add_bridge(batch, "br0");
            link::set_up(batch, 4_000_000, true);
            link::add_bridge(batch, "br1");
        })
        .unwrap();
    let failures: Vec<_> = report
        .failures
        .iter()
        .map(|f| (f.index, f.refusal.errno))
        .collect();
    assert_eq!(
        failures,
        [
            (1, Errno::EXIST.raw_os_error()),
            (2, Errno::NODEV.raw_os_error())
        ]
    );
    assert_eq!(link::list(&mut socket).unwrap().len(), 3);
}

#[test]
fn addresses_and_neighbours_come_and_go() {
    let (space, other) = (Space::new(), Space::new());
    let (index, _) = space.veth("a0", &other, "a1");
    let mut socket = space.route();
    socket
        .apply(|batch| link::set_up(batch, index, true))
        .unwrap();
    let v4 = Address::new(index, Prefix::new("10.1.2.3".parse().unwrap(), 24));
    let v6 = Address::new(index, Prefix::new("fd00::3".parse().unwrap(), 128));
    socket
        .apply(|batch| {
            addr::add(batch, &v4);
            addr::add(batch, &v6);
            addr::replace(batch, &v4);
        })
        .unwrap();
    let found = addr::list(&mut socket).unwrap();
    for wanted in [&v4, &v6] {
        let there = found.iter().find(|a| a.prefix == wanted.prefix).unwrap();
        assert_eq!((there.index, there.scope, there.peer), (index, 0, None));
        assert_eq!(there.flags & addr::TENTATIVE, 0);
    }
    let gateway = |text: &str| text.parse::<IpAddr>().unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 5]);
    let near = Neighbour::permanent(index, gateway("169.254.1.1"), mac);
    let far = Neighbour::permanent(index, gateway("fe80::1"), mac);
    socket
        .apply(|batch| {
            neigh::add(batch, &near);
            neigh::replace(batch, &near);
            neigh::replace(batch, &far);
        })
        .unwrap();
    let found = neigh::list(&mut socket).unwrap();
    assert!(found.contains(&near) && found.contains(&far), "{found:?}");
    socket
        .apply(|batch| {
            neigh::delete(batch, index, near.addr);
            addr::delete(batch, &v4);
        })
        .unwrap();
    assert!(!neigh::list(&mut socket).unwrap().contains(&near));
    assert!(
        addr::list(&mut socket)
            .unwrap()
            .iter()
            .all(|a| a.prefix != v4.prefix)
    );
}

#[test]
fn a_named_namespace_is_created_entered_and_deleted() {
    let path = std::env::temp_dir().join(format!("selvage-netns-{}", std::process::id()));
    let made = netns::create(&path).unwrap();
    let opened = netns::open(&path).unwrap();
    assert_eq!(
        netns::id(made.as_fd()).unwrap(),
        netns::id(opened.as_fd()).unwrap()
    );
    assert_ne!(netns::cookie(made.as_fd()).unwrap(), 0);
    let here = netns::current().unwrap();
    assert_ne!(
        netns::id(here.as_fd()).unwrap(),
        netns::id(opened.as_fd()).unwrap()
    );
    let inside = netns::within(opened.as_fd(), || netns::id(netns::current()?.as_fd())).unwrap();
    assert_eq!(inside.unwrap(), netns::id(opened.as_fd()).unwrap());
    assert!(netns::create(&path).is_err());
    netns::delete(&path).unwrap();
    netns::delete(&path).unwrap();
    assert!(!fs::exists(&path).unwrap());
}

#[test]
fn a_sysctl_is_written_in_the_namespace_only() {
    let (a, b) = (Space::new(), Space::new());
    let name = "ipv4/ip_forward";
    netns::write_sysctl(a.netns.as_fd(), name, "1").unwrap();
    netns::write_sysctl(b.netns.as_fd(), name, "0").unwrap();
    assert_eq!(netns::read_sysctl(a.netns.as_fd(), name).unwrap(), "1");
    assert_eq!(netns::read_sysctl(b.netns.as_fd(), name).unwrap(), "0");
    assert!(netns::read_sysctl(a.netns.as_fd(), "../kernel/hostname").is_err());
}
