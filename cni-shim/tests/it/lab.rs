//! A node and its pods as namespaces without names, and calls of the plugin in them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use selvage_cni::handover::Budget;
use selvage_cni::plugin;
use selvage_cni::spec::Environment;
use selvage_netlink::link::{self, Link};
use selvage_netlink::{Prefix, Protocol, Socket, addr, netns};
use serde_json::{Value, json};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_selvage-cni");

/// A directory of the test's own, removed when it goes.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "selvage-cni-it-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A namespace; its path leads through this process.
pub(crate) struct Ns(OwnedFd);

impl Ns {
    pub(crate) fn new() -> Self {
        Self(netns::create_unnamed().expect("these tests make network namespaces and need root"))
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub(crate) fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        netns::within(self.0.as_fd(), run).unwrap()
    }

    pub(crate) fn socket(&self) -> Socket {
        Socket::open_in(self.0.as_fd(), Protocol::Route).unwrap()
    }

    pub(crate) fn links(&self) -> Vec<Link> {
        let mut links = link::list(&mut self.socket()).unwrap();
        links.retain(|link| link.name != "lo");
        links
    }

    pub(crate) fn link(&self, name: &str) -> Option<Link> {
        self.links().into_iter().find(|link| link.name == name)
    }
}

/// A node: a namespace with an uplink of its own, and the plugin's directories.
pub(crate) struct Node {
    pub(crate) ns: Ns,
    pub(crate) scratch: Scratch,
    /// The network configuration; tests change it as they like.
    pub(crate) conf: Value,
}

/// An address of the node itself, on its uplink.
pub(crate) const NODE_V4: &str = "192.0.2.1";
/// And for IPv6.
pub(crate) const NODE_V6: &str = "2001:db8::1";

impl Node {
    pub(crate) fn new(policy: &str) -> Self {
        let (ns, scratch) = (Ns::new(), Scratch::new());
        let mut socket = ns.socket();
        socket
            .apply(|batch| link::add_bridge(batch, "uplink"))
            .unwrap();
        let uplink = link::get_by_name(&mut socket, "uplink").unwrap().index;
        socket
            .apply(|batch| {
                link::set_up(batch, 1, true);
                link::set_up(batch, uplink, true);
                for (text, len) in [(NODE_V4, 24), (NODE_V6, 64)] {
                    addr::add(
                        batch,
                        &addr::Address::new(uplink, Prefix::new(text.parse().unwrap(), len)),
                    );
                }
            })
            .unwrap();
        ns.within(|| {
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
            }
        });
        let dir = scratch.0.display();
        let conf = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "selvage-cni", "policy": policy,
            "runDir": format!("{dir}/run"), "stateDir": format!("{dir}/state"),
            "ipam": {"type": "host-local", "dataDir": format!("{dir}/data"),
                     "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
                     "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
        });
        std::fs::create_dir_all(scratch.0.join("run")).unwrap();
        Self { ns, scratch, conf }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.scratch.0.join("run")
    }

    pub(crate) fn env(&self, command: &str, id: &str, netns: &str) -> BTreeMap<String, OsString> {
        let pairs = [
            ("COMMAND", command),
            ("CONTAINERID", id),
            ("NETNS", netns),
            ("IFNAME", "eth0"),
        ];
        pairs
            .iter()
            .map(|(key, value)| (format!("CNI_{key}"), OsString::from(value)))
            .collect()
    }

    /// Runs the program in the node's namespace.
    pub(crate) fn call(&self, command: &str, id: &str, netns: &str) -> Answer {
        self.call_with(&self.env(command, id, netns), &self.conf)
    }

    pub(crate) fn call_with(&self, env: &BTreeMap<String, OsString>, conf: &Value) -> Answer {
        let child = self.start(env, conf);
        Answer::of(&child.wait_with_output().unwrap())
    }

    pub(crate) fn start(&self, env: &BTreeMap<String, OsString>, conf: &Value) -> Child {
        self.ns
            .within(|| start(Path::new(PROGRAM), &[], env, conf.to_string().as_bytes()))
    }

    pub(crate) fn add(&self, id: &str, pod: &Ns) -> Answer {
        self.call("ADD", id, &pod.path())
    }

    pub(crate) fn del(&self, id: &str, pod: &Ns) -> Answer {
        self.call("DEL", id, &pod.path())
    }

    /// A call inside this process, with a budget that suits a test.
    pub(crate) fn call_within(
        &self,
        command: &str,
        id: &str,
        netns: &str,
        budget: &Budget,
    ) -> Answer {
        let env = Environment {
            program: "selvage-cni".into(),
            variables: self.env(command, id, netns),
        };
        let conf = self.conf.to_string();
        self.ns.within(|| {
            let mut output = Vec::new();
            let code = plugin::run(&env, &mut conf.as_bytes(), &mut output, budget);
            Answer {
                ok: code == 0,
                json: serde_json::from_slice(&output).unwrap_or_default(),
            }
        })
    }

    /// The node's ends of pods' interfaces.
    pub(crate) fn pod_links(&self) -> Vec<Link> {
        let mut links = self.ns.links();
        links.retain(|link| link.group == 0x5e1);
        links
    }

    pub(crate) fn leases(&self) -> Vec<String> {
        names(&self.scratch.0.join("data/pods"), |name| {
            name.parse::<IpAddr>().is_ok()
        })
    }

    pub(crate) fn attachments(&self) -> Vec<String> {
        names(&self.scratch.0.join("state/attachments"), |name| {
            name != ".lock" && name != ".ports"
        })
    }

    /// Nothing is left of any pod.
    pub(crate) fn assert_clean(&self, why: &str) {
        assert_eq!(self.leases(), [""; 0], "leases, {why}");
        assert_eq!(self.attachments(), [""; 0], "attachments, {why}");
        let links: Vec<_> = self.pod_links().into_iter().map(|link| link.name).collect();
        assert_eq!(links, [""; 0], "interfaces, {why}");
    }
}

