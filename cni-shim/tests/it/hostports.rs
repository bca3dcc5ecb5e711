//! Host ports with real packets: from everywhere, in both families, by TCP and UDP.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use selvage_cni::attachment::Attachments;
use selvage_netlink::nft::{self, Element, Table, Transaction};
use selvage_netlink::route::{self, Hop, Route, Target};
use selvage_netlink::{Prefix, Protocol, Socket, addr, link};
use serde_json::{Value, json};

use crate::kernel::connect;
use crate::lab::{Answer, NODE_V4, NODE_V6, Node, Ns, eventually, ips};

const TABLE: Table<'static> = Table::inet("selvage-cni");
const OUTSIDE_V4: &str = "192.0.2.9";
const OUTSIDE_V6: &str = "2001:db8::9";
/// Of the host.
const PORT: u16 = 8080;
/// Where the servers in pods and on the node listen.
const INSIDE: u16 = 80;
/// For what comes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);
/// For what does not come.
const MOMENT: Duration = Duration::from_millis(300);

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mapping(protocol: &str) -> Value {
    json!({"hostPort": PORT, "containerPort": INSIDE, "protocol": protocol})
}

fn add(node: &Node, id: &str, pod: &Ns, mappings: Value) -> Answer {
    let mut conf = node.conf.clone();
    conf["runtimeConfig"] = json!({"portMappings": mappings});
    let mut env = node.env("ADD", id, &pod.path());
    let args =
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{id};K8S_POD_UID=u");
    env.insert("CNI_ARGS".into(), args.into());
    node.call_with(&env, &conf)
}

fn add_both(node: &Node, id: &str, pod: &Ns) -> Vec<IpAddr> {
    ips(&add(node, id, pod, json!([mapping("tcp"), mapping("udp")])).expect_ok())
}

/// A host on the node's uplink.
fn outside(node: &Node) -> Ns {
    let outside = Ns::new();
    let uplink = node.ns.link("uplink").unwrap().index;
    connect(node, &outside, uplink, outside.socket());
    outside
}

/// Answers every connection and every datagram with `name` and whom it sees.
fn serve(ns: &Ns, name: &'static str) {
    serve_at(ns, name, "[::]", INSIDE);
}

fn serve_at(ns: &Ns, name: &'static str, at: &str, port: u16) {
    let at = format!("{at}:{port}");
    let (listener, socket) = ns.within(|| {
        (
            TcpListener::bind(&at).unwrap(),
            UdpSocket::bind(&at).unwrap(),
        )
    });
    let text = move |peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if let Ok(peer) = stream.peer_addr() {
                let _ = stream.write_all(text(peer).as_bytes());
            }
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(text(peer).as_bytes(), peer);
        }
    });
}

