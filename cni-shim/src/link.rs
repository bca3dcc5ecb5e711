//! What the plugin and the agent say to each other, and the attachment that both keep.
//!
//! A conversation is one request and one reply over a stream socket (`cni.sock` in the run directory): each a
//! big-endian `u32` length followed by that many bytes of JSON. Both carry the version of this protocol, so that
//! a plugin and an agent of different releases find out before they misread each other. No message is longer
//! than [`MAX_FRAME`]; a longer one is refused before it is read.
//!
//! The JSON of an [`Attachment`] is also what lies, one file each, in the state directory. Unknown members are
//! ignored on reading: an older agent reads what a newer plugin wrote.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bandwidth::Bandwidth;
use crate::portmap::PortMapping;

/// The version of the protocol that this build speaks.
pub const VERSION: u32 = 1;

/// The longest message, in bytes. An attachment is about 600 bytes; this leaves room for long pod names and more.
pub const MAX_FRAME: usize = 64 * 1024;

/// The name of the socket in the run directory.
pub const SOCKET: &str = "cni.sock";

/// The file in the run directory that exists from the agent's first sync of this boot on; `STATUS` looks at it.
pub const READY: &str = "ready";

/// The folder in the state directory that holds one file per attachment.
pub const ATTACHMENTS: &str = "attachments";

/// Where sockets and the ready mark are, unless the configuration says otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/selvage";

/// Where attachments are kept, unless the configuration says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/selvage";

/// When a pod's interface is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyMode {
    /// Only after the agent has the pod's policy in the kernel; ADD waits for it and fails without.
    #[default]
    Required,
    /// ADD succeeds at once; the interface stays closed until the agent opens it.
    Optional,
    /// At once, by the plugin.
    None,
}

/// One container's interface: everything that policy, routes and a later DEL have to know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The `name` of the network configuration; leases are kept under it.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the name of the pod's end.
    pub ifname: String,
    /// `CNI_NETNS`, byte for byte.
    pub netns: String,
    /// Device number of the file behind `netns`.
    pub netns_dev: u64,
    /// Inode of the namespace; with `boot_id` it tells whether the sandbox is still the same one.
    pub netns_inode: u64,
    /// `/proc/sys/kernel/random/boot_id` when the attachment was made.
    pub boot_id: String,
    /// The host's end, `sv` and a hash.
    pub host_if: String,
    /// Interface index of the host's end; 0 before the interface exists.
    pub host_index: u32,
    /// The pod's own addresses, at most one of each family as a rule; routed as /32 and /128.
    pub addresses: Vec<IpAddr>,
    /// Where the leases of `addresses` are, if they are the plugin's own: the network's own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_dir: Option<String>,
    /// The name of the IPAM plugin, if the addresses came from another program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam_plugin: Option<String>,
    /// Whether traffic that leaves the cluster is to be masqueraded.
    #[serde(default)]
    pub ip_masq: bool,
    /// When the interface is opened, and by whom.
    #[serde(default)]
    pub policy: PolicyMode,
    /// The pod behind the container, if the runtime named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// MTU of both ends; 0 when the kernel chose.
    #[serde(default)]
    pub mtu: u32,
    /// The node's ports that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Whether a DEL has begun to take `port_mappings` out of the kernel: what is gone may be another pod's by now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ports_end: bool,
    /// How much the pod may receive and send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Members that this build does not know; kept when an attachment is written again.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Attachment {
    /// The name of the attachment's file in `<stateDir>/attachments/`. Both parts come from alphabets without `/`
    /// and the container id has no `@`, so that the name is unique.
    pub fn file_name(&self) -> String {
        attachment_file(&self.container_id, &self.ifname)
    }
}

/// The name of the file of the attachment (`container_id`, `ifname`).
pub fn attachment_file(container_id: &str, ifname: &str) -> String {
    format!("{}@{ifname}.json", file_part(container_id))
}

/// A container id or network name as a part of a file's name, which has 255 bytes at most: one that is too long is cut, and
/// its hash (FNV-1a of 128 bits) stands behind a `~`, which neither of the two has.
pub fn file_part(name: &str) -> Cow<'_, str> {
    const LONGEST: usize = 200;
    const KEPT: usize = 100;
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) + 0x13b;
    match name.get(..KEPT) {
        Some(kept) if name.len() > LONGEST => {
            let hash = name.bytes().fold(OFFSET, |hash, byte| {
                (hash ^ u128::from(byte)).wrapping_mul(PRIME)
            });
            format!("{kept}~{hash:032x}").into()
        }
        _ => name.into(),
    }
}

/// The pod as the runtime names it in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; empty if the runtime did not say (before containerd 1.6).
    #[serde(default)]
    pub uid: String,
}

/// What the plugin asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// A new attachment; its host end is down. Answered when the pod's policy is in the kernel.
    Attach {
        /// The attachment, as in its file.
        attachment: Box<Attachment>,
    },
    /// The attachment is going away. Answered at once; nothing that DEL does depends on the answer.
    Detach {
        /// `CNI_CONTAINERID`.
        id: String,
        /// `CNI_IFNAME`.
        ifname: String,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To `attach`: the pod's policy is in the kernel, the interface may be opened.
    Enforced {
        /// The generation of the policy plan that holds the pod.
        generation: u64,
        /// Whether the agent masquerades for this pod itself.
        masquerade: bool,
    },
    /// To `attach`: this agent enforces no policy; the interface may be opened.
    NotApplicable {
        /// Whether the agent masquerades for this pod itself.
        #[serde(default)]
        masquerade: bool,
    },
    /// To `detach`.
    Ok,
    /// The request was not carried out.
    Error {
        /// Why, for a person.
        message: String,
    },
}

