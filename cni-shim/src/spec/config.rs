//! The network configuration on standard input.
//!
//! Members that the plugin does not know are left alone, as the specification wants; those that it knows but cannot
//! do are refused by name, when they ask for something. DEL reads as little as it can: it has to work with a
//! configuration that ADD would refuse.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use super::error::{CniError, Code};
use super::field::Field;
use super::request::{self, Command};
use super::version::Version;
use crate::bandwidth::Bandwidth;
use crate::link::{DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, PolicyMode};
use crate::portmap::PortMapping;

/// The IPAM plugin that is built in.
pub const BUILT_IN_IPAM: &str = "host-local";

/// A valid configuration; addresses are read by [`crate::ipam`] where they are needed.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: Version,
    /// `name`.
    pub name: String,
    /// `type`.
    pub kind: String,
    /// `mtu` of both ends; 0 leaves it to the kernel.
    pub mtu: u32,
    /// `ipMasq`.
    pub ip_masq: bool,
    /// `policy`.
    pub policy: PolicyMode,
    /// `runDir`: where the agent's socket and ready mark are.
    pub run_dir: PathBuf,
    /// `stateDir`: where attachments are kept.
    pub state_dir: PathBuf,
    /// `ipam.type`; none if there is no IPAM.
    pub ipam_type: Option<String>,
    /// `runtimeConfig.ips`, or else `args.cni.ips`.
    pub ips: Vec<IpAddr>,
    /// `runtimeConfig.mac`, or else `args.cni.mac`.
    pub mac: Option<[u8; 6]>,
    /// `runtimeConfig.portMappings`, for ADD.
    pub port_mappings: Vec<PortMapping>,
    /// `runtimeConfig.bandwidth`, or the members of the reference plugin, for ADD.
    pub bandwidth: Option<Bandwidth>,
    /// `cni.dev/valid-attachments`, as (container id, interface).
    pub valid_attachments: Option<Vec<(String, String)>>,
    /// All of it, as it came.
    pub raw: Value,
    /// The bytes, for delegated plugins.
    pub bytes: Vec<u8>,
}

/// Standard input as a JSON object: code 6 if it is none.
pub fn decode(bytes: &[u8]) -> Result<Value, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CniError::new(
            Code::Decode,
            "standard input is empty; a network configuration belongs there",
        ));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| {
        CniError::new(
            Code::Decode,
            format!("standard input is not valid JSON: {e}"),
        )
    })?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(CniError::new(
            Code::Decode,
            "standard input is not a JSON object",
        ))
    }
}

/// The `cniVersion` of a decoded configuration; absent means 0.1.0.
pub fn version_text(value: &Value) -> Result<&str, CniError> {
    match value.get("cniVersion") {
        None | Some(Value::Null) => Ok("0.1.0"),
        Some(Value::String(text)) if text.is_empty() => Ok("0.1.0"),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(CniError::new(
            Code::Decode,
            format!("cniVersion: expected a string, found {other}"),
        )),
    }
}

impl NetConf {
    /// From standard input, for `command`.
    pub fn parse(bytes: Vec<u8>, command: Command) -> Result<Self, CniError> {
        let raw = decode(&bytes)?;
        let version = Version::parse(version_text(&raw)?)?;
        let needed = match command {
            Command::Check => Version::V040,
            Command::Gc | Command::Status => Version::V110,
            _ => Version::V030,
        };
        if version < needed {
            let message = format!(
                "{} needs cniVersion {} or later",
                command.as_str(),
                needed.as_str()
            );
            let details = format!("the configuration says {}", version.as_str());
            return Err(CniError::new(Code::IncompatibleVersion, message).with_details(details));
        }
        let root = Field::root(&raw);
        let strict = matches!(command, Command::Add | Command::Check | Command::Status);
        let ipam = root.get("ipam")?;
        let ipam_type = ipam.as_ref().map(|f| f.get("type")).transpose()?.flatten();
        let runtime = root.get("runtimeConfig")?;
        let conf = Self {
            version,
            name: name(&root)?,
            kind: root
                .get("type")?
                .map(|f| f.str().map(str::to_owned))
                .transpose()?
                .unwrap_or_default(),
            mtu: if strict { mtu(&root)? } else { 0 },
            ip_masq: strict
                && root
                    .get("ipMasq")?
                    .map(|f| f.bool())
                    .transpose()?
                    .unwrap_or_default(),
            policy: if strict {
                policy(&root)?
            } else {
                PolicyMode::Required
            },
            run_dir: directory(&root, "runDir", DEFAULT_RUN_DIR)?,
            state_dir: directory(&root, "stateDir", DEFAULT_STATE_DIR)?,
            ipam_type: ipam_type
                .map(|f| f.str().map(str::to_owned))
                .transpose()?
                .filter(|t| !t.is_empty()),
            ips: if strict {
                asked_ips(&root, runtime.as_ref())?
            } else {
                Vec::new()
            },
            mac: if strict {
                asked_mac(&root, runtime.as_ref())?
            } else {
                None
            },
            port_mappings: match &runtime {
                Some(runtime) if command == Command::Add => PortMapping::read_all(runtime)?,
                _ => Vec::new(),
            },
            bandwidth: match command {
                Command::Add => Bandwidth::read(&root)?,
                _ => None,
            },
            valid_attachments: if command == Command::Gc {
                valid_attachments(&root)?
            } else {
                None
            },
            raw: Value::Null,
            bytes,
        };
        Ok(Self { raw, ..conf })
    }

