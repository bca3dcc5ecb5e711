//! `BGPPeer`: a neighbour, or many, of the nodes that it selects.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use selvage_policy::api::LabelSelector;
use selvage_policy::model::Selector;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::Value;

use super::bgp_configuration::{TimerSettings, TimersSpec, asn, between};
use super::decode::Context;
use super::node::{address, cidr};
use super::unicast::{ADDRESS_RULE, MESSAGE, RANGE_RULE, unusable, unusable_range};
use super::{Faults, Meta};

/// A neighbour, or many.
#[derive(Clone, Debug, PartialEq)]
pub struct BgpPeer {
    /// Metadata.
    pub meta: Meta,
    /// Which nodes have it; all, if there is none.
    pub node_selector: Option<Selector>,
    /// Where it is.
    pub neighbor: Neighbor,
    /// TCP port to connect to.
    pub port: u16,
    /// Which autonomous system it has to be in.
    pub asn: PeerAsn,
    /// Our autonomous system towards it, if another than the speaker's.
    pub local_asn: Option<u32>,
    /// Wait for it to connect.
    pub passive: bool,
    /// Source address of the session.
    pub local_address: Option<IpAddr>,
    /// TTL of an external session, 1 to 255.
    pub multihop: Option<u8>,
    /// Hops that it may be away (RFC 5082), 1 to 254.
    pub ttl_security: Option<u8>,
    /// We are the next hop of what we announce.
    pub next_hop_self: bool,
    /// The next hop stays as it is.
    pub next_hop_unchanged: bool,
    /// How often our own number may be in an AS_PATH.
    pub allow_own_as: u8,
    /// It is a client of ours (RFC 4456).
    pub route_reflector_client: bool,
    /// Families to offer; at least one.
    pub families: Families,
    /// Timers that differ from the speaker's.
    pub timers: TimerSettings,
    /// Graceful restart; as the speaker does, if there is none.
    pub graceful_restart: Option<bool>,
    /// Long-lived graceful restart, where the speaker and graceful restart allow it.
    pub long_lived_restart: bool,
    /// Where the password of TCP-MD5 is.
    pub password: Option<SecretRef>,
    /// Limit on its prefixes.
    pub max_prefix: Option<MaxPrefix>,
    /// RFC 8212; by default true for external ranges only.
    pub require_policy: Option<bool>,
    /// Filters on what it announces; all have to let a route pass.
    pub import: Vec<Filter>,
    /// Filters on what is announced to it.
    pub export: Vec<Filter>,
    /// For people.
    pub description: String,
}

/// Where a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Neighbor {
    /// At this address.
    Address(IpAddr),
    /// Whoever connects from inside.
    Range(IpNet),
}

/// Which autonomous system a neighbour has to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAsn {
    /// This one.
    Number(u32),
    /// Ours.
    Internal,
    /// Any but ours.
    External,
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4 unicast.
    pub ipv4: bool,
    /// IPv6 unicast.
    pub ipv6: bool,
}

/// A value of a Secret in the agent's own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    /// Name of the Secret.
    pub name: String,
    /// Which of its values.
    pub key: String,
}

/// A limit on the prefixes of a neighbour, per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPrefix {
    /// At least 1.
    pub limit: u32,
    /// From how many on to warn; at most the limit.
    pub warn_at: Option<u32>,
    /// What to do past the limit.
    pub action: MaxPrefixAction,
    /// With [`MaxPrefixAction::Reset`]: how long the neighbour is left alone.
    pub retry_after: Duration,
}

/// What to do past the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MaxPrefixAction {
    /// Say so, and go on.
    Warn,
    /// Ignore what is too much.
    Discard,
    /// End the session, and try again after [`MaxPrefix::retry_after`].
    Reset,
}

/// How long a neighbour that announced too much is left alone, unless told otherwise.
pub const RESET_PAUSE: Duration = Duration::from_secs(300);

