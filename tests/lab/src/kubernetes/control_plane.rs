//! etcd and the API server, and on request the controllers and the scheduler.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::access::{Kubectl, Proof, User, write_kubeconfig};
use super::pki::Pki;
use super::programs::Programs;
use super::proxy::Proxy;
use crate::deadline::eventually_ok;
use crate::netns::Netns;
use crate::network::host_address;
use crate::process::Process;

/// Where the API server is reached, on every address of the control plane.
const PORT: u16 = 6443;

/// The API server itself; what comes from outside comes through the proxy.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);

/// How long the API server may take to be ready: three seconds on an idle machine.
const READY: Duration = Duration::from_secs(120);

/// What a control plane is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// With controller-manager and scheduler. Without them pods need no ServiceAccount, nothing is scheduled, and a
    /// namespace is never gone.
    pub controllers: bool,
    /// What nodes get their `spec.podCIDRs` from: a /24 and a /64 each.
    pub pod_cidrs: Vec<IpNet>,
    /// What services get their addresses from.
    pub service_cidrs: Vec<IpNet>,
    /// Further arguments of the API server.
    pub apiserver: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        let cidrs = |texts: [&str; 2]| texts.iter().filter_map(|text| text.parse().ok()).collect();
        Settings {
            controllers: false,
            pod_cidrs: cidrs(["10.244.0.0/16", "fd00:10:244::/56"]),
            service_cidrs: cidrs(["10.96.0.0/16", "fd00:10:96::/112"]),
            apiserver: Vec::new(),
        }
    }
}

/// A running control plane. Dropping it ends it.
#[derive(Debug)]
pub struct ControlPlane {
    netns: Netns,
    folder: PathBuf,
    programs: Programs,
    pki: Pki,
    kubectl: Kubectl,
    proxy: Proxy,
    arguments: Vec<String>,
    apiserver: Option<Process>,
    _controllers: Vec<Process>,
    etcd: Process,
}

impl ControlPlane {
    /// Starts one in `netns`, which has these addresses, and waits until its API server is ready.
    ///
    /// # Errors
    /// When a program is not built or does not come up.
    pub fn start(netns: &Netns, addresses: &[IpNet], settings: &Settings) -> Result<ControlPlane> {
        let programs = Programs::of_control_plane()?;
        let lab = netns.lab();
        let folder = lab.subdirectory(netns.name())?;
        let pki = Pki::create(lab.subdirectory(&format!("{}/pki", netns.name()))?)?;
        let addresses: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
        let listen: Vec<SocketAddr> = addresses
            .iter()
            .map(|address| SocketAddr::new(*address, PORT))
            .collect();
        let kubeconfig = folder.join("admin.kubeconfig");
        write_kubeconfig(
            &kubeconfig,
            SERVER,
            &pki,
            &Proof::Certificate(&User::admin()),
        )?;
        let kubectl = Kubectl {
            program: programs.find("kubectl")?,
            netns: netns.clone(),
            kubeconfig,
            cache: folder.join("kubectl"),
        };
        let etcd = lab.spawn(netns, "etcd", etcd(&programs, &folder)?)?;
        let mut control = ControlPlane {
            arguments: apiserver_arguments(&pki, &addresses, settings)?,
            proxy: Proxy::start(netns, &listen, SERVER)?,
            netns: netns.clone(),
            folder,
            programs,
            pki,
            kubectl,
            apiserver: None,
            _controllers: Vec::new(),
            etcd,
        };
        control.start_apiserver()?;
        if settings.controllers {
            control.start_controllers(settings)?;
        }
        Ok(control)
    }

    /// Where it runs.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The programs that it runs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Where the API server is reached, through the proxy.
    #[must_use]
    pub fn servers(&self) -> &[SocketAddr] {
        self.proxy.addresses()
    }

