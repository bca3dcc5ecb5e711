//! The kernel itself: random worlds in network namespaces, packets from everybody to everybody, and the ones that
//! arrive are those that the oracle lets through.
//!
//! A pod, here or elsewhere, and a host is a namespace of its own behind a veth. Destinations record in a set of
//! nftables who reached them, and drop; so nothing has to listen, and nothing is ever established.

use crate::oracle::{self, Probe};
use crate::strategy::world;
use crate::world::World;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use selvage_policy::Config;
use selvage_policy::plan::{IfaceMatch, text};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

/// In every other one the interfaces of pods are found by name instead of by group.
const WORLDS: usize = 6;
/// Interfaces of pods begin with one of these.
const PREFIXES: [&str; 5] = ["sv0", "sv1", "sv2", "sv3", "sv4"];
const KINDS: [(&str, u16); 4] = [("TCP", 80), ("TCP", 8080), ("UDP", 53), ("UDP", 80)];
const NODE: [&str; 2] = ["172.16.0.1", "fd99::1"];
/// Hosts beside the pods: outside, and another node.
const HOSTS: [(&str, [&str; 2]); 2] = [
    ("ext", ["192.0.2.1", "2001:db8::1"]),
    ("node2", ["172.16.0.2", "fd99::2"]),
];

/// Somebody with a namespace.
struct Host {
    name: String,
    /// The end of its veth on the node.
    ifname: String,
    group: u32,
    addresses: Vec<IpAddr>,
}

fn sample(runner: &mut TestRunner) -> World {
    let mut world = world().new_tree(runner).expect("a value").current();
    world.pods.retain(|pod| !pod.host_network);
    let mut taken = BTreeSet::new();
    // One address per family, its own: the shell cannot choose the source.
    for pod in &mut world.pods {
        let mut families = BTreeSet::new();
        pod.addresses
            .retain(|addr| taken.insert(*addr) && families.insert(addr.is_ipv4()));
    }
    world
}

/// `grouped`: the interfaces of pods are in their group.
fn hosts(world: &World, grouped: bool) -> Vec<Host> {
    let pods = world.pods.iter().enumerate().map(|(i, pod)| Host {
        name: pod.key().to_string(),
        ifname: pod.ifname.clone().unwrap_or_else(|| format!("eth{i}")),
        group: if pod.ifname.is_some() && grouped {
            crate::equivalence::POD_GROUP
        } else {
            0
        },
        addresses: pod.addresses.clone(),
    });
    let others = HOSTS.iter().map(|(name, addresses)| Host {
        name: (*name).to_owned(),
        ifname: (*name).to_owned(),
        group: 0,
        addresses: crate::world::addresses(addresses),
    });
    pods.chain(others).collect()
}

fn config(grouped: bool) -> Config {
    let by_name = || PREFIXES.map(|prefix| IfaceMatch::Prefix(prefix.into()));
    let mut config = crate::world::config();
    if !grouped {
        config.pod_interfaces = by_name().into();
    }
    config
}

const PRELUDE: &str = r#"
pids=
trap 'kill $pids 2>/dev/null' EXIT
settings() {
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
    echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
    # An attempt that nobody answers ends after two packets, three seconds.
    echo 1 >/proc/sys/net/ipv4/tcp_syn_retries
    ip link set lo up
}
settings
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"#;

const RECORDER: &str = "add table inet probe
add set inet probe seen4 { type ipv4_addr . inet_proto . inet_service; flags dynamic; size 65535; }
add set inet probe seen6 { type ipv6_addr . inet_proto . inet_service; flags dynamic; size 65535; }
add chain inet probe in { type filter hook input priority 0; policy accept; }
add rule inet probe in meta nfproto ipv4 meta l4proto { tcp, udp } update @seen4 { ip saddr . meta l4proto . th dport } drop
add rule inet probe in meta nfproto ipv6 meta l4proto { tcp, udp } update @seen6 { ip6 saddr . meta l4proto . th dport } drop
";

