//! The Kubernetes source against an API server that misbehaves on demand. Every wait ends with an event.

mod fake;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fake::{Fake, kinds_asked};
use proptest::prelude::*;
use selvage::config::ApiConfig;
use selvage::objects::{Kind, NotEnforced, PolicyKind};
use selvage::source::api::{self, Api, Settings};
use selvage::source::{At, ObjectEvent, Problem};
use selvage::store::Store;
use serde_json::{Value, json};

/// A source, and the store behind it.
struct Bench {
    folder: Folder,
    settings: Settings,
    api: Option<Api>,
    told: Receiver<Told>,
    tell: Sender<Told>,
    store: Store,
    lacking: BTreeMap<&'static str, String>,
    mark: u64,
    /// What came since it was looked at last.
    events: Vec<ObjectEvent>,
}

enum Told {
    Events(Vec<ObjectEvent>),
    Standing(&'static str, Option<String>),
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("selvage-api-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    /// A source that has begun.
    fn new(fake: &Fake) -> Bench {
        let mut bench = Bench::idle(&kubeconfig_of(fake));
        bench.start();
        bench
    }

    /// A source that has read everything.
    fn settled(fake: &Fake) -> Bench {
        let mut bench = Bench::new(fake);
        bench.settle();
        bench
    }

    fn idle(kubeconfig: &str) -> Bench {
        let folder = Folder::new();
        let path = folder.0.join("kubeconfig");
        std::fs::write(&path, kubeconfig).unwrap();
        let (tell, told) = channel();
        let settings = Settings {
            api: ApiConfig {
                kubeconfig: vec![path],
                servers: Vec::new(),
            },
            account: "/nowhere".into(),
            node: "n1".into(),
            state_dir: folder.0.clone(),
            all_pods: true,
            bgp: true,
            pods: None,
            pulse: selvage_bgp::Pulse::new("kubernetes"),
            patience: api::Patience {
                discovery: Duration::from_millis(200),
                objects: Duration::from_millis(50),
                pods: Duration::from_millis(50),
                ..api::Patience::default()
            },
        };
        Bench {
            folder,
            settings,
            api: None,
            told,
            tell,
            store: Store::default(),
            lacking: BTreeMap::new(),
            mark: 0,
            events: Vec::new(),
        }
    }

    fn start(&mut self) {
        let events = self.tell.clone();
        let standing = self.tell.clone();
        let sink = Box::new(move |batch| events.send(Told::Events(batch)).is_ok());
        let tell = Box::new(move |name, text| {
            let _ = standing.send(Told::Standing(name, text));
        });
        self.api = Some(api::spawn(&self.settings, sink, tell).unwrap());
    }

    /// Takes in everything that the server holds now.
    fn settle(&mut self) {
        self.mark += 1;
        self.api.as_ref().unwrap().reach(self.mark);
        let mark = self.mark;
        self.until("the mark is passed", |bench| bench.store.reached() >= mark);
    }

    fn until(&mut self, what: &str, is: impl Fn(&Bench) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is(self) {
            // What is waited for may be on the other side, too.
            match self.told.recv_timeout(Duration::from_millis(20)) {
                Ok(Told::Events(events)) => {
                    self.events.extend(events.iter().cloned());
                    self.store.apply(events);
                }
                Ok(Told::Standing(name, Some(text))) => {
                    self.lacking.insert(name, text);
                }
                Ok(Told::Standing(name, None)) => {
                    self.lacking.remove(name);
                }
                Err(_) => assert!(
                    Instant::now() < deadline,
                    "{what}: never; {:?}; {:?}",
                    self.lacking,
                    self.nodes()
                ),
            }
        }
    }

    fn nodes(&self) -> Vec<String> {
        self.store.nodes().map(|node| show(node)).collect()
    }

    fn pods(&self) -> Vec<String> {
        let show = |pod: &selvage_policy::model::PodFact| {
            let ips: Vec<String> = pod.ips.iter().map(|ip| ip.to_string()).collect();
            format!("{} {}", pod.key, ips.join(","))
        };
        self.store.pods().map(|pod| show(pod)).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.store.problems().map(ToString::to_string).collect()
    }
}

impl Bench {
    /// What is told under a name.
    fn lacks(&self, name: &str) -> &str {
        self.lacking.get(name).map_or("", String::as_str)
    }

    fn state_dir(&self) -> &Path {
        &self.folder.0
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.api.take());
    }
}

fn kubeconfig_of(fake: &Fake) -> String {
    kubeconfig(&format!("http://{}", fake.addr), "{}")
}

fn kubeconfig(server: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\nusers: [{{name: u, user: {user}}}]\n"
    )
}

fn show(node: &selvage::objects::Node) -> String {
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    format!("{} {}", node.meta.key, cidrs.join(","))
}

