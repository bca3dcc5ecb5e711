//! Many small writes to an API server, without a process for each: plain HTTP through `kubectl proxy`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::control_plane::ControlPlane;
use crate::deadline::eventually_ok;
use crate::netns::Netns;
use crate::process::Process;

/// Where the proxy listens, in the namespace of the control plane.
const PROXY: &str = "127.0.0.1:8001";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kinds, and what they are called in paths; whether they live in namespaces.
const KINDS: [(&str, &str, bool); 9] = [
    ("Node", "nodes", false),
    ("Namespace", "namespaces", false),
    ("Pod", "pods", true),
    ("Secret", "secrets", true),
    ("NetworkPolicy", "networkpolicies", true),
    ("BGPConfiguration", "bgpconfigurations", false),
    ("BGPPeer", "bgppeers", false),
    ("BGPNodeStatus", "bgpnodestatuses", false),
    ("ConfigMap", "configmaps", true),
];

/// The API server, as the administrator. It is spoken to directly, whatever its outer proxy does.
#[derive(Clone, Debug)]
pub struct Rest {
    netns: Netns,
    _proxy: Arc<Process>,
}

impl Rest {
    /// Starts the proxy of a control plane, of which there is one at most.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(control: &ControlPlane) -> Result<Rest> {
        let netns = control.netns().clone();
        let command = control.kubectl().command(&["proxy", "--port=8001"]);
        let proxy = netns.lab().spawn(&netns, "kubectl-proxy", command)?;
        let rest = Rest {
            netns,
            _proxy: Arc::new(proxy),
        };
        eventually_ok(PATIENCE, "kubectl proxy answers", || {
            rest.call("GET", "/readyz", None).map(drop)
        })?;
        Ok(rest)
    }

    /// Makes an object what it is to be, its status included; as the API server has it then.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let mut spec = object.clone();
        let fields = spec.as_object_mut().context("no object")?;
        let status = fields.remove("status");
        if let Some(Value::Object(meta)) = fields.get_mut("metadata") {
            // Only the API server gives one.
            meta.remove("uid");
        }
        let path = path(object)?;
        let there = self.call(
            "PATCH",
            &format!("{path}?fieldManager=lab&force=true"),
            Some(&spec),
        )?;
        let Some(status) = status else {
            return Ok(there);
        };
        // Somebody else may write the same status, other parts of it.
        eventually_ok(PATIENCE, &format!("the status of {path}"), || {
            let mut there = self.call("GET", &path, None)?;
            let fields = status.as_object().context("a status without fields")?;
            if there["status"].is_null() {
                there["status"] = json!({});
            }
            for (field, value) in fields {
                there["status"][field] = value.clone();
            }
            self.call("PUT", &format!("{path}/status"), Some(&there))
        })
    }

    /// Removes an object at once.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let now = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        self.call("DELETE", &path(object)?, Some(&now)).map(drop)
    }

    /// What the API server answers to a request; `null` if that is no JSON.
    ///
    /// # Errors
    /// When it refuses.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let text = self.text(method, path, body)?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The same as it is.
    ///
    /// # Errors
    /// When it refuses.
    pub fn text(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let kind = match method {
            "PATCH" => "application/apply-patch+yaml",
            _ => "application/json",
        };
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let to: SocketAddr = PROXY.parse()?;
        let answer = self.netns.run(|| {
            let mut stream = TcpStream::connect(to)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let code = head.split(' ').nth(1).unwrap_or_default();
        ensure!(code.starts_with('2'), "{method} {path}: {code} {body}");
        Ok(body.to_owned())
    }
}

/// Where an object is.
fn path(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (kind, version) = (
        text("/kind").context("kind")?,
        text("/apiVersion").context("apiVersion")?,
    );
    let name = text("/metadata/name").context("metadata.name")?;
    let Some((_, plural, namespaced)) = KINDS.iter().find(|(known, ..)| *known == kind) else {
        bail!("no path is known of a {kind}");
    };
    let root = if version.contains('/') {
        "/apis"
    } else {
        "/api"
    };
    Ok(match namespaced {
        true => {
            let namespace = text("/metadata/namespace").unwrap_or("default");
            format!("{root}/{version}/namespaces/{namespace}/{plural}/{name}")
        }
        false => format!("{root}/{version}/{plural}/{name}"),
    })
}
