//! What a pod of the Kubernetes API costs: time to read it, and memory in the store.
//!
//! `cargo run --release -p selvage --example pods [PODS]`: reading and storing alone, then the whole source against an
//! API server of another process that has so many, and that changes 100 of them a second. Memory is what this process
//! grows by; processor time is this process's.

mod pod;
mod server;

use std::{
    error::Error,
    fs,
    process::{Child, Command, Stdio},
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use selvage::config::ApiConfig;
use selvage::objects::{Kind, Mode, Object, Pod, parse};
use selvage::source::ObjectEvent;
use selvage::source::api::{self, Patience, Settings};
use selvage::store::Store;
use serde_json::Value;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments.get(at).map_or(Ok(20_000), |n| n.parse());
    if arguments.get(1).is_some_and(|word| word == "serve") {
        return server::serve(number(2)?);
    }
    let pods = number(1)?;
    alone(pods)?;
    whole(pods)
}

fn alone(pods: u32) -> Result<(), Failure> {
    let texts: Vec<String> = (0..50).map(|n| pod::pod(n).to_string()).collect();
    let size: usize = texts.iter().map(String::len).sum::<usize>() / texts.len();
    println!("{size} bytes of JSON a pod, {pods} pods");

    let text = |n: u32| texts.get(n as usize % texts.len()).ok_or("none");
    let began = Instant::now();
    for n in 0..pods {
        Pod::from_json(text(n)?).ok_or("a pod that cannot be read")?;
    }
    report("read straight from the bytes", began, pods);
    let began = Instant::now();
    let slow = (pods / 10).max(1);
    for n in 0..slow {
        parse(&serde_json::from_str::<Value>(text(n)?)?, Mode::Api).map_err(|_| "refused")?;
    }
    report("read by way of a value, for comparison", began, slow);

    let mut store = Store::default();
    let before = resident()?;
    let began = Instant::now();
    for n in 0..pods {
        // Another pod each time: names, addresses and labels of its own.
        let text = text(n)?
            .replace("web-7c9f8b6d54-x0", &format!("web-7c9f8b6d54-x{n}"))
            .replace(
                "10.244.0.7",
                &format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
            );
        let pod = Pod::from_json(&text).ok_or("a pod that cannot be read")?;
        store.apply([ObjectEvent::Applied(Object::Pod(pod.into()))]);
    }
    report("read and stored, with making it up", began, pods);
    let grown = resident()?.saturating_sub(before);
    println!(
        "{:>8} bytes a pod in the store ({} pods)",
        grown / u64::from(pods),
        store.count(Kind::Pod)
    );
    Ok(())
}

/// How long churn is looked at.
const CHURN: Duration = Duration::from_secs(20);

fn whole(pods: u32) -> Result<(), Failure> {
    let server = Server::start(pods)?;
    let folder = std::env::temp_dir().join(format!("selvage-pods-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let kubeconfig = folder.join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    let settings = Settings {
        pulse: selvage_bgp::Pulse::new("kubernetes"),
        api: ApiConfig {
            kubeconfig: vec![kubeconfig],
            servers: Vec::new(),
        },
        account: folder.clone(),
        node: "node-1".into(),
        state_dir: folder.clone(),
        all_pods: true,
        bgp: true,
        pods: None,
        patience: Patience::default(),
    };
    let (before, began, busy) = (resident()?, Instant::now(), processor()?);
    let (sender, events) = channel();
    let sink = Box::new(move |batch| sender.send(batch).is_ok());
    let source = api::spawn(&settings, sink, Box::new(|_, _| {}))?;
    let mut store = Store::default();
    let mut peak = 0;
    while !store.synced() {
        store.apply(events.recv_timeout(Duration::from_secs(120))?);
        peak = peak.max(resident()?);
    }
    println!(
        "the whole source: {} pods after {:.2} s, {:.2} s of processor time",
        store.count(Kind::Pod),
        began.elapsed().as_secs_f64(),
        processor()? - busy,
    );
    println!(
        "{:>8} MiB more at the peak, {} MiB then",
        peak.saturating_sub(before) >> 20,
        resident()?.saturating_sub(before) >> 20
    );
    let (began, busy, mut batches) = (Instant::now(), processor()?, 0u32);
    while let Some(left) = CHURN.checked_sub(began.elapsed()) {
        if let Ok(batch) = events.recv_timeout(left) {
            store.apply(batch);
            batches += 1;
        }
    }
    let part = (processor()? - busy) / began.elapsed().as_secs_f64();
    println!(
        "{:>8.2} % of a core at 100 changes a second ({batches} batches)",
        part * 100.0
    );
    drop(source);
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// The API server, in a process of its own.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(pods: u32) -> Result<Server, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", &pods.to_string()])
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut address = String::new();
        let output = child.stdout.take().ok_or("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut address)?;
        Ok(Server {
            child,
            address: address.trim().to_owned(),
        })
    }

    fn kubeconfig(&self) -> String {
        format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
            self.address
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time of this process.
fn processor() -> Result<f64, Failure> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let fields = text.rsplit(')').next().ok_or("stat")?.split_whitespace();
    let times: Vec<f64> = fields
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(times.iter().sum::<f64>() / 100.0)
}

fn report(what: &str, began: Instant, times: u32) {
    let each = began.elapsed().as_secs_f64() * 1e6 / f64::from(times);
    println!("{each:>8.1} µs a pod {what}");
}

fn resident() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).ok_or("statm")?.parse()?;
    Ok(pages * 4096)
}
