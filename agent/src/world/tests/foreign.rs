//! The life of pods of another plugin: interfaces and addresses are told by the test in the kernel's place.

use selvage_policy::{LocalStatus, model::IfName};

use super::*;
use crate::{store::PodInterface, world::foreign::GRACE};

const FOUR: &str = "10.0.1.1";
const SIX: &str = "fd00::1";
const BOTH: &[&str] = &[FOUR, SIX];

/// A Pod `x/NAME` of this node with these addresses in its status; `uid` stands for the second in which it was created,
/// too.
fn addressed(name: &str, uid: u32, addresses: &[&str]) -> ObjectEvent {
    object(pod_with(name, uid, addresses))
}

fn pod_with(name: &str, uid: u32, addresses: &[&str]) -> serde_json::Value {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "x", "name": name, "uid": uid.to_string(),
            "creationTimestamp": format!("2026-01-01T00:00:{uid:02}Z")},
        "spec": {"nodeName": "n1"}, "status": {"podIPs": addresses}})
}

fn gone(name: &str) -> ObjectEvent {
    ObjectEvent::Deleted(Kind::Pod, objects::Key::new("x", name))
}

/// All interfaces of pods that there are: name, index, addresses.
fn interfaces(all: &[(&str, u32, &[&str])]) -> Work {
    let interface = |(name, index, addresses): &(&str, u32, &[&str])| {
        let interface = PodInterface {
            index: *index,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            bridge: None,
        };
        ((*name).to_owned(), interface)
    };
    Work::Observed(Observed::PodInterfaces(all.iter().map(interface).collect()))
}

impl Scene {
    /// An agent that does nothing but policy beside a plugin whose interfaces are `veth*`, before it knows anything.
    fn beside_a_plugin() -> Scene {
        let features = Features {
            bgp: false,
            kernel: false,
            cni: false,
            policy: true,
        };
        Scene::with(features, PodInterfaces::named(["veth"]), Vec::new())
    }

    /// These Pods and interfaces are read, and the first plan is in the kernel.
    fn beside(pods: Vec<ObjectEvent>, all: &[(&str, u32, &[&str])]) -> Scene {
        let mut scene = Scene::beside_a_plugin();
        scene.tell(Work::Objects(everything(pods)));
        scene.tell(interfaces(all));
        let generation = scene.plan().expect("the first plan");
        scene.apply(generation, false);
        assert_eq!(scene.forgets().0, [""; 0], "nothing has changed hands");
        scene
    }

    /// Whose rules an interface has when the kernel has taken all; `None`: it is closed.
    fn owner(&mut self, name: &str) -> Option<String> {
        while let Some(delta) = self.delta() {
            self.apply(delta.to, false);
        }
        let ifname: IfName = name.parse().unwrap();
        let mut locals = self.world.foreign.locals();
        let (_, key) = locals.find(|(local, _)| local.ifname == ifname)?;
        let owner = key.map(ToString::to_string);
        let status = self.world.compiler.status(&ifname);
        let is_open = matches!(status, LocalStatus::Planned(_));
        assert_eq!(is_open, owner.is_some(), "{status:?}");
        owner
    }

    /// The addresses whose flows are to be deleted, which is then done.
    fn forgets_and_forgot(&mut self) -> Vec<String> {
        let (addresses, number) = self.forgets();
        self.forgot(number);
        addresses
    }

    /// What `status` says of pods without an interface.
    fn not_enforced(&mut self) -> Option<String> {
        let wrong = self.world.status().wrong.into_iter();
        let mut found = wrong.map(|finding| finding.what);
        found.find(|what| what.starts_with("policy is not enforced for"))
    }
}

/// `x/former` was found behind veth1; its addresses are behind veth2 now, and the flows are gone.
fn moved(others: Vec<ObjectEvent>) -> Scene {
    let mut pods = vec![addressed("former", 7, BOTH)];
    pods.extend(others);
    let mut scene = Scene::beside(pods, &[("veth1", 5, BOTH)]);
    assert_eq!(scene.owner("veth1").as_deref(), Some("x/former"));
    scene.tell(interfaces(&[]));
    scene.tell(interfaces(&[("veth2", 6, BOTH)]));
    assert_eq!(scene.forgets_and_forgot(), BOTH);
    scene
}

