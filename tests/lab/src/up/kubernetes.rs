//! `selvage-lab kubernetes up`: a real cluster on one machine, for as long as this runs.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use selvage_lab::Lab;
use selvage_lab::kubernetes::{
    ClusterSettings, KubeProxy, KubernetesCluster, PATIENCE, Programs, User,
};

use super::terminal::{Terminal, seconds};
use super::{outside, tour};

/// What kube-proxy writes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Nftables,
    Iptables,
    None,
}

/// What to bring up.
#[derive(Args, Clone, Debug)]
pub(super) struct Wanted {
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// What kube-proxy writes its rules with.
    #[arg(long, value_enum, default_value_t = Mode::Nftables, value_name = "MODE")]
    kube_proxy: Mode,
    /// With a BIRD top-of-rack router of this AS, for nodes in AS 64512.
    #[arg(long, value_name = "ASN")]
    router: Option<u32>,
    /// An image archive that every node has, of Docker's kind or OCI's.
    #[arg(long = "image", value_name = "ARCHIVE")]
    images: Vec<PathBuf>,
    /// Manifests to apply, in this order: a folder (a kustomization if it is one) or a file.
    #[arg(long, value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// Pod networking by the reference plugins of this folder (Debian: /usr/lib/cni), instead of by manifests.
    #[arg(long, value_name = "FOLDER")]
    reference_plugins: Option<PathBuf>,
    /// IPv6 comes first everywhere, IPv4 second.
    #[arg(long)]
    ipv6_first: bool,
    /// Plain text, as with NO_COLOR set.
    #[arg(long)]
    pub(super) no_color: bool,
}

/// A cluster that stays.
#[derive(Args, Clone, Debug)]
pub struct Up {
    #[command(flatten)]
    wanted: Wanted,
    /// Where the API server listens on this machine; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Opens the demo's shop from this folder of manifests and shows who reaches whom; needs the router.
    #[arg(long, requires = "router", value_name = "FOLDER")]
    tour: Option<PathBuf>,
    /// End once all is up and shown; the exit code says whether it was as expected.
    #[arg(long)]
    check: bool,
}

/// A cluster for one program.
#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    wanted: Wanted,
    /// The program and its arguments. It finds `kubectl` in PATH and its way by KUBECONFIG.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// What the process outside adds.
#[derive(Args, Clone, Debug)]
pub struct Inside {
    #[command(flatten)]
    up: Up,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    port: u16,
}

impl Wanted {
    /// Says what is missing before anything is made.
    pub(super) fn check(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!("kubelets need root: run it with sudo");
        }
        Programs::of_cluster()?;
        for path in self.images.iter().chain(&self.manifests) {
            if !path.exists() {
                bail!("there is no {}", path.display());
            }
        }
        if self.manifests.is_empty() && self.reference_plugins.is_none() {
            bail!("pods need a network: --manifests PATH, or --reference-plugins /usr/lib/cni");
        }
        Ok(())
    }
}

/// Outside of any sandbox: stays for the machine's `kubectl`, and has the cluster brought up in one.
///
/// # Errors
/// When something is missing, before anything is made.
pub fn up(up: &Up) -> Result<ExitCode> {
    up.wanted.check()?;
    let mut words: Vec<String> = vec!["kubernetes".into(), "inside".into()];
    words.extend(std::env::args().skip(3));
    outside::stay(up.listen, &words)
}

/// In the sandbox.
///
/// # Errors
/// When a part does not come up.
pub fn inside(inside: &Inside) -> Result<ExitCode> {
    let Inside { up, folder, port } = inside;
    let terminal = Terminal::new(up.wanted.no_color);
    let lab = Lab::new("kubernetes")?;
    let start = Instant::now();
    let mut cluster = start_nodes(&terminal, &lab, &up.wanted)?;
    // From here on somebody may look for himself.
    let outside = SocketAddr::new(up.listen.ip(), *port);
    let kubeconfig = folder.join("kubeconfig");
    let control = cluster.control();
    control.write_kubeconfig(&kubeconfig, outside, &User::admin())?;
    outside::give(&kubeconfig)?;
    outside::serve(folder, control.netns(), control.local())?;
    furnish(&terminal, &cluster, &up.wanted)?;
    terminal.done(&format!("up after {}", seconds(start.elapsed())));
    if let Some(shop) = &up.tour {
        match tour::run(&terminal, &mut cluster, shop)? {
            true => terminal.done(&format!(
                "all as expected, {} in all",
                seconds(start.elapsed())
            )),
            false if up.check => return Ok(ExitCode::FAILURE),
            false => terminal.failed("not all was as expected"),
        }
    }
    if up.check {
        return Ok(ExitCode::SUCCESS);
    }
    explain(&terminal, &cluster, &kubeconfig);
    // The process outside ends this one.
    loop {
        thread::park();
    }
}

