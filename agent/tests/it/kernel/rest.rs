//! Links as facts, interfaces that wait for us, and what a cleanup leaves.

use std::{collections::BTreeMap, sync::mpsc};

use selvage::{
    config::Features,
    inbox::Inbox,
    kernel::{
        Shutdown,
        open::{Removed, cleanup, open},
        watch::{Links, spawn},
    },
    pod_interfaces::PodInterfaces,
    store::Observed,
};

use super::{in_netns, sh, until};

#[test]
fn links_and_addresses_become_facts() {
    in_netns(|| {
        sh("ip link add v0 type veth peer name v1; ip addr add 10.0.0.1/24 dev v0");
        let (stop, inbox) = Inbox::new().unwrap();
        let (sender, facts) = mpsc::channel();
        let handle = spawn(inbox, Features::ALL, PodInterfaces::Ours, move |fact| {
            drop(sender.send(fact))
        })
        .unwrap();
        let mut seen = BTreeMap::new();
        let apply = |fact: Observed, seen: &mut BTreeMap<u32, _>| match fact {
            Observed::Links(links) => *seen = links,
            Observed::Link(index, link) => drop(seen.insert(index, link)),
            Observed::LinkGone(index) => drop(seen.remove(&index)),
            Observed::Sysctls(_) | Observed::Forwarding { .. } => {}
            _ => unreachable!(),
        };
        apply(facts.recv().unwrap(), &mut seen);
        let v0 = seen
            .iter()
            .find(|(_, link)| link.name == "v0")
            .map(|(index, _)| *index)
            .unwrap();
        assert!(!seen[&v0].up && seen[&v0].addresses[0].to_string() == "10.0.0.1/24");
        sh(
            "ip link set v0 up; ip link set v1 up; ip link set v0 group 7 mtu 1400
            ip addr add fd00::1/64 dev v0 nodad; ip addr del 10.0.0.1/24 dev v0",
        );
        until("all of it is told", || {
            facts.try_iter().for_each(|fact| apply(fact, &mut seen));
            let link = &seen[&v0];
            let texts: Vec<String> = link.addresses.iter().map(|net| net.to_string()).collect();
            link.carrier
                && (link.group, link.mtu) == (7, 1400)
                && texts.contains(&"fd00::1/64".to_owned())
                && !texts.contains(&"10.0.0.1/24".to_owned())
        });
        until("and what a new reading shows", || {
            facts.try_iter().for_each(|fact| apply(fact, &mut seen));
            *Links::open(PodInterfaces::Ours).unwrap().all() == seen
        });
        sh("ip link add br0 type bridge; ip link set v1 master br0; ip link set v1 nomaster");
        sh("ip link del br0");
        until("a port that leaves its bridge stays a link", || {
            facts.try_iter().for_each(|fact| apply(fact, &mut seen));
            *Links::open(PodInterfaces::Ours).unwrap().all() == seen
        });
        sh("ip link del v0");
        until("gone", || {
            facts.try_iter().for_each(|fact| apply(fact, &mut seen));
            seen.len() == 1
        });
        stop.send(Shutdown::Now);
        handle.join().unwrap();
    });
}

/// Read at the start and whenever a link changes that is no pod's.
#[test]
fn sysctls_that_are_wrong_become_facts() {
    in_netns(|| {
        let set = |value: &str| {
            sh(&format!(
                "sysctl -qw net.ipv4.fib_multipath_hash_policy={value} net.ipv6.fib_multipath_hash_policy={value}"
            ))
        };
        let hash = |fact: &Observed| match fact {
            Observed::Sysctls(wrong) => {
                let named = wrong.iter().map(|setting| setting.assignment());
                Some(named.filter(|name| name.contains("hash_policy")).count())
            }
            _ => None,
        };
        set("0");
        let (stop, inbox) = Inbox::new().unwrap();
        let (sender, facts) = mpsc::channel();
        let handle = spawn(inbox, Features::ALL, PodInterfaces::Ours, move |fact| {
            drop(sender.send(fact))
        })
        .unwrap();
        let first = facts.iter().find_map(|fact| hash(&fact));
        assert_eq!(first, Some(2), "at the start");
        set("1");
        // Only what comes after an uplink makes them read again: a pod's link is told without.
        sh(
            "ip link add sv1 group 0x5e1 type veth peer name p1 group 0x5e1; ip link add v0 type veth peer name v1",
        );
        let mut before = Vec::new();
        let second = facts.iter().find_map(|fact| {
            if let Observed::Link(_, link) = &fact {
                before.push(link.name.clone());
            }
            hash(&fact)
        });
        assert_eq!(second, Some(0), "after {before:?}");
        assert!(
            before.iter().any(|name| name == "v0" || name == "v1"),
            "{before:?}"
        );
        // A link that is gone may have been one of those that are wrong.
        set("0");
        sh("ip link del v0");
        until("read again when an uplink is gone", || {
            facts.try_iter().filter_map(|fact| hash(&fact)).last() == Some(2)
        });
        stop.send(Shutdown::Now);
        handle.join().unwrap();
    });
}