fn node(name: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podCIDRs": [cidr]}})
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    })
}

/// With streams and with pages.
fn both_ways(test: impl Fn(&Fake)) {
    for streams in [true, false] {
        let fake = Fake::start();
        fake.with(|state| state.streams = streams);
        test(&fake);
    }
}

#[test]
fn everything_is_read_and_followed() {
    both_ways(|fake| {
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        fake.put("pods", pod("a", "10.0.1.2"));
        let mut bench = Bench::settled(fake);
        assert!(bench.store.synced());
        assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
        assert_eq!(bench.pods(), ["default/a 10.0.1.2"]);
        fake.put("nodes", node("n1", "10.0.9.0/24"));
        fake.put("nodes", node("n2", "10.0.2.0/24"));
        fake.delete("pods", "default", "a");
        bench.until("the watch tells", |bench| {
            bench.nodes() == ["n1 10.0.9.0/24", "n2 10.0.2.0/24"] && bench.pods().is_empty()
        });
        assert_eq!(bench.problems(), Vec::<String>::new());
        assert_eq!(bench.lacking, BTreeMap::new());
        let (streams, asked) = fake.with(|state| (state.streams, kinds_asked(state, "limit=500")));
        assert_eq!(asked.is_empty(), streams, "{asked:?}");
    });
}

#[test]
fn lists_come_in_pages() {
    let fake = Fake::start();
    fake.with(|state| (state.streams, state.page) = (false, 3));
    for i in 0..10 {
        fake.put("nodes", node(&format!("n{i}"), "10.0.1.0/24"));
    }
    let bench = Bench::settled(&fake);
    assert_eq!(bench.store.count(Kind::Node), 10);
    let pages = fake.with(|state| state.asked(&["/nodes?limit=500", "continue="]));
    assert!(pages >= 3, "{pages}");
}

/// The names of the kinds whose lists or streams have been asked for since the counter was set back.
fn read_anew(fake: &Fake) -> Vec<String> {
    let lists = fake.with(|state| kinds_asked(state, "limit="));
    let streams = fake.with(|state| kinds_asked(state, "sendInitialEvents"));
    lists.union(&streams).cloned().collect()
}

#[test]
fn a_cut_watch_goes_on_where_it_was() {
    both_ways(|fake| {
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        let mut bench = Bench::settled(fake);
        for round in 0..3 {
            fake.with(|state| state.requests.clear());
            // In the middle of a line.
            fake.raw(
                "nodes",
                &br#"{"type":"ADDED","object":{"metadata":{"name":"#[..],
            );
            fake.cut();
            let name = format!("r{round}");
            fake.put("nodes", node(&name, "10.0.2.0/24"));
            bench.until("what came meanwhile is told", |bench| {
                bench.store.node(&name).is_some()
            });
            assert_eq!(read_anew(fake), Vec::<String>::new());
        }
        assert_eq!(bench.store.count(Kind::Node), 4);
        assert!(
            !bench
                .events
                .iter()
                .any(|event| matches!(event, ObjectEvent::Deleted(..)))
        );
    });
}

#[test]
fn bookmarks_say_where_we_are() {
    both_ways(|fake| {
        let mut bench = Bench::settled(fake);
        fake.with(|state| state.bookmarks = Some(Duration::from_millis(20)));
        // The short ones are from before: cut them, so that new ones have bookmarks.
        fake.cut();
        for i in 0..5 {
            fake.put("pods", pod(&format!("p{i}"), "10.0.1.2"));
        }
        bench.until("the pods are there", |bench| {
            bench.store.count(Kind::Pod) == 5
        });
        let now = fake.with(|state| state.version);
        fake.with(|state| state.requests.clear());
        // Nodes have not changed; a bookmark tells that nothing before it is missing.
        let resumed = format!("resourceVersion={now}&");
        fake.until("there is a bookmark", |state| {
            state
                .bookmarked
                .get("nodes")
                .is_some_and(|version| *version >= now)
        });
        fake.cut();
        fake.until("it is used", |state| {
            state.asked(&["/nodes?watch", &resumed]) > 0
        });
        fake.with(|state| state.compact(now));
        fake.cut();
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        bench.until("the node is told", |bench| !bench.nodes().is_empty());
    });
}

