//! What ADD makes and DEL removes, in the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener, TcpStream};

use selvage_cni::veth::{self, GATEWAY_V4, GATEWAY_V6, HOST_MAC};
use selvage_netlink::route::{self, Filter, Hop, Target};
use selvage_netlink::{addr, link, neigh, nft};
use serde_json::{Value, json};

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::lab::{Answer, NODE_V4, NODE_V6, Node, Ns, PROGRAM, Scratch, ips, reaches, start};

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_pods_view() {
    let (node, pod) = (Node::new("none"), Ns::new());
    let result = node.add("a", &pod).expect_ok();
    assert_eq!(
        ips(&result),
        [parse("10.244.1.2"), parse("fd00:10:244:1::2")]
    );
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
    assert_eq!(result["ips"][1]["address"], "fd00:10:244:1::2/128");
    assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
    let eth0 = pod.link("eth0").unwrap();
    assert!(eth0.is_up() && eth0.kind == "veth");
    let inside = &result["interfaces"][1];
    assert_eq!(
        (&inside["name"], &inside["sandbox"]),
        (&json!("eth0"), &json!(pod.path()))
    );
    assert_eq!(inside["mac"], eth0.address.unwrap().to_string());
    let host = &node.pod_links()[0];
    assert_eq!(
        (result["interfaces"][0]["name"].as_str(), host.address),
        (Some(host.name.as_str()), Some(HOST_MAC))
    );

    let mut socket = pod.socket();
    let addresses = addr::list(&mut socket).unwrap();
    for wanted in ips(&result) {
        let found = addresses
            .iter()
            .find(|a| a.index == eth0.index && a.prefix.addr == wanted)
            .unwrap();
        assert_eq!(
            found.flags & (addr::TENTATIVE | addr::DADFAILED),
            0,
            "usable at once: {found:?}"
        );
        assert_eq!(found.prefix.len, if wanted.is_ipv6() { 128 } else { 32 });
    }
    for gateway in [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()] {
        let neighbours = neigh::list(&mut socket).unwrap();
        let found = neighbours.iter().find(|n| n.addr == gateway).unwrap();
        assert_eq!((found.state, found.mac), (neigh::PERMANENT, Some(HOST_MAC)));
        let routes = route::list(&mut socket, gateway.is_ipv6(), &Filter::default()).unwrap();
        let default = routes
            .iter()
            .find(|r| r.prefix.len == 0 && r.table == route::MAIN)
            .unwrap();
        assert!(
            matches!(&default.target, Target::Hop(hop) if hop.gateway == Some(gateway)),
            "{default:?}"
        );
    }
    let name = &host.name;
    let path = |key: &str| format!("/proc/sys/net/{key}").replace("VETH", name);
    for (key, value) in [
        // Where it forwards, router advertisements mean nothing.
        ("ipv6/conf/VETH/forwarding", "1"),
        ("ipv6/conf/VETH/accept_ra", "1"),
        ("ipv4/conf/VETH/rp_filter", "1"),
        ("ipv4/conf/VETH/proxy_arp", "0"),
    ] {
        assert_eq!(
            node.ns.within(|| std::fs::read_to_string(path(key))
                .unwrap()
                .trim()
                .to_owned()),
            value,
            "{key}"
        );
    }
}

#[test]
fn both_directions_and_both_families() {
    let (node, pod, other) = (Node::new("none"), Ns::new(), Ns::new());
    let addresses = ips(&node.add("a", &pod).expect_ok());
    let others = ips(&node.add("b", &other).expect_ok());
    for &address in &addresses {
        assert!(reaches(&node.ns, &pod, address), "node to pod {address}");
    }
    for address in [NODE_V4, NODE_V6] {
        assert!(
            reaches(&pod, &node.ns, parse(address)),
            "pod to node {address}"
        );
    }
    node.ns
        .within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap());
    for &address in &others {
        assert!(reaches(&pod, &other, address), "pod to pod {address}");
    }
    node.del("a", &pod).expect_ok();
    assert!(pod.link("eth0").is_none() && reaches(&node.ns, &other, others[0]));
    node.del("b", &other).expect_ok();
    node.assert_clean("after both");
}

