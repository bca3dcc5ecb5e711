//! Kubernetes objects as the agents read them: a directory of YAML, or a real API server beside it.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::kubernetes::Rest;
use crate::topology::{Node, Pod};

/// The directory. A file is written beside its place and renamed, so that no reader sees half of it.
///
/// With an API server, what a file says is applied there as well, and goes with the file.
#[derive(Clone, Debug)]
pub struct Objects {
    directory: PathBuf,
    api: Option<Rest>,
}

impl Objects {
    /// A new directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(directory: PathBuf) -> Result<Objects> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let api = None;
        Ok(Objects { directory, api })
    }

    /// The same, and at an API server.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create_at(directory: PathBuf, api: Rest) -> Result<Objects> {
        let mut objects = Objects::create(directory)?;
        objects.api = Some(api);
        Ok(objects)
    }

    /// The API server.
    #[must_use]
    pub fn api(&self) -> Option<&Rest> {
        self.api.as_ref()
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes one object to `NAME.yaml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, object: &Value) -> Result<()> {
        self.put(name, object).map(drop)
    }

    /// As [`Objects::write`]; its UID, if it is an API server that gives it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &str, object: &Value) -> Result<Option<String>> {
        self.write_file(name, &serde_saphyr::to_string(object)?)?;
        let there = self.api.as_ref().map(|api| api.apply(object)).transpose()?;
        let uid = there
            .as_ref()
            .and_then(|there| there["metadata"]["uid"].as_str());
        Ok(uid.map(str::to_owned))
    }

    /// Writes `NAME.yaml` as it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        self.write_file(name, text)?;
        for object in self.at_api(text)? {
            self.api
                .as_ref()
                .map(|api| api.apply(&object))
                .transpose()?;
        }
        Ok(())
    }

    /// What an API server, if there is one, is to have of a file.
    fn at_api(&self, text: &str) -> Result<Vec<Value>> {
        match self.api {
            Some(_) => Ok(serde_saphyr::from_multiple(text)?),
            None => Ok(Vec::new()),
        }
    }

    fn write_file(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.directory.join(format!(".{name}.draft"));
        let path = self.directory.join(format!("{name}.yaml"));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes `NAME.yaml`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.directory.join(format!("{name}.yaml"));
        let text = fs::read_to_string(&path)
            .and_then(|text| fs::remove_file(&path).map(|()| text))
            .with_context(|| format!("cannot remove {}", path.display()))?;
        for object in self.at_api(&text)? {
            self.api
                .as_ref()
                .map(|api| api.delete(&object))
                .transpose()?;
        }
        Ok(())
    }

    /// Copies the YAML files of another directory.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub fn copy_from(&self, directory: &Path) -> Result<()> {
        for file in yaml_files(directory)? {
            let name = file
                .file_stem()
                .and_then(OsStr::to_str)
                .context("a file name that is not UTF-8")?;
            self.write_text(name, &fs::read_to_string(&file)?)?;
        }
        Ok(())
    }

    /// The ASN of the `BGPConfiguration`, or the default.
    ///
    /// # Errors
    /// When a file cannot be read. What is in it is the agent's to judge.
    pub fn asn(&self) -> Result<u32> {
        for file in yaml_files(&self.directory)? {
            let Ok(objects) = serde_saphyr::from_multiple::<Value>(&fs::read_to_string(&file)?)
            else {
                continue;
            };
            let found = objects
                .iter()
                .find(|object| object["kind"] == "BGPConfiguration");
            if let Some(asn) = found.and_then(|object| object["spec"]["asn"].as_u64()) {
                return Ok(u32::try_from(asn)?);
            }
        }
        Ok(DEFAULT_ASN)
    }
}

/// `BGPConfiguration.spec.asn` when nothing else is said.
const DEFAULT_ASN: u32 = 64512;

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|end| end == "yaml" || end == "yml")
        })
        .collect();
    files.sort();
    Ok(files)
}

/// A Node as the API would have it.
#[must_use]
pub fn node(node: &Node, addresses: &[IpAddr]) -> Value {
    let internal = |address: &IpAddr| json!({"type": "InternalIP", "address": address});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name.value, "uid": format!("node-{}", node.name.value), "labels": node.labels},
        "spec": {"podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs},
        "status": {"addresses": addresses.iter().map(internal).collect::<Vec<_>>()},
    })
}

/// A Namespace. The label with its name is the source's to add, as the API server does.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "uid": format!("namespace-{name}")}})
}

/// A Pod of this UID; running once it has addresses.
#[must_use]
pub fn pod(pod: &Pod, uid: &str, addresses: &[IpAddr]) -> Value {
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .map(|port| json!({"containerPort": port}))
        .collect();
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name.value, "namespace": pod.namespace, "uid": uid, "labels": pod.labels},
        "spec": {
            "nodeName": pod.node.value,
            "containers": [{"name": "echo", "image": "none", "ports": ports}],
        },
        "status": {
            "phase": if ips.is_empty() { "Pending" } else { "Running" },
            "podIP": addresses.first(),
            "podIPs": ips,
        },
    })
}
