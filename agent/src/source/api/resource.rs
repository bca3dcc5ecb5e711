//! The kinds as the API server has them: paths and queries.

use crate::objects::Kind;

/// Objects asked for at once.
pub(super) const PAGE: usize = 500;

/// A kind, and which of its objects are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    path: String,
    /// A field selector, ready for a query.
    selector: String,
    /// For people: what rights are needed for.
    scope: String,
}

impl Resource {
    /// All that is needed of a kind. `namespace` is our own; `node` is set if only its pods matter.
    pub(super) fn new(kind: Kind, namespace: &str, node: Option<&str>) -> Resource {
        let path = match (kind, kind.api_version()) {
            (Kind::Secret, version) => format!("/api/{version}/namespaces/{namespace}/secrets"),
            (kind, "v1") => format!("/api/v1/{}", plural(kind)),
            (kind, version) => format!("/apis/{version}/{}", plural(kind)),
        };
        let selector = match (kind, node) {
            // Who has ended has no address any more.
            (Kind::Pod, None) => "status.phase!=Succeeded,status.phase!=Failed".to_owned(),
            (Kind::Pod, Some(node)) => {
                format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed")
            }
            // Large, many, and no passwords.
            (Kind::Secret, _) => {
                "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token".to_owned()
            }
            _ => String::new(),
        };
        let scope = match kind {
            Kind::Secret => format!("in the namespace {namespace}"),
            _ => "in the whole cluster".to_owned(),
        };
        Resource {
            kind,
            path,
            selector: escape(&selector),
            scope,
        }
    }

    /// `secrets in the namespace selvage-system`.
    pub(super) fn name(&self) -> String {
        match self.kind {
            Kind::Secret => format!("secrets {}", self.scope),
            kind => plural(kind).to_owned(),
        }
    }

    /// One page of a list at the most recent version. `after`: where the page before has ended.
    pub(super) fn list(&self, after: Option<&str>) -> String {
        let mut query = format!("{}?limit={PAGE}", self.path);
        self.select(&mut query);
        if let Some(token) = after {
            query.push_str("&continue=");
            query.push_str(&escape(token));
        }
        query
    }

    /// What happens after a version.
    pub(super) fn watch(&self, version: &str, seconds: u64) -> String {
        let mut query = format!(
            "{}?watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={seconds}",
            self.path,
            escape(version)
        );
        self.select(&mut query);
        query
    }

    /// All objects at the most recent version, and then what happens after it.
    pub(super) fn stream(&self, seconds: u64) -> String {
        let mut query = format!(
            "{}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true\
             &resourceVersionMatch=NotOlderThan&timeoutSeconds={seconds}",
            self.path
        );
        self.select(&mut query);
        query
    }

    fn select(&self, query: &mut String) {
        if !self.selector.is_empty() {
            query.push_str("&fieldSelector=");
            query.push_str(&self.selector);
        }
    }
}

/// The name of a kind in paths and rights.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "nodes",
        Kind::Namespace => "namespaces",
        Kind::Pod => "pods",
        Kind::NetworkPolicy => "networkpolicies",
        Kind::BgpConfiguration => "bgpconfigurations",
        Kind::BgpPeer => "bgppeers",
        Kind::Secret => "secrets",
    }
}

/// Percent-encodes what does not stand for itself in a query.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries() {
        let resource = |kind| Resource::new(kind, "net", None);
        for (resource, list) in [
            (resource(Kind::Node), "/api/v1/nodes?limit=500"),
            (
                resource(Kind::Secret),
                "/api/v1/namespaces/net/secrets?limit=500&fieldSelector=type%21%3Dhelm.sh%2Frelease.v1%2Ctype%21%3Dkubernetes.io%2Fservice-account-token",
            ),
            (
                resource(Kind::BgpPeer),
                "/apis/selvage.io/v1alpha1/bgppeers?limit=500",
            ),
            (
                resource(Kind::NetworkPolicy),
                "/apis/networking.k8s.io/v1/networkpolicies?limit=500",
            ),
            (
                Resource::new(Kind::Pod, "net", Some("n1")),
                "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Dn1%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed",
            ),
        ] {
            assert_eq!(resource.list(None), list);
        }
        assert_eq!(
            resource(Kind::Node).list(Some("a+b/c=")),
            "/api/v1/nodes?limit=500&continue=a%2Bb%2Fc%3D"
        );
        assert_eq!(
            resource(Kind::Node).watch("17", 300),
            "/api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion=17&timeoutSeconds=300"
        );
    }
}
