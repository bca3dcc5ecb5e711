//! GC: ends what belongs to no valid attachment of this network. Past errors, and all of them are told.

use std::collections::BTreeSet;

use crate::attachment::Attachments;
use crate::bandwidth;
use crate::del;
use crate::handover::Budget;
use crate::ipam;
use crate::ipam::delegate::Delegate;
use crate::nft::Nft;
use crate::portmap;
use crate::spec::request::Call;
use crate::spec::{CniError, Command, NetConf};

/// Keeps what the runtime names as valid. An empty list names nothing; no list at all, and nothing is done.
pub fn run(call: &Call, conf: &NetConf, budget: &Budget) -> Result<(), CniError> {
    let Some(valid) = &conf.valid_attachments else {
        return Ok(());
    };
    let valid: BTreeSet<(&str, &str)> = valid
        .iter()
        .map(|(id, ifname)| (id.as_str(), ifname.as_str()))
        .collect();
    let attachments = Attachments::of(&conf.state_dir);
    let _no_add = attachments.exclude(budget.quiet)?;
    let mut failed: Option<CniError> = None;
    let mut note = |result: Result<(), CniError>| match (&mut failed, result) {
        (_, Ok(())) => {}
        (None, Err(e)) => failed = Some(e),
        (Some(first), Err(e)) => {
            let separator = if first.details.is_empty() { "" } else { "; " };
            first.details.push_str(&format!("{separator}{}", e.message));
        }
    };
    match attachments.list() {
        Ok(all) => {
            let ours = all
                .iter()
                .filter(|attachment| attachment.network == conf.name);
            for stale in
                ours.filter(|a| !valid.contains(&(a.container_id.as_str(), a.ifname.as_str())))
            {
                note(del::end(stale, &attachments, &conf.run_dir, budget));
            }
        }
        Err(e) => note(Err(e)),
    }
    note(attachments.remove_unfinished());
    note(portmap::sweep(&mut Nft::default(), &attachments).map(drop));
    note(bandwidth::sweep());
    if ipam::is_built_in(conf) {
        note(leases(conf, &valid));
    } else if let Some(kind) = &conf.ipam_type {
        note(
            Delegate::find(kind, conf, call)
                .and_then(|plugin| plugin.run(Command::Gc))
                .map(drop),
        );
    }
    failed.map_or(Ok(()), Err)
}

/// Leases without an attachment: of an earlier program, or from before the state directory was lost.
fn leases(conf: &NetConf, valid: &BTreeSet<(&str, &str)>) -> Result<(), CniError> {
    let leases = ipam::leases_of(conf)?;
    let Some(locked) = leases.lock_existing()? else {
        return Ok(());
    };
    for (addr, owner) in locked.all()? {
        let keep = owner.is_some_and(|owner| {
            let (id, ifname) = (owner.container_id.as_str(), owner.ifname.as_str());
            valid.contains(&(id, ifname))
                || ifname.is_empty() && valid.iter().any(|&(valid, _)| valid == id)
        });
        if !keep {
            locked.remove(addr)?;
        }
    }
    Ok(())
}
