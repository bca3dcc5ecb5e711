//! Policies that an API server accepts and that this version does not enforce: the kinds of `policy.networking.k8s.io`
//! (network-policy-api: ClusterNetworkPolicy of v1alpha2 and later, AdminNetworkPolicy and BaselineAdminNetworkPolicy of
//! v1alpha1). Their rules are not read. The agent names the objects, so that nobody takes them for a barrier.

use std::fmt;

/// The API group of these kinds.
pub const GROUP: &str = "policy.networking.k8s.io";

/// Objects of one kind that a screen or a status names; of the others it gives the number.
pub const MOST_NAMED: usize = 5;

/// What somebody can do who has such objects.
pub const WHAT_TO_DO: &str = "this version enforces NetworkPolicy (networking.k8s.io/v1) only: write the same rules as \
     NetworkPolicies in each namespace, or use a policy engine that enforces this kind";

/// A kind whose objects are not enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `ClusterNetworkPolicy`.
    Cluster,
    /// `AdminNetworkPolicy`, which ClusterNetworkPolicy replaces.
    Admin,
    /// `BaselineAdminNetworkPolicy`, which ClusterNetworkPolicy replaces.
    BaselineAdmin,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [PolicyKind; 3] = [
        PolicyKind::Cluster,
        PolicyKind::Admin,
        PolicyKind::BaselineAdmin,
    ];

    /// The `kind` field.
    pub fn name(self) -> &'static str {
        match self {
            PolicyKind::Cluster => "ClusterNetworkPolicy",
            PolicyKind::Admin => "AdminNetworkPolicy",
            PolicyKind::BaselineAdmin => "BaselineAdminNetworkPolicy",
        }
    }

    /// The resource in paths and rights.
    pub fn plural(self) -> &'static str {
        match self {
            PolicyKind::Cluster => "clusternetworkpolicies",
            PolicyKind::Admin => "adminnetworkpolicies",
            PolicyKind::BaselineAdmin => "baselineadminnetworkpolicies",
        }
    }

    /// The kind that the fields `apiVersion` and `kind` name, in any version of the group.
    pub fn of(api_version: &str, kind: &str) -> Option<PolicyKind> {
        let (group, _) = api_version.split_once('/')?;
        let named = |known: &PolicyKind| group == GROUP && known.name() == kind;
        PolicyKind::ALL.into_iter().find(named)
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object that is not enforced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotEnforced {
    /// Its kind.
    pub kind: PolicyKind,
    /// `metadata.name`; these kinds are cluster-scoped.
    pub name: String,
    /// The `apiVersion` in which it was read.
    pub api_version: String,
    /// `metadata.uid`; empty in a file.
    pub uid: String,
    /// `metadata.generation`; 0 in a file.
    pub generation: i64,
}

/// `2 ClusterNetworkPolicies are not enforced: a, b`; names the first [`MOST_NAMED`] of `count`.
pub fn summary<'a>(kind: &str, count: usize, names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().take(MOST_NAMED).collect();
    let more = match count.saturating_sub(names.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = names.join(", ");
    match count {
        1 => format!("1 {kind} is not enforced: {named}"),
        _ => {
            let stem = kind.strip_suffix('y').unwrap_or(kind);
            format!("{count} {stem}ies are not enforced: {named}{more}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_the_group_counts_and_no_other_group() {
        for (api_version, kind, expected) in [
            (
                "policy.networking.k8s.io/v1alpha2",
                "ClusterNetworkPolicy",
                Some(PolicyKind::Cluster),
            ),
            (
                "policy.networking.k8s.io/v1beta1",
                "ClusterNetworkPolicy",
                Some(PolicyKind::Cluster),
            ),
            (
                "policy.networking.k8s.io/v1alpha1",
                "AdminNetworkPolicy",
                Some(PolicyKind::Admin),
            ),
            (
                "policy.networking.k8s.io/v1alpha1",
                "BaselineAdminNetworkPolicy",
                Some(PolicyKind::BaselineAdmin),
            ),
            ("example.com/v1", "ClusterNetworkPolicy", None),
            ("policy.networking.k8s.io/v1", "Other", None),
            ("v1", "ClusterNetworkPolicy", None),
        ] {
            assert_eq!(PolicyKind::of(api_version, kind), expected, "{api_version}");
        }
    }

    #[test]
    fn a_summary_is_bounded() {
        let kind = PolicyKind::Cluster.name();
        assert_eq!(
            summary(kind, 1, ["a"]),
            "1 ClusterNetworkPolicy is not enforced: a"
        );
        assert_eq!(
            summary(kind, 2, ["a", "b"]),
            "2 ClusterNetworkPolicies are not enforced: a, b"
        );
        assert_eq!(
            summary(kind, 1_000, ["a", "b", "c", "d", "e", "f"]),
            "1000 ClusterNetworkPolicies are not enforced: a, b, c, d, e and 995 more"
        );
    }
}