    /// Where the API server itself is reached, from its own namespace.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        SERVER
    }

    /// What everybody outside goes through.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// `kubectl` as the administrator; it does not go through the proxy.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// `kubectl` of a user in another namespace, through the proxy.
    ///
    /// # Errors
    /// When its kubeconfig cannot be made.
    pub fn kubectl_in(&self, netns: &Netns, user: &User) -> Result<Kubectl> {
        Ok(Kubectl {
            netns: netns.clone(),
            kubeconfig: self.kubeconfig(user)?,
            ..self.kubectl.clone()
        })
    }

    /// The certificate of the authority that has signed the API server's.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.pki.authority().certificate
    }

    /// A kubeconfig file of a user, for use from outside.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn kubeconfig(&self, user: &User) -> Result<PathBuf> {
        let file = self.folder.join(format!("{}.outside", user.file_name()));
        let server = *self.servers().first().context("no address")?;
        write_kubeconfig(&file, server, &self.pki, &Proof::Certificate(user))?;
        Ok(file)
    }

    /// Writes a kubeconfig of a user who reaches the API server at another address.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_kubeconfig(&self, file: &Path, server: SocketAddr, user: &User) -> Result<()> {
        write_kubeconfig(file, server, &self.pki, &Proof::Certificate(user))
    }

    /// A kubeconfig file of a ServiceAccount, which must exist, with a fresh token.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let file = self.folder.join(format!("{namespace}-{name}.outside"));
        let server = *self.servers().first().context("no address")?;
        let token = self.token(namespace, name)?;
        write_kubeconfig(&file, server, &self.pki, &Proof::Token(&token))?;
        Ok(file)
    }

    /// A fresh token of a ServiceAccount, which must exist.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn token(&self, namespace: &str, name: &str) -> Result<String> {
        let token = self
            .kubectl
            .run(&["-n", namespace, "create", "token", name])?;
        Ok(token.trim_end().to_owned())
    }

    /// Ends the API server at once, as when its machine fails; new connections are refused.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn stop_apiserver(&mut self) -> Result<()> {
        if let Some(mut apiserver) = self.apiserver.take() {
            self.proxy.refuse();
            apiserver.kill()?;
        }
        Ok(())
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_apiserver(&mut self) -> Result<()> {
        let mut command = self.programs.command("kube-apiserver")?;
        command.args(&self.arguments);
        let mut apiserver = self
            .netns
            .lab()
            .spawn(&self.netns, "kube-apiserver", command)?;
        let (kubectl, netns) = (&self.kubectl, &self.netns);
        apiserver.wait_for(READY, "the API server is ready", || {
            // Cheap, and so it leaves the processor to who comes up.
            netns.run(|| Ok(TcpStream::connect(SERVER)?)).is_ok()
                && kubectl.run(&["get", "--raw", "/readyz"]).is_ok()
        })?;
        self.apiserver = Some(apiserver);
        self.proxy.accept()
    }

    /// [`ControlPlane::stop_apiserver`] and [`ControlPlane::start_apiserver`].
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart_apiserver(&mut self) -> Result<()> {
        self.stop_apiserver()?;
        self.start_apiserver()
    }

    fn start_controllers(&mut self, settings: &Settings) -> Result<()> {
        let kubeconfig = |user: &User| {
            let file = self.folder.join(format!("{}.kubeconfig", user.file_name()));
            write_kubeconfig(&file, SERVER, &self.pki, &Proof::Certificate(user))?;
            Ok::<_, anyhow::Error>(format!("--kubeconfig={}", file.display()))
        };
        let common = ["--leader-elect=false", "--secure-port=0"];
        let ca = self.pki.authority();
        let mut manager = self.programs.command("kube-controller-manager")?;
        manager
            .arg(kubeconfig(&User::new(
                "system:kube-controller-manager",
                &[],
            ))?)
            .args(common)
            .args(["--use-service-account-credentials", "--allocate-node-cidrs"])
            .arg(format!("--cluster-cidr={}", join(&settings.pod_cidrs)))
            .arg(format!(
                "--service-cluster-ip-range={}",
                join(&settings.service_cidrs)
            ))
            .arg(option(
                "--service-account-private-key-file",
                &self.pki.service_accounts().key,
            ))
            .arg(option("--root-ca-file", &ca.certificate));
        let mut scheduler = self.programs.command("kube-scheduler")?;
        scheduler
            .arg(kubeconfig(&User::new("system:kube-scheduler", &[]))?)
            .args(common);
        let lab = self.netns.lab();
        self._controllers = vec![
            lab.spawn(&self.netns, "kube-controller-manager", manager)?,
            lab.spawn(&self.netns, "kube-scheduler", scheduler)?,
        ];
        // No pod can be made before.
        eventually_ok(READY, "the default ServiceAccount", || {
            self.kubectl.run(&["get", "serviceaccount", "default"])
        })?;
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // A hundred megabytes of memory, and nothing to look at afterwards.
        let _ = self.etcd.kill();
        let _ = fs::remove_dir_all(self.folder.join("etcd"));
    }
}

fn etcd(programs: &Programs, folder: &Path) -> Result<Command> {
    let mut command = programs.command("etcd")?;
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    command
        .args(["--name=lab", "--log-level=warn", "--unsafe-no-fsync"])
        // It elects only itself.
        .args(["--heartbeat-interval=10", "--election-timeout=100"])
        .arg(option("--data-dir", &folder.join("etcd")))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=lab={peer}"));
    Ok(command)
}

fn apiserver_arguments(
    pki: &Pki,
    addresses: &[IpAddr],
    settings: &Settings,
) -> Result<Vec<String>> {
    let services = settings.service_cidrs.iter();
    // The first address of the range is the service `kubernetes`.
    let service = services.filter_map(|cidr| Some(host_address(cidr, 1)?.addr()));
    let own = [SERVER.ip()].into_iter().chain(addresses.iter().copied());
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let all: Vec<IpAddr> = own.chain(service).collect();
    let serving = pki.server("kube-apiserver", &names, &all)?;
    let kubelets = pki.client(&User::new(
        "kube-apiserver-kubelet-client",
        &["system:masters"],
    ))?;
    // Of the family of the service `kubernetes`.
    let first = settings.service_cidrs.first().map(IpNet::addr);
    let same = |address: &&IpAddr| first.is_none_or(|first| first.is_ipv4() == address.is_ipv4());
    let advertised = addresses.iter().find(same).context("no such address")?;
    let tokens = pki.service_accounts();
    let mut arguments = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--bind-address={}", SERVER.ip()),
        format!("--secure-port={PORT}"),
        format!("--advertise-address={advertised}"),
        option("--tls-cert-file", &serving.certificate),
        option("--tls-private-key-file", &serving.key),
        option("--client-ca-file", &pki.authority().certificate),
        option("--kubelet-client-certificate", &kubelets.certificate),
        option("--kubelet-client-key", &kubelets.key),
        // Names of nodes are in no DNS.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        option("--service-account-key-file", &tokens.certificate),
        option("--service-account-signing-key-file", &tokens.key),
        format!(
            "--service-cluster-ip-range={}",
            join(&settings.service_cidrs)
        ),
        "--profiling=false".to_owned(),
    ];
    if !settings.controllers {
        // Nobody makes the default one.
        arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    arguments.extend(settings.apiserver.iter().cloned());
    Ok(arguments)
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn join(cidrs: &[IpNet]) -> String {
    let texts: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    texts.join(",")
}
