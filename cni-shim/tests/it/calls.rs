//! The specification's environment and standard input, with the program that is shipped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::lab::{Answer, Ns, PROGRAM, Scratch, start};

const CONF: &str = r#"{"cniVersion":"1.0.0","name":"net","type":"selvage-cni"}"#;

fn call(env: &[(&str, &str)], input: &str) -> Answer {
    let env = env
        .iter()
        .map(|(key, value)| (format!("CNI_{key}"), OsString::from(value)))
        .collect();
    Answer::of(
        &start(Path::new(PROGRAM), &[], &env, input.as_bytes())
            .wait_with_output()
            .unwrap(),
    )
}

#[test]
fn a_bad_environment_is_code_4_whatever_the_input() {
    let add = |id, netns, ifname| {
        vec![
            ("COMMAND", "ADD"),
            ("CONTAINERID", id),
            ("NETNS", netns),
            ("IFNAME", ifname),
        ]
    };
    let long = format!("{}/", "x".repeat(201));
    let table: Vec<(Vec<(&str, &str)>, &[&str])> = vec![
        (vec![], &["CNI_COMMAND"]),
        (vec![("COMMAND", "")], &["CNI_COMMAND"]),
        (vec![("COMMAND", "add")], &["CNI_COMMAND", "add"]),
        (
            vec![("COMMAND", "ADD")],
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        ),
        (
            vec![("COMMAND", "CHECK"), ("IFNAME", "eth0")],
            &["CNI_CONTAINERID", "CNI_NETNS"],
        ),
        (
            vec![("COMMAND", "DEL"), ("NETNS", "/x")],
            &["CNI_CONTAINERID", "CNI_IFNAME"],
        ),
        (add("../a", "/x", "eth0"), &["CNI_CONTAINERID"]),
        (add("a/b", "/x", "eth0"), &["CNI_CONTAINERID"]),
        (add(&long, "/x", "eth0"), &["CNI_CONTAINERID"]),
        (add("a", "/x", ".."), &["CNI_IFNAME"]),
        (add("a", "/x", "a/b"), &["CNI_IFNAME"]),
        (add("a", "/x", "a b"), &["CNI_IFNAME"]),
        (add("a", "/x", "eth%d"), &["CNI_IFNAME"]),
        (add("a", "/x", "sixteen-bytes-ab"), &["CNI_IFNAME"]),
        (
            [add("a", "/x", "eth0"), vec![("ARGS", "A=B")]].concat(),
            &["CNI_ARGS", "A"],
        ),
        (
            [add("a", "/x", "eth0"), vec![("ARGS", "IgnoreUnknown=1;A")]].concat(),
            &["CNI_ARGS", "A"],
        ),
    ];
    for (env, parts) in table {
        for input in ["", "{", CONF] {
            let message = call(&env, input).expect_code(4);
            assert!(
                parts.iter().all(|part| message.contains(part)),
                "{env:?}: {message}"
            );
        }
    }
    let netns = OsString::from_vec(b"/x\xff".to_vec());
    let env = [
        ("CNI_COMMAND", "ADD".into()),
        ("CNI_CONTAINERID", "a".into()),
        ("CNI_IFNAME", "b".into()),
        ("CNI_NETNS", netns),
    ];
    let env: BTreeMap<_, _> = env
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let output = start(Path::new(PROGRAM), &[], &env, b"")
        .wait_with_output()
        .unwrap();
    assert!(Answer::of(&output).expect_code(4).contains("CNI_NETNS"));
}