/// What comes back by TCP, if anything does.
fn by_tcp(from: &Ns, to: SocketAddr, patience: Duration) -> Option<String> {
    let mut stream = from
        .within(|| TcpStream::connect_timeout(&to, patience))
        .ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn udp_socket(from: &Ns, to: SocketAddr) -> UdpSocket {
    from.within(|| {
        let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket
    })
}

/// One datagram and its answer.
fn ask(socket: &UdpSocket, patience: Duration) -> Option<String> {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send(b"?").ok()?;
    let mut buffer = [0; 80];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn by_udp(from: &Ns, to: SocketAddr, patience: Duration) -> Option<String> {
    from.within(|| ask(&udp_socket(from, to), patience))
}

fn at(addr: &str) -> SocketAddr {
    SocketAddr::new(parse(addr), PORT)
}

/// Elements of all maps and sets of host ports.
pub(crate) fn elements(node: &Node) -> usize {
    node.ns.within(|| {
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        let sets = nft::list::sets(&mut socket, &TABLE).unwrap();
        let ours = sets
            .iter()
            .filter(|set| set.name.starts_with("host") || set.name.starts_with("hairpin"));
        ours.map(|set| nft::list::elements(&mut socket, &TABLE, set).unwrap().len())
            .sum()
    })
}

fn change(node: &Node, change: impl FnOnce(&mut Transaction) + Send) {
    node.ns.within(|| {
        let mut transaction = Transaction::new();
        change(&mut transaction);
        let mut socket = Socket::open(Protocol::Netfilter).unwrap();
        transaction.commit(&mut socket).unwrap();
    });
}

#[test]
fn reached_from_everywhere() {
    let (node, pod, other) = (Node::new("none"), Ns::new(), Ns::new());
    let outside = outside(&node);
    let addresses = add_both(&node, "a", &pod);
    let others = ips(&node.add("b", &other).expect_ok());
    serve(&pod, "pod");
    let [own_v4, own_v6] = [others[0].to_string(), others[1].to_string()];
    for (from, to, seen) in [
        (&outside, NODE_V4, OUTSIDE_V4),
        (&outside, NODE_V6, OUTSIDE_V6),
        (&node.ns, NODE_V4, NODE_V4),
        (&node.ns, NODE_V6, NODE_V6),
        (&node.ns, "127.0.0.1", NODE_V4),
        (&node.ns, "127.9.9.9", NODE_V4),
        // A client's own address is kept.
        (&other, NODE_V4, &own_v4),
        (&other, NODE_V6, &own_v6),
        // The pod itself, by way of the node.
        (&pod, NODE_V4, NODE_V4),
        (&pod, NODE_V6, NODE_V6),
    ] {
        let expected = Some(format!("pod {seen}"));
        assert_eq!(by_tcp(from, at(to), PATIENCE), expected, "tcp to {to}");
        assert_eq!(by_udp(from, at(to), PATIENCE), expected, "udp to {to}");
    }
    // A service of the node's on ::1 stays in reach: the kernel has no way from there to a pod.
    serve_at(&node.ns, "node", "[::1]", PORT);
    assert_eq!(
        by_tcp(&node.ns, at("::1"), PATIENCE),
        Some("node ::1".into())
    );
    // What is not for the node passes it by.
    let elsewhere = SocketAddr::new(addresses[0], PORT);
    assert_eq!(by_tcp(&other, elsewhere, PATIENCE), None, "refused");
    node.del("a", &pod).expect_ok();
    assert_eq!(elements(&node), 0);
    assert_eq!(by_tcp(&outside, at(NODE_V4), PATIENCE), None, "refused");
    node.del("b", &other).expect_ok();
    node.assert_clean("after both");
}

#[test]
fn a_given_address_and_family() {
    let node = Node::new("none");
    let (any, given, six) = (Ns::new(), Ns::new(), Ns::new());
    let outside = outside(&node);
    let ask = |from: &Ns, to: &str| by_tcp(from, at(to), PATIENCE);
    let with = |host_ip: &str| {
        let mut mapping = mapping("TCP");
        mapping["hostIP"] = json!(host_ip);
        json!([mapping])
    };
    add(&node, "any", &any, with("0.0.0.0")).expect_ok();
    serve(&any, "any");
    assert_eq!(ask(&outside, NODE_V6), None, "0.0.0.0 is IPv4's");
    add(&node, "six", &six, with("::")).expect_ok();
    serve(&six, "six");
    add(&node, "given", &given, with("127.0.0.1")).expect_ok();
    serve(&given, "given");
    for (from, to, who) in [
        (&outside, NODE_V4, "any"),
        (&outside, NODE_V6, "six"),
        (&node.ns, "127.0.0.1", "given"),
        (&node.ns, "127.0.0.2", "any"),
    ] {
        let answer = ask(from, to).unwrap_or_default();
        assert!(answer.starts_with(who), "{to}: {answer}");
    }
    // Of the node's addresses that one only.
    let fourth = Ns::new();
    add(&node, "d", &fourth, with(NODE_V6)).expect_ok();
    serve(&fourth, "fourth");
    assert!(
        ask(&outside, NODE_V6)
            .unwrap_or_default()
            .starts_with("fourth")
    );
}

#[test]
fn a_family_that_the_pod_does_not_have() {
    let mut node = Node::new("none");
    node.conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}]]);
    node.conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    let pod = Ns::new();
    let with = |host_ip: &str| json!([{"hostPort": 1, "containerPort": 1, "hostIP": host_ip}]);
    let message = add(&node, "a", &pod, with(NODE_V6)).expect_code(7);
    assert!(
        message.contains("host port 1/tcp of 2001:db8::1") && message.contains("no IPv6"),
        "{message}"
    );
    node.assert_clean("refused");
    assert!(
        add(&node, "a", &pod, with("::1"))
            .expect_code(2)
            .contains("portMappings[0].hostIP")
    );
    add(&node, "a", &pod, with("::")).expect_ok();
    assert_eq!(elements(&node), 0, "left out");
    node.del("a", &pod).expect_ok();
}

