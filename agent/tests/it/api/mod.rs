//! The Kubernetes source against an API server that misbehaves on demand. Every wait ends with an event.

#[allow(dead_code, reason = "more trials follow")]
mod fake;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fake::{Fake, kinds_asked};
use selvage::config::ApiConfig;
use selvage::objects::Kind;
use selvage::source::ObjectEvent;
use selvage::source::api::{self, Api, Settings};
use selvage::store::Store;
use serde_json::{Value, json};

/// A source, and the store behind it.
struct Bench {
    _folder: Folder,
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
        };
        Bench {
            _folder: folder,
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
            let left = deadline.saturating_duration_since(Instant::now());
            match self.told.recv_timeout(left) {
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
                Err(_) => panic!("{what}: never; {:?}; {:?}", self.lacking, self.nodes()),
            }
        }
    }

    fn nodes(&self) -> Vec<String> {
        self.store.nodes().map(|node| show(node)).collect()
    }

    fn pods(&self) -> Vec<String> {
        let show = |pod: &selvage_policy::model::PodFact| {
            let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
            format!("{} {}", pod.key, ips.join(","))
        };
        self.store.pods().map(|pod| show(pod)).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.store.problems().map(ToString::to_string).collect()
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
