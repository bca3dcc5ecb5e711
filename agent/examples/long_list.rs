//! What a long list of blocks costs the kernel: the whole list, its longest transaction, and one for a pod beside it. What
//! it costs before that is shown by `cargo run --release -p selvage-policy --example blocks`.
//!
//! `unshare -rn cargo run --release -p selvage --example long_list [BLOCKS]`: it writes into the network namespace in
//! which it runs, so give it one of its own.

use std::{
    error::Error,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use selvage::kernel::nft::NftTable;
use selvage_policy::{
    Change, Compiler, Config,
    api::NetworkPolicySpec,
    lower,
    model::{LocalPod, Phase, PodFact, PodKey, PodRef, PolicyKey},
};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let blocks: u32 = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    let mut compiler = Compiler::new(Config::default());
    for n in 0..30 {
        pod(n)?
            .into_iter()
            .for_each(|change| compiler.apply(change));
    }
    let mut table = NftTable::open()?;
    table.load(compiler.take_plan().1)?;
    for round in 0..3 {
        let peers: Vec<_> = (0..blocks)
            .map(|n| {
                let cidr = Ipv4Addr::from(0xac10_0000 + 8 * (n + round));
                format!(r#"{{"ipBlock":{{"cidr":"{cidr}/30"}}}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"podSelector":{{}},"ingress":[{{"from":[{}]}}]}}"#,
            peers.join(",")
        );
        let spec: NetworkPolicySpec = serde_json::from_str(&text)?;
        let policy = lower(PolicyKey::new("ns", "p"), &spec)?;
        compiler.apply(Change::Policy(Arc::new(policy)));
        let deltas: Vec<_> = std::iter::from_fn(|| compiler.take_delta()).collect();
        let (start, mut longest) = (Instant::now(), Duration::ZERO);
        for delta in &deltas {
            let start = Instant::now();
            table.apply(&delta.ops)?;
            longest = longest.max(start.elapsed());
        }
        let applied = start.elapsed();
        pod(100 + round)?
            .into_iter()
            .for_each(|change| compiler.apply(change));
        let delta = compiler.take_delta().ok_or("no change")?;
        let start = Instant::now();
        table.apply(&delta.ops)?;
        println!(
            "{blocks} blocks in the kernel after {applied:.1?} by {} transactions, \
             the longest {longest:.1?}; then a pod {:.1?}",
            deltas.len(),
            start.elapsed()
        );
    }
    Ok(())
}

fn pod(n: u32) -> Result<[Change; 2], Failure> {
    let key = PodKey::new("ns", format!("pod-{n}"));
    let addresses = vec![Ipv4Addr::from(0x0a00_0001 + n).into()];
    let fact = PodFact {
        uid: format!("uid-{n}").into(),
        key: key.clone(),
        labels: [("app", "a")].into(),
        ips: addresses.clone().into(),
        node: None,
        host_network: false,
        phase: Phase::Live,
        ports: [].into(),
        created: 0,
    };
    let local = LocalPod {
        ifname: format!("sv{n}").parse()?,
        ifindex: n,
        addresses,
        pod: Some(PodRef { key, uid: None }),
    };
    Ok([Change::Pod(Arc::new(fact)), Change::Local(local)])
}