/// A built-in filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The rules for the kind of session.
    Default,
    /// Everything passes.
    AcceptAll,
    /// Nothing passes.
    RejectAll,
}

const FILTERS: [(&str, Filter); 3] = [
    ("default", Filter::Default),
    ("accept-all", Filter::AcceptAll),
    ("reject-all", Filter::RejectAll),
];

/// The `spec` as written.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BgpPeerSpec {
    /// Which nodes have this peer. Default: all.
    #[schemars(schema_with = "selector_schema")]
    node_selector: Option<LabelSelector>,
    /// The neighbour's address.
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": ADDRESS_RULE, "message": MESSAGE}]))]
    address: Option<String>,
    /// A CIDR from which neighbours may connect.
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": RANGE_RULE, "message": MESSAGE}]))]
    range: Option<String>,
    /// An interface with one neighbour that finds itself by its link-local address. Not implemented yet.
    interface: Option<String>,
    /// `defaultGateway`. Not implemented yet.
    discover: Option<String>,
    /// TCP port to connect to. Default 179.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// The neighbour's autonomous system: a number, `internal` (ours) or `external` (any but ours).
    asn: Option<AsnSpec>,
    /// Our autonomous system towards this neighbour, if another than the cluster's.
    #[schemars(range(min = 1, max = 4_294_967_294u32))]
    local_asn: Option<u32>,
    /// Wait for the neighbour to connect. Default false.
    passive: Option<bool>,
    /// Source address of the session.
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": ADDRESS_RULE, "message": MESSAGE}]))]
    local_address: Option<String>,
    /// How many hops away an external neighbour may be, 1 to 255. Default 1.
    #[schemars(range(min = 1, max = 255))]
    multihop: Option<u32>,
    /// Accept packets only from at most this many hops away (RFC 5082), 1 to 254.
    #[schemars(range(min = 1, max = 254))]
    ttl_security: Option<u32>,
    /// Announce ourselves as the next hop to an internal neighbour, too. Default false.
    next_hop_self: Option<bool>,
    /// Leave the next hop as it is. Default false.
    next_hop_unchanged: Option<bool>,
    /// How often our own number may be in an AS_PATH, 0 to 10. Default 0.
    #[schemars(range(max = 10))]
    allow_own_as: Option<u32>,
    /// The neighbour is our client as a route reflector (RFC 4456). Default false.
    route_reflector_client: Option<bool>,
    /// `none`, `receive`, `send` or `both` (RFC 7911). Only `none` in this version.
    add_path: Option<AddPathSpec>,
    /// Address families. Default `[ipv4, ipv6]`.
    #[schemars(length(min = 1))]
    families: Option<Vec<FamilySpec>>,
    /// Timers that differ from the BGPConfiguration's.
    timers: Option<TimersSpec>,
    /// Graceful restart with this neighbour.
    graceful_restart: Option<PeerGracefulRestartSpec>,
    /// BFD. Not implemented yet.
    bfd: Option<BfdSpec>,
    /// The Secret with the password of TCP-MD5, in Selvage's own namespace.
    password_secret_ref: Option<SecretRefSpec>,
    /// A limit on the prefixes that the neighbour may announce, per family.
    max_prefix: Option<MaxPrefixSpec>,
    /// Exchange nothing in a direction without a filter (RFC 8212). Default: true for an external `range`, else false.
    require_policy: Option<bool>,
    /// Filters on what the neighbour announces: `default`, `accept-all`, `reject-all`.
    import: Option<Vec<String>>,
    /// Filters on what is announced to the neighbour: `default`, `accept-all`, `reject-all`.
    export: Option<Vec<String>>,
    /// For people; at most 255 characters.
    #[schemars(length(max = 255))]
    description: Option<String>,
}

#[derive(Deserialize, JsonSchema, PartialEq, Clone, Copy)]
#[serde(rename_all = "camelCase")]
enum AddPathSpec {
    None,
    Receive,
    Send,
    Both,
}