#[test]
fn the_nodes_loopback_stays_the_nodes() {
    let (node, pod) = (Node::new("none"), Ns::new());
    add_both(&node, "a", &pod);
    serve_at(&node.ns, "node", "127.0.0.1", 9999);
    // A pod that has its loopback addresses elsewhere.
    pod.within(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
    });
    let eth0 = pod.link("eth0").unwrap().index;
    let hop = Hop {
        gateway: Some(parse("169.254.1.1")),
        oif: Some(eth0),
        onlink: true,
        ..Hop::default()
    };
    let to = Prefix::host(parse("127.0.0.1"));
    pod.socket()
        .apply(|batch| {
            let old = Prefix::new(parse("127.0.0.1"), 8);
            addr::delete(batch, &addr::Address::new(1, old));
            route::add(batch, &Route::new(to, Target::Hop(hop), 4));
        })
        .unwrap();
    let service = SocketAddr::new(parse("127.0.0.1"), 9999);
    assert_eq!(by_udp(&pod, service, MOMENT), None);
    assert_eq!(by_tcp(&pod, service, MOMENT), None);
    // It is the guard that keeps it away.
    change(&node, |t| t.flush_chain(&TABLE, "guard"));
    let socket = udp_socket(&pod, service);
    eventually("a datagram without the guard", || {
        socket.send(b"?").unwrap();
        node.ns.within(|| {
            let flows = Socket::open(Protocol::Netfilter)
                .and_then(|mut s| selvage_netlink::conntrack::list(&mut s, &Default::default()));
            flows
                .unwrap()
                .iter()
                .any(|flow| flow.orig.dst == service.ip() && flow.orig.src == parse("10.244.1.2"))
        })
    });
    // And the next call of anybody brings it back.
    let other = Ns::new();
    node.add("b", &other).expect_ok();
    assert_eq!(by_udp(&pod, service, MOMENT), None);
}

/// A service's address on an interface that leads nowhere, as a service proxy makes it; the kind of `kube-ipvs0` is `dummy`,
/// which not every kernel has.
fn service_address(node: &Node, addresses: [&str; 2]) {
    let mut socket = node.ns.socket();
    socket
        .apply(|batch| link::add_ifb(batch, "kube-ipvs0", 1500, 0))
        .unwrap();
    let index = link::get_by_name(&mut socket, "kube-ipvs0").unwrap().index;
    socket
        .apply(|batch| {
            link::set_up(batch, index, true);
            for text in addresses {
                addr::add(batch, &addr::Address::new(index, Prefix::host(parse(text))));
            }
        })
        .unwrap();
}

