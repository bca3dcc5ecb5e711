//! The life of pods, with the writer, the tracker and the plugin played by the test.

mod foreign;

use std::{collections::BTreeMap, path::PathBuf};

use selvage_policy::plan::Delta;
use serde_json::json;

use super::*;
use crate::{
    kernel::{conntrack::Passed, nft::Want},
    objects::{self, Kind, Mode},
    store,
};

struct Scene {
    world: World,
    nft: Inbox<NftWork>,
    flows: Inbox<FlowWork>,
}

/// Who wrote such a policy finds an event on it; there are no more than a reader needs.
#[test]
fn policies_that_are_not_enforced_get_an_event() {
    let policies = |number: usize| {
        let policy = |n: usize| objects::NotEnforced {
            kind: objects::PolicyKind::Cluster,
            name: format!("p{n}"),
            api_version: "policy.networking.k8s.io/v1alpha2".into(),
            uid: format!("uid-{n}"),
            generation: 3,
        };
        let policies = (0..number).map(policy).collect();
        ObjectEvent::NotEnforced(objects::PolicyKind::Cluster, policies)
    };
    let mut scene = Scene::new(Vec::new());
    scene.tell(Work::Objects(vec![policies(1)]));
    let told = scene.world.events_about_objects();
    assert_eq!(told.len(), 1);
    let text = (told[0].reason, told[0].kind, told[0].uid.as_str());
    assert_eq!(text, ("NotEnforced", "ClusterNetworkPolicy", "uid-0"));
    assert_eq!(told[0].version, "3");
    let wrong = scene.world.status().wrong;
    let found = wrong
        .iter()
        .find(|finding| finding.what.contains("p0"))
        .unwrap();
    assert_eq!(found.what, "1 ClusterNetworkPolicy is not enforced: p0");
    scene.tell(Work::Objects(vec![policies(1_000)]));
    assert_eq!(scene.world.events_about_objects().len(), 50);
    // Without the feature it is another program's business.
    let mut scene = Scene::unread(Vec::new(), false);
    scene.tell(Work::Objects(vec![policies(1)]));
    assert!(scene.world.events_about_objects().is_empty());
}

/// A cluster may have 100,000 objects that cannot be used, each of which may change at any time: what is told of them
/// does not grow with their number, which stands beside it.
#[test]
fn of_many_refused_objects_the_first_are_told() {
    let refused = |name: String, faults: usize| {
        let problem = |n: usize| crate::source::Problem {
            at: crate::source::At::Api {
                resource_version: n.to_string(),
                uid: name.clone(),
            },
            kind: "Pod".into(),
            key: objects::Key::new("x", name.as_str()),
            path: format!("status.podIPs[{n}].ip"),
            reason: "`1.2.3` is no address".into(),
            hint: None,
        };
        let problems = (0..faults).map(|n| ObjectEvent::Invalid(problem(n)));
        problems.collect::<Vec<_>>()
    };
    let mut scene = Scene::new(Vec::new());
    // One with more faults than anybody reads, and more such objects than anybody counts.
    scene.tell(Work::Objects(refused("a".into(), 5_000)));
    for n in 0..10_000 {
        scene.tell(Work::Objects(refused(format!("p{n}"), 1)));
    }
    let told = scene.world.events_about_objects();
    assert_eq!(told.len(), 50);
    assert_eq!(told[0].uid, "a");
    assert!(told.iter().all(|told| told.message.len() < 2_000));
    let status = scene.world.status();
    let source = &status.source;
    assert_eq!((source.problem_count, source.problems.len()), (15_000, 100));
    let last = status.wrong.last().unwrap();
    assert_eq!(last.what, "14900 more problems in the objects and files");
    assert!(status.wrong.len() < 110);
    // An object whose faults are corrected is no more counted.
    let origin = crate::source::Origin::Api("Pod".into(), objects::Key::new("x", "a"));
    scene.tell(Work::Objects(vec![ObjectEvent::Cleared(origin)]));
    let status = scene.world.status();
    assert_eq!(status.source.problem_count, 10_000);
    assert_eq!(status.source.problems[0].object, "Pod x/p0");
}

/// A pod `x/NAME` of this node, isolated by the policy that is there from the start.
fn pod(name: &str, uid: &str) -> ObjectEvent {
    object(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": uid}, "spec": {"nodeName": "n1"}}))
}

fn object(value: serde_json::Value) -> ObjectEvent {
    let parsed = objects::parse(&value, Mode::Api).unwrap().unwrap();
    ObjectEvent::Applied(parsed.object)
}

fn attachment(container: &str, index: u32, address: &str) -> link::Attachment {
    link::Attachment {
        network: "pods".into(),
        container_id: container.into(),
        ifname: "eth0".into(),
        netns: String::new(),
        netns_dev: 0,
        netns_inode: 0,
        boot_id: "b".into(),
        host_if: format!("sv{container}"),
        host_index: index,
        addresses: vec![address.parse().unwrap()],
        lease_dir: None,
        ipam_plugin: None,
        ip_masq: false,
        policy: link::PolicyMode::Required,
        pod: Some(link::PodRef {
            namespace: "x".into(),
            name: container.into(),
            uid: "u".into(),
        }),
        mtu: 0,
        port_mappings: Vec::new(),
        ports_end: false,
        bandwidth: None,
        other: BTreeMap::new(),
    }
}

/// All that a source says of a cluster with these objects, and a policy that isolates the pods of namespace `x`.
fn everything(objects: Vec<ObjectEvent>) -> Vec<ObjectEvent> {
    let mut events: Vec<_> = Kind::ALL.into_iter().map(ObjectEvent::Relist).collect();
    events.push(object(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "closed"}, "spec": {"podSelector": {}}}),
    ));
    events.extend(objects);
    events.extend(Kind::ALL.into_iter().map(ObjectEvent::Synced));
    events
}