#[derive(Deserialize, JsonSchema, PartialEq, Clone, Copy)]
#[serde(rename_all = "camelCase")]
enum FamilySpec {
    Ipv4,
    Ipv6,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerGracefulRestartSpec {
    /// Default: as the BGPConfiguration says.
    enabled: Option<bool>,
    /// Long-lived graceful restart with this neighbour (RFC 9494).
    long_lived: Option<PeerLongLivedSpec>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerLongLivedSpec {
    /// Default: as the BGPConfiguration says.
    enabled: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct BfdSpec {}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecretRefSpec {
    /// Name of the Secret.
    name: String,
    /// Which of its values. Default `password`.
    key: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MaxPrefixSpec {
    /// How many prefixes are allowed.
    #[schemars(range(min = 1))]
    limit: u32,
    /// From how many on to warn.
    warn_at: Option<u32>,
    /// `warn`, `discard` or `reset` (default: end the session, try again after `retryAfter`).
    action: Option<MaxPrefixAction>,
    /// With `reset`: how long the neighbour is left alone, 1s to 24h. Default 5m.
    retry_after: Option<String>,
}

/// A number or a word.
#[derive(Clone, Copy)]
struct AsnSpec(PeerAsn);

impl<'de> Deserialize<'de> for AsnSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = AsnSpec;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an autonomous system number, `internal` or `external`")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<AsnSpec, E> {
                let number = u32::try_from(number)
                    .map_err(|_| E::custom(format!("{number} is above 4294967295")))?;
                Ok(AsnSpec(PeerAsn::Number(number)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AsnSpec, E> {
                match text {
                    "internal" => Ok(AsnSpec(PeerAsn::Internal)),
                    "external" => Ok(AsnSpec(PeerAsn::External)),
                    text => match text.parse() {
                        Ok(number) => Ok(AsnSpec(PeerAsn::Number(number))),
                        Err(_) => Err(E::custom(format!(
                            "`{text}` is not a number, `internal` or `external`"
                        ))),
                    },
                }
            }
        }
        deserializer.deserialize_any(Words)
    }
}

impl JsonSchema for AsnSpec {
    fn schema_name() -> Cow<'static, str> {
        "Asn".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true})
    }
}

fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "description": "Which nodes have this peer. Default: all.",
        "nullable": true,
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
            "matchExpressions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string"},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {"type": "array", "items": {"type": "string"}}
                    }
                }
            }
        }
    })
}

