//! What is asked for: a port of the host that leads to one of the pod's.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::spec::CniError;
use crate::spec::field::Field;

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// IANA's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// One of `runtimeConfig.portMappings`, as it is kept in the attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The host's port.
    pub host_port: u16,
    /// The pod's.
    pub container_port: u16,
    /// Of both.
    pub protocol: Transport,
    /// The address of the host that it is for: none is any, `0.0.0.0` and `::` are any of their family.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// The mappings of a `runtimeConfig`, each once. Those without a host port ask for nothing.
    pub fn read_all(runtime: &Field<'_>) -> Result<Vec<Self>, CniError> {
        let Some(list) = runtime.get("portMappings")? else {
            return Ok(Vec::new());
        };
        let mut found = BTreeSet::new();
        for field in list.list()? {
            let Some(mapping) = Self::read(&field)? else {
                continue;
            };
            let place = |other: &&Self| {
                (other.host_port, other.protocol, other.host_ip)
                    == (mapping.host_port, mapping.protocol, mapping.host_ip)
            };
            if let Some(other) = found.iter().find(place).filter(|other| **other != mapping) {
                return Err(field.invalid(&format!(
                    "{mapping} leads to the ports {} and {} at once",
                    other.container_port, mapping.container_port
                )));
            }
            found.insert(mapping);
        }
        Ok(found.into_iter().collect())
    }

    fn read(field: &Field<'_>) -> Result<Option<Self>, CniError> {
        let port = |key: &str| {
            let Some(value) = field.get_of_runtime(key)? else {
                return Ok(0);
            };
            u16::try_from(value.u32()?).map_err(|_| value.invalid("a port, at most 65535"))
        };
        let (host_port, container_port) = (port("hostPort")?, port("containerPort")?);
        if host_port == 0 {
            return Ok(None);
        }
        if container_port == 0 {
            return Err(field.invalid("containerPort is missing; from 1 to 65535"));
        }
        Ok(Some(Self {
            host_port,
            container_port,
            protocol: transport(field)?,
            host_ip: host_ip(field)?,
        }))
    }

    /// Whether it says anything about a family.
    pub fn applies(&self, v6: bool) -> bool {
        self.host_ip.is_none_or(|addr| addr.is_ipv6() == v6)
    }

    /// The one address that it is for, if it is for one.
    pub fn particular(&self) -> Option<IpAddr> {
        self.host_ip.filter(|addr| !addr.is_unspecified())
    }
}

fn host_ip(field: &Field<'_>) -> Result<Option<IpAddr>, CniError> {
    let Some(value) = field.get_of_runtime("hostIP")?.filter(|f| f.value() != "") else {
        return Ok(None);
    };
    let addr = value.addr()?;
    if addr == IpAddr::from(Ipv6Addr::LOCALHOST) {
        return Err(value.unsupported("the kernel routes nothing from ::1 to a pod"));
    }
    Ok(Some(addr))
}

fn transport(field: &Field<'_>) -> Result<Transport, CniError> {
    let Some(protocol) = field
        .get_of_runtime("protocol")?
        .filter(|f| f.value() != "")
    else {
        return Ok(Transport::Tcp);
    };
    match protocol.str()?.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "sctp" => Ok(Transport::Sctp),
        _ => Err(protocol.invalid("tcp, udp or sctp")),
    }
}

/// The host's side, as a person is told of it.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        };
        write!(f, "host port {}/{protocol}", self.host_port)?;
        match self.host_ip {
            Some(addr) => write!(f, " of {addr}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(list: Value) -> Result<Vec<PortMapping>, CniError> {
        PortMapping::read_all(&Field::root(&json!({"portMappings": list})))
    }

    #[test]
    fn asked_for_in_many_ways() {
        let mapping = |protocol, host_ip: Option<&str>| PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
        };
        for (json, expected) in [
            (
                json!({"hostPort": 80, "containerPort": 8080}),
                Some(mapping(Transport::Tcp, None)),
            ),
            (
                json!({"hostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": ""}),
                Some(mapping(Transport::Udp, None)),
            ),
            (
                json!({"hostPort": 80, "containerPort": 8080, "protocol": "sctp", "hostIP": "fd00::1"}),
                Some(mapping(Transport::Sctp, Some("fd00::1"))),
            ),
            // As containerd writes it.
            (
                json!({"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""}),
                Some(mapping(Transport::Tcp, None)),
            ),
            (
                json!({"HostPort": 80, "ContainerPort": 8080, "Protocol": "sctp", "HostIP": "fd00::1"}),
                Some(mapping(Transport::Sctp, Some("fd00::1"))),
            ),
            (json!({"HostPort": 0, "ContainerPort": 8080}), None),
            (json!({"hostPort": 0, "containerPort": 8080}), None),
            (json!({"containerPort": 8080}), None),
        ] {
            assert_eq!(
                read(json!([json])).unwrap(),
                Vec::from_iter(expected),
                "{json}"
            );
            assert_eq!(
                read(json!([json, json])).unwrap(),
                Vec::from_iter(expected),
                "twice"
            );
        }
        let kept = serde_json::to_value(mapping(Transport::Tcp, Some("192.0.2.1"))).unwrap();
        assert_eq!(
            kept,
            json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "192.0.2.1"})
        );
    }

    #[test]
    fn refusals_name_the_member() {
        for (json, path) in [
            (
                json!([{"hostPort": 65536, "containerPort": 1}]),
                "portMappings[0].hostPort",
            ),
            (
                json!([{"hostPort": -1, "containerPort": 1}]),
                "portMappings[0].hostPort",
            ),
            (json!([{"hostPort": 1}]), "portMappings[0]: containerPort"),
            (
                json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
                "portMappings[0].protocol",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]),
                "portMappings[0].hostIP",
            ),
            (
                json!([{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]),
                "portMappings[1]: host port 1/tcp",
            ),
            (json!(7), "portMappings"),
        ] {
            let error = read(json.clone()).unwrap_err();
            assert!(
                error.code == 7 && error.message.starts_with(path),
                "{json}: {error}"
            );
        }
    }
}