#[test]
fn gone_versions_are_a_mark_and_sweep() {
    both_ways(|fake| {
        for name in ["n1", "n2", "n3"] {
            fake.put("nodes", node(name, "10.0.1.0/24"));
        }
        let mut bench = Bench::settled(fake);
        // While nobody listens, one goes, one changes, one comes; and all that is forgotten.
        fake.stop();
        fake.delete("nodes", "", "n1");
        fake.put("nodes", node("n2", "10.0.9.0/24"));
        fake.put("nodes", node("n4", "10.0.4.0/24"));
        fake.with(|state| state.compact(state.version));
        bench.events.clear();
        fake.resume();
        bench.until("the world is as it is", |bench| {
            bench.nodes() == ["n2 10.0.9.0/24", "n3 10.0.1.0/24", "n4 10.0.4.0/24"]
        });
        let relisted = |event: &ObjectEvent| *event == ObjectEvent::Relist(Kind::Node);
        assert!(bench.events.iter().any(relisted));
        let deleted = |event: &ObjectEvent| matches!(event, ObjectEvent::Deleted(..));
        assert!(!bench.events.iter().any(deleted), "the store sweeps");
    });
}

#[test]
fn a_page_that_is_gone_begins_the_list_again() {
    let fake = Fake::start();
    fake.with(|state| (state.streams, state.page, state.forget_page) = (false, 2, true));
    for i in 0..7 {
        fake.put("nodes", node(&format!("n{i}"), "10.0.1.0/24"));
    }
    let bench = Bench::settled(&fake);
    assert_eq!(bench.store.count(Kind::Node), 7);
    assert!(!fake.with(|state| state.forget_page));
}

#[test]
fn a_server_that_does_not_know_streams_and_does_not_say_so() {
    let fake = Fake::start();
    fake.with(|state| {
        state.oblivious = true;
        state.bookmarks = Some(Duration::from_millis(20));
    });
    fake.put("nodes", node("n1", "10.0.1.0/24"));
    let bench = Bench::settled(&fake);
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    assert!(fake.with(|state| state.asked(&["/nodes?limit="])) > 0);
}

#[test]
fn duplicates_and_stale_events_change_nothing() {
    both_ways(|fake| {
        let mut bench = Bench::settled(fake);
        fake.with(|state| {
            state.put("nodes", node("n1", "10.0.1.0/24"));
            state.put("nodes", node("n1", "10.0.2.0/24"));
            state.put("nodes", node("n2", "10.0.3.0/24"));
            state.delete("nodes", "", "n2");
            // The deletion again, n2 as it was, n1 as it was first.
            state.again("nodes", 0);
            state.again("nodes", 2);
            state.again("nodes", 5);
            state.put("nodes", node("end", "10.0.9.0/24"));
        });
        bench.until("all of it was told", |bench| {
            bench.store.node("end").is_some()
        });
        assert_eq!(bench.nodes(), ["end 10.0.9.0/24", "n1 10.0.2.0/24"]);
    });
}

#[test]
fn a_bad_object_spoils_no_other() {
    both_ways(|fake| {
        fake.put("nodes", node("good", "10.0.1.0/24"));
        fake.put("nodes", node("bad", "10.0.1.0/99"));
        fake.put(
            "nodes",
            json!({"apiVersion": "v2", "kind": "Node", "metadata": {"name": "new"}}),
        );
        fake.put("pods", json!({"metadata": {"namespace": "x", "name": "bad"}, "status": {"podIPs": [{"ip": "?"}]}}));
        fake.put("pods", pod("good", "10.0.1.2"));
        let mut bench = Bench::settled(fake);
        assert_eq!(bench.nodes(), ["good 10.0.1.0/24"]);
        assert_eq!(bench.pods(), ["default/good 10.0.1.2"]);
        let problems = bench.problems();
        for part in [
            ": Node bad: spec.podCIDRs[0]: ",
            ": Node new: apiVersion: ",
            ": Pod x/bad: status.podIPs[0].ip: ",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(part)),
                "{part} {problems:?}"
            );
        }
        // The last good form stays, in a list that is read again, too.
        fake.put("nodes", node("good", "nonsense"));
        bench.settle();
        assert_eq!(bench.nodes(), ["good 10.0.1.0/24"]);
        fake.put("nodes", node("bad", "10.0.2.0/24"));
        fake.put("nodes", node("good", "10.0.3.0/24"));
        fake.delete("nodes", "", "new");
        fake.delete("pods", "x", "bad");
        bench.settle();
        assert_eq!(bench.nodes(), ["bad 10.0.2.0/24", "good 10.0.3.0/24"]);
        assert_eq!(bench.problems(), Vec::<String>::new());
    });
}

