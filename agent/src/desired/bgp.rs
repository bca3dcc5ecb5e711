//! From objects to the speaker's configuration.
//!
//! Without any object of ours, the nodes mesh over their InternalIPs. An explicit peer replaces the mesh's session
//! to the same address; of two explicit ones for one address the older counts, and by name where age does not tell.
//! A peer whose password cannot be found has no session at all: never one without a password.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use selvage_bgp_core::config::{
    FilterRef, LinkAddresses, MaxPrefix, MaxPrefixAction, Password, PeerAsn, PeerConfig,
    RangeConfig, SpeakerConfig,
};
use selvage_bgp_core::ids::{Asn, Family, FamilySet, IfIndex, PeerKey, RouterId};
use selvage_bgp_core::prefix::Prefix;
use selvage_policy::model::Labels;

use super::routes::announced_pod_cidrs;
use super::{Condition, Local, is_global, own_addresses, prefix, router_id};
use crate::objects::bgp_configuration::NodeMesh;
use crate::objects::bgp_peer::{self, Filter, Neighbor};
use crate::objects::{BgpConfiguration, BgpPeer, Key, Kind, Node};
use crate::store::Store;

/// What the speaker is to be, and what is to be said about the objects that it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Speaker {
    /// What it is to be.
    pub config: SpeakerConfig,
    /// Sorted.
    pub conditions: Vec<Condition>,
    /// Which object each neighbour's address comes from; absent for the mesh.
    pub origins: BTreeMap<IpAddr, String>,
    /// Which object each range comes from.
    pub range_origins: BTreeMap<IpNet, String>,
}

impl Speaker {
    /// Where a neighbour comes from, for people; one that is not configured came from a range.
    pub fn origin(&self, address: &IpAddr, configured: bool) -> String {
        match (self.origins.get(address), configured) {
            (Some(name), _) => format!("BGPPeer {name}"),
            (None, true) => "mesh".into(),
            (None, false) => self.range_origin(address),
        }
    }
}

impl Speaker {
    /// The object of the longest range that holds an address.
    fn range_origin(&self, address: &IpAddr) -> String {
        let holding = self.range_origins.iter();
        let holding = holding.filter(|(range, _)| range.contains(address));
        match holding.max_by_key(|(range, _)| range.prefix_len()) {
            Some((_, name)) => format!("BGPPeer {name}"),
            // Its session has not ended yet.
            None => "range that is no more".into(),
        }
    }
}

/// The speaker of this node.
pub fn bgp(store: &Store, local: &Local) -> Speaker {
    let configuration = store
        .configuration()
        .map(|object| (**object).clone())
        .unwrap_or_default();
    let node = store.node(&local.node);
    let mut draft = Draft::new(store, local, &configuration, node.map(Arc::as_ref));
    let port = draft.port;
    draft.explicit();
    draft.mesh(node.map(Arc::as_ref));
    let Draft {
        peers,
        ranges,
        origins,
        range_origins,
        mut conditions,
        ..
    } = draft;
    conditions.extend(router_id::conditions(store, &configuration, &local.node));
    conditions.sort();
    let config = SpeakerConfig {
        asn: Asn(configuration.asn),
        router_id: router_id::of(&configuration, node.map(Arc::as_ref), &local.node),
        cluster_id: configuration.cluster_id.map(RouterId::from),
        listen: vec![
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        ],
        graceful_restart: configuration.graceful_restart,
        networks: networks(store, local, &configuration),
        maximum_paths: configuration.maximum_paths,
        local_address: Family::ALL.map(|family| next_hop(store, node.map(Arc::as_ref), family)),
        links: links(store),
        connected: connected(store),
        assume_reachable: !local.kernel,
        peers: peers.into_values().flatten().map(Arc::new).collect(),
        ranges: ranges.into_values().flatten().collect(),
        limits: local.limits,
    };
    Speaker {
        config,
        conditions,
        origins,
        range_origins,
    }
}

/// What is to be said of the peers as such, whichever nodes they select.
pub(super) fn conditions(store: &Store, local: &Local) -> Vec<Condition> {
    let configuration = store.configuration().map(Arc::as_ref);
    let configuration = configuration.cloned().unwrap_or_default();
    let mut draft = Draft::new(store, local, &configuration, None);
    for peer in store.peers() {
        draft.peer(peer);
    }
    draft.conditions
}

