//! What a directory of files says, as one set of objects.
//!
//! Pure state: the watcher hands in what it read, the events come out. As long as a file has a fault, no object
//! disappears because of it: what was good stays. Where two files hold the same object, the file that sorts first
//! counts and both are named; the result never depends on the order in which the files were read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::yaml::{self, Contents};
use super::{At, ObjectEvent, Origin, Problem, closed};
use crate::objects::{Key, Kind, NotEnforced, Object, PolicyKind};

type Id = (Kind, Key);

/// All files of one source.
///
/// `stage_*` takes in what was read, [`Directory::settle`] says what changed by it.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<PathBuf, File>,
    /// Which files hold an object.
    holders: BTreeMap<Id, BTreeSet<PathBuf>>,
    /// What may have changed since the last time that the outside was told.
    touched: BTreeSet<Id>,
    /// Files that are gone, and whose problems were told.
    cleared: BTreeSet<PathBuf>,
    /// What the outside was told last.
    told: BTreeMap<Id, Object>,
    /// The policies of each kind that the outside was told last of those that are not enforced.
    told_not_enforced: BTreeMap<PolicyKind, Vec<NotEnforced>>,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<Id, Held>,
    not_enforced: BTreeMap<NotEnforced, At>,
    problems: Vec<Problem>,
    told: Vec<Problem>,
}

#[derive(Debug)]
struct Held {
    object: Object,
    at: At,
    /// It is in force instead of one that was refused.
    stands_in: bool,
}

impl Directory {
    /// Takes in the whole text of a file, new or changed.
    pub fn stage_text(&mut self, path: &Path, text: &str) {
        self.replace(path, yaml::read(path, text));
    }

    /// Takes in that a file could not be read; what it held stays.
    pub fn stage_unreadable(&mut self, path: &Path, reason: String) {
        let at = At::File {
            path: path.to_owned(),
            line: 0,
            column: 0,
        };
        let problem = Problem {
            at,
            kind: String::new(),
            key: Key::default(),
            path: String::new(),
            reason,
            hint: None,
        };
        self.replace(
            path,
            Contents {
                problems: vec![problem],
                ..Contents::default()
            },
        );
    }

    /// Takes in that a file is gone.
    pub fn stage_removed(&mut self, path: &Path) {
        let Some(file) = self.files.remove(path) else {
            return;
        };
        if !file.told.is_empty() {
            self.cleared.insert(path.to_owned());
        }
        for id in file.objects.into_keys() {
            self.let_go(&id, path);
            self.touched.insert(id);
        }
    }

    /// The files that are known.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Policies that this version does not enforce, and where they are written.
    pub fn not_enforced(&self) -> impl Iterator<Item = (&NotEnforced, &At)> {
        self.files.values().flat_map(|file| &file.not_enforced)
    }