#[test]
fn a_policy_refused_at_first_sight_closes_its_pods() {
    both_ways(|fake| {
        let policy = |cidr: &str| {
            json!({"metadata": {"namespace": "default", "name": "p", "uid": "u"},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}})
        };
        let rules = |bench: &Bench| {
            let policy = bench.store.policies().next().unwrap();
            policy.policy.ingress.as_ref().map(Vec::len)
        };
        fake.put("networkpolicies", policy("nonsense"));
        let mut bench = Bench::settled(fake);
        assert_eq!(rules(&bench), Some(0));
        // Its event would not be found by `kubectl describe` without.
        let known = |problem: &Problem| matches!(&problem.at, At::Api { uid, .. } if uid == "u");
        assert!(bench.store.problems().all(known));
        assert!(
            bench
                .problems()
                .iter()
                .any(|problem| problem.contains("are closed in"))
        );
        fake.put("networkpolicies", policy("10.0.0.0/8"));
        bench.settle();
        assert_eq!((rules(&bench), bench.problems()), (Some(1), Vec::new()));
        fake.put("networkpolicies", policy("nonsense again"));
        bench.settle();
        assert_eq!(rules(&bench), Some(1));
        assert!(
            !bench
                .problems()
                .iter()
                .any(|problem| problem.contains("are closed in"))
        );
        fake.delete("networkpolicies", "default", "p");
        bench.settle();
        assert_eq!(
            (bench.store.count(Kind::NetworkPolicy), bench.problems()),
            (0, Vec::new())
        );
    });
}

#[test]
fn garbage_on_a_watch_is_no_end() {
    both_ways(|fake| {
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        let mut bench = Bench::settled(fake);
        for garbage in ["garbage\n", "{\"type\":\"ADDED\"}\n", "\u{0}\n", "[]\n"] {
            let seen = fake.with(|state| state.asked(&["/nodes?"]));
            fake.raw("nodes", garbage);
            fake.until("it is read anew", |state| state.asked(&["/nodes?"]) > seen);
            fake.put("nodes", node("n1", "10.0.2.0/24"));
            fake.put("nodes", node("n1", "10.0.1.0/24"));
            bench.settle();
            assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
        }
        // An event of a kind that nobody knows is not garbage.
        fake.with(|state| state.requests.clear());
        fake.raw("nodes", "{\"type\":\"MOVED\",\"object\":{}}\n");
        fake.put("nodes", node("n2", "10.0.2.0/24"));
        bench.until("the next one is told", |bench| {
            bench.store.node("n2").is_some()
        });
        assert!(!read_anew(fake).contains(&"nodes".to_owned()));
    });
}

#[test]
fn a_silent_watch_leads_nowhere() {
    let fake = Fake::start();
    let mut bench = Bench::idle(&kubeconfig_of(&fake));
    bench.settings.patience.silence = Duration::from_millis(200);
    bench.start();
    bench.settle();
    fake.with(|state| state.stalled = true);
    fake.put("nodes", node("n1", "10.0.1.0/24"));
    let seen = fake.with(|state| state.asked(&["/nodes?watch"]));
    fake.until("it is given up", |state| {
        state.asked(&["/nodes?watch"]) > seen
    });
    fake.with(|state| state.stalled = false);
    bench.until("another one tells", |bench| !bench.nodes().is_empty());
}

#[test]
fn ten_thousand_pods_in_one_list() {
    both_ways(|fake| {
        fake.with(|state| {
            state.page = usize::MAX;
            for i in 0..10_000 {
                state.put(
                    "pods",
                    pod(&format!("p{i}"), &format!("10.{}.{}.1", i / 250, i % 250)),
                );
            }
        });
        let mut bench = Bench::settled(fake);
        assert_eq!(bench.store.count(Kind::Pod), 10_000);
        // So many are not listed again for a mark; the watch is asked for a bookmark.
        fake.with(|state| state.requests.clear());
        fake.put("pods", pod("last", "10.200.0.1"));
        bench.settle();
        assert_eq!(bench.store.count(Kind::Pod), 10_001);
        assert!(!read_anew(fake).contains(&"pods".to_owned()));
    });
}

#[test]
fn a_token_on_disk_is_read_for_each_request() {
    let fake = Fake::start();
    fake.with(|state| state.token = Some("first".into()));
    let folder = Folder::new();
    let token = folder.0.join("token");
    std::fs::write(&token, "first\n").unwrap();
    let user = format!("{{tokenFile: {}}}", token.display());
    let mut bench = Bench::idle(&kubeconfig(&format!("http://{}", fake.addr), &user));
    bench.start();
    bench.settle();
    fake.with(|state| state.token = Some("second".into()));
    std::fs::write(&token, "second\n").unwrap();
    fake.cut();
    fake.put("nodes", node("n1", "10.0.1.0/24"));
    bench.until("the new token opens", |bench| !bench.nodes().is_empty());
    assert_eq!(bench.lacking, BTreeMap::new());
    // An old one does not, and that is told.
    fake.with(|state| state.token = Some("third".into()));
    fake.cut();
    bench.until("it is told", |bench| {
        bench
            .lacks("api")
            .contains("does not accept our credentials")
    });
    std::fs::write(&token, "third\n").unwrap();
    bench.until("it is well again", |bench| bench.lacking.is_empty());
}

