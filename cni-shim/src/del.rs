//! DEL: the list of ADD read upwards. It succeeds when nothing is left, whatever was there before.
//!
//! The pod's namespace is not entered: the host's end is ours, has a name that follows from the call, and takes the
//! pod's end with it. So it does not matter whether the namespace is there, or what its path has become.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::attachment::{Attachments, Known};
use crate::bandwidth;
use crate::handover::{self, Budget};
use crate::ipam;
use crate::ipam::delegate::Delegate;
use crate::ipam::lease::{Leases, Owner};
use crate::link::Attachment;
use crate::masquerade;
use crate::portmap;
use crate::spec::request::Call;
use crate::spec::{CniError, Command, NetConf};
use crate::veth;

/// Detaches the container.
pub fn run(call: &Call, conf: &NetConf, budget: &Budget) -> Result<(), CniError> {
    let attachments = Attachments::of(&conf.state_dir);
    let known = match attachments.load(&call.container_id, &call.ifname)? {
        // The same container may be attached to another network by the same name: that one is not ours to end.
        Known::This(attachment) if attachment.network != conf.name => return Ok(()),
        Known::This(attachment) => Some(*attachment),
        Known::Nothing | Known::Unreadable => None,
    };
    let _ended = portmap::end(&attachments, &call.container_id, &call.ifname)?;
    let host_if = veth::host_name(&conf.name, &call.container_id, &call.ifname);
    // Where nothing is known, it may have been limited.
    if known.as_ref().is_none_or(|known| known.bandwidth.is_some()) {
        bandwidth::end(&host_if)?;
    }
    veth::delete(&mut veth::host_socket()?, &host_if)?;
    let owner = Owner {
        container_id: call.container_id.clone(),
        ifname: call.ifname.clone(),
    };
    if known.is_some() {
        // Before its addresses can be another pod's.
        handover::detach(&owner.container_id, &owner.ifname, &conf.run_dir, budget);
    }
    release(known.as_ref(), &attachments, &owner, call, conf)?;
    attachments.remove(&owner.container_id, &owner.ifname)?;
    // Other pods' ports: nothing of this one is left that a failure could be about.
    let _ = portmap::heal(&attachments);
    Ok(())
}

/// Ends an attachment that is known from its file alone. Addresses of another IPAM plugin are its own affair.
pub(crate) fn end(
    attachment: &Attachment,
    attachments: &Attachments,
    run_dir: &Path,
    budget: &Budget,
) -> Result<(), CniError> {
    let _ended = portmap::end(attachments, &attachment.container_id, &attachment.ifname)?;
    if attachment.bandwidth.is_some() {
        bandwidth::end(&attachment.host_if)?;
    }
    veth::delete(&mut veth::host_socket()?, &attachment.host_if)?;
    let owner = ipam::owner_of(attachment);
    handover::detach(&owner.container_id, &owner.ifname, run_dir, budget);
    let nowhere = Leases::at(PathBuf::new());
    ipam::release(Some(attachment), &nowhere, &owner, &|addr| {
        end_masquerade(Some(attachment), &[addr])
    })?;
    attachments.remove(&owner.container_id, &owner.ifname)
}

fn release(
    known: Option<&Attachment>,
    attachments: &Attachments,
    owner: &Owner,
    call: &Call,
    conf: &NetConf,
) -> Result<(), CniError> {
    let plugin = known.and_then(|attachment| attachment.ipam_plugin.as_deref());
    let plugin = plugin.or(conf
        .ipam_type
        .as_deref()
        .filter(|_| !ipam::is_built_in(conf)));
    if let Some(kind) = plugin {
        if let Some(attachment) = known {
            end_masquerade(known, &attachment.addresses)?;
        }
        Delegate::find(kind, conf, call)?.run(Command::Del)?;
    }
    // Whatever the configuration says by now, what was leased here is given back.
    let before = |addr| {
        if known.is_none() {
            portmap::forget(attachments, addr)?;
        }
        end_masquerade(known, &[addr])
    };
    ipam::release(known, &ipam::leases_of(conf)?, owner, &before)
}

/// Where nothing is known, it may have been masqueraded.
fn end_masquerade(known: Option<&Attachment>, addresses: &[IpAddr]) -> Result<(), CniError> {
    if known.is_none_or(|attachment| attachment.ip_masq) {
        masquerade::end(addresses)
    } else {
        Ok(())
    }
}
