//! What `kubectl apply -k` is given: files that are there, rights that are used, containers with no more than they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use selvage::cli::Cli;
use selvage::source::yaml;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, files),
            false if path.extension().is_some_and(|end| end == "yaml") => files.push(path),
            false => {}
        }
    }
}

fn all() -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files.sort();
    files
}

fn objects(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn base(file: &str) -> Vec<Value> {
    objects(&root().join("base").join(file))
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

fn is_kustomization(path: &Path) -> bool {
    path.file_name().unwrap() == "kustomization.yaml"
}

#[test]
fn every_file_is_an_object_with_a_name() {
    let files = all();
    assert!(files.len() > 15, "{files:?}");
    for path in files.iter().filter(|path| !is_kustomization(path)) {
        let objects = objects(path);
        assert!(!objects.is_empty(), "{}", path.display());
        for object in objects {
            for pointer in ["/apiVersion", "/kind", "/metadata/name"] {
                let text = object.pointer(pointer).and_then(Value::as_str);
                assert!(text.is_some(), "{}: no {pointer}", path.display());
            }
        }
    }
}

/// What a kustomization names exists, and beside it lies nothing that it does not name.
#[test]
fn kustomizations_are_whole() {
    let kustomizations: Vec<PathBuf> = all().into_iter().filter(|p| is_kustomization(p)).collect();
    assert!(kustomizations.len() >= 6);
    for path in kustomizations {
        let directory = path.parent().unwrap();
        let document = objects(&path).remove(0);
        let mut named = texts(&document["resources"]);
        named.extend(texts(&document["components"]));
        let patches = document["patches"].as_array().into_iter().flatten();
        named.extend(patches.map(|patch| patch["path"].as_str().unwrap().to_owned()));
        let mut beside: BTreeSet<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().is_file() && !is_kustomization(&entry.path()))
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        for name in &named {
            let target = directory.join(name);
            assert!(target.exists(), "{}: {name}", path.display());
            if target.is_dir() {
                assert!(target.join("kustomization.yaml").exists(), "{name}");
            }
            beside.remove(name);
        }
        assert_eq!(beside, BTreeSet::new(), "beside {}", path.display());
    }
}

/// Of our kinds and of NetworkPolicy: as `selvage check` sees them.
#[test]
fn our_objects_are_good() {
    let mut number = 0;
    for folder in ["overlays", "examples"] {
        let mut files = Vec::new();
        walk(&root().join(folder), &mut files);
        for path in files.iter().filter(|path| !is_kustomization(path)) {
            let contents = yaml::read(path, &fs::read_to_string(path).unwrap());
            assert_eq!(contents.problems.len(), 0, "{:?}", contents.problems);
            number += contents.objects.len();
        }
    }
    assert!(number >= 6, "{number}");
}

/// A right: where it holds, the API group, the resource, the verb.
type Right = (&'static str, &'static str, &'static str, &'static str);

/// Every right of the agent, and what it is for.
#[rustfmt::skip]
const RIGHTS: &[(Right, &str)] = &[
    (("", "", "nodes", "list"), "addresses, pod CIDRs and labels of all nodes"),
    (("", "", "nodes", "watch"), "as above"),
    (("", "", "nodes", "get"), "the own node's conditions before one is written"),
    (("", "", "nodes/status", "patch"), "the condition NetworkUnavailable"),
    (("", "", "pods", "list"), "labels and addresses of all pods, for policy"),
    (("", "", "pods", "watch"), "as above"),
    (("", "", "namespaces", "list"), "labels of namespaces, for policy"),
    (("", "", "namespaces", "watch"), "as above"),
    (("", "networking.k8s.io", "networkpolicies", "list"), "what is enforced"),
    (("", "networking.k8s.io", "networkpolicies", "watch"), "as above"),
    (("", "policy.networking.k8s.io", "clusternetworkpolicies", "list"), "not enforced: status, an event and a metric name them"),
    (("", "policy.networking.k8s.io", "clusternetworkpolicies", "watch"), "as above"),
    (("", "policy.networking.k8s.io", "adminnetworkpolicies", "list"), "as above"),
    (("", "policy.networking.k8s.io", "adminnetworkpolicies", "watch"), "as above"),
    (("", "policy.networking.k8s.io", "baselineadminnetworkpolicies", "list"), "as above"),
    (("", "policy.networking.k8s.io", "baselineadminnetworkpolicies", "watch"), "as above"),
    (("", "selvage.io", "bgpconfigurations", "list"), "what the speaker does"),
    (("", "selvage.io", "bgpconfigurations", "watch"), "as above"),
    (("", "selvage.io", "bgpconfigurations", "get"), "its status before it is written"),
    (("", "selvage.io", "bgpconfigurations/status", "patch"), "its conditions"),
    (("", "selvage.io", "bgppeers", "list"), "neighbours"),
    (("", "selvage.io", "bgppeers", "watch"), "as above"),
    (("", "selvage.io", "bgppeers", "get"), "its status before it is written"),
    (("", "selvage.io", "bgppeers/status", "patch"), "its conditions"),
    (("", "selvage.io", "bgpnodestatuses", "get"), "the own report before it is written"),
    (("", "selvage.io", "bgpnodestatuses", "create"), "the own report: an apply that makes it"),
    (("", "selvage.io", "bgpnodestatuses", "patch"), "its owner, the Node"),
    (("", "selvage.io", "bgpnodestatuses/status", "patch"), "what the node has to say"),
    (("", "events.k8s.io", "events", "create"), "sessions that go up or down, objects that are refused"),
    (("selvage-system", "", "secrets", "list"), "passwords of neighbours"),
    (("selvage-system", "", "secrets", "watch"), "as above"),
    (("default", "discovery.k8s.io", "endpointslices", "get"), "where the API servers are; only the slice `kubernetes`"),
];

/// The rights that policy alone needs: all others are for BGP and for the CNI configuration. Those in a namespace are roles of
/// their own.
#[rustfmt::skip]
const POLICY_ALONE: &[(&str, &str, &str)] = &[
    ("", "nodes", "list"), ("", "nodes", "watch"),
    ("", "pods", "list"), ("", "pods", "watch"),
    ("", "namespaces", "list"), ("", "namespaces", "watch"),
    ("networking.k8s.io", "networkpolicies", "list"), ("networking.k8s.io", "networkpolicies", "watch"),
    ("policy.networking.k8s.io", "clusternetworkpolicies", "list"), ("policy.networking.k8s.io", "clusternetworkpolicies", "watch"),
    ("policy.networking.k8s.io", "adminnetworkpolicies", "list"), ("policy.networking.k8s.io", "adminnetworkpolicies", "watch"),
    ("policy.networking.k8s.io", "baselineadminnetworkpolicies", "list"), ("policy.networking.k8s.io", "baselineadminnetworkpolicies", "watch"),
    ("events.k8s.io", "events", "create"),
];

/// Namespace, API group, resource and verb of each right that these objects grant.
fn granted(objects: &[Value]) -> BTreeSet<(String, String, String, String)> {
    let mut granted = BTreeSet::new();
    for object in objects {
        let rules = object["rules"].as_array().into_iter().flatten();
        let namespace = object.pointer("/metadata/namespace");
        let namespace = namespace.and_then(Value::as_str).unwrap_or_default();
        for rule in rules {
            if let Some(names) = rule.get("resourceNames") {
                assert_eq!(*names, json!(["kubernetes"]));
            }
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        let right = (namespace.to_owned(), group.clone(), resource.clone(), verb);
                        assert!(granted.insert(right.clone()), "twice: {right:?}");
                    }
                }
            }
        }
    }
    granted
}

