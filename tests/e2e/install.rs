//! What `selvage install` makes of a node, and `selvage cleanup` of that.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Lab, Link, Netns, eventually_ok, programs};
use selvage_netlink::{Prefix, route};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::harness::{Case, Need};
use crate::scene::{OWN, SOON, prefix};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("e2e::install_is_undone_by_cleanup", OWN, install),
        Case::new(
            "e2e::install_writes_only_what_is_wrong",
            &[
                Need::Own("selvage"),
                Need::Own("selvage-cni"),
                Need::System("unshare", "util-linux"),
            ],
            read_only,
        ),
    ]
}

/// A node, and where its files are.
struct Node {
    netns: Netns,
    /// It lives as long as this.
    _uplink: Link,
    bin: PathBuf,
    state: PathBuf,
    conf: PathBuf,
}

/// What a fresh node of a distribution may look like.
const FRESH: [(&str, &str); 7] = [
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
    ("net/ipv6/conf/eth0/accept_ra", "1"),
    ("net/ipv4/conf/eth0/rp_filter", "1"),
    ("net/ipv4/nexthop_compat_mode", "1"),
    ("net/ipv4/fib_multipath_hash_policy", "0"),
    ("net/ipv6/fib_multipath_hash_policy", "0"),
];

/// What it is like afterwards.
const READY: [(&str, &str); 7] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/eth0/accept_ra", "2"),
    ("net/ipv4/conf/eth0/rp_filter", "2"),
    ("net/ipv4/nexthop_compat_mode", "0"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    ("net/ipv6/fib_multipath_hash_policy", "1"),
];

impl Node {
    /// On a network with a router that advertises itself.
    fn new(lab: &Lab) -> Result<Node> {
        let network = lab.network("rack", &[prefix("192.0.2.0/24")?, prefix("2001:db8::/64")?])?;
        let (netns, router) = (lab.netns("n1")?, lab.netns("router")?);
        let own = network.join(&netns)?;
        let uplink = network.join(&router)?.index();
        for (name, value) in FRESH {
            netns.set_sysctl(name, value)?;
        }
        eventually_ok(SOON, "the node has the router's route", || {
            router.run(|| advertise(uplink))?;
            ensure!(advertised(&netns)? == 1, "no route yet");
            Ok(())
        })?;
        Ok(Node {
            netns,
            _uplink: own,
            bin: lab.directory().join("bin"),
            state: lab.directory().join("state"),
            conf: lab.subdirectory("net.d")?,
        })
    }

    fn run(&self, mut command: Command, words: &[&str]) -> Result<Output> {
        command.args(words).arg("--cni-bin-dir").arg(&self.bin);
        command.arg("--state-dir").arg(&self.state);
        command.args(["-o", "json"]);
        self.netns.run(|| Ok(command.output()?))
    }

    fn install(&self) -> Result<Value> {
        answer(&self.run(Command::new(programs::find("selvage")?), &["install"])?)
    }

    fn cleanup(&self) -> Result<Value> {
        let conf = self.conf.to_str().context("path")?;
        let words = ["cleanup", "--cni-conf-dir", conf];
        answer(&self.run(Command::new(programs::find("selvage")?), &words)?)
    }

    fn is(&self, wanted: [(&str, &str); 7]) -> Result<()> {
        for (name, value) in wanted {
            let is = self.netns.sysctl(name)?;
            ensure!(is == value, "{name} is {is}, not {value}");
        }
        Ok(())
    }
}

fn answer(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{}: {text}{}", output.status, errors(output));
    }
    serde_json::from_str(&text).with_context(|| text.into_owned())
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends a Router Advertisement (RFC 4861, 4.2): a router for half an hour, no prefixes.
fn advertise(uplink: u32) -> Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    // From elsewhere than the link it would be ignored.
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(uplink)?;
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    // The kernel fills in the checksum.
    let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let to: SockAddr = SocketAddrV6::new(all_nodes, 0, 0, uplink).into();
    socket.send_to(&message, &to)?;
    Ok(())
}

/// How many default routes a router's advertisement has made.
fn advertised(netns: &Netns) -> Result<usize> {
    let filter = route::Filter {
        protocol: Some(9),
        ..route::Filter::default()
    };
    let routes = route::list(&mut netns.rtnetlink()?, true, &filter)?;
    let default = Prefix::default_of(true);
    Ok(routes
        .iter()
        .filter(|route| route.prefix == default)
        .count())
}

fn install(lab: &Lab) -> Result<()> {
    let node = Node::new(lab)?;
    let first = node.install()?;
    let files = [node.bin.join("loopback"), node.bin.join("selvage-cni")];
    ensure!(first["files"] == json!(files), "{first}");
    ensure!(
        first["sysctls"].as_array().map(Vec::len) == Some(7),
        "{first}"
    );
    ensure!(first["warnings"] == json!([]), "{first}");
    node.is(READY)?;
    ensure!(
        advertised(&node.netns)? == 1,
        "the uplink has lost its router"
    );

    let nothing = json!({"files": [], "sysctls": [], "warnings": []});
    let second = node.install()?;
    ensure!(second == nothing, "{second}");

    let removed = node.cleanup()?;
    ensure!(
        removed["sysctls"].as_array().map(Vec::len) == Some(7),
        "{removed}"
    );
    node.is(FRESH)?;
    for path in files.iter().chain([&node.state]) {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let again = node.cleanup()?;
    ensure!(
        again["files"] == json!([]) && again["sysctls"] == json!([]),
        "{again}"
    );
    Ok(())
}

/// As in a container without privileges: `/proc/sys` cannot be written.
fn read_only(lab: &Lab) -> Result<()> {
    let node = Node::new(lab)?;
    let unprivileged = || -> Result<Output> {
        let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]);
        command.arg(programs::find("selvage")?);
        node.run(command, &["install"])
    };
    let refused = unprivileged()?;
    let said = errors(&refused);
    let (what, hint) = (
        "eth0/accept_ra is 1 and cannot be set to 2",
        "privileged: true",
    );
    ensure!(
        refused.status.code() == Some(1) && said.contains(what) && said.contains(hint),
        "{said}"
    );
    node.is(FRESH)?;
    // What only costs is a warning.
    for (name, value) in &READY[..4] {
        node.netns.set_sysctl(name, value)?;
    }
    let done = answer(&unprivileged()?)?;
    let warnings = done["warnings"].to_string();
    ensure!(
        done["sysctls"] == json!([]) && warnings.contains("nexthop_compat_mode"),
        "{done}"
    );
    ensure!(
        Path::new(&node.bin.join("selvage-cni")).exists(),
        "no plugin"
    );
    Ok(())
}
