//! `BGPConfiguration`: what holds for the speaker as a whole. One object, called `default`; without it, the
//! defaults here hold.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use selvage_bgp_core::config::{GracefulRestart, Timers};
use serde::Deserialize;
use serde_json::Value;

use super::decode::Context;
use super::node::cidr;
use super::unicast::{IDENTIFIER_MESSAGE, IDENTIFIER_RULE, unusable};
use super::{Faults, Meta, duration};

/// The only name that counts.
pub const NAME: &str = "default";
/// The autonomous system of a cluster that was told nothing: the first private one (RFC 6996).
pub const DEFAULT_ASN: u32 = 64_512;

/// What holds for the whole speaker.
#[derive(Clone, Debug, PartialEq)]
pub struct BgpConfiguration {
    /// Metadata; the name is always [`NAME`].
    pub meta: Meta,
    /// Our autonomous system; not 0, 23456, 65535 or 4294967295.
    pub asn: u32,
    /// TCP port to listen at.
    pub listen_port: u16,
    /// Where the BGP identifier comes from.
    pub router_id: RouterIdRule,
    /// Whether the nodes peer with each other.
    pub node_mesh: NodeMesh,
    /// Session timers where a peer says nothing else.
    pub timers: Timers,
    /// Graceful restart.
    pub graceful_restart: GracefulRestart,
    /// Cluster id as a route reflector (RFC 4456).
    pub cluster_id: Option<Ipv4Addr>,
    /// Prefixes that every node originates, besides its pod CIDRs.
    pub networks: Vec<IpNet>,
    /// Whether nodes announce their pod CIDRs.
    pub advertise_pod_cidrs: bool,
    /// Width of a set of equal paths, 1 to 255.
    pub maximum_paths: u8,
    /// Metric of the kernel routes; never 0.
    pub route_metric: u32,
}

impl Default for BgpConfiguration {
    fn default() -> Self {
        BgpConfiguration {
            meta: Meta {
                key: super::Key::new("", NAME),
                ..Meta::default()
            },
            asn: DEFAULT_ASN,
            listen_port: 179,
            router_id: RouterIdRule::FromInternalIp,
            node_mesh: NodeMesh::Auto,
            timers: Timers::default(),
            graceful_restart: GracefulRestart::default(),
            cluster_id: None,
            networks: Vec::new(),
            advertise_pod_cidrs: true,
            maximum_paths: 16,
            route_metric: 1_085,
        }
    }
}

/// Where the BGP identifier comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterIdRule {
    /// The node's IPv4 InternalIP; without one, [`RouterIdRule::Hash`].
    FromInternalIp,
    /// A hash of the node's name.
    Hash,
    /// This one.
    Address(Ipv4Addr),
}

/// Whether the nodes peer with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NodeMesh {
    /// As suits the size of the cluster; a full mesh in this version.
    Auto,
    /// Every node with every other.
    Full,
    /// Only peers that are named.
    Off,
}

/// The `spec` as written.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BgpConfigurationSpec {
    /// Autonomous system of the cluster. Default 64512.
    #[schemars(range(min = 1, max = 4_294_967_294u32), extend("default" = 64_512))]
    asn: Option<u32>,
    /// TCP port to listen at. Default 179.
    #[schemars(range(min = 1), extend("default" = 179))]
    listen_port: Option<u16>,
    /// `fromInternalIP` (default), `hash` (of the node's name) or an IPv4 address.
    #[schemars(extend("default" = "fromInternalIP"))]
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": IDENTIFIER_RULE, "message": IDENTIFIER_MESSAGE}]))]
    router_id: Option<String>,
    /// Whether the nodes peer with each other.
    #[schemars(extend("default" = {}))]
    node_mesh: Option<NodeMeshSpec>,
    /// Session timers where a peer says nothing else.
    timers: Option<TimersSpec>,
    /// Graceful restart (RFC 4724).
    graceful_restart: Option<GracefulRestartSpec>,
    /// Settings of a route reflector (RFC 4456).
    route_reflector: Option<RouteReflectorSpec>,
    /// Prefixes that every node announces besides its pod CIDRs.
    networks: Option<Vec<String>>,
    /// What is announced.
    advertise: Option<AdvertiseSpec>,
    /// How many equal paths are used at once. Default 16.
    #[schemars(range(min = 1, max = 255), extend("default" = 16))]
    maximum_paths: Option<u32>,
    /// Metric of the routes in the kernel. Default 1085.
    #[schemars(range(min = 1), extend("default" = 1085))]
    route_metric: Option<u32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeMeshSpec {
    /// `auto` (default), `full` or `off`.
    #[schemars(extend("default" = "auto"))]
    mode: Option<NodeMesh>,
}

