//! `selvage-lab kubernetes up`: a real cluster on one machine, for as long as this runs.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use selvage_lab::Lab;
use selvage_lab::kubernetes::{
    ClusterSettings, KubeProxy, KubernetesCluster, PATIENCE, Programs, User,
};

use super::outside;
use super::terminal::{Terminal, seconds};

/// What kube-proxy writes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Nftables,
    Iptables,
    None,
}

/// What to bring up.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
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
    /// Where the API server listens on this machine; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// End once the nodes are Ready.
    #[arg(long)]
    check: bool,
    /// Plain text, as with NO_COLOR set.
    #[arg(long)]
    no_color: bool,
}

/// What the process outside adds.
#[derive(Args, Clone, Debug)]
pub struct Inside {
    #[command(flatten)]
    arguments: Arguments,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    port: u16,
}

/// Outside of any sandbox: stays for the machine's `kubectl`, and has the cluster brought up in one.
///
/// # Errors
/// When something is missing, before anything is made.
pub fn up(arguments: &Arguments) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("kubelets need root: run it with sudo");
    }
    Programs::of_cluster()?;
    for path in arguments.images.iter().chain(&arguments.manifests) {
        if !path.exists() {
            bail!("there is no {}", path.display());
        }
    }
    if arguments.manifests.is_empty() && arguments.reference_plugins.is_none() {
        bail!("pods need a network: --manifests PATH, or --reference-plugins /usr/lib/cni");
    }
    let mut words: Vec<String> = vec!["kubernetes".into(), "inside".into()];
    words.extend(std::env::args().skip(3));
    outside::stay(arguments.listen, &words)
}

/// In the sandbox.
///
/// # Errors
/// When a part does not come up.
pub fn inside(inside: &Inside) -> Result<ExitCode> {
    let Inside {
        arguments,
        folder,
        port,
    } = inside;
    let terminal = Terminal::new(arguments.no_color);
    let start = Instant::now();
    let lab = Lab::new("kubernetes")?;
    let mut cluster = bring_up(&terminal, &lab, arguments)?;
    let outside = SocketAddr::new(arguments.listen.ip(), *port);
    let kubeconfig = folder.join("kubeconfig");
    let control = cluster.control();
    control.write_kubeconfig(&kubeconfig, outside, &User::admin())?;
    outside::serve(folder, control.netns(), control.local())?;
    for path in &arguments.manifests {
        terminal.step(&format!("apply {}", name_of(path)), || {
            let text = apply(&cluster, path)?;
            Ok(((), format!("{} objects", text.lines().count())))
        })?;
    }
    if let Some(plugins) = &arguments.reference_plugins {
        cluster.use_reference_plugins(plugins)?;
    }
    terminal.step("nodes Ready", || {
        cluster.wait_ready(PATIENCE)?;
        Ok((
            (),
            cluster
                .nodes()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(" "),
        ))
    })?;
    terminal.done(&format!("up after {}", seconds(start.elapsed())));
    if arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    explain(&terminal, &mut cluster, &kubeconfig);
    // The process outside ends this one.
    loop {
        thread::park();
    }
}

fn bring_up(terminal: &Terminal, lab: &Lab, arguments: &Arguments) -> Result<KubernetesCluster> {
    let mut settings = ClusterSettings::new(arguments.nodes);
    settings.kube_proxy = match arguments.kube_proxy {
        Mode::Nftables => Some(KubeProxy::Nftables),
        Mode::Iptables => Some(KubeProxy::Iptables),
        Mode::None => None,
    };
    settings.router = arguments.router.map(|asn| (asn, 64512));
    settings.images.clone_from(&arguments.images);
    terminal.section("a Kubernetes cluster in namespaces");
    let mut cluster = terminal.step("control plane", || {
        let cluster = KubernetesCluster::new(lab, settings)?;
        Ok((
            cluster,
            "etcd, API server, controllers, scheduler".to_owned(),
        ))
    })?;
    if let Some(asn) = arguments.router {
        terminal.step("router tor", || {
            cluster.start_router()?;
            Ok((
                (),
                format!("BIRD, AS {asn}, {}", join(&cluster.router_addresses())),
            ))
        })?;
    }
    let names: Vec<String> = (1..=arguments.nodes).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    terminal.step(&format!("nodes {}", names.join(" ")), || {
        cluster.add_nodes(&names)?;
        let proxy = settings_of_proxy(arguments.kube_proxy);
        Ok(((), format!("containerd, kubelet{proxy}")))
    })?;
    Ok(cluster)
}

fn settings_of_proxy(mode: Mode) -> &'static str {
    match mode {
        Mode::Nftables => ", kube-proxy (nftables)",
        Mode::Iptables => ", kube-proxy (iptables)",
        Mode::None => "",
    }
}

fn apply(cluster: &KubernetesCluster, path: &Path) -> Result<String> {
    let how = match path.join("kustomization.yaml").is_file() {
        true => "-k",
        false => "-f",
    };
    let path = path.to_str().context("a path that is not UTF-8")?;
    cluster
        .kubectl()
        .run(&["apply", "--server-side", how, path])
}

fn explain(terminal: &Terminal, cluster: &mut KubernetesCluster, kubeconfig: &Path) {
    terminal.section("from any shell of this machine");
    terminal.line(&format!("  export KUBECONFIG={}", kubeconfig.display()));
    terminal.line(&format!(
        "  export PATH={}:$PATH",
        cluster.programs().folder().display()
    ));
    terminal.line("  kubectl get nodes,pods -A -o wide");
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