fn names(dir: &Path, keep: impl Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| keep(name));
    names.sort();
    names
}

/// Starts `program` with exactly these variables, `input` written to it.
pub(crate) fn start(
    program: &Path,
    args: &[&str],
    env: &BTreeMap<String, OsString>,
    input: &[u8],
) -> Child {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end without reading.
    let _ = child.stdin.take().unwrap().write_all(input);
    child
}

/// What the program answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ok: bool,
    /// Null if it printed nothing.
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) fn of(output: &Output) -> Self {
        assert!(output.status.code().is_some(), "{output:?}");
        let text = std::str::from_utf8(&output.stdout).unwrap().trim();
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(text).unwrap()
        };
        Self {
            ok: output.status.success(),
            json,
        }
    }

    #[track_caller]
    pub(crate) fn expect_ok(self) -> Value {
        assert!(self.ok, "{}", self.json);
        self.json
    }

    #[track_caller]
    pub(crate) fn expect_code(self, code: u64) -> String {
        assert!(!self.ok, "{}", self.json);
        assert_eq!(self.json["code"], code, "{}", self.json);
        assert!(self.json["cniVersion"].is_string(), "{}", self.json);
        self.json["msg"].as_str().unwrap().to_owned()
    }
}

/// The addresses of a result.
pub(crate) fn ips(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter()
        .map(|ip| {
            ip["address"]
                .as_str()
                .unwrap()
                .split('/')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

/// Whether a connection from one namespace reaches `to` in another; a lost first packet is sent again.
pub(crate) fn reaches(from: &Ns, server: &Ns, to: IpAddr) -> bool {
    connects(from, server, to, Duration::from_secs(30))
}

/// Whether nothing comes through. Not patient: what would come, comes at once.
pub(crate) fn is_cut_off(from: &Ns, server: &Ns, to: IpAddr) -> bool {
    !connects(from, server, to, Duration::from_millis(300))
}

fn connects(from: &Ns, server: &Ns, to: IpAddr, patience: Duration) -> bool {
    let listener = server.within(|| TcpListener::bind(SocketAddr::new(to, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    from.within(|| TcpStream::connect_timeout(&address, patience).is_ok())
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::yield_now();
    }
}