/// Makes the namespace of a host, its veth, addresses and routes.
fn create(out: &mut String, n: usize, host: &Host) -> std::fmt::Result {
    let (name, group) = (&host.ifname, host.group);
    writeln!(out, "unshare -n sleep 600 & p{n}=$!; pids=\"$pids $p{n}\"")?;
    writeln!(
        out,
        "until [ \"$(readlink /proc/$p{n}/ns/net)\" != \"$(readlink /proc/$$/ns/net)\" ]; do :; done"
    )?;
    writeln!(
        out,
        "ip link add {name} group {group} type veth peer name eth0 netns $p{n}"
    )?;
    writeln!(
        out,
        "ip addr add 169.254.1.1/32 dev {name}; ip addr add fe80::1/64 dev {name} nodad; ip link set {name} up"
    )?;
    writeln!(
        out,
        "nsenter -t $p{n} -n bash <<'END'\n{}\nip link set eth0 up",
        settings()
    )?;
    writeln!(
        out,
        "ip addr add 169.254.7.{n}/32 dev eth0; ip route add 169.254.1.1 dev eth0 src 169.254.7.{n}"
    )?;
    for addr in &host.addresses {
        match addr {
            IpAddr::V4(a) => writeln!(
                out,
                "ip addr add {a}/32 dev eth0; ip route add default via 169.254.1.1 dev eth0 src {a} metric {}",
                10 + n
            )?,
            IpAddr::V6(a) => writeln!(
                out,
                "ip addr add {a}/128 dev eth0 nodad; ip -6 route add default via fe80::1 dev eth0 src {a}"
            )?,
        }
    }
    writeln!(out, "nft -f - <<'RULES'\n{RECORDER}RULES\nEND")?;
    for addr in &host.addresses {
        let source = if addr.is_ipv4() { NODE[0] } else { NODE[1] };
        writeln!(out, "ip route add {addr} dev {name} src {source}")?;
    }
    Ok(())
}

/// The settings of a namespace, without the function around them.
fn settings() -> &'static str {
    let body = PRELUDE
        .split_once("settings() {")
        .and_then(|(_, rest)| rest.split_once('}'));
    body.map(|(body, _)| body)
        .expect("the function in the prelude")
}

/// Sends packets of every kind to each of these, all at once; then once more, since neighbours are known only now and
/// what had to wait for them may have been lost. Connection requests are repeated by the kernel.
fn send(out: &mut String, run: &str, to: &[IpAddr]) -> std::fmt::Result {
    writeln!(out, "{run} bash 2>/dev/null <<'END' &")?;
    for wanted in ["", "UDP"] {
        for addr in to {
            for (protocol, port) in KINDS
                .into_iter()
                .filter(|(protocol, _)| protocol.contains(wanted))
            {
                writeln!(
                    out,
                    "( echo x >/dev/{}/{addr}/{port} ) &",
                    protocol.to_lowercase()
                )?;
            }
        }
        writeln!(out, "wait")?;
    }
    writeln!(out, "END\nsenders=\"$senders $!\"")
}

fn script(world: &World, hosts: &[Host], grouped: bool) -> Result<String, std::fmt::Error> {
    let mut out = PRELUDE.to_owned();
    writeln!(
        out,
        "ip addr add {}/32 dev lo; ip addr add {}/128 dev lo nodad",
        NODE[0], NODE[1]
    )?;
    for (n, host) in hosts.iter().enumerate() {
        create(&mut out, n, host)?;
    }
    writeln!(
        out,
        "nft -f - <<'END'\n{}END",
        text::plan(world.compiler_with(config(grouped)).plan())
    )?;
    let all: Vec<IpAddr> = hosts
        .iter()
        .flat_map(|host| host.addresses.iter().copied())
        .collect();
    out += "senders=\n";
    for (n, host) in hosts.iter().enumerate() {
        let others: Vec<_> = all
            .iter()
            .copied()
            .filter(|addr| !host.addresses.contains(addr))
            .collect();
        send(&mut out, &format!("nsenter -t $p{n} -n"), &others)?;
    }
    send(&mut out, "", &all)?;
    out += "wait $senders\n";
    for (n, host) in hosts.iter().enumerate() {
        for set in ["seen4", "seen6"] {
            let list =
                format!("nsenter -t $p{n} -n nft list set inet probe {set} | tr -d ' \\n\\t'");
            writeln!(out, "echo \"SEEN {} $({list})\"", host.name)?;
        }
    }
    Ok(out)
}