/// The API speaks of the former owner of an address for longer than the plugin does. The new owner is the one that has no
/// address yet.
#[test]
fn a_pod_is_not_found_by_its_address_elsewhere_while_another_waits_for_one() {
    let mut finished = pod_with("new", 3, &[]);
    finished["status"]["phase"] = json!("Failed");
    for (news, owner) in [
        // The former one speaks of the address, too, and is the younger Pod.
        (addressed("new", 3, BOTH), "x/new"),
        // It is not the one: the former has its address again.
        (addressed("new", 3, &["10.0.1.9"]), "x/former"),
        (gone("new"), "x/former"),
        (object(finished), "x/former"),
    ] {
        let mut scene = moved(vec![addressed("new", 3, &[])]);
        assert_eq!(scene.owner("veth2"), None);
        let mut labelled = pod_with("former", 7, BOTH);
        labelled["metadata"]["labels"] = json!({"app": "former"});
        scene.tell(Work::Objects(vec![object(labelled)]));
        assert_eq!(scene.owner("veth2"), None, "that says nothing of addresses");
        scene.tell(Work::Objects(vec![news]));
        assert_eq!(scene.owner("veth2").as_deref(), Some(owner));
    }
}

/// A pod whose network is made anew may have its address of before.
#[test]
fn a_pod_is_found_elsewhere_where_no_other_waits_for_an_address() {
    let mut of_another_node = pod_with("far", 1, &[]);
    of_another_node["spec"]["nodeName"] = json!("n2");
    let mut of_the_node = pod_with("host", 2, &[]);
    of_the_node["spec"]["hostNetwork"] = json!(true);
    let others = [of_another_node, of_the_node].map(object);
    let mut scene = moved(others.into());
    assert_eq!(scene.owner("veth2").as_deref(), Some("x/former"));
}

/// What was found behind another interface is this Pod by that address.
#[test]
fn another_address_and_another_pod_are_news() {
    const OTHER: &[&str] = &["10.0.1.2", SIX];
    for (news, addresses) in [
        (addressed("former", 7, OTHER), OTHER),
        (addressed("former", 8, BOTH), BOTH),
    ] {
        let pods = vec![addressed("former", 7, BOTH), addressed("new", 3, &[])];
        let mut scene = Scene::beside(pods, &[("veth1", 5, BOTH)]);
        scene.tell(interfaces(&[]));
        scene.tell(interfaces(&[("veth2", 6, addresses)]));
        scene.forgets_and_forgot();
        assert_eq!(scene.owner("veth2"), None);
        scene.tell(Work::Objects(vec![news]));
        assert_eq!(scene.owner("veth2").as_deref(), Some("x/former"));
    }
}

/// A plugin takes the routes of a pod away before its interface, and each makes a notice of its own.
#[test]
fn all_addresses_that_a_pod_was_found_with_count_as_elsewhere() {
    for (left, next) in [
        (FOUR, BOTH),
        (SIX, BOTH),
        (FOUR, &BOTH[1..]),
        (SIX, &BOTH[..1]),
    ] {
        let pods = vec![addressed("former", 7, BOTH), addressed("new", 3, &[])];
        let mut scene = Scene::beside(pods, &[("veth1", 5, BOTH)]);
        for all in [&[("veth1", 5, &[left][..])][..], &[], &[("veth2", 6, next)]] {
            scene.tell(interfaces(all));
        }
        assert_eq!(scene.forgets_and_forgot(), BOTH);
        assert_eq!(scene.owner("veth2"), None, "{left} {next:?}");
    }
}

/// The next owner of an address does not inherit what the former one had established.
#[test]
fn an_interface_is_closed_until_the_flows_of_former_owners_are_gone() {
    let pods = vec![addressed("former", 1, BOTH)];
    let mut scene = Scene::beside(pods, &[("veth1", 5, BOTH)]);
    scene.tell(Work::Objects(vec![
        gone("former"),
        addressed("new", 2, BOTH),
    ]));
    scene.tell(interfaces(&[("veth2", 6, BOTH)]));
    let (addresses, first) = scene.forgets();
    assert_eq!(addresses, BOTH);
    assert_eq!(scene.owner("veth2"), None);
    // One address moves once more: what is told of the first move says nothing of the second.
    scene.tell(interfaces(&[
        ("veth2", 6, &BOTH[1..]),
        ("veth3", 7, &BOTH[..1]),
    ]));
    let (addresses, second) = scene.forgets();
    assert_eq!(addresses, [FOUR]);
    for name in ["veth2", "veth3"] {
        assert_eq!(scene.owner(name), None);
    }
    scene.forgot(first);
    assert_eq!(scene.owner("veth2").as_deref(), Some("x/new"));
    assert_eq!(scene.owner("veth3"), None);
    scene.forgot(second);
    assert_eq!(scene.owner("veth3").as_deref(), Some("x/new"));
    assert_eq!(scene.forgets().0, [""; 0]);
}

