//! What the outside sees of this node: the CNI configuration, the node's condition, statuses of objects.

use std::time::{Duration, Instant};

use selvage_cni::conflist::Conflist;
use selvage_cni::link::PolicyMode;
use selvage_cni::spec::Cidr;
use tracing::{info, warn};

use super::{RETRY, World};
use crate::{
    api::ReadyView,
    desired::{self, Verdict},
    limits::Limits,
    objects::{Key, Kind, PolicyKind, not_enforced::WHAT_TO_DO},
    publish::{Network, NodeRef, Refused, Wanted, folder},
    source::{At, Origin},
    store::{Dirty, Observed},
};

/// What happens within this time is told at once.
const GATHER: Duration = Duration::from_millis(200);
/// Between two times that the CNI configuration is put right.
const PUT_RIGHT: Duration = Duration::from_secs(5);
/// Objects that are refused and get an event each, and policies that are not enforced and do: who has more of them has
/// read one of these.
const MOST_EVENTS: usize = 50;
/// The faults of an object are named until the message has so many octets.
const LONG_MESSAGE: usize = 1_000;
/// Name of the network, under which leases are kept.
const NETWORK: &str = "selvage";

/// How far the outside has been told.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    /// When the outside is told, because something may differ. Always `None` where nobody is told.
    at: Option<Instant>,
    /// The condition of the node in the turn before.
    network: Option<Network>,
    /// The CNI configuration could not be written, and why; not tried again before this time.
    unwritten: Option<(Instant, String)>,
    /// It is as it should be.
    written: bool,
    /// What stands there by our hand.
    ours: Option<Conflist>,
    /// When we wrote it last.
    wrote: Option<Instant>,
    /// Somebody's hand was there; not put right before this time, should that hand not rest.
    put_right: Option<Instant>,
    /// Since when the kernel has no policy because it refuses it.
    refused_since: Option<Instant>,
}

impl Publishing {
    /// Until when the CNI configuration is left alone; `None`: it may be written now.
    fn rests_until(&self, now: Instant) -> Option<Instant> {
        let unwritten = self.unwritten.as_ref().map(|(at, _)| *at);
        let rests = [unwritten, self.put_right].into_iter().flatten().max();
        rests.filter(|at| *at > now)
    }

    /// When there is something to write or to tell although nothing happens until then.
    pub(super) fn next_wakeup(&self, now: Instant, limits: &Limits) -> Option<Instant> {
        let limit = self.refused_since.map(|since| since + limits.refused);
        let limit = limit.filter(|at| *at > now);
        [self.at, self.rests_until(now), limit]
            .into_iter()
            .flatten()
            .min()
    }
}

impl World {
    /// Tells the outside what differs.
    pub(super) fn publish(&mut self, dirty: &Dirty) {
        if dirty.bgp || dirty.synced {
            self.publishing.written = false;
        }
        self.configure_plugin();
        self.watch_policy();
        if self.out.publisher.is_none() {
            return;
        }
        let network = self.network();
        let moved = std::mem::replace(&mut self.publishing.network, network.clone()) != network;
        if moved || dirty.bgp || dirty.views || dirty.synced {
            self.publish_soon();
        }
        if self.publishing.at.is_none_or(|at| at > self.now) {
            return;
        }
        self.publishing.at = None;
        let wanted = self.wanted();
        if let Some(publisher) = &self.out.publisher {
            publisher.tell(wanted);
        }
    }

    /// Has the outside told soon, whatever the reason. Without an API server there is no outside.
    pub(super) fn publish_soon(&mut self) {
        if self.out.publisher.is_some() {
            self.publishing.at.get_or_insert(self.now + GATHER);
        }
    }

    fn wanted(&self) -> Wanted {
        let store = &self.store;
        let local = &self.setup.local;
        let node = store.node(&local.node);
        // Half a world would take back what is true.
        let whole = store.synced();
        Wanted {
            node: node.map(|node| NodeRef {
                name: node.meta.key.name.clone(),
                uid: node.meta.uid.clone(),
            }),
            nodes: store.count(Kind::Node),
            network: self.network(),
            network_unavailable: node.and_then(|node| node.network_unavailable),
            report: self
                .speaker
                .as_ref()
                .filter(|_| whole)
                .map(|speaker| (desired::node_status(store, speaker), self.ready_verdict())),
            statuses: match whole {
                true => desired::statuses(store, local),
                false => Vec::new(),
            },
            refused: self.events_about_objects(),
        }
    }

