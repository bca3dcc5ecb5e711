//! The program killed at arbitrary moments of its work; DEL, or GC, then finds everything.

use std::io::Read;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::hostports::elements;
use crate::lab::{Node, Ns};

/// A node whose pods ask for everything.
fn node() -> Node {
    let mut node = Node::new("none");
    node.conf["runtimeConfig"] = json!({
        "portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}],
        "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000},
    });
    node
}

/// Kills the program `after` its start, by a clock of its own: the moment is arbitrary, the outcome must not be.
fn kill_after(node: &Node, command: &str, pod: &Ns, after: Duration) {
    let mut child = node.start(&node.env(command, "a", &pod.path()), &node.conf);
    std::thread::sleep(after);
    // It may have ended; it has not been waited for, so that the number is still its own.
    let pid = Pid::from_child(&child);
    let _ = kill_process(pid, Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn add_and_del_at_any_moment() {
    let node = node();
    for step in 0..60_u64 {
        let pod = Ns::new();
        let after = Duration::from_micros(step * 100);
        kill_after(&node, "ADD", &pod, after);
        if step % 2 == 0 {
            kill_after(&node, "DEL", &pod, after);
        }
        node.del("a", &pod).expect_ok();
        node.assert_clean(&format!("killed after {after:?}"));
        assert_eq!(elements(&node), 0, "killed after {after:?}");
        assert!(pod.links().is_empty());
    }
}

/// A runtime waits until nobody holds the plugin's output any more, and the process that waits for the kernel outlives it.
#[test]
fn nobody_holds_the_output_when_del_has_ended() {
    let node = node();
    for _ in 0..10 {
        let pod = Ns::new();
        node.add("a", &pod).expect_ok();
        let mut child = node.start(&node.env("DEL", "a", &pod.path()), &node.conf);
        assert!(child.wait().unwrap().success());
        node.assert_clean("after DEL");
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        rustix::io::ioctl_fionbio(&out, true).unwrap();
        rustix::io::ioctl_fionbio(&err, true).unwrap();
        let read = [out.read(&mut [0]), err.read(&mut [0])];
        assert!(
            matches!(read, [Ok(0), Ok(0)]),
            "somebody holds standard output or standard error: {read:?}"
        );
    }
}

#[test]
fn gc_after_a_death() {
    let mut node = node();
    node.conf["cni.dev/valid-attachments"] = json!([]);
    for step in 0..20_u64 {
        let pod = Ns::new();
        kill_after(&node, "ADD", &pod, Duration::from_micros(step * 300));
        let env = [("CNI_COMMAND".to_owned(), "GC".into())].into();
        node.call_with(&env, &node.conf).expect_ok();
        node.assert_clean(&format!("step {step}"));
        assert_eq!(elements(&node), 0, "step {step}");
    }
}