/// Whether a peer is one of a node with these labels.
pub(super) fn selects(peer: &BgpPeer, labels: &Labels) -> bool {
    let selector = peer.node_selector.as_ref();
    selector.is_none_or(|selector| selector.matches(labels))
}

/// What sorts first counts, of peers for one neighbour.
pub(super) fn precedence(peer: &BgpPeer) -> impl Ord + use<> {
    (peer.meta.created, peer.meta.key.clone())
}

/// The configuration as it grows. A claimed place without a value is one that must stay empty.
struct Draft<'a> {
    store: &'a Store,
    local: &'a Local,
    configuration: &'a BgpConfiguration,
    port: u16,
    labels: Labels,
    own: BTreeSet<IpAddr>,
    peers: BTreeMap<IpAddr, Option<PeerConfig>>,
    ranges: BTreeMap<IpNet, Option<RangeConfig>>,
    origins: BTreeMap<IpAddr, String>,
    range_origins: BTreeMap<IpNet, String>,
    conditions: Vec<Condition>,
}

impl<'a> Draft<'a> {
    fn new(
        store: &'a Store,
        local: &'a Local,
        configuration: &'a BgpConfiguration,
        node: Option<&Node>,
    ) -> Draft<'a> {
        let labels = node.map(|node| node.meta.labels.clone());
        Draft {
            store,
            local,
            configuration,
            port: local.bgp_port.unwrap_or(configuration.listen_port),
            labels: labels.unwrap_or_default(),
            own: own(store, node),
            peers: BTreeMap::new(),
            ranges: BTreeMap::new(),
            origins: BTreeMap::new(),
            range_origins: BTreeMap::new(),
            conditions: Vec::new(),
        }
    }

    fn explicit(&mut self) {
        let selected = |peer: &&Arc<BgpPeer>| selects(peer, &self.labels);
        let mut peers: Vec<Arc<BgpPeer>> = self.store.peers().filter(selected).cloned().collect();
        peers.sort_by_key(|peer| precedence(peer));
        let mut names: BTreeMap<Neighbor, String> = BTreeMap::new();
        for peer in peers {
            if matches!(peer.neighbor, Neighbor::Address(address) if self.own.contains(&address)) {
                continue; // Written for all nodes, and this one is the neighbour itself.
            }
            let name = peer.meta.key.name.clone();
            match names.entry(peer.neighbor) {
                Entry::Occupied(older) => {
                    let message = format!(
                        "BGPPeer {} is older and has the same neighbour; this one is not used",
                        older.get()
                    );
                    self.say(&peer, "Conflict", message);
                    continue;
                }
                Entry::Vacant(free) => free.insert(name.clone()),
            };
            let config = self.peer(&peer);
            match peer.neighbor {
                Neighbor::Address(address) => {
                    self.origins.insert(address, name);
                    self.peers.insert(address, config);
                }
                Neighbor::Range(net) => {
                    let range = config.zip(prefix(net));
                    let range = range.map(|(template, prefix)| RangeConfig {
                        prefix,
                        template: Arc::new(template),
                    });
                    self.range_origins.insert(net, name);
                    self.ranges.insert(net, range);
                }
            }
        }
    }

    fn mesh(&mut self, node: Option<&Node>) {
        if self.configuration.node_mesh == NodeMesh::Off {
            return;
        }
        let Some(node) = node else { return };
        if node.internal_ips.is_empty() {
            self.conditions.push(Condition {
                kind: Kind::Node,
                key: node.meta.key.clone(),
                name: "NoInternalIP",
                status: true,
                message: "no address of type InternalIP, so that this node has no part in the mesh"
                    .into(),
            });
            return;
        }
        for other in self
            .store
            .nodes()
            .filter(|other| other.meta.key != node.meta.key)
        {
            let Some((ours, theirs)) = common_family(node, other) else {
                continue;
            };
            if self.own.contains(&theirs) {
                continue;
            }
            let Entry::Vacant(free) = self.peers.entry(theirs) else {
                continue;
            };
            let mut config = PeerConfig::new(PeerKey::from(theirs), PeerAsn::Internal);
            config.port = self.port;
            config.local_address = Some(ours);
            config.timers = self.configuration.timers;
            config.graceful_restart = self.configuration.graceful_restart.enabled;
            config.import = vec![FilterRef::Default];
            config.export = vec![FilterRef::Default];
            config.description = format!("node {}", other.meta.key.name);
            free.insert(Some(config));
        }
    }

    /// The settings of an explicit peer; `None` if it must not have a session.
    fn peer(&mut self, peer: &BgpPeer) -> Option<PeerConfig> {
        let our_asn = peer.local_asn.unwrap_or(self.configuration.asn);
        let internal = match peer.asn {
            bgp_peer::PeerAsn::Internal => true,
            bgp_peer::PeerAsn::External => false,
            bgp_peer::PeerAsn::Number(number) => number == our_asn,
        };
        if peer.route_reflector_client && !internal {
            self.say(
                peer,
                "NotInternal",
                "routeReflectorClient has no effect: the neighbour is external".into(),
            );
        }
        let is_range = matches!(peer.neighbor, Neighbor::Range(_));
        let require_policy = peer.require_policy.unwrap_or(is_range && !internal);
        let mut config = PeerConfig::new(PeerKey::from(key_address(peer.neighbor)), asn(peer.asn));
        config.port = peer.port;
        config.local_asn = peer
            .local_asn
            .filter(|number| *number != self.configuration.asn)
            .map(Asn);
        config.passive = peer.passive || is_range;
        config.local_address = peer.local_address;
        config.multihop = peer.multihop;
        config.ttl_security = peer.ttl_security;
        config.password = self.password(peer)?;
        config.next_hop_self = peer.next_hop_self;
        config.next_hop_unchanged = peer.next_hop_unchanged;
        config.allow_own_as = peer.allow_own_as;
        config.route_reflector_client = peer.route_reflector_client && internal;
        config.families = families(peer.families);
        config.timers = peer.timers.over(self.configuration.timers);
        config.graceful_restart = peer
            .graceful_restart
            .unwrap_or(self.configuration.graceful_restart.enabled);
        config.long_lived_restart = peer.long_lived_restart;
        config.max_prefix = peer.max_prefix.map(max_prefix);
        config.import = filters(&peer.import, require_policy);
        config.export = filters(&peer.export, require_policy);
        config.require_policy = require_policy;
        config.description = peer.description.clone();
        for (direction, list) in [("import", &peer.import), ("export", &peer.export)] {
            if require_policy && list.is_empty() {
                let message = format!(
                    "no {direction} filter, so that no route passes (RFC 8212); name one, as in `{direction}: [default]`"
                );
                self.say(peer, "PolicyMissing", message);
            }
        }
        self.conditions.push(Condition {
            kind: Kind::BgpPeer,
            key: peer.meta.key.clone(),
            name: "Accepted",
            status: true,
            message: String::new(),
        });
        Some(config)
    }

    /// `None`: there has to be a password, but there is none.
    fn password(&mut self, peer: &BgpPeer) -> Option<Option<Password>> {
        let Some(reference) = &peer.password else {
            return Some(None);
        };
        let namespaces = self.local.secret_namespaces.iter();
        let secret = namespaces
            .filter_map(|namespace| {
                self.store
                    .secret(&Key::new(namespace.as_str(), reference.name.as_str()))
            })
            .next();
        let problem = match secret.map(|secret| secret.get(&reference.key)) {
            None => format!("there is no Secret {}", reference.name),
            Some(None) => format!("the Secret {} has no `{}`", reference.name, reference.key),
            Some(Some(value)) => match Password::new(value) {
                Some(password) => return Some(Some(password)),
                None => format!(
                    "`{}` of the Secret {} is not 1 to 80 bytes long",
                    reference.key, reference.name
                ),
            },
        };
        self.say(
            peer,
            "PasswordMissing",
            format!("{problem}; the session stays down until it is there"),
        );
        None
    }

    fn say(&mut self, peer: &BgpPeer, name: &'static str, message: String) {
        self.conditions.push(Condition {
            kind: Kind::BgpPeer,
            key: peer.meta.key.clone(),
            name,
            status: true,
            message,
        });
    }
}

