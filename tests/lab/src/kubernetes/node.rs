//! A node: containerd, kubelet and kube-proxy in a namespace, mounts and a control group of their own.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::access::User;
use super::cgroup;
use super::control_plane::ControlPlane;
use super::images::PAUSE;
use super::programs::Programs;
use super::space::Space;
use crate::deadline::eventually_ok;
use crate::netns::Netns;
use crate::network::Link;
use crate::process::Process;

/// How long a program of a node may take to be there.
const SOON: Duration = Duration::from_secs(60);

/// Where programs look for others: ours first.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What kube-proxy writes its rules with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

impl KubeProxy {
    /// As kube-proxy and its users call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            KubeProxy::Nftables => "nftables",
            KubeProxy::Iptables => "iptables",
        }
    }
}

/// A running node. Dropping it kills everything on it.
#[derive(Debug)]
pub struct Node {
    name: String,
    netns: Netns,
    link: Link,
    programs: Programs,
    group: String,
    processes: Vec<Process>,
    space: Space,
}

impl Node {
    /// Makes the node, with containerd and these images, as yet unknown to the API server.
    pub(super) fn create(
        netns: &Netns,
        link: &Link,
        programs: &Programs,
        images: &[PathBuf],
    ) -> Result<Node> {
        let mut node = Node {
            name: netns.name().to_owned(),
            netns: netns.clone(),
            link: link.clone(),
            programs: programs.clone(),
            group: cgroup::create(netns.lab().name(), netns.name())?,
            processes: Vec::new(),
            space: Space::create(netns, programs)?,
        };
        node.start_containerd()?;
        images.iter().try_for_each(|image| node.import(image))?;
        Ok(node)
    }

