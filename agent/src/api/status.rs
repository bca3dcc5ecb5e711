//! One screen's worth of what is going on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything that `selvage status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// Version of the daemon.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: u64,
    /// Features that run.
    pub features: Vec<String>,
    /// All in all.
    pub health: Health,
    /// Whether the node can serve pods.
    pub ready: ReadyView,
    /// Where the objects come from.
    pub source: SourceView,
    /// The speaker; absent without the feature.
    pub bgp: Option<BgpView>,
    /// Routes in the kernel; absent without the feature.
    pub routes: Option<RouteTotals>,
    /// Policy in the kernel; absent without the feature.
    pub policy: Option<PolicyView>,
    /// What is wrong and what to do, the worst first.
    pub wrong: Vec<Finding>,
}

/// All in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Nothing is wrong.
    Good,
    /// It works, but something is missing.
    Degraded,
    /// It is not ready yet.
    Starting,
}

/// Whether the node can serve pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadyView {
    /// It can.
    pub ready: bool,
    /// What it waits for, or what it went without.
    pub missing: Vec<String>,
}

/// Where the objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceView {
    /// The file or directory, or `kubernetes`.
    pub from: String,
    /// Whether everything was read once.
    pub synced: bool,
    /// Objects in force, by kind.
    pub objects: BTreeMap<String, usize>,
    /// What could not be used; the first 100.
    pub problems: Vec<ProblemView>,
    /// How much could not be used.
    #[serde(default)]
    pub problem_count: usize,
}

/// Something in the source that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// `file:line:column`.
    pub at: String,
    /// `Kind name`; empty for the file as a whole.
    pub object: String,
    /// Field path; may be empty.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// The speaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpView {
    /// Our autonomous system.
    pub asn: u32,
    /// Our BGP identifier.
    pub router_id: String,
    /// Prefixes that we originate.
    pub networks: Vec<String>,
    /// The neighbours, by address.
    pub peers: Vec<PeerView>,
    /// Connections that were closed because nobody with their address is configured.
    #[serde(default)]
    pub unknown_connections: u64,
    /// Where the last of them came from, the latest first; eight at most.
    #[serde(default)]
    pub unknown_sources: Vec<UnknownSourceView>,
}

/// An address that connects without being configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnknownSourceView {
    /// The address.
    pub address: IpAddr,
    /// How often.
    pub connections: u64,
    /// Seconds since the last time.
    pub since: u64,
}

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// Its address.
    pub address: IpAddr,
    /// Where it is configured: `mesh`, or `BGPPeer NAME`.
    pub origin: String,
    /// For people; may be empty.
    pub description: String,
    /// Its autonomous system, or what is expected of it (`internal`, `external`).
    pub asn: String,
    /// State of RFC 4271, as in `Established`.
    pub state: String,
    /// Whether that is Established.
    pub up: bool,
    /// Seconds in this state.
    pub since: u64,
    /// Families in use.
    pub families: Vec<String>,
    /// Configured families that the session does not carry, or in which nothing is announced.
    #[serde(default)]
    pub unused_families: Vec<UnusedFamilyView>,
    /// Prefixes accepted from it, IPv4 and IPv6.
    pub received: [u64; 2],
    /// Prefixes announced to it, IPv4 and IPv6.
    pub advertised: [u64; 2],
    /// Whether its End-of-RIB came.
    pub end_of_rib: bool,
    /// Whether its routes of an earlier session are kept.
    pub stale: bool,
    /// Of which families, and for how long.
    #[serde(default)]
    pub stale_families: Vec<StaleFamilyView>,
    /// Why it is down, or went down last.
    pub last_error: Option<String>,
    /// What to do about that.
    #[serde(default)]
    pub hint: Option<String>,
    /// Faults that its sessions have survived, by kind; those that it made.
    #[serde(default)]
    pub faults: Vec<FaultCountView>,
    /// The last of them.
    #[serde(default)]
    pub last_fault: Option<FaultView>,
    /// How often it was Established.
    pub established: u64,
    /// Its BGP identifier.
    pub router_id: Option<String>,
    /// Hold time in seconds.
    pub hold: u16,
    /// Settings that apply from the next session on, in words; empty if the present session has all of them.
    #[serde(default)]
    pub next_session: Vec<String>,
}

/// The routes of an earlier session that are kept, of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StaleFamilyView {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Seconds until they go, if the neighbour does not announce them again.
    pub remaining: u64,
    /// They are a last resort (RFC 9494).
    pub long_lived: bool,
}

/// How often a neighbour made a fault that its session has survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultCountView {
    /// `treatAsWithdraw`, `attributeDiscard`, `openRefused` or `unusableNextHop`.
    pub kind: String,
    /// In how many messages.
    pub messages: u64,
    /// How many prefixes these announced.
    pub prefixes: u64,
}

/// A fault that a session has survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultView {
    /// As in [`FaultCountView`].
    pub kind: String,
    /// Seconds since then.
    pub since: u64,
    /// The name of the attribute at fault.
    pub attribute: Option<String>,
    /// Code and subcode of the NOTIFICATION that would name it, as in `3/8`.
    pub code: Option<String>,
    /// How many prefixes the message announced.
    pub prefixes: u32,
    /// For people.
    pub text: String,
}

/// A configured family that a session does not carry, or in which nothing is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnusedFamilyView {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Why the session does not carry it, for people.
    pub reason: String,
}

/// Routes in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTotals {
    /// Installed, IPv4.
    pub ipv4: u64,
    /// Installed, IPv6.
    pub ipv6: u64,
    /// Wanted, without a next hop that can be reached.
    pub unresolved: u64,
    /// Wanted, refused by the kernel.
    pub failed: u64,
}

/// Policy in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// The newest generation that the kernel has.
    pub enforced: u64,
    /// The newest generation that there is.
    pub planned: u64,
    /// Pods of this node that are attached.
    pub local_pods: usize,
    /// How the names of another plugin's pod interfaces begin, as `veth*`; empty where pods are our plugin's.
    #[serde(default)]
    pub pod_interfaces: Vec<String>,
    /// Pods of this node with an address that is behind no such interface: policy is not enforced for it.
    #[serde(default)]
    pub unrouted: usize,
    /// Pods of this node that are closed: their policy is not in the kernel, or no such Pod is known.
    pub waiting: usize,
    /// Policies in force in the cluster.
    pub policies: usize,
    /// Policies of kinds that this version does not enforce, by kind.
    #[serde(default)]
    pub not_enforced: Vec<NotEnforcedView>,
    /// Why the newest attempt failed.
    pub failure: Option<String>,
    /// How often somebody else's change was repaired.
    pub repaired: u64,
}

/// Policies of one kind that are accepted by the API server, or written in a file, and not enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NotEnforcedView {
    /// The kind, as in `ClusterNetworkPolicy`.
    pub kind: String,
    /// How many there are.
    pub count: usize,
    /// The names of the first five.
    pub names: Vec<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What.
    pub what: String,
    /// What to do about it.
    pub todo: Option<String>,
}