#[test]
fn del_in_every_state() {
    let scratch = Scratch::new();
    let plain = scratch.0.join("plain");
    std::fs::write(&plain, "").unwrap();
    let plain = plain.to_str().unwrap().to_owned();
    type Change = fn(&mut Node);
    let table: [(&str, Change); 8] = [
        ("nothing changed", |_| {}),
        ("ipam ranges changed", |node| {
            node.conf["ipam"]["ranges"] = json!([[{"subnet": "10.9.0.0/24"}]])
        }),
        ("ipam ranges nonsense", |node| {
            node.conf["ipam"]["ranges"] = json!(7)
        }),
        ("ipam missing", |node| {
            drop(node.conf.as_object_mut().unwrap().remove("ipam"))
        }),
        ("leases gone", |node| {
            std::fs::remove_dir_all(node.scratch.0.join("data")).unwrap()
        }),
        ("attachment gone", |node| {
            std::fs::remove_dir_all(node.scratch.0.join("state")).unwrap()
        }),
        ("attachment garbled", |node| {
            std::fs::write(node.scratch.0.join("state/attachments/a@eth0.json"), "{").unwrap();
        }),
        ("policy required, no agent", |node| {
            node.conf["policy"] = json!("required")
        }),
    ];
    for (what, change) in table {
        for netns in ["the namespace", "", "/nonexistent/ns", &plain] {
            let mut node = Node::new("none");
            let pod = Ns::new();
            let path = if netns == "the namespace" {
                pod.path()
            } else {
                netns.to_owned()
            };
            node.call("DEL", "a", &path).expect_ok();
            node.add("a", &pod).expect_ok();
            change(&mut node);
            for again in 0..2 {
                let output = node.call("DEL", "a", &path).expect_ok();
                assert!(output.is_null(), "DEL prints nothing");
                node.assert_clean(&format!("{what}, {netns:?}, {again}"));
            }
            assert!(pod.link("eth0").is_none());
        }
    }
}

#[test]
fn the_namespace_dies_first() {
    let (node, pod) = (Node::new("none"), Ns::new());
    node.add("a", &pod).expect_ok();
    let path = pod.path();
    drop(pod);
    node.call("DEL", "a", &path).expect_ok();
    node.assert_clean("the namespace died");
}

#[test]
fn a_second_add_does_not_harm_the_first() {
    let (node, pod) = (Node::new("none"), Ns::new());
    let address = ips(&node.add("a", &pod).expect_ok())[0];
    let before = (node.leases(), node.attachments());
    node.add("a", &pod).expect_code(100);
    let another = Ns::new();
    node.add("a", &another).expect_code(100);
    assert!(another.links().is_empty());
    assert_eq!((node.leases(), node.attachments()), before);
    assert!(reaches(&node.ns, &pod, address));
    // Another container in the same namespace: the interface exists.
    let message = node.add("b", &pod).expect_code(100);
    assert!(message.contains("eth0"), "{message}");
    assert_eq!((node.leases(), node.attachments()), before);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let pod = Ns::new();
    // A route that the kernel refuses: the same twice.
    let mut node = Node::new("none");
    node.conf["ipam"]["routes"] = json!([{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8"}]);
    let message = node.add("a", &pod).expect_code(101);
    assert!(message.contains("10.0.0.0/8"), "{message}");
    node.assert_clean("a refused route");
    assert!(pod.links().is_empty());
    let mut node = Node::new("none");
    node.conf["mtu"] = json!(1000);
    assert!(node.add("a", &pod).expect_code(7).contains("mtu"));
    node.assert_clean("an MTU too small for IPv6");
}

#[test]
fn many_at_once() {
    let node = Node::new("none");
    let pods: Vec<_> = (0..24).map(|i| (format!("c{i}"), Ns::new())).collect();
    let mut addresses = BTreeSet::new();
    let answers = thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|(id, pod)| scope.spawn(|| node.add(id, pod).expect_ok()))
            .collect();
        adds.into_iter()
            .map(|add| add.join().unwrap())
            .collect::<Vec<_>>()
    });
    for result in answers {
        assert!(
            ips(&result)
                .into_iter()
                .all(|address| addresses.insert(address)),
            "given twice: {result}"
        );
    }
    assert_eq!(node.pod_links().len(), pods.len());
    thread::scope(|scope| {
        for (id, pod) in &pods {
            scope.spawn(|| node.del(id, pod).expect_ok());
        }
    });
    node.assert_clean("after all");
}