/// What arrived: destination's name, source, protocol, port.
fn parse(output: &str) -> BTreeSet<(String, IpAddr, String, u16)> {
    let mut seen = BTreeSet::new();
    for line in output.lines().filter_map(|line| line.strip_prefix("SEEN ")) {
        let Some((name, list)) = line.split_once(' ') else {
            continue;
        };
        let Some((_, elements)) = list.split_once("elements={") else {
            continue;
        };
        for element in elements.trim_end_matches('}').split(',') {
            // An IPv4 address has dots of its own.
            let mut parts = element.rsplitn(3, '.');
            let port = parts.next().and_then(|p| p.parse().ok()).expect(element);
            let protocol = parts.next().expect(element).to_uppercase();
            let addr = parts.next().and_then(|a| a.parse().ok()).expect(element);
            seen.insert((name.to_owned(), addr, protocol, port));
        }
    }
    seen
}

#[test]
fn the_kernel_lets_through_what_the_specification_allows() {
    let mut runner = TestRunner::deterministic();
    let mut count: BTreeMap<bool, usize> = BTreeMap::new();
    let worlds: Vec<_> = std::iter::repeat_with(|| sample(&mut runner))
        .take(WORLDS)
        .collect();
    let run = |world: &World, grouped: bool| {
        let hosts = hosts(world, grouped);
        let script = script(world, &hosts, grouped).expect("a script");
        let output = crate::nft::run_with("bash", &script);
        (hosts, output)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = worlds
            .iter()
            .enumerate()
            .map(|(n, world)| scope.spawn(move || run(world, n % 2 == 0)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an output"))
            .collect()
    });
    for (world, (hosts, output)) in worlds.iter().zip(&results) {
        let seen = parse(output);
        let sources = hosts.iter().flat_map(|host| host.addresses.iter().copied());
        for source in sources.chain(crate::world::addresses(&NODE)) {
            for destination in hosts {
                let others = destination
                    .addresses
                    .iter()
                    .filter(|a| a.is_ipv4() == source.is_ipv4());
                for (addr, (protocol, port)) in others.flat_map(|a| KINDS.map(|kind| (*a, kind))) {
                    if destination.addresses.contains(&source) {
                        continue;
                    }
                    let probe = Probe {
                        source,
                        destination: addr,
                        protocol,
                        port,
                    };
                    let Some(expected) = expected(world, &probe) else {
                        continue;
                    };
                    let arrived = seen.contains(&(
                        destination.name.clone(),
                        source,
                        protocol.to_owned(),
                        port,
                    ));
                    assert_eq!(arrived, expected, "{probe:?}\n{world:#?}\n{output}");
                    *count.entry(arrived).or_default() += 1;
                }
            }
        }
    }
    assert!(
        count.len() == 2,
        "{count:?}: nothing arrived, or everything"
    );
}

/// What the node between them does: the ends elsewhere have no rules here, and what is attached but not dispatched
/// is closed. `None`: the node's own packets to such an interface, which it does not filter, but which need an answer
/// of the neighbour that may not come.
fn expected(world: &World, probe: &Probe) -> Option<bool> {
    let closed = |addr| {
        let attached =
            |pod: &&crate::world::Pod| pod.ifname.is_some() && pod.addresses.contains(&addr);
        world
            .pods
            .iter()
            .find(attached)
            .is_some_and(|pod| pod.finished)
    };
    if oracle::is_own_node(probe.source) && closed(probe.destination) {
        return None;
    }
    let here = |addr| oracle::pod_at(world, addr).is_some_and(|pod| pod.ifname.is_some());
    let (egress, ingress) = oracle::judge(world, probe);
    let open = !closed(probe.source) && !closed(probe.destination);
    Some(open && (egress || !here(probe.source)) && (ingress || !here(probe.destination)))
}
