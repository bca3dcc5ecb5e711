//! What should stand in the statuses at the API server.
//!
//! The conditions of an object that concerns many nodes are the same whoever works them out: they depend on objects
//! only, never on this node. What differs from node to node goes into the node's own `BGPNodeStatus`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::bgp::{self, Speaker};
use super::{Condition, Local};
use crate::kernel::sysctl::Setting;
use crate::objects::bgp_node_status::{
    BgpNodeStatusStatus, MOST_NEIGHBORS, NeighborStatus, SessionTotals,
};
use crate::objects::bgp_peer::Neighbor;
use crate::objects::not_enforced;
use crate::objects::{BgpPeer, Key, Kind, PolicyKind, Shown};
use crate::store::{PeerState, SessionState, Store};

/// How many findings are listed.
const MOST_WRONG: usize = 16;

/// A status to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatusWrite {
    /// The kind.
    pub kind: Kind,
    /// Which one.
    pub key: Key,
    /// Its UID: another object of the same name is not meant.
    pub uid: String,
    /// The version of its spec that was looked at.
    pub generation: i64,
    /// All its conditions, by type.
    pub conditions: Vec<Verdict>,
}

/// A condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    /// `Accepted` and so on.
    pub name: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// One word for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The statuses that are not at the API server as they should be.
pub fn statuses(store: &Store, local: &Local) -> Vec<StatusWrite> {
    let mut found: BTreeMap<(Kind, Key), Vec<Condition>> = BTreeMap::new();
    for condition in bgp::conditions(store, local)
        .into_iter()
        .chain(conflicts(store))
    {
        let id = (condition.kind, condition.key.clone());
        found.entry(id).or_default().push(condition);
    }
    let write = |shown: &Shown| {
        let id = (shown.kind, shown.key.clone());
        let others = found.get(&id).map_or(&[][..], Vec::as_slice);
        let conditions = verdicts(store, shown, others);
        let differs = shown.observed_generation != shown.generation || !same(shown, &conditions);
        differs.then(|| StatusWrite {
            kind: shown.kind,
            key: shown.key.clone(),
            uid: shown.uid.clone(),
            generation: shown.generation,
            conditions,
        })
    };
    store.shown().filter_map(write).collect()
}

fn verdicts(store: &Store, shown: &Shown, found: &[Condition]) -> Vec<Verdict> {
    let mut verdicts = vec![accepted(store, shown)];
    let others = found.iter().filter(|condition| condition.name != ACCEPTED);
    verdicts.extend(others.map(|condition| Verdict {
        name: condition.name,
        status: condition.status,
        reason: condition.name,
        message: condition.message.clone(),
    }));
    verdicts.sort();
    verdicts.dedup_by(|a, b| a.name == b.name);
    verdicts
}

/// The condition that every object has.
pub const ACCEPTED: &str = "Accepted";

fn accepted(store: &Store, shown: &Shown) -> Verdict {
    let problems = store.problems_of(shown.kind, &shown.key);
    let verdict = |status, reason, message| Verdict {
        name: ACCEPTED,
        status,
        reason,
        message,
    };
    if !problems.is_empty() {
        let all = problems.iter().map(|problem| {
            let hint = problem.hint.iter().map(|hint| format!(" ({hint})"));
            let path = Some(&problem.path).filter(|path| !path.is_empty());
            let path = path.map(|path| format!("{path}: ")).unwrap_or_default();
            format!("{path}{}{}", problem.reason, hint.collect::<String>())
        });
        let message = all.collect::<Vec<_>>().join("; ");
        return verdict(false, "Invalid", shortened(message));
    }
    if !shown.ignored.is_empty() {
        let message = format!("this version does not know {}", shown.ignored.join(", "));
        return verdict(true, "FieldsIgnored", shortened(message));
    }
    verdict(true, "Valid", "in force".into())
}

/// `metav1.Condition` takes 32,768 characters; nobody reads that many.
fn shortened(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(1_000) {
        message.truncate(end);
        message.push('…');
    }
    message
}

fn same(shown: &Shown, wanted: &[Verdict]) -> bool {
    let mut there: Vec<_> = shown
        .conditions
        .iter()
        .map(|c| (&*c.name, c.status == "True", &*c.reason, &*c.message))
        .collect();
    there.sort_unstable();
    let wanted = wanted
        .iter()
        .map(|c| (c.name, c.status, c.reason, &*c.message));
    there.into_iter().eq(wanted)
}