    /// How many objects are in force.
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Whether no object is in force.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// What changed since the last call, in an order that does not depend on how it came about.
    pub fn settle(&mut self) -> Vec<ObjectEvent> {
        let mut events = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let first = self.holders.get(&id).and_then(BTreeSet::first);
            let now = first
                .and_then(|path| self.files.get(path)?.objects.get(&id))
                .map(|held| &held.object);
            match (self.told.get(&id), now) {
                (Some(before), Some(now)) if before == now => {}
                (_, Some(now)) => {
                    events.push(ObjectEvent::Applied(now.clone()));
                    self.told.insert(id, now.clone());
                }
                (Some(_), None) => {
                    self.told.remove(&id);
                    events.push(ObjectEvent::Deleted(id.0, id.1));
                }
                (None, None) => {}
            }
        }
        let cleared = std::mem::take(&mut self.cleared).into_iter();
        events.extend(cleared.map(|path| ObjectEvent::Cleared(Origin::File(path))));
        self.settle_not_enforced(&mut events);
        self.settle_problems(&mut events);
        events
    }

    fn settle_not_enforced(&mut self, events: &mut Vec<ObjectEvent>) {
        for kind in PolicyKind::ALL {
            let of_kind = self.not_enforced().map(|(policy, _)| policy);
            let of_kind = of_kind.filter(|policy| policy.kind == kind);
            let by_name: BTreeMap<&str, &NotEnforced> = of_kind
                .map(|policy| (policy.name.as_str(), policy))
                .collect();
            let now: Vec<NotEnforced> = by_name.into_values().cloned().collect();
            let before = self.told_not_enforced.get(&kind);
            if before.map_or(&[][..], Vec::as_slice) != now {
                events.push(ObjectEvent::NotEnforced(kind, now.clone()));
                self.told_not_enforced.insert(kind, now);
            }
        }
    }

    fn settle_problems(&mut self, events: &mut Vec<ObjectEvent>) {
        let duplicates = self.duplicates();
        for (path, file) in &mut self.files {
            let mut problems = file.problems.clone();
            problems.extend(duplicates.get(path).into_iter().flatten().cloned());
            if problems == file.told {
                continue;
            }
            events.push(ObjectEvent::Cleared(Origin::File(path.clone())));
            events.extend(problems.iter().cloned().map(ObjectEvent::Invalid));
            file.told = problems;
        }
    }

    fn replace(&mut self, path: &Path, contents: Contents) {
        self.cleared.remove(path);
        let mut fresh = BTreeMap::new();
        for (object, at) in contents.objects {
            let id = (object.kind(), object.key().clone());
            self.holders
                .entry(id.clone())
                .or_default()
                .insert(path.to_owned());
            self.touched.insert(id.clone());
            let stands_in = false;
            fresh.insert(
                id,
                Held {
                    object,
                    at,
                    stands_in,
                },
            );
        }
        let file = self.files.entry(path.to_owned()).or_default();
        let mut old = std::mem::take(&mut file.objects);
        old.retain(|id, _| !fresh.contains_key(id));
        let mut problems = contents.problems;
        for (object, at) in contents.stand_ins {
            let id = (object.kind(), object.key().clone());
            if fresh.contains_key(&id) || old.get(&id).is_some_and(|held| !held.stands_in) {
                continue;
            }
            problems.push(closed(id.0, &id.1, at.clone()));
            self.holders
                .entry(id.clone())
                .or_default()
                .insert(path.to_owned());
            self.touched.insert(id.clone());
            old.remove(&id);
            let stands_in = true;
            fresh.insert(
                id,
                Held {
                    object,
                    at,
                    stands_in,
                },
            );
        }
        let faulty = !problems.is_empty();
        if faulty {
            fresh.append(&mut old);
        } else {
            file.not_enforced.clear();
        }
        file.not_enforced.extend(contents.not_enforced);
        file.objects = fresh;
        file.problems = problems;
        for id in old.into_keys() {
            self.let_go(&id, path);
            self.touched.insert(id);
        }
    }

    fn let_go(&mut self, id: &Id, path: &Path) {
        let Some(holders) = self.holders.get_mut(id) else {
            return;
        };
        holders.remove(path);
        if holders.is_empty() {
            self.holders.remove(id);
        }
    }

    fn duplicates(&self) -> BTreeMap<PathBuf, Vec<Problem>> {
        let mut problems: BTreeMap<PathBuf, Vec<Problem>> = BTreeMap::new();
        for (id, holders) in self.holders.iter().filter(|(_, holders)| holders.len() > 1) {
            let mut places = holders
                .iter()
                .filter_map(|path| Some((path, &self.files.get(path)?.objects.get(id)?.at)));
            let Some((_, winner)) = places.next() else {
                continue;
            };
            for (path, at) in places {
                problems.entry(path.clone()).or_default().push(Problem {
                    at: at.clone(),
                    kind: id.0.to_string(),
                    key: id.1.clone(),
                    path: String::new(),
                    reason: format!(
                        "the same object is in two files; {winner} counts, this one does not"
                    ),
                    hint: Some("remove it from one of them".into()),
                });
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{cidr}]}}\n---\n"
        )
    }

    fn read(directory: &mut Directory, path: &Path, text: &str) -> Vec<String> {
        directory.stage_text(path, text);
        names(&directory.settle())
    }

    fn removed(directory: &mut Directory, path: &Path) -> Vec<String> {
        directory.stage_removed(path);
        names(&directory.settle())
    }

    fn names(events: &[ObjectEvent]) -> Vec<String> {
        let name = |event: &ObjectEvent| match event {
            ObjectEvent::Applied(object) => format!("+{}", object.key()),
            ObjectEvent::Deleted(_, key) => format!("-{key}"),
            ObjectEvent::Cleared(Origin::File(path)) => format!("clear {}", path.display()),
            ObjectEvent::Invalid(problem) => format!("! {problem}"),
            other => format!("{other:?}"),
        };
        events.iter().map(name).collect()
    }

    #[test]
    fn what_was_good_stays_until_the_file_is_good_again() {
        let mut directory = Directory::default();
        let path = Path::new("a.yaml");
        let both = node("n1", "10.0.1.0/24") + &node("n2", "10.0.2.0/24");
        assert_eq!(read(&mut directory, path, &both), ["+n1", "+n2"]);
        assert_eq!(read(&mut directory, path, &both), Vec::<String>::new());
        let broken = read(&mut directory, path, "a: [b\n");
        assert_eq!(broken.first().map(String::as_str), Some("clear a.yaml"));
        assert_eq!(broken.len(), 2, "{broken:?}");
        // One bad object: the other one is taken, nothing disappears.
        let half = node("n1", "10.0.9.0/24") + &node("n2", "nonsense");
        let events = read(&mut directory, path, &half);
        assert_eq!(events.first().map(String::as_str), Some("+n1"));
        assert!(
            events
                .iter()
                .any(|event| event.contains("a.yaml:9:19: Node n2: spec.podCIDRs[0]")),
            "{events:?}"
        );
        assert_eq!(
            read(&mut directory, path, &node("n1", "10.0.9.0/24")),
            ["-n2", "clear a.yaml"]
        );
        assert_eq!(removed(&mut directory, path), ["-n1"]);
    }

    /// A policy that nobody can read protects all the same.
    #[test]
    fn a_policy_refused_at_first_sight_closes_its_pods_and_the_last_good_one_stays() {
        let text = |spec: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
            )
        };
        let told = |directory: &Directory| match directory.told.values().next() {
            Some(Object::NetworkPolicy(object)) => object.policy.clone(),
            other => panic!("{other:?}"),
        };
        let pod = |labels: [(&str, &str); 1]| selvage_policy::model::Labels::from(labels);
        let (a, b) = (pod([("app", "a")]), pod([("app", "b")]));
        let bad = "ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]";
        let path = Path::new("a.yaml");
        for (spec, ingress, egress, selects_b) in [
            (
                format!("{{podSelector: {{matchLabels: {{app: a}}}}, {bad}}}"),
                true,
                false,
                false,
            ),
            (
                format!(
                    "{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Egress], {bad}}}"
                ),
                false,
                true,
                false,
            ),
            (
                "{podSelector: {matchLabels: {app: a}}, policyTypes: [Both]}".to_owned(),
                true,
                true,
                false,
            ),
            (
                "{podSelector: {matchLabels: {app: a}}, egress: [{to: [{ipBlock: {}}]}]}"
                    .to_owned(),
                true,
                true,
                false,
            ),
            (format!("{{podSelector: all, {bad}}}"), true, false, true),
            ("nothing".to_owned(), true, true, true),
        ] {
            let mut directory = Directory::default();
            let events = read(&mut directory, path, &text(&spec));
            assert_eq!(
                events.first().map(String::as_str),
                Some("+default/p"),
                "{events:?}"
            );
            assert!(
                events.iter().any(|e| e.contains("are closed in")),
                "{events:?}"
            );
            let policy = told(&directory);
            assert_eq!(
                (policy.ingress.clone(), policy.egress.clone()),
                (ingress.then(Vec::new), egress.then(Vec::new)),
                "{spec}"
            );
            assert_eq!(
                (policy.pods.matches(&a), policy.pods.matches(&b)),
                (true, selects_b),
                "{spec}"
            );
            // Another bad form replaces the stand-in; a good one and what follows it stay.
            read(&mut directory, path, &text("nothing"));
            assert!(told(&directory).pods.is_everything());
            read(
                &mut directory,
                path,
                &text("{podSelector: {}, ingress: [{}]}"),
            );
            let good = told(&directory);
            assert_eq!(good.ingress.as_deref().map(<[_]>::len), Some(1));
            let events = read(&mut directory, path, &text(&spec));
            assert!(
                !events.iter().any(|e| e.contains("are closed in")),
                "{events:?}"
            );
            assert_eq!(told(&directory), good);
            assert_eq!(removed(&mut directory, path)[0], "-default/p");
        }
    }

    /// They are named, and they are no fault of the file: what disappears from it is gone.
    #[test]
    fn policies_that_are_not_enforced_are_named_as_long_as_they_are_there() {
        let policy = |name: &str| {
            format!(
                "apiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n---\n"
            )
        };
        let named = |events: Vec<ObjectEvent>| {
            let name = |event: ObjectEvent| match event {
                ObjectEvent::NotEnforced(kind, policies) => {
                    let names: Vec<String> = policies.into_iter().map(|p| p.name).collect();
                    format!("{kind} [{}]", names.join(" "))
                }
                other => names(&[other]).join(""),
            };
            events.into_iter().map(name).collect::<Vec<String>>()
        };
        let mut directory = Directory::default();
        let (a, b) = (Path::new("a.yaml"), Path::new("b.yaml"));
        directory.stage_text(a, &(node("n1", "10.0.1.0/24") + &policy("p")));
        assert_eq!(
            named(directory.settle()),
            ["+n1", "ClusterNetworkPolicy [p]"]
        );
        let places: Vec<String> = directory
            .not_enforced()
            .map(|(_, at)| at.to_string())
            .collect();
        assert_eq!(places, ["a.yaml:6:1"]);
        directory.stage_text(b, &(policy("q") + &policy("p")));
        assert_eq!(named(directory.settle()), ["ClusterNetworkPolicy [p q]"]);
        directory.stage_text(a, &policy("p"));
        assert_eq!(named(directory.settle()), ["-n1"]);
        directory.stage_removed(b);
        assert_eq!(named(directory.settle()), ["ClusterNetworkPolicy [p]"]);
        // Of a file that cannot be read nothing is forgotten.
        directory.stage_text(a, "a: [b\n");
        assert_eq!(named(directory.settle()).len(), 2);
        assert_eq!(directory.not_enforced().count(), 1);
        directory.stage_text(a, "");
        assert_eq!(
            named(directory.settle()),
            ["ClusterNetworkPolicy []", "clear a.yaml"]
        );
    }

    #[test]
    fn two_files_with_one_object_are_both_named() {
        let (a, b) = (Path::new("a.yaml"), Path::new("b.yaml"));
        for order in [[a, b], [b, a]] {
            let mut directory = Directory::default();
            let mut last = Vec::new();
            for path in order {
                let cidr = if path == a {
                    "10.0.1.0/24"
                } else {
                    "10.0.2.0/24"
                };
                last = read(&mut directory, path, &node("n1", cidr));
            }
            let events = last;
            let problem = events
                .iter()
                .find(|event| event.starts_with('!'))
                .cloned()
                .unwrap_or_default();
            assert!(
                problem.contains("b.yaml:1:1") && problem.contains("a.yaml:1:1 counts"),
                "{events:?}"
            );
            let Some(Object::Node(told)) = directory.told.values().next() else {
                panic!("no node")
            };
            assert_eq!(
                told.pod_cidrs.first().map(ToString::to_string).as_deref(),
                Some("10.0.1.0/24")
            );
            assert_eq!(removed(&mut directory, a), ["+n1", "clear b.yaml"]);
        }
    }
}
