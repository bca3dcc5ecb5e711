//! Another program as IPAM: executed with our environment and standard input, as the specification says.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};

use serde_json::Value;

use super::Grant;
use crate::spec::field::Field;
use crate::spec::request::{Call, Command};
use crate::spec::result::Route;
use crate::spec::{CniError, CniResult, Code, NetConf};

/// A plugin that was found.
#[derive(Clone, Debug)]
pub struct Delegate {
    program: PathBuf,
    stdin: Vec<u8>,
}

impl Delegate {
    /// Looks for the plugin `kind` in `CNI_PATH`.
    pub fn find(kind: &str, conf: &NetConf, call: &Call) -> Result<Self, CniError> {
        if kind.contains('/') || kind.starts_with('.') {
            return Err(CniError::new(
                Code::InvalidConfig,
                format!("ipam.type: {kind:?} is not the name of a plugin"),
            ));
        }
        let path = call.path.as_deref().ok_or_else(|| {
            let message =
                format!("CNI_PATH is missing; the IPAM plugin {kind} is looked for there");
            CniError::new(Code::Environment, message)
        })?;
        let executable = |file: &PathBuf| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        match std::env::split_paths(OsStr::new(path))
            .map(|dir| dir.join(kind))
            .find(executable)
        {
            Some(program) => Ok(Self {
                program,
                stdin: conf.bytes.clone(),
            }),
            None => {
                let message = format!("ipam.type: there is no plugin {kind} in CNI_PATH={path}");
                Err(CniError::new(Code::InvalidConfig, message))
            }
        }
    }

    /// ADD; the caller runs [`run`](Self::run) with DEL when a later step fails.
    pub fn add(&self) -> Result<Grant, CniError> {
        let output = self.run(Command::Add)?;
        let value: Value = serde_json::from_slice(&output)
            .map_err(|e| self.failed(&format!("its result is not valid JSON: {e}")))?;
        let result = CniResult::read(&Field::root(&value)).map_err(|e| self.failed(&e.message))?;
        if result.ips.is_empty() {
            return Err(self.failed("it gave no address"));
        }
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address.addr()).collect();
        let families: Vec<_> = addresses.iter().map(|addr| addr.is_ipv6()).collect();
        let mut routes = Vec::new();
        for route in result.routes {
            if !families.contains(&route.dst.is_v6()) {
                return Err(self.failed(&format!(
                    "a route to {} without an address of its family",
                    route.dst
                )));
            }
            // Whatever gateway the program thinks of: from a pod, all traffic goes by way of its host.
            routes.push(Route {
                priority: route.priority,
                table: route.table,
                ..Route::new(route.dst, None)
            });
        }
        Ok(Grant {
            addresses,
            subnets: result
                .ips
                .iter()
                .map(|ip| ip.address)
                .filter(|address| !address.is_host())
                .collect(),
            routes,
            dns: result.dns,
        })
    }

    /// Any command; returns what it printed.
    pub fn run(&self, command: Command) -> Result<Vec<u8>, CniError> {
        let output = self
            .execute(command)
            .map_err(|e| CniError::file("run", &self.program, &e))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        // An error object is passed on as it is.
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let code = value
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|code| u32::try_from(code).ok());
        let text = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        match code {
            Some(code) => {
                let message = format!("{}: {}", self.name(), text("msg"));
                Err(CniError {
                    code,
                    message,
                    details: text("details"),
                })
            }
            None => Err(self.failed(&format!(
                "{}, {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    }

    fn execute(&self, command: Command) -> io::Result<Output> {
        let mut child = Process::new(&self.program)
            .env("CNI_COMMAND", command.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input may still answer.
            let _ = stdin.write_all(&self.stdin);
        }
        child.wait_with_output()
    }

    fn failed(&self, why: &str) -> CniError {
        CniError::new(
            Code::Delegate,
            format!("IPAM plugin {}: {why}", self.name()),
        )
    }

    /// The plugin's name, as `ipam.type` has it.
    pub fn name(&self) -> String {
        self.program
            .file_name()
            .map(Path::new)
            .unwrap_or(&self.program)
            .display()
            .to_string()
    }
}