#[test]
fn what_is_forbidden_is_told_and_comes_when_it_is_granted() {
    both_ways(|fake| {
        let message = "secrets is forbidden: User \"u\" cannot list resource \"secrets\" in API group \"\" in the namespace \"selvage-system\"";
        fake.with(|state| state.refuse.push(("/secrets", 403, message.into())));
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        let mut bench = Bench::new(fake);
        bench.until("it is told", |bench| {
            bench.lacks("api-rights").contains(message)
        });
        bench.until("the others are read", |bench| !bench.nodes().is_empty());
        assert!(!bench.store.synced());
        fake.with(|state| state.refuse.clear());
        bench.settle();
        assert!(bench.store.synced());
        bench.until("it is told no longer", |bench| bench.lacking.is_empty());
    });
}

#[test]
fn kinds_that_are_not_installed_are_empty_until_they_are() {
    both_ways(|fake| {
        fake.with(|state| state.uninstall("bgppeers"));
        let mut bench = Bench::settled(fake);
        assert!(bench.store.synced());
        bench.until("it is told", |bench| {
            bench.lacks("api-kinds").contains("does not know BGPPeer")
        });
        fake.with(|state| state.install("bgppeers"));
        let peer = json!({"metadata": {"name": "tor", "uid": "u", "generation": 2}, "spec": {"address": "192.0.2.1", "asn": 65001},
            "status": {"observedGeneration": 1}});
        fake.put("bgppeers", peer);
        bench.settle();
        assert_eq!(bench.store.count(Kind::BgpPeer), 1);
        let shown: Vec<i64> = bench
            .store
            .shown()
            .map(|shown| shown.observed_generation)
            .collect();
        assert_eq!(shown, [1]);
        bench.until("it is told no longer", |bench| bench.lacking.is_empty());
    });
}

/// An API server that has just started may say that it does not know a kind.
#[test]
fn a_kind_with_objects_is_not_believed_to_be_gone_at_once() {
    for absent in [Duration::from_secs(600), Duration::ZERO] {
        let fake = Fake::start();
        fake.put(
            "bgppeers",
            json!({"metadata": {"name": "tor"}, "spec": {"address": "192.0.2.1", "asn": 65001}}),
        );
        let mut bench = Bench::idle(&kubeconfig_of(&fake));
        bench.settings.patience.absent = absent;
        bench.start();
        bench.settle();
        fake.with(|state| state.refuse.push(("/bgppeers", 404, String::new())));
        fake.cut();
        bench.until("it is told", |bench| {
            bench.lacks("api-kinds").contains("BGPPeer")
        });
        bench.settle();
        assert_eq!(
            bench.store.count(Kind::BgpPeer),
            usize::from(!absent.is_zero())
        );
        fake.with(|state| state.refuse.clear());
        bench.settle();
        assert_eq!(bench.store.count(Kind::BgpPeer), 1);
    }
}

#[test]
fn while_the_api_is_away_nothing_goes() {
    both_ways(|fake| {
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        let mut bench = Bench::settled(fake);
        bench.events.clear();
        fake.stop();
        bench.until("it is told", |bench| {
            bench
                .lacks("api")
                .contains("the Kubernetes API is away since")
        });
        assert!(
            bench
                .lacks("api")
                .ends_with("; what it said last stays in force"),
            "{:?}",
            bench.lacking
        );
        assert_eq!(bench.events, []);
        assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
        fake.put("nodes", node("n2", "10.0.2.0/24"));
        fake.with(|state| state.requests.clear());
        fake.resume();
        bench.until("it goes on", |bench| {
            bench.nodes().len() == 2 && bench.lacking.is_empty()
        });
        assert_eq!(read_anew(fake), Vec::<String>::new());
    });
}

/// Whoever sleeps long before the next attempt is woken by the first who gets through.
#[test]
fn everybody_comes_back_with_the_first() {
    let fake = Fake::start();
    let mut bench = Bench::settled(&fake);
    fake.with(|state| state.refuse.push(("/", 503, "starting".into())));
    fake.cut();
    bench.until("it is told", |bench| {
        bench
            .lacks("api")
            .contains("503 Service Unavailable: starting")
    });
    fake.with(|state| state.refuse.clear());
    bench.until("all are back", |bench| bench.lacking.is_empty());
}

/// What the store has, for the snapshot.
fn pods_of(bench: &mut Bench) -> api::PodsAfter {
    let pods: Vec<_> = bench.store.pods().cloned().collect();
    std::sync::Arc::new(move |after| {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let rest = pods
            .iter()
            .filter(|pod| after.as_ref().is_none_or(|after| pod.key > *after));
        let _ = sender.send(rest.take(2).cloned().collect());
        receiver
    })
}