impl Scene {
    /// Everything read, and the first plan applied.
    fn new(found: Vec<Found>) -> Scene {
        let mut scene = Scene::unread(found, true);
        scene.tell(Work::Objects(everything(Vec::new())));
        let generation = scene.plan().expect("the first plan");
        scene.apply(generation, false);
        scene
    }

    fn unread(found: Vec<Found>, policy: bool) -> Scene {
        let features = Features {
            bgp: false,
            kernel: false,
            cni: true,
            policy,
        };
        Scene::with(features, PodInterfaces::Ours, found)
    }

    /// Nothing is read yet.
    fn with(features: Features, pods: PodInterfaces, found: Vec<Found>) -> Scene {
        let policy = features.policy;
        let (nft_sender, nft) = Inbox::new().unwrap();
        let (flow_sender, flows) = Inbox::new().unwrap();
        let (world, _) = Inbox::new().unwrap();
        let setup = Setup {
            local: Local::new("n1"),
            features,
            pods,
            from: String::new(),
            run_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            cni_conf: None,
            masquerade: true,
            routable: Vec::new(),
            started: Instant::now(),
            limits: crate::limits::Limits::default(),
        };
        let out = Outlets {
            bgp: None,
            routes: None,
            nft: policy.then_some(nft_sender),
            host_ports: None,
            flows: policy.then_some(flow_sender),
            publisher: None,
            world,
            pulses: Default::default(),
            turns: watch::Sender::new(0),
            reach: Box::new(|_| {}),
        };
        Scene {
            world: World::new(setup, out, found),
            nft,
            flows,
        }
    }

    fn tell(&mut self, work: Work) {
        let dirty = self.world.take(work);
        self.world.think(&dirty);
    }

    /// A whole turn, so much later than the one before. It must not leave a deadline behind: the loop would never sleep.
    fn turn_after(&mut self, later: Duration, works: Vec<Work>) {
        let now = self.world.now + later;
        assert!(self.world.turn(now, works).is_continue());
        let next = self.world.next_wakeup();
        assert!(
            next.is_none_or(|at| at > now),
            "{:?}",
            next.map(|at| now - at)
        );
    }

    fn attach(&mut self, attachment: link::Attachment) -> oneshot::Receiver<link::Reply> {
        let (sender, reply) = oneshot::channel();
        let query = LinkQuery::Attach(Box::new(attachment), sender);
        self.tell(Work::Link(query));
        reply
    }

    fn detach(&mut self, container: &str) {
        let (reply, answer) = oneshot::channel();
        self.tell(Work::Link(LinkQuery::Detach {
            id: container.into(),
            ifname: "eth0".into(),
            reply,
        }));
        assert_eq!(answer.blocking_recv(), Ok(link::Reply::Ok));
    }

    /// The whole plan, if that is what the writer was sent.
    fn plan(&mut self) -> Option<Gen> {
        match self.policy_work()? {
            NftWork::Plan(generation, _) => Some(generation),
            _ => None,
        }
    }

    fn delta(&mut self) -> Option<Delta> {
        match self.policy_work()? {
            NftWork::Delta(delta) => Some(delta),
            _ => None,
        }
    }

    /// The delta that completes what the compiler was told; the kernel has those before it.
    fn last_delta(&mut self) -> Option<Delta> {
        loop {
            let delta = self.delta()?;
            if !self.world.compiler.is_filling() {
                return Some(delta);
            }
            self.apply(delta.to, false);
        }
    }

    /// The first that the writer was sent for the policy table.
    fn policy_work(&mut self) -> Option<NftWork> {
        let kept = |work: &NftWork| matches!(work, NftWork::Keep(..));
        self.nft.recv_all().into_iter().find(|work| !kept(work))
    }

    fn apply(&mut self, generation: Gen, repaired: bool) {
        self.tell(Work::Nft(NftEvent::Applied {
            generation,
            repaired,
        }));
    }

    fn fail(&mut self, generation: Gen) {
        self.tell(Work::Nft(NftEvent::Failed {
            generation,
            op: None,
            errno: 2,
            reason: "no such table".into(),
        }));
    }

    /// The addresses whose flows are to be deleted, and the newest number.
    fn forgets(&mut self) -> (Vec<String>, u64) {
        let mut out = (Vec::new(), 0);
        for work in self.flows.recv_all() {
            if let FlowWork::Forget(number, addresses) = work {
                out.0.extend(addresses.iter().map(ToString::to_string));
                out.1 = number;
            }
        }
        out
    }

    fn forgot(&mut self, number: u64) {
        self.tell(Work::Flows(FlowEvent::Forgot(number)));
    }
}

fn is_enforced(reply: &mut oneshot::Receiver<link::Reply>) -> bool {
    matches!(reply.try_recv(), Ok(link::Reply::Enforced { .. }))
}