#[test]
fn a_full_disk_is_named_and_leaks_nothing() {
    let (node, pod) = (Node::new("none"), Ns::new());
    let data = node.scratch.0.join("data/pods");
    let listing = node.scratch.0.join("listing");
    std::fs::create_dir_all(&data).unwrap();
    // Two pages, enough for the mark of the boot and one of the two leases, in a mount namespace that ends with the
    // command.
    let script = format!(
        "mount -t tmpfs -o size=8k tmpfs {data} && {PROGRAM}; code=$?; ls -A {data} > {listing}; exit $code",
        data = data.display(),
        listing = listing.display(),
    );
    let mut env = node.env("ADD", "a", &pod.path());
    env.insert("PATH".into(), "/usr/bin:/bin:/usr/sbin:/sbin".into());
    let output = node.ns.within(|| {
        let args = ["-m", "sh", "-c", &script];
        start(
            Path::new("unshare"),
            &args,
            &env,
            node.conf.to_string().as_bytes(),
        )
        .wait_with_output()
        .unwrap()
    });
    let message = Answer::of(&output).expect_code(5);
    assert!(
        message.contains("data/pods/fd00") && message.contains("full"),
        "{message}"
    );
    let left = std::fs::read_to_string(listing).unwrap();
    assert!(
        left.lines()
            .all(|name| ["lock", ".boot"].contains(&name) || name.starts_with("last_reserved_ip")),
        "{left}"
    );
    node.assert_clean("a full disk");
    assert!(pod.links().is_empty());
}

#[test]
fn settings_of_the_interface() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.conf["mtu"] = json!(1420);
    node.conf["runtimeConfig"] = json!({"mac": "02:00:5e:00:00:07", "ips": ["10.244.1.77"]});
    let result = node.add("a", &pod).expect_ok();
    let (inside, outside) = (pod.link("eth0").unwrap(), &node.pod_links()[0]);
    assert_eq!((inside.mtu, outside.mtu), (1420, 1420));
    assert_eq!(inside.address.unwrap().to_string(), "02:00:5e:00:00:07");
    assert_eq!(result["interfaces"][1]["mtu"], 1420);
    assert_eq!(ips(&result)[0], parse("10.244.1.77"));
}

#[test]
fn ipv6_where_the_runtime_turned_it_off() {
    let (node, pod) = (Node::new("none"), Ns::new());
    pod.within(|| {
        for which in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
    });
    let addresses = ips(&node.add("a", &pod).expect_ok());
    assert!(reaches(&node.ns, &pod, addresses[1]));
}

