//! Limits of bandwidth: what ADD makes, that it limits, that nothing is left.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use selvage_netlink::link::{self, Link};
use selvage_netlink::qdisc;
use serde_json::{Value, json};

use crate::lab::{NODE_V4, NODE_V6, Node, Ns, eventually, ips};

const MEGABIT: u64 = 1_000_000;

fn limits(ingress: u64, egress: u64) -> Value {
    let burst = u32::MAX;
    json!({"bandwidth": {
        "ingressRate": ingress, "ingressBurst": if ingress > 0 { burst } else { 0 },
        "egressRate": egress, "egressBurst": if egress > 0 { burst } else { 0 },
    }})
}

fn limited(ingress: u64, egress: u64) -> Node {
    let mut node = Node::new("none");
    node.conf["runtimeConfig"] = limits(ingress, egress);
    node
}

fn ifbs(node: &Node) -> Vec<Link> {
    let mut links = node.ns.links();
    links.retain(|link| link.kind == "ifb");
    links
}

fn veth(node: &Node) -> Link {
    let links = node.pod_links();
    links.into_iter().find(|link| link.kind == "veth").unwrap()
}

/// How long `bytes` take from one namespace to an address in another, by the receiver's clock.
fn takes(from: &Ns, to: &Ns, address: IpAddr, bytes: usize) -> Duration {
    let listener = to.within(|| TcpListener::bind((address, 0)).unwrap());
    let at: SocketAddr = listener.local_addr().unwrap();
    let begin = Instant::now();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        (received.len(), begin.elapsed())
    });
    from.within(|| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(30)).unwrap();
        stream.write_all(&vec![7; bytes]).unwrap();
    });
    let (received, after) = receiver.join().unwrap();
    assert_eq!(received, bytes);
    after
}

#[test]
fn a_direction_takes_its_time() {
    // At 1 Mbit/s, what is over the burst of 16 packets takes 1.9 s.
    let (bytes, least) = (256 * 1024, Duration::from_millis(1900));
    for (ingress, egress, v6) in [
        (MEGABIT, 0, true),
        (0, MEGABIT, false),
        (MEGABIT, MEGABIT, true),
    ] {
        let (node, pod) = (limited(ingress, egress), Ns::new());
        let addresses = ips(&node.add("a", &pod).expect_ok());
        let (own, host) = (
            addresses[usize::from(v6)],
            if v6 { NODE_V6 } else { NODE_V4 },
        );
        let what = format!("{ingress} to the pod, {egress} from it");
        if ingress > 0 {
            assert!(
                takes(&node.ns, &pod, own, bytes) >= least,
                "to the pod: {what}"
            );
        }
        if egress > 0 {
            let from_pod = takes(&pod, &node.ns, host.parse().unwrap(), bytes);
            assert!(from_pod >= least, "from the pod: {what}");
        }
        node.del("a", &pod).expect_ok();
        node.assert_clean(&what);
    }
}

#[test]
fn made_shown_and_removed() {
    let (mut node, pod) = (limited(MEGABIT, 20_000_000_000_000), Ns::new());
    node.conf["mtu"] = json!(1400);
    let result = node.add("a", &pod).expect_ok();
    let [ifb] = &ifbs(&node)[..] else {
        panic!("one ifb interface");
    };
    let host_if = result["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(
        (ifb.name.strip_prefix("si"), ifb.mtu),
        (host_if.strip_prefix("sv"), 1400)
    );
    assert!(ifb.is_up() && ifb.group == 0x5e1);
    let shown = &result["interfaces"][2];
    assert_eq!(shown["name"], ifb.name);
    assert_eq!(shown["mac"], ifb.address.unwrap().to_string());
    assert!(shown.get("sandbox").is_none());
    assert_eq!(result["ips"][0]["interface"], 1);
    let listed = qdisc::list(&mut node.ns.socket()).unwrap();
    let rate = |index| {
        let root = listed
            .iter()
            .find(|q| (q.index, q.parent) == (index, qdisc::ROOT));
        root.and_then(|q| q.tbf).map(|tbf| tbf.rate)
    };
    let host = node.ns.link(host_if).unwrap();
    assert_eq!(rate(host.index), Some(125_000));
    assert_eq!(
        rate(ifb.index),
        Some(2_500_000_000_000),
        "more than 32 bits have"
    );
    // DEL knows it from the attachment, not from what it is told.
    node.conf["runtimeConfig"] = Value::Null;
    node.del("a", &pod).expect_ok();
    node.assert_clean("after DEL");
    assert_eq!(node.ns.links().len(), 1, "the uplink");
}

