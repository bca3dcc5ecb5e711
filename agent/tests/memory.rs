//! What a pod of the cluster costs on every node. This test is alone in its process: what is resident is what it keeps.

use selvage::objects::{self, Mode};
use selvage::source::ObjectEvent;
use selvage::store::Store;
use selvage_policy::{Change, Compiler, Config};
use serde_json::json;

/// Enough that what the process itself takes does not count.
const PODS: u64 = 60_000;
/// Octets a pod, in the store and in the policy compiler together.
const MOST: u64 = 480;

/// A pod as a Deployment makes it, of another node.
fn pod(n: u64) -> ObjectEvent {
    let namespace = n / 75;
    let app = n / 10;
    let value = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": format!("team-{namespace}"), "name": format!("app-{app}-6d4cf56db6-{n:05}"),
            "uid": format!("{n:08x}-1c5e-4a3b-9d2f-0123456789ab"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": format!("app-{app}"), "pod-template-hash": "6d4cf56db6", "tier": "front"}},
        "spec": {"nodeName": format!("node-{}", n % 2000),
            "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [
            {"ip": format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)}, {"ip": format!("fd00::{n:x}")}]}});
    let parsed = objects::parse(&value, Mode::Api).unwrap().unwrap();
    ObjectEvent::Applied(parsed.object)
}

/// What the kernel keeps in memory for this process, in octets.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("Anonymous:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    1024 * kilobytes.unwrap().parse::<u64>().unwrap()
}

#[test]
fn a_pod_that_no_rule_names_takes_little_memory() {
    let mut store = Store::default();
    let mut compiler = Compiler::new(Config::default());
    let tell = |store: &mut Store, compiler: &mut Compiler, from: u64, to: u64| {
        for n in from..to {
            let dirty = store.apply([pod(n)]);
            for key in dirty.pods {
                let fact = store.pod(&key).expect("it was told").clone();
                compiler.apply(Change::Pod(fact));
            }
        }
    };
    // What the first pods need beside themselves.
    tell(&mut store, &mut compiler, 0, 1000);
    let before = resident();
    tell(&mut store, &mut compiler, 1000, 1000 + PODS);
    let each = (resident() - before) / PODS;
    assert!(each <= MOST, "{each} octets a pod");
    assert_eq!(store.pods().count() as u64, 1000 + PODS);
    assert!(compiler.take_delta().is_some());
}
