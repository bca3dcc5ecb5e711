//! The environment of a call: which command, for which container, and the runtime's arguments.
//!
//! It is checked before standard input is read. Names from here become parts of file and interface names; nothing
//! but the specification's alphabet gets through.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;

use super::error::{CniError, Code};
use crate::link::PodRef;

/// The variables as the process got them; a plain value, so that tests need no process.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `argv[0]`; its last part may select `loopback`.
    pub program: OsString,
    /// The `CNI_*` variables by name.
    pub variables: BTreeMap<String, OsString>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(key, value)| key.into_string().ok().map(|key| (key, value)))
            .filter(|(key, _)| key.starts_with("CNI_"))
            .collect();
        Self {
            program: std::env::args_os().next().unwrap_or_default(),
            variables,
        }
    }

    /// A variable's text. Empty counts as absent; not UTF-8 is code 4.
    fn text(&self, name: &str) -> Result<Option<&str>, CniError> {
        match self.variables.get(name).map(|value| value.to_str()) {
            None | Some(Some("")) => Ok(None),
            Some(Some(text)) => Ok(Some(text)),
            Some(None) => Err(environment(format!("{name} is not UTF-8"))),
        }
    }

    fn is_true(&self, name: &str) -> bool {
        self.text(name).ok().flatten().is_some_and(truth)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare with what ADD made.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// As it stands in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

/// A call whose environment is valid. Names that a command does not need are empty.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; may be empty for DEL.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`: where delegated plugins are looked for.
    pub path: Option<String>,
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is an allowed target.
    pub allow_own_netns: bool,
    /// The program's name is `loopback`.
    pub named_loopback: bool,
}

impl Call {
    /// The call, or code 4 with all that is missing.
    pub fn parse(env: &Environment) -> Result<Self, CniError> {
        let command = env.text("CNI_COMMAND")?.ok_or_else(|| {
            environment(
                "CNI_COMMAND is missing; this is a CNI plugin, to be run by a container runtime"
                    .to_owned(),
            )
        })?;
        let command = Command::parse(command).ok_or_else(|| {
            environment(format!(
                "CNI_COMMAND={command:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"
            ))
        })?;
        let mut missing = Vec::new();
        for &name in command.required() {
            if env.text(name)?.is_none() {
                missing.push(name);
            }
        }
        if !missing.is_empty() {
            return Err(environment(format!(
                "{} needs {}",
                command.as_str(),
                missing.join(", ")
            )));
        }
        let named_loopback = std::path::Path::new(&env.program)
            .file_name()
            .is_some_and(|name| name == "loopback");
        let mut call = Self {
            command,
            container_id: String::new(),
            netns: String::new(),
            ifname: String::new(),
            args: Args::default(),
            path: None,
            allow_own_netns: env.is_true("CNI_NETNS_OVERRIDE"),
            named_loopback,
        };
        if command == Command::Version {
            return Ok(call);
        }
        call.path = env.text("CNI_PATH")?.map(str::to_owned);
        if command.required().is_empty() {
            return Ok(call);
        }
        call.container_id =
            container_id(env.text("CNI_CONTAINERID")?.unwrap_or_default())?.to_owned();
        call.ifname = ifname(env.text("CNI_IFNAME")?.unwrap_or_default())?.to_owned();
        call.netns = env.text("CNI_NETNS")?.unwrap_or_default().to_owned();
        call.args = match Args::parse(env.text("CNI_ARGS")?.unwrap_or_default()) {
            Ok(args) => args,
            // What DEL has to do does not depend on them, and it must not fail for what it does not use.
            Err(_) if command == Command::Del => Args::default(),
            Err(e) => return Err(e),
        };
        Ok(call)
    }
}

/// `CNI_ARGS`: what is used of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The pod, if both namespace and name were given.
    pub pod: Option<PodRef>,
    /// `IP`: the addresses asked for.
    pub ips: Vec<IpAddr>,
    /// `MAC`: the hardware address asked for.
    pub mac: Option<[u8; 6]>,
}

