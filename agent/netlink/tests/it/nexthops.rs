//! Nexthop objects, and the notifications about them and others.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use selvage_netlink::monitor::Group;
use selvage_netlink::nexthop::{self, Kind, Member};
use selvage_netlink::route::{self, Filter, Hop, Route, Target};
use selvage_netlink::{Monitor, RouteEvent, link};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::routes::{prefix, via, wired};

const ID: u32 = 0x5e10_0000;

#[test]
fn groups_are_written_read_and_repointed() {
    let (space, _other, index) = wired();
    let mut socket = space.route();
    let hop = |gateway| Hop {
        oif: Some(index),
        ..via(gateway, 1)
    };
    let group = ID + 0x8_0000;
    let members = [
        Member { id: ID, weight: 1 },
        Member {
            id: ID + 1,
            weight: 9,
        },
    ];
    let mut route = Route::new(prefix("10.1.0.0/16"), Target::Nexthop(group), 85);
    route.metric = 1085;
    socket
        .apply(|batch| {
            link::set_up(batch, 1, true);
            nexthop::replace_hop(batch, ID, 85, &hop("10.0.0.2"), false);
            nexthop::replace_hop(batch, ID + 1, 85, &hop("fd00::2"), true);
            nexthop::replace_blackhole(batch, ID + 2, 85, true);
            nexthop::replace_group(batch, group, 85, &members);
            route::add(batch, &route);
        })
        .unwrap();
    let found = nexthop::list(&mut socket).unwrap();
    let kinds: Vec<_> = found
        .iter()
        .map(|n| (n.id, n.protocol, n.kind.clone()))
        .collect();
    let wanted = [
        (ID, 85, Kind::Hop(hop("10.0.0.2"))),
        (ID + 1, 85, Kind::Hop(hop("fd00::2"))),
        (ID + 2, 85, Kind::Blackhole),
        (group, 85, Kind::Group(members.to_vec())),
    ];
    assert_eq!(kinds, wanted);
    socket
        .apply(|batch| {
            nexthop::replace_group(batch, group, 85, &members[..1]);
            nexthop::delete(batch, ID + 1);
        })
        .unwrap();
    let there = nexthop::get(&mut socket, group).unwrap();
    assert_eq!(there.kind, Kind::Group(members[..1].to_vec()));
    let error = socket
        .apply(|batch| nexthop::replace_hop(batch, group, 85, &hop("10.0.0.2"), false))
        .unwrap_err();
    assert!(error.is(Errno::INVAL), "{error}");
    let filter = Filter {
        protocol: Some(85),
        ..Filter::default()
    };
    let routes = route::list(&mut socket, false, &filter).unwrap();
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].target, Target::Nexthop(group));
    socket.apply(|batch| nexthop::delete(batch, group)).unwrap();
    assert_eq!(route::list(&mut socket, false, &filter).unwrap(), []);
    assert!(
        nexthop::get(&mut socket, group)
            .unwrap_err()
            .is(Errno::NOENT)
    );
}

#[test]
fn a_monitor_tells_what_happened_and_who_did_it() {
    let (space, _other, index) = wired();
    let mut monitor = Monitor::open_in(space.netns.as_fd(), &Group::ROUTING).unwrap();
    let mut socket = space.route();
    let port = socket.port();
    let hop = Hop {
        oif: Some(index),
        ..via("10.0.0.2", 1)
    };
    let route = Route::new(prefix("10.1.0.0/16"), Target::Hop(hop), 85);
    socket
        .apply(|batch| {
            route::add(batch, &route);
            nexthop::replace_hop(batch, ID, 85, &hop, false);
            nexthop::delete(batch, ID);
            route::delete(batch, &route);
            link::set_up(batch, index, false);
        })
        .unwrap();
    let mut events = Vec::new();
    while monitor
        .receive(16, |event, from| events.push((event, from)))
        .unwrap()
        == 16
    {}
    let ours = |wanted: &dyn Fn(&RouteEvent) -> bool| {
        events
            .iter()
            .any(|(event, from)| *from == port && wanted(event))
    };
    assert!(ours(
        &|e| matches!(e, RouteEvent::Route(r) if r.prefix == route.prefix)
    ));
    assert!(ours(
        &|e| matches!(e, RouteEvent::RouteGone(r) if r.prefix == route.prefix)
    ));
    assert!(ours(&|e| matches!(e, RouteEvent::Nexthop(n) if n.id == ID)));
    assert!(ours(
        &|e| matches!(e, RouteEvent::NexthopGone(n) if n.id == ID)
    ));
    let down = |e: &RouteEvent| matches!(e, RouteEvent::Link(l) if l.index == index && !l.is_up());
    assert!(events.iter().any(|(event, _)| down(event)), "{events:?}");
}

