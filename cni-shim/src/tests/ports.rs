//! Host ports against a model: pods come, go, die and are killed half way, and others take the table away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use proptest::prelude::*;
use selvage_netlink::nft::{Table, Transaction, list};
use selvage_netlink::{Protocol, Socket, link, netns};

use super::Scratch;
use crate::attachment::{Attachments, Known, boot_id};
use crate::fault::armed::{Fault, with_fault};
use crate::link::Attachment;
use crate::nft::Nft;
use crate::portmap::{self, PortMapping, Transport};
use crate::spec::CniError;
use crate::veth;

const TABLE: Table<'static> = Table::inet("selvage-cni");
const PODS: u8 = 4;
const PORTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// ADD, with some of the ports.
    Begin(u8, Vec<usize>, Option<(Fault, u32)>),
    /// DEL.
    End(u8, Option<(Fault, u32)>),
    /// Its namespace is gone, and nobody said DEL.
    Die(u8),
    /// Somebody has deleted the table, or emptied a chain.
    Lose(bool),
    Heal,
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = || {
        let fault = prop_oneof![Just(Fault::Fail), Just(Fault::Kill)];
        prop::option::weighted(0.3, (fault, 0..8_u32))
    };
    let ports = prop::sample::subsequence((0..PORTS).collect::<Vec<_>>(), 1..=PORTS);
    let step = prop_oneof![
        5 => (0..PODS, ports, fault()).prop_map(|(id, ports, fault)| Step::Begin(id, ports, fault)),
        4 => (0..PODS, fault()).prop_map(|(id, fault)| Step::End(id, fault)),
        1 => (0..PODS).prop_map(Step::Die),
        1 => any::<bool>().prop_map(Step::Lose),
        1 => Just(Step::Heal),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..30)
}

fn mapping(port: usize) -> PortMapping {
    PortMapping {
        host_port: 80,
        container_port: 8000 + port as u16,
        protocol: if port == 1 {
            Transport::Udp
        } else {
            Transport::Tcp
        },
        host_ip: (port == 2).then(|| "192.0.2.1".parse().unwrap()),
    }
}

/// What a pod is in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pod {
    /// Its ADD has succeeded.
    Lives(Vec<usize>),
    /// A call for it was killed half way: it may have its ports or not.
    Unclear,
    /// As [`Unclear`](Self::Unclear), or it lived; nobody minds any more.
    Dead,
}

struct World {
    node: OwnedFd,
    scratch: Scratch,
    pods: BTreeMap<u8, Pod>,
}

impl World {
    fn new() -> Self {
        let node =
            netns::create_unnamed().expect("this test makes network namespaces and needs root");
        Self {
            node,
            scratch: Scratch::new(),
            pods: BTreeMap::new(),
        }
    }

    fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        netns::within(self.node.as_fd(), run).unwrap()
    }

    fn attachments(&self) -> Attachments {
        Attachments::of(&self.scratch.0)
    }

    fn attachment(id: u8) -> Attachment {
        let json = format!(
            r#"{{"network":"n","containerId":"{id}","ifname":"eth0","netns":"/none","netnsDev":0,"netnsInode":0,
                "bootId":"{}","hostIf":"sv{id}","hostIndex":0,"addresses":["10.0.0.{id}","fd00::{id}"]}}"#,
            boot_id()
        );
        serde_json::from_str(&json).unwrap()
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Begin(id, ..) if self.pods.contains_key(id) => {}
            Step::Begin(id, ports, fault) => self.begin(*id, ports, *fault),
            Step::End(id, fault) => self.end(*id, *fault),
            Step::Die(id) => {
                let Some(pod) = self.pods.get_mut(id) else {
                    return;
                };
                *pod = Pod::Dead;
                let attachments = self.attachments();
                self.within(|| interface(*id, false));
                if let Ok(Known::This(mut attachment)) = attachments.load(&id.to_string(), "eth0") {
                    attachment.boot_id = "earlier".into();
                    attachments.update(&attachment).unwrap();
                }
            }
            Step::Lose(all) => self.within(|| {
                let mut transaction = Transaction::new();
                if *all {
                    transaction.add_table(&TABLE);
                    transaction.delete_table(&TABLE);
                } else {
                    transaction.add_table(&TABLE);
                    transaction.add_chain(&TABLE, "hostports");
                    transaction.flush_chain(&TABLE, "hostports");
                }
                transaction
                    .commit(&mut Socket::open(Protocol::Netfilter).unwrap())
                    .unwrap();
            }),
            Step::Heal => {
                let attachments = self.attachments();
                self.within(|| portmap::heal(&mut Nft::default(), &attachments))
                    .unwrap();
            }
            Step::Sweep => {
                let attachments = self.attachments();
                self.within(|| portmap::sweep(&mut Nft::default(), &attachments))
                    .unwrap();
                let strays: Vec<_> = self
                    .elements()
                    .into_iter()
                    .filter(|(_, addr)| matches!(self.owner(*addr), None | Some((_, Pod::Dead))))
                    .collect();
                assert_eq!(strays, [], "swept");
            }
        }
    }

    fn begin(&mut self, id: u8, ports: &[usize], fault: Option<(Fault, u32)>) {
        let taken = |wanted: fn(&Pod) -> Option<&[usize]>| {
            let others = self.pods.values().filter_map(wanted);
            others.flatten().any(|port| ports.contains(port))
        };
        let surely = taken(|pod| match pod {
            Pod::Lives(ports) => Some(ports),
            _ => None,
        });
        let perhaps = self.pods.values().any(|pod| *pod == Pod::Unclear);
        let (attachments, mut attachment) = (self.attachments(), Self::attachment(id));
        let mappings: Vec<_> = ports.iter().map(|port| mapping(*port)).collect();
        let call = || {
            let _lock = attachments.share()?;
            attachments.claim(&attachment)?;
            interface(id, true);
            let link = veth::find(&mut veth::host_socket()?, &attachment.host_if)?;
            attachment.host_index = link.map_or(0, |link| link.index);
            let done = portmap::begin(
                &mut Nft::default(),
                &attachments,
                &mut attachment,
                &mappings,
            );
            if done.is_err() {
                // As the undo stack does it.
                portmap::end(
                    &mut Nft::default(),
                    &attachments,
                    &attachment.container_id,
                    "eth0",
                )?;
                interface(id, false);
                attachments.remove(&attachment.container_id, "eth0")?;
            }
            done
        };
        let (result, reached) = self.faulty(fault, call);
        match result {
            None => {
                self.pods.insert(id, Pod::Unclear);
            }
            Some(Ok(())) => {
                assert!(!surely, "{ports:?} were taken: {:?}", self.pods);
                self.within(|| raise(id));
                self.pods.insert(id, Pod::Lives(ports.to_vec()));
            }
            Some(Err(e)) => {
                assert!(surely || perhaps || reached, "{e}");
                // The fault may have come while the call put things back: then a DEL has to follow.
                let left = self.attachments().load(&id.to_string(), "eth0").unwrap();
                if !matches!(left, Known::Nothing) {
                    assert!(reached, "left behind after {e}");
                    self.pods.insert(id, Pod::Unclear);
                }
            }
        }
    }

    fn end(&mut self, id: u8, fault: Option<(Fault, u32)>) {
        let attachments = self.attachments();
        let call = || {
            portmap::end(&mut Nft::default(), &attachments, &id.to_string(), "eth0")?;
            interface(id, false);
            attachments.remove(&id.to_string(), "eth0")
        };
        let (result, _) = self.faulty(fault, call);
        match result {
            Some(Ok(())) => {
                self.pods.remove(&id);
                let left = self
                    .elements()
                    .into_iter()
                    .filter(|(_, addr)| number(*addr) == id);
                assert_eq!(left.count(), 0, "of a pod that is gone");
            }
            _ if self.pods.get(&id) == Some(&Pod::Dead) => {}
            _ => {
                // The same fault may have come where nothing was.
                self.pods.entry(id).and_modify(|pod| *pod = Pod::Unclear);
            }
        }
    }

    fn faulty(
        &self,
        fault: Option<(Fault, u32)>,
        call: impl FnOnce() -> Result<(), CniError> + Send,
    ) -> (Option<Result<(), CniError>>, bool) {
        self.within(|| match fault {
            None => (Some(call()), false),
            Some((fault, step)) => with_fault(fault, step, call),
        })
    }

    /// Map or set, and the address that an element leads to.
    fn elements(&self) -> BTreeSet<(Vec<u8>, IpAddr)> {
        self.within(|| {
            let mut socket = Socket::open(Protocol::Netfilter).unwrap();
            let mut found = BTreeSet::new();
            for set in list::sets(&mut socket, &TABLE).unwrap() {
                for element in list::elements(&mut socket, &TABLE, &set).unwrap() {
                    let bytes = match &element.data {
                        Some(list::ElementData::Value(value)) => value.clone(),
                        _ => element.key.clone(),
                    };
                    let addr = match <[u8; 16]>::try_from(bytes.get(..16).unwrap_or_default()) {
                        Ok(octets) if set.name.ends_with('6') => IpAddr::from(octets),
                        _ => IpAddr::from(<[u8; 4]>::try_from(&bytes[..4]).unwrap()),
                    };
                    let key = [set.name.as_bytes(), &element.key].concat();
                    assert!(found.insert((key, addr)));
                }
            }
            found
        })
    }

    fn owner(&self, addr: IpAddr) -> Option<(u8, Pod)> {
        let id = number(addr);
        self.pods.get(&id).map(|pod| (id, pod.clone()))
    }

    /// Whoever lives has its ports, and nothing leads to where nobody is.
    fn assert_right(&self, after: &Step) {
        let attachments = self.attachments();
        self.within(|| portmap::heal(&mut Nft::default(), &attachments))
            .unwrap();
        for (id, pod) in &self.pods {
            let Pod::Lives(ports) = pod else { continue };
            let mut attachment = Self::attachment(*id);
            attachment.port_mappings = ports.iter().map(|port| mapping(*port)).collect();
            if let Err(e) = self.within(|| portmap::check(&attachment)) {
                panic!("{id} after {after:?}: {e}");
            }
        }
        for (key, addr) in self.elements() {
            assert!(
                self.owner(addr).is_some(),
                "{key:?} leads to nobody at {addr}, {after:?}"
            );
        }
    }
}

