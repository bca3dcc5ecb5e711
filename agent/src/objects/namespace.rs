//! `v1 Namespace`: only its labels matter to us.

use super::Meta;

/// A namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Metadata; the label `kubernetes.io/metadata.name` is always there.
    pub meta: Meta,
}