/// Of two peers for one neighbour the older counts, on every node that both select.
fn conflicts(store: &Store) -> Vec<Condition> {
    let mut rivals: BTreeMap<Neighbor, Vec<&Arc<BgpPeer>>> = BTreeMap::new();
    for peer in store.peers() {
        rivals.entry(peer.neighbor).or_default().push(peer);
    }
    let mut conditions = Vec::new();
    for mut peers in rivals.into_values().filter(|peers| peers.len() > 1) {
        peers.sort_by_key(|peer| bgp::precedence(peer));
        for (i, peer) in peers.iter().enumerate() {
            let older = peers.get(..i).unwrap_or_default();
            let mut nodes = store.nodes().filter_map(|node| {
                let selects = |peer: &&&Arc<BgpPeer>| bgp::selects(peer, &node.meta.labels);
                let winner = older.iter().find(selects)?;
                selects(&peer).then_some((node, winner))
            });
            let Some((node, winner)) = nodes.next() else {
                continue;
            };
            let more = match nodes.count() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            conditions.push(Condition {
                kind: Kind::BgpPeer,
                key: peer.meta.key.clone(),
                name: "Conflict",
                status: true,
                message: format!(
                    "BGPPeer {} is older and has the same neighbour; this one is not used on node {}{more}",
                    winner.meta.key, node.meta.key
                ),
            });
        }
    }
    conditions
}

/// What this node has to say about itself.
pub fn node_status(store: &Store, speaker: &Speaker) -> BgpNodeStatusStatus {
    let config = &speaker.config;
    let configured: BTreeSet<_> = config.peers.iter().map(|peer| peer.key.addr).collect();
    let up = |state: &PeerState| state.state == SessionState::Established;
    let mut neighbors: Vec<NeighborStatus> = Vec::new();
    for address in &configured {
        let state = store.session(address);
        neighbors.push(neighbor(address, state, speaker.origin(address, true)));
    }
    let dynamic = store
        .sessions()
        .filter(|state| !configured.contains(&state.address) && up(state));
    neighbors.extend(dynamic.map(|state| {
        let origin = speaker.origin(&state.address, false);
        neighbor(&state.address, Some(state), origin)
    }));
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let sessions = SessionTotals {
        configured: count(neighbors.len()),
        established: count(neighbors.iter().filter(|neighbor| neighbor.up).count()),
    };
    let mut wrong = wrong(store, speaker);
    let down = neighbors.iter().filter(|neighbor| !neighbor.up);
    wrong.extend(
        down.take(MOST_WRONG + 1)
            .map(|n| format!("neighbour {} ({}) is not up", n.address, n.origin)),
    );
    if wrong.len() > MOST_WRONG {
        // Without their number, which would have the report written anew with each of them.
        wrong.truncate(MOST_WRONG - 1);
        wrong.push("and more: `selvage status` on the node shows it".into());
    }
    // Those that are down first, then those that somebody wrote down, then the mesh.
    neighbors.sort_by_key(|neighbor| (neighbor.up, !neighbor.origin.starts_with("BGPPeer")));
    neighbors.truncate(MOST_NEIGHBORS);
    BgpNodeStatusStatus {
        asn: config.asn.0,
        router_id: config.router_id.to_string(),
        networks: config.networks.iter().map(ToString::to_string).collect(),
        sessions,
        neighbors,
        wrong,
    }
}

fn neighbor(
    address: &std::net::IpAddr,
    state: Option<&PeerState>,
    origin: String,
) -> NeighborStatus {
    let up = state.filter(|state| state.state == SessionState::Established);
    NeighborStatus {
        address: address.to_string(),
        origin,
        up: up.is_some(),
        asn: up
            .and_then(|state| state.asn)
            .map(|asn| asn.to_string())
            .unwrap_or_default(),
        families: up.map(PeerState::family_names).unwrap_or_default(),
    }
}