#[test]
fn bad_input_has_the_specifications_codes() {
    let add = [
        ("COMMAND", "ADD"),
        ("CONTAINERID", "a"),
        ("NETNS", "/x"),
        ("IFNAME", "eth0"),
    ];
    let del = [("COMMAND", "DEL"), ("CONTAINERID", "a"), ("IFNAME", "eth0")];
    let simple = |command| [("COMMAND", command)];
    for env in [&add[..], &del[..], &simple("GC")[..], &simple("STATUS")[..]] {
        for (input, code) in [
            ("", 6),
            ("{", 6),
            ("[1]", 6),
            (r#"{"cniVersion":[],"name":"net"}"#, 6),
            (r#"{"name":"net"}"#, 1),
            (r#"{"cniVersion":"0.2.0","name":"net"}"#, 1),
            (r#"{"cniVersion":"1.1.0"}"#, 7),
            (r#"{"cniVersion":"1.1.0","name":"a/b"}"#, 7),
        ] {
            call(env, input).expect_code(code);
        }
    }
    let answer = call(&add, r#"{"cniVersion":"0.4.0","name":"a/b"}"#);
    assert_eq!(
        answer.json["cniVersion"], "0.4.0",
        "the request's version is echoed"
    );
    assert!(call(&add, CONF).expect_code(7).contains("ipam"));
    for (command, version) in [("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        call(&simple(command), &CONF.replace("1.0.0", version)).expect_code(1);
    }
    let check = [
        ("COMMAND", "CHECK"),
        ("CONTAINERID", "a"),
        ("NETNS", "/x"),
        ("IFNAME", "eth0"),
    ];
    call(&check, &CONF.replace("1.0.0", "0.3.1")).expect_code(1);
    assert!(call(&check, CONF).expect_code(7).contains("prevResult"));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let add = [
        ("COMMAND", "ADD"),
        ("CONTAINERID", "a"),
        ("NETNS", "/x"),
        ("IFNAME", "eth0"),
    ];
    let conf =
        r#"{"cniVersion":"1.1.0","name":"n","ipam":{"subnet":"10.1.0.0/24"},"runtimeConfig":RC}"#;
    let runtime = r#"{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"::1"}]}"#;
    let message = call(&add, &conf.replace("RC", runtime)).expect_code(2);
    assert!(
        message.contains("runtimeConfig.portMappings[0].hostIP"),
        "{message}"
    );
}

#[test]
fn version_needs_nothing_but_the_command() {
    let env = [("COMMAND", "VERSION")];
    let spoken = serde_json::json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (input, version) in [
        ("", "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "1.1.0"),
        ("{}", "1.1.0"),
    ] {
        let json = call(&env, input).expect_ok();
        assert_eq!(
            (&json["cniVersion"], &json["supportedVersions"]),
            (&version.into(), &spoken),
            "{input}"
        );
    }
    call(&env, "{").expect_code(6);
}

#[test]
fn namespaces_that_are_none() {
    let scratch = Scratch::new();
    let plain = scratch.0.join("plain");
    std::fs::write(&plain, "").unwrap();
    let dir = scratch.0.display();
    let conf = format!(
        r#"{{"cniVersion":"1.0.0","name":"net","policy":"none","stateDir":"{dir}/state","runDir":"{dir}",
            "ipam":{{"subnet":"10.1.0.0/24","dataDir":"{dir}/data"}}}}"#
    );
    let mnt = format!("/proc/{}/ns/mnt", std::process::id());
    let own = format!("/proc/{}/ns/net", std::process::id());
    let missing = scratch.0.join("missing");
    for (netns, code) in [
        (missing.to_str().unwrap(), 4),
        (plain.to_str().unwrap(), 4),
        (&mnt, 4),
        (&own, 8),
    ] {
        let env = [
            ("COMMAND", "ADD"),
            ("CONTAINERID", "a"),
            ("NETNS", netns),
            ("IFNAME", "eth0"),
        ];
        let message = call(&env, &conf).expect_code(code);
        assert!(message.contains(netns), "{message}");
    }
    assert!(!scratch.0.join("data").exists(), "nothing was leased");
}

#[test]
fn status() {
    let scratch = Scratch::new();
    let dir = scratch.0.display();
    let conf = |policy: &str, subnet: &str| {
        format!(
            r#"{{"cniVersion":"1.1.0","name":"net","policy":"{policy}","stateDir":"{dir}/state","runDir":"{dir}/run",
                "ipam":{{"subnet":"{subnet}","dataDir":"{dir}/data"}}}}"#
        )
    };
    let env = [("COMMAND", "STATUS")];
    let ns = Ns::new();
    let forward = |value: &str| {
        ns.within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap());
    };
    let call = |env: &[(&str, &str)], conf: &str| ns.within(|| call(env, conf));
    forward("0");
    let message = call(&env, &conf("none", "10.1.0.0/24")).expect_code(51);
    assert!(
        message.contains("sysctl -w net.ipv4.ip_forward=1"),
        "{message}"
    );
    forward("1");
    for policy in ["required", "optional"] {
        assert!(
            call(&env, &conf(policy, "10.1.0.0/24"))
                .expect_code(50)
                .contains("run/ready")
        );
    }
    call(&env, &conf("none", "10.1.0.0/24")).expect_ok();
    std::fs::create_dir_all(scratch.0.join("run")).unwrap();
    std::fs::write(scratch.0.join("run/ready"), "").unwrap();
    assert!(
        call(&env, &conf("required", "10.1.0.0/24"))
            .expect_ok()
            .is_null(),
        "nothing is printed"
    );
    assert!(
        !scratch.0.join("data").exists() && !scratch.0.join("state").exists(),
        "nothing was made"
    );
    call(&env, &conf("required", "10.1.0.0/31")).expect_code(7);
    let leases = scratch.0.join("data/net");
    std::fs::create_dir_all(&leases).unwrap();
    for last in 2..7 {
        std::fs::write(
            leases.join(format!("10.1.0.{last}")),
            format!("c{last}\r\neth0"),
        )
        .unwrap();
    }
    assert!(
        call(&env, &conf("required", "10.1.0.0/29"))
            .expect_code(50)
            .contains("all 5 addresses")
    );
    call(&env, &conf("required", "10.1.0.0/28")).expect_ok();
}
