//! What the kernel's part of a policy change costs: the raw figure of bench B7.
//!
//! `unshare -rn cargo run --release -p selvage --example policy [PODS]`: it writes into the network
//! namespace in which it runs, so give it one of its own. `PODS` remote pods are allowed to reach
//! 30 local ones; then pods come and go, one transaction each.

use std::{error::Error, net::IpAddr, sync::Arc, time::Instant};

use selvage::kernel::nft::{Loaded, NftTable};
use selvage_policy::{
    Change, Compiler, Config,
    api::NetworkPolicySpec,
    lower,
    model::{LocalPod, NamespaceFact, Phase, PodFact, PodKey, PodRef, PolicyKey},
    plan::Plan,
};

type Failure = Box<dyn Error>;

const LOCAL: u32 = 30;
const CHANGES: u32 = 2000;
const SPEC: &str = r#"{"podSelector":{"matchLabels":{"app":"here"}},"policyTypes":["Ingress"],
    "ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"there"}}}],"ports":[{"port":80},{"port":443}]}]}"#;

fn main() -> Result<(), Failure> {
    let pods: u32 = std::env::args().nth(1).map_or(Ok(50_000), |n| n.parse())?;
    let mut compiler = Compiler::new(Config::default());
    compiler.apply(Change::Namespace(NamespaceFact {
        name: "ns".into(),
        labels: [("kubernetes.io/metadata.name", "ns")].into(),
    }));
    let spec: NetworkPolicySpec = serde_json::from_str(SPEC)?;
    compiler.apply(Change::Policy(Arc::new(lower(
        PolicyKey::new("ns", "p"),
        &spec,
    )?)));
    for n in 0..pods {
        compiler.apply(pod(n, if n < LOCAL { "here" } else { "there" }));
    }
    for n in 0..LOCAL {
        compiler.apply(local(n)?);
    }
    let mut table = NftTable::open()?;
    let (_, plan) = compiler.take_plan();
    let elements: usize = plan.sets.values().map(|set| set.elements.len()).sum();
    println!("{pods} pods, {elements} elements");
    timed("first load", 1, |_| {
        load(&mut table, plan, Loaded::Replaced)
    })?;
    timed("compared, as it is", 1, |_| {
        load(&mut table, plan, Loaded::Unchanged)
    })?;
    let mut change = |what, change: &dyn Fn(u32) -> Change| {
        let mut deltas = Vec::new();
        for n in 0..CHANGES {
            compiler.apply(change(n));
            deltas.extend(std::iter::from_fn(|| compiler.take_delta()));
        }
        timed(what, deltas.len(), |n| match deltas.get(n) {
            Some(delta) => Ok(table.apply(&delta.ops)?),
            None => Ok(()),
        })
    };
    change("a remote pod gone", &|n| {
        Change::PodGone(PodKey::new("ns", format!("pod-{}", LOCAL + n)))
    })?;
    change("a remote pod new", &|n| pod(LOCAL + n, "there"))?;
    change("a label flipped", &|n| {
        pod(LOCAL + n / 2, ["else", "there"][n as usize % 2])
    })?;
    change("a local pod's label", &|n| {
        pod(n / 2 % LOCAL, ["else", "here"][n as usize % 2])
    })
}

fn load(table: &mut NftTable, plan: &Plan, expected: Loaded) -> Result<(), Failure> {
    match table.load(plan)? {
        loaded if loaded == expected => Ok(()),
        loaded => Err(format!("{loaded:?}").into()),
    }
}

fn pod(n: u32, app: &str) -> Change {
    Change::Pod(Arc::new(PodFact {
        uid: format!("uid-{n}").into(),
        key: PodKey::new("ns", format!("pod-{n}")),
        labels: [("app", app)].into(),
        ips: vec![address(n)].into(),
        node: None,
        host_network: false,
        phase: Phase::Live,
        ports: [].into(),
        created: 0,
    }))
}

fn local(n: u32) -> Result<Change, Failure> {
    Ok(Change::Local(LocalPod {
        ifname: format!("sv{n}").parse()?,
        ifindex: n,
        addresses: vec![address(n)],
        pod: Some(PodRef {
            key: PodKey::new("ns", format!("pod-{n}")),
            uid: Some(format!("uid-{n}").into()),
        }),
    }))
}

fn address(n: u32) -> IpAddr {
    std::net::Ipv4Addr::from((10 << 24) + n + 1).into()
}

fn timed(
    what: &str,
    times: usize,
    mut run: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut each = Vec::with_capacity(times);
    for n in 0..times {
        let start = Instant::now();
        run(n)?;
        each.push(start.elapsed().as_secs_f64() * 1e6);
    }
    each.sort_by(f64::total_cmp);
    let at = |percent: usize| {
        each.get(each.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{what:<24}{times:>6} × p50 {:>10.1} µs  p99 {:>10.1} µs",
        at(50),
        at(99)
    );
    Ok(())
}