impl BgpPeer {
    pub(super) fn lower(meta: Meta, spec: &Value, context: &mut Context) -> Option<BgpPeer> {
        let raw: BgpPeerSpec = context.decode("spec", spec)?;
        let faults = &mut context.faults;
        refuse_unimplemented(&raw, faults);
        let neighbor = neighbor(&raw, faults);
        let asn = peer_asn(raw.asn, faults);
        let families = families(raw.families, faults);
        cross_check(
            &raw.next_hop_self,
            &raw.next_hop_unchanged,
            &raw.multihop,
            &raw.ttl_security,
            faults,
        );
        if raw.route_reflector_client == Some(true) && asn == Some(PeerAsn::External) {
            faults.hinted(
                "spec.routeReflectorClient",
                "a client is internal",
                "write `asn: internal`",
            );
        }
        if raw.port.is_some() && raw.range.is_some() {
            faults.hinted(
                "spec.port",
                "nobody connects to a range",
                "leave the field out",
            );
        }
        let local_address = raw
            .local_address
            .and_then(|text| faults.take("spec.localAddress", address(&text)));
        if let (Some(local), Some(Neighbor::Address(remote))) = (local_address, neighbor)
            && local.is_ipv4() != remote.is_ipv4()
        {
            faults.add("spec.localAddress", "not of the family of `address`");
        }
        if let Some(why) = local_address.and_then(unusable) {
            faults.hinted("spec.localAddress", why, "write an address of this node");
        }
        let description = raw.description.unwrap_or_default();
        if description.chars().count() > 255 {
            faults.add("spec.description", "longer than 255 characters");
        }
        let node_selector = raw.node_selector.and_then(|selector| {
            super::network_policy::selector("spec.nodeSelector", &selector, faults)
        });
        Some(BgpPeer {
            meta,
            node_selector,
            port: raw
                .port
                .map_or(179, |number| port("spec.port", number, faults)),
            local_asn: raw
                .local_asn
                .map(|number| super::bgp_configuration::asn("spec.localAsn", number, faults)),
            passive: raw.passive.unwrap_or_default(),
            local_address,
            multihop: small("spec.multihop", raw.multihop, 1, 255, faults),
            ttl_security: small("spec.ttlSecurity", raw.ttl_security, 1, 254, faults),
            next_hop_self: raw.next_hop_self.unwrap_or_default(),
            next_hop_unchanged: raw.next_hop_unchanged.unwrap_or_default(),
            allow_own_as: small("spec.allowOwnAs", raw.allow_own_as, 0, 10, faults)
                .unwrap_or_default(),
            route_reflector_client: raw.route_reflector_client.unwrap_or_default(),
            families,
            timers: TimerSettings::lower(raw.timers, faults),
            graceful_restart: raw
                .graceful_restart
                .as_ref()
                .and_then(|graceful| graceful.enabled),
            long_lived_restart: raw
                .graceful_restart
                .and_then(|graceful| graceful.long_lived)
                .and_then(|long_lived| long_lived.enabled)
                .unwrap_or(true),
            password: raw.password_secret_ref.map(|secret| SecretRef {
                name: secret.name,
                key: secret.key.unwrap_or_else(|| "password".into()),
            }),
            max_prefix: raw.max_prefix.map(|limit| max_prefix(&limit, faults)),
            require_policy: raw.require_policy,
            import: filters("spec.import", raw.import, faults),
            export: filters("spec.export", raw.export, faults),
            description,
            neighbor: neighbor?,
            asn: asn?,
        })
    }
}

fn refuse_unimplemented(raw: &BgpPeerSpec, faults: &mut Faults) {
    let missing = [
        ("spec.interface", raw.interface.is_some()),
        ("spec.discover", raw.discover.is_some()),
        ("spec.bfd", raw.bfd.is_some()),
        (
            "spec.addPath",
            raw.add_path.is_some_and(|mode| mode != AddPathSpec::None),
        ),
    ];
    for (path, present) in missing {
        if present {
            faults.unimplemented(path);
        }
    }
}

fn neighbor(raw: &BgpPeerSpec, faults: &mut Faults) -> Option<Neighbor> {
    let elsewhere = raw.interface.is_some() || raw.discover.is_some();
    match (&raw.address, &raw.range) {
        (None, None) if elsewhere => None,
        (None, None) => {
            faults.hinted(
                "spec",
                "no neighbour",
                "write `address: ADDRESS` or `range: CIDR`",
            );
            None
        }
        (Some(_), Some(_)) => {
            faults.hinted(
                "spec.range",
                "`address` and `range` exclude each other",
                "make two objects",
            );
            None
        }
        (Some(text), None) => {
            let address = faults.take("spec.address", address(text))?;
            if let Some(why) = unusable(address) {
                faults.hinted(
                    "spec.address",
                    why,
                    "write the address of one neighbour, as in 192.0.2.1",
                );
            }
            Some(Neighbor::Address(address))
        }
        (None, Some(text)) => {
            let range = faults.take("spec.range", cidr(text))?;
            if let Some(why) = unusable_range(range) {
                faults.hinted(
                    "spec.range",
                    why,
                    "write the CIDR that the neighbours have their addresses in",
                );
            }
            Some(Neighbor::Range(range))
        }
    }
}