#[test]
fn cleanup_leaves_nothing_of_ours_and_everything_else() {
    in_netns(|| {
        sh("ip link add sv1 group 0x5e1 type veth peer name p1; ip link add v0 type veth peer name v1
            ip link add si1 group 0x5e1 type ifb
            ip link set v0 up; ip link set v1 up; ip addr add 10.0.0.1/24 dev v0
            nft add table inet other; nft add table inet selvage; nft add table inet selvage-cni; nft add table ip selvage
            ip route add 10.1.0.0/16 via 10.0.0.9 proto 186
            ip nexthop add id 7 via 10.0.0.9 dev v0; ip nexthop add id 0x5e100009 via 10.0.0.9 dev v0");
        let others =
            || sh("ip route show proto 186; ip nexthop; nft list tables; ip -o link | grep -c .");
        let before = others();
        let index = sh("ip -o link show sv1 | cut -d: -f1");
        let index: u32 = index.trim().parse().unwrap();
        open(
            index,
            &[
                "10.244.0.2".parse().unwrap(),
                "fd00:244::2".parse().unwrap(),
            ],
        )
        .unwrap();
        open(
            index,
            &[
                "10.244.0.2".parse().unwrap(),
                "fd00:244::2".parse().unwrap(),
            ],
        )
        .unwrap();
        sh("ip nexthop add id 0x5e100000 via 10.0.0.9 dev v0 proto 85; ip nexthop add id 0x5e180000 group 0x5e100000 proto 85
            ip route add 10.2.0.0/16 nhid 0x5e180000 proto 85 metric 1085; ip -6 route add blackhole fd00:244::/64 proto 85 metric 65085
            ip route add 10.3.0.0/16 via 10.0.0.9 proto 85 table 100");
        // A pod that runs keeps its network, unless it is asked for.
        let kept = || {
            sh(
                "ip route show proto 86; ip -6 route show proto 86; nft list table inet selvage-cni; ip -o link show sv1; ip -o link show si1",
            )
        };
        let pod = kept();
        let removed = cleanup(false).unwrap();
        let first = Removed {
            routes: 3,
            nexthops: 2,
            tables: vec!["selvage".to_owned()],
            links: Vec::new(),
        };
        assert_eq!(removed, first);
        assert_eq!((kept(), pod.lines().count() > 3), (pod, true));
        let removed = cleanup(true).unwrap();
        let rest = Removed {
            routes: 2,
            nexthops: 0,
            tables: vec!["selvage-cni".to_owned()],
            links: vec!["sv1".to_owned(), "si1".to_owned()],
        };
        assert_eq!(removed, rest);
        let after = before
            .replace("table inet selvage\n", "")
            .replace("table inet selvage-cni\n", "")
            .replace("\n6\n", "\n3\n");
        assert_eq!(others(), after);
        assert!(cleanup(true).unwrap().is_nothing());
    });
}

#[test]
fn forwarding_that_is_switched_becomes_a_fact() {
    in_netns(|| {
        let (stop, inbox) = Inbox::new().unwrap();
        let (sender, facts) = mpsc::channel();
        let handle = spawn(inbox, Features::ALL, PodInterfaces::Ours, move |fact| {
            drop(sender.send(fact))
        })
        .unwrap();
        let told = |ipv4, ipv6| {
            let (ipv4, ipv6) = (Some(ipv4), Some(ipv6));
            let wanted = Observed::Forwarding { ipv4, ipv6 };
            until("forwarding is told", || {
                facts.try_iter().any(|fact| fact == wanted)
            });
        };
        sh(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        );
        told(true, true);
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
        told(false, true);
        sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
        told(false, false);
        stop.send(Shutdown::Graceful);
        handle.join().unwrap();
    });
}
