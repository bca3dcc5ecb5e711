//! Good and bad objects as files: beside each bad one lies what `selvage check` has to say about it.
//!
//! `SELVAGE_BLESS=1` writes what is said now; read the difference before committing it.

use std::fs;
use std::path::{Path, PathBuf};

use selvage::objects::{Object, crd};
use selvage::source::yaml;
use selvage_policy::model::Selector;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/objects")
        .join(name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    files
}

fn said(path: &Path) -> String {
    let name = Path::new(path.file_name().unwrap());
    let contents = yaml::read(name, &fs::read_to_string(path).unwrap());
    contents
        .problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect()
}

/// Compares with the file, or writes it.
pub fn blessed(path: &Path, text: &str) {
    if std::env::var_os("SELVAGE_BLESS").is_some() {
        return fs::write(path, text).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == text,
        "{} is not what it was; SELVAGE_BLESS=1 accepts it\n--- now ---\n{text}",
        path.display()
    );
}

#[test]
fn good_ones_have_no_problems() {
    let mut objects = 0;
    for path in files("good") {
        assert_eq!(said(&path), "", "{}", path.display());
        objects += yaml::read(&path, &fs::read_to_string(&path).unwrap())
            .objects
            .len();
    }
    assert_eq!(objects, 8);
}

#[test]
fn bad_ones_are_refused_with_place_field_reason_and_hint() {
    let bad = files("bad");
    assert!(bad.len() >= 7);
    for path in bad {
        let text = said(&path);
        assert_ne!(text, "", "{}", path.display());
        blessed(&path.with_extension("txt"), &text);
    }
}

#[test]
fn the_definitions_in_manifests_are_current() {
    for file in crd::files().unwrap() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../manifests/crds")
            .join(file.name);
        blessed(&path, &file.text);
    }
}

/// An object with this value in this field.
fn with(field: &str, value: &str) -> String {
    let spec = match field {
        "address" | "range" => format!("{field}: '{value}', asn: 65001"),
        // Of the same family as the neighbour.
        "localAddress" if value.contains(':') => {
            format!("address: '2001:db8::9', localAddress: '{value}', asn: 65001")
        }
        "localAddress" => format!("address: 192.0.2.9, localAddress: '{value}', asn: 65001"),
        "routerId" => format!("routerId: '{value}'"),
        other => panic!("{other}"),
    };
    let (kind, name) = match field {
        "routerId" => ("BGPConfiguration", "default"),
        _ => ("BGPPeer", "peer"),
    };
    format!(
        "{{apiVersion: selvage.io/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    )
}

/// The regular expression that values of a field must not match, by the rule in the definition.
fn refused_by_the_api(field: &str) -> regex::Regex {
    let file = match field {
        "routerId" => "bgpconfigurations.yaml",
        _ => "bgppeers.yaml",
    };
    let files = crd::files().unwrap();
    let text = &files.iter().find(|f| f.name == file).unwrap().text;
    let definition: serde_json::Value = serde_saphyr::from_str(text).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let rules = &schema["properties"]["spec"]["properties"][field]["x-kubernetes-validations"];
    let rule = rules[0]["rule"].as_str().unwrap();
    let (before, pattern) = rule.split_once("matches('").unwrap();
    let pattern = pattern.strip_suffix("')").unwrap();
    let any_case = before.contains("lowerAscii").then_some("(?i)");
    regex::Regex::new(&format!("{}{pattern}", any_case.unwrap_or_default())).unwrap()
}

#[test]
fn addresses_that_no_neighbour_can_have_are_refused_by_check_and_by_the_api_server() {
    let table = fs::read_to_string(folder("addresses.txt")).unwrap();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [field, value, refuser] = words[..] else {
            panic!("{line}");
        };
        let said = yaml::read(Path::new("table"), &with(field, value)).problems;
        let paths: Vec<&str> = said.iter().map(|problem| &*problem.path).collect();
        match refuser {
            "nobody" => assert!(said.is_empty(), "{line}: {said:?}"),
            _ => assert_eq!(paths, [format!("spec.{field}")], "{line}"),
        }
        let by_the_api = refused_by_the_api(field).is_match(value);
        assert_eq!(by_the_api, refuser == "api", "{line}");
    }
}

/// The lines of a table of policies: the field at fault, if one is, and the object.
fn policies(table: &str) -> Vec<(Option<String>, String)> {
    let text = fs::read_to_string(folder(table)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (field, spec) = line.split_once(" | ").unwrap();
            let object = format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {spec}}}"
            );
            ((field != "-").then(|| format!("spec.{field}")), object)
        })
        .collect()
}

/// That the API server agrees with the first table is shown by the trial `kubernetes::validation`.
#[test]
fn policies_that_the_api_server_refuses_are_refused_with_their_field() {
    for (field, object) in [policies("policies.txt"), policies("policies-ours.txt")].concat() {
        let contents = yaml::read(Path::new("table"), &object);
        let paths: Vec<_> = contents.problems.iter().map(|p| p.path.clone()).collect();
        assert_eq!(
            paths,
            Vec::from_iter(field.clone()),
            "{object}: {:?}",
            contents.problems
        );
        assert_eq!(
            contents.objects.len(),
            usize::from(field.is_none()),
            "{object}"
        );
    }
}

/// A policy that is refused closes the pods that it was to protect; where it does not say which, all of its namespace.
#[test]
fn a_refused_policy_opens_nothing() {
    let stand_in = |object: &str| {
        let stand_ins = yaml::read(Path::new("table"), object).stand_ins;
        match &stand_ins[..] {
            [(Object::NetworkPolicy(policy), _)] => policy.policy.clone(),
            other => panic!("{object}: {other:?}"),
        }
    };
    for (field, object) in [policies("policies.txt"), policies("policies-ours.txt")].concat() {
        let Some(field) = field else { continue };
        let policy = stand_in(&object);
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        assert_eq!(rules.count(), 0, "{object}");
        assert!(
            policy.ingress.is_some() || policy.egress.is_some(),
            "{object}"
        );
        if field.starts_with("spec.podSelector") {
            assert_eq!(policy.pods, Selector::default(), "{object}");
        }
    }
}
