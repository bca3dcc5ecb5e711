//! GC: what the runtime does not name goes, the rest stays.

use std::time::Duration;

use selvage_cni::attachment::Attachments;
use selvage_cni::handover::Budget;
use serde_json::json;

use crate::lab::{Node, Ns};

fn gc(node: &mut Node, valid: serde_json::Value) -> crate::lab::Answer {
    node.conf["cni.dev/valid-attachments"] = valid;
    let env = [("CNI_COMMAND".to_owned(), "GC".into())].into();
    node.call_with(&env, &node.conf)
}

#[test]
fn keeps_what_is_valid_and_ends_the_rest() {
    let (mut node, pods) = (Node::new("none"), [Ns::new(), Ns::new(), Ns::new()]);
    for (i, pod) in pods.iter().enumerate() {
        node.add(&format!("c{i}"), pod).expect_ok();
    }
    // What others and deaths left.
    std::fs::write(node.scratch.0.join("data/pods/10.244.1.99"), "old\r\neth0").unwrap();
    std::fs::write(node.scratch.0.join("data/pods/10.244.1.98"), "").unwrap();
    std::fs::write(node.scratch.0.join("state/attachments/.c9@eth0.json"), "{").unwrap();
    gc(&mut node, json!([{"containerID": "c1", "ifname": "eth0"}])).expect_ok();
    assert_eq!(node.attachments(), ["c1@eth0.json"]);
    assert_eq!(node.leases(), ["10.244.1.3", "fd00:10:244:1::3"]);
    assert_eq!(node.pod_links().len(), 1);
    assert!(pods[1].link("eth0").is_some() && pods[0].link("eth0").is_none());
    gc(&mut node, json!([])).expect_ok();
    node.assert_clean("nothing is valid");
}

#[test]
fn does_nothing_without_a_list_and_spares_other_networks() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.add("a", &pod).expect_ok();
    gc(&mut node, json!(null)).expect_ok();
    assert_eq!(node.pod_links().len(), 1);
    node.conf["name"] = json!("another");
    gc(&mut node, json!([])).expect_ok();
    assert_eq!(
        (
            node.pod_links().len(),
            node.attachments().len(),
            node.leases().len()
        ),
        (1, 1, 2)
    );
}

#[test]
fn waits_for_adds_under_way() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    node.add("a", &pod).expect_ok();
    node.conf["cni.dev/valid-attachments"] = json!([]);
    let attachments = Attachments::of(&node.scratch.0.join("state"));
    let add = attachments.share().unwrap();
    let budget = Budget {
        quiet: Duration::from_millis(50),
        ..Budget::default()
    };
    node.call_within("GC", "", "", &budget).expect_code(11);
    assert_eq!(node.pod_links().len(), 1);
    drop(add);
    node.call("GC", "", "").expect_ok();
    node.assert_clean("nothing is valid");
}