#[test]
fn addresses_of_services_lead_to_services() {
    const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
    for made_first in [true, false] {
        let (node, pod, client) = (Node::new("none"), Ns::new(), Ns::new());
        if made_first {
            service_address(&node, SERVICE);
        }
        add_both(&node, "a", &pod);
        node.add("client", &client).expect_ok();
        if !made_first {
            service_address(&node, SERVICE);
        }
        serve(&pod, "pod");
        for address in SERVICE {
            let text = if address.contains(':') {
                format!("[{address}]")
            } else {
                address.to_owned()
            };
            serve_at(&node.ns, "service", &text, PORT);
        }
        let outside = outside(&node);
        for (place, from) in [("a pod", &client), ("the node", &node.ns), ("itself", &pod)] {
            for address in SERVICE {
                for answer in [
                    by_tcp(from, at(address), PATIENCE),
                    by_udp(from, at(address), PATIENCE),
                ] {
                    let answer = answer.unwrap_or_default();
                    assert!(
                        answer.starts_with("service "),
                        "{place} to {address}: {answer}"
                    );
                }
            }
            for address in [NODE_V4, NODE_V6] {
                let answer = by_tcp(from, at(address), PATIENCE).unwrap_or_default();
                assert!(answer.starts_with("pod "), "{place} to {address}: {answer}");
            }
        }
        // An address that the node has got since is the node's for whoever comes over its link.
        let uplink = node.ns.link("uplink").unwrap().index;
        let moved = "192.0.2.77";
        node.ns
            .socket()
            .apply(|batch| {
                addr::add(
                    batch,
                    &addr::Address::new(uplink, Prefix::new(parse(moved), 24)),
                );
            })
            .unwrap();
        let answer = by_tcp(&outside, at(moved), PATIENCE).unwrap_or_default();
        assert!(answer.starts_with("pod "), "{answer}");
        // And for everybody after the next call.
        node.del("client", &client).expect_ok();
        let answer = by_tcp(&node.ns, at(moved), PATIENCE).unwrap_or_default();
        assert!(answer.starts_with("pod "), "{answer}");
    }
}

/// What an agent has noted of the Node object is the node's, also on such an interface; and so is what a pod names.
#[test]
fn an_address_of_the_node_object_is_the_nodes_own() {
    let (node, pod, named) = (Node::new("none"), Ns::new(), Ns::new());
    service_address(&node, ["10.0.0.5", "10.0.0.6"]);
    let attachments = Attachments::of(&node.scratch.0.join("state"));
    let own = [parse("10.0.0.5")];
    assert!(attachments.set_node_addresses(&own).unwrap());
    assert!(!attachments.set_node_addresses(&own).unwrap());
    add_both(&node, "a", &pod);
    let given =
        json!({"hostPort": PORT, "containerPort": INSIDE, "protocol": "tcp", "hostIP": "10.0.0.6"});
    add(&node, "b", &named, json!([given])).expect_ok();
    serve(&pod, "pod");
    serve(&named, "named");
    for (address, expected) in [("10.0.0.5", "pod "), ("10.0.0.6", "named ")] {
        let answer = by_tcp(&node.ns, at(address), PATIENCE).unwrap_or_default();
        assert!(answer.starts_with(expected), "{address}: {answer}");
    }
}

/// Another program's chain that was made after ours, at the priority that others have; and a chain of ours as an earlier release
/// made it, which the next call replaces.
#[test]
fn host_ports_come_before_services_whoever_was_first() {
    let (node, pod, other) = (Node::new("none"), Ns::new(), Ns::new());
    add_both(&node, "a", &pod);
    serve(&pod, "pod");
    serve(&other, "other");
    let rules = |chain: &str| {
        format!(
            "table inet proxy {{ chain {chain} {{ type nat hook {chain} priority -100; tcp dport {PORT} dnat ip to 192.0.2.200;\n}}\n}}\n"
        )
    };
    let nft = |input: &str| {
        node.ns.within(|| {
            let mut child = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.as_bytes())
                .unwrap();
            assert!(child.wait().unwrap().success());
        });
    };
    let outside = outside(&node);
    let reaches_pod = |why: &str| {
        for (place, from) in [("outside", &outside), ("the node", &node.ns)] {
            let answer = by_tcp(from, at(NODE_V4), PATIENCE).unwrap_or_default();
            assert!(answer.starts_with("pod "), "{why}, from {place}: {answer}");
        }
    };
    let other_comes_last = || {
        nft("table inet proxy {}\ndelete table inet proxy\n");
        nft(&rules("prerouting"));
        nft(&rules("output"));
    };
    other_comes_last();
    reaches_pod("the other program came last");
    // The rules of an earlier release, or those of today in chains that hook in where they did then.
    for (container, earlier) in [
        ("b", Some("fib daddr type local jump hostports;")),
        ("c", None),
    ] {
        for chain in ["prerouting", "output"] {
            let body = match earlier {
                Some(rule) => rule.to_owned(),
                None => rules_of(&node, chain),
            };
            nft(&format!(
                "flush chain inet selvage-cni {chain}\ndelete chain inet selvage-cni {chain}\n\
                 table inet selvage-cni {{ chain {chain} {{ type nat hook {chain} priority -100;\n{body}\n}}\n}}\n"
            ));
        }
        other_comes_last();
        node.add(container, &Ns::new()).expect_ok();
        reaches_pod(&format!("after an upgrade, {container}"));
    }
}