#[test]
fn rights_are_those_that_are_used() {
    let granted = granted(&base("rbac.yaml"));
    let owned = |(namespace, group, resource, verb): Right| {
        let [a, b, c, d] = [namespace, group, resource, verb].map(str::to_owned);
        (a, b, c, d)
    };
    let used: BTreeSet<_> = RIGHTS.iter().map(|(right, _)| owned(*right)).collect();
    assert_eq!(granted, used);
    // Every role is bound to the ServiceAccount, and nothing else is.
    let role = |object: &Value| object["kind"] == "Role" || object["kind"] == "ClusterRole";
    let objects = base("rbac.yaml");
    for object in objects.iter().filter(|object| role(object)) {
        let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
        let bindings: Vec<&Value> = objects
            .iter()
            .filter(|other| other["roleRef"]["kind"] == *kind && other["roleRef"]["name"] == *name)
            .collect();
        let subject =
            json!([{"kind": "ServiceAccount", "name": "selvage", "namespace": "selvage-system"}]);
        assert_eq!(bindings.len(), 1, "{kind} {name}");
        assert_eq!(bindings[0]["subjects"], subject, "{kind} {name}");
        let namespace = object.pointer("/metadata/namespace");
        assert_eq!(
            bindings[0].pointer("/metadata/namespace"),
            namespace,
            "{name}"
        );
    }
}