fn peer_asn(raw: Option<AsnSpec>, faults: &mut Faults) -> Option<PeerAsn> {
    let Some(AsnSpec(number)) = raw else {
        faults.hinted(
            "spec.asn",
            "missing",
            "write a number, `internal` or `external`",
        );
        return None;
    };
    if let PeerAsn::Number(number) = number {
        asn("spec.asn", number, faults);
    }
    Some(number)
}

fn families(raw: Option<Vec<FamilySpec>>, faults: &mut Faults) -> Families {
    let Some(list) = raw else {
        return Families {
            ipv4: true,
            ipv6: true,
        };
    };
    if list.is_empty() {
        faults.hinted(
            "spec.families",
            "empty",
            "write `[ipv4]`, `[ipv6]` or `[ipv4, ipv6]`",
        );
    }
    Families {
        ipv4: list.contains(&FamilySpec::Ipv4),
        ipv6: list.contains(&FamilySpec::Ipv6),
    }
}

fn cross_check(
    next_hop_self: &Option<bool>,
    unchanged: &Option<bool>,
    multihop: &Option<u32>,
    ttl_security: &Option<u32>,
    faults: &mut Faults,
) {
    if *next_hop_self == Some(true) && *unchanged == Some(true) {
        faults.add(
            "spec.nextHopUnchanged",
            "`nextHopSelf` and `nextHopUnchanged` exclude each other",
        );
    }
    if multihop.is_some() && ttl_security.is_some() {
        let hint = "`ttlSecurity: N` alone allows N hops";
        faults.hinted(
            "spec.ttlSecurity",
            "`multihop` and `ttlSecurity` exclude each other",
            hint,
        );
    }
}

/// A TCP port; 0 is none.
pub(super) fn port(path: &str, number: u16, faults: &mut Faults) -> u16 {
    if number == 0 {
        faults.add(path, "0 is not a port");
    }
    number
}

fn small(path: &str, number: Option<u32>, least: u8, most: u8, faults: &mut Faults) -> Option<u8> {
    let number = number?;
    match u8::try_from(number) {
        Ok(small) if (least..=most).contains(&small) => Some(small),
        _ => {
            faults.add(
                path,
                format_args!("{number} is not between {least} and {most}"),
            );
            None
        }
    }
}

fn max_prefix(raw: &MaxPrefixSpec, faults: &mut Faults) -> MaxPrefix {
    if raw.limit == 0 {
        faults.hinted(
            "spec.maxPrefix.limit",
            "0 lets nothing in",
            "use `import: [reject-all]` for that",
        );
    }
    if raw.warn_at.is_some_and(|warn| warn > raw.limit) {
        faults.add("spec.maxPrefix.warnAt", "above the limit");
    }
    let action = raw.action.unwrap_or(MaxPrefixAction::Reset);
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let path = "spec.maxPrefix.retryAfter";
    let retry_after = raw
        .retry_after
        .as_deref()
        .and_then(|text| between(path, text, least, most, faults));
    if retry_after.is_some() && action != MaxPrefixAction::Reset {
        faults.hinted(
            path,
            "the session does not end with this `action`",
            "leave the field out, or write `action: reset`",
        );
    }
    MaxPrefix {
        limit: raw.limit,
        warn_at: raw.warn_at,
        action,
        retry_after: retry_after.unwrap_or(RESET_PAUSE),
    }
}

fn filters(path: &str, names: Option<Vec<String>>, faults: &mut Faults) -> Vec<Filter> {
    let mut filters = Vec::new();
    for (i, name) in names.unwrap_or_default().iter().enumerate() {
        match FILTERS.iter().find(|(known, _)| known == name) {
            Some((_, filter)) => filters.push(*filter),
            None => faults.hinted(
                format!("{path}[{i}]"),
                format_args!("there is no filter `{name}`"),
                "built in are default, accept-all and reject-all; BGPFilter objects are not implemented in this version",
            ),
        }
    }
    filters
}