/// In the sandbox: a cluster, and a program that is run in the control plane's namespace.
///
/// # Errors
/// When a part does not come up, or the program is not there.
pub fn run(run: &Run) -> Result<ExitCode> {
    run.wanted.check()?;
    let terminal = Terminal::new(run.wanted.no_color);
    let lab = Lab::new("kubernetes")?;
    let cluster = bring_up(&terminal, &lab, &run.wanted)?;
    let (program, rest) = run.command.split_first().context("no program")?;
    let programs = cluster.programs().folder().display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("KUBECONFIG", cluster.kubectl().kubeconfig())
        .env("PATH", format!("{programs}:{path}"));
    let status = cluster.control().netns().run(|| {
        command
            .status()
            .with_context(|| format!("cannot start {program}"))
    })?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Brings a cluster up, a line for each step.
///
/// # Errors
/// When a part does not come up.
pub(super) fn bring_up(
    terminal: &Terminal,
    lab: &Lab,
    wanted: &Wanted,
) -> Result<KubernetesCluster> {
    let start = Instant::now();
    let cluster = start_nodes(terminal, lab, wanted)?;
    furnish(terminal, &cluster, wanted)?;
    terminal.done(&format!("up after {}", seconds(start.elapsed())));
    Ok(cluster)
}

fn start_nodes(terminal: &Terminal, lab: &Lab, wanted: &Wanted) -> Result<KubernetesCluster> {
    let mut settings = ClusterSettings::new(wanted.nodes);
    settings.kube_proxy = match wanted.kube_proxy {
        Mode::Nftables => Some(KubeProxy::Nftables),
        Mode::Iptables => Some(KubeProxy::Iptables),
        Mode::None => None,
    };
    settings.router = wanted.router.map(|asn| (asn, 64512));
    settings.images.clone_from(&wanted.images);
    if wanted.ipv6_first {
        settings.reverse_families();
    }
    terminal.section("a Kubernetes cluster in namespaces");
    let mut cluster = terminal.step("control plane", || {
        let cluster = KubernetesCluster::new(lab, settings)?;
        Ok((
            cluster,
            "etcd, API server, controllers, scheduler".to_owned(),
        ))
    })?;
    if let Some(asn) = wanted.router {
        terminal.step("router tor", || {
            cluster.start_router()?;
            let addresses = join(&cluster.router_addresses());
            Ok(((), format!("BIRD, AS {asn}, {addresses}")))
        })?;
    }
    let names: Vec<String> = (1..=wanted.nodes).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    terminal.step(&format!("nodes {}", names.join(" ")), || {
        cluster.add_nodes(&names)?;
        let proxy = with_proxy(wanted.kube_proxy);
        Ok(((), format!("containerd, kubelet{proxy}")))
    })?;
    Ok(cluster)
}

/// Pod networking, by manifests or by plugins.
fn furnish(terminal: &Terminal, cluster: &KubernetesCluster, wanted: &Wanted) -> Result<()> {
    for path in &wanted.manifests {
        terminal.step(&format!("apply {}", name_of(path)), || {
            let text = cluster.kubectl().apply_path(path)?;
            Ok(((), format!("{} objects", text.lines().count())))
        })?;
    }
    if let Some(plugins) = &wanted.reference_plugins {
        cluster.use_reference_plugins(plugins)?;
    }
    terminal.step("nodes Ready", || {
        match cluster.agent_pod("n1") {
            Ok(_) => cluster.wait_selvage(PATIENCE)?,
            Err(_) => cluster.wait_ready(PATIENCE)?,
        }
        let names: Vec<&str> = cluster.nodes().keys().map(String::as_str).collect();
        Ok(((), names.join(" ")))
    })
}

fn with_proxy(mode: Mode) -> &'static str {
    match mode {
        Mode::Nftables => ", kube-proxy (nftables)",
        Mode::Iptables => ", kube-proxy (iptables)",
        Mode::None => "",
    }
}

fn explain(terminal: &Terminal, cluster: &KubernetesCluster, kubeconfig: &Path) {
    terminal.section("from any shell of this machine");
    terminal.line(&format!("  export KUBECONFIG={}", kubeconfig.display()));
    terminal.line(&format!(
        "  export PATH={}:$PATH",
        cluster.programs().folder().display()
    ));
    terminal.line("  kubectl get nodes,pods -A -o wide");
    if cluster.agent_pod("n1").is_ok() {
        terminal.line("  kubectl get bgppeers,bgpnodestatuses");
        terminal.line("  kubectl -n selvage-system exec daemonset/selvage -- /selvage status");
    }
    terminal.line("");
    terminal.line("Ctrl-C here removes everything.");
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn join(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(" ")
}
