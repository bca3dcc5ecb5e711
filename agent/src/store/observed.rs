//! What the kernel and the speaker showed: facts like any other, never commands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use crate::kernel::sysctl::Setting;

/// One observation. Sent by the owner of the thing observed, applied by [`super::Store::observe`].
#[derive(Clone, Debug, PartialEq)]
pub enum Observed {
    /// All links and their addresses, as they are now.
    Links(BTreeMap<u32, Link>),
    /// One link, new or changed.
    Link(u32, Link),
    /// A link is gone.
    LinkGone(u32),
    /// All interfaces of another plugin's pods, by name, as they are now.
    PodInterfaces(BTreeMap<String, PodInterface>),
    /// Whether the namespace forwards packets; `None`: it does not have the family.
    Forwarding {
        /// `net.ipv4.ip_forward`.
        ipv4: Option<bool>,
        /// `net.ipv6.conf.all.forwarding`.
        ipv6: Option<bool>,
    },
    /// Forward chains of other programs that drop what their rules do not accept, as `ip filter FORWARD`.
    Droppers(Vec<String>),
    /// The kernel's side of the routes learned by BGP.
    Routes(RouteCounts),
    /// The kernel's side of policy.
    Policy(PolicyState),
    /// A neighbour's session, new or changed.
    Peer(Box<PeerState>),
    /// A neighbour is no longer configured.
    PeerGone(IpAddr),
    /// Who connects to the speaker without being configured.
    UnknownSources(UnknownSources),
    /// Something that the agent wants but this kernel or its settings do not give; by a short stable name.
    Lacking(&'static str, String),
    /// It is there after all.
    NotLacking(&'static str),
    /// The sysctls that are not as this node needs them, all of them.
    Sysctls(Vec<Setting>),
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// IFF_UP.
    pub up: bool,
    /// IFF_LOWER_UP: it has a carrier.
    pub carrier: bool,
    /// Its group (IFLA_GROUP).
    pub group: u32,
    /// [`PodInterfaces`](crate::pod_interfaces::PodInterfaces) takes it for one that leads to a pod.
    pub pods: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Addresses with their prefix length.
    pub addresses: Vec<IpNet>,
}

/// The group of the host's ends of pods (interfaces: 0x5e1).
pub const POD_LINK_GROUP: u32 = 0x5e1;

impl Link {
    /// Whether it leads to a pod: its addresses are not ours.
    pub fn is_pods(&self) -> bool {
        self.pods || self.group == POD_LINK_GROUP
    }
}

/// The host's end of a pod that another plugin made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInterface {
    /// Its index.
    pub index: u32,
    /// The addresses with a route of their own over it, while it is up.
    pub addresses: BTreeSet<IpAddr>,
    /// The bridge that it is a port of.
    pub bridge: Option<String>,
}

/// The kernel's side of the routes learned by BGP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// Installed, IPv4.
    pub ipv4: u64,
    /// Installed, IPv6.
    pub ipv6: u64,
    /// Wanted, but no next hop of theirs can be reached.
    pub unresolved: u64,
    /// Wanted, but refused by the kernel.
    pub failed: u64,
}

/// The kernel's side of policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// The newest generation that the kernel acknowledged; 0 before the first.
    pub enforced: u64,
    /// Why the newest attempt failed.
    pub failure: Option<String>,
    /// How often somebody else's change was repaired.
    pub repaired: u64,
}