    /// The document, to read further members from.
    pub fn root(&self) -> Field<'_> {
        Field::root(&self.raw)
    }
}

fn name(root: &Field<'_>) -> Result<String, CniError> {
    let field = root
        .get("name")?
        .ok_or_else(|| CniError::new(Code::InvalidConfig, "name: the network needs one"))?;
    let name = field.str()?;
    if request::is_name(name) {
        return Ok(name.to_owned());
    }
    Err(field.invalid("only letters, digits, '_', '.', '-' are allowed, a letter or digit first"))
}

fn mtu(root: &Field<'_>) -> Result<u32, CniError> {
    let Some(field) = root.get("mtu")? else {
        return Ok(0);
    };
    match field.u32()? {
        mtu @ (0 | 68..=65535) => Ok(mtu),
        _ => Err(field.invalid("0 (the kernel's choice), or from 68 to 65535; IPv6 needs 1280")),
    }
}

fn policy(root: &Field<'_>) -> Result<PolicyMode, CniError> {
    let Some(field) = root.get("policy")? else {
        return Ok(PolicyMode::Required);
    };
    match field.str()? {
        "required" => Ok(PolicyMode::Required),
        "optional" => Ok(PolicyMode::Optional),
        "none" => Ok(PolicyMode::None),
        _ => Err(field.invalid("required, optional or none")),
    }
}

fn directory(root: &Field<'_>, key: &str, default: &str) -> Result<PathBuf, CniError> {
    let Some(field) = root.get(key)? else {
        return Ok(PathBuf::from(default));
    };
    match field.str()? {
        "" => Ok(PathBuf::from(default)),
        path if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(field.invalid("an absolute path")),
    }
}

/// `args.cni`, where some runtimes put what others put into `runtimeConfig`.
fn args_cni<'a>(root: &Field<'a>) -> Result<Option<Field<'a>>, CniError> {
    root.get("args")?
        .map(|args| args.get("cni"))
        .transpose()
        .map(Option::flatten)
}

fn asked_ips(root: &Field<'_>, runtime: Option<&Field<'_>>) -> Result<Vec<IpAddr>, CniError> {
    for place in [runtime.cloned(), args_cni(root)?].into_iter().flatten() {
        let mut ips = Vec::new();
        for field in place
            .get("ips")?
            .map(|f| f.list())
            .transpose()?
            .unwrap_or_default()
        {
            ips.push(
                request::address(field.str()?)
                    .ok_or_else(|| field.invalid("expected an IP address"))?,
            );
        }
        if !ips.is_empty() {
            return Ok(ips);
        }
    }
    Ok(Vec::new())
}

fn asked_mac(root: &Field<'_>, runtime: Option<&Field<'_>>) -> Result<Option<[u8; 6]>, CniError> {
    for place in [runtime.cloned(), args_cni(root)?].into_iter().flatten() {
        if let Some(field) = place.get("mac")?.filter(|f| f.value() != "") {
            let mac = request::mac(field.str()?)
                .ok_or_else(|| field.invalid("expected a unicast hardware address"))?;
            return Ok(Some(mac));
        }
    }
    Ok(None)
}

