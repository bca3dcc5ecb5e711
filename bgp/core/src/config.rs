//! What a speaker is told to be. Plain values, valid by construction of the caller's lowering; secrets do not print.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    ids::{Asn, Family, FamilySet, IfIndex, PeerKey, RouterId},
    prefix::Prefix,
};

/// The whole speaker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpeakerConfig {
    /// Our autonomous system; 1 to 4294967295.
    pub asn: Asn,
    /// Our BGP identifier; not zero.
    pub router_id: RouterId,
    /// The cluster id as a route reflector (RFC 4456 section 7); the BGP identifier where absent.
    pub cluster_id: Option<RouterId>,
    /// Where to accept connections; empty: nowhere. Port 179 unless told otherwise.
    pub listen: Vec<SocketAddr>,
    /// Graceful restart as we announce it and help others with it.
    pub graceful_restart: GracefulRestart,
    /// What we originate, with the origin IGP and an empty AS_PATH.
    pub networks: Vec<Prefix>,
    /// How many equal paths a best-path set may hold, 1 to 255.
    pub maximum_paths: u8,
    /// The node's own address in each family (InternalIP): our next hop where the interface of a session does not give
    /// one, see `own_next_hop`.
    pub local_address: [Option<IpAddr>; 2],
    /// The addresses of our links, without loopback and without those of pods: where sessions run and next hops are.
    pub links: Vec<LinkAddresses>,
    /// Prefixes of our own links: the built-in import filter for external peers refuses them.
    pub connected: Vec<Prefix>,
    /// Whether next hops count as reachable without asking anyone (a speaker without a kernel).
    pub assume_reachable: bool,
    /// Neighbours with an address of their own.
    pub peers: Vec<Arc<PeerConfig>>,
    /// Neighbours that may connect from anywhere inside a prefix; the longest match wins.
    pub ranges: Vec<RangeConfig>,
    /// Time limits that no object sets.
    pub limits: Limits,
}

impl SpeakerConfig {
    /// A speaker without a kernel that listens nowhere and knows nobody.
    pub fn new(asn: Asn, router_id: RouterId) -> SpeakerConfig {
        SpeakerConfig {
            asn,
            router_id,
            cluster_id: None,
            listen: Vec::new(),
            graceful_restart: GracefulRestart::default(),
            networks: Vec::new(),
            maximum_paths: 1,
            local_address: [None, None],
            links: Vec::new(),
            connected: Vec::new(),
            assume_reachable: true,
            peers: Vec::new(),
            ranges: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Time limits of the speaker that no object sets. They are values so that a test can outlive them (ADR 22).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How long a neighbour is left alone after its first fault; doubles with every further one, six times at most.
    pub idle_hold: Duration,
    /// A session of this age proves that earlier faults are over. A neighbour of a range that stays away is remembered so
    /// long for its last fault.
    pub steady: Duration,
    /// How long a connection may take to become a session, at least and at most; in between, four hold times.
    pub opening: (Duration, Duration),
    /// The first synchronisation waits for peers that come up within this time of the start.
    pub gather: Duration,
    /// The first synchronisation waits so long at most for anybody who had no session before our restart.
    pub first_sync: Duration,
    /// A peer without graceful restart may never say End-of-RIB; it counts as complete after this time.
    pub no_end_of_rib: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            idle_hold: Duration::from_secs(1),
            steady: Duration::from_secs(60),
            opening: (Duration::from_secs(30), Duration::from_secs(240)),
            gather: Duration::from_secs(10),
            first_sync: Duration::from_secs(20),
            no_end_of_rib: Duration::from_secs(3),
        }
    }
}

impl Limits {
    /// The default limits, each divided by `divisor`; 0 counts as 1.
    #[must_use]
    pub fn divided_by(divisor: u32) -> Limits {
        let divisor = divisor.max(1);
        let all = Limits::default();
        Limits {
            idle_hold: all.idle_hold / divisor,
            steady: all.steady / divisor,
            opening: (all.opening.0 / divisor, all.opening.1 / divisor),
            gather: all.gather / divisor,
            first_sync: all.first_sync / divisor,
            no_end_of_rib: all.no_end_of_rib / divisor,
        }
    }
}

impl SpeakerConfig {
    /// Whether the session to this neighbour leaves our autonomous system, as far as the configuration says.
    pub fn is_external(&self, peer: &PeerConfig) -> bool {
        match peer.asn {
            PeerAsn::Internal => false,
            PeerAsn::External => true,
            PeerAsn::Exactly(asn) => asn != peer.local_asn.unwrap_or(self.asn),
        }
    }

    /// Whether an address is one of ours.
    pub fn is_own_address(&self, addr: IpAddr) -> bool {
        self.local_address.contains(&Some(addr))
            || self.links.iter().any(|link| link.addresses.contains(&addr))
    }
}

/// The global addresses of a link of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkAddresses {
    /// The index of the link.
    pub index: IfIndex,
    /// Its global addresses, of both families.
    pub addresses: Vec<IpAddr>,
}

/// Graceful restart (RFC 4724, RFC 8538).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GracefulRestart {
    /// Whether the capability is announced, and others are helped.
    pub enabled: bool,
    /// How long others shall keep our routes; 1 to 4095 s.
    pub restart_time: Duration,
    /// How long routes are kept as a last resort after that (RFC 9494), ours by others and theirs by us, if they do not ask
    /// for less; 1 to 16777215 s. `None`: not at all.
    pub long_lived: Option<Duration>,
    /// How long a peer that is back may take to announce everything again, before what it kept is dropped; 1 to 4095 s.
    pub stale_path_time: Duration,
}