/// Beside another plugin: what is patched is there, what is taken away is what policy does not need, and the settings are
/// such that the agent takes.
#[test]
fn policy_beside_another_plugin_gets_no_more_than_it_needs() {
    let folder = root().join("overlays/policy-only");
    let kustomization = objects(&folder.join("kustomization.yaml")).remove(0);
    assert_eq!(texts(&kustomization["resources"]), ["../../base"]);
    let role = objects(&folder.join("rights.yaml"));
    let wanted = POLICY_ALONE.iter().map(|(group, resource, verb)| {
        let [a, b, c] = [*group, *resource, *verb].map(str::to_owned);
        (String::new(), a, b, c)
    });
    assert_eq!(granted(&role), wanted.collect());
    assert!(granted(&role).is_subset(&granted(&base("rbac.yaml"))));
    let rbac = base("rbac.yaml");
    let is_role = |object: &&Value| {
        object["metadata"]
            == json!({"name": "selvage", "labels": {"app.kubernetes.io/name": "selvage"}})
    };
    let mut cluster_roles = rbac.iter().filter(|object| object["kind"] == "ClusterRole");
    assert!(
        cluster_roles.all(|object| is_role(&object)) && role[0]["metadata"]["name"] == "selvage"
    );

    // What goes: the role for Secrets with its binding, and all definitions.
    let patches = kustomization["patches"].as_array().unwrap();
    let gone: Vec<&Value> = patches
        .iter()
        .filter(|patch| patch["path"] == "without.yaml")
        .map(|patch| &patch["target"])
        .collect();
    assert_eq!(
        gone,
        [
            &json!({"kind": "Role", "name": "selvage"}),
            &json!({"kind": "RoleBinding", "name": "selvage"}),
            &json!({"kind": "CustomResourceDefinition"}),
        ]
    );
    for kind in ["Role", "RoleBinding"] {
        let named =
            |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == "selvage";
        let found: Vec<&Value> = rbac.iter().filter(named).collect();
        assert_eq!(found.len(), 1, "{kind}");
        assert_eq!(found[0]["metadata"]["namespace"], "selvage-system");
    }
    assert_eq!(objects(&folder.join("without.yaml"))[0]["$patch"], "delete");

    let patch = objects(&folder.join("agent.yaml")).remove(0);
    let daemon_set = base("daemonset.yaml").remove(0);
    let deleted = |list: &Value, key: &str| -> BTreeSet<String> {
        let list = list.as_array().into_iter().flatten();
        let deleted = list.filter(|item| item["$patch"] == "delete");
        deleted
            .map(|item| item[key].as_str().unwrap().to_owned())
            .collect()
    };
    let volumes = deleted(&patch["spec"]["template"]["spec"]["volumes"], "name");
    let mut users = BTreeSet::new();
    for container in containers(&daemon_set) {
        let own = containers(&patch)
            .into_iter()
            .find(|own| own["name"] == container["name"]);
        let own = own.unwrap();
        let mounts = deleted(&own["volumeMounts"], "mountPath");
        for mount in container["volumeMounts"].as_array().unwrap() {
            let path = mount["mountPath"].as_str().unwrap();
            let volume = mount["name"].as_str().unwrap();
            assert_eq!(mounts.contains(path), volumes.contains(volume), "{path}");
            users.extend(mounts.contains(path).then(|| volume.to_owned()));
        }
        let value = |name: &str| {
            let env = own["env"].as_array().unwrap();
            let found = env.iter().find(|variable| variable["name"] == name);
            found.unwrap()["value"].as_str().unwrap().to_owned()
        };
        let args = selvage::config::AgentArgs {
            node: Some("n1".into()),
            kubeconfig: Some("/k".into()),
            features: Some(vec![value("SELVAGE_FEATURES")]),
            pod_interface_prefix: Some(vec![value("SELVAGE_POD_INTERFACE_PREFIX")]),
            ..selvage::config::AgentArgs::default()
        };
        let config = selvage::config::AgentConfig::load(args, None).unwrap();
        assert_eq!(config.features.names(), ["policy"]);
        assert_eq!(config.cni_conf, None);
    }
    assert_eq!(users, volumes);
    assert_eq!(users, ["cni-bin".to_owned(), "cni-conf".to_owned()].into());
    let agent = containers(&patch)
        .into_iter()
        .find(|own| own["name"] == "agent")
        .unwrap();
    assert_eq!(
        agent["securityContext"],
        json!({"capabilities": {"add": ["NET_ADMIN"]}})
    );
}