/// `timers`, for the speaker and for one peer.
#[derive(Deserialize, JsonSchema, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimersSpec {
    /// Hold time, as in `9s`: 0 or at least 3s. Default 9s.
    pub(super) hold: Option<String>,
    /// Time between keepalives, at most a third of the hold time. Default 3s.
    pub(super) keepalive: Option<String>,
    /// Time between attempts to connect, at least 100ms. Default 1s.
    pub(super) connect_retry: Option<String>,
    /// How long a neighbour may read nothing before its session is ended (RFC 9687), at least 10s; twice the hold time where
    /// that is longer. Default 8m.
    pub(super) send_hold: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GracefulRestartSpec {
    /// Default true.
    enabled: Option<bool>,
    /// How long others keep our routes while we restart, 1s to 4095s. Default 120s.
    restart_time: Option<String>,
    /// How long a neighbour that is back may take to announce its routes again before those of its earlier session are
    /// dropped, 1s to 4095s. Default 6m.
    stale_path_time: Option<String>,
    /// Long-lived graceful restart (RFC 9494): routes as a last resort after the restart time.
    long_lived: Option<LongLivedSpec>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LongLivedSpec {
    /// Default true.
    enabled: Option<bool>,
    /// How long routes are kept as a last resort, ours by others and theirs by us, 1s to 16777215s. Default 10m.
    stale_time: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RouteReflectorSpec {
    /// Cluster id, written as an IPv4 address. Default: the BGP identifier.
    #[schemars(length(max = 64), extend("x-kubernetes-validations" = [{"rule": IDENTIFIER_RULE, "message": IDENTIFIER_MESSAGE}]))]
    cluster_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AdvertiseSpec {
    /// The node's pod CIDRs. Default true.
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<bool>,
}

impl BgpConfiguration {
    pub(super) fn lower(
        meta: Meta,
        spec: &Value,
        context: &mut Context,
    ) -> Option<BgpConfiguration> {
        let raw: BgpConfigurationSpec = context.decode("spec", spec)?;
        let faults = &mut context.faults;
        if meta.key.name != NAME {
            faults.hinted(
                "metadata.name",
                format_args!("the only BGPConfiguration that counts is called `{NAME}`"),
                format_args!("rename it to `{NAME}`"),
            );
        }
        let default = BgpConfiguration::default();
        let timers = TimerSettings::lower(raw.timers, faults).over(default.timers);
        let graceful = raw.graceful_restart;
        let long_lived = graceful.as_ref().and_then(|g| g.long_lived.as_ref());
        let long_lived = self::long_lived(long_lived, faults);
        let mut seconds = |name: &str, text: Option<&str>| {
            let (least, most) = (Duration::from_secs(1), Duration::from_secs(4_095));
            let path = format!("spec.gracefulRestart.{name}");
            text.and_then(|text| between(&path, text, least, most, faults))
        };
        let texts = graceful.as_ref();
        let restart_time = texts.and_then(|graceful| graceful.restart_time.as_deref());
        let restart_time = seconds("restartTime", restart_time);
        let stale_path_time = texts.and_then(|graceful| graceful.stale_path_time.as_deref());
        let stale_path_time = seconds("stalePathTime", stale_path_time);
        let mut networks = Vec::new();
        for (i, text) in raw.networks.unwrap_or_default().iter().enumerate() {
            networks.extend(faults.take(&format!("spec.networks[{i}]"), cidr(text)));
        }
        Some(BgpConfiguration {
            meta,
            asn: raw
                .asn
                .map_or(default.asn, |number| asn("spec.asn", number, faults)),
            listen_port: raw.listen_port.map_or(default.listen_port, |port| {
                super::bgp_peer::port("spec.listenPort", port, faults)
            }),
            router_id: raw
                .router_id
                .and_then(|text| router_id(&text, faults))
                .unwrap_or(default.router_id),
            node_mesh: raw
                .node_mesh
                .and_then(|mesh| mesh.mode)
                .unwrap_or(default.node_mesh),
            timers,
            graceful_restart: GracefulRestart {
                enabled: graceful
                    .and_then(|graceful| graceful.enabled)
                    .unwrap_or(true),
                restart_time: restart_time.unwrap_or(default.graceful_restart.restart_time),
                long_lived,
                stale_path_time: stale_path_time
                    .unwrap_or(default.graceful_restart.stale_path_time),
            },
            cluster_id: raw
                .route_reflector
                .and_then(|reflector| reflector.cluster_id)
                .and_then(|text| identifier("spec.routeReflector.clusterId", &text, faults)),
            networks,
            advertise_pod_cidrs: raw
                .advertise
                .and_then(|advertise| advertise.pod_cidrs)
                .unwrap_or(true),
            maximum_paths: raw.maximum_paths.map_or(default.maximum_paths, |paths| {
                match u8::try_from(paths) {
                    Ok(paths) if paths > 0 => paths,
                    _ => {
                        faults.add(
                            "spec.maximumPaths",
                            format_args!("{paths} is not between 1 and 255"),
                        );
                        1
                    }
                }
            }),
            route_metric: raw.route_metric.map_or(default.route_metric, |metric| {
                if metric == 0 {
                    faults.add(
                        "spec.routeMetric",
                        "0 would mix our routes with those of others",
                    );
                }
                metric
            }),
        })
    }
}

/// Timers of which some may be left to somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSettings {
    /// See [`Timers::hold`].
    pub hold: Option<Duration>,
    /// See [`Timers::keepalive`].
    pub keepalive: Option<Duration>,
    /// See [`Timers::connect_retry`].
    pub connect_retry: Option<Duration>,
    /// See [`Timers::send_hold`].
    pub send_hold: Option<Duration>,
}

impl TimerSettings {
    pub(super) fn lower(raw: Option<TimersSpec>, faults: &mut Faults) -> TimerSettings {
        let Some(raw) = raw else {
            return TimerSettings::default();
        };
        let longest = Duration::from_secs(65_535);
        let mut timer = |name: &str, text: Option<String>, least: Duration| {
            text.and_then(|text| {
                between(
                    &format!("spec.timers.{name}"),
                    &text,
                    least,
                    longest,
                    faults,
                )
            })
        };
        let hold = timer("hold", raw.hold, Duration::ZERO);
        let keepalive = timer("keepalive", raw.keepalive, Duration::ZERO);
        let connect_retry = timer(
            "connectRetry",
            raw.connect_retry,
            Duration::from_millis(100),
        );
        let send_hold = timer("sendHold", raw.send_hold, Duration::from_secs(10));
        if let Some(hold) = hold.filter(|hold| !hold.is_zero() && *hold < Duration::from_secs(3)) {
            let hint = "write 0s to turn it off, or use BFD for faster detection when it is there";
            faults.hinted(
                "spec.timers.hold",
                format_args!("{} is below 3s (RFC 4271)", duration::show(hold)),
                hint,
            );
        }
        if let (Some(hold), Some(keepalive)) = (hold, keepalive)
            && keepalive * 3 > hold
        {
            let hint = format!("write at most {}", duration::show(hold / 3));
            faults.hinted(
                "spec.timers.keepalive",
                "more than a third of the hold time",
                hint,
            );
        }
        for (name, value) in [("hold", hold), ("keepalive", keepalive)] {
            if value.is_some_and(|value| value.subsec_nanos() != 0) {
                faults.add(
                    format!("spec.timers.{name}"),
                    "whole seconds only: BGP carries no fractions",
                );
            }
        }
        TimerSettings {
            hold,
            keepalive,
            connect_retry,
            send_hold,
        }
    }

    /// These, and where they say nothing, `base`. A hold time alone brings a keepalive of a third of it.
    pub fn over(self, base: Timers) -> Timers {
        let hold = self.hold.unwrap_or(base.hold);
        let third = Duration::from_secs(hold.as_secs() / 3);
        let keepalive = match (self.hold, self.keepalive) {
            (_, Some(keepalive)) => keepalive.min(third),
            (Some(_), None) => third,
            (None, None) => base.keepalive,
        };
        Timers {
            hold,
            keepalive,
            connect_retry: self.connect_retry.unwrap_or(base.connect_retry),
            send_hold: self.send_hold.unwrap_or(base.send_hold),
        }
    }
}

pub(super) fn between(
    path: &str,
    text: &str,
    least: Duration,
    most: Duration,
    faults: &mut Faults,
) -> Option<Duration> {
    let value = faults.take(path, duration::parse(text))?;
    if value < least || value > most {
        let range = format_args!(
            "`{text}` is not between {} and {}",
            duration::show(least),
            duration::show(most)
        );
        faults.add(path, range);
        return None;
    }
    Some(value)
}

/// An autonomous system that may be used (RFC 7607, RFC 6793, RFC 7300).
pub(super) fn asn(path: &str, number: u32, faults: &mut Faults) -> u32 {
    match number {
        0 => faults.add(path, "0 is no autonomous system (RFC 7607)"),
        23_456 => faults.add(path, "23456 is AS_TRANS and belongs to nobody (RFC 6793)"),
        65_535 | u32::MAX => faults.hinted(
            path,
            format_args!("{number} is reserved (RFC 7300)"),
            "private numbers are 64512 to 65534 and 4200000000 to 4294967294",
        ),
        _ => {}
    }
    number
}

/// The stale time, unless it is switched off.
fn long_lived(raw: Option<&LongLivedSpec>, faults: &mut Faults) -> Option<Duration> {
    let path = "spec.gracefulRestart.longLived.staleTime";
    let text = raw.and_then(|raw| raw.stale_time.as_deref());
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(16_777_215));
    let time = text.and_then(|text| between(path, text, least, most, faults));
    let on = raw.and_then(|raw| raw.enabled).unwrap_or(true);
    let default = GracefulRestart::default().long_lived;
    time.or(default).filter(|_| on)
}

fn router_id(text: &str, faults: &mut Faults) -> Option<RouterIdRule> {
    match text {
        "fromInternalIP" => Some(RouterIdRule::FromInternalIp),
        "hash" => Some(RouterIdRule::Hash),
        text => identifier("spec.routerId", text, faults).map(RouterIdRule::Address),
    }
}

/// Whether an address can be a BGP identifier.
pub fn is_identifier(address: Ipv4Addr) -> bool {
    unusable(address.into()).is_none()
}

fn identifier(path: &str, text: &str, faults: &mut Faults) -> Option<Ipv4Addr> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) if is_identifier(address) => Some(address),
        _ => {
            let hint = match path {
                "spec.routerId" => "write `fromInternalIP`, `hash` or an address as in 10.0.0.1",
                _ => "write an address as in 10.0.0.1",
            };
            faults.hinted(path, format_args!("`{text}` is no BGP identifier"), hint);
            None
        }
    }
}
