//! `meta/v1` LabelSelector.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A query over labels: all of `matchLabels` and all of `matchExpressions` hold. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Keys that must have exactly this value.
    #[serde(
        default,
        deserialize_with = "super::null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements beyond equality.
    #[serde(
        default,
        deserialize_with = "super::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// One requirement of a [`LabelSelector`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelectorRequirement {
    /// The label key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`. The negative ones also select objects that lack the key.
    pub operator: String,
    /// Values for `In` and `NotIn`; absent for the other two.
    #[serde(
        default,
        deserialize_with = "super::null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub values: Vec<String>,
}