#[test]
fn check_finds_what_is_missing() {
    let (mut node, pod) = (limited(MEGABIT, MEGABIT), Ns::new());
    node.conf["prevResult"] = node.add("a", &pod).expect_ok();
    let check = || node.call("CHECK", "a", &pod.path());
    check().expect_ok();
    let host = veth(&node);
    let mut socket = node.ns.socket();
    socket
        .apply(|batch| qdisc::delete(batch, host.index, qdisc::ROOT))
        .unwrap();
    let message = check().expect_code(103);
    assert!(
        message.contains(&format!("{} is not limited to 1000000", host.name)),
        "{message}"
    );
    let wrong = qdisc::Tbf {
        rate: 5,
        burst: 9000,
        limit: 9000,
    };
    socket
        .apply(|batch| qdisc::add_tbf(batch, host.index, &wrong))
        .unwrap();
    check().expect_code(103);
    node.del("a", &pod).expect_ok();

    let (mut node, pod) = (limited(0, MEGABIT), Ns::new());
    node.conf["prevResult"] = node.add("a", &pod).expect_ok();
    let check = || node.call("CHECK", "a", &pod.path());
    let mut socket = node.ns.socket();
    let host = veth(&node);
    socket
        .apply(|batch| qdisc::delete(batch, host.index, qdisc::INGRESS))
        .unwrap();
    assert!(check().expect_code(103).contains("does not go by way of"));
    let ifb = ifbs(&node)[0].clone();
    socket
        .apply(|batch| link::set_up(batch, ifb.index, false))
        .unwrap();
    assert!(
        check()
            .expect_code(103)
            .contains("missing on the host, or down")
    );
    socket
        .apply(|batch| link::delete(batch, ifb.index))
        .unwrap();
    assert!(
        check()
            .expect_code(103)
            .contains("missing on the host, or down")
    );
    node.del("a", &pod).expect_ok();
    node.assert_clean("without its ifb");
}

#[test]
fn what_a_dead_pod_left_is_found() {
    let mut node = limited(0, MEGABIT);
    // All at once: a namespace that is made later could have the number of one that is gone.
    let [pod, again, last] = [Ns::new(), Ns::new(), Ns::new()];
    node.add("a", &pod).expect_ok();
    drop(pod);
    eventually("the end of the veth", || {
        node.pod_links().iter().all(|link| link.kind == "ifb")
    });
    assert_eq!(ifbs(&node).len(), 1, "it does not go with the veth");
    // The same attachment again finds the old one in its way.
    node.add("a", &again).expect_ok();
    drop(again);
    eventually("the end of the veth", || {
        node.pod_links().iter().all(|link| link.kind == "ifb")
    });
    // Nothing is known of it any more.
    std::fs::remove_dir_all(node.scratch.0.join("state")).unwrap();
    node.conf["cni.dev/valid-attachments"] = json!([]);
    let env = [("CNI_COMMAND".to_owned(), "GC".into())].into();
    node.call_with(&env, &node.conf).expect_ok();
    assert_eq!(ifbs(&node).len(), 0);

    node.add("b", &last).expect_ok();
    std::fs::remove_dir_all(node.scratch.0.join("state")).unwrap();
    drop(last);
    node.call("DEL", "b", "").expect_ok();
    node.assert_clean("by DEL, by its name alone");
}