/// Routes of an interface may be away while somebody sets them anew, and while it is down.
#[test]
fn a_pod_ends_with_its_interface_or_when_its_address_is_elsewhere() {
    type All<'a> = &'a [(&'a str, u32, &'a [&'a str])];
    let behind: All<'_> = &[("veth1", 5, BOTH)];
    let away: All<'_> = &[("veth1", 5, &[])];
    let none: &[&str] = &[];
    for (steps, left) in [
        (&[away, behind][..], none),
        (&[away, away, behind], none),
        (&[&[("veth1", 5, &BOTH[..1])], behind], none),
        (&[&[]], BOTH),
        (&[away, &[]], BOTH),
        (&[&[], &[]], BOTH),
        (&[&[("veth2", 6, BOTH)]], BOTH),
        (&[away, &[("veth1", 5, &[]), ("veth2", 6, BOTH)]], BOTH),
        // Another interface of that name.
        (&[&[("veth1", 9, BOTH)]], BOTH),
        (
            &[&[("veth1", 5, &BOTH[..1]), ("veth2", 6, &BOTH[1..])]],
            &BOTH[1..],
        ),
        (
            &[&[("veth1", 5, &BOTH[..1])], &[("veth1", 5, &BOTH[..1])]],
            none,
        ),
    ] {
        let mut scene = Scene::beside(vec![addressed("a", 1, BOTH)], behind);
        for step in steps {
            scene.tell(interfaces(step));
        }
        assert_eq!(scene.forgets().0, left, "{steps:?}");
        if steps.last() == Some(&behind) {
            let owner = scene.owner("veth1");
            assert_eq!(owner.as_deref(), Some("x/a"), "at once: {steps:?}");
        }
    }
}

/// The plan of a node without interfaces would close all pods that the run before has open.
#[test]
fn no_plan_is_made_before_the_interfaces_of_pods_are_read() {
    let mut scene = Scene::beside_a_plugin();
    let objects = everything(vec![addressed("a", 1, BOTH)]);
    scene.turn_after(Duration::ZERO, vec![Work::Objects(objects)]);
    scene.turn_after(scene.world.setup.limits.ready, Vec::new());
    assert!(scene.policy_work().is_none(), "half a world");
    let missing = scene.world.ready_view().missing;
    let read = "routes to pods have not been read";
    assert!(missing.iter().any(|missing| missing == read), "{missing:?}");
    scene.turn_after(Duration::ZERO, vec![interfaces(&[("veth1", 5, BOTH)])]);
    let Some(NftWork::Plan(_, plan)) = scene.policy_work() else {
        panic!("the first plan")
    };
    let text = selvage_policy::plan::text::plan(&plan);
    for address in BOTH {
        let element = format!("\"veth1\" . {address}");
        assert!(text.contains(&element), "no {element}: {text}");
    }
    let missing = scene.world.ready_view().missing;
    assert!(!missing.iter().any(|missing| missing == read));
}

/// The plugin's DEL comes before the end of the Pod, and its ADD may be seen after the Pod's address.
#[test]
fn a_pod_without_an_interface_is_named_after_a_while() {
    let at = |scene: &mut Scene, later: Duration, works: Vec<Work>| {
        scene.world.now += later;
        works.into_iter().for_each(|work| scene.tell(work));
        scene.not_enforced()
    };
    let moment = Duration::from_millis(1);
    let mut scene = Scene::beside(vec![addressed("a", 1, BOTH)], &[("veth1", 5, BOTH)]);
    assert_eq!(at(&mut scene, 2 * GRACE, Vec::new()), None);
    let less = || interfaces(&[("veth1", 5, &BOTH[1..])]);
    assert_eq!(at(&mut scene, Duration::ZERO, vec![less()]), None);
    // What else happens meanwhile does not count.
    let other = Work::Objects(vec![addressed("b", 2, &[])]);
    assert_eq!(at(&mut scene, GRACE - moment, vec![other, less()]), None);
    let named = at(&mut scene, moment, Vec::new()).expect("it is named");
    assert!(named.contains(&format!("x/a ({FOUR})")), "{named}");
    assert!(!named.contains(SIX), "{named}");
    // It comes back, and another time begins.
    let whole = interfaces(&[("veth1", 5, BOTH)]);
    assert_eq!(at(&mut scene, moment, vec![whole]), None);
    assert_eq!(at(&mut scene, moment, vec![interfaces(&[])]), None);
    assert_eq!(at(&mut scene, GRACE - moment, Vec::new()), None);
    // One that has finished has no interface.
    let mut finished = pod_with("a", 1, BOTH);
    finished["status"]["phase"] = json!("Succeeded");
    let finished = Work::Objects(vec![object(finished)]);
    assert_eq!(at(&mut scene, GRACE, vec![finished]), None);
}
