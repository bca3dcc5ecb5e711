//! Whom the world outside sees, and whom other pods see.

use std::{
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
};

use selvage::kernel::{
    masquerade::{Masquerade, Masqueraded},
    open,
};
use selvage_netlink::netns;

use super::{flows::pod, in_netns, sh};

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

fn wanted(pods: &[&str], inside: &[&str]) -> Masqueraded {
    Masqueraded {
        pods: pods.iter().map(|addr| addr.parse().unwrap()).collect(),
        inside: inside.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

#[test]
fn pods_see_pods_and_the_world_sees_the_node() {
    in_netns(|| {
        sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let (a, b) = (pod("sva", "10.244.0.2"), pod("svb", "10.244.0.3"));
        let (far, out) = (pod("up0", "10.244.9.9"), pod("up1", "203.0.113.9"));
        let mut masquerade = Masquerade::open().unwrap();
        let one = wanted(&["10.244.0.2"], &["10.244.0.0/16", "fd00:10:244::/48"]);
        masquerade.apply(&one).unwrap();
        assert_eq!(seen(&a, &out, "203.0.113.9"), NODE);
        assert_eq!(seen(&a, &far, "10.244.9.9"), "10.244.0.2");
        assert_eq!(seen(&b, &out, "203.0.113.9"), "10.244.0.3", "did not ask");

        // By elements; then another node's prefix; then after somebody's flush.
        let two = wanted(
            &["10.244.0.3", "fd00:10:244::3"],
            &["10.244.0.0/16", "fd00:10:244::/48"],
        );
        masquerade.apply(&two).unwrap();
        assert_eq!(seen(&a, &out, "203.0.113.9"), "10.244.0.2");
        assert_eq!(seen(&b, &out, "203.0.113.9"), NODE);
        let third = wanted(&["10.244.0.3"], &["10.244.0.0/24"]);
        masquerade.apply(&third).unwrap();
        assert_eq!(seen(&b, &far, "10.244.9.9"), NODE);
        // Another run of the agent keeps the chain and replaces what is in the sets.
        let handle = || sh("nft -a list chain inet selvage-nat postrouting");
        let before = handle();
        let mut next = Masquerade::open().unwrap();
        next.apply(&two).unwrap();
        assert_eq!(handle(), before);
        assert_eq!(seen(&b, &far, "10.244.9.9"), "10.244.0.3");
        sh("nft flush ruleset");
        masquerade.doubt();
        masquerade.apply(&third).unwrap();
        assert_eq!(seen(&b, &out, "203.0.113.9"), NODE);
        // A change that meets a table that is gone makes it anew.
        sh("nft flush ruleset");
        masquerade.apply(&one).unwrap();
        assert_eq!(seen(&a, &out, "203.0.113.9"), NODE);
        assert_eq!(open::cleanup(false).unwrap().tables, ["selvage-nat"]);
    });
}