#[test]
fn a_pod_is_enforced_after_its_rules_and_after_the_flows_of_its_forerunner() {
    for flows_first in [true, false] {
        let mut scene = Scene::new(Vec::new());
        let mut reply = scene.attach(attachment("a", 5, "10.0.1.1"));
        assert!(scene.delta().is_none(), "its pod is not known");
        scene.tell(Work::Objects(vec![pod("a", "u")]));
        let delta = scene.last_delta().expect("its dispatch");
        let (addresses, number) = scene.forgets();
        assert_eq!(addresses, ["10.0.1.1"]);
        match flows_first {
            true => scene.forgot(number),
            false => scene.apply(delta.to, false),
        }
        assert!(!is_enforced(&mut reply), "{flows_first}");
        match flows_first {
            false => scene.forgot(number),
            true => scene.apply(delta.to, false),
        }
        assert!(is_enforced(&mut reply), "{flows_first}");
    }
}

#[test]
fn a_pod_of_that_name_is_not_that_pod() {
    let mut scene = Scene::new(Vec::new());
    scene.tell(Work::Objects(vec![pod("a", "older")]));
    let mut reply = scene.attach(attachment("a", 5, "10.0.1.1"));
    let (_, number) = scene.forgets();
    scene.forgot(number);
    assert!(scene.delta().is_none() && !is_enforced(&mut reply));
    scene.tell(Work::Objects(vec![pod("a", "u")]));
    let generation = scene.last_delta().expect("its dispatch").to;
    scene.apply(generation, false);
    assert!(is_enforced(&mut reply));
}

#[test]
fn an_address_is_given_on_at_once() {
    let mut scene = Scene::new(Vec::new());
    scene.tell(Work::Objects(vec![pod("a", "u"), pod("b", "u")]));
    let _first = scene.attach(attachment("a", 5, "10.0.1.1"));
    let generation = scene.last_delta().expect("its dispatch").to;
    scene.apply(generation, false);
    scene.detach("a");
    let mut reply = scene.attach(attachment("b", 6, "10.0.1.1"));
    // The writer was told of both in two transactions or one; each is answered.
    while let Some(delta) = scene.delta() {
        scene.apply(delta.to, false);
    }
    assert!(!is_enforced(&mut reply), "flows of the first are left");
    let (addresses, number) = scene.forgets();
    assert!(addresses.iter().all(|addr| addr == "10.0.1.1"));
    scene.forgot(number);
    assert!(is_enforced(&mut reply));
    // The kernel's word on the first one comes late: the flows are the second one's by now.
    scene.tell(Work::Observed(Observed::LinkGone(5)));
    assert_eq!(scene.forgets().0, [""; 0]);
}

#[test]
fn an_interface_that_is_gone_ends_its_attachment() {
    let link = |name: &str| store::Link {
        name: name.into(),
        ..store::Link::default()
    };
    let links: BTreeMap<_, _> = [(5, link("sva")), (6, link("svb"))].into();
    let left: BTreeMap<_, _> = [(6, link("svb"))].into();
    for gone in [Observed::LinkGone(5), Observed::Links(left)] {
        let mut scene = Scene::new(Vec::new());
        scene.tell(Work::Observed(Observed::Links(links.clone())));
        scene.tell(Work::Objects(vec![pod("a", "u"), pod("b", "u")]));
        let mut waits = scene.attach(attachment("a", 5, "10.0.1.1"));
        let generation = scene.last_delta().expect("its dispatch").to;
        // The plugin was killed, or could not tell us.
        scene.tell(Work::Observed(gone));
        assert!(matches!(waits.try_recv(), Ok(link::Reply::Error { .. })));
        assert!(scene.world.store.attachments().next().is_none());
        scene.apply(generation, false);
        assert!(scene.delta().expect("its dispatch goes").may_revoke());
        assert_eq!(scene.world.compiler.local_addresses().len(), 0);
        assert!(scene.world.waiting.is_empty() && scene.world.forgetting.is_empty());
    }
}

#[test]
fn a_link_list_older_than_an_attachment_does_not_end_it() {
    let mut scene = Scene::new(Vec::new());
    let _reply = scene.attach(attachment("a", 5, "10.0.1.1"));
    scene.tell(Work::Observed(Observed::Links(BTreeMap::new())));
    assert_eq!(scene.world.store.attachments().count(), 1);
}

#[test]
fn what_was_open_keeps_its_flows_and_what_was_closed_does_not() {
    let found = |name: &str, index, address: &str, open| Found {
        attachment: attachment(name, index, address),
        open,
    };
    let mut scene = Scene::new(vec![
        found("a", 5, "10.0.1.1", true),
        found("b", 6, "10.0.1.2", false),
    ]);
    assert_eq!(scene.forgets().0, ["10.0.1.2"]);
}

