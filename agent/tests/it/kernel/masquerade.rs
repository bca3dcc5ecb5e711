//! Whom the world outside sees, and whom other pods see.

use std::{
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
};

use ipnet::IpNet;
use selvage::kernel::{
    masquerade::Masquerade,
    nft::{NftEvent, plan::WholeTable},
    open,
};
use selvage_netlink::netns;

use super::{flows::pod, in_netns, nft::Thread, sh, until};

const NODE: &str = "169.254.1.1";

/// The source that a server sees of a connection from `from`.
fn seen(from: &OwnedFd, server: &OwnedFd, to: &str) -> String {
    let to = (to.parse::<IpAddr>().unwrap(), 0);
    let listener = netns::within(server.as_fd(), || TcpListener::bind(to))
        .unwrap()
        .unwrap();
    let to = listener.local_addr().unwrap();
    let _client = netns::within(from.as_fd(), || TcpStream::connect(to))
        .unwrap()
        .unwrap();
    listener.accept().unwrap().1.ip().to_string()
}

fn wanted(pods: &[&str], inside: &[&str]) -> WholeTable {
    let mut masquerade = Masquerade::default();
    masquerade.set_pods(pods.iter().map(|addr| addr.parse().unwrap()).collect());
    let inside: Vec<IpNet> = inside.iter().map(|net| net.parse().unwrap()).collect();
    masquerade.set_inside(&inside);
    masquerade.plan()
}

#[test]
fn pods_see_pods_and_the_world_sees_the_node() {
    in_netns(|| {
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let (a, b) = (pod("sva", "10.244.0.2"), pod("svb", "10.244.0.3"));
        let (far, out) = (pod("up0", "10.244.9.9"), pod("up1", "203.0.113.9"));
        let thread = Thread::start();
        thread.keep(
            1,
            wanted(&["10.244.0.2"], &["10.244.0.0/16", "fd00:10:244::/48"]),
        );
        assert_eq!(seen(&a, &out, "203.0.113.9"), NODE);
        assert_eq!(seen(&a, &far, "10.244.9.9"), "10.244.0.2");
        assert_eq!(seen(&b, &out, "203.0.113.9"), "10.244.0.3", "did not ask");

        // By elements; then another node's prefix. The chain stays, in which packets may be.
        let handle = || sh("nft -a list chain inet selvage-nat postrouting");
        let before = handle();
        let two = || {
            let pods = ["10.244.0.3", "fd00:10:244::3"];
            wanted(&pods, &["10.244.0.0/16", "fd00:10:244::/48"])
        };
        thread.keep(2, two());
        assert_eq!(seen(&a, &out, "203.0.113.9"), "10.244.0.2");
        assert_eq!(seen(&b, &out, "203.0.113.9"), NODE);
        thread.keep(3, wanted(&["10.244.0.3"], &["10.244.0.0/24"]));
        assert_eq!(seen(&b, &far, "10.244.9.9"), NODE);
        // Another run of the agent keeps the chain, too, and changes what is in the sets.
        thread.end();
        let thread = Thread::start();
        thread.keep(1, two());
        assert_eq!(handle(), before);
        assert_eq!(seen(&b, &far, "10.244.9.9"), "10.244.0.3");
        thread.end();
        assert_eq!(open::cleanup(false).unwrap().tables, ["selvage-nat"]);
    });
}

/// Another program that translates sources at the priority that they all take finds ours before it, whoever was made last.
#[test]
fn ours_is_before_other_programs() {
    in_netns(|| {
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let (a, out) = (pod("sva", "10.244.0.2"), pod("up1", "203.0.113.9"));
        let other = || {
            sh(
                "nft 'table ip other { chain c { type nat hook postrouting priority 100; ip saddr 10.244.0.2 snat to 198.51.100.7; }; }'",
            )
        };
        for ours_is_last in [true, false] {
            if ours_is_last {
                other();
            }
            let thread = Thread::start();
            thread.keep(1, wanted(&["10.244.0.2"], &["10.244.0.0/16"]));
            if !ours_is_last {
                other();
            }
            let source = seen(&a, &out, "203.0.113.9");
            assert_eq!(source, NODE, "ours is last: {ours_is_last}");
            thread.end();
            sh("nft flush ruleset");
        }
    });
}

/// Without the policy table, which this thread does not know here.
#[test]
fn every_damage_is_healed_without_being_asked() {
    in_netns(|| {
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let (a, out) = (pod("sva", "10.244.0.2"), pod("up1", "203.0.113.9"));
        let thread = Thread::start();
        thread.keep(
            1,
            wanted(&["10.244.0.2"], &["10.244.0.0/16", "fd00:10:244::/48"]),
        );
        let listed = || sh("nft list table inet selvage-nat");
        let before = listed();
        for damage in [
            "delete table inet selvage-nat",
            "flush table inet selvage-nat",
            "flush chain inet selvage-nat postrouting",
            "flush set inet selvage-nat pods4",
            "flush set inet selvage-nat inside4",
            "delete element inet selvage-nat pods4 { 10.244.0.2 }",
            "add element inet selvage-nat inside4 { 203.0.113.0/24 }",
            "insert rule inet selvage-nat postrouting accept",
            "add rule inet selvage-nat postrouting accept",
            "add chain inet selvage-nat postrouting { policy drop; }",
            "add chain inet selvage-nat x { type nat hook postrouting priority 5; }",
            "add set inet selvage-nat x { type ipv4_addr; }",
            "delete table inet selvage-nat; add table inet selvage-nat; add chain inet selvage-nat postrouting \
             { type nat hook postrouting priority 120; }",
            "flush ruleset",
        ] {
            sh(&format!("nft -f - <<'END'\n{damage}\nEND\n"));
            let NftEvent::Repaired { table, by } = thread.event() else {
                panic!("{damage}")
            };
            assert_eq!(
                (table.as_str(), by.as_str()),
                ("selvage-nat", "nft"),
                "{damage}"
            );
            until(damage, || listed() == before);
            assert_eq!(seen(&a, &out, "203.0.113.9"), NODE, "{damage}");
        }
        thread.end();
    });
}
