//! STATUS: could an ADD be served now, and would the pod reach anything? Looks at files only; asked every few seconds.

use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::attachment::{self, Attachments};
use crate::forwarding;
use crate::ipam::delegate::Delegate;
use crate::ipam::{self, BuiltIn};
use crate::link::{PolicyMode, READY};
use crate::spec::request::Call;
use crate::spec::{CniError, Code, Command, NetConf};
use crate::veth;

/// Nothing, or code 50 with the reason; code 51 if the pods that there are suffer, too.
pub fn run(call: &Call, conf: &NetConf) -> Result<(), CniError> {
    let ready = conf.run_dir.join(READY);
    if conf.policy != PolicyMode::None && !ready.exists() {
        return Err(not_available(format!(
            "the agent has not synchronised since the boot: {} is missing",
            ready.display()
        )));
    }
    writable(&conf.state_dir)?;
    match &conf.ipam_type {
        Some(kind) if !ipam::is_built_in(conf) => Delegate::find(kind, conf, call)?
            .run(Command::Status)
            .map(drop),
        _ => built_in(&BuiltIn::read(conf, call)?, conf),
    }
}

fn built_in(plan: &BuiltIn, conf: &NetConf) -> Result<(), CniError> {
    forwarding::check(&plan.families(), Code::Impaired)?;
    writable(plan.leases().dir())?;
    let attachments = Attachments::of(&conf.state_dir);
    match plan.check_room(&attachments) {
        Err(e)
            if e.code == Code::NotAvailable as u32 && some_are_gone(plan, conf, &attachments)? =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Whether an ADD that finds no address could free some: their sandboxes are gone.
fn some_are_gone(
    plan: &BuiltIn,
    conf: &NetConf,
    attachments: &Attachments,
) -> Result<bool, CniError> {
    let Some(leases) = plan.leases().lock_existing()? else {
        return Ok(false);
    };
    let boot = attachment::boot_id();
    for (_, owner) in leases.all()? {
        let Some(owner) = owner else { return Ok(true) };
        let behind = attachments.behind_lease(&conf.name, &owner.container_id, &owner.ifname)?;
        if behind.is_some_and(|attachment| attachment::is_gone(&attachment, &boot, veth::exists)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A directory that does not exist yet counts as writable if the nearest one above it is.
fn writable(dir: &Path) -> Result<(), CniError> {
    for dir in dir.ancestors() {
        match access(dir, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(e) => {
                return Err(not_available(format!(
                    "{} is not writable: {e}",
                    dir.display()
                )));
            }
        }
    }
    Ok(())
}

fn not_available(message: String) -> CniError {
    CniError::new(Code::NotAvailable, message)
}