#[test]
fn lost_notifications_are_an_event() {
    let (space, _other, _) = wired();
    let mut monitor = Monitor::open_in(space.netns.as_fd(), &Group::ROUTING).unwrap();
    monitor.socket().set_receive_buffer(4096).unwrap();
    let routes: Vec<_> = (0..64u8)
        .map(|n| Route::new(prefix(&format!("10.{n}.0.0/16")), Target::Nothing, 85))
        .collect();
    space
        .route()
        .apply(|batch| routes.iter().for_each(|r| route::add(batch, r)))
        .unwrap();
    let mut lost = 0;
    while monitor
        .receive(16, |event, _| {
            lost += usize::from(event == RouteEvent::Overrun)
        })
        .unwrap()
        == 16
    {}
    assert_eq!(lost, 1);
}

#[test]
fn a_batch_of_many_thousands_is_sent_in_parts() {
    let (space, _other, _) = wired();
    let mut socket = space.route();
    let routes: Vec<_> = (0..5000u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            Route::new(
                prefix(&format!("11.{high}.{low}.0/24")),
                Target::Nothing,
                85,
            )
        })
        .collect();
    socket
        .apply(|batch| routes.iter().for_each(|r| route::add(batch, r)))
        .unwrap();
    let filter = Filter {
        protocol: Some(85),
        ..Filter::default()
    };
    assert_eq!(
        route::list(&mut socket, false, &filter).unwrap().len(),
        routes.len()
    );
    let again = socket
        .report(|batch| routes.iter().for_each(|r| route::add(batch, r)))
        .unwrap();
    let indices: Vec<_> = again.failures.iter().map(|failure| failure.index).collect();
    assert_eq!(indices, (0..routes.len()).collect::<Vec<_>>());
    assert!(again.ignoring(Errno::EXIST).is_ok());
}

#[test]
fn lost_carrier_takes_nexthops_and_routes_and_tells_of_the_link_only() {
    let (space, other, index) = wired();
    let mut socket = space.route();
    let hop = Hop {
        oif: Some(index),
        ..via("10.0.0.2", 1)
    };
    let (group, members) = (ID + 0x8_0000, [Member { id: ID, weight: 1 }]);
    let route = Route::new(prefix("10.1.0.0/16"), Target::Nexthop(group), 85);
    socket
        .apply(|batch| {
            nexthop::replace_hop(batch, ID, 85, &hop, false);
            nexthop::replace_group(batch, group, 85, &members);
            route::add(batch, &route);
        })
        .unwrap();
    let mut monitor = Monitor::open_in(space.netns.as_fd(), &Group::ROUTING).unwrap();
    let far = link::get_by_name(&mut other.route(), "a1").unwrap().index;
    other
        .route()
        .apply(|batch| link::set_up(batch, far, false))
        .unwrap();
    // The kernel tells of the carrier from a work queue: wait for it.
    let deadline = Instant::now() + Duration::from_secs(10);
    let (mut down, mut gone) = (false, Vec::new());
    while !down && Instant::now() < deadline {
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&monitor, PollFlags::IN)], Some(&timeout)).unwrap();
        let mut take = |event, _| match event {
            RouteEvent::Link(link) if link.index == index => down |= !link.is_running(),
            RouteEvent::NexthopGone(nexthop) => gone.push(nexthop.id),
            RouteEvent::RouteGone(route) => gone.push(route.protocol.into()),
            _ => {}
        };
        while monitor.receive(16, &mut take).unwrap() == 16 {}
    }
    assert!(down);
    assert!(!gone.contains(&group) && !gone.contains(&85), "{gone:?}");
    assert_eq!(nexthop::list(&mut socket).unwrap(), []);
    let filter = Filter {
        protocol: Some(85),
        ..Filter::default()
    };
    assert_eq!(route::list(&mut socket, false, &filter).unwrap(), []);
}