/// A neighbour's session.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerState {
    /// Its address.
    pub address: IpAddr,
    /// Where the session is.
    pub state: SessionState,
    /// Since when.
    pub since: SystemTime,
    /// Its autonomous system, once known.
    pub asn: Option<u32>,
    /// Why it is down, or went down last, and when that was; `None` while it is Established.
    pub last_error: Option<(SystemTime, String)>,
    /// What to do about that.
    pub hint: Option<&'static str>,
    /// Faults of the neighbour that its sessions have survived, by kind.
    pub faults: Vec<FaultCount>,
    /// The last of them.
    pub last_fault: Option<LastFault>,
    /// Prefixes accepted from it, IPv4 and IPv6.
    pub received: [u64; 2],
    /// Prefixes announced to it, IPv4 and IPv6.
    pub advertised: [u64; 2],
    /// Whether its End-of-RIB came, for the families in use.
    pub end_of_rib: bool,
    /// The families of which routes of an earlier session are kept.
    pub stale: Vec<StaleFamily>,
    /// How often it was Established.
    pub flaps: u64,
    /// Families in use; empty unless Established.
    pub families: [bool; 2],
    /// Who it is (its BGP identifier), once known.
    pub router_id: Option<String>,
    /// Configured families that the session does not carry, and why; empty unless Established.
    pub unused_families: Vec<UnusedFamily>,
    /// Negotiated hold time in seconds; 0: none.
    pub hold: u16,
    /// Settings that the next session will have and the present one has not, in words; empty unless Established.
    pub next_session: Vec<String>,
    /// It connected from inside a range.
    pub dynamic: bool,
}

/// Connections to the speaker that were closed because nobody with their address is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownSources {
    /// All of them.
    pub connections: u64,
    /// The last sources, the latest first: address, connections, time of the last one.
    pub last: Vec<(IpAddr, u64, SystemTime)>,
}

/// How often a neighbour made a fault that its session has survived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultCount {
    /// `treatAsWithdraw`, `attributeDiscard`, `openRefused` or `unusableNextHop`.
    pub kind: &'static str,
    /// In how many messages.
    pub messages: u64,
    /// How many prefixes these announced.
    pub prefixes: u64,
}

/// A fault of a neighbour that its session has survived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFault {
    /// As in [`FaultCount`].
    pub kind: &'static str,
    /// When the message came.
    pub at: SystemTime,
    /// The name of the attribute at fault.
    pub attribute: Option<String>,
    /// Code and subcode of the NOTIFICATION that would name it, as in `3/8`.
    pub code: Option<String>,
    /// How many prefixes the message announced.
    pub prefixes: u32,
    /// For people.
    pub text: String,
}

/// The routes of an earlier session that are kept, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFamily {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// When they go, if the neighbour does not announce them again.
    pub until: SystemTime,
    /// They are a last resort (RFC 9494).
    pub long_lived: bool,
}

/// A configured family that a session does not carry, or in which we announce nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusedFamily {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// For people.
    pub reason: String,
    /// We have no next hop to announce in it; else the neighbour does not offer it.
    pub no_next_hop: bool,
}

impl PeerState {
    /// A neighbour that nothing is known of.
    pub fn new(address: IpAddr) -> PeerState {
        PeerState {
            address,
            state: SessionState::Idle,
            since: SystemTime::UNIX_EPOCH,
            asn: None,
            last_error: None,
            hint: None,
            faults: Vec::new(),
            last_fault: None,
            received: [0; 2],
            advertised: [0; 2],
            end_of_rib: false,
            stale: Vec::new(),
            flaps: 0,
            families: [false; 2],
            router_id: None,
            unused_families: Vec::new(),
            hold: 0,
            next_session: Vec::new(),
            dynamic: false,
        }
    }

    /// Established.
    pub fn is_up(&self) -> bool {
        self.state == SessionState::Established
    }

    /// Established, and the End-of-RIB has come.
    pub fn is_complete(&self) -> bool {
        self.is_up() && self.end_of_rib
    }

    /// Names of the families in use.
    pub fn family_names(&self) -> Vec<String> {
        let named = ["ipv4", "ipv6"].into_iter().zip(self.families);
        named
            .filter(|(_, used)| *used)
            .map(|(name, _)| name.into())
            .collect()
    }
}

/// States of RFC 4271 section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum SessionState {
    /// Not trying.
    #[default]
    Idle,
    /// Connecting.
    Connect,
    /// Waiting to connect again.
    Active,
    /// OPEN sent.
    OpenSent,
    /// OPEN received.
    OpenConfirm,
    /// Exchanging routes.
    Established,
}

impl SessionState {
    /// As the standard spells it.
    pub fn name(self) -> &'static str {
        match self {
            SessionState::Idle => "Idle",
            SessionState::Connect => "Connect",
            SessionState::Active => "Active",
            SessionState::OpenSent => "OpenSent",
            SessionState::OpenConfirm => "OpenConfirm",
            SessionState::Established => "Established",
        }
    }
}
