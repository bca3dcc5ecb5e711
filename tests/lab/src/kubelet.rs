//! The part of kubelet and container runtime that a network plugin sees: a Pod object, a namespace, an ADD, the
//! addresses in the Pod's status; and all of it backwards.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::netns::Netns;
use crate::objects::{self, Objects};
use crate::programs;
use crate::topology::Pod;

/// What a node's runtime needs to know.
#[derive(Clone, Debug)]
pub struct Kubelet {
    netns: Netns,
    objects: Objects,
    plugin: PathBuf,
    configuration: Value,
}

/// A pod that has its network.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// What it was asked to be.
    pub pod: Pod,
    /// `metadata.uid`.
    pub uid: String,
    /// The runtime's name for its sandbox.
    pub container_id: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its addresses, in the order of the plugin's result.
    pub addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    ips: Vec<CniAddress>,
}

#[derive(Deserialize)]
struct CniAddress {
    address: IpNet,
}

/// Distinguishes pods of one name.
static COUNTER: AtomicU32 = AtomicU32::new(1);

impl Kubelet {
    /// The runtime of a node in `netns` whose agent uses these directories and whose pods get addresses from
    /// `pod_cidrs`.
    ///
    /// # Errors
    /// When the plugin is not built.
    pub fn new(
        netns: &Netns,
        objects: &Objects,
        run_dir: &std::path::Path,
        state_dir: &std::path::Path,
        pod_cidrs: &[IpNet],
    ) -> Result<Kubelet> {
        let configuration = json!({
            "cniVersion": "1.1.0",
            "name": "selvage",
            "type": "selvage-cni",
            "ipMasq": false,
            "policy": "required",
            "runDir": run_dir,
            "stateDir": state_dir,
            "ipam": ipam(state_dir, pod_cidrs),
        });
        let plugin = programs::find("selvage-cni")?;
        Ok(Kubelet {
            netns: netns.clone(),
            objects: objects.clone(),
            plugin,
            configuration,
        })
    }

    /// The runtime of a node whose pods are made by the reference plugin `ptp` and its `host-local`, both in `folder`.
    #[must_use]
    pub fn with_ptp(
        netns: &Netns,
        objects: &Objects,
        folder: &std::path::Path,
        state_dir: &std::path::Path,
        pod_cidrs: &[IpNet],
    ) -> Kubelet {
        let configuration = json!({
            "cniVersion": "1.0.0",
            "name": "ptp",
            "type": "ptp",
            "ipMasq": false,
            "ipam": ipam(state_dir, pod_cidrs),
        });
        Kubelet {
            netns: netns.clone(),
            objects: objects.clone(),
            plugin: folder.join("ptp"),
            configuration,
        }
    }

    /// The plugin's configuration, to be changed before a pod starts.
    pub fn configuration(&mut self) -> &mut Value {
        &mut self.configuration
    }

    /// Writes the Pod, makes its namespace, runs ADD, writes its addresses.
    ///
    /// # Errors
    /// The plugin's error object, when it refuses.
    pub fn start(&self, pod: &Pod) -> Result<RunningPod> {
        let mut running = self.prepare(pod)?;
        self.add(&mut running)?;
        self.update(&running)?;
        Ok(running)
    }

    /// Writes the Pod and makes its namespace: all that comes before ADD.
    ///
    /// # Errors
    /// When the object cannot be written or the namespace cannot be made.
    pub fn prepare(&self, pod: &Pod) -> Result<RunningPod> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("00000000-0000-4000-8000-{number:012}");
        let netns = self.netns.lab().netns(&format!(
            "pod-{}-{}-{number}",
            pod.namespace, pod.name.value
        ))?;
        let container_id = format!("{}-{number}", netns.lab().name());
        let object = objects::pod(pod, &uid, &[]);
        let uid = self.objects.put(&file_name(pod), &object)?.unwrap_or(uid);
        Ok(RunningPod {
            pod: pod.clone(),
            uid,
            container_id,
            netns,
            addresses: Vec::new(),
        })
    }

    /// Runs ADD; the pod has its addresses then.
    ///
    /// # Errors
    /// The plugin's error object, when it refuses.
    pub fn add(&self, pod: &mut RunningPod) -> Result<()> {
        let result: CniResult =
            serde_json::from_str(&self.call("ADD", pod)?).context("the plugin's result")?;
        pod.addresses = result.ips.iter().map(|ip| ip.address.addr()).collect();
        Ok(())
    }

    /// Runs DEL, removes the namespace and the Pod.
    ///
    /// # Errors
    /// The plugin's error object, when it refuses.
    pub fn stop(&self, pod: &RunningPod) -> Result<()> {
        self.call("DEL", pod)?;
        self.forget(pod)
    }

    /// Removes the namespace and the Pod: all that comes after DEL.
    ///
    /// # Errors
    /// When one of them cannot be removed.
    pub fn forget(&self, pod: &RunningPod) -> Result<()> {
        pod.netns.delete()?;
        self.objects.remove(&file_name(&pod.pod))
    }

    /// Writes the Pod as it is now, or with other labels.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn update(&self, pod: &RunningPod) -> Result<()> {
        let object = objects::pod(&pod.pod, &pod.uid, &pod.addresses);
        self.objects.write(&file_name(&pod.pod), &object)
    }

    /// Runs the plugin for a pod, as a runtime does; what it printed.
    ///
    /// # Errors
    /// The plugin's error object, when it refuses.
    pub fn call(&self, verb: &str, pod: &RunningPod) -> Result<String> {
        let mut command = Command::new(&self.plugin);
        command.env_clear();
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_IFNAME", "eth0");
        command
            .env("CNI_NETNS", pod.netns.path())
            .env("CNI_PATH", self.plugin.parent().unwrap_or(&self.plugin));
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.pod.namespace, pod.pod.name.value, pod.container_id, pod.uid
        );
        command.env("CNI_ARGS", args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let input = serde_json::to_vec(&self.configuration)?;
        let output = self.netns.run(|| {
            let mut child = command
                .spawn()
                .with_context(|| self.plugin.display().to_string())?;
            // A plugin that ends without reading says why on standard output.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&input));
            Ok(child.wait_with_output()?)
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{verb} of {} failed: {} {}",
                pod.pod.key(),
                text.trim(),
                log.trim()
            );
        }
        Ok(text)
    }
}

/// Addresses from these prefixes, and default routes.
fn ipam(state_dir: &std::path::Path, pod_cidrs: &[IpNet]) -> Value {
    let ranges: Vec<Value> = pod_cidrs
        .iter()
        .map(|cidr| json!([{"subnet": cidr}]))
        .collect();
    let default = |cidr: &IpNet| {
        if cidr.addr().is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        }
    };
    let routes: Vec<Value> = pod_cidrs
        .iter()
        .map(|cidr| json!({"dst": default(cidr)}))
        .collect();
    json!({"type": "host-local", "dataDir": state_dir.join("leases"), "ranges": ranges, "routes": routes})
}

fn file_name(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.namespace, pod.name.value)
}
