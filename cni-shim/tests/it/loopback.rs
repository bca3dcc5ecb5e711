//! The plugin under the name `loopback`.

use std::path::Path;

use selvage_netlink::link;
use serde_json::json;

use crate::lab::{Answer, Node, Ns, PROGRAM, start};

fn lo_is_up(pod: &Ns) -> bool {
    link::get_by_name(&mut pod.socket(), "lo").unwrap().is_up()
}

#[test]
fn by_type_and_by_program_name() {
    let node = Node::new("none");
    let named = node.scratch.0.join("loopback");
    std::os::unix::fs::symlink(PROGRAM, &named).unwrap();
    let typed = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let other = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "x"});
    for (program, conf) in [(Path::new(PROGRAM), &typed), (named.as_path(), &other)] {
        let pod = Ns::new();
        let mut env = node.env("ADD", "a", &pod.path());
        env.insert("CNI_IFNAME".into(), "lo".into());
        let mut run = |command: &str, conf: &serde_json::Value| {
            env.insert("CNI_COMMAND".into(), command.into());
            let child = start(program, &[], &env, conf.to_string().as_bytes());
            Answer::of(&child.wait_with_output().unwrap())
        };
        let result = run("ADD", conf).expect_ok();
        assert!(lo_is_up(&pod));
        assert_eq!(
            (
                &result["interfaces"][0]["name"],
                &result["interfaces"][0]["sandbox"]
            ),
            (&json!("lo"), &json!(pod.path()))
        );
        assert_eq!(
            (&result["ips"][0]["address"], &result["ips"][0]["version"]),
            (&json!("127.0.0.1/8"), &json!("4"))
        );
        let mut checked = conf.clone();
        checked["cniVersion"] = json!("0.4.0");
        run("CHECK", &checked).expect_ok();
        run("DEL", conf).expect_ok();
        assert!(!lo_is_up(&pod));
        run("CHECK", &checked).expect_code(103);
        run("DEL", conf).expect_ok();
    }
    let mut env = node.env("DEL", "a", "/nonexistent");
    env.insert("CNI_IFNAME".into(), "lo".into());
    node.call_with(&env, &typed).expect_ok();
    assert!(
        !node.scratch.0.join("state").exists(),
        "nothing is kept of it"
    );
}
