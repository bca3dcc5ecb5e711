//! Learned routes: nexthop groups, restarts, links that come and go, other people's routes.

use std::{net::IpAddr, sync::mpsc};

use selvage::{
    inbox::{Inbox, Sender},
    kernel::{
        RoutePolicy, Shutdown,
        routes::{Kernel, Reply, RouteEvent, RouteFacts, RouteTable, RouteWork, Settings, spawn},
    },
};
use selvage_bgp_core::{
    clock::Now,
    ids::Family,
    rib::{RouteChange, RouteOrigin, RouteSet},
    wire::attr::NextHop,
};

use super::{in_netns, sh, until};

/// Two links, v0 with 10.0.0.0/24 and fd00::/64, w0 with 10.0.1.0/24 and fd00:1::/64; the other
/// ends are v1 and w1.
const LINKS: &str = "
    for l in v w; do ip link add ${l}0 type veth peer name ${l}1; ip link set ${l}1 up; ip link set ${l}0 up; done
    ip addr add 10.0.0.1/24 dev v0; ip addr add fd00::1/64 dev v0 nodad
    ip addr add 10.0.1.1/24 dev w0; ip addr add fd00:1::1/64 dev w0 nodad
    for f in v0 w0; do while ! ip -o link show $f | grep -q 'state UP'; do sleep 0.01; done; done";

/// The core with the kernel behind it.
struct Core {
    kernel: Kernel,
    table: RouteTable,
}

impl Core {
    fn start() -> Self {
        let mut kernel = Kernel::open().unwrap();
        let underlay = kernel.read_underlay().unwrap();
        let objects = kernel.has_objects().unwrap();
        let table = RouteTable::start(RoutePolicy::default(), underlay, objects, &mut kernel);
        let table = table.unwrap();
        Core { kernel, table }
    }

    fn commit(&mut self) -> u64 {
        let before = self.table.facts().writes;
        self.kernel.listen(&mut self.table);
        self.table.commit(&mut self.kernel, Now(0));
        self.table.facts().writes - before
    }

    fn change(&mut self, changes: &[RouteChange]) -> u64 {
        self.table.change(changes);
        self.commit()
    }

    fn complete(&mut self, family: Family) {
        self.table.synced(family);
        self.table.sweep(family);
    }

    fn synced(&mut self) -> u64 {
        Family::ALL
            .into_iter()
            .for_each(|family| self.complete(family));
        self.commit()
    }
}

fn change(prefix: &str, next_hops: &[&str]) -> RouteChange {
    let hops: Vec<NextHop> = next_hops
        .iter()
        .map(|hop| NextHop::from(hop.parse::<std::net::IpAddr>().unwrap()))
        .collect();
    RouteChange {
        prefix: prefix.parse().unwrap(),
        set: (!hops.is_empty()).then(|| RouteSet {
            origin: RouteOrigin::Ibgp,
            next_hops: hops.into(),
        }),
    }
}

/// Our routes as `ip` shows them, without the numbers of objects.
fn ours() -> String {
    sh(
        "for f in -4 -6; do ip -o $f route show proto 85 table all | sed -E 's/nhid [0-9]+ //; s/ *$//' | sort; done",
    )
}

/// Everything that is not ours.
fn others() -> String {
    sh(
        "for f in -4 -6; do ip -o $f route show table all | grep -v 'proto 85' | sort; done; ip nexthop show | grep -v 'proto 85' || true",
    )
}

fn hops_of(addr: &str) -> String {
    sh(&format!("ip route get fibmatch {addr} 2>&1 | tr '\\n' ' '"))
}

#[test]
fn ecmp_in_both_families_reads_back() {
    in_netns(|| {
        sh(LINKS);
        let mut core = Core::start();
        core.change(&[
            change("10.1.0.0/16", &["10.0.0.9"]),
            change("10.2.0.0/16", &["10.0.0.9", "10.0.1.9"]),
            change("fd01::/32", &["fd00::9", "fd00:1::9"]),
            // RFC 8950: an IPv4 route over an IPv6 neighbour.
            change("10.3.0.0/16", &["fd00::9"]),
            change("10.4.0.0/16", &["192.0.2.1"]),
        ]);
        for (addr, parts) in [
            (
                "10.1.0.1",
                vec!["via 10.0.0.9 dev v0", "proto 85", "metric 1085", "nhid"],
            ),
            (
                "10.2.0.1",
                vec!["via 10.0.0.9 dev v0", "via 10.0.1.9 dev w0", "nhid"],
            ),
            (
                "fd01::1",
                vec!["via fd00::9 dev v0", "via fd00:1::9 dev w0", "metric 1085"],
            ),
            ("10.3.0.1", vec!["via inet6 fd00::9 dev v0"]),
        ] {
            let shown = hops_of(addr);
            assert!(
                parts.iter().all(|part| shown.contains(part)),
                "{addr}: {shown}"
            );
        }
        let facts = core.table.facts();
        assert_eq!(facts.installed, [3, 1]);
        assert_eq!(facts.unresolved[0].next_hop.to_string(), "192.0.2.1");
        // Nothing is left of it.
        core.synced();
        let gone = [
            "10.1.0.0/16",
            "10.2.0.0/16",
            "10.3.0.0/16",
            "10.4.0.0/16",
            "fd01::/32",
        ];
        core.change(&gone.map(|prefix| change(prefix, &[])));
        assert_eq!(ours(), "");
        assert_eq!(sh("ip nexthop show"), "");
    });
}