/// What a new link inherits may be anything: the pod's link works, and lets the pod do nothing to the node.
#[test]
fn hostile_defaults_of_new_links() {
    const V4: [(&str, &str); 13] = [
        ("forwarding", "0"),
        ("rp_filter", "2"),
        ("accept_redirects", "1"),
        ("send_redirects", "1"),
        ("accept_source_route", "1"),
        ("accept_local", "1"),
        ("route_localnet", "1"),
        ("proxy_arp", "1"),
        ("proxy_arp_pvlan", "1"),
        ("arp_accept", "1"),
        ("bc_forwarding", "1"),
        ("arp_ignore", "8"),
        ("arp_filter", "1"),
    ];
    const V6: [(&str, &str); 9] = [
        ("forwarding", "0"),
        ("disable_ipv6", "1"),
        ("accept_ra", "2"),
        ("accept_redirects", "1"),
        ("autoconf", "1"),
        ("accept_dad", "2"),
        ("dad_transmits", "9"),
        ("use_tempaddr", "2"),
        ("proxy_ndp", "1"),
    ];
    let (node, pod, other) = (Node::new("none"), Ns::new(), Ns::new());
    let write = |path: &str, value: &str| std::fs::write(path, value).unwrap();
    node.ns.within(|| {
        write("/proc/sys/net/ipv4/ip_forward", "1");
        write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    });
    for ns in [&node.ns, &pod, &other] {
        ns.within(|| {
            for (family, list) in [("ipv4", &V4[..]), ("ipv6", &V6[..])] {
                for (key, value) in list {
                    write(&format!("/proc/sys/net/{family}/conf/default/{key}"), value);
                }
            }
        });
    }
    let addresses = ips(&node.add("a", &pod).expect_ok());
    let others = ips(&node.add("b", &other).expect_ok());
    for (&address, from) in addresses.iter().zip([NODE_V4, NODE_V6]) {
        assert!(reaches(&node.ns, &pod, address), "node to {address}");
        assert!(reaches(&pod, &node.ns, parse(from)), "pod to node {from}");
    }
    for &address in &others {
        assert!(reaches(&pod, &other, address), "pod to pod {address}");
    }
    let host_if = &node.pod_links()[0].name;
    let read = |family: &str, key: &str| {
        let path = format!("/proc/sys/net/{family}/conf/{host_if}/{key}");
        let text = node.ns.within(|| std::fs::read_to_string(path).unwrap());
        text.trim().to_owned()
    };
    for (key, wanted) in [
        ("forwarding", "1"),
        ("rp_filter", "1"),
        ("accept_redirects", "0"),
        ("send_redirects", "0"),
        ("accept_source_route", "0"),
        ("accept_local", "0"),
        ("route_localnet", "0"),
        ("proxy_arp", "0"),
        ("proxy_arp_pvlan", "0"),
        ("arp_accept", "0"),
        ("bc_forwarding", "0"),
    ] {
        assert_eq!(read("ipv4", key), wanted, "ipv4 {key}");
    }
    for (key, wanted) in [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("addr_gen_mode", "1"),
    ] {
        assert_eq!(read("ipv6", key), wanted, "ipv6 {key}");
    }
    // A node that does not forward IPv6 would listen to a pod's router advertisements.
    let v4_only = Ns::new();
    let mut node = node;
    node.conf["name"] = json!("more");
    node.conf["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);
    node.conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    node.ns
        .within(|| write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0"));
    node.add("c", &v4_only).expect_ok();
    let name = veth::host_name("more", "c", "eth0");
    let path = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    let value = node.ns.within(|| std::fs::read_to_string(path).unwrap());
    assert_eq!(value.trim(), "0");
}

/// As Multus calls for a pod with a second network, whose configuration has no routes.
#[test]
fn two_interfaces_of_two_networks() {
    for routes in [json!([{"dst": "10.78.0.0/16"}]), json!([]), Value::Null] {
        let (mut node, pods) = (Node::new("none"), [Ns::new(), Ns::new()]);
        for (id, pod) in ["a", "b"].into_iter().zip(&pods) {
            node.add(id, pod).expect_ok();
        }
        node.conf["name"] = json!("more");
        node.conf["ipam"]["ranges"] =
            json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]);
        node.conf["ipam"]["routes"] = routes.clone();
        let mut second = Vec::new();
        for (id, pod) in ["a", "b"].into_iter().zip(&pods) {
            let mut env = node.env("ADD", id, &pod.path());
            env.insert("CNI_IFNAME".into(), "net1".into());
            let result = node.call_with(&env, &node.conf).expect_ok();
            let asked = routes.as_array().map_or(0, Vec::len);
            assert_eq!(
                result["routes"].as_array().map_or(0, Vec::len),
                asked,
                "{routes}: {result}"
            );
            second.push(ips(&result));
        }
        assert_eq!((node.pod_links().len(), node.attachments().len()), (4, 4));
        // Over the second network, from an address of it: the node drops what comes over the first from such a source.
        for (&from, &to) in second[0].iter().zip(&second[1]) {
            let listener =
                pods[1].within(|| TcpListener::bind(std::net::SocketAddr::new(to, 0)).unwrap());
            let address = listener.local_addr().unwrap();
            let stream = pods[0]
                .within(|| TcpStream::connect_timeout(&address, Duration::from_secs(30)).unwrap());
            assert_eq!(stream.local_addr().unwrap().ip(), from, "{routes}");
        }
        let mut env = node.env("DEL", "a", &pods[0].path());
        env.insert("CNI_IFNAME".into(), "net1".into());
        node.call_with(&env, &node.conf).expect_ok();
        assert!(pods[0].link("eth0").is_some() && pods[0].link("net1").is_none());
        assert_eq!(
            node.attachments(),
            ["a@eth0.json", "b@eth0.json", "b@net1.json"]
        );
    }
}