#[test]
fn a_start_without_the_api_works_from_the_snapshot() {
    both_ways(|fake| {
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        fake.put(
            "namespaces",
            json!({"metadata": {"name": "default", "labels": {"a": "b"}}}),
        );
        fake.put(
            "bgppeers",
            json!({"metadata": {"name": "tor"}, "spec": {"address": "192.0.2.1", "asn": 65001}}),
        );
        fake.put("secrets", json!({"metadata": {"name": "s", "namespace": "selvage-system"}, "data": {"password": "aHVudGVyMg=="}}));
        fake.put(
            "networkpolicies",
            json!({"metadata": {"name": "p", "namespace": "default"}, "spec": {"podSelector": {}}}),
        );
        fake.put("networkpolicies", json!({"metadata": {"name": "bad", "namespace": "default"}, "spec": {"podSelector": 7}}));
        for i in 0..5 {
            fake.put("pods", pod(&format!("p{i}"), "10.0.1.2"));
        }
        let mut bench = Bench::settled(fake);
        // Once more with pods for the snapshot, as the daemon gives them.
        let pods = pods_of(&mut bench);
        drop(bench.api.take());
        bench.settings.pods = Some(pods);
        bench.store = Store::default();
        bench.start();
        bench.settle();
        let file = bench.state_dir().join("snapshot.pods");
        bench.until("the pods are written", |_| file.exists());
        drop(bench.api.take());

        fake.stop();
        let before = std::mem::take(&mut bench.store);
        bench.start();
        bench.until("the snapshot is in force", |bench| bench.store.synced());
        bench.until("that is told", |bench| {
            bench
                .lacks("api")
                .contains("; working from the snapshot of 2")
        });
        let facts = |store: &Store| {
            let keys = Kind::ALL.map(|kind| (kind, store.count(kind)));
            let pods: Vec<_> = store.pods().cloned().collect();
            let policies: Vec<_> = store
                .policies()
                .map(|policy| policy.policy.clone())
                .collect();
            let nodes: Vec<_> = store.nodes().cloned().collect();
            let secrets: Vec<_> = store.secrets().cloned().collect();
            let peers: Vec<_> = store.peers().cloned().collect();
            (
                keys,
                pods,
                policies,
                nodes,
                secrets,
                peers,
                store.problems().count(),
            )
        };
        assert_eq!(facts(&bench.store), facts(&before));
        assert_eq!(
            bench.store.shown().count(),
            0,
            "what a status is only the API server knows"
        );

        // What has gone since is swept when the API is there again.
        fake.delete("pods", "default", "p0");
        fake.delete("networkpolicies", "default", "bad");
        fake.resume();
        bench.settle();
        assert_eq!(
            (
                bench.store.count(Kind::Pod),
                bench.store.count(Kind::NetworkPolicy)
            ),
            (4, 1)
        );
        assert_eq!(bench.problems(), Vec::<String>::new());
        bench.until("it is told no longer", |bench| bench.lacking.is_empty());
    });
}

#[test]
fn a_start_without_the_api_and_without_a_snapshot_waits() {
    for snapshot in [
        None,
        Some("selvage snapshot 1 2026-01-01T00:00:00Z\n{}\nend 1 0\n"),
    ] {
        let fake = Fake::start();
        fake.put("nodes", node("n1", "10.0.1.0/24"));
        fake.stop();
        let mut bench = Bench::idle(&kubeconfig_of(&fake));
        if let Some(text) = snapshot {
            std::fs::write(bench.state_dir().join("snapshot"), text).unwrap();
        }
        bench.start();
        bench.until("it is told", |bench| {
            bench.lacks("api").contains("this node waits")
        });
        assert!(!bench.store.synced());
        assert_eq!(bench.events, []);
        fake.resume();
        bench.settle();
        assert!(bench.store.synced());
        assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    }
}

#[test]
fn servers_are_tried_in_turn() {
    let (first, second) = (Fake::start(), Fake::start());
    for fake in [&first, &second] {
        fake.put("nodes", node("n1", "10.0.1.0/24"));
    }
    first.stop();
    // The path and the credentials are the kubeconfig's; plain HTTP is what the servers speak.
    let mut bench = Bench::idle(&kubeconfig(&format!("http://{}", second.addr), "{}"));
    bench.settings.api.servers = vec![first.addr.to_string(), second.addr.to_string()];
    bench.start();
    bench.settle();
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    assert_eq!(bench.lacking, BTreeMap::new());
    first.resume();
    second.stop();
    bench.until("the other one is asked", |_| {
        first.with(|state| state.asked(&["/nodes?"])) > 0
    });
    first.put("nodes", node("n2", "10.0.2.0/24"));
    bench.settle();
    assert_eq!(bench.store.count(Kind::Node), 2);
}

