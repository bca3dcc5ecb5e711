//! Leases against a model: whatever fails or dies where, no address is given twice, and DEL leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use crate::attachment::{Attachments, Known};
use crate::fault::armed::{Fault, with_fault};
use crate::ipam::{self, BuiltIn};
use crate::link::{Attachment, PolicyMode};
use crate::spec::request::{Args, Call};
use crate::spec::{CniError, Command, NetConf};
use crate::undo::Undo;

use super::Scratch;

struct Node {
    scratch: Scratch,
    conf: NetConf,
    boot: String,
}

const BOOT: &str = "this-boot";

impl Node {
    fn new(ranges: &str) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.0.display();
        let json = format!(
            r#"{{"cniVersion":"1.1.0","name":"net","stateDir":"{dir}/state",
                "ipam":{{"type":"host-local","dataDir":"{dir}/data","ranges":{ranges}}}}}"#
        );
        std::fs::create_dir_all(scratch.0.join("state/attachments")).unwrap();
        let conf = NetConf::parse(json.into_bytes(), Command::Add).unwrap();
        Self {
            scratch,
            conf,
            boot: BOOT.to_owned(),
        }
    }

    fn attachments(&self) -> Attachments {
        Attachments::of(&self.conf.state_dir)
    }

    fn attachment(&self, id: &str) -> Attachment {
        Attachment {
            network: "net".into(),
            container_id: id.into(),
            ifname: "eth0".into(),
            netns: "/none".into(),
            netns_dev: 0,
            netns_inode: 0,
            boot_id: self.boot.clone(),
            host_if: format!("sv{id}"),
            host_index: 0,
            addresses: Vec::new(),
            lease_dir: None,
            ipam_plugin: None,
            ip_masq: false,
            policy: PolicyMode::None,
            pod: None,
            mtu: 0,
            port_mappings: Vec::new(),
            ports_end: false,
            bandwidth: None,
            other: BTreeMap::new(),
        }
    }

    fn add(&self, id: &str, ips: &[&str]) -> Result<Vec<IpAddr>, CniError> {
        let args = Args {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Args::default()
        };
        let call = call(id, args);
        let plan = BuiltIn::read(&self.conf, &call)?;
        let mut undo = Undo::default();
        let gone = |a: &Attachment| a.boot_id != self.boot;
        match plan.acquire(
            &self.attachments(),
            &mut self.attachment(id),
            &gone,
            &mut undo,
        ) {
            Ok(grant) => {
                undo.keep();
                Ok(grant.addresses)
            }
            Err(e) => Err(undo.run(e)),
        }
    }

    fn del(&self, id: &str) -> Result<(), CniError> {
        let attachments = self.attachments();
        let known = match attachments.load(id, "eth0")? {
            Known::This(attachment) => Some(attachment),
            _ => None,
        };
        let owner = ipam::owner_of(&self.attachment(id));
        ipam::release(known.as_deref(), &ipam::leases_of(&self.conf)?, &owner)?;
        attachments.remove(id, "eth0")
    }

    /// Address → container, as the disk has it.
    fn leased(&self) -> BTreeMap<IpAddr, String> {
        let leases = ipam::leases_of(&self.conf).unwrap();
        let locked = leases.lock().unwrap();
        // One that names nobody is of an ADD that died.
        let all = locked.all().unwrap().into_iter();
        all.filter_map(|(addr, owner)| Some((addr, owner?.container_id)))
            .collect()
    }

    fn files(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.scratch.0.join(dir)).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| {
            name != "lock"
                && !name.starts_with("last_reserved_ip")
                && name != ".lock"
                && name != ".boot"
        });
        names.sort();
        names
    }
}

fn call(id: &str, args: Args) -> Call {
    Call {
        command: Command::Add,
        container_id: id.to_owned(),
        netns: "/none".to_owned(),
        ifname: "eth0".to_owned(),
        args,
        path: None,
        allow_own_netns: false,
        named_loopback: false,
    }
}

const DUAL: &str = r#"[[{"subnet":"10.0.0.0/28"}],[{"subnet":"fd00::/124"}]]"#;