#[test]
fn a_restart_adopts_and_removes_stale_routes_after_synced_only() {
    in_netns(|| {
        sh(LINKS);
        let changes = [
            change("10.1.0.0/16", &["10.0.0.9"]),
            change("10.2.0.0/16", &["10.0.0.9", "10.0.1.9"]),
            change("fd01::/32", &["fd00::9"]),
            change("fd02::/32", &["fd00::9"]),
        ];
        let mut first = Core::start();
        first.change(&changes);
        first.table.blackholes(["10.244.0.0/24".parse().unwrap()]);
        first.synced();
        let (routes, objects) = (ours(), sh("ip nexthop show"));
        drop(first);

        let mut second = Core::start();
        assert_eq!(second.change(&changes[..3]), 0, "nothing to write");
        second.complete(Family::Ipv4);
        assert_eq!(second.commit(), 0);
        assert_eq!((ours(), sh("ip nexthop show")), (routes, objects));
        second.complete(Family::Ipv6);
        second.table.blackholes([]);
        // A route and a blackhole; the group is still in use.
        assert_eq!(second.commit(), 2);
        assert!(!ours().contains("fd02::/32") && ours().contains("fd01::/32"));
    });
}

#[test]
fn routes_of_others_are_not_touched() {
    in_netns(|| {
        sh(LINKS);
        sh("ip route add 10.1.0.0/16 via 10.0.0.8 proto 186 metric 20
            ip route add 10.1.0.0/16 via 10.0.0.8 proto 86 metric 2000
            ip route add 10.2.0.0/16 via 10.0.0.8 proto static metric 1085
            ip route add 10.1.0.0/16 via 10.0.0.8 proto 85 metric 1085 table 100
            ip -6 route add fd01::/32 via fd00::8 proto 186 metric 20
            ip -6 route add fd02::/32 via fd00::8 proto static metric 1085
            ip nexthop add id 7 via 10.0.0.7 dev v0; ip route add 10.7.0.0/16 nhid 7");
        let before = others();
        let mut core = Core::start();
        let prefixes = ["10.1.0.0/16", "10.2.0.0/16", "fd01::/32", "fd02::/32"];
        let announced = prefixes.map(|prefix| {
            change(
                prefix,
                &[if prefix.contains(':') {
                    "fd00::9"
                } else {
                    "10.0.0.9"
                }],
            )
        });
        core.change(&announced);
        core.synced();
        assert_eq!(others(), before);
        let facts = core.table.facts();
        assert_eq!((facts.installed, facts.failing), ([1, 1], 2));
        let named: Vec<String> = facts.failed.iter().map(|f| f.prefix.to_string()).collect();
        assert_eq!(named, ["10.2.0.0/16", "fd02::/32"]);
        core.change(&prefixes.map(|prefix| change(prefix, &[])));
        assert_eq!(others(), before);
        assert_eq!(
            ours().lines().count(),
            1,
            "the one in table 100: {}",
            ours()
        );
    });
}

#[test]
fn a_carrier_that_flaps_brings_everything_back() {
    in_netns(|| {
        sh(LINKS);
        let mut core = Core::start();
        core.change(&[
            change("10.1.0.0/16", &["10.0.0.9"]),
            change("10.2.0.0/16", &["10.0.0.9", "10.0.1.9"]),
            change("fd01::/32", &["fd00::9"]),
            change("fd02::/32", &["fd00::9", "fd00:1::9"]),
        ]);
        core.synced();
        let before = ours();
        sh(
            "ip link set v1 down; while ! ip -o link show v0 | grep -q NO-CARRIER; do sleep 0.01; done",
        );
        core.commit();
        let facts = core.table.facts();
        assert_eq!(facts.installed, [1, 1], "{facts:?}");
        assert!(hops_of("10.2.0.1").contains("10.0.1.9"));
        assert!(!ours().contains("v0"), "{}", ours());
        sh("ip link set v1 up; while ip -o link show v0 | grep -q NO-CARRIER; do sleep 0.01; done");
        core.commit();
        assert_eq!(ours(), before);
        // Down by hand, and back: the addresses' own routes come and go with it.
        sh("ip link set v0 down");
        core.commit();
        assert!(!ours().contains("v0"), "{}", ours());
        sh(
            "ip link set v0 up; ip addr add fd00::1/64 dev v0 nodad; while ! ip -o link show v0 | grep -q 'state UP'; do sleep 0.01; done",
        );
        core.commit();
        assert_eq!(ours(), before);
    });
}

#[test]
fn a_flap_between_two_looks_is_noticed() {
    in_netns(|| {
        sh(LINKS);
        let mut core = Core::start();
        core.change(&[change("10.1.0.0/16", &["10.0.0.9"])]);
        let before = ours();
        sh("ip link set v1 down; while ! ip -o link show v0 | grep -q NO-CARRIER; do sleep 0.01; done
            ip link set v1 up; while ip -o link show v0 | grep -q NO-CARRIER; do sleep 0.01; done");
        assert_eq!(ours(), "", "the kernel has dropped them without a word");
        core.commit();
        assert_eq!(ours(), before);
    });
}

#[test]
fn what_was_lost_while_no_agent_ran_comes_back() {
    in_netns(|| {
        sh(LINKS);
        let changes = [change("10.1.0.0/16", &["10.0.0.9"])];
        let mut core = Core::start();
        core.change(&changes);
        let before = ours();
        drop(core);
        sh("ip link set v1 down; while ! ip -o link show v0 | grep -q NO-CARRIER; do sleep 0.01; done
            ip link set v1 up; while ip -o link show v0 | grep -q NO-CARRIER; do sleep 0.01; done");
        let mut core = Core::start();
        core.change(&changes);
        assert_eq!(ours(), before);
    });
}

#[test]
fn a_gateway_that_changes_costs_one_message() {
    in_netns(|| {
        sh(LINKS);
        sh("ip route add 10.9.0.0/16 via 10.0.0.7 metric 10");
        let mut core = Core::start();
        let many: Vec<RouteChange> = (0..100)
            .map(|i| change(&format!("10.100.{i}.0/24"), &["10.9.0.1"]))
            .collect();
        core.change(&many);
        assert!(hops_of("10.100.7.1").contains("via 10.0.0.7 dev v0"));
        sh("ip route replace 10.9.0.0/16 via 10.0.1.7 metric 10");
        assert_eq!(core.commit(), 1);
        assert!(hops_of("10.100.7.1").contains("via 10.0.1.7 dev w0"));
        // The better route of another protocol goes, a worse one stays, then none.
        sh("ip route add 10.9.0.0/16 via 10.0.0.8 metric 20; ip route del 10.9.0.0/16 metric 10");
        assert_eq!(core.commit(), 1);
        assert!(hops_of("10.100.7.1").contains("via 10.0.0.8 dev v0"));
        sh("ip route del 10.9.0.0/16");
        core.commit();
        assert_eq!(ours(), "");
    });
}

#[test]
fn a_blackhole_lies_under_everything() {
    in_netns(|| {
        sh(LINKS);
        sh(
            "ip route add 10.244.0.5/32 dev v0 proto 86; ip -6 route add fd00:244::5/128 dev v0 proto 86",
        );
        let mut core = Core::start();
        core.table
            .blackholes(["10.244.0.0/24", "fd00:244::/64"].map(|p| p.parse().unwrap()));
        core.synced();
        assert_eq!(core.table.facts().blackholes, 2);
        assert!(hops_of("10.244.0.5").contains("dev v0"));
        // So `ip` shows a look-up that ends in a blackhole.
        assert!(hops_of("10.244.0.6").contains("Invalid argument"));
        // A route that somebody has for the very prefix comes first.
        sh("ip route add 10.244.0.0/24 dev w0");
        assert!(hops_of("10.244.0.6").contains("dev w0"));
        sh("ip -6 route del blackhole fd00:244::/64 proto 85 metric 65085");
        core.commit();
        assert!(ours().contains("blackhole fd00:244::/64"), "{}", ours());
        assert_eq!(core.commit(), 0);
        core.table.blackholes([]);
        core.commit();
        assert_eq!(ours(), "");
    });
}

/// The thread, and what it said last.
struct Thread {
    work: Sender<RouteWork>,
    events: mpsc::Receiver<RouteEvent>,
    handle: std::thread::JoinHandle<()>,
}

impl Thread {
    fn start() -> Self {
        let (work, inbox) = Inbox::new().unwrap();
        let (sender, events) = mpsc::channel();
        let output = move |event| drop(sender.send(event));
        let handle = spawn(Settings::default(), inbox, output).unwrap();
        Thread {
            work,
            events,
            handle,
        }
    }

    /// Everything sent before is in the kernel.
    fn facts(&self) -> RouteFacts {
        let (sender, facts) = mpsc::channel();
        let reply = move |facts: &RouteFacts| drop(sender.send(facts.clone()));
        self.work.send(RouteWork::Query(Reply(Box::new(reply))));
        facts.recv().unwrap()
    }

    fn stop(self) {
        self.work.send(RouteWork::Shutdown(Shutdown::Graceful));
        self.handle.join().unwrap();
    }
}

#[test]
fn the_thread_repairs_what_others_do() {
    in_netns(|| {
        sh(LINKS);
        let thread = Thread::start();
        assert_eq!(sh("cat /proc/sys/net/ipv4/nexthop_compat_mode").trim(), "0");
        thread
            .work
            .send(RouteWork::Watch("10.0.0.9".parse().unwrap()));
        thread.work.send(RouteWork::Changes(vec![
            change("10.1.0.0/16", &["10.0.0.9"]),
            change("fd01::/32", &["fd00::9"]),
        ]));
        for family in Family::ALL {
            thread.work.send(RouteWork::Synced(family));
        }
        assert_eq!(thread.facts().installed, [1, 1]);
        let before = ours();
        let next_hop: IpAddr = "10.0.0.9".parse().unwrap();
        let mut events: Vec<RouteEvent> = Vec::new();
        for damage in [
            "ip route del 10.1.0.0/16 proto 85",
            "ip -6 route del fd01::/32 proto 85",
            "ip route replace blackhole 10.1.0.0/16 proto 85 metric 1085",
            "ip nexthop flush proto 85",
            "ip link set v1 down",
        ] {
            sh(damage);
            if damage.ends_with("down") {
                let lost = RouteEvent::Reachability {
                    next_hop,
                    metric: None,
                };
                until("the next hop is lost", || {
                    events.extend(thread.events.try_iter());
                    events.contains(&lost)
                });
                sh("ip link set v1 up");
            }
            until(damage, || ours() == before);
        }
        let repairs = thread.facts().repairs;
        assert!(repairs >= 5, "{repairs}");
        thread.work.send(RouteWork::Blackholes(vec![
            "10.244.0.0/24".parse().unwrap(),
        ]));
        thread.facts();
        events.extend(thread.events.try_iter());
        for metric in [Some(0), None] {
            assert!(
                events.contains(&RouteEvent::Reachability { next_hop, metric }),
                "{metric:?}"
            );
        }
        assert!(events.contains(&RouteEvent::InSync(Family::Ipv6)));
        thread.stop();
        assert!(ours().contains("10.1.0.0/16"), "routes stay");
    });
}

/// The kernel lets anybody replace an object, and its protocol with it.
#[test]
fn an_object_of_ours_that_others_overwrite_is_put_back() {
    in_netns(|| {
        sh(LINKS);
        let thread = Thread::start();
        thread.work.send(RouteWork::Changes(vec![change(
            "10.1.0.0/16",
            &["10.0.0.9"],
        )]));
        for family in Family::ALL {
            thread.work.send(RouteWork::Synced(family));
        }
        assert_eq!(thread.facts().installed, [1, 0]);
        let objects = || sh("ip -o nexthop show | sort");
        let (before, routes) = (objects(), ours());
        let hop = before
            .lines()
            .find(|line| line.contains("via 10.0.0.9"))
            .and_then(|line| line.split_whitespace().nth(1))
            .unwrap();
        let replace = format!("ip nexthop replace id {hop} via 10.0.0.8 dev v0 proto static");
        for damage in [&replace, &format!("{replace}; ip nexthop del id {hop}")] {
            sh(damage);
            until(damage, || {
                (objects(), ours()) == (before.clone(), routes.clone())
            });
        }
        thread.stop();
    });
}

#[test]
fn notifications_beyond_the_buffer_lose_nothing() {
    in_netns(|| {
        sh(LINKS);
        let mut core = Core::start();
        core.change(&[change("10.1.0.0/16", &["10.0.0.9"])]);
        let before = ours();
        // Far more notifications than the buffer takes, nobody reading.
        sh("i=0; while [ $i -lt 30000 ]; do echo route add 172.16.$((i/250%250)).$((i%250))/32 dev w0 metric $((i+1)); i=$((i+1)); done | ip -batch -
            ip route del 10.1.0.0/16 proto 85");
        core.commit();
        core.commit();
        assert_eq!(ours(), before);
        assert!(core.table.facts().readings > 1);
    });
}
