//! Kubernetes' own words: the specs that the compiler reads, as `networking.k8s.io/v1` and `meta/v1` spell them.
//!
//! What these types accept is well-formed, not yet valid: [`crate::lower`] is the only step that judges.
//! A list that is absent, `null` or empty arrives as `None` or `Some([])`; what that means is decided in `lower`.

mod label_selector;
mod network_policy;

pub use label_selector::{LabelSelector, LabelSelectorRequirement};
pub use network_policy::{
    IPBlock, IntOrString, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};

/// `null` where a value may be absent, too: the API server and people write both.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}