/// The rules of a base chain of the plugin's table, as `nft` lists and loads them.
fn rules_of(node: &Node, chain: &str) -> String {
    let list = ["list", "chain", "inet", "selvage-cni", chain];
    let output = node
        .ns
        .within(|| Command::new("nft").args(list).output().unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, after) = text.split_once("policy accept;\n").expect("a base chain");
    let rules = after.lines().take_while(|line| line.trim() != "}");
    rules.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_port_has_one_pod() {
    let node = Node::new("none");
    let (pod, second) = (Ns::new(), Ns::new());
    let outside = outside(&node);
    add_both(&node, "a", &pod);
    let before = elements(&node);
    let message = add(&node, "b", &second, json!([mapping("udp")])).expect_code(50);
    assert!(
        message.contains("host port 8080/udp") && message.contains("default/pod-a"),
        "{message}"
    );
    assert_eq!((node.attachments().len(), node.pod_links().len()), (1, 1));
    assert_eq!((elements(&node), node.leases().len()), (before, 2));
    // Its namespace is over: nobody has said DEL, and the port is free.
    drop(pod);
    eventually("the end of the pod", || node.pod_links().is_empty());
    add_both(&node, "b", &second);
    serve(&second, "second");
    assert_eq!(
        by_tcp(&outside, at(NODE_V4), PATIENCE),
        Some(format!("second {OUTSIDE_V4}"))
    );
    // A late DEL of the first takes nothing from the second.
    node.call("DEL", "a", "").expect_ok();
    assert_eq!(
        by_udp(&outside, at(NODE_V6), PATIENCE),
        Some(format!("second {OUTSIDE_V6}"))
    );
    node.del("b", &second).expect_ok();
    assert_eq!(elements(&node), 0);
    node.assert_clean("after both");
}

#[test]
fn datagrams_of_a_flow_follow_the_port() {
    let node = Node::new("none");
    let (first, second) = (Ns::new(), Ns::new());
    let outside = outside(&node);
    serve_at(&node.ns, "node", "[::]", PORT);
    let sockets = [at(NODE_V4), at(NODE_V6)].map(|to| udp_socket(&outside, to));
    let all_say = |who: &str| {
        for socket in &sockets {
            let answer = ask(socket, PATIENCE).unwrap_or_default();
            assert!(answer.starts_with(who), "{who} expected, not {answer}");
        }
    };
    all_say("node");
    add_both(&node, "a", &first);
    serve(&first, "first");
    all_say("first");
    node.del("a", &first).expect_ok();
    all_say("node");
    add_both(&node, "b", &second);
    serve(&second, "second");
    all_say("second");
}

#[test]
fn made_anew_after_it_was_lost() {
    let mut node = Node::new("none");
    let (pod, other) = (Ns::new(), Ns::new());
    let outside = outside(&node);
    add_both(&node, "a", &pod);
    serve(&pod, "pod");
    let count = elements(&node);
    let serves = || by_tcp(&outside, at(NODE_V4), PATIENCE) == Some(format!("pod {OUTSIDE_V4}"));
    assert!(serves());
    let lose = |node: &Node| {
        change(node, |t| t.delete_table(&TABLE));
        assert!(!serves(), "lost");
    };
    lose(&node);
    node.add("b", &other).expect_ok();
    assert!(serves(), "by an ADD without ports");
    lose(&node);
    node.del("b", &other).expect_ok();
    assert!(serves(), "by a DEL");
    lose(&node);
    let mut conf = node.conf.clone();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    let env = [("CNI_COMMAND".to_owned(), "GC".into())].into();
    node.call_with(&env, &conf).expect_ok();
    assert!(serves(), "by GC");
    // What is nobody's goes with GC.
    change(&node, |t| {
        let set = nft::Set::hash("hairpin4", &[nft::DataType::IPV4_ADDR; 2]);
        t.add_elements(&TABLE, &set, [Element::one(&[9, 9, 9, 9, 9, 9, 9, 9])]);
    });
    node.call_with(&env, &conf).expect_ok();
    assert_eq!(elements(&node), count);
    // And with it a pod that nobody names.
    conf["cni.dev/valid-attachments"] = json!([]);
    node.call_with(&env, &conf).expect_ok();
    assert_eq!(elements(&node), 0);
    // Found by its lease alone.
    add_both(&node, "c", &other);
    std::fs::remove_dir_all(node.scratch.0.join("state")).unwrap();
    node.conf["runtimeConfig"] = Value::Null;
    node.del("c", &other).expect_ok();
    assert_eq!(elements(&node), 0);
}

#[test]
fn check_finds_what_is_missing() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    let result = add(&node, "a", &pod, json!([mapping("tcp")])).expect_ok();
    node.conf["prevResult"] = result;
    let check = || node.call("CHECK", "a", &pod.path());
    check().expect_ok();
    let key = [6, 0, 0, 0, 0x1f, 0x90, 0, 0];
    let map = nft::Set::hash(
        "hostports6",
        &[nft::DataType::INET_PROTO, nft::DataType::INET_SERVICE],
    );
    change(&node, |t| {
        t.delete_elements(&TABLE, &map, [Element::one(&key)])
    });
    let message = check().expect_code(103);
    assert!(
        message.contains("host port 8080/tcp") && message.contains("hostports6"),
        "{message}"
    );
    change(&node, |t| t.flush_chain(&TABLE, "output"));
    assert!(check().expect_code(103).contains("rules for host ports"));
    change(&node, |t| t.delete_table(&TABLE));
    assert!(check().expect_code(103).contains("rules for host ports"));
    let other = Ns::new();
    node.add("b", &other).expect_ok();
    check().expect_ok();
    let path = format!(
        "/proc/sys/net/ipv4/conf/{}/route_localnet",
        node.conf["prevResult"]["interfaces"][0]["name"]
            .as_str()
            .unwrap()
    );
    node.ns.within(|| std::fs::write(path, "0").unwrap());
    assert!(check().expect_code(103).contains("route_localnet"));
}