/// The last octet.
fn number(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(addr) => addr.octets()[15],
    }
}

/// In the calling thread's namespace, a stand-in for the host's end of a pod.
fn interface(id: u8, there: bool) {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let name = format!("sv{id}");
    if there {
        socket
            .apply(|batch| link::add_bridge(batch, &name))
            .unwrap();
    } else if let Ok(found) = link::get_by_name(&mut socket, &name) {
        socket
            .apply(|batch| link::delete(batch, found.index))
            .unwrap();
    }
}

fn raise(id: u8) {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let found = link::get_by_name(&mut socket, &format!("sv{id}")).unwrap();
    socket
        .apply(|batch| link::set_up(batch, found.index, true))
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_port_leads_to_whom_it_was_given(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.assert_right(step);
        }
        for id in 0..PODS {
            world.end(id, None);
        }
        prop_assert_eq!(world.elements().len(), 0);
    }
}

/// An ADD that died has noted a port which is another's then: that one keeps it, whoever makes the table anew.
#[test]
fn who_died_before_it_had_a_port_does_not_get_it() {
    let mut both = 0;
    for point in 0..8 {
        let mut world = World::new();
        let kill = Some((Fault::Kill, point));
        for step in [
            Step::Begin(1, vec![0], kill),
            Step::Begin(2, vec![0], None),
            Step::Lose(true),
        ] {
            world.step(&step);
            world.assert_right(&step);
        }
        let noted = |id| {
            let known = world.attachments().load(id, "eth0").unwrap();
            matches!(known, Known::This(attachment) if !attachment.port_mappings.is_empty())
        };
        both += usize::from(noted("1") && noted("2"));
    }
    assert!(both > 0, "no death came between noting and placing");
}

/// A DEL that failed, or died, after it had taken a port out of the kernel: the next pod that asks gets the port and keeps
/// it, whoever makes the table anew.
#[test]
fn who_has_given_up_a_port_does_not_get_it_back() {
    for fault in [Fault::Fail, Fault::Kill] {
        let mut moved = 0;
        for point in 0..4 {
            for anew in [Step::Sweep, Step::Lose(true), Step::Lose(false)] {
                let mut world = World::new();
                for step in [
                    Step::Begin(0, vec![2], None),
                    Step::End(0, Some((fault, point))),
                    Step::Begin(1, vec![2], None),
                    anew,
                ] {
                    world.step(&step);
                    world.assert_right(&step);
                }
                let noted = matches!(
                    world.attachments().load("0", "eth0").unwrap(),
                    Known::This(attachment) if !attachment.port_mappings.is_empty()
                );
                let lives = matches!(world.pods.get(&1), Some(Pod::Lives(_)));
                moved += usize::from(noted && lives);
            }
        }
        assert!(
            moved > 0,
            "{fault:?}: no DEL ended between the kernel and the note"
        );
    }
}