/// What is wrong apart from sessions; nothing that changes by itself. Of the sources no more than what shows that there is more
/// than is listed.
fn wrong(store: &Store, speaker: &Speaker) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(failure) = &store.policy_state().failure {
        wrong.push(format!("policy is not in the kernel: {failure}"));
    }
    for kind in PolicyKind::ALL {
        let policies = store.not_enforced(kind);
        if !policies.is_empty() {
            let names = policies.iter().map(|policy| policy.name.as_str());
            let what = not_enforced::summary(kind.name(), policies.len(), names);
            wrong.push(what);
        }
    }
    wrong.extend(store.sysctls().iter().map(Setting::what));
    wrong.extend(store.lacking().map(|(_, what)| what.to_owned()));
    let conditions = speaker
        .conditions
        .iter()
        .filter(|condition| condition.is_bad());
    wrong.extend(conditions.map(|c| format!("{} {}: {}", c.kind, c.key, c.message)));
    wrong.extend(
        store
            .problems()
            .take(MOST_WRONG + 1)
            .map(ToString::to_string),
    );
    wrong.into_iter().map(shortened).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::{Mode, parse, status};
    use crate::source::{At, ObjectEvent, Problem};

    fn peer(name: &str, created: &str, spec: Value, shown: Value) -> Value {
        json!({"apiVersion": "selvage.io/v1alpha1", "kind": "BGPPeer", "spec": spec, "status": shown,
            "metadata": {"name": name, "uid": name, "generation": 1, "creationTimestamp": created}})
    }

    fn node(name: &str, rack: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"rack": rack}}})
    }

    fn store(values: &[Value]) -> Store {
        let mut store = Store::default();
        for value in values {
            let parsed = parse(value, Mode::Api);
            let event = match parsed {
                Ok(parsed) => ObjectEvent::Applied(parsed.unwrap().object),
                Err(rejected) => ObjectEvent::Invalid(Problem {
                    at: At::Api {
                        resource_version: "7".into(),
                        uid: String::new(),
                    },
                    kind: rejected.kind.clone(),
                    key: rejected.key.clone(),
                    path: rejected.faults[0].path.clone(),
                    reason: rejected.faults[0].reason.clone(),
                    hint: None,
                }),
            };
            store.apply([event]);
            if let Some(shown) = status::read(value, Vec::new()) {
                store.apply([ObjectEvent::Shown(Box::new(shown))]);
            }
        }
        store
    }

    /// `object: Type=Status reason message`, one line a condition.
    fn written(values: &[Value]) -> Vec<String> {
        let mut lines = Vec::new();
        for write in statuses(&store(values), &Local::new("n1")) {
            for verdict in write.conditions {
                let Verdict {
                    name,
                    status,
                    reason,
                    message,
                } = verdict;
                lines.push(format!("{}: {name}={status} {reason} {message}", write.key));
            }
        }
        lines
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-02-01T00:00:00Z";

    #[test]
    fn what_is_not_as_it_should_be_is_written() {
        let spec = || json!({"address": "192.0.2.1", "asn": 65001});
        let accepted = |status: &str, generation: i64| {
            json!({"observedGeneration": generation, "conditions": [
                {"type": "Accepted", "status": status, "reason": "Valid", "message": "in force"}]})
        };
        let valid = ["tor: Accepted=true Valid in force"];
        for (shown, expected) in [
            (Value::Null, &valid[..]),
            (accepted("True", 1), &[]),
            (accepted("True", 0), &valid),
            (accepted("False", 1), &valid),
        ] {
            assert_eq!(written(&[peer("tor", OLD, spec(), shown)]), expected);
        }
        let bad = json!({"address": "192.0.2.1", "asn": 65001, "bfd": {}});
        assert_eq!(
            written(&[peer("tor", OLD, bad, Value::Null)]),
            ["tor: Accepted=false Invalid spec.bfd: not implemented in this version"]
        );
        let secret = json!({"address": "192.0.2.1", "asn": 65001, "passwordSecretRef": {"name": "s", "key": "k"}});
        assert_eq!(
            written(&[peer("tor", OLD, secret, Value::Null)]),
            [
                "tor: Accepted=true Valid in force",
                "tor: PasswordMissing=true PasswordMissing there is no Secret s; the session stays down until it is there"
            ]
        );
    }

    #[test]
    fn of_two_peers_for_one_neighbour_the_older_counts_where_both_are_selected() {
        let on = |rack: Option<&str>| match rack {
            None => json!({"address": "192.0.2.1", "asn": 65001}),
            Some(rack) => json!({"address": "192.0.2.1", "asn": 65001,
                "nodeSelector": {"matchLabels": {"rack": rack}}}),
        };
        let done = json!({"observedGeneration": 1, "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Valid", "message": "in force"}]});
        for (older, newer, nodes) in [
            (None, None, "node n1 and 2 more"),
            (Some("a"), None, "node n1 and 1 more"),
            (None, Some("b"), "node n3"),
            (Some("a"), Some("b"), ""),
        ] {
            let lines = written(&[
                node("n1", "a"),
                node("n2", "a"),
                node("n3", "b"),
                peer("second", NEW, on(newer), done.clone()),
                peer("first", OLD, on(older), done.clone()),
            ]);
            let conflict = format!(
                "second: Conflict=true Conflict BGPPeer first is older and has the same neighbour; this one is not used on {nodes}"
            );
            let expected = match nodes {
                "" => Vec::new(),
                _ => vec!["second: Accepted=true Valid in force".to_owned(), conflict],
            };
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn a_relist_takes_away_what_was_refused_and_is_gone() {
        let bad = json!({"address": "nonsense", "asn": 65001});
        let mut store = store(&[peer("tor", OLD, bad, Value::Null)]);
        assert_eq!(store.problems().count(), 1);
        store.apply([
            ObjectEvent::Relist(Kind::BgpPeer),
            ObjectEvent::Synced(Kind::BgpPeer),
        ]);
        assert_eq!((store.problems().count(), store.shown().count()), (0, 0));
    }
}
