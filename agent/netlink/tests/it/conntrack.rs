//! Tracked flows.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;

use rustix::io::Errno;
use selvage_netlink::addr::Address;
use selvage_netlink::conntrack::{self, Filter, Flow, Ports};
use selvage_netlink::nft::expr::{CtKey, NatKind, ct_state};
use selvage_netlink::nft::{Base, ChainType, Expr, Hook, Reg, Table, Transaction, list};
use selvage_netlink::{Batch, Prefix, Protocol, Socket, addr, link, netns};

use crate::space::Space;

/// A namespace whose flows over loopback are tracked and counted by state.
fn tracked() -> (Space, Socket) {
    let space = Space::new();
    space
        .route()
        .apply(|batch| link::set_up(batch, 1, true))
        .unwrap();
    let mut socket = Socket::open_in(space.netns.as_fd(), Protocol::Netfilter).unwrap();
    let table = Table::inet("t");
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    transaction.add_base_chain(&table, "out", &Base::filter(Hook::Output, 0));
    let new = [Expr::ct_states(ct_state::NEW).as_slice(), &[Expr::COUNTER]].concat();
    transaction.add_rule(&table, "out", &new, None);
    let marked = [
        Expr::ct(CtKey::MARK),
        Expr::eq(0x8000_0001u32.to_ne_bytes()),
        Expr::COUNTER,
    ];
    transaction.add_rule(&table, "out", &marked, None);
    transaction.commit(&mut socket).unwrap();
    (space, socket)
}

fn pair(space: &Space, any: &str) -> (UdpSocket, UdpSocket) {
    netns::within(space.netns.as_fd(), || {
        let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        (a, b)
    })
    .unwrap()
}

fn of(flows: &[Flow], socket: &UdpSocket) -> Option<Flow> {
    let (src, dst) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
    let found = flows.iter().find(|flow| {
        let ports = Ports::Ports {
            src: src.port(),
            dst: dst.port(),
        };
        flow.orig.proto == 17
            && (flow.orig.src, flow.orig.dst, flow.orig.ports) == (src.ip(), dst.ip(), ports)
    });
    found.cloned()
}

fn counts(socket: &mut Socket) -> Vec<u64> {
    let rules = list::rules(socket, &Table::inet("t"), Some("out")).unwrap();
    rules
        .iter()
        .filter_map(|rule| rule.counter())
        .map(|(packets, _)| packets)
        .collect()
}

#[test]
fn flows_are_listed_marked_and_deleted() {
    let (space, mut socket) = tracked();
    let (four, four_back) = pair(&space, "127.0.0.1:0");
    let (six, _six_back) = pair(&space, "[::1]:0");
    four.send(b"x").unwrap();
    four_back.send(b"x").unwrap();
    six.send(b"x").unwrap();
    let all = conntrack::list(&mut socket, &Filter::default()).unwrap();
    let flow = of(&all, &four).unwrap();
    assert_eq!(
        (flow.reply.src, flow.reply.dst),
        (flow.orig.dst, flow.orig.src)
    );
    assert_ne!(flow.status & conntrack::SEEN_REPLY, 0);
    assert_eq!((flow.mark, flow.zone, flow.tcp_state), (0, 0, None));
    assert!(flow.timeout > 0);
    let six_flow = of(&all, &six).unwrap();
    assert_eq!(six_flow.orig.src, Ipv6Addr::LOCALHOST);
    assert_eq!(six_flow.status & conntrack::SEEN_REPLY, 0);
    let only = Filter {
        v6: Some(true),
        ..Filter::default()
    };
    assert!(of(&conntrack::list(&mut socket, &only).unwrap(), &four).is_none());
    // With the family the kernel filters, without it we do.
    let port = four.peer_addr().unwrap().port();
    for (proto, port, v6, count) in [
        (17, port, Some(false), 1),
        (17, port, None, 1),
        (17, port, Some(true), 0),
        (6, port, Some(false), 0),
        (17, port ^ 1, Some(false), 0),
    ] {
        let (v6, to_port) = (v6, Some((proto, port)));
        let filter = Filter {
            v6,
            to_port,
            ..Filter::default()
        };
        let found = conntrack::list(&mut socket, &filter).unwrap();
        assert_eq!(found.len(), count, "{filter:?}: {found:?}");
    }

    let before = counts(&mut socket);
    socket
        .apply(|batch| {
            conntrack::set_mark(batch, &flow, 0x8000_0003, 0x8000_0001);
            conntrack::set_mark(batch, &six_flow, 6, 6);
        })
        .unwrap();
    let marked = Filter {
        mark: Some((0x8000_0000, 0x8000_0000)),
        ..Filter::default()
    };
    let found = conntrack::list(&mut socket, &marked).unwrap();
    assert_eq!(
        found.iter().map(|flow| flow.mark).collect::<Vec<_>>(),
        [0x8000_0001]
    );
    four.send(b"x").unwrap();
    assert_eq!(counts(&mut socket), [before[0], before[1] + 1]);

    socket
        .apply(|batch| conntrack::delete(batch, &flow))
        .unwrap();
    let left = conntrack::list(&mut socket, &Filter::default()).unwrap();
    assert!(of(&left, &four).is_none() && of(&left, &six).is_some());
    // The next packet begins a new flow; a description with another number does not delete it.
    four.send(b"x").unwrap();
    assert_eq!(counts(&mut socket), [before[0] + 1, before[1] + 1]);
    let again = of(
        &conntrack::list(&mut socket, &Filter::default()).unwrap(),
        &four,
    )
    .unwrap();
    assert_eq!(again.status & conntrack::SEEN_REPLY, 0);
    let other = Flow {
        id: again.id ^ 1,
        ..again
    };
    let report = socket
        .report(|batch| {
            conntrack::delete(batch, &other);
            conntrack::delete(batch, &six_flow);
        })
        .unwrap();
    let failures: Vec<_> = report
        .failures
        .iter()
        .map(|f| (f.index, f.refusal.errno))
        .collect();
    assert_eq!(failures, [(0, Errno::NOENT.raw_os_error())]);
    let left = conntrack::list(&mut socket, &Filter::default()).unwrap();
    assert!(of(&left, &four).is_some() && of(&left, &six).is_none());
}