fn valid_attachments(root: &Field<'_>) -> Result<Option<Vec<(String, String)>>, CniError> {
    // The second name is what libcni sent at first.
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let Some(field) = root.get(key)? else {
            continue;
        };
        let mut valid = Vec::new();
        for entry in field.list()? {
            let text = |key: &str| {
                entry
                    .get(key)?
                    .ok_or_else(|| entry.invalid(&format!("{key} is missing")))?
                    .str()
                    .map(str::to_owned)
            };
            valid.push((text("containerID")?, text("ifname")?));
        }
        return Ok(Some(valid));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, command: Command) -> Result<NetConf, CniError> {
        NetConf::parse(json.as_bytes().to_vec(), command)
    }

    #[test]
    fn defaults_and_members() {
        let conf = parse(
            r#"{"cniVersion":"1.1.0","name":"n","type":"selvage-cni"}"#,
            Command::Add,
        )
        .unwrap();
        assert_eq!(
            (conf.mtu, conf.ip_masq, conf.policy),
            (0, false, PolicyMode::Required)
        );
        assert_eq!(conf.run_dir.to_str(), Some(DEFAULT_RUN_DIR));
        let conf = parse(
            r#"{"cniVersion":"0.4.0","name":"n","mtu":1400,"ipMasq":true,"policy":"none","runDir":"/a","stateDir":"/b",
                "ipam":{"type":"host-local"},"args":{"cni":{"ips":["10.0.0.3"]}},"runtimeConfig":{"mac":"02:00:00:00:00:09","odd":1}}"#,
            Command::Add,
        )
        .unwrap();
        assert_eq!(
            (conf.mtu, conf.ip_masq, conf.policy),
            (1400, true, PolicyMode::None)
        );
        assert_eq!(
            (
                conf.ips.len(),
                conf.mac.is_some(),
                conf.ipam_type.as_deref()
            ),
            (1, true, Some("host-local"))
        );
    }

    #[test]
    fn refusals_name_code_and_member() {
        let table = [
            ("", 6, "empty"),
            ("  \n", 6, "empty"),
            ("{", 6, "JSON"),
            ("[]", 6, "object"),
            (r#"{"cniVersion":1,"name":"n"}"#, 6, "cniVersion"),
            (r#"{"name":"n"}"#, 1, "0.1.0"),
            (r#"{"cniVersion":"0.2.0","name":"n"}"#, 1, "0.2.0"),
            (r#"{"cniVersion":"9.9.9","name":"n"}"#, 1, "9.9.9"),
            (r#"{"cniVersion":"1.0.0"}"#, 7, "name"),
            (r#"{"cniVersion":"1.0.0","name":"../a"}"#, 7, "name"),
            (r#"{"cniVersion":"1.0.0","name":7}"#, 7, "name"),
            (r#"{"cniVersion":"1.0.0","name":"n","mtu":67}"#, 7, "mtu"),
            (r#"{"cniVersion":"1.0.0","name":"n","mtu":"x"}"#, 7, "mtu"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","policy":"maybe"}"#,
                7,
                "policy",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runDir":"a"}"#,
                7,
                "runDir",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","ipam":[]}"#, 7, "ipam"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"ips":["x"]}}"#,
                7,
                "runtimeConfig.ips[0]",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"x"}}"#,
                7,
                "runtimeConfig.mac",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":80}]}}"#,
                7,
                "runtimeConfig.portMappings[0]",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"bandwidth":{"ingressRate":8}}}"#,
                7,
                "runtimeConfig.bandwidth: ingressRate",
            ),
        ];
        for (json, code, part) in table {
            let error = parse(json, Command::Add).unwrap_err();
            assert!(
                error.code == code && error.message.contains(part),
                "{json}: {error}"
            );
        }
        let nothing_asked = r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"portMappings":[],"bandwidth":{"ingressRate":0}}}"#;
        assert!(parse(nothing_asked, Command::Add).is_ok());
    }

    #[test]
    fn commands_need_their_version() {
        for (version, command, ok) in [
            ("0.3.1", Command::Check, false),
            ("0.4.0", Command::Check, true),
            ("1.0.0", Command::Gc, false),
            ("1.0.0", Command::Status, false),
            ("1.1.0", Command::Gc, true),
            ("1.1.0", Command::Status, true),
        ] {
            let result = parse(
                &format!(r#"{{"cniVersion":"{version}","name":"n"}}"#),
                command,
            );
            assert_eq!(
                result.map_err(|e| e.code).err(),
                (!ok).then_some(1),
                "{version} {command:?}"
            );
        }
    }

    #[test]
    fn del_does_not_care_for_what_it_does_not_use() {
        let json = r#"{"cniVersion":"1.0.0","name":"n","mtu":"x","policy":1,"runtimeConfig":{"ips":1,"portMappings":[1]}}"#;
        assert!(parse(json, Command::Del).is_ok());
    }

    #[test]
    fn both_names_of_the_valid_attachments() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let json = format!(
                r#"{{"cniVersion":"1.1.0","name":"n","{key}":[{{"containerID":"a","ifname":"eth0"}}]}}"#
            );
            let conf = parse(&json, Command::Gc).unwrap();
            assert_eq!(
                conf.valid_attachments,
                Some(vec![("a".into(), "eth0".into())])
            );
        }
        assert_eq!(
            parse(r#"{"cniVersion":"1.1.0","name":"n"}"#, Command::Gc)
                .unwrap()
                .valid_attachments,
            None
        );
    }
}
