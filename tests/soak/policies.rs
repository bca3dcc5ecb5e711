//! Network policies as a naive model reads them: one pod, one other, one port.

use serde_json::{Value, json};

use super::journal::Random;

/// Namespaces of the soak.
pub const NAMESPACES: [&str; 2] = ["red", "blue"];
/// Values of the label `app`.
pub const APPS: [&str; 3] = ["a", "b", "c"];
/// Ports on which every pod answers.
pub const PORTS: [u16; 2] = [80, 81];

/// What a policy sees of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its label `app`.
    pub app: &'static str,
}

/// Who the other end of a rule is.
#[derive(Clone, Debug)]
enum Peer {
    /// Pods of the policy's namespace with this label.
    App(&'static str),
    /// All pods of a namespace.
    Namespace(&'static str),
    /// Pods of a namespace with this label.
    Both(&'static str, &'static str),
}

#[derive(Clone, Debug)]
struct Rule {
    /// None: everybody.
    peers: Vec<Peer>,
    /// None: all ports.
    port: Option<u16>,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    namespace: &'static str,
    /// Which pods; `None`: all of the namespace.
    app: Option<&'static str>,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

fn any<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[random.below(all.len())]
}

impl Rule {
    fn random(random: &mut Random) -> Rule {
        let mut peers = Vec::new();
        for _ in 0..random.below(3) {
            peers.push(match random.below(3) {
                0 => Peer::App(any(random, &APPS)),
                1 => Peer::Namespace(any(random, &NAMESPACES)),
                _ => Peer::Both(any(random, &NAMESPACES), any(random, &APPS)),
            });
        }
        let port = random.percent(50).then(|| any(random, &PORTS));
        Rule { peers, port }
    }

    fn matches(&self, namespace: &str, other: &Identity, port: u16) -> bool {
        let is = |peer: &Peer| match peer {
            Peer::App(app) => other.namespace == namespace && other.app == *app,
            Peer::Namespace(name) => other.namespace == *name,
            Peer::Both(name, app) => other.namespace == *name && other.app == *app,
        };
        (self.peers.is_empty() || self.peers.iter().any(is))
            && self.port.is_none_or(|only| only == port)
    }

    fn object(&self, end: &str) -> Value {
        let label = |app: &str| json!({"matchLabels": {"app": app}});
        let name = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        let peer = |peer: &Peer| match peer {
            Peer::App(app) => json!({"podSelector": label(app)}),
            Peer::Namespace(namespace) => json!({"namespaceSelector": name(namespace)}),
            Peer::Both(namespace, app) => {
                json!({"namespaceSelector": name(namespace), "podSelector": label(app)})
            }
        };
        let mut rule = json!({});
        if !self.peers.is_empty() {
            rule[end] = self.peers.iter().map(peer).collect();
        }
        if let Some(port) = self.port {
            rule["ports"] = json!([{"protocol": "TCP", "port": port}]);
        }
        rule
    }
}

impl Policy {
    /// Any policy.
    pub fn random(random: &mut Random) -> Policy {
        let rules = |random: &mut Random| {
            let number = random.below(3);
            (0..number).map(|_| Rule::random(random)).collect()
        };
        let which = random.below(4);
        Policy {
            namespace: any(random, &NAMESPACES),
            app: random.percent(70).then(|| any(random, &APPS)),
            ingress: (which != 0).then(|| rules(random)),
            egress: (which < 2).then(|| rules(random)),
        }
    }

    fn selects(&self, pod: &Identity) -> bool {
        self.namespace == pod.namespace && self.app.is_none_or(|app| app == pod.app)
    }

    /// As Kubernetes has it.
    #[must_use]
    pub fn object(&self, name: &str) -> Value {
        let selector = match self.app {
            Some(app) => json!({"matchLabels": {"app": app}}),
            None => json!({}),
        };
        let mut spec = json!({"podSelector": selector, "policyTypes": []});
        for (rules, key, kind, end) in [
            (&self.ingress, "ingress", "Ingress", "from"),
            (&self.egress, "egress", "Egress", "to"),
        ] {
            let Some(rules) = rules else { continue };
            spec[key] = rules.iter().map(|rule| rule.object(end)).collect();
            if let Some(types) = spec["policyTypes"].as_array_mut() {
                types.push(json!(kind));
            }
        }
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        })
    }
}

/// Whether policies let a connection pass: the union of those that select an end decides for that end.
#[must_use]
pub fn allowed<'a>(
    policies: impl Iterator<Item = &'a Policy> + Clone,
    from: &Identity,
    to: &Identity,
    port: u16,
) -> bool {
    let side = |own: &Identity, other: &Identity, rules: fn(&Policy) -> &Option<Vec<Rule>>| {
        let mut isolated = false;
        for policy in policies.clone().filter(|policy| policy.selects(own)) {
            let Some(rules) = rules(policy) else { continue };
            isolated = true;
            let passes = |rule: &Rule| rule.matches(policy.namespace, other, port);
            if rules.iter().any(passes) {
                return true;
            }
        }
        !isolated
    };
    side(from, to, |policy| &policy.egress) && side(to, from, |policy| &policy.ingress)
}