/// A mark is passed after everything that was there when it was asked for, however quiet a kind is.
#[test]
fn marks_are_exact() {
    both_ways(|fake| {
        fake.with(|state| {
            for i in 0..700 {
                state.put(
                    "namespaces",
                    json!({"metadata": {"name": format!("ns{i}")}}),
                );
            }
        });
        let mut bench = Bench::settled(fake);
        for i in 0..3 {
            fake.put("nodes", node(&format!("n{i}"), "10.0.1.0/24"));
            fake.put(
                "namespaces",
                json!({"metadata": {"name": format!("more{i}")}}),
            );
            bench.settle();
            assert_eq!(bench.store.count(Kind::Node), i + 1);
            assert_eq!(bench.store.count(Kind::Namespace), 700 + i + 1);
        }
    });
}

/// `kind name`, of all policies that are not enforced.
fn not_enforced(bench: &Bench) -> Vec<String> {
    let kinds = PolicyKind::ALL.into_iter();
    let policies = kinds.flat_map(|kind| bench.store.not_enforced(kind));
    let show = |policy: &NotEnforced| {
        assert_eq!(policy.uid, format!("uid-{}", policy.name));
        format!("{} {}", policy.kind, policy.name)
    };
    policies.map(show).collect()
}

fn cluster_policy(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    })
}

/// How often the API server was asked whether it has such kinds.
fn discoveries(fake: &Fake) -> usize {
    let asked = |state: &mut fake::State| {
        let asked = state.requests.iter();
        asked
            .filter(|path| *path == "/apis/policy.networking.k8s.io")
            .count()
    };
    fake.with(asked)
}

/// Before, after and between: the kinds are found when somebody installs them, followed, and forgotten with their CRD.
#[test]
fn policies_that_are_not_enforced_are_named() {
    let fake = Fake::start();
    fake.with(|state| state.install("clusternetworkpolicies"));
    for name in ["b", "a"] {
        fake.put("clusternetworkpolicies", cluster_policy(name));
    }
    let mut bench = Bench::settled(&fake);
    bench.until("those that were there are named", |bench| {
        not_enforced(bench) == ["ClusterNetworkPolicy a", "ClusterNetworkPolicy b"]
    });
    fake.put("clusternetworkpolicies", cluster_policy("c"));
    fake.delete("clusternetworkpolicies", "", "a");
    bench.until("the watch tells", |bench| {
        not_enforced(bench) == ["ClusterNetworkPolicy b", "ClusterNetworkPolicy c"]
    });
    // Another one of the group comes later.
    fake.with(|state| state.install("adminnetworkpolicies"));
    fake.put("adminnetworkpolicies", cluster_policy("old"));
    bench.until("the kind that came later is found", |bench| {
        not_enforced(bench).last().map(String::as_str) == Some("AdminNetworkPolicy old")
    });
    // A history that is forgotten, a watch that is cut, a line that nobody can read.
    fake.with(|state| {
        state.compact(state.version);
        state.delete("clusternetworkpolicies", "", "b");
    });
    fake.cut();
    bench.until("it is listed anew", |bench| {
        not_enforced(bench) == ["ClusterNetworkPolicy c", "AdminNetworkPolicy old"]
    });
    fake.raw("clusternetworkpolicies", "}{\n");
    fake.put("clusternetworkpolicies", cluster_policy("d"));
    bench.until("garbage passes", |bench| not_enforced(bench).len() == 3);
    fake.with(|state| state.uninstall("clusternetworkpolicies"));
    bench.until("they are gone with their kind", |bench| {
        not_enforced(bench) == ["AdminNetworkPolicy old"]
    });
    fake.with(|state| state.install("clusternetworkpolicies"));
    fake.put("clusternetworkpolicies", cluster_policy("again"));
    bench.until("they are back with their kind", |bench| {
        not_enforced(bench).first().map(String::as_str) == Some("ClusterNetworkPolicy again")
    });
    assert_eq!(bench.lacking, BTreeMap::new());
    assert_eq!(bench.problems(), Vec::<String>::new());
}

/// Where there are no such kinds, nothing is told and the API server is asked ever less often.
#[test]
fn without_such_kinds_the_question_is_rare() {
    let fake = Fake::start();
    let mut bench = Bench::idle(&kubeconfig_of(&fake));
    bench.settings.patience.discovery = Duration::from_secs(300);
    bench.start();
    bench.settle();
    fake.until("it has asked", |state| {
        state.asked(&["/apis/policy.networking.k8s.io"]) > 0
    });
    let first = discoveries(&fake);
    // Who asks for all that the API holds now may have just installed one.
    fake.with(|state| state.install("clusternetworkpolicies"));
    fake.put("clusternetworkpolicies", cluster_policy("a"));
    bench.settle();
    bench.until("found by the mark", |bench| {
        not_enforced(bench) == ["ClusterNetworkPolicy a"]
    });
    assert!(discoveries(&fake) <= first + 2, "{}", discoveries(&fake));
    assert_eq!(bench.lacking, BTreeMap::new());
}