#[derive(Clone, Debug)]
enum Step {
    Add(u8, Option<(Fault, u32)>),
    Del(u8, Option<(Fault, u32)>),
    Reboot,
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![Just(Fault::Fail), Just(Fault::Kill)];
    let fault = prop::option::weighted(0.4, (fault, 0u32..14)).boxed();
    prop_oneof![
        12 => (0u8..20, fault.clone()).prop_map(|(id, fault)| Step::Add(id, fault)),
        10 => (0u8..20, fault).prop_map(|(id, fault)| Step::Del(id, fault)),
        1 => Just(Step::Reboot),
    ]
}

/// What the model knows of a container: its addresses, or that a call for it died.
#[derive(Debug)]
enum Model {
    Has(BTreeSet<IpAddr>),
    Unsure,
}

fn run(steps: &[Step]) {
    let mut node = Node::new(DUAL);
    let mut model: BTreeMap<String, Model> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Add(id, fault) => {
                let id = format!("c{id}");
                let (result, reached) = match fault {
                    Some((fault, at)) => with_fault(*fault, *at, || node.add(&id, &[])),
                    None => (Some(node.add(&id, &[])), false),
                };
                let before = node.leased();
                match result {
                    None => drop(model.insert(id, Model::Unsure)),
                    Some(Ok(addresses)) => {
                        assert!(
                            !matches!(model.get(&id), Some(Model::Has(_))),
                            "a second ADD was let through"
                        );
                        assert_eq!(addresses.len(), 2);
                        assert!(addresses.iter().all(|addr| before.get(addr) == Some(&id)));
                        model.insert(id, Model::Has(addresses.into_iter().collect()));
                    }
                    Some(Err(e)) if e.code == 100 => assert!(model.contains_key(&id), "{e}"),
                    // Full is full: 13 addresses of IPv4, without network, broadcast and gateway; 14 of IPv6.
                    Some(Err(e)) if e.code == 50 => {
                        let v6 = before.keys().filter(|addr| addr.is_ipv6()).count();
                        assert!(before.len() - v6 == 13 || v6 == 14, "{e}: {before:?}");
                    }
                    Some(Err(e)) => {
                        assert!(reached, "{e}");
                        assert!(
                            model.contains_key(&id) || !before.values().any(|owner| *owner == id),
                            "leaked"
                        );
                    }
                }
            }
            Step::Del(id, fault) => {
                let id = format!("c{id}");
                let (result, reached) = match fault {
                    Some((fault, at)) => with_fault(*fault, *at, || node.del(&id)),
                    None => (Some(node.del(&id)), false),
                };
                match result {
                    Some(Ok(())) => {
                        model.remove(&id);
                        assert!(
                            !node.leased().values().any(|owner| *owner == id),
                            "DEL left a lease"
                        );
                        assert!(
                            !node
                                .files("state/attachments")
                                .iter()
                                .any(|f| f.trim_start_matches('.').starts_with(&format!("{id}@")))
                        );
                    }
                    _ => {
                        assert!(reached);
                        if model.contains_key(&id) {
                            model.insert(id, Model::Unsure);
                        }
                    }
                }
            }
            Step::Reboot => {
                // All sandboxes are gone; their leases stay until somebody needs them, or DEL comes.
                node.boot.push('\'');
                for left in model.values_mut() {
                    *left = Model::Unsure;
                }
                for id in model.keys().cloned().collect::<Vec<_>>() {
                    node.del(&id).unwrap();
                    model.remove(&id);
                }
            }
        }
        let leased = node.leased();
        for (id, state) in &model {
            if let Model::Has(addresses) = state {
                let held: BTreeSet<_> = leased
                    .iter()
                    .filter(|(_, owner)| *owner == id)
                    .map(|(a, _)| *a)
                    .collect();
                assert_eq!(&held, addresses, "{id} after {step:?}");
            }
        }
        let strangers: Vec<_> = leased
            .values()
            .filter(|owner| !model.contains_key(*owner))
            .collect();
        assert!(
            strangers.is_empty(),
            "leaked to {strangers:?} after {step:?}"
        );
    }
    for id in 0..20 {
        node.del(&format!("c{id}")).unwrap();
    }
    assert_eq!(node.files("data/net"), [""; 0]);
    assert_eq!(node.files("state/attachments"), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_twice_and_none_leaked(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps);
    }
}

