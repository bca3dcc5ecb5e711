//! The directory source on a real directory, with the kernel's real notifications. Every wait ends with an event.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use selvage::source::ObjectEvent;
use selvage::source::watch::{self, Watcher};
use selvage::store::Store;
use selvage_bgp::Pulse;

/// A directory, its watcher, and the store behind them.
struct Bench {
    path: PathBuf,
    watcher: Option<Watcher>,
    events: Receiver<Vec<ObjectEvent>>,
    store: Store,
    mark: u64,
}

impl Bench {
    fn new() -> Bench {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("selvage-source-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let (sender, events) = channel();
        let watcher = watch::spawn(
            &path,
            Pulse::new("source"),
            Box::new(move |batch| sender.send(batch).is_ok()),
        )
        .unwrap();
        let mut bench = Bench {
            path,
            watcher: Some(watcher),
            events,
            store: Store::default(),
            mark: 0,
        };
        bench.settle();
        bench
    }

    /// Takes in everything that the files hold now.
    fn settle(&mut self) {
        self.mark += 1;
        self.watcher.as_ref().unwrap().reach(self.mark);
        while self.store.reached() < self.mark {
            let batch = self
                .events
                .recv_timeout(Duration::from_secs(20))
                .expect("the source says nothing");
            self.store.apply(batch);
        }
    }

    fn write(&mut self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).unwrap();
        self.settle();
    }

    fn nodes(&self) -> Vec<String> {
        let show = |node: &selvage::objects::Node| {
            let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
            format!("{} {}", node.meta.key, cidrs.join(","))
        };
        self.store.nodes().map(|node| show(node)).collect()
    }

    fn problems(&self) -> Vec<String> {
        let prefix = format!("{}/", self.path.display());
        self.store
            .problems()
            .map(|problem| problem.to_string().replace(&prefix, ""))
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.watcher.take());
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn node(name: &str, cidr: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{cidr}]}}\n"
    )
}

#[test]
fn everything_is_synced_at_the_start() {
    let bench = Bench::new();
    assert!(bench.store.synced());
}

#[test]
fn a_file_is_read_when_its_writer_closes_it() {
    let mut bench = Bench::new();
    let mut file = fs::File::create(bench.path.join("a.yaml")).unwrap();
    file.write_all(b"apiVersion: v1\nkind: No").unwrap();
    file.sync_all().unwrap();
    bench.settle();
    assert_eq!((bench.nodes(), bench.problems()), (vec![], vec![]));
    file.write_all(b"de\nmetadata: {name: n1}\nspec: {podCIDRs: [10.0.1.0/24]}\n")
        .unwrap();
    drop(file);
    bench.settle();
    assert_eq!(
        (bench.nodes(), bench.problems()),
        (vec!["n1 10.0.1.0/24".to_owned()], vec![])
    );
}

#[test]
fn moved_into_place_replaced_and_deleted() {
    let mut bench = Bench::new();
    for cidr in ["10.0.1.0/24", "10.0.2.0/24"] {
        bench.write(".a.yaml.tmp", &node("n1", cidr));
        fs::rename(bench.path.join(".a.yaml.tmp"), bench.path.join("a.yaml")).unwrap();
        bench.settle();
        assert_eq!(bench.nodes(), [format!("n1 {cidr}")]);
    }
    fs::rename(bench.path.join("a.yaml"), bench.path.join("b.yaml")).unwrap();
    bench.settle();
    assert_eq!(
        (bench.nodes(), bench.problems()),
        (vec!["n1 10.0.2.0/24".to_owned()], vec![])
    );
    fs::remove_file(bench.path.join("b.yaml")).unwrap();
    bench.settle();
    assert!(bench.nodes().is_empty());
}

#[test]
fn a_bad_file_keeps_its_last_good_objects() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &node("n1", "10.0.1.0/24"));
    bench.write("a.yaml", "apiVersion: v1\nkind: [");
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    let problems = bench.problems();
    assert!(
        matches!(problems.as_slice(), [only] if only.starts_with("a.yaml:")),
        "{problems:?}"
    );
    bench.write("a.yaml", &node("n1", "10.0.1.0/33"));
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    assert!(
        bench
            .problems()
            .iter()
            .all(|problem| problem.starts_with("a.yaml:5:")),
        "{:?}",
        bench.problems()
    );
    bench.write("a.yaml", &node("n1", "10.0.3.0/24"));
    assert_eq!(
        (bench.nodes(), bench.problems()),
        (vec!["n1 10.0.3.0/24".to_owned()], vec![])
    );
}

#[test]
fn one_object_in_two_files_names_both() {
    let mut bench = Bench::new();
    bench.write("b.yaml", &node("n1", "10.0.2.0/24"));
    bench.write("a.yaml", &node("n1", "10.0.1.0/24"));
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    let problems = bench.problems();
    let [only] = problems.as_slice() else {
        panic!("{problems:?}")
    };
    assert!(
        only.starts_with("b.yaml:2:1: Node n1: ") && only.contains("a.yaml:2:1 counts"),
        "{only}"
    );
    fs::remove_file(bench.path.join("a.yaml")).unwrap();
    bench.settle();
    assert_eq!(
        (bench.nodes(), bench.problems()),
        (vec!["n1 10.0.2.0/24".to_owned()], vec![])
    );
}

#[test]
fn what_is_not_text_is_a_problem_and_nothing_more() {
    let mut bench = Bench::new();
    bench.write("good.yaml", &node("n1", "10.0.1.0/24"));
    fs::write(bench.path.join("bad.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    bench.write("ignored.txt", "kind: [");
    assert_eq!(bench.nodes(), ["n1 10.0.1.0/24"]);
    let problems = bench.problems();
    assert!(
        matches!(problems.as_slice(), [only] if only.contains("not UTF-8")),
        "{problems:?}"
    );
}