    /// What is to be said about objects of kinds that have no status for us to write.
    pub(super) fn events_about_objects(&self) -> Vec<Refused> {
        let mut refused: Vec<Refused> = Vec::new();
        for problem in self.store.problems() {
            let At::Api { uid, .. } = &problem.at else {
                continue;
            };
            let Origin::Api(name, key) = problem.origin() else {
                continue;
            };
            let Some(kind) = Kind::from_name(&name).filter(|kind| !kind.has_status()) else {
                continue;
            };
            let mut plain = problem.clone();
            plain.kind.clear();
            let text = match plain.path.as_str() {
                "" => plain.reason,
                path => format!("{path}: {}", plain.reason),
            };
            let last = refused.last_mut();
            if let Some(last) = last.filter(|last| (last.kind, &last.key) == (kind.name(), &key)) {
                if last.message.len() < LONG_MESSAGE {
                    last.message = format!("{}; {text}", last.message);
                }
                continue;
            }
            if refused.len() == MOST_EVENTS {
                break;
            }
            refused.push(Refused {
                api_version: kind.api_version().to_owned(),
                kind: kind.name(),
                key,
                // It changes with each heartbeat of a Node; the same fault is told once.
                version: String::new(),
                uid: uid.clone(),
                reason: "Refused",
                message: text,
            });
        }
        refused.extend(self.not_enforced());
        refused
    }

    /// Policies that this version does not enforce: the event stands where their author looks.
    fn not_enforced(&self) -> impl Iterator<Item = Refused> {
        let kinds = PolicyKind::ALL
            .into_iter()
            .filter(|_| self.setup.features.policy);
        let policies = kinds.flat_map(|kind| self.store.not_enforced(kind));
        policies.take(MOST_EVENTS).map(|policy| Refused {
            api_version: policy.api_version.clone(),
            kind: policy.kind.name(),
            key: Key::new("", policy.name.as_str()),
            uid: policy.uid.clone(),
            version: policy.generation.to_string(),
            reason: "NotEnforced",
            message: format!("Selvage does not enforce this policy: {WHAT_TO_DO}"),
        })
    }

    fn ready_verdict(&self) -> Verdict {
        let view = self.ready_view();
        let (reason, message) = match (view.ready, view.missing.is_empty()) {
            (true, true) => ("Ready", "routes and policy are in the kernel".into()),
            (true, false) => ("Degraded", view.missing.join("; ")),
            (false, _) => ("NotReady", view.missing.join("; ")),
        };
        Verdict {
            name: "Ready",
            status: view.ready,
            reason,
            message,
        }
    }

    /// Whether the node can have pods, as far as it is known.
    pub(super) fn network(&self) -> Option<Network> {
        if !self.setup.features.cni {
            return None;
        }
        let unavailable = |reason, message| {
            Some(Network {
                available: false,
                reason,
                message,
            })
        };
        if !self.ready.ready {
            let limits = &self.setup.limits;
            let late = self.now >= self.setup.started + limits.ready + limits.start;
            return match late {
                true => unavailable("NotReady", self.ready.missing.join("; ")),
                false => None,
            };
        }
        match self.obstacle() {
            Some((reason, message)) => unavailable(reason, message),
            None => Some(Network {
                available: true,
                reason: "NetworkReady",
                message: "Selvage has routes and policy in the kernel".into(),
            }),
        }
    }

    /// What keeps a node that was ready from having pods now.
    fn obstacle(&self) -> Option<(&'static str, String)> {
        let refused = self.publishing.refused_since;
        if refused.is_some_and(|since| self.now >= since + self.setup.limits.refused) {
            let why = self.policy.failure.clone().unwrap_or_default();
            return Some((
                "PolicyRefused",
                format!("policy is not in the kernel: {why}"),
            ));
        }
        if let Some((_, why)) = &self.publishing.unwritten {
            return Some(("ConfigurationNotWritten", why.clone()));
        }
        None
    }