/// What a loss of power leaves of a file that was not synchronised.
#[derive(Clone, Copy, Debug)]
enum Left {
    Whole,
    Nothing,
    Empty,
    Zeros,
}

fn lose_power(dir: &std::path::Path, left: &mut impl Iterator<Item = Left>) {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        let length = std::fs::metadata(&path).unwrap().len() as usize;
        match left.next().unwrap_or(Left::Whole) {
            Left::Whole => {}
            Left::Nothing => std::fs::remove_file(&path).unwrap(),
            Left::Empty => std::fs::write(&path, "").unwrap(),
            Left::Zeros => std::fs::write(&path, vec![0; length]).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever survives of leases and attachments: in the next boot all addresses can be given again, each once, without
    /// a DEL or GC, and none that another program has given in that boot.
    #[test]
    fn a_loss_of_power_leaks_no_address(
        pods in 0usize..13,
        earlier_boots in 0usize..3,
        left in prop::collection::vec(
            prop_oneof![4 => Just(Left::Whole), 3 => Just(Left::Nothing), 1 => Just(Left::Empty), 1 => Just(Left::Zeros)], 60
        ),
        stranger in prop::option::of(2u8..14),
    ) {
        let mut node = Node::new(r#"[[{"subnet":"10.0.0.0/28"}]]"#);
        std::fs::create_dir_all(node.scratch.0.join("data/net")).unwrap();
        let mut left = left.into_iter();
        for boot in 0..=earlier_boots {
            for i in 0..pods {
                node.add(&format!("b{boot}c{i}"), &[]).unwrap();
            }
            lose_power(&node.scratch.0.join("data/net"), &mut left);
            lose_power(&node.scratch.0.join("state/attachments"), &mut left);
            node.boot.push('\'');
        }
        // As host-local writes it, in the boot that is now, before our first ADD.
        let other: Option<IpAddr> = stranger.map(|host| IpAddr::from([10, 0, 0, host]));
        if let Some(addr) = other {
            std::fs::write(node.scratch.0.join(format!("data/net/{addr}")), "other\r\neth0").unwrap();
        }
        let room = 13 - usize::from(other.is_some());
        let mut given: BTreeSet<IpAddr> = other.into_iter().collect();
        for i in 0..room {
            let addresses = node.add(&format!("now{i}"), &[]);
            let addresses = addresses.unwrap_or_else(|e| panic!("pod {i} of {room}: {e}"));
            prop_assert!(given.insert(addresses[0]), "{} was given twice", addresses[0]);
        }
        let full = node.add("more", &[]).unwrap_err();
        prop_assert_eq!(full.code, 50);
    }
}

/// `.boot` removed by hand, in the middle of a boot: pods that live keep their addresses.
#[test]
fn without_the_boot_mark_living_pods_keep_their_addresses() {
    let node = Node::new(r#"[[{"subnet":"10.0.0.0/29"}]]"#);
    node.add("a", &[]).unwrap();
    std::fs::remove_file(node.scratch.0.join("data/net/.boot")).unwrap();
    node.add("b", &[]).unwrap();
    assert_eq!(node.leased().into_values().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn who_has_all_addresses_is_told() {
    let node = Node::new(r#"[[{"subnet":"10.0.0.0/29"}]]"#);
    let dir = node.scratch.0.join("data/net");
    for i in 0..5 {
        node.add(&format!("c{i}"), &[]).unwrap();
    }
    let error = node.add("more", &[]).unwrap_err();
    for part in [
        "all 5 addresses are in use",
        dir.to_str().unwrap(),
        "each belongs to a pod that lives",
    ] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    // The state directory is lost.
    let lost = node.scratch.0.join("state/attachments");
    for i in [1, 3] {
        std::fs::remove_file(lost.join(format!("c{i}@eth0.json"))).unwrap();
    }
    let error = node.add("more", &[]).unwrap_err();
    for part in [
        "has 2 of them (10.0.0.3 and others)",
        "GC removes such leases",
        "remove the file",
    ] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_death_at_every_step_of_add_and_del() {
    for fault in [Fault::Kill, Fault::Fail] {
        for at in 0..40 {
            let node = Node::new(DUAL);
            node.add("keep", &[]).unwrap();
            let (result, add_reached) = with_fault(fault, at, || node.add("a", &[]));
            assert_eq!(add_reached, !matches!(result, Some(Ok(_))));
            let (result, del_reached) = with_fault(fault, at, || node.del("a"));
            assert_eq!(del_reached, !matches!(result, Some(Ok(()))));
            node.del("a").unwrap();
            assert_eq!(
                node.files("data/net"),
                ["10.0.0.2", "fd00::2"],
                "{fault:?} at {at}"
            );
            assert_eq!(
                node.files("state/attachments"),
                ["keep@eth0.json"],
                "{fault:?} at {at}"
            );
            if !add_reached && !del_reached {
                assert!(at > 5, "the steps have points");
                return;
            }
        }
    }
    panic!("more points than expected");
}

#[test]
fn exhausted_then_reclaimed_from_an_earlier_boot() {
    let mut node = Node::new(r#"[[{"subnet":"10.0.0.0/29"}]]"#);
    for i in 0..5 {
        node.add(&format!("c{i}"), &[]).unwrap();
    }
    let error = node.add("more", &[]).unwrap_err();
    assert_eq!(error.code, 50, "{error}");
    assert_eq!(
        node.files("state/attachments").len(),
        5,
        "nothing is left of the one that failed"
    );
    node.boot.push('2');
    node.add("more", &[]).unwrap();
    assert_eq!(node.leased().len(), 1);
    assert_eq!(node.files("state/attachments"), ["more@eth0.json"]);
}

#[test]
fn what_others_left_is_read() {
    let node = Node::new(r#"[[{"subnet":"10.0.0.0/29"}]]"#);
    let dir = node.scratch.0.join("data/net");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("10.0.0.2"), "other\r\neth0").unwrap();
    std::fs::write(dir.join("10.0.0.4"), "").unwrap();
    std::fs::write(dir.join("last_reserved_ip.0"), "10.0.0.2").unwrap();
    assert_eq!(
        node.add("a", &[]).unwrap(),
        ["10.0.0.3".parse::<IpAddr>().unwrap()]
    );
    for id in ["b", "c", "d"] {
        node.add(id, &[]).unwrap();
    }
    assert_eq!(
        node.leased().len(),
        5,
        "the empty file's address was reclaimed, the other program's was not"
    );
    node.del("other").unwrap();
    assert_eq!(
        node.leased().len(),
        4,
        "DEL finds the other program's lease"
    );
    assert_eq!(
        std::fs::read_to_string(dir.join("10.0.0.3")).unwrap(),
        "a\r\neth0\r\n"
    );
}

#[test]
fn particular_addresses() {
    let node = Node::new(DUAL);
    let text = |result: Result<Vec<IpAddr>, CniError>| {
        result
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(text(node.add("a", &["10.0.0.9"])), ["10.0.0.9", "fd00::2"]);
    assert_eq!(
        text(node.add("b", &["fd00::b", "10.0.0.10"])),
        ["10.0.0.10", "fd00::b"]
    );
    for (ips, code, part) in [
        (&["10.0.0.9"][..], 50, "in use by container a"),
        (&["10.0.0.1"], 7, "gateway"),
        (&["10.9.9.9"], 7, "in none of the ranges"),
        (&["10.0.0.11", "10.0.0.12"], 7, "one too many"),
    ] {
        let error = node.add("c", ips).unwrap_err();
        assert!(
            error.code == code && error.message.contains(part),
            "{error}"
        );
    }
    assert_eq!(node.leased().len(), 4);
}

#[test]
fn del_frees_its_own_only() {
    let node = Node::new(DUAL);
    let old = node.add("old", &[]).unwrap();
    // The successor got the same address while the old attachment's file survived.
    let kept = node.attachments().load("old", "eth0").unwrap();
    node.del("old").unwrap();
    let wanted: Vec<String> = old.iter().map(ToString::to_string).collect();
    node.add(
        "new",
        &wanted.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .unwrap();
    let Known::This(kept) = kept else {
        panic!("it was there")
    };
    node.attachments().claim(&kept).unwrap();
    node.del("old").unwrap();
    assert_eq!(
        node.leased().into_values().collect::<Vec<_>>(),
        ["new", "new"]
    );
}
