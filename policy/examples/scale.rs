//! A big cluster seen from one node: how long the plan takes, how large it is, and what a change costs.
//!
//! `cargo run --release -p selvage-policy --example scale [PODS] [POLICIES] [LOCAL]`

use selvage_policy::api::NetworkPolicySpec;
use selvage_policy::model::{
    Labels, LocalPod, NamespaceFact, Phase, PodFact, PodKey, PodRef, PolicyKey,
};
use selvage_policy::plan::Op;
use selvage_policy::{Change, Compiler, Config, lower};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u32>());
    let mut arg = |default| args.next().unwrap_or(Ok(default));
    let (pods, policies, local) = (arg(150_000)?, arg(10_000)?, arg(110)?);
    let namespaces = (pods / 75).max(1);

    let facts: Vec<_> = (0..pods).map(|n| pod(n, namespaces, n % 10)).collect();
    println!("{pods} pods in {namespaces} namespaces, {policies} policies, {local} pods here");
    println!("facts alone         {:>10} KiB resident", resident()?);

    let mut compiler = Compiler::new(Config::default());
    let start = Instant::now();
    for n in 0..namespaces {
        let team = format!("t{}", n % 20);
        let labels = Labels::from([
            ("kubernetes.io/metadata.name", namespace(n).as_str()),
            ("team", &team),
        ]);
        compiler.apply(Change::Namespace(NamespaceFact {
            name: namespace(n).into(),
            labels,
        }));
    }
    facts
        .iter()
        .cloned()
        .for_each(|fact| compiler.apply(Change::Pod(fact)));
    println!(
        "pods told           {:>10.1?}, {} KiB resident",
        start.elapsed(),
        resident()?
    );
    let start = Instant::now();
    for n in 0..policies {
        let key = PolicyKey::new(namespace(n % namespaces), format!("p{n}"));
        compiler.apply(Change::Policy(Arc::new(lower(key, &spec(n)?)?)));
    }
    println!("policies told       {:>10.1?}", start.elapsed());
    let start = Instant::now();
    for fact in facts.iter().take(local as usize) {
        compiler.apply(attachment(fact)?);
    }
    let ops = compiler
        .take_delta()
        .map(|delta| delta.ops)
        .unwrap_or_default();
    let elements = ops.iter().filter(|op| op.is_element()).count();
    println!(
        "first plan          {:>10.1?}, {} operations, {elements} of them elements",
        start.elapsed(),
        ops.len()
    );
    let plan = compiler.plan();
    let rules: usize = plan.chains.values().map(|chain| chain.rules.len()).sum();
    println!(
        "                    {} sets, {} chains, {rules} rules, {} KiB resident",
        plan.sets.len(),
        plan.chains.len(),
        resident()?
    );
    let start = Instant::now();
    let full = compiler.full();
    println!(
        "full build          {:>10.1?}, equal: {}",
        start.elapsed(),
        full == *compiler.plan()
    );
    drop(full);

    churn("a remote pod relabelled", 2000, &mut compiler, |n| {
        Change::Pod(pod(local + n, namespaces, n % 7))
    });
    churn("a remote pod gone", 2000, &mut compiler, |n| {
        Change::PodGone(pod(local + n, namespaces, 0).key.clone())
    });
    churn("a local pod relabelled", 100, &mut compiler, |n| {
        Change::Pod(pod(n % local, namespaces, 3 + n % 2))
    });
    let spec = spec(1)?;
    churn("a local policy changed", 100, &mut compiler, |n| {
        let key = PolicyKey::new(namespace(n % namespaces), "p-new");
        let mut spec = spec.clone();
        spec.pod_selector
            .match_labels
            .insert("app".into(), format!("a{}", n % 10));
        lower(key.clone(), &spec).map_or(Change::PolicyGone(key), |policy| {
            Change::Policy(Arc::new(policy))
        })
    });
    Ok(())
}

fn churn(what: &str, times: u32, compiler: &mut Compiler, change: impl Fn(u32) -> Change) {
    let (mut elements, mut others) = (0, 0);
    let changes: Vec<_> = (0..times).map(change).collect();
    let start = Instant::now();
    for change in changes {
        compiler.apply(change);
        let ops = compiler
            .take_delta()
            .map(|delta| delta.ops)
            .unwrap_or_default();
        elements += ops.iter().filter(|op| op.is_element()).count();
        others += ops.iter().filter(|op| !Op::is_element(op)).count();
    }
    let each = start.elapsed() / times;
    println!("{what:<24}{each:>10.1?} each, {elements} elements and {others} others for {times}");
}

fn namespace(n: u32) -> String {
    format!("ns{n}")
}

fn pod(n: u32, namespaces: u32, app: u32) -> Arc<PodFact> {
    // The first pods share few namespaces, as those of a node do.
    let home = if n < 200 { n % 40 } else { n } % namespaces;
    let labels = Labels::from([
        ("app", format!("a{app}").as_str()),
        ("tier", ["front", "back"][(n / 3 + app) as usize % 2]),
    ]);
    Arc::new(PodFact {
        uid: format!("uid-{n}").into(),
        key: PodKey::new(namespace(home), format!("pod-{n}")),
        labels,
        ips: addresses(n).into(),
        node: None,
        host_network: false,
        phase: Phase::Live,
        ports: [].into(),
        created: n,
    })
}

fn addresses(n: u32) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(n + 1));
    vec![Ipv4Addr::from(0x0a00_0001 + n).into(), v6.into()]
}

fn attachment(fact: &PodFact) -> Result<Change, Failure> {
    let pod = Some(PodRef {
        key: fact.key.clone(),
        uid: Some(fact.uid.clone()),
    });
    let ifname = format!("sv{}", fact.created).parse()?;
    Ok(Change::Local(LocalPod {
        ifname,
        ifindex: 0,
        addresses: fact.ips.iter().collect(),
        pod,
    }))
}

fn spec(n: u32) -> Result<NetworkPolicySpec, Failure> {
    let app = n % 10;
    let text = match n % 4 {
        0 => r#"{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"podSelector":{}}]}]}"#.to_owned(),
        1 => format!(
            r#"{{"podSelector":{{"matchLabels":{{"app":"a{app}"}}}},"ingress":[{{"ports":[{{"port":8080}},{{"port":9090}}],
            "from":[{{"namespaceSelector":{{"matchLabels":{{"team":"t{}"}}}},"podSelector":{{"matchLabels":{{"tier":"front"}}}}}}]}}]}}"#,
            n % 20
        ),
        2 => r#"{"podSelector":{"matchLabels":{"tier":"back"}},"policyTypes":["Egress"],"egress":[
            {"to":[{"namespaceSelector":{}}],"ports":[{"protocol":"UDP","port":53}]},
            {"to":[{"ipBlock":{"cidr":"0.0.0.0/0","except":["10.0.0.0/8","192.168.0.0/16","172.16.0.0/12"]}}]}]}"#
            .to_owned(),
        _ => r#"{"podSelector":{"matchLabels":{"tier":"front"}},"ingress":[{"ports":[{"port":80},{"port":443}]}]}"#.to_owned(),
    };
    Ok(serde_json::from_str(&text)?)
}

/// Resident memory of this process in KiB.
fn resident() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