#[test]
fn a_refused_change_is_repaired_at_once_and_a_refused_plan_after_a_rest() {
    let mut scene = Scene::new(Vec::new());
    scene.tell(Work::Objects(vec![pod("a", "u")]));
    let mut reply = scene.attach(attachment("a", 5, "10.0.1.1"));
    let number = scene.forgets().1;
    scene.forgot(number);
    let refused = scene.last_delta().expect("its dispatch").to;
    scene.fail(refused);
    let generation = scene.plan().expect("the whole plan, at once");
    scene.fail(generation);
    assert!(scene.plan().is_none(), "not again and again");
    assert!(!is_enforced(&mut reply));
    let rest = scene
        .world
        .next_wakeup()
        .expect("a time for the next attempt");
    assert!(rest > scene.world.now);
    scene.world.now = rest;
    scene.tell(Work::Objects(Vec::new()));
    let generation = scene.plan().expect("again");
    assert!(!is_enforced(&mut reply));
    scene.apply(generation, true);
    assert!(is_enforced(&mut reply));
}

#[test]
fn nobody_is_let_go_on_rules_that_somebody_has_flushed() {
    let mut scene = Scene::new(Vec::new());
    scene.tell(Work::Objects(vec![pod("a", "u")]));
    let mut reply = scene.attach(attachment("a", 5, "10.0.1.1"));
    let number = scene.forgets().1;
    let generation = scene.last_delta().expect("its dispatch").to;
    scene.apply(generation, false);
    let by = "nft".into();
    scene.tell(Work::Nft(NftEvent::WantPlan(Want::Foreign { by })));
    scene.forgot(number);
    assert!(!is_enforced(&mut reply), "the table is not there");
    let generation = scene.plan().expect("the whole plan");
    scene.apply(generation, true);
    assert!(is_enforced(&mut reply));
}

#[test]
fn who_hangs_up_is_not_kept() {
    let mut scene = Scene::new(Vec::new());
    for _ in 0..3 {
        drop(scene.attach(attachment("a", 5, "10.0.1.1")));
    }
    scene.tell(Work::Objects(Vec::new()));
    assert!(scene.world.waiting.is_empty());
}

#[test]
fn without_policy_nobody_waits_for_the_source() {
    let mut scene = Scene::unread(Vec::new(), false);
    let mut reply = scene.attach(attachment("a", 5, "10.0.1.1"));
    let none = link::Reply::NotApplicable { masquerade: false };
    assert_eq!(reply.try_recv(), Ok(none));
}