    /// Whether the node can serve pods, for those who ask.
    pub(super) fn ready_view(&self) -> ReadyView {
        match self.obstacle().filter(|_| self.ready.ready) {
            Some((_, message)) => ReadyView {
                ready: false,
                missing: vec![message],
            },
            None if self.ready.ready => ReadyView {
                ready: true,
                missing: self.shortcomings(),
            },
            None => self.ready.clone(),
        }
    }

    /// Notes since when the kernel has refused the policy.
    fn watch_policy(&mut self) {
        let since = &mut self.publishing.refused_since;
        match &self.policy.failure {
            Some(_) => *since = since.or(Some(self.now)),
            None => *since = None,
        }
    }

    /// What the node lacks before it can have pods: what its addresses are made from.
    pub(super) fn missing_cidrs(&self) -> Option<String> {
        self.setup.cni_conf.as_ref()?;
        let name = &self.setup.local.node;
        let Some(node) = self.store.node(name) else {
            return Some(format!(
                "there is no Node `{name}`; is --node spelled as in the cluster?"
            ));
        };
        node.pod_cidrs.is_empty().then(|| {
            format!(
                "Node `{name}` has no spec.podCIDRs; does kube-controller-manager run with --allocate-node-cidrs?"
            )
        })
    }

    /// Writes the CNI configuration, last of all: from then on the node takes pods.
    fn configure_plugin(&mut self) {
        let Some(path) = &self.setup.cni_conf else {
            return;
        };
        let rests = self.publishing.rests_until(self.now).is_some();
        if !self.ready.ready || self.publishing.written || rests {
            return;
        }
        let Some(conflist) = self.conflist() else {
            return;
        };
        match conflist.write(path) {
            Ok(written) => {
                if written {
                    info!(path = %path.display(), "the CNI configuration is written");
                    self.publishing.wrote = Some(self.now);
                }
                self.publishing.written = true;
                self.publishing.unwritten = None;
                self.publishing.ours = Some(conflist);
            }
            Err(error) => {
                let why = format!("{error}");
                if self.publishing.unwritten.is_none() {
                    warn!("the CNI configuration cannot be written: {why}");
                }
                self.publishing.unwritten = Some((self.now + RETRY, why));
            }
        }
        self.publish_soon();
    }

    /// Somebody has been in the folder: ours is put right, and one that is taken instead is told.
    pub(super) fn look_at_folder(&mut self) {
        let Some(path) = self.setup.cni_conf.as_deref() else {
            return;
        };
        self.store.observe(match folder::before(path) {
            Some(other) => Observed::Lacking(
                "cni-configuration",
                format!(
                    "new pods get their network from {}, which comes before {}: remove it if this network is to take its place",
                    other.display(),
                    path.display()
                ),
            ),
            None => Observed::NotLacking("cni-configuration"),
        });
        let ours = self.publishing.ours.as_ref();
        if self.publishing.written && ours.is_some_and(|ours| !ours.is_at(path)) {
            warn!(path = %path.display(), "somebody has removed or changed the CNI configuration; it is written again");
            self.publishing.written = false;
            self.publishing.put_right = self.publishing.wrote.map(|at| at + PUT_RIGHT);
        }
        self.publish_soon();
    }

    fn conflist(&self) -> Option<Conflist> {
        let node = self.store.node(&self.setup.local.node)?;
        let pod_cidrs: Vec<Cidr> = node
            .pod_cidrs
            .iter()
            .filter_map(|cidr| Cidr::parse(&cidr.to_string()))
            .collect();
        if pod_cidrs.is_empty() {
            return None;
        }
        // What leaves by this link has to fit.
        let carrier = self.store.links().values().find(|link| {
            let addresses = link.addresses.iter();
            addresses
                .map(ipnet::IpNet::addr)
                .any(|addr| node.internal_ips.contains(&addr))
        });
        Some(Conflist {
            name: NETWORK.into(),
            pod_cidrs,
            mtu: carrier.map(|link| link.mtu).unwrap_or_default(),
            ip_masq: self.setup.masquerade,
            policy: match self.setup.features.policy {
                true => PolicyMode::Required,
                false => PolicyMode::None,
            },
            run_dir: self.setup.run_dir.clone(),
            state_dir: self.setup.state_dir.clone(),
        })
    }
}
