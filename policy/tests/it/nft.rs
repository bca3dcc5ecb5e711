//! The real `nft`, in a network namespace of its own, takes every plan and every delta, and what it lists it takes
//! again.

use crate::strategy::{policies, world};
use crate::world::World;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use selvage_policy::plan::{Plan, text};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

const CASES: usize = 40;

fn sample<T: std::fmt::Debug>(strategy: &impl Strategy<Value = T>, runner: &mut TestRunner) -> T {
    strategy.new_tree(runner).expect("a value").current()
}

/// Runs a shell script as root of a fresh network namespace; its output, errors included.
fn run(script: &str) -> String {
    run_with("sh", script)
}

/// The same in this shell.
pub fn run_with(shell: &str, script: &str) -> String {
    let unshare = if is_root() { &["-n"][..] } else { &["-rn"][..] };
    let mut child = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", "exec \"$0\" 2>&1", shell])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare starts: util-linux and nftables are needed");
    let mut stdin = child.stdin.take().expect("a pipe");
    let script = script.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().expect("an end");
    writer
        .join()
        .expect("a writer")
        .expect("a script that is read to its end");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|s| {
        s.lines()
            .any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    })
}

const PRELUDE: &str = r#"
d=$(mktemp -d) || exit 1
trap 'rm -rf "$d"' EXIT
nft -v >/dev/null || echo "FAIL: nft does not run"
words() { tr -s ' ,\t\n' '\n' <"$1" | sort >"$1.words"; }
show() { nft list table inet selvage >"$1" || echo "FAIL $2: list"; words "$1"; }
same() { cmp -s "$1.words" "$2.words" || { echo "FAIL $3: differ"; diff "$1.words" "$2.words"; }; }
"#;

/// Loads the script; the shell says `FAIL` with this name if nft does not take it.
fn load(out: &mut String, name: &str, script: &str) {
    let _ = writeln!(
        out,
        "nft -f - <<'END' || echo 'FAIL {name}: load'\n{script}END"
    );
}

#[test]
fn nft_takes_plans_and_deltas_and_lists_them() {
    let mut runner = TestRunner::deterministic();
    let mut script = PRELUDE.to_owned();
    for case in 0..CASES {
        let before: World = sample(&world(), &mut runner);
        let mut after = before.clone();
        after.policies = sample(&policies(), &mut runner);
        after.pods.truncate(5);
        let (old, new) = (
            before.compiler().plan().clone(),
            after.compiler().plan().clone(),
        );
        let ops = selvage_policy::plan::diff(&old, &new);
        load(&mut script, &format!("{case} old"), &text::plan(&old));
        let _ = writeln!(
            script,
            "show $d/old '{case} old'; nft delete table inet selvage"
        );
        load_file(&mut script, case);
        load(
            &mut script,
            &format!("{case} delta"),
            &text::ops(&new.table, &ops),
        );
        let _ = writeln!(script, "show $d/delta '{case} delta'");
        load(&mut script, &format!("{case} new"), &text::plan(&new));
        let _ = writeln!(
            script,
            "show $d/new '{case} new'; same $d/delta $d/new '{case} delta'"
        );
        assert_mirror(&old, &new);
    }
    script += "echo finished\n";
    assert_eq!(run(&script), "finished\n");
}

/// What was listed loads again and lists the same.
fn load_file(script: &mut String, case: usize) {
    let _ = writeln!(script, "nft -f $d/old || echo 'FAIL {case}: reload'");
    let _ = writeln!(
        script,
        "show $d/again '{case} again'; same $d/old $d/again '{case} again'"
    );
}

fn assert_mirror(old: &Plan, new: &Plan) {
    let mut mirror = old.clone();
    mirror
        .apply(&selvage_policy::plan::diff(old, new))
        .expect("a diff that fits");
    assert_eq!(&mirror, new);
}

#[test]
fn the_shell_notices_what_nft_refuses() {
    let mut script = PRELUDE.to_owned();
    load(
        &mut script,
        "broken",
        "add rule inet selvage nowhere drop\n",
    );
    assert!(run(&script).contains("FAIL broken: load"));
}