/// Why a message could not be exchanged.
#[derive(Debug)]
pub enum LinkError {
    /// The stream failed, ended early or ran into its timeout.
    Io(io::Error),
    /// The announced length is above [`MAX_FRAME`].
    TooLong(usize),
    /// The other side speaks another version.
    Version(u64),
    /// Not the JSON that this version describes.
    Malformed(serde_json::Error),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{e}"),
            Self::TooLong(n) => write!(f, "message of {n} bytes, at most {MAX_FRAME} are allowed"),
            Self::Version(v) => write!(f, "protocol version {v}, this side speaks {VERSION}"),
            Self::Malformed(e) => write!(f, "malformed message: {e}"),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<io::Error> for LinkError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    version: u32,
    message: &'a T,
}

#[derive(Deserialize)]
struct Incoming {
    version: u64,
    message: serde_json::Value,
}

/// The JSON of a [`Request`] or [`Reply`], without its length.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, LinkError> {
    let body = serde_json::to_vec(&Outgoing {
        version: VERSION,
        message,
    })
    .map_err(LinkError::Malformed)?;
    if body.len() > MAX_FRAME {
        Err(LinkError::TooLong(body.len()))
    } else {
        Ok(body)
    }
}

/// A [`Request`] or [`Reply`] from its JSON; the version is looked at first.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, LinkError> {
    let incoming: Incoming = serde_json::from_slice(body).map_err(LinkError::Malformed)?;
    if incoming.version != u64::from(VERSION) {
        return Err(LinkError::Version(incoming.version));
    }
    serde_json::from_value(incoming.message).map_err(LinkError::Malformed)
}

/// Writes one frame: length and body in one call, so that a small message is one write to the socket.
pub fn write_frame(to: &mut impl Write, body: &[u8]) -> Result<(), LinkError> {
    if body.len() > MAX_FRAME {
        return Err(LinkError::TooLong(body.len()));
    }
    let length = u32::try_from(body.len()).map_err(|_| LinkError::TooLong(body.len()))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    to.write_all(&frame)?;
    to.flush()?;
    Ok(())
}

/// Reads one frame. Nothing is allocated for a length above [`MAX_FRAME`].
pub fn read_frame(from: &mut impl Read) -> Result<Vec<u8>, LinkError> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(LinkError::TooLong(length));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(body)
}

/// Sends a [`Request`] or [`Reply`].
pub fn send<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), LinkError> {
    write_frame(to, &encode(message)?)
}

/// Receives a [`Request`] or [`Reply`].
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, LinkError> {
    decode(&read_frame(from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandwidth::Limit;
    use crate::portmap::Transport;

    pub(crate) fn attachment() -> Attachment {
        Attachment {
            network: "selvage".into(),
            container_id: "abc".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            netns_dev: 4,
            netns_inode: 4026532000,
            boot_id: "b".into(),
            host_if: "sv0123456789a".into(),
            host_index: 7,
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            lease_dir: Some("/var/lib/cni/networks/selvage".into()),
            ipam_plugin: None,
            ip_masq: true,
            policy: PolicyMode::Optional,
            pod: Some(PodRef {
                namespace: "default".into(),
                name: "web".into(),
                uid: "u".into(),
            }),
            mtu: 1500,
            ports_end: true,
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Transport::Tcp,
                host_ip: Some("192.0.2.1".parse().unwrap()),
            }],
            bandwidth: Some(Bandwidth {
                ingress: Some(Limit {
                    rate: 1_000_000,
                    burst: None,
                }),
                egress: None,
            }),
            other: BTreeMap::new(),
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let requests = [
            Request::Attach {
                attachment: Box::new(attachment()),
            },
            Request::Detach {
                id: "abc".into(),
                ifname: "eth0".into(),
            },
        ];
        let mut wire = Vec::new();
        for request in &requests {
            send(&mut wire, request).unwrap();
        }
        let mut rest = wire.as_slice();
        for request in requests {
            assert_eq!(receive::<Request>(&mut rest).unwrap(), request);
        }
        for reply in [
            Reply::Enforced {
                generation: 3,
                masquerade: true,
            },
            Reply::NotApplicable { masquerade: false },
            Reply::Ok,
            Reply::Error {
                message: "no".into(),
            },
        ] {
            assert_eq!(decode::<Reply>(&encode(&reply).unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn members_of_a_newer_release_are_kept() {
        let mut json = serde_json::to_value(attachment()).unwrap();
        json["shape"] = serde_json::json!({"rate": 5});
        let read: Attachment = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), json);
    }

    #[test]
    fn bad_frames_are_refused() {
        let long = ((MAX_FRAME + 1) as u32).to_be_bytes();
        assert!(matches!(
            read_frame(&mut long.as_slice()),
            Err(LinkError::TooLong(_))
        ));
        assert!(matches!(
            read_frame(&mut [0, 0, 0, 9, b'x'].as_slice()),
            Err(LinkError::Io(_))
        ));
        assert!(matches!(
            decode::<Reply>(b"{}"),
            Err(LinkError::Malformed(_))
        ));
        assert!(matches!(
            decode::<Reply>(br#"{"version":2,"message":{"new":1}}"#),
            Err(LinkError::Version(2))
        ));
        assert!(matches!(
            decode::<Reply>(br#"{"version":1,"message":{"new":1}}"#),
            Err(LinkError::Malformed(_))
        ));
    }
}
