//! Long lists of blocks: what they cost to lower and to plan, and how that grows.
//!
//! `cargo run --release -p selvage-policy --example blocks [LOCAL]`

use selvage_policy::api::NetworkPolicySpec;
use selvage_policy::model::{LocalPod, Phase, PodFact, PodKey, PodRef, PolicyKey};
use selvage_policy::{Change, Compiler, Config, lower};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let local: u32 = std::env::args().nth(1).map_or(Ok(110), |n| n.parse())?;
    for (shape, spec) in [
        ("one rule", one_rule as fn(u32) -> String),
        ("one rule, with exceptions", with_exceptions),
        ("a rule for each block", a_rule_each),
    ] {
        for blocks in [1_000, 8_000, 20_000] {
            let text = spec(blocks);
            let start = Instant::now();
            let raw: NetworkPolicySpec = serde_json::from_str(&text)?;
            let parsed = start.elapsed();
            let start = Instant::now();
            let policy = lower(PolicyKey::new("ns", "p"), &raw)?;
            let lowered = start.elapsed();
            let mut compiler = Compiler::new(Config::default());
            for n in 0..local {
                for change in pod(n)? {
                    compiler.apply(change);
                }
            }
            compiler.take_delta();
            let start = Instant::now();
            compiler.apply(Change::Policy(Arc::new(policy)));
            let ops = compiler.take_delta().map_or(0, |delta| delta.ops.len());
            println!(
                "{blocks:>6} blocks, {shape:<26} parsed {parsed:>8.1?}  lowered {lowered:>8.1?}  planned for {local} pods \
                 {:>8.1?}  {ops} operations",
                start.elapsed()
            );
        }
    }
    Ok(())
}

/// Every second /30 of 172.16.0.0/12: no two touch.
fn block(n: u32) -> String {
    format!("{}/30", Ipv4Addr::from(0xac10_0000 + 8 * n))
}

fn policy(rules: &str) -> String {
    format!(r#"{{"podSelector":{{}},"ingress":[{rules}]}}"#)
}

fn one_rule(blocks: u32) -> String {
    let peers: Vec<_> = (0..blocks)
        .map(|n| format!(r#"{{"ipBlock":{{"cidr":"{}"}}}}"#, block(n)))
        .collect();
    policy(&format!(r#"{{"from":[{}]}}"#, peers.join(",")))
}

fn with_exceptions(blocks: u32) -> String {
    let mut holes = String::new();
    for n in 0..blocks {
        // Writing to a String cannot fail.
        let _ = write!(holes, r#"{}"{}""#, if n == 0 { "" } else { "," }, block(n));
    }
    policy(&format!(
        r#"{{"from":[{{"ipBlock":{{"cidr":"0.0.0.0/0","except":[{holes}]}}}}]}}"#
    ))
}

fn a_rule_each(blocks: u32) -> String {
    let rules: Vec<_> = (0..blocks)
        .map(|n| {
            format!(
                r#"{{"from":[{{"ipBlock":{{"cidr":"{}"}}}}],"ports":[{{"port":80}}]}}"#,
                block(n)
            )
        })
        .collect();
    policy(&rules.join(","))
}

fn pod(n: u32) -> Result<[Change; 2], Failure> {
    let key = PodKey::new("ns", format!("pod-{n}"));
    let addresses = vec![IpAddr::from(Ipv4Addr::from(0x0a00_0001 + n))];
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