fn containers(object: &Value) -> Vec<&Value> {
    ["initContainers", "containers"]
        .iter()
        .filter_map(|key| {
            object
                .pointer(&format!("/spec/template/spec/{key}"))?
                .as_array()
        })
        .flatten()
        .collect()
}

fn daemon_sets() -> Vec<Value> {
    let all = all().into_iter().filter(|path| !is_kustomization(path));
    let objects = all.flat_map(|path| objects(&path));
    objects
        .filter(|object| object["kind"] == "DaemonSet")
        .collect()
}

#[test]
fn one_image_of_this_version() {
    let image = format!("localhost/selvage:{}", env!("CARGO_PKG_VERSION"));
    let mut number = 0;
    for object in daemon_sets() {
        for container in containers(&object)
            .iter()
            .filter(|c| c.get("image").is_some())
        {
            assert_eq!(container["image"], image, "{}", container["name"]);
            // There is no registry to pull it from unless an overlay names one.
            assert_eq!(container["imagePullPolicy"], "IfNotPresent");
            number += 1;
        }
    }
    assert_eq!(number, 4);
}

/// What the containers run is what the program takes.
#[test]
fn arguments_and_environment_are_known() {
    let command = Cli::command();
    for object in daemon_sets() {
        for container in containers(&object) {
            if container.get("args").is_some() {
                let words = [vec!["selvage".to_owned()], texts(&container["args"])].concat();
                Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
            }
            let agent = command.find_subcommand("agent").unwrap();
            let known: Vec<&str> = agent
                .get_arguments()
                .filter_map(|argument| argument.get_env()?.to_str())
                .collect();
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().unwrap();
                assert!(name == "HOST_IP" || known.contains(&name), "{name}");
            }
        }
    }
}

#[test]
fn the_agent_has_no_more_than_it_needs() {
    let daemon_set = base("daemonset.yaml").remove(0);
    let pod = &daemon_set["spec"]["template"]["spec"];
    let agent = &pod["containers"][0];
    assert_eq!(
        agent["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_BIND_SERVICE"]},
        })
    );
    let mounts = agent["volumeMounts"].as_array().unwrap();
    let volumes: BTreeMap<&str, &str> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| {
            let path = volume["hostPath"]["path"].as_str().unwrap();
            (volume["name"].as_str().unwrap(), path)
        })
        .collect();
    for mount in mounts {
        // A path means the same inside and outside: the plugin is told of it.
        assert_eq!(mount["mountPath"], volumes[mount["name"].as_str().unwrap()]);
    }
    let paths: BTreeSet<&str> = volumes.into_values().collect();
    let wanted = [
        "/run/selvage",
        "/var/lib/selvage",
        "/etc/cni/net.d",
        "/opt/cni/bin",
    ];
    assert_eq!(paths, wanted.into());
    assert_eq!(agent["resources"]["limits"].get("cpu"), None);
    for probe in ["livenessProbe", "readinessProbe"] {
        let http = &agent[probe]["httpGet"];
        assert_eq!(
            (&http["host"], &http["port"]),
            (&json!("127.0.0.1"), &json!(9179))
        );
    }
}
