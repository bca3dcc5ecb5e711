//! Flows that are cut and let go on.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
};

use selvage::{
    inbox::Inbox,
    kernel::{
        Shutdown,
        conntrack::{Conntrack, FlowEvent, FlowWork, Passed, REVOKED, spawn},
    },
};
use selvage_netlink::{Protocol, Socket, link, netns};

use super::{in_netns, sh, until};

/// A pod: a namespace behind an interface of ours.
pub(super) fn pod(name: &str, address: &str) -> OwnedFd {
    let inside = netns::create_unnamed().unwrap();
    let host = link::VethEnd {
        name,
        ..Default::default()
    };
    let peer = link::VethEnd {
        name: "eth0",
        netns: Some(inside.as_fd()),
        ..Default::default()
    };
    let mut socket = Socket::open(Protocol::Route).unwrap();
    socket
        .apply(|batch| link::add_veth(batch, &host, &peer))
        .unwrap();
    sh(&format!(
        "ip link set {name} up; ip addr add 169.254.1.1/32 dev {name}; ip route add {address}/32 dev {name}"
    ));
    netns::within(inside.as_fd(), || {
        sh(&format!(
            "ip link set eth0 up; ip addr add {address}/32 dev eth0
            ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1"
        ));
    })
    .unwrap();
    inside
}

