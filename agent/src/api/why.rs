//! May this packet pass, and who says so?

use serde::{Deserialize, Serialize};

use super::Finding;

/// The question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyQuestion {
    /// `namespace/pod` or an address.
    pub source: String,
    /// `namespace/pod` or an address.
    pub destination: String,
    /// Destination port.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `sctp`, `icmp` or a number.
    pub protocol: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyView {
    /// Whether it passes both ends, and nothing beside policy certainly stops it.
    pub allowed: bool,
    /// What stops or may stop it on this node, whatever policy says.
    #[serde(default)]
    pub obstacles: Vec<Finding>,
    /// Who sends.
    pub source: EndView,
    /// Who receives.
    pub destination: EndView,
    /// As `tcp/80`.
    pub service: String,
    /// What the source's policies say.
    pub egress: DirectionView,
    /// What the destination's policies say.
    pub ingress: DirectionView,
}

/// An end of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndView {
    /// Its address.
    pub address: String,
    /// `pod namespace/name`, `node NAME`; absent for the world outside.
    pub identity: Option<String>,
}

/// What one direction says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionView {
    /// Whether it passes.
    pub allowed: bool,
    /// Why, in a sentence.
    pub reason: String,
    /// Policies that decide here, as `namespace/name`.
    pub policies: Vec<String>,
    /// The rule that allows it, as in `spec.ingress[0]`.
    pub rule: Option<String>,
}