/// How many flows the kernel itself lists for a filter.
fn by_kernel(socket: &mut Socket, filter: &Filter) -> usize {
    let request = |batch: &mut Batch| conntrack::request(batch, filter);
    let listed = socket.list(request, |message| conntrack::decode(&message));
    listed.unwrap().len()
}

/// Also through a translation: the one who answers is who the packet reached.
#[test]
fn the_kernel_filters_by_address_in_both_directions() {
    let (space, mut socket) = tracked();
    let address = |text: &str, len| Address::new(1, Prefix::new(text.parse().unwrap(), len));
    space
        .route()
        .apply(|batch| {
            for n in 1..=4 {
                addr::add(batch, &address(&format!("10.9.0.{n}"), 32));
                addr::add(batch, &address(&format!("fd09::{n}"), 128));
            }
        })
        .unwrap();
    let table = Table::inet("n");
    let base = Base {
        kind: ChainType::Nat,
        ..Base::filter(Hook::Output, -100)
    };
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    transaction.add_base_chain(&table, "out", &base);
    // To 10.9.0.9, which nobody has, means to 10.9.0.2; the same for IPv6.
    for (v6, from, to) in [
        (false, "10.9.0.9", "10.9.0.2"),
        (true, "fd09::9", "fd09::2"),
    ] {
        let octets = |text: &str| match text.parse::<IpAddr>().unwrap() {
            IpAddr::V4(addr) => addr.octets().to_vec(),
            IpAddr::V6(addr) => addr.octets().to_vec(),
        };
        let mut rule = Expr::family(v6).to_vec();
        rule.push(Expr::destination(v6, Reg::FIRST));
        rule.push(Expr::eq(octets(from)));
        rule.push(Expr::Immediate {
            dreg: Reg::FIRST,
            value: octets(to),
        });
        rule.push(Expr::Nat {
            kind: NatKind::Destination,
            v6,
            addr: Some(Reg::FIRST),
            port: None,
            flags: 0,
        });
        transaction.add_rule(&table, "out", &rule, None);
    }
    transaction.commit(&mut socket).unwrap();
    space
        .route()
        .apply(|batch| {
            addr::add(batch, &address("10.9.0.254", 24));
            addr::add(batch, &address("fd09::fe", 64));
        })
        .unwrap();

    let flow = |from: &str, to: &str| {
        netns::within(space.netns.as_fd(), || {
            let socket = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
            let to = (to.parse::<IpAddr>().unwrap(), 9);
            // Nobody listens; the flow is there all the same.
            let _ = socket.send_to(b"x", to);
        })
        .unwrap();
    };
    for [one, two, three, nobody] in [
        ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.9"],
        ["fd09::1", "fd09::2", "fd09::3", "fd09::9"],
    ] {
        flow(one, two);
        flow(one, three);
        flow(two, three);
        flow(three, nobody);
        let addr = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let begun = |text| Filter {
            begun_by: addr(text),
            ..Filter::default()
        };
        let answered = |text| Filter {
            answered_by: addr(text),
            ..Filter::default()
        };
        for (filter, count) in [
            (begun(one), 2),
            (begun(two), 1),
            (begun(three), 1),
            (begun(nobody), 0),
            (answered(one), 0),
            (answered(two), 2),
            (answered(three), 2),
            (answered(nobody), 0),
        ] {
            if one.starts_with("10.") {
                assert_eq!(by_kernel(&mut socket, &filter), count, "{filter:?}");
            }
            let listed = conntrack::list(&mut socket, &filter).unwrap();
            assert_eq!(listed.len(), count, "{filter:?}: {listed:?}");
        }
        let both = Filter {
            answered_by: addr(two),
            ..begun(three)
        };
        let listed = conntrack::list(&mut socket, &both).unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
    }
    let port = Filter {
        v6: Some(false),
        to_port: Some((17, 9)),
        ..Filter::default()
    };
    assert_eq!(by_kernel(&mut socket, &port), 4);
}
