//! Another program as IPAM, played by a script.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::lab::{Node, Ns, ips};

/// A plugin `kind` that logs its calls and answers ADD with `add`.
fn plugin(node: &mut Node, kind: &str, add: &str) {
    let dir = node.scratch.0.join("bin");
    std::fs::create_dir_all(&dir).unwrap();
    let log = node.scratch.0.join("log");
    let script = format!(
        "#!/bin/sh\nread -r input\necho \"$CNI_COMMAND $CNI_CONTAINERID ${{#input}}\" >> {}\n\
         if [ $CNI_COMMAND = ADD ]; then {add}; fi\n",
        log.display()
    );
    let path = dir.join(kind);
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    node.conf["ipam"] = json!({"type": kind});
}

fn log(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string(node.scratch.0.join("log")).unwrap_or_default();
    text.lines()
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

fn call(node: &Node, command: &str, pod: &Ns) -> crate::lab::Answer {
    let mut env = node.env(command, "a", &pod.path());
    env.insert(
        "CNI_PATH".into(),
        format!("/nowhere:{}", node.scratch.0.join("bin").display()).into(),
    );
    env.insert("PATH".into(), "/usr/bin:/bin".into());
    node.call_with(&env, &node.conf)
}

#[test]
fn its_addresses_are_used_and_given_back() {
    let (mut node, pod) = (Node::new("none"), Ns::new());
    let result = r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.7/24","gateway":"10.9.0.1"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.9.0.1"}],"dns":{"nameservers":["10.9.0.53"]}}'"#;
    plugin(&mut node, "fixed", result);
    let result = call(&node, "ADD", &pod).expect_ok();
    assert_eq!(
        ips(&result),
        ["10.9.0.7".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}])
    );
    assert_eq!(result["dns"]["nameservers"][0], "10.9.0.53");
    call(&node, "DEL", &pod).expect_ok();
    node.assert_clean("after DEL");
    assert_eq!(log(&node), ["ADD a", "DEL a"]);
}

#[test]
fn it_is_told_to_clean_up_when_something_fails() {
    let pod = Ns::new();
    for (add, code, part) in [
        (
            r#"echo '{"code": 77, "msg": "pool is dry"}'; exit 1"#,
            77,
            "pool is dry",
        ),
        ("echo oops >&2; exit 3", 102, "oops"),
        ("echo nonsense", 102, "JSON"),
        (r#"echo '{"ips": []}'"#, 102, "no address"),
    ] {
        let mut node = Node::new("none");
        plugin(&mut node, "bad", add);
        let message = call(&node, "ADD", &pod).expect_code(code);
        assert!(message.contains(part), "{message}");
        assert_eq!(log(&node), ["ADD a", "DEL a"]);
        node.assert_clean(part);
    }
    let mut node = Node::new("none");
    node.conf["ipam"] = json!({"type": "missing"});
    assert!(call(&node, "ADD", &pod).expect_code(7).contains("missing"));
    node.conf["ipam"] = json!({"type": "../bad"});
    call(&node, "ADD", &pod).expect_code(7);
    node.add("a", &pod).expect_code(7);
}