impl Args {
    /// From `K=V;K=V`. Keys that are not known are an error unless `IgnoreUnknown` is true.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut pairs = Vec::new();
        for piece in text.split(';').filter(|piece| !piece.is_empty()) {
            match piece.split_once('=') {
                Some((key, value)) if !key.is_empty() && !value.contains('=') => {
                    pairs.push((key, value))
                }
                _ => return Err(environment(format!("CNI_ARGS: {piece:?} is not KEY=VALUE"))),
            }
        }
        let ignore = pairs
            .iter()
            .any(|&(key, value)| key == "IgnoreUnknown" && truth(value));
        let mut args = Self::default();
        let (mut namespace, mut name, mut uid) = (None, None, String::new());
        for (key, value) in pairs {
            match key {
                "IgnoreUnknown" | "K8S_POD_INFRA_CONTAINER_ID" => {}
                "K8S_POD_NAMESPACE" => namespace = Some(value.to_owned()),
                "K8S_POD_NAME" => name = Some(value.to_owned()),
                "K8S_POD_UID" => uid = value.to_owned(),
                "IP" => args.ips = addresses(value)?,
                "MAC" => {
                    args.mac = Some(mac(value).ok_or_else(|| bad_mac("CNI_ARGS: MAC", value))?)
                }
                _ if ignore => {}
                _ => {
                    return Err(environment(format!(
                        "CNI_ARGS: {key} is not known, and IgnoreUnknown is not set"
                    )));
                }
            }
        }
        args.pod = namespace.zip(name).map(|(namespace, name)| PodRef {
            namespace,
            name,
            uid,
        });
        Ok(args)
    }
}

fn addresses(list: &str) -> Result<Vec<IpAddr>, CniError> {
    let parse = |text: &str| address(text.trim());
    let found: Option<Vec<_>> = list
        .split(',')
        .filter(|text| !text.trim().is_empty())
        .map(parse)
        .collect();
    found.ok_or_else(|| {
        environment(format!(
            "CNI_ARGS: IP={list:?} is not a list of IP addresses"
        ))
    })
}

/// An address that may carry a prefix length, as runtimes write them.
pub fn address(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| super::Cidr::parse(text).map(super::Cidr::addr))
}

/// A hardware address: six groups of two hexadecimal digits, not multicast and not all zero.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut groups = text.split([':', '-']);
    for byte in &mut bytes {
        let group = groups
            .next()
            .filter(|g| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(group, 16).ok()?;
    }
    (groups.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

fn bad_mac(what: &str, value: &str) -> CniError {
    environment(format!(
        "{what}={value:?} is not a unicast hardware address"
    ))
}

/// Letters, digits, `_`, `.`, `-`, the first a letter or digit. The specification has no limit of the length.
pub fn is_name(text: &str) -> bool {
    let tail = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(tail)
}

fn container_id(text: &str) -> Result<&str, CniError> {
    if is_name(text) {
        return Ok(text);
    }
    Err(environment(format!(
        "CNI_CONTAINERID={text:?}: only letters, digits, '_', '.', '-' are allowed, a letter or digit first"
    )))
}

/// What the kernel accepts as an interface name; `%` is refused as the kernel takes it for a pattern.
pub fn ifname(text: &str) -> Result<&str, CniError> {
    let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    if (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.chars().any(bad) {
        return Ok(text);
    }
    Err(environment(format!(
        "CNI_IFNAME={text:?}: 1 to 15 bytes, not '.' or '..', without '/', ':', '%', white space"
    )))
}

fn truth(text: &str) -> bool {
    matches!(text, "1" | "true" | "True" | "TRUE" | "t" | "T")
}

fn environment(message: String) -> CniError {
    CniError::new(Code::Environment, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let args = Args::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c;X=;IP=10.0.0.9",
        )
        .unwrap();
        let pod = PodRef {
            namespace: "a".into(),
            name: "b".into(),
            uid: "c".into(),
        };
        assert_eq!(
            args,
            Args {
                pod: Some(pod),
                ips: vec!["10.0.0.9".parse().unwrap()],
                mac: None
            }
        );
        assert_eq!(
            Args::parse("K8S_POD_NAME=b;IgnoreUnknown=true;Z=1")
                .unwrap()
                .pod,
            None,
            "name without namespace"
        );
        for bad in [
            "X=1",
            "IgnoreUnknown=0;X=1",
            "X",
            "IgnoreUnknown=1;X",
            "a=b=c;IgnoreUnknown=1",
            "IP=x",
            "MAC=1",
            "=1",
        ] {
            assert_eq!(Args::parse(bad).unwrap_err().code, 4, "{bad}");
        }
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!(mac("02:00:5e:10:00:ff"), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "0g:00:00:00:00:00",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "0abc_.-", "A".repeat(2000).as_str()] {
            assert!(is_name(good));
        }
        for bad in ["", "../x", "-a", "_a", "a/b", "a b", "ä"] {
            assert!(!is_name(bad), "{bad}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\u{a0}b",
            "1234567890123456",
            "eth%d",
        ] {
            assert!(ifname(bad).is_err(), "{bad}");
        }
        assert!(ifname("123456789012345").is_ok());
    }
}