/// A connection from one to the other, non-blocking at the server's end.
fn connect(client: &OwnedFd, server: &OwnedFd, address: &str, port: u16) -> (TcpStream, TcpStream) {
    let at = (address.parse::<IpAddr>().unwrap(), port);
    let listener = netns::within(server.as_fd(), || TcpListener::bind(at))
        .unwrap()
        .unwrap();
    let near = netns::within(client.as_fd(), || TcpStream::connect(at))
        .unwrap()
        .unwrap();
    let far = listener.accept().unwrap().0;
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn arrives(near: &mut TcpStream, far: &mut TcpStream) {
    near.write_all(b"x").unwrap();
    until(
        "a byte arrives",
        || matches!(far.read(&mut [0; 64]), Ok(n) if n > 0),
    );
}

fn dropped() -> u64 {
    let listing = sh("nft list counter inet t cut");
    let words: Vec<&str> = listing.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

const RULES: &str = "
    echo 1 > /proc/sys/net/ipv4/ip_forward
    nft add table inet t; nft add counter inet t cut
    nft 'add chain inet t f { type filter hook forward priority 10; }'
    nft 'add rule inet t f ct state established,related ct mark and 0x80000000 == 0 accept'
    nft 'add rule inet t f ct state established,related counter name cut drop'";

fn addresses(of: &[&str]) -> BTreeSet<IpAddr> {
    of.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn exactly_the_flow_that_is_no_longer_allowed_is_cut() {
    in_netns(|| {
        sh(RULES);
        let (a, b) = (pod("sva", "10.244.0.2"), pod("svb", "10.244.0.3"));
        let (mut near, mut far) = connect(&a, &b, "10.244.0.3", 80);
        let (mut other_near, mut other_far) = connect(&a, &b, "10.244.0.3", 81);
        let (mut back_near, mut back_far) = connect(&b, &a, "10.244.0.2", 80);
        arrives(&mut near, &mut far);

        let mut conntrack = Conntrack::open(REVOKED).unwrap();
        let local = addresses(&["10.244.0.3"]);
        let flows = conntrack.flows_of(&local).unwrap();
        assert_eq!(flows.len(), 3, "{flows:?}");
        let allowed: Vec<bool> = flows
            .iter()
            .map(|t| t.flow.port != 80 || t.flow.destination.to_string() != "10.244.0.3")
            .collect();
        let passed = conntrack.mark(&flows, &allowed).unwrap();
        assert_eq!(
            passed,
            Passed {
                seen: 3,
                revoked: 1,
                restored: 0,
                still_cut: 1
            }
        );

        // Both directions: the server's answers would make a deleted entry anew.
        near.write_all(b"x").unwrap();
        until("the client's packets are dropped", || dropped() > 0);
        let before = dropped();
        far.write_all(b"y").unwrap();
        until("the server's, too", || dropped() > before);
        assert_eq!(
            far.read(&mut [0; 64]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        arrives(&mut other_near, &mut other_far);
        arrives(&mut back_near, &mut back_far);

        // A second look changes nothing; allowed again, it goes on where it was.
        let flows = conntrack.flows_of(&local).unwrap();
        assert_eq!(flows.iter().filter(|t| t.revoked).count(), 1);
        assert_eq!(conntrack.mark(&flows, &allowed).unwrap().revoked, 0);
        let passed = conntrack.mark(&flows, &[true; 3]).unwrap();
        assert_eq!(
            passed,
            Passed {
                seen: 3,
                revoked: 0,
                restored: 1,
                still_cut: 0
            }
        );
        until(
            "what was held back arrives",
            || matches!(far.read(&mut [0; 64]), Ok(n) if n > 0),
        );
    });
}

#[test]
fn marks_of_others_and_flows_of_others_stay() {
    in_netns(|| {
        sh(RULES);
        sh("nft 'insert rule inet t f ct state new ct mark set 0x42'");
        let (a, b) = (pod("sva", "10.244.0.2"), pod("svb", "10.244.0.3"));
        let c = pod("svc", "10.9.0.4");
        let _one = connect(&a, &b, "10.244.0.3", 80);
        let _other = connect(&a, &c, "10.9.0.4", 80);
        let mut conntrack = Conntrack::open(REVOKED).unwrap();
        let flows = conntrack.flows_of(&addresses(&["10.244.0.3"])).unwrap();
        assert_eq!(conntrack.mark(&flows, &[false]).unwrap().revoked, 1);
        let all = addresses(&["10.244.0.3", "10.9.0.4"]);
        let marks = |conntrack: &mut Conntrack| {
            let flows = conntrack.flows_of(&all).unwrap();
            let mut marks: Vec<u32> = flows.iter().map(|t| t.mark()).collect();
            marks.sort_unstable();
            marks
        };
        assert_eq!(marks(&mut conntrack), [0x42, REVOKED | 0x42]);
        assert_eq!(conntrack.forget(&addresses(&["10.244.0.3"])).unwrap(), 1);
        assert_eq!(marks(&mut conntrack), [0x42]);
    });
}

#[test]
fn the_thread_asks_in_portions_and_follows_the_answers() {
    in_netns(|| {
        sh(RULES);
        let (a, b) = (pod("sva", "10.244.0.2"), pod("svb", "10.244.0.3"));
        let _flows: Vec<_> = (80..90)
            .map(|port| connect(&a, &b, "10.244.0.3", port))
            .collect();
        let (work, inbox) = Inbox::new().unwrap();
        let (sender, events) = mpsc::channel();
        let handle = spawn(REVOKED, inbox, move |event| drop(sender.send(event))).unwrap();
        for (odd_only, revoked, restored) in [(true, 5, 0), (false, 0, 5)] {
            work.send(FlowWork::Check(Arc::new(addresses(&["10.244.0.2"]))));
            loop {
                match events.recv().unwrap() {
                    FlowEvent::Judge(flows) => {
                        let odd = |port: u16| port % 2 == 1;
                        let allowed = flows.iter().map(|f| !odd_only || odd(f.port)).collect();
                        work.send(FlowWork::Judged(allowed));
                    }
                    FlowEvent::Passed(passed) => {
                        assert_eq!(
                            passed,
                            Passed {
                                seen: 10,
                                revoked,
                                restored,
                                still_cut: if odd_only { 5 } else { 0 }
                            }
                        );
                        break;
                    }
                    _ => unreachable!("nobody asked"),
                }
            }
        }
        for number in 1..=3 {
            work.send(FlowWork::Forget(number, addresses(&["10.244.0.2"])));
        }
        while events.recv().unwrap() != FlowEvent::Forgot(3) {}
        let mut conntrack = Conntrack::open(REVOKED).unwrap();
        let left = conntrack.flows_of(&addresses(&["10.244.0.3"])).unwrap();
        assert_eq!(left, []);
        work.send(FlowWork::Shutdown(Shutdown::Now));
        handle.join().unwrap();
    });
}
