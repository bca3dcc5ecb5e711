//! The hand-over, with an agent played by the test.

use std::net::UdpSocket;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use selvage_cni::handover::Budget;
use selvage_cni::link::{self, Attachment, PodRef, PolicyMode, Reply, Request};
use serde_json::json;

use crate::lab::{NODE_V4, Node, Ns, eventually, ips, is_cut_off, reaches};

/// For what does not come.
const SHORT: Budget = Budget {
    connect: Duration::from_millis(200),
    enforced: Duration::from_millis(300),
    courtesy: Duration::from_millis(200),
    quiet: Duration::from_millis(200),
};

/// For what comes, however busy the machine is.
const LONG: Budget = Budget {
    connect: Duration::from_secs(30),
    enforced: Duration::from_secs(30),
    courtesy: Duration::from_secs(30),
    quiet: Duration::from_secs(30),
};

/// Answers each request by the next of `replies`; where that is none, it hangs up.
fn agent(node: &Node, replies: Vec<Option<Reply>>) -> Receiver<Request> {
    let listener = UnixListener::bind(node.run_dir().join(link::SOCKET)).unwrap();
    let (heard, receiver) = channel();
    let mut kernel = node.ns.socket();
    thread::spawn(move || {
        for reply in replies {
            let (mut stream, _) = listener.accept().unwrap();
            let request: Request = link::receive(&mut stream).unwrap();
            if let Request::Attach { attachment } = &request
                && attachment.policy != PolicyMode::None
            {
                let host = selvage_netlink::link::get(&mut kernel, attachment.host_index).unwrap();
                assert!(!host.is_up(), "closed until the agent has answered");
            }
            // The test may have seen enough.
            let _ = heard.send(request);
            if let Some(reply) = reply {
                let _ = link::send(&mut stream, &reply);
            }
        }
    });
    receiver
}

fn enforced() -> Option<Reply> {
    Some(Reply::Enforced {
        generation: 1,
        masquerade: true,
    })
}

fn attached(requests: &Receiver<Request>) -> Attachment {
    match requests.recv_timeout(Duration::from_secs(30)).unwrap() {
        Request::Attach { attachment } => *attachment,
        other => panic!("{other:?}"),
    }
}

fn detached(requests: &Receiver<Request>) -> (String, String) {
    match requests.recv_timeout(Duration::from_secs(30)).unwrap() {
        Request::Detach { id, ifname } => (id, ifname),
        other => panic!("{other:?}"),
    }
}

#[test]
fn required_opens_after_enforced() {
    let (node, pod) = (Node::new("required"), Ns::new());
    let requests = agent(&node, vec![enforced(), Some(Reply::Ok)]);
    let mut env = node.env("ADD", "a", &pod.path());
    env.insert(
        "CNI_ARGS".into(),
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u-1".into(),
    );
    let addresses = ips(&node.call_with(&env, &node.conf).expect_ok());
    let attachment = attached(&requests);
    assert_eq!(attachment.addresses, addresses);
    let pod_ref = PodRef {
        namespace: "ns".into(),
        name: "web".into(),
        uid: "u-1".into(),
    };
    assert_eq!(
        (attachment.pod, attachment.netns),
        (Some(pod_ref), pod.path())
    );
    let host = &node.pod_links()[0];
    assert_eq!(
        (attachment.host_if, attachment.host_index),
        (host.name.clone(), host.index)
    );
    let file = std::fs::read(node.scratch.0.join("state/attachments/a@eth0.json")).unwrap();
    let kept: Attachment = serde_json::from_slice(&file).unwrap();
    assert_eq!((kept.host_index, &kept.addresses), (host.index, &addresses));
    for address in addresses {
        assert!(reaches(&node.ns, &pod, address));
    }
    node.del("a", &pod).expect_ok();
    assert_eq!(detached(&requests), ("a".into(), "eth0".into()));
    node.assert_clean("after DEL");
}

#[test]
fn required_without_an_agent_is_code_11_and_leaves_nothing() {
    let (node, pod) = (Node::new("required"), Ns::new());
    let message = node
        .call_within("ADD", "a", &pod.path(), &SHORT)
        .expect_code(11);
    assert!(message.contains("cni.sock"), "{message}");
    node.assert_clean("no agent");
    assert!(pod.links().is_empty());
}

#[test]
fn required_with_an_agent_that_does_not_get_there() {
    let (node, pod) = (Node::new("required"), Ns::new());
    let listener = UnixListener::bind(node.run_dir().join(link::SOCKET)).unwrap();
    // It listens and says nothing; the kernel accepts for it.
    node.call_within("ADD", "a", &pod.path(), &SHORT)
        .expect_code(11);
    node.assert_clean("a silent agent");
    drop(listener);
    std::fs::remove_file(node.run_dir().join(link::SOCKET)).unwrap();
    let _requests = agent(
        &node,
        vec![
            Some(Reply::Error {
                message: "no such node".into(),
            }),
            Some(Reply::Ok),
        ],
    );
    let message = node
        .call_within("ADD", "a", &pod.path(), &LONG)
        .expect_code(11);
    assert!(message.contains("no such node"), "{message}");
    node.assert_clean("an agent that refuses");
}

