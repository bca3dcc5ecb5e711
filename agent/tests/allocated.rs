//! How much memory a pod of another node takes, from its JSON to where the store and the policy compiler keep it. A cluster
//! may have 150,000, and every node has all of them.
#![allow(
    unsafe_code,
    reason = "an allocator can only be written so; this one counts and lets the system's do the work"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use selvage::desired;
use selvage::objects::{Object, Pod};
use selvage::source::ObjectEvent;
use selvage::store::Store;
use selvage_policy::{Compiler, Config};

/// Counts what this thread has asked for and not given back.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the promises that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn live() -> isize {
    LIVE.with(Cell::get)
}

/// Dual stack, 75 pods to a namespace, four to a ReplicaSet.
fn pod(n: u32) -> Pod {
    let [.., a, b, c] = (n + 1).to_be_bytes();
    let (namespace, set) = (n / 75, n / 4);
    let text = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web-7c9f8b6d54-{n:05}","namespace":"ns{namespace:04}",
            "uid":"3f0c7a4e-1111-4222-8333-{n:012}","creationTimestamp":"2026-11-24T08:00:00Z",
            "labels":{{"app":"a{app}","tier":"front","pod-template-hash":"{set:010}"}}}},
            "spec":{{"nodeName":"node-{node}","containers":[{{"name":"web","ports":[{{"name":"http","containerPort":8080}}]}}]}},
            "status":{{"phase":"Running","podIP":"10.{a}.{b}.{c}","podIPs":[{{"ip":"10.{a}.{b}.{c}"}},{{"ip":"fd00::{n:x}"}}]}}}}"#,
        app = set % 10,
        node = n % 1000,
    );
    Pod::from_json(&text).expect("a pod")
}

/// Bytes that so many pods leave behind, each.
fn bytes(pods: u32) -> isize {
    let mut store = Store::default();
    let mut compiler = Compiler::new(Config::default());
    let before = live();
    for n in 0..pods {
        let dirty = store.apply([ObjectEvent::Applied(Object::Pod(pod(n).into()))]);
        for change in desired::policy(&store, &dirty) {
            compiler.apply(change);
        }
    }
    (live() - before) / pods as isize
}

/// Tables grow in steps: just before one, and just after.
#[test]
fn a_pod_of_another_node_takes_little_memory() {
    for pods in [28_000, 29_000] {
        let bytes = bytes(pods);
        assert!(bytes < 300, "{bytes} bytes a pod of {pods}");
    }
}