/// The specification limits neither a container id nor the name of a network.
#[test]
fn names_of_any_length() {
    let mut node = Node::new("none");
    let base = "a".repeat(3000);
    node.conf["name"] = json!("n".repeat(3000));
    let pods = [Ns::new(), Ns::new()];
    let ids = [format!("{base}1"), format!("{base}2")];
    for (id, pod) in ids.iter().zip(&pods) {
        node.add(id, pod).expect_ok();
        node.add(id, pod).expect_code(100);
    }
    assert_eq!(node.attachments().len(), 2);
    node.del(&ids[0], &pods[0]).expect_ok();
    assert_eq!(node.attachments().len(), 1, "the other one's stays");
    assert!(pods[1].link("eth0").is_some());
    let mut conf = node.conf.clone();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": ids[1], "ifname": "eth0"}]);
    let env = [("CNI_COMMAND".to_owned(), "GC".into())].into();
    node.call_with(&env, &conf).expect_ok();
    assert_eq!(node.attachments().len(), 1, "GC keeps a valid one");
    node.del(&ids[1], &pods[1]).expect_ok();
    node.assert_clean("after both");
    assert_eq!(
        std::fs::read_dir(node.scratch.0.join("data"))
            .unwrap()
            .map(|dir| names_in(&dir.unwrap().path()))
            .collect::<Vec<_>>(),
        [[".boot", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]]
    );
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn results_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (mut node, pod) = (Node::new("none"), Ns::new());
        node.conf["cniVersion"] = json!(version);
        let result = node.add("a", &pod).expect_ok();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(
            result["ips"][1]["version"],
            if version < "1.0.0" {
                json!("6")
            } else {
                Value::Null
            }
        );
        assert_eq!(result["ips"][0]["interface"], 1);
        assert!(result["dns"].is_object());
        node.del("a", &pod).expect_ok();
    }
}

#[test]
fn what_came_before_is_passed_on() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.conf["prevResult"] = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "tap0"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}], "dns": {"nameservers": ["192.0.2.53"]}});
    let result = node.add("a", &pod).expect_ok();
    assert_eq!(result["interfaces"][0]["name"], "tap0");
    assert_eq!(
        (
            &result["ips"][0]["interface"],
            &result["ips"][1]["interface"]
        ),
        (&json!(0), &json!(2))
    );
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
}