#[test]
fn an_agent_that_is_replaced_is_asked_again() {
    let (node, pod) = (Node::new("required"), Ns::new());
    let requests = agent(&node, vec![None, None, enforced()]);
    node.call_within("ADD", "a", &pod.path(), &LONG).expect_ok();
    for _ in 0..3 {
        assert_eq!(attached(&requests).container_id, "a");
    }
    assert!(node.pod_links()[0].is_up());
}

#[test]
fn required_waits_for_an_agent_that_starts() {
    let (node, pod) = (Node::new("required"), Ns::new());
    thread::scope(|scope| {
        let add = scope.spawn(|| node.call_within("ADD", "a", &pod.path(), &LONG));
        // The attachment's file tells that the plugin is on its way to the hand-over.
        eventually("the attachment", || !node.attachments().is_empty());
        let _requests = agent(&node, vec![enforced()]);
        add.join().unwrap().expect_ok();
    });
    assert!(node.pod_links()[0].is_up());
}

#[test]
fn optional_stays_closed_until_the_agent_opens_it() {
    let (node, pod) = (Node::new("optional"), Ns::new());
    let addresses = ips(&node.add("a", &pod).expect_ok());
    let host = &node.pod_links()[0];
    assert!(!host.is_up(), "closed without an agent");
    assert!(is_cut_off(&node.ns, &pod, addresses[0]));
    // What the agent does when it has started.
    let file = std::fs::read(node.scratch.0.join("state/attachments/a@eth0.json")).unwrap();
    let kept: Attachment = serde_json::from_slice(&file).unwrap();
    selvage_netlink::open_interface(&mut node.ns.socket(), kept.host_index, &kept.addresses)
        .unwrap();
    for address in addresses {
        assert!(reaches(&node.ns, &pod, address));
    }
    node.del("a", &pod).expect_ok();
    node.assert_clean("after DEL");
}

#[test]
fn what_a_pod_sends_first_after_the_agent_opened_it_arrives() {
    let node = Node::new("optional");
    let socket = node.ns.within(|| UdpSocket::bind((NODE_V4, 0)).unwrap());
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let to = socket.local_addr().unwrap();
    for id in ["a", "b", "c", "d"] {
        let pod = Ns::new();
        node.add(id, &pod).expect_ok();
        let file = node
            .scratch
            .0
            .join(format!("state/attachments/{id}@eth0.json"));
        let kept: Attachment = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut kernel = node.ns.socket();
        let from = pod.within(|| UdpSocket::bind((kept.addresses[0], 0)).unwrap());
        selvage_netlink::open_interface(&mut kernel, kept.host_index, &kept.addresses).unwrap();
        from.send_to(id.as_bytes(), to).unwrap();
        let mut got = [0; 8];
        let length = socket.recv(&mut got).expect("the only datagram");
        assert_eq!(&got[..length], id.as_bytes());
    }
}

#[test]
fn optional_with_an_agent() {
    for (reply, up) in [
        (enforced(), true),
        (Some(Reply::NotApplicable { masquerade: false }), true),
        (
            Some(Reply::Error {
                message: "later".into(),
            }),
            false,
        ),
        (None, false),
    ] {
        let (node, pod) = (Node::new("optional"), Ns::new());
        let _requests = agent(&node, vec![reply.clone()]);
        node.call_within("ADD", "a", &pod.path(), &LONG).expect_ok();
        assert_eq!(node.pod_links()[0].is_up(), up, "{reply:?}");
    }
}

#[test]
fn none_opens_whatever_the_agent_says() {
    for reply in [
        enforced(),
        Some(Reply::Error {
            message: "no".into(),
        }),
        None,
    ] {
        let (node, pod) = (Node::new("none"), Ns::new());
        let requests = agent(&node, vec![reply]);
        node.add("a", &pod).expect_ok();
        assert!(node.pod_links()[0].is_up());
        attached(&requests);
    }
}

#[test]
fn a_socket_that_nobody_accepts_from_does_not_hold_del_up_for_ever() {
    let (node, pod) = (Node::new("none"), Ns::new());
    node.add("a", &pod).expect_ok();
    let _listener = UnixListener::bind(node.run_dir().join(link::SOCKET)).unwrap();
    node.call_within("DEL", "a", &pod.path(), &SHORT)
        .expect_ok();
    node.assert_clean("a silent agent");
}

#[test]
fn a_path_too_long_for_a_socket_is_no_crash() {
    let (mut node, pod) = (Node::new("required"), Ns::new());
    node.conf["runDir"] = json!(format!("/{}", "x".repeat(300)));
    node.call_within("ADD", "a", &pod.path(), &SHORT)
        .expect_code(11);
    node.assert_clean("a long path");
}
