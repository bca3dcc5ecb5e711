//! What a change may have touched, until the plan has caught up.

use crate::model::IfName;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses whose owner, or what is known about the owner, may differ; attachments whose dispatch may differ.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) locals: BTreeSet<IfName>,
}
