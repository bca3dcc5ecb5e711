//! Plans in the real nf_tables: what deltas make is what a fresh load makes, and what others do
//! to our table is undone.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use selvage::{
    inbox::{Inbox, Sender},
    kernel::{
        Shutdown, host_ports,
        nft::{Loaded, NftEvent, NftTable, NftWork, Settings, Want, plan::WholeTable, spawn},
    },
};
use selvage_policy::{
    Change, Compiler, Config,
    api::NetworkPolicySpec,
    lower,
    model::{LocalPod, NamespaceFact, Phase, PodFact, PodKey, PodRef, PolicyKey},
    plan::{Delta, Gen, Plan, text},
};

use super::{in_netns, sh, until};

const SOON: Duration = Duration::from_secs(20);

/// Policies of every shape that the compiler knows.
const SPECS: [&str; 8] = [
    r#"{"podSelector":{}}"#,
    r#"{"podSelector":{"matchLabels":{"app":"a"}},"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"b"}}}],"ports":[{"port":80},{"protocol":"UDP","port":53}]}]}"#,
    r#"{"podSelector":{"matchLabels":{"app":"a"}},"policyTypes":["Ingress","Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}]}]}"#,
    r#"{"podSelector":{"matchLabels":{"app":"b"}},"ingress":[{"from":[{"namespaceSelector":{}}]}]}"#,
    r#"{"podSelector":{"matchLabels":{"app":"b"}},"ingress":[{"ports":[{"port":8000,"endPort":8999}]}]}"#,
    r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"ports":[{"protocol":"UDP","port":53}]}]}"#,
    r#"{"podSelector":{"matchLabels":{"app":"a"}},"ingress":[{"from":[{"ipBlock":{"cidr":"fd00::/8"}},{"podSelector":{}}],"ports":[{"port":443},{"port":1000,"endPort":2000}]}]}"#,
    r#"{"podSelector":{},"ingress":[{}]}"#,
];

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn compiler() -> Compiler {
    let mut compiler = Compiler::new(Config::default());
    compiler.apply(Change::Namespace(NamespaceFact {
        name: "ns".into(),
        labels: [("kubernetes.io/metadata.name", "ns")].into(),
    }));
    compiler
}

fn pod(n: u64, app: &str) -> Change {
    Change::Pod(Arc::new(PodFact {
        uid: format!("uid-{n}").into(),
        key: PodKey::new("ns", format!("pod-{n}")),
        labels: [("app", app)].into(),
        ips: addresses(n).into(),
        node: None,
        host_network: false,
        phase: Phase::Live,
        ports: [].into(),
        created: 0,
    }))
}

fn addresses(n: u64) -> Vec<std::net::IpAddr> {
    [
        format!("10.244.0.{}", n + 1),
        format!("fd00:244::{:x}", n + 1),
    ]
    .map(|addr| addr.parse().unwrap())
    .to_vec()
}

fn local(n: u64) -> Change {
    Change::Local(LocalPod {
        ifname: ifname(n).parse().unwrap(),
        ifindex: 100 + n as u32,
        addresses: addresses(n),
        pod: Some(PodRef {
            key: PodKey::new("ns", format!("pod-{n}")),
            uid: Some(format!("uid-{n}").into()),
        }),
    })
}

fn ifname(n: u64) -> String {
    format!("sv{n}")
}

fn policy(n: u64, spec: u64) -> Change {
    let key = PolicyKey::new("ns", format!("policy-{n}"));
    let spec: NetworkPolicySpec = serde_json::from_str(SPECS[spec as usize % SPECS.len()]).unwrap();
    Change::Policy(Arc::new(lower(key, &spec).unwrap()))
}

/// Pods 0 to 5 are here, 6 to 11 elsewhere.
fn step(dice: &mut Dice) -> Change {
    match dice.below(8) {
        0 | 1 => policy(dice.below(4), dice.below(8)),
        2 => Change::PolicyGone(PolicyKey::new("ns", format!("policy-{}", dice.below(4)))),
        3 => Change::PodGone(PodKey::new("ns", format!("pod-{}", dice.below(12)))),
        4 => local(dice.below(6)),
        5 => Change::LocalGone(ifname(dice.below(6)).parse().unwrap()),
        _ => pod(dice.below(12), ["a", "b", "c"][dice.below(3) as usize]),
    }
}