    /// The name of its Node object.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its link to the fabric.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Its InternalIPs.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.link.addresses().iter().map(IpNet::addr).collect()
    }

    /// A folder of the node as tests see it. There are `/run`, `/etc/cni`, `/opt/cni`, `/var/lib/selvage`,
    /// `/var/lib/cni`, `/var/lib/kubelet`, `/var/log` and what is below them.
    ///
    /// # Errors
    /// When the folder is another one.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        self.space.outside(Path::new(path))
    }

    /// Runs `work` in a thread that has the node's network, mounts and process numbers.
    ///
    /// # Errors
    /// When the node cannot be entered, or `work` fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.space.run(work)
    }

    /// Runs a program on the node to its end and returns what it printed.
    ///
    /// # Errors
    /// When it does not succeed; the message has what it says.
    pub fn command(&self, mut command: Command) -> Result<String> {
        command.env("PATH", self.search_path());
        let output = self.run(|| {
            command
                .output()
                .with_context(|| format!("cannot start {command:?}"))
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} on {}: {text}{error}", self.name);
        }
        Ok(text)
    }

    /// Its daemons: containerd, kubelet, kube-proxy.
    pub fn processes(&mut self) -> &mut [Process] {
        &mut self.processes
    }

    /// Takes an image from an archive, of Docker's kind or OCI's.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let file = File::open(archive).with_context(|| archive.display().to_string())?;
        let mut command = self.programs.command("ctr")?;
        command
            .args(["--namespace", "k8s.io", "images", "import", "-"])
            .stdin(Stdio::from(file));
        self.command(command)
            .with_context(|| format!("cannot import {}", archive.display()))?;
        Ok(())
    }

    /// The names of its images.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub fn images(&self) -> Result<Vec<String>> {
        let mut command = self.programs.command("ctr")?;
        command.args("--namespace k8s.io images list --quiet".split(' '));
        let text = self.command(command)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Starts the kubelet, which registers the node with these labels.
    pub(super) fn start_kubelet(
        &mut self,
        control: &ControlPlane,
        labels: &[(String, String)],
    ) -> Result<()> {
        self.copy(
            "kubelet.kubeconfig",
            &control.kubeconfig(&User::node(&self.name))?,
        )?;
        self.copy("ca.crt", &control.authority())?;
        self.write("kubelet.json", &self.kubelet_configuration())?;
        let addresses: Vec<String> = self.addresses().iter().map(IpAddr::to_string).collect();
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut command = self.programs.command("kubelet")?;
        command
            .args([
                "--config=/etc/kubernetes/kubelet.json",
                "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
                "--root-dir=/var/lib/kubelet",
                "--cert-dir=/var/lib/kubelet/pki",
            ])
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={}", addresses.join(",")))
            .arg(format!("--node-labels={}", labels.join(",")));
        self.start("kubelet", command)
    }

    /// Starts kube-proxy.
    pub(super) fn start_kube_proxy(
        &mut self,
        control: &ControlPlane,
        mode: KubeProxy,
        pod_cidrs: &[IpNet],
    ) -> Result<()> {
        let user = User::new("system:kube-proxy", &[]);
        self.copy("kube-proxy.kubeconfig", &control.kubeconfig(&user)?)?;
        let cidrs: Vec<String> = pod_cidrs.iter().map(IpNet::to_string).collect();
        // Zero: left as it is, for the machine may not let a namespace change it.
        let conntrack = json!({
            "maxPerCore": 0, "min": 0,
            "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s", "udpStreamTimeout": "0s",
        });
        let configuration = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
            "hostnameOverride": self.name,
            "clusterCIDR": cidrs.join(","),
            "mode": mode.name(),
            "conntrack": conntrack,
        });
        self.write("kube-proxy.json", &configuration)?;
        let mut command = self.programs.command("kube-proxy")?;
        command.arg("--config=/etc/kubernetes/kube-proxy.json");
        self.start("kube-proxy", command)
    }

    /// Kills everything on the node at once.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.space.kill(&mut self.processes)
    }

    /// The namespace of a pod of this UID.
    ///
    /// # Errors
    /// When none of its processes runs.
    pub fn pod_netns(&self, uid: &str) -> Result<Netns> {
        let pid = self
            .pod_process(uid)
            .with_context(|| format!("no process of pod {uid} on {}", self.name))?;
        Netns::of_process(self.netns.lab(), &format!("{}-{uid}", self.name), pid)
    }

    /// Processes of a pod that run a program of this name, as the sandbox numbers them.
    #[must_use]
    pub fn pod_processes(&self, uid: &str, program: &str) -> Vec<u32> {
        let runs = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim_end() == program)
        };
        self.processes_of(uid).filter(runs).collect()
    }

    /// A process of a pod.
    fn pod_process(&self, uid: &str) -> Option<u32> {
        self.processes_of(uid).next()
    }

    /// All processes of a pod, by its control group.
    fn processes_of(&self, uid: &str) -> impl Iterator<Item = u32> {
        let group = format!("/pod{uid}/");
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(move |entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let groups = fs::read_to_string(entry.path().join("cgroup")).ok()?;
            let own = |line: &str| line.contains(&self.group) && line.contains(&group);
            groups.lines().any(own).then_some(pid)
        })
    }

    fn start_containerd(&mut self) -> Result<()> {
        let text = format!(
            "version = 3\n\
             root = '/var/lib/containerd'\n\
             state = '/run/containerd'\n\
             [grpc]\n\
             address = '/run/containerd/containerd.sock'\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
             sandbox = '{PAUSE}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\n\
             restrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
             bin_dirs = ['/opt/cni/bin']\n\
             conf_dir = '/etc/cni/net.d'\n"
        );
        fs::write(self.path("/etc/kubernetes")?.join("containerd.toml"), text)?;
        let mut command = self.programs.command("containerd")?;
        command.args(["--config", "/etc/kubernetes/containerd.toml"]);
        self.start("containerd", command)?;
        eventually_ok(SOON, "containerd answers", || {
            let mut command = self.programs.command("ctr")?;
            command.arg("version");
            self.command(command)
        })?;
        Ok(())
    }

    fn kubelet_configuration(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.group,
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            // The machine's disk is not the node's to judge.
            "evictionHard": {
                "memory.available": "1Mi",
                "nodefs.available": "1Mi",
                "nodefs.inodesFree": "1",
                "imagefs.available": "1Mi",
                "imagefs.inodesFree": "1",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "oomScoreAdj": 0,
            "resolvConf": "",
            "serializeImagePulls": false,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        })
    }

    fn start(&mut self, name: &str, mut command: Command) -> Result<()> {
        command.env("PATH", self.search_path());
        self.processes.push(self.space.spawn(name, command)?);
        Ok(())
    }

    fn search_path(&self) -> String {
        format!("{}:{PATH}", self.programs.folder().display())
    }

    fn copy(&self, name: &str, from: &Path) -> Result<()> {
        fs::copy(from, self.path("/etc/kubernetes")?.join(name))?;
        Ok(())
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        Ok(fs::write(self.path("/etc/kubernetes")?.join(name), text)?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be dead already, which is what it is a trial of.
        let _ = self.kill();
        cgroup::remove(&self.group);
        // Images and what is made of them are in memory; logs are kept elsewhere.
        let _ = self.space.remove();
    }
}
