//! Whatever comes on standard input or in the environment: an answer or one of the specification's codes.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::attachment::Attachments;
use crate::ipam::BuiltIn;
use crate::link::{self, Reply, Request};
use crate::spec::field::Field;
use crate::spec::request::{Args, Call, Environment};
use crate::spec::{CniResult, Command, NetConf, Version};

use super::Scratch;

const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "type",
    "mtu",
    "ipMasq",
    "policy",
    "runDir",
    "stateDir",
    "ipam",
    "ranges",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "routes",
    "dst",
    "gw",
    "dataDir",
    "resolvConf",
    "runtimeConfig",
    "ips",
    "mac",
    "ipRanges",
    "portMappings",
    "bandwidth",
    "ingressRate",
    "ingressBurst",
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    "args",
    "cni",
    "prevResult",
    "interfaces",
    "interface",
    "address",
    "dns",
    "nameservers",
    "sandbox",
    "cni.dev/valid-attachments",
    "containerID",
    "ifname",
];

const TEXTS: &[&str] = &[
    "1.1.0",
    "0.3.0",
    "0.1.0",
    "net",
    "../x",
    "",
    "none",
    "required",
    "/nonexistent",
    "10.1.0.0/24",
    "10.1.0.0/8",
    "fd00::/64",
    "::/0",
    "0.0.0.0/0",
    "10.1.0.7",
    "fd00::9",
    "host-local",
    "tcp",
    "SCTP",
    "::1",
    "dhcp",
    "02:00:00:00:00:01",
    "x/y/z",
    "255.255.255.255/32",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/126",
];

const COMMANDS: [Command; 5] = [
    Command::Add,
    Command::Del,
    Command::Check,
    Command::Gc,
    Command::Status,
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(TEXTS).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 5, |inner| {
        let key = prop::sample::select(KEYS).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..8)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A configuration that is valid but for `changes`.
fn nearly_valid(changes: Map<String, Value>) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "selvage-cni", "policy": "none",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]},
    });
    for (key, value) in changes {
        conf[key] = value;
    }
    conf
}

fn read(bytes: &[u8]) {
    let call = Call {
        command: Command::Add,
        container_id: "a".into(),
        netns: "/n".into(),
        ifname: "eth0".into(),
        args: Args::default(),
        path: None,
        allow_own_netns: false,
        named_loopback: false,
    };
    for command in COMMANDS {
        match NetConf::parse(bytes.to_vec(), command) {
            Err(e) => assert!([1, 2, 6, 7].contains(&e.code), "{e}"),
            Ok(conf) => {
                if let Err(e) = BuiltIn::read(&conf, &call) {
                    assert!([2, 5, 7].contains(&e.code), "{e}");
                }
                if let Ok(Some(result)) = conf
                    .root()
                    .get("prevResult")
                    .map(|f| f.map(|f| CniResult::read(&f)))
                {
                    let _ =
                        result.map(|result| Version::ALL.map(|version| result.to_json(version)));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn input_of_any_shape(value in value()) {
        read(value.to_string().as_bytes());
        let _ = CniResult::read(&Field::root(&value));
    }

    #[test]
    fn input_that_is_nearly_right(pairs in prop::collection::vec((prop::sample::select(KEYS), value()), 0..4)) {
        let changes = pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        read(nearly_valid(changes).to_string().as_bytes());
    }

    #[test]
    fn bytes_of_any_kind(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read(&bytes);
        let _ = link::receive::<Request>(&mut bytes.as_slice());
        let _ = link::decode::<Reply>(&bytes);
    }

    #[test]
    fn environments_of_any_kind(
        command in prop::sample::select(&["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "x"][..]),
        texts in prop::collection::vec("[ -~äÿ]{0,20}", 4),
    ) {
        let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
        let mut variables: std::collections::BTreeMap<_, _> =
            names.iter().zip(texts).map(|(name, text)| ((*name).to_owned(), text.into())).collect();
        variables.insert("CNI_COMMAND".into(), command.into());
        match Call::parse(&Environment { program: "x".into(), variables }) {
            Err(e) => prop_assert_eq!(e.code, 4),
            // What became part of a file's name stays in its directory.
            Ok(call) => prop_assert!(!call.container_id.contains('/') && !call.ifname.contains('/')),
        }
    }
}

#[test]
fn attachments_that_make_no_sense_are_passed_over() {
    let scratch = Scratch::new();
    let store = Attachments::of(&scratch.0);
    std::fs::create_dir_all(store.dir()).unwrap();
    for (i, content) in ["", "{}", "[]", "null", "{\"network\": 7}", "\u{0}"]
        .iter()
        .enumerate()
    {
        std::fs::write(store.dir().join(format!("c{i}@eth0.json")), content).unwrap();
    }
    assert_eq!(store.list().unwrap(), []);
}
