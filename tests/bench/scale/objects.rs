//! A large cluster, made up: 75 pods and five policies to a namespace, of which a node has some.

use serde_json::{Value, json};

/// Where the packets come from: a pod of another node.
pub(crate) const SOURCE: &str = "10.250.0.2";

/// How large the cluster is.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) pods: u32,
    pub(crate) policies: u32,
}

impl Size {
    /// The name of the node; agents of one lab have directories by it.
    pub(crate) fn node(self) -> String {
        format!("node-of-{}", self.policies)
    }

    fn namespaces(self) -> u32 {
        (self.pods / 75).max(2)
    }

    /// What a collection begins with.
    pub(crate) fn initial(self, plural: &str) -> Box<dyn Iterator<Item = String>> {
        match plural {
            "nodes" => Box::new(std::iter::once(node(&self.node()).to_string())),
            "namespaces" => Box::new((0..self.namespaces()).map(|n| namespace(n).to_string())),
            // One namespace after the other, as an API server lists them.
            "pods" => Box::new((0..self.namespaces()).flat_map(move |home| {
                (home..self.pods)
                    .step_by(self.namespaces() as usize)
                    .map(move |n| pod(n, home))
            })),
            "networkpolicies" => {
                Box::new((0..self.policies).map(move |n| policy(n, self.namespaces()).to_string()))
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": "node", "resourceVersion": "1"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

fn namespace(n: u32) -> Value {
    let name = format!("ns{n}");
    let labels = json!({"kubernetes.io/metadata.name": name, "team": format!("t{}", n % 20)});
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": format!("namespace-{n}"), "resourceVersion": "1", "labels": labels}})
}

/// A pod of another node, in both families, as text: there are many.
fn pod(n: u32, home: u32) -> String {
    let (app, tier) = (n % 10, ["front", "back"][n as usize / 3 % 2]);
    let [a, b, c] = [(n + 1) >> 16 & 255, (n + 1) >> 8 & 255, (n + 1) & 255];
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web-7c9f8b6d54-{n:05}","generateName":"web-7c9f8b6d54-","namespace":"ns{home}","uid":"3f0c7a4e-1111-4222-8333-{n:012}","resourceVersion":"1","creationTimestamp":"2026-11-24T08:00:00Z","labels":{{"app":"a{app}","tier":"{tier}","pod-template-hash":"7c9f8b6d54"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web-7c9f8b6d54","uid":"u","controller":true}}]}},"spec":{{"nodeName":"node-{node}","serviceAccountName":"default","restartPolicy":"Always","containers":[{{"name":"web","image":"registry.example.org/team/web:1.27.3","ports":[{{"name":"http","containerPort":8080,"protocol":"TCP"}}],"env":[{{"name":"SETTING","value":"a value"}}],"resources":{{"limits":{{"cpu":"500m","memory":"256Mi"}}}}}}]}},"status":{{"phase":"Running","hostIP":"192.0.2.10","podIP":"10.{a}.{b}.{c}","podIPs":[{{"ip":"10.{a}.{b}.{c}"}},{{"ip":"fd00:10::{a:x}:{v6:x}"}}],"conditions":[{{"type":"Ready","status":"True"}}],"startTime":"2026-11-24T08:00:00Z"}}}}"#,
        node = n % 5000,
        v6 = (n + 1) & 0xffff,
    )
}

fn policy(n: u32, namespaces: u32) -> Value {
    let app = format!("a{}", n % 10);
    let spec = match n % 4 {
        0 => {
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]})
        }
        1 => {
            json!({"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"ports": [{"port": 8080}, {"port": 9090}],
            "from": [{"namespaceSelector": {"matchLabels": {"team": format!("t{}", n % 20)}},
                "podSelector": {"matchLabels": {"tier": "front"}}}]}]})
        }
        2 => {
            json!({"podSelector": {"matchLabels": {"tier": "back"}}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12"]}}]}]})
        }
        _ => {
            json!({"podSelector": {"matchLabels": {"tier": "front"}}, "ingress": [{"ports": [{"port": 80}, {"port": 443}]}]})
        }
    };
    network_policy(&format!("ns{}", n % namespaces), &format!("p{n}"), spec)
}

/// A NetworkPolicy.
pub(crate) fn network_policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec,
        "metadata": {"name": name, "namespace": namespace, "uid": format!("policy-{namespace}-{name}"), "generation": 1}})
}

/// The pod from which the packets come.
pub(crate) fn source() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "source", "namespace": "ns1", "uid": "source", "labels": {"app": "source"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": SOURCE, "podIPs": [{"ip": SOURCE}]}})
}

/// Allows the pods with the label of the source to reach the target: those of its namespace, or those of all of them.
pub(crate) fn allow(everywhere: bool) -> Value {
    let namespaces = match everywhere {
        true => json!({}),
        false => json!({"matchLabels": {"kubernetes.io/metadata.name": "ns1"}}),
    };
    let peer =
        json!({"namespaceSelector": namespaces, "podSelector": {"matchLabels": {"app": "source"}}});
    let spec =
        json!({"podSelector": {"matchLabels": {"app": "target"}}, "ingress": [{"from": [peer]}]});
    network_policy("ns0", "allow", spec)
}