fn listed() -> String {
    sorted(&sh("nft list table inet selvage"))
}

/// Elements and sets come in the kernel's order: compared as words.
fn sorted(listing: &str) -> String {
    let mut words: Vec<&str> = listing.split([' ', ',', '\n', '\t']).collect();
    words.sort_unstable();
    words.join(" ")
}

#[test]
fn deltas_make_what_a_fresh_load_and_what_nft_itself_make() {
    let mut dice = Dice(1);
    for _ in 0..6 {
        let mut compiler = compiler();
        in_netns(|| {
            let mut table = NftTable::open().unwrap();
            let (_, plan) = compiler.take_plan();
            assert_eq!(table.load(plan).unwrap(), Loaded::Replaced);
            for _ in 0..30 {
                for _ in 0..dice.below(6) + 1 {
                    compiler.apply(step(&mut dice));
                }
                while let Some(delta) = compiler.take_delta() {
                    table.apply(&delta.ops).unwrap();
                }
            }
            let by_deltas = listed();
            let plan = compiler.plan().clone();
            // Read back, it is the plan: nothing is written.
            let mut another = NftTable::open().unwrap();
            assert_eq!(another.load(&plan).unwrap(), Loaded::Unchanged);
            let by_plan = fresh(|| {
                assert_eq!(
                    NftTable::open().unwrap().load(&plan).unwrap(),
                    Loaded::Replaced
                );
            });
            assert_eq!(by_plan, by_deltas);
            let script = text::plan(&plan);
            let by_nft = fresh(|| {
                sh(&format!("nft -f - <<'END'\n{script}END\n"));
                // And what nft loaded is recognised, too.
                assert_eq!(
                    NftTable::open().unwrap().load(&plan).unwrap(),
                    Loaded::Unchanged
                );
            });
            assert_eq!(by_nft, by_deltas);
        });
    }
}

/// The table as it is listed in a namespace of its own.
fn fresh(load: impl FnOnce() + Send) -> String {
    let mut listing = String::new();
    in_netns(|| {
        load();
        listing = listed();
    });
    listing
}

/// As after a restart with other objects: the way to the plan is the difference, and base chains stay, in which packets
/// may be.
#[test]
fn another_plan_is_reached_without_replacing_base_chains() {
    let mut dice = Dice(7);
    let mut compiler = compiler();
    (0..6).for_each(|n| compiler.apply(local(n)));
    in_netns(|| {
        let mut handles = None;
        for round in 0..20 {
            for _ in 0..dice.below(12) + 1 {
                compiler.apply(step(&mut dice));
            }
            let plan = compiler.plan().clone();
            NftTable::open().unwrap().load(&plan).unwrap();
            let by_difference = listed();
            assert_eq!(
                NftTable::open().unwrap().load(&plan).unwrap(),
                Loaded::Unchanged
            );
            let by_plan = fresh(|| {
                NftTable::open().unwrap().load(&plan).unwrap();
            });
            assert_eq!(by_difference, by_plan, "round {round}");
            let now = sh("nft -a list chains | grep -E 'chain (forward|output|prerouting) '");
            assert_eq!(*handles.get_or_insert(now.clone()), now, "round {round}");
        }
        assert!(handles.is_some_and(|handles| handles.contains("handle")));
    });
}

/// As after an upgrade from a version with fewer base chains: the new one comes beside those in which packets are.
#[test]
fn a_base_chain_that_is_missing_is_added() {
    let plan = compiler().plan().clone();
    in_netns(|| {
        let chains = || sh("nft -a list chains | grep -E 'chain (forward|prerouting) '");
        NftTable::open().unwrap().load(&plan).unwrap();
        let before = chains();
        sh("nft delete chain inet selvage output");
        let mut table = NftTable::open().unwrap();
        assert_eq!(table.load(&plan).unwrap(), Loaded::Replaced);
        assert_eq!(chains(), before);
        assert!(listed().contains("output"));
        assert_eq!(table.load(&plan).unwrap(), Loaded::Unchanged);
    });
}