#[test]
fn check_finds_what_is_missing() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    let result = node.add("a", &pod).expect_ok();
    node.conf["prevResult"] = result;
    let check = |node: &Node| node.call("CHECK", "a", &pod.path());
    for (path, name) in [
        ("ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
    ] {
        let path = format!("/proc/sys/net/{path}");
        let write = |value| node.ns.within(|| std::fs::write(&path, value).unwrap());
        write("0");
        let message = check(&node).expect_code(103);
        assert!(
            message.contains(&format!("sysctl -w {name}=1")) && message.contains("cut off"),
            "{message}"
        );
        write("1");
    }
    assert!(check(&node).expect_ok().is_null(), "silent on success");
    // A later plugin added something of its own.
    let ours = node.conf["prevResult"].clone();
    node.conf["prevResult"]["interfaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "ifb0"}));
    node.conf["prevResult"]["routes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"dst": "10.99.0.0/16", "gw": "10.98.0.1"}));
    check(&node).expect_ok();
    node.conf["prevResult"] = ours;

    let host = node.pod_links()[0].index;
    let eth0 = pod.link("eth0").unwrap().index;
    let mut outside = node.ns.socket();
    let mut inside = pod.socket();
    let v4 = selvage_netlink::Prefix::host(parse("10.244.1.2"));
    selvage_netlink::close_interface(&mut outside, host, &[]).unwrap();
    assert!(check(&node).expect_code(103).contains("is down"));
    selvage_netlink::open_interface(&mut outside, host, &[parse("10.244.1.2")]).unwrap();
    assert!(
        check(&node).expect_code(103).contains("fd00:10:244:1::2"),
        "the route went with the interface"
    );
    selvage_netlink::open_interface(
        &mut outside,
        host,
        &[parse("10.244.1.2"), parse("fd00:10:244:1::2")],
    )
    .unwrap();
    check(&node).expect_ok();
    inside
        .apply(|batch| neigh::delete(batch, eth0, GATEWAY_V6.into()))
        .unwrap();
    assert!(check(&node).expect_code(103).contains("fe80::1"));
    inside
        .apply(|batch| addr::delete(batch, &addr::Address::new(eth0, v4)))
        .unwrap();
    assert!(check(&node).expect_code(103).contains("10.244.1.2"));
    node.conf["prevResult"]["interfaces"][1]["sandbox"] = json!("/elsewhere");
    assert!(check(&node).expect_code(103).contains("sandbox"));
}

#[test]
fn check_finds_a_lost_lease() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.conf["prevResult"] = node.add("a", &pod).expect_ok();
    std::fs::write(node.scratch.0.join("data/pods/10.244.1.2"), "other\r\neth0").unwrap();
    assert!(
        node.call("CHECK", "a", &pod.path())
            .expect_code(103)
            .contains("not leased")
    );
    node.del("a", &pod).expect_ok();
    assert_eq!(node.leases(), ["10.244.1.2"], "DEL frees its own only");
}

#[test]
fn masquerading_without_an_agent() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.conf["ipMasq"] = json!(true);
    let addresses = ips(&node.add("a", &pod).expect_ok());
    // A host on the uplink that knows no way back to the pod.
    let outside = Ns::new();
    let uplink = node.ns.link("uplink").unwrap().index;
    let out = outside.socket();
    connect(&node, &outside, uplink, out);
    for (address, v6) in [("192.0.2.9", false), ("2001:db8::9", true)] {
        assert!(reaches(&pod, &outside, parse(address)), "v6: {v6}");
        assert_eq!(
            seen_from(&pod, &outside, parse(address)),
            parse(if v6 { NODE_V6 } else { NODE_V4 })
        );
    }
    // Pods elsewhere, the node and other pods see the pod itself.
    for (far, back, out, via_node) in [
        ("10.244.1.200", "10.244.1.0/24", "192.0.2.9", NODE_V4),
        (
            "fd00:10:244:1::200",
            "fd00:10:244:1::/64",
            "2001:db8::9",
            NODE_V6,
        ),
    ] {
        let own = addresses
            .iter()
            .find(|a| a.is_ipv6() == parse(far).is_ipv6());
        let eth0 = outside.link("eth0").unwrap().index;
        let prefix = selvage_netlink::Prefix::host(parse(far));
        outside
            .socket()
            .apply(|batch| addr::add(batch, &addr::Address::new(eth0, prefix)))
            .unwrap();
        route(&outside, back, via_node);
        route(&node.ns, far, out);
        assert_eq!(Some(&seen_from(&pod, &outside, parse(far))), own);
    }
    assert_eq!(seen_from(&pod, &node.ns, parse(NODE_V4)), addresses[0]);
    let other = Ns::new();
    let others = ips(&node.add("b", &other).expect_ok());
    assert_eq!(seen_from(&pod, &other, others[0]), addresses[0]);
    assert_eq!(masqueraded(&node), 4);
    node.del("a", &pod).expect_ok();
    assert_eq!(masqueraded(&node), 2);
    std::fs::remove_dir_all(node.scratch.0.join("state")).unwrap();
    node.del("b", &other).expect_ok();
    assert_eq!(masqueraded(&node), 0, "found by its leases");
}

