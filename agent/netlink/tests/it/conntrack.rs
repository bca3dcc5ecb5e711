//! Tracked flows.

use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;

use rustix::io::Errno;
use selvage_netlink::conntrack::{self, Filter, Flow, Ports};
use selvage_netlink::nft::expr::{CtKey, ct_state};
use selvage_netlink::nft::{Base, Expr, Hook, Table, Transaction, list};
use selvage_netlink::{Protocol, Socket, link, netns};

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