#[test]
fn every_difference_is_seen() {
    let mut compiler = compiler();
    (0..6).for_each(|n| compiler.apply(pod(n, ["a", "b"][n as usize % 2])));
    (0..3).for_each(|n| compiler.apply(local(n)));
    (1..7).for_each(|n| compiler.apply(policy(n, n)));
    let plan = compiler.plan().clone();
    in_netns(|| {
        let mut table = NftTable::open().unwrap();
        assert_eq!(table.load(&plan).unwrap(), Loaded::Replaced);
        let before = listed();
        let (set, element) = plan
            .sets
            .iter()
            .find_map(|(name, set)| {
                let plain = !set.def.interval && !set.def.verdicts;
                let key = set.elements.keys().next().filter(|_| plain)?;
                matches!(key, selvage_policy::plan::Key::Addr(_))
                    .then(|| (name, format!("{key:?}")))
            })
            .map(|(name, key)| {
                (
                    name.to_string(),
                    key["Addr(".len()..key.len() - 1].to_owned(),
                )
            })
            .unwrap();
        let chain = plan.chains.keys().next().unwrap();
        for damage in [
            "delete table inet selvage".to_owned(),
            "add chain inet selvage x".to_owned(),
            format!("add rule inet selvage {chain} accept"),
            format!("insert rule inet selvage {chain} accept"),
            format!("flush chain inet selvage {chain}"),
            format!("delete element inet selvage {set} {{ {element} }}"),
            "add set inet selvage x { type ipv4_addr; }".to_owned(),
            format!("flush set inet selvage {set}"),
        ] {
            sh(&format!("nft '{damage}'"));
            assert_eq!(table.load(&plan).unwrap(), Loaded::Replaced, "{damage}");
            assert_eq!(listed(), before, "{damage}");
            assert_eq!(table.load(&plan).unwrap(), Loaded::Unchanged, "{damage}");
        }
    });
}

#[test]
fn a_refused_delta_changes_nothing_and_is_named() {
    let mut compiler = compiler();
    compiler.apply(pod(0, "a"));
    compiler.apply(local(0));
    let plan = compiler.plan().clone();
    in_netns(|| {
        let mut table = NftTable::open().unwrap();
        table.load(&plan).unwrap();
        let before = listed();
        compiler.take_delta();
        compiler.apply(pod(1, "b"));
        compiler.apply(local(1));
        let delta = compiler.take_delta().unwrap();
        let mut ops = delta.ops.clone();
        ops.push(ops.last().unwrap().clone());
        let refused = table.apply(&ops).unwrap_err();
        assert_eq!(refused.error.errno(), Some(17), "{refused}");
        assert!(refused.op.is_some(), "{refused}");
        assert_eq!(listed(), before);
        table.apply(&delta.ops).unwrap();
    });
}

/// The thread `nft` in the calling thread's namespace.
pub(super) struct Thread {
    work: Sender<NftWork>,
    events: mpsc::Receiver<NftEvent>,
    handle: std::thread::JoinHandle<()>,
}

impl Thread {
    pub(super) fn start() -> Self {
        let (work, inbox) = Inbox::new().unwrap();
        let (sender, events) = mpsc::channel();
        let settings = Settings {
            shared: vec![host_ports::TABLE],
        };
        let handle = spawn(settings, inbox, move |event| drop(sender.send(event))).unwrap();
        Thread {
            work,
            events,
            handle,
        }
    }

    /// The next event that is no answer to [`Thread::keep`].
    pub(super) fn event(&self) -> NftEvent {
        loop {
            let event = self.events.recv_timeout(SOON).unwrap();
            if !matches!(event, NftEvent::Kept { .. }) {
                return event;
            }
        }
    }

    /// Has a table kept, and waits until the kernel has it.
    pub(super) fn keep(&self, number: u64, plan: WholeTable) {
        let table = plan.name.clone();
        self.work.send(NftWork::Keep(number, plan));
        let kept = NftEvent::Kept {
            table,
            number,
            refused: None,
        };
        while self.events.recv_timeout(SOON).unwrap() != kept {}
    }

    pub(super) fn end(self) {
        self.work.send(NftWork::Shutdown(Shutdown::Graceful));
        self.handle.join().unwrap();
    }

    fn plan(&self, generation: Gen, plan: &Plan) {
        self.work
            .send(NftWork::Plan(generation, Arc::new(plan.clone())));
    }
}

