//! What a change may have touched, until the plan has caught up.

use crate::model::IfName;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses whose owner, or what is known about the owner, may differ; attachments whose dispatch may differ.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) locals: BTreeSet<IfName>,
    /// There is no set that an address could be in: addresses are not taken note of.
    pub(crate) without_sets: bool,
}

impl Dirty {
    /// The owner of the address, or what is known about it, may differ.
    pub(crate) fn touch(&mut self, addr: IpAddr) {
        if !self.without_sets {
            self.addresses.insert(addr);
        }
    }
}