fn own(store: &Store, node: Option<&Node>) -> BTreeSet<IpAddr> {
    let links = own_addresses(store).into_iter().map(|net| net.addr());
    links
        .chain(
            node.into_iter()
                .flat_map(|node| node.internal_ips.iter().copied()),
        )
        .collect()
}

/// One session carries both families; it runs over IPv4 where both ends have it.
fn common_family(node: &Node, other: &Node) -> Option<(IpAddr, IpAddr)> {
    [false, true]
        .into_iter()
        .find_map(|v6| Some((node.internal_ip(v6)?, other.internal_ip(v6)?)))
}

fn key_address(neighbor: Neighbor) -> IpAddr {
    match neighbor {
        Neighbor::Address(address) => address,
        Neighbor::Range(IpNet::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        Neighbor::Range(IpNet::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn asn(asn: bgp_peer::PeerAsn) -> PeerAsn {
    match asn {
        bgp_peer::PeerAsn::Number(number) => PeerAsn::Exactly(Asn(number)),
        bgp_peer::PeerAsn::Internal => PeerAsn::Internal,
        bgp_peer::PeerAsn::External => PeerAsn::External,
    }
}

fn families(families: bgp_peer::Families) -> FamilySet {
    let pairs = [(families.ipv4, Family::Ipv4), (families.ipv6, Family::Ipv6)];
    pairs
        .into_iter()
        .filter(|(offered, _)| *offered)
        .map(|(_, family)| family)
        .collect()
}

fn max_prefix(limit: bgp_peer::MaxPrefix) -> MaxPrefix {
    MaxPrefix {
        limit: limit.limit,
        warn_at: limit.warn_at,
        action: match limit.action {
            bgp_peer::MaxPrefixAction::Warn => MaxPrefixAction::Warn,
            bgp_peer::MaxPrefixAction::Discard => MaxPrefixAction::Discard,
            bgp_peer::MaxPrefixAction::Reset => MaxPrefixAction::Reset {
                after: Some(limit.retry_after),
            },
        },
    }
}

/// Without a filter the built-in one applies, unless a policy is required.
fn filters(named: &[Filter], require_policy: bool) -> Vec<FilterRef> {
    if named.is_empty() && !require_policy {
        return vec![FilterRef::Default];
    }
    let filters = named.iter().map(|filter| match filter {
        Filter::Default => FilterRef::Default,
        Filter::AcceptAll => FilterRef::AcceptAll,
        Filter::RejectAll => FilterRef::RejectAll,
    });
    filters.collect()
}

fn networks(store: &Store, local: &Local, configuration: &BgpConfiguration) -> Vec<Prefix> {
    let mut networks = announced_pod_cidrs(store, local);
    networks.extend(&configuration.networks);
    networks.sort();
    networks.dedup();
    networks.into_iter().filter_map(prefix).collect()
}

fn connected(store: &Store) -> Vec<Prefix> {
    let nets: BTreeSet<IpNet> = own_addresses(store)
        .into_iter()
        .map(|net| net.trunc())
        .collect();
    nets.into_iter().filter_map(prefix).collect()
}

/// Our links that have global addresses, without loopback: an address of loopback is on no link.
fn links(store: &Store) -> Vec<LinkAddresses> {
    let links = store
        .links()
        .iter()
        .filter(|(_, link)| !link.is_pods() && link.name != "lo");
    links
        .map(|(index, link)| LinkAddresses {
            index: IfIndex(*index),
            addresses: link
                .addresses
                .iter()
                .map(IpNet::addr)
                .filter(|address| is_global(*address))
                .collect(),
        })
        .filter(|link| !link.addresses.is_empty())
        .collect()
}

/// Our address in a family, for sessions whose interface does not give a next hop: the node's InternalIP, else the first global address of a link that is up.
fn next_hop(store: &Store, node: Option<&Node>, family: Family) -> Option<IpAddr> {
    let v6 = family == Family::Ipv6;
    if let Some(address) = node.and_then(|node| node.internal_ip(v6)) {
        return Some(address);
    }
    let links = store
        .links()
        .values()
        .filter(|link| link.up && !link.is_pods());
    links
        .flat_map(|link| link.addresses.iter().map(IpNet::addr))
        .find(|address| address.is_ipv6() == v6 && is_global(*address))
}
