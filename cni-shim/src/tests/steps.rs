//! The whole of ADD and DEL, failing or dying at each of its steps, in namespaces.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use selvage_netlink::nft::{Table, list};
use selvage_netlink::{Protocol, Socket, link, netns};

use super::Scratch;
use crate::fault::armed::{Fault, with_fault};
use crate::handover::Budget;
use crate::plugin;
use crate::spec::Environment;
use crate::veth::GROUP;

const BUDGET: Budget = Budget {
    connect: Duration::ZERO,
    enforced: Duration::ZERO,
    courtesy: Duration::from_millis(100),
    quiet: Duration::ZERO,
};

/// More points than there are.
const LIMIT: u32 = 100;

struct Node {
    host: OwnedFd,
    pod: OwnedFd,
    scratch: Scratch,
}

impl Node {
    fn new() -> Self {
        let make =
            || netns::create_unnamed().expect("this test makes network namespaces and needs root");
        Self {
            host: make(),
            pod: make(),
            scratch: Scratch::new(),
        }
    }

    /// One call, with a fault at a step of it; whether it succeeded, and whether it came to the fault.
    fn call(&self, command: &str, fault: Option<(Fault, u32)>) -> (bool, bool) {
        let dir = self.scratch.0.display();
        let conf = format!(
            r#"{{"cniVersion":"1.1.0","name":"net","policy":"none","ipMasq":true,"stateDir":"{dir}/state","runDir":"{dir}",
                "runtimeConfig":{{"portMappings":[{{"hostPort":53,"containerPort":53,"protocol":"udp"}},
                    {{"hostPort":80,"containerPort":80,"hostIP":"127.0.0.1"}}],
                    "bandwidth":{{"ingressRate":8000,"ingressBurst":8000,"egressRate":8000,"egressBurst":8000}}}},
                "ipam":{{"dataDir":"{dir}/data","ranges":[[{{"subnet":"10.1.0.0/24"}}],[{{"subnet":"fd00::/64"}}]]}}}}"#
        );
        let pod = format!("/proc/{}/fd/{}", std::process::id(), self.pod.as_raw_fd());
        let pairs = [
            ("COMMAND", command),
            ("CONTAINERID", "a"),
            ("NETNS", &pod),
            ("IFNAME", "eth0"),
        ];
        let variables = pairs
            .iter()
            .map(|(key, value)| (format!("CNI_{key}"), value.into()))
            .collect();
        let env = Environment {
            program: "selvage-cni".into(),
            variables,
        };
        let run = || {
            let call = || plugin::run(&env, &mut conf.as_bytes(), &mut Vec::new(), &BUDGET) == 0;
            match fault {
                None => (call(), false),
                Some((fault, step)) => {
                    let (ok, reached) = with_fault(fault, step, call);
                    (ok.unwrap_or(false), reached)
                }
            }
        };
        netns::within(self.host.as_fd(), run).unwrap()
    }

    fn assert_clean(&self, why: &str) {
        let mut socket = Socket::open_in(self.host.as_fd(), Protocol::Route).unwrap();
        let links = link::list(&mut socket).unwrap();
        assert!(
            links.iter().all(|link| link.group != GROUP),
            "an interface is left, {why}"
        );
        for (dir, expected) in [
            (
                "data/net",
                "lock .boot last_reserved_ip.0 last_reserved_ip.1",
            ),
            ("state/attachments", ".lock .ports"),
        ] {
            for name in names(&self.scratch.0.join(dir)) {
                assert!(
                    expected.split(' ').any(|expected| expected == name),
                    "{dir}/{name} is left, {why}"
                );
            }
        }
        let mut nft = Socket::open_in(self.host.as_fd(), Protocol::Netfilter).unwrap();
        let table = Table::inet("selvage-cni");
        // No table yet, no elements. The subnets (`inside4`, `inside6`) are the configuration's and stay.
        let sets = list::sets(&mut nft, &table).unwrap_or_default();
        let pods = sets.iter().filter(|set| !set.name.starts_with("inside"));
        for set in pods {
            assert!(
                list::elements(&mut nft, &table, set).unwrap().is_empty(),
                "an element of {} is left, {why}",
                set.name
            );
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    let node = Node::new();
    for step in 0..LIMIT {
        let (ok, reached) = node.call("ADD", Some((Fault::Fail, step)));
        assert_eq!(ok, !reached, "step {step}");
        if ok {
            assert!(step > 18, "ADD has points");
            return;
        }
        node.assert_clean(&format!("ADD failed at step {step}"));
    }
    panic!("more points than expected");
}

#[test]
fn del_after_a_death_at_any_step_of_add_or_del() {
    let node = Node::new();
    for step in 0..LIMIT {
        let (_, add_reached) = node.call("ADD", Some((Fault::Kill, step)));
        let (_, del_reached) = node.call("DEL", Some((Fault::Kill, step)));
        assert_eq!(node.call("DEL", None), (true, false));
        node.assert_clean(&format!("killed at step {step}"));
        if !add_reached && !del_reached {
            assert!(step > 18, "both have points");
            return;
        }
    }
    panic!("more points than expected");
}