/// The CNI configuration comes last, and what is said of the node agrees with it.
#[test]
fn a_node_takes_pods_when_it_can_serve_them() {
    let dir = std::env::temp_dir().join(format!("selvage-world-{}", std::process::id()));
    let conflist = dir.join("net.d/10-selvage.conflist");
    std::fs::create_dir_all(&dir).unwrap();
    let mut scene = Scene::new(Vec::new());
    scene.world.setup.run_dir = dir.clone();
    scene.world.setup.cni_conf = Some(conflist.clone());
    let turn = |scene: &mut Scene, events: Vec<ObjectEvent>| {
        scene.turn_after(Duration::ZERO, vec![Work::Objects(events)]);
    };
    let node = |spec: serde_json::Value| {
        object(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": spec}),
        )
    };
    let cidrs = |cidr: &str| node(json!({"podCIDRs": [cidr, "fd00:1::/64"]}));
    for (event, missing) in [
        (None, "there is no Node `n1`"),
        (Some(node(json!({}))), "Node `n1` has no spec.podCIDRs"),
    ] {
        turn(&mut scene, event.into_iter().collect());
        let view = scene.world.ready_view();
        assert!(
            !view.ready && view.missing[0].starts_with(missing),
            "{view:?}"
        );
        assert_eq!(scene.world.network(), None, "it may still start");
        assert!(!conflist.exists() && !dir.join(link::READY).exists());
    }
    // There is no place for it yet.
    turn(&mut scene, vec![cidrs("10.0.1.0/24")]);
    let network = scene.world.network().unwrap();
    assert_eq!(
        (network.available, network.reason),
        (false, "ConfigurationNotWritten")
    );
    assert!(!scene.world.ready_view().ready);
    std::fs::create_dir_all(dir.join("net.d")).unwrap();
    assert!(scene.world.next_wakeup().is_some(), "it is tried again");
    scene.turn_after(RETRY, Vec::new());
    for cidr in ["10.0.1.0/24", "10.0.2.0/24"] {
        turn(&mut scene, vec![cidrs(cidr)]);
        let text = std::fs::read_to_string(&conflist).unwrap();
        assert!(
            text.contains(cidr) && text.contains("fd00:1::/64"),
            "{text}"
        );
        assert!(scene.world.network().unwrap().available && scene.world.ready_view().ready);
    }
    // Somebody removes it: it is there again at once, but not over and over.
    let rest = Duration::from_secs(5);
    for (later, written) in [(rest, true), (Duration::ZERO, false)] {
        std::fs::remove_file(&conflist).unwrap();
        scene.turn_after(later, vec![Work::CniFolder]);
        assert_eq!(conflist.exists(), written);
    }
    assert!(scene.world.next_wakeup().is_some(), "it is not forgotten");
    scene.turn_after(rest, Vec::new());
    assert!(conflist.exists());
    // Another network's comes first.
    let other = dir.join("net.d/05-other.conf");
    std::fs::write(&other, "{}").unwrap();
    scene.world.take(Work::CniFolder);
    let lacks: Vec<String> = scene
        .world
        .store
        .lacking()
        .map(|(_, what)| what.to_owned())
        .collect();
    assert!(lacks[0].contains("05-other.conf"), "{lacks:?}");
    std::fs::remove_file(&other).unwrap();
    scene.world.take(Work::CniFolder);
    assert_eq!(scene.world.store.lacking().count(), 0);
    // The kernel refuses the policy for too long.
    scene.world.policy.failure = Some("no memory".into());
    turn(&mut scene, Vec::new());
    assert!(scene.world.ready_view().ready, "not at once");
    let limit = scene.world.next_wakeup().expect("the end of patience");
    scene.turn_after(limit - scene.world.now, Vec::new());
    let network = scene.world.network().unwrap();
    assert_eq!(
        (network.available, network.reason),
        (false, "PolicyRefused")
    );
    scene.world.policy.failure = None;
    turn(&mut scene, Vec::new());
    assert!(scene.world.network().unwrap().available);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Deadlines of a world that nobody tells anything any more pass, and none comes again.
#[test]
fn a_world_without_work_sleeps_without_end() {
    let dir = std::env::temp_dir().join(format!("selvage-sleep-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let read = || {
        let mut events: Vec<_> = Kind::ALL.into_iter().map(ObjectEvent::Relist).collect();
        events.push(pod("a", "u"));
        events.extend(Kind::ALL.into_iter().map(ObjectEvent::Synced));
        Work::Objects(events)
    };
    let wait = |what| {
        let (reply, answer) = oneshot::channel();
        (Work::Ask(Query::Wait(what, reply)), answer)
    };
    for (policy, is_read, conf) in [
        (true, true, false),
        (true, true, true),
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        let mut scene = Scene::unread(Vec::new(), policy);
        scene.world.setup.run_dir = dir.clone();
        scene.world.setup.cni_conf = conf.then(|| dir.join("net.d/10-selvage.conflist"));
        let mut optional = attachment("a", 5, "10.0.1.1");
        optional.policy = link::PolicyMode::Optional;
        let (reply, _answer) = oneshot::channel();
        let attach = LinkQuery::Attach(Box::new(optional), reply);
        scene.turn_after(Duration::ZERO, vec![Work::Link(attach)]);
        if is_read {
            scene.turn_after(Duration::ZERO, vec![read()]);
        }
        // The kernel refuses the plan twice, so that the third attempt has a time.
        while let Some(generation) = scene.plan() {
            let refused = NftEvent::Failed {
                generation,
                op: None,
                errno: 2,
                reason: String::new(),
            };
            scene.turn_after(Duration::ZERO, vec![Work::Nft(refused)]);
        }
        let (ask, mut synced) = wait(crate::api::WaitFor::Synced);
        scene.turn_after(Duration::ZERO, vec![ask]);
        let reached = Work::Objects(vec![ObjectEvent::Reached(1)]);
        scene.turn_after(Duration::ZERO, vec![reached]);
        let (ask, _asker) = wait(crate::api::WaitFor::Peers);
        scene.turn_after(Duration::ZERO, vec![ask]);
        let mut turns = 0;
        while let Some(at) = scene.world.next_wakeup() {
            scene.turn_after(at - scene.world.now, Vec::new());
            if let Some(generation) = scene.plan() {
                let repaired = true;
                let applied = NftEvent::Applied {
                    generation,
                    repaired,
                };
                scene.turn_after(Duration::ZERO, vec![Work::Nft(applied)]);
            }
            for work in scene.flows.recv_all() {
                if let FlowWork::Check(_) = work {
                    let passed = FlowEvent::Passed(Default::default());
                    scene.turn_after(Duration::ZERO, vec![Work::Flows(passed)]);
                }
            }
            turns += 1;
            assert!(
                turns < 10,
                "{policy} {is_read} {conf}: it does not come to rest"
            );
        }
        let answered = synced.try_recv().is_ok();
        assert_eq!(answered, is_read || !policy, "{policy} {is_read} {conf}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// The kernel's table is read once; after that an ADD waits for it only where a pod had the address before.
#[test]
fn only_an_address_that_has_had_a_life_is_looked_at() {
    let mut scene = Scene::new(Vec::new());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDRs": ["10.0.1.0/24"]}});
    scene.tell(Work::Objects(vec![
        object(node),
        pod("a", "u"),
        pod("b", "u"),
        pod("c", "u"),
    ]));
    // Not before the answer is there.
    let _early = scene.attach(attachment("c", 4, "10.0.1.3"));
    let generation = scene.last_delta().expect("its dispatch").to;
    scene.apply(generation, false);
    let mut looks = Vec::new();
    for work in scene.flows.recv_all() {
        match work {
            FlowWork::Look(prefixes) => looks.push(prefixes),
            FlowWork::Forget(number, _) => scene.forgot(number),
            FlowWork::Check(_) => panic!("a pod that is closed has no flows"),
            _ => {}
        }
    }
    let [prefixes] = &looks[..] else {
        panic!("one look: {looks:?}")
    };
    scene.tell(Work::Flows(FlowEvent::Seen {
        prefixes: prefixes.clone(),
        addresses: ["10.0.1.9".parse().unwrap()].into(),
    }));

    let mut reply = scene.attach(attachment("a", 5, "10.0.1.1"));
    assert_eq!(scene.forgets().0, [""; 0], "it has had no life");
    let generation = scene.last_delta().expect("its dispatch").to;
    scene.apply(generation, false);
    assert!(is_enforced(&mut reply));
    assert!(
        scene.flows.recv_all().is_empty(),
        "nor is there a flow to check"
    );

    let mut reply = scene.attach(attachment("b", 6, "10.0.1.9"));
    let (addresses, number) = scene.forgets();
    assert_eq!(addresses, ["10.0.1.9"]);
    let generation = scene.last_delta().expect("its dispatch").to;
    scene.apply(generation, false);
    assert!(!is_enforced(&mut reply));
    scene.forgot(number);
    assert!(is_enforced(&mut reply));

    // Left by a pod: looked at, until that is done.
    scene.detach("a");
    let (addresses, number) = scene.forgets();
    assert_eq!(addresses, ["10.0.1.1"]);
    let _again = scene.attach(attachment("a", 7, "10.0.1.1"));
    let (addresses, later) = scene.forgets();
    assert_eq!(addresses, ["10.0.1.1"]);
    scene.forgot(number);
    scene.forgot(later);
    scene.detach("a");
    let (_, number) = scene.forgets();
    scene.forgot(number);
    scene.tell(Work::Flows(FlowEvent::Left(
        ["10.0.1.1".parse().unwrap()].into(),
    )));
    let _again = scene.attach(attachment("a", 8, "10.0.1.1"));
    assert_eq!(scene.forgets().0, ["10.0.1.1"], "they could not be deleted");
}

/// What a node that is ready lacks is what it lacks now, not what it lacked when it became ready.
#[test]
fn shortcomings_are_those_of_the_moment() {
    let dir = std::env::temp_dir().join(format!("selvage-now-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut scene = Scene::new(Vec::new());
    scene.world.setup.run_dir = dir.clone();
    scene.world.setup.features.bgp = true;
    let peer = object(
        json!({"apiVersion": "selvage.io/v1alpha1", "kind": "BGPPeer",
        "metadata": {"name": "tor", "uid": "t"}, "spec": {"address": "192.0.2.1", "asn": 65001}}),
    );
    let limit = scene.world.setup.limits.ready;
    scene.turn_after(limit, vec![Work::Objects(vec![peer])]);
    let missing = |scene: &Scene| scene.world.ready_view().missing;
    assert!(scene.world.ready.ready);
    assert_eq!(missing(&scene), ["neighbour 192.0.2.1 is not up"]);
    let session = |state| {
        let address = "192.0.2.1".parse().unwrap();
        Work::Observed(Observed::Peer(Box::new(store::PeerState {
            state,
            ..store::PeerState::new(address)
        })))
    };
    for (state, expected) in [
        (store::SessionState::Established, 0),
        (store::SessionState::Active, 1),
    ] {
        scene.turn_after(Duration::ZERO, vec![session(state)]);
        assert_eq!(missing(&scene).len(), expected, "{state:?}");
    }
    let gone = ObjectEvent::Deleted(Kind::BgpPeer, objects::Key::new("", "tor"));
    scene.turn_after(Duration::ZERO, vec![Work::Objects(vec![gone])]);
    assert_eq!(missing(&scene), [""; 0]);
    std::fs::remove_dir_all(dir).unwrap();
}

/// A pod's interface does not concern the speaker; the uplink's MTU concerns the pods to come.
#[test]
fn links_of_pods_do_not_concern_the_speaker() {
    let mut store = Store::default();
    let link = |group, mtu| store::Link {
        name: "x".into(),
        group,
        mtu,
        addresses: vec!["192.0.2.7/24".parse().unwrap()],
        ..store::Link::default()
    };
    let pods = store::POD_LINK_GROUP;
    let all: BTreeMap<_, _> = [(2, link(0, 1500)), (7, link(pods, 1500))].into();
    let without: BTreeMap<_, _> = [(2, link(0, 1500))].into();
    for (observed, concerns) in [
        (Observed::Link(2, link(0, 1500)), true),
        (Observed::Link(7, link(pods, 1500)), false),
        (Observed::Link(7, link(pods, 1400)), false),
        (Observed::Links(all), false),
        (Observed::Link(2, link(0, 9000)), true),
        (Observed::LinkGone(7), false),
        (Observed::Link(8, link(0, 1500)), true),
        (Observed::Link(8, link(pods, 1500)), true),
        (Observed::Links(without), true),
        (Observed::LinkGone(2), true),
    ] {
        let text = format!("{observed:?}");
        assert_eq!(store.observe(observed).bgp, concerns, "{text}");
    }
}

/// What the speaker should be is worked out again when an interface of the node changes, and not with every pod.
#[test]
fn a_pods_interface_does_not_have_the_speaker_worked_out_again() {
    let mut scene = Scene::new(Vec::new());
    scene.world.setup.features.bgp = true;
    let link = |group| store::Link {
        name: "x".into(),
        group,
        ..store::Link::default()
    };
    for (observed, again) in [
        (Observed::Link(2, link(0)), true),
        (Observed::Link(7, link(store::POD_LINK_GROUP)), false),
        (Observed::LinkGone(7), false),
        (Observed::LinkGone(2), true),
    ] {
        let text = format!("{observed:?}");
        scene.world.speaker = None;
        scene.tell(Work::Observed(observed));
        assert_eq!(scene.world.speaker.is_some(), again, "{text}");
    }
}

/// The keeper of host ports learns which addresses the Node object has, and again when those, or those of links, are others.
#[test]
fn the_keeper_of_host_ports_is_told_the_nodes_addresses() {
    let mut scene = Scene::new(Vec::new());
    let (sender, told) = Inbox::new().unwrap();
    scene.world.out.host_ports = Some(sender);
    let node = |address: &str| {
        Work::Objects(vec![object(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}}))])
    };
    let link = || {
        let addresses = vec!["192.0.2.77/24".parse().unwrap()];
        Work::Observed(Observed::Link(
            2,
            store::Link {
                name: "eth0".into(),
                addresses,
                ..store::Link::default()
            },
        ))
    };
    for (work, expected) in [
        (node("192.0.2.7"), Some("192.0.2.7")),
        (node("192.0.2.7"), None),
        (link(), Some("192.0.2.7")),
        (link(), None),
        (node("192.0.2.8"), Some("192.0.2.8")),
    ] {
        scene.tell(work);
        let addresses = told.recv_all().into_iter().map(|work| match work {
            HostPortWork::Addresses(addresses) => addresses,
            other => panic!("{other:?}"),
        });
        let expected = expected.map(|address| vec![address.parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses.collect::<Vec<_>>(), Vec::from_iter(expected));
    }
}

/// The uplink's MTU is followed at once; that the file is not yet what it is to be is nobody's doing.
#[test]
fn the_mtu_of_the_uplink_is_followed_at_once() {
    let dir = std::env::temp_dir().join(format!("selvage-mtu-{}", std::process::id()));
    let conflist = dir.join("10-selvage.conflist");
    std::fs::create_dir_all(&dir).unwrap();
    let mut scene = Scene::new(Vec::new());
    scene.world.setup.run_dir = dir.clone();
    scene.world.setup.cni_conf = Some(conflist.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDRs": ["10.0.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}});
    let uplink = |mtu| {
        Work::Observed(Observed::Link(
            2,
            store::Link {
                name: "eth0".into(),
                mtu,
                addresses: vec!["192.0.2.7/24".parse().unwrap()],
                ..store::Link::default()
            },
        ))
    };
    scene.turn_after(
        Duration::ZERO,
        vec![uplink(1500), Work::Objects(vec![object(node)])],
    );
    for mtu in [1500, 9000] {
        // Somebody touches the folder in the same moment.
        scene.turn_after(Duration::ZERO, vec![uplink(mtu), Work::CniFolder]);
        let text = std::fs::read_to_string(&conflist).unwrap();
        let conf: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(conf["plugins"][0]["mtu"], mtu, "{text}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// `status` names the pods that are closed, and says why they are at that moment.
#[test]
fn closed_pods_are_named_with_the_reason_of_the_moment() {
    let mut scene = Scene::new(Vec::new());
    let said = |scene: &mut Scene| -> Vec<String> {
        let wrong = scene.world.status().wrong.into_iter();
        let texts = wrong.map(|finding| finding.what);
        texts.filter(|text| text.contains("closed")).collect()
    };
    let unknown = "attached, but no such Pod is known: closed";
    let _plugin = scene.attach(attachment("a", 5, "10.0.1.1"));
    assert_eq!(said(&mut scene), [format!("pod x/a: {unknown}")]);
    scene.tell(Work::Objects(vec![pod("a", "u")]));
    let generation = scene.last_delta().expect("its dispatch").to;
    assert_eq!(
        said(&mut scene),
        ["pod x/a: closed until the policy is in the kernel"]
    );
    scene.apply(generation, false);
    assert_eq!(said(&mut scene), [""; 0]);
    let gone = ObjectEvent::Deleted(Kind::Pod, objects::Key::new("x", "a"));
    scene.tell(Work::Objects(vec![gone]));
    assert_eq!(said(&mut scene), [format!("pod x/a: {unknown}")]);
    for number in 1..=6 {
        let (name, address) = (format!("b{number}"), format!("10.0.1.1{number}"));
        drop(scene.attach(attachment(&name, 10 + number, &address)));
    }
    assert_eq!(
        said(&mut scene),
        [format!(
            "pods x/a, x/b1, x/b2, x/b3, x/b4 and 2 more: {unknown}"
        )]
    );
}

/// A scene with one pod, `x/a`, whose former flows are gone; its run directory, which the test removes, and the plugin.
fn scene_with_a_pod(name: &str) -> (Scene, PathBuf, oneshot::Receiver<link::Reply>) {
    let dir = std::env::temp_dir().join(format!("selvage-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut scene = Scene::new(Vec::new());
    scene.world.setup.run_dir = dir.clone();
    scene.turn_after(Duration::ZERO, vec![Work::Objects(vec![pod("a", "u")])]);
    let plugin = scene.attach(attachment("a", 5, "10.0.1.1"));
    let number = scene.forgets().1;
    scene.forgot(number);
    (scene, dir, plugin)
}

/// Who waits until all is in the kernel waits for the flows, too, that a change denies.
#[test]
fn a_wait_ends_after_the_flows_that_a_change_denies_are_cut() {
    let (mut scene, dir, _plugin) = scene_with_a_pod("cut");
    let open = object(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "open"}, "spec": {"podSelector": {}, "ingress": [{}]}}),
    );
    let shut = ObjectEvent::Deleted(Kind::NetworkPolicy, objects::Key::new("x", "open"));
    let mut waits = Vec::new();
    for (mark, change) in (1..).zip([open, shut]) {
        // The kernel is idle before each change.
        while let Some(delta) = scene.delta() {
            scene.apply(delta.to, false);
        }
        if scene.world.flows.in_pass {
            let passed = FlowEvent::Passed(Default::default());
            scene.turn_after(Duration::ZERO, vec![Work::Flows(passed)]);
        }
        scene.turn_after(FLOWS_REST, Vec::new());
        scene.flows.recv_all();
        assert!(!scene.world.flows.in_pass);
        let (reply, mut answer) = oneshot::channel();
        scene.turn_after(
            Duration::ZERO,
            vec![
                Work::Ask(Query::Wait(crate::api::WaitFor::Synced, reply)),
                Work::Objects(vec![change, ObjectEvent::Reached(mark)]),
            ],
        );
        let delta = scene.last_delta().expect("a change of the rules");
        assert!(
            answer.try_recv().is_err(),
            "the rules are not in the kernel"
        );
        let repaired = false;
        let generation = delta.to;
        let applied = NftEvent::Applied {
            generation,
            repaired,
        };
        scene.turn_after(FLOWS_REST, vec![Work::Nft(applied)]);
        let checks = scene.flows.recv_all();
        assert!(
            matches!(checks.front(), Some(FlowWork::Check(_))),
            "{checks:?}"
        );
        assert!(answer.try_recv().is_err(), "the flows live");
        let passed = FlowEvent::Passed(Default::default());
        scene.turn_after(Duration::ZERO, vec![Work::Flows(passed)]);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        waits.push(answer);
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// A long list goes into the kernel in portions: who waits until all is there waits for the last one.
#[test]
fn a_wait_ends_after_the_last_portion_of_a_long_list() {
    let (mut scene, dir, _plugin) = scene_with_a_pod("long");
    let blocks: Vec<_> = (0..6000)
        .map(|n| json!({"ipBlock": {"cidr": format!("172.16.{}.{}/32", n / 100, 2 * (n % 100))}}))
        .collect();
    let long = object(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "long"},
        "spec": {"podSelector": {}, "ingress": [{"from": blocks}]}}),
    );
    let (reply, mut answer) = oneshot::channel();
    scene.turn_after(
        Duration::ZERO,
        vec![
            Work::Ask(Query::Wait(crate::api::WaitFor::Synced, reply)),
            Work::Objects(vec![long, ObjectEvent::Reached(1)]),
        ],
    );
    let (mut portions, mut complete) = (0, false);
    while let Some(delta) = scene.delta() {
        if !complete {
            assert!(answer.try_recv().is_err(), "after {portions} portions");
            portions += 1;
        }
        // What comes after the last portion takes out what nobody uses any more.
        complete = !scene.world.compiler.is_filling();
        let applied = NftEvent::Applied {
            generation: delta.to,
            repaired: false,
        };
        scene.turn_after(FLOWS_REST, vec![Work::Nft(applied)]);
        if scene.world.flows.in_pass {
            let passed = FlowEvent::Passed(Default::default());
            scene.turn_after(FLOWS_REST, vec![Work::Flows(passed)]);
            scene.flows.recv_all();
        }
    }
    assert!(portions > 2, "{portions}");
    if scene.world.flows.in_pass {
        let passed = FlowEvent::Passed(Default::default());
        scene.turn_after(FLOWS_REST, vec![Work::Flows(passed)]);
    }
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    std::fs::remove_dir_all(dir).unwrap();
}

/// A change that only allows more takes no look at the kernel's flows unless some of them are cut.
#[test]
fn cut_flows_are_looked_for_only_where_there_are_some() {
    let (mut scene, dir, _plugin) = scene_with_a_pod("cut-flows");
    let of_peers = object(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": "of-peers"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "peer"}}}]}]}}));
    let peer = object(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": "peer", "uid": "p", "labels": {"app": "peer"}},
        "spec": {"nodeName": "n2"}, "status": {"podIPs": [{"ip": "10.0.2.1"}]}}));
    let gone = ObjectEvent::Deleted(Kind::Pod, objects::Key::new("x", "peer"));
    scene.tell(Work::Objects(vec![of_peers]));
    // The kernel has all that was told, and the flows were looked at.
    let settle = |scene: &mut Scene, still_cut| {
        let mut passes = 0;
        loop {
            while let Some(delta) = scene.delta() {
                scene.apply(delta.to, false);
            }
            scene.turn_after(FLOWS_REST, Vec::new());
            if !scene.world.flows.in_pass {
                scene.flows.recv_all();
                return passes;
            }
            passes += 1;
            let passed = Passed {
                still_cut,
                ..Passed::default()
            };
            scene.tell(Work::Flows(FlowEvent::Passed(passed)));
        }
    };
    for (still_cut, is_looked_for) in [(0, false), (1, true), (0, true)] {
        scene.tell(Work::Objects(vec![peer.clone()]));
        settle(&mut scene, 0);
        scene.tell(Work::Objects(vec![gone.clone()]));
        assert_eq!(settle(&mut scene, still_cut), 1, "it is denied");
        scene.tell(Work::Objects(vec![peer.clone()]));
        assert_eq!(settle(&mut scene, 0), usize::from(is_looked_for));
    }
    std::fs::remove_dir_all(dir).unwrap();
}