impl Default for GracefulRestart {
    fn default() -> Self {
        GracefulRestart {
            enabled: true,
            restart_time: Duration::from_secs(120),
            long_lived: Some(Duration::from_secs(600)),
            stale_path_time: Duration::from_secs(360),
        }
    }
}

/// A neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// Its address. In a range's template: unspecified.
    pub key: PeerKey,
    /// The port to connect to, and of no meaning for those who connect to us; 179.
    pub port: u16,
    /// Which autonomous system it must be in.
    pub asn: PeerAsn,
    /// The autonomous system that we are in towards it, if not the speaker's (RFC 7705).
    pub local_asn: Option<Asn>,
    /// Never connect, only accept.
    pub passive: bool,
    /// The source address of the session.
    pub local_address: Option<IpAddr>,
    /// The TTL of an external session: 1 unless multihop is allowed (1 to 255).
    pub multihop: Option<u8>,
    /// Accept from neighbours at most this many hops away (GTSM, RFC 5082); 1 to 254.
    pub ttl_security: Option<u8>,
    /// TCP-MD5 (RFC 2385).
    pub password: Option<Password>,
    /// Announce ourselves as next hop to an internal peer, too.
    pub next_hop_self: bool,
    /// Leave the next hop alone towards an external peer.
    pub next_hop_unchanged: bool,
    /// How often our own number may be in a received AS_PATH.
    pub allow_own_as: u8,
    /// It is our client as a route reflector (RFC 4456).
    pub route_reflector_client: bool,
    /// The families to offer.
    pub families: FamilySet,
    /// Its timers.
    pub timers: Timers,
    /// Whether graceful restart is offered to it.
    pub graceful_restart: bool,
    /// Whether long-lived graceful restart is offered to it, where graceful restart is.
    pub long_lived_restart: bool,
    /// How many prefixes it may announce.
    pub max_prefix: Option<MaxPrefix>,
    /// What of its routes is accepted; all filters must let a route pass.
    pub import: Vec<FilterRef>,
    /// What is announced to it; all filters must let a route pass.
    pub export: Vec<FilterRef>,
    /// No route passes in a direction that has no filter (RFC 8212).
    pub require_policy: bool,
    /// For people.
    pub description: String,
}

impl PeerConfig {
    /// A neighbour with the defaults of a data centre.
    pub fn new(key: PeerKey, asn: PeerAsn) -> PeerConfig {
        PeerConfig {
            key,
            port: 179,
            asn,
            local_asn: None,
            passive: false,
            local_address: None,
            multihop: None,
            ttl_security: None,
            password: None,
            next_hop_self: false,
            next_hop_unchanged: false,
            allow_own_as: 0,
            route_reflector_client: false,
            families: FamilySet::from_iter([Family::Ipv4, Family::Ipv6]),
            timers: Timers::default(),
            graceful_restart: true,
            long_lived_restart: true,
            max_prefix: None,
            import: Vec::new(),
            export: Vec::new(),
            require_policy: false,
            description: String::new(),
        }
    }
}

/// Neighbours that may connect from inside a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeConfig {
    /// Where they may come from.
    pub prefix: Prefix,
    /// How each of them is treated; passive, whatever it says.
    pub template: Arc<PeerConfig>,
}

/// Which autonomous system a neighbour must be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerAsn {
    /// This one.
    Exactly(Asn),
    /// Ours.
    Internal,
    /// Any but ours.
    External,
}

/// Session timers (RFC 4271 section 10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// Hold time that we propose: 0 (off) or 3 to 65535 s.
    pub hold: Duration,
    /// Time between keepalives; a third of the negotiated hold time at most.
    pub keepalive: Duration,
    /// Time between attempts to connect; jitter comes on top.
    pub connect_retry: Duration,
    /// How long a peer may read nothing (RFC 9687); twice the negotiated hold time at least.
    pub send_hold: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            hold: Duration::from_secs(9),
            keepalive: Duration::from_secs(3),
            connect_retry: Duration::from_secs(1),
            send_hold: Duration::from_secs(480),
        }
    }
}

/// A limit on the prefixes of a neighbour, per family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaxPrefix {
    /// How many are too many: one more.
    pub limit: u32,
    /// From how many on to warn.
    pub warn_at: Option<u32>,
    /// What to do past the limit.
    pub action: MaxPrefixAction,
}

impl MaxPrefix {
    /// From how many prefixes on there is something to say: those to warn of, or one too many.
    pub(crate) fn many(&self) -> u32 {
        let too_many = self.limit.saturating_add(1);
        self.warn_at.map_or(too_many, |at| at.min(too_many))
    }
}

/// What to do when a neighbour announces too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MaxPrefixAction {
    /// Say so, and go on.
    Warn,
    /// Ignore what is too much.
    Discard,
    /// Cease, maximum number of prefixes reached (RFC 4486); reconnect after the given time, or never.
    Reset {
        /// When to try again.
        after: Option<Duration>,
    },
}

/// A filter by name. Those with statements of their own join these later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FilterRef {
    /// The built-in rules for the kind of session, see `filter`.
    Default,
    /// Everything passes.
    AcceptAll,
    /// Nothing passes.
    RejectAll,
}

/// A shared secret: 1 to 80 octets (`TCP_MD5SIG_MAXKEYLEN`). Does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<[u8]>);

impl Password {
    /// The secret, if its length is 1 to 80 octets.
    pub fn new(secret: &[u8]) -> Option<Password> {
        (1..=80)
            .contains(&secret.len())
            .then(|| Password(secret.into()))
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}