#[test]
fn nft_lists_the_table_and_loads_it_again() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.conf["ipMasq"] = json!(true);
    let given = |host_ip: &str| json!({"hostPort": 53, "containerPort": 53, "protocol": "sctp", "hostIP": host_ip});
    add(
        &node,
        "a",
        &pod,
        json!([
            mapping("tcp"),
            mapping("udp"),
            given(NODE_V4),
            given(NODE_V6)
        ]),
    )
    .expect_ok();
    let nft = |node: &Node, args: &[&str], input: &str| {
        node.ns.within(|| {
            let mut child = Command::new("nft")
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{args:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let generation = |node: &Node| {
        node.ns.within(|| {
            nft::list::generation(&mut Socket::open(Protocol::Netfilter).unwrap()).unwrap()
        })
    };
    // Neither what we wrote nor what nft has loaded is made anew.
    let is_left_alone = |node: &Node| {
        let (before, other) = (generation(node), Ns::new());
        node.add("b", &other).expect_ok();
        node.del("b", &other).expect_ok();
        assert_eq!(generation(node), before);
    };
    node.conf["ipMasq"] = json!(false);
    is_left_alone(&node);
    let text = nft(&node, &["list", "ruleset"], "");
    for part in [
        "dnat ip to meta l4proto . th dport map @hostports4",
        "elements = { 192.0.2.1 . sctp . 53 : 10.244.1.2 . 53 }",
        "fib daddr type local jump hostaddrs",
        "fib daddr . iif type local jump hostports",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    nft(&node, &["-f", "-"], &format!("flush ruleset\n{text}"));
    assert_eq!(nft(&node, &["list", "ruleset"], ""), text);
    is_left_alone(&node);
}