#[test]
fn the_thread_asks_for_the_plan_when_others_touch_the_table() {
    let mut compiler = compiler();
    compiler.apply(pod(0, "a"));
    compiler.apply(local(0));
    in_netns(|| {
        let thread = Thread::start();
        let (generation, plan) = compiler.take_plan();
        thread.plan(generation, plan);
        let applied = |generation, repaired| NftEvent::Applied {
            generation,
            repaired,
        };
        assert_eq!(thread.event(), applied(generation, false));

        compiler.apply(pod(1, "a"));
        compiler.apply(local(1));
        let delta = compiler.take_delta().unwrap();
        let generation = delta.to;
        thread.work.send(NftWork::Delta(delta));
        assert_eq!(thread.event(), applied(generation, false));
        let before = listed();

        for damage in ["nft flush ruleset", "nft add chain inet selvage x"] {
            sh(damage);
            let NftEvent::WantPlan(Want::Foreign { by }) = thread.event() else {
                panic!()
            };
            assert_eq!(by, "nft");
            // A delta that was under way meanwhile says nothing about a table that is damaged.
            let late = Delta {
                from: generation,
                to: Gen(generation.0 + 1),
                ops: vec![],
            };
            thread.work.send(NftWork::Delta(late));
            let (generation, plan) = compiler.take_plan();
            thread.plan(generation, plan);
            assert_eq!(thread.event(), applied(generation, true));
            assert_eq!(listed(), before);
        }
        // Other tables are none of our business.
        sh("nft add table inet other; nft delete table inet other; nft add table ip selvage");
        // Nor does a delta that does not follow change anything.
        let stray = Delta {
            from: Gen(1000),
            to: Gen(1001),
            ops: vec![],
        };
        thread.work.send(NftWork::Delta(stray));
        assert_eq!(thread.event(), NftEvent::WantPlan(Want::OutOfStep));
        let (generation, plan) = compiler.take_plan();
        thread.plan(generation, plan);
        assert_eq!(
            thread.event(),
            applied(generation, false),
            "compared, and left as it is"
        );

        thread.end();
        until("the table stays", || listed() == before);
    });
}

/// Whoever has the plan is busy: the table is closed meanwhile, and the plan is reached from there without replacing a
/// base chain.
#[test]
fn a_damaged_table_is_closed_while_its_plan_does_not_come() {
    let mut compiler = compiler();
    compiler.apply(pod(0, "a"));
    compiler.apply(local(0));
    compiler.apply(policy(0, 2));
    in_netns(|| {
        let thread = Thread::start();
        let (generation, plan) = compiler.take_plan();
        thread.plan(generation, plan);
        thread.event();
        let before = listed();
        let bare = compiler_without_pods();
        for damage in [
            "flush ruleset",
            "flush table inet selvage",
            "flush map inet selvage eg4",
        ] {
            sh(&format!("nft {damage}"));
            assert!(matches!(thread.event(), NftEvent::WantPlan(_)), "{damage}");
            until(damage, || {
                tables().contains("inet selvage\n") && listed() == bare
            });
            let handles = || sh("nft -a list chains | grep -E 'chain (forward|prerouting) '");
            let closed = handles();
            let (generation, plan) = compiler.take_plan();
            thread.plan(generation, plan);
            let applied = NftEvent::Applied {
                generation,
                repaired: true,
            };
            assert_eq!(thread.event(), applied, "{damage}");
            assert_eq!(listed(), before, "{damage}");
            assert_eq!(handles(), closed, "{damage}");
        }
        thread.end();
    });
}

/// The table of a node without pods.
fn compiler_without_pods() -> String {
    fresh(|| {
        let plan = Compiler::new(Config::default()).full();
        NftTable::open().unwrap().load(&plan).unwrap();
    })
}

fn tables() -> String {
    sh("nft list tables")
}

#[test]
fn a_table_of_another_writer_is_told_of_when_strangers_change_it() {
    in_netns(|| {
        let thread = Thread::start();
        // The name of a program is that of its file.
        sh(
            "cp $(command -v nft) /tmp/selvage-cni-$$ && mkdir /tmp/d-$$ && mv /tmp/selvage-cni-$$ /tmp/d-$$/selvage-cni; \
            /tmp/d-$$/selvage-cni add table inet selvage-cni; rm -r /tmp/d-$$; nft add chain inet selvage-cni x",
        );
        let damaged = NftEvent::Damaged {
            table: "selvage-cni",
            by: "nft".into(),
        };
        assert_eq!(thread.event(), damaged);
        thread.end();
    });
}