/// Another program that translates sources knows more about what it translates: it comes first, whoever was made last, and
/// also where a chain of ours is as an earlier release made it.
#[test]
fn other_programs_translate_sources_first() {
    const OTHERS: &str = "192.0.2.77";
    for ours_is_last in [true, false] {
        let (mut node, pod, outside) = (Node::new("none"), Ns::new(), Ns::new());
        node.conf["ipMasq"] = json!(true);
        let uplink = node.ns.link("uplink").unwrap().index;
        let out = outside.socket();
        connect(&node, &outside, uplink, out);
        let own = addr::Address::new(uplink, selvage_netlink::Prefix::host(parse(OTHERS)));
        node.ns
            .socket()
            .apply(|batch| addr::add(batch, &own))
            .unwrap();
        let run = |script: &str| {
            let output = node
                .ns
                .within(|| Command::new("nft").arg(script).output().unwrap());
            assert!(output.status.success(), "{script}: {output:?}");
        };
        let other = || {
            run(&format!(
                "table ip other {{ chain c {{ type nat hook postrouting priority 100; ip saddr 10.244.1.0/24 snat to {OTHERS}; }}; }}"
            ));
        };
        if ours_is_last {
            other();
        }
        node.add("a", &pod).expect_ok();
        if !ours_is_last {
            other();
        }
        let seen = || seen_from(&pod, &outside, parse("192.0.2.9"));
        assert_eq!(seen(), parse(OTHERS), "ours is last: {ours_is_last}");
        run("flush chain inet selvage-cni postrouting; delete chain inet selvage-cni postrouting");
        run(
            "table inet selvage-cni { chain postrouting { type nat hook postrouting priority 100; ip saddr @masquerade4 masquerade; }; }",
        );
        node.add("b", &Ns::new()).expect_ok();
        assert_eq!(seen(), parse(OTHERS), "after an upgrade");
    }
}

/// A route to a network or an address.
fn route(ns: &Ns, to: &str, gateway: &str) {
    let (addr, len) = match to.split_once('/') {
        Some((addr, len)) => (addr, len.parse().unwrap()),
        None => (to, if to.contains(':') { 128 } else { 32 }),
    };
    let hop = Hop {
        gateway: Some(parse(gateway)),
        ..Hop::default()
    };
    let to = selvage_netlink::Prefix::new(parse(addr), len);
    ns.socket()
        .apply(|batch| route::replace(batch, &route::Route::new(to, Target::Hop(hop), 4)))
        .unwrap();
}

/// Puts `outside` on the node's uplink, as 192.0.2.9 and 2001:db8::9.
pub(crate) fn connect(node: &Node, outside: &Ns, uplink: u32, mut out: selvage_netlink::Socket) {
    let mut host = node.ns.socket();
    outside.within(|| {
        let inside = selvage_netlink::netns::current().unwrap();
        let peer = link::VethEnd {
            name: "eth0",
            netns: Some(std::os::fd::AsFd::as_fd(&inside)),
            ..Default::default()
        };
        host.apply(|batch| {
            link::add_veth(
                batch,
                &link::VethEnd {
                    name: "port",
                    ..Default::default()
                },
                &peer,
            )
        })
        .unwrap();
    });
    let port = node.ns.link("port").unwrap().index;
    let eth0 = outside.link("eth0").unwrap().index;
    host.apply(|batch| {
        link::set_master(batch, port, uplink);
        link::set_up(batch, port, true);
    })
    .unwrap();
    out.apply(|batch| {
        link::set_up(batch, eth0, true);
        for (text, len) in [("192.0.2.9", 24), ("2001:db8::9", 64)] {
            let prefix = selvage_netlink::Prefix::new(parse(text), len);
            addr::add(batch, &addr::Address::new(eth0, prefix));
        }
    })
    .unwrap();
    node.ns
        .within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    node.ns
        .within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap());
}

/// The source address that a server in `server` sees of a connection from `from`.
fn seen_from(from: &Ns, server: &Ns, to: IpAddr) -> IpAddr {
    let listener = server.within(|| TcpListener::bind((to, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let _client =
        from.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(30)).unwrap());
    listener.accept().unwrap().1.ip()
}

/// How many addresses the node masquerades.
fn masqueraded(node: &Node) -> usize {
    let table = nft::Table::inet("selvage-cni");
    node.ns.within(|| {
        let mut socket =
            selvage_netlink::Socket::open(selvage_netlink::Protocol::Netfilter).unwrap();
        let sets = nft::list::sets(&mut socket, &table).unwrap();
        sets.iter()
            .filter(|set| set.name.starts_with("masquerade"))
            .map(|set| nft::list::elements(&mut socket, &table, set).unwrap().len())
            .sum()
    })
}