/// Rights of an older manifest: it is told that nobody can see whether there are such policies.
#[test]
fn policies_that_may_not_be_listed_are_told() {
    let fake = Fake::start();
    fake.with(|state| {
        state.install("clusternetworkpolicies");
        let message = "clusternetworkpolicies is forbidden: cannot list".to_owned();
        state.refuse.push(("/clusternetworkpolicies", 403, message));
    });
    let mut bench = Bench::settled(&fake);
    bench.until("it is told", |bench| {
        bench
            .lacks("api-rights")
            .contains("clusternetworkpolicies is forbidden")
    });
    fake.with(|state| state.refuse.clear());
    fake.put("clusternetworkpolicies", cluster_policy("a"));
    bench.until("it is read", |bench| !not_enforced(bench).is_empty());
    assert_eq!(bench.lacking, BTreeMap::new());
}

/// An agent without the feature `policy` enforces nothing, and needs no such rights.
#[test]
fn without_policy_they_are_not_asked_for() {
    let fake = Fake::start();
    let mut bench = Bench::idle(&kubeconfig_of(&fake));
    bench.settings.all_pods = false;
    bench.start();
    bench.settle();
    assert_eq!(discoveries(&fake), 0);
}

/// An agent without the feature `bgp` needs neither definitions of ours nor rights to read them, nor any Secret.
#[test]
fn without_bgp_our_kinds_and_secrets_are_not_asked_for() {
    let fake = Fake::start();
    for plural in ["bgpconfigurations", "bgppeers"] {
        fake.with(|state| state.uninstall(plural));
    }
    fake.with(|state| state.refuse.push(("/secrets", 403, String::new())));
    let mut bench = Bench::idle(&kubeconfig_of(&fake));
    bench.settings.bgp = false;
    bench.start();
    fake.put("nodes", node("n1", "10.0.1.0/24"));
    bench.settle();
    assert!(bench.store.synced());
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    assert_eq!(bench.lacking, BTreeMap::new());
    fake.with(|state| {
        let asked = |plural: &str| state.requests.iter().any(|path| path.contains(plural));
        for plural in ["bgpconfigurations", "bgppeers", "secrets"] {
            assert!(!asked(plural), "{plural}");
        }
        assert!(asked("networkpolicies"));
    });
}

/// What may happen to objects, and to those who watch them.
#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8),
    Bad(usize),
    Delete(usize),
    Again(usize),
    Cut,
    Forget,
    Garbage,
    Rest,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        4 => (0..4usize, 0..250u8).prop_map(|(which, net)| Step::Put(which, net)),
        1 => (0..4usize).prop_map(Step::Bad),
        2 => (0..4usize).prop_map(Step::Delete),
        2 => (0..8usize).prop_map(Step::Again),
        1 => Just(Step::Cut),
        1 => Just(Step::Forget),
        1 => Just(Step::Garbage),
        1 => Just(Step::Rest),
    ];
    proptest::collection::vec(one, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever comes twice, late, or not at all: in the end the store has what the server has, and of what cannot be
    /// read the last form that could.
    #[test]
    fn the_way_does_not_matter(steps in steps(), streams: bool) {
        let fake = Fake::start();
        fake.with(|state| state.streams = streams);
        let mut bench = Bench::settled(&fake);
        let mut model: BTreeMap<usize, Option<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(which, net) => {
                    fake.put("nodes", node(&format!("n{which}"), &format!("10.0.{net}.0/24")));
                    model.insert(which, Some(net));
                }
                Step::Bad(which) => {
                    // Seen, so that there is one outcome only: the form before it was read.
                    bench.settle();
                    fake.put("nodes", node(&format!("n{which}"), "nonsense"));
                    model.entry(which).or_insert(None);
                }
                Step::Delete(which) if model.remove(&which).is_some() => {
                    fake.delete("nodes", "", &format!("n{which}"));
                    // A bad one that comes again is another one.
                    bench.settle();
                }
                Step::Again(back) => fake.with(|state| state.again("nodes", back)),
                Step::Cut => fake.cut(),
                Step::Forget => {
                    fake.with(|state| state.compact(state.version));
                    fake.cut();
                }
                Step::Garbage => fake.raw("nodes", "}{\n"),
                Step::Rest | Step::Delete(_) => bench.settle(),
            }
        }
        bench.settle();
        let expected: Vec<String> = model
            .iter()
            .filter_map(|(which, net)| Some(format!("n{which} 10.0.{}.0/24", (*net)?)))
            .collect();
        prop_assert_eq!(bench.nodes(), expected);
    }
}
