//! DEL: the list of ADD read upwards. It succeeds when nothing is left, whatever was there before.
//!
//! The pod's namespace is not entered: the host's end is ours, has a name that follows from the call, and takes the
//! pod's end with it. So it does not matter whether the namespace is there, or what its path has become.
//!
//! The elements of nf_tables go first and the interfaces after them: the kernel frees both after a grace period, which
//! then is the same one, and no call waits for it ([`crate::nft`], [`selvage_netlink::deletion`]).

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
use crate::nft::Nft;
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
    let mut nft = Nft::default();
    // Other pods' ports: this call does not fail for them. Before anything is deleted, as the look reads the table.
    let _ = portmap::heal(&mut nft, &attachments);
    portmap::end(&mut nft, &attachments, &call.container_id, &call.ifname)?;
    let owner = Owner {
        container_id: call.container_id.clone(),
        ifname: call.ifname.clone(),
    };
    let plugin = known
        .as_ref()
        .and_then(|attachment| attachment.ipam_plugin.as_deref())
        .or(conf
            .ipam_type
            .as_deref()
            .filter(|_| !ipam::is_built_in(conf)));
    if let (Some(_), Some(attachment)) = (plugin, &known) {
        end_masquerade(&mut nft, known.as_ref(), &attachment.addresses)?;
    }
    // Whatever the configuration says by now, what was leased here is given back.
    let leases = ipam::leases_of(conf)?;
    ipam::each_held(known.as_ref(), &leases, &owner, |_, addr| {
        if known.is_none() {
            portmap::forget(&mut nft, &attachments, addr)?;
        }
        end_masquerade(&mut nft, known.as_ref(), &[addr])
    })?;
    // Where nothing is known, the pod may have been limited.
    let limited = known.as_ref().is_none_or(|known| known.bandwidth.is_some());
    let host_if = veth::host_name(&conf.name, &call.container_id, &call.ifname);
    delete_interfaces(&host_if, limited, &nft)?;
    if known.is_some() {
        // Before its addresses can be another pod's.
        handover::detach(&owner.container_id, &owner.ifname, &conf.run_dir, budget);
    }
    if let Some(kind) = plugin {
        Delegate::find(kind, conf, call)?.run(Command::Del)?;
    }
    ipam::release(known.as_ref(), &leases, &owner)?;
    attachments.remove(&owner.container_id, &owner.ifname)
}

/// Ends an attachment that is known from its file alone. Addresses of another IPAM plugin are its own affair.
pub(crate) fn end(
    attachment: &Attachment,
    attachments: &Attachments,
    run_dir: &Path,
    budget: &Budget,
) -> Result<(), CniError> {
    let mut nft = Nft::default();
    portmap::end(
        &mut nft,
        attachments,
        &attachment.container_id,
        &attachment.ifname,
    )?;
    let owner = ipam::owner_of(attachment);
    let nowhere = Leases::at(PathBuf::new());
    ipam::each_held(Some(attachment), &nowhere, &owner, |_, addr| {
        end_masquerade(&mut nft, Some(attachment), &[addr])
    })?;
    let limited = attachment.bandwidth.is_some();
    delete_interfaces(&attachment.host_if, limited, &nft)?;
    handover::detach(&owner.container_id, &owner.ifname, run_dir, budget);
    ipam::release(Some(attachment), &nowhere, &owner)?;
    attachments.remove(&owner.container_id, &owner.ifname)
}

fn delete_interfaces(host_if: &str, limited: bool, nft: &Nft) -> Result<(), CniError> {
    let ifb = bandwidth::ifb_name(host_if);
    let names = [host_if, &ifb];
    let names = if limited { &names[..] } else { &names[..1] };
    veth::delete(&mut veth::host_socket()?, names, nft.descriptor())
}

/// Where nothing is known, the pod may have been masqueraded.
fn end_masquerade(
    nft: &mut Nft,
    known: Option<&Attachment>,
    addresses: &[IpAddr],
) -> Result<(), CniError> {
    if known.is_none_or(|attachment| attachment.ip_masq) {
        masquerade::end(nft, addresses)
    } else {
        Ok(())
    }
}
