//! Where a container's addresses come from: leases of our own in the manner of `host-local`, or another program.
//!
//! The addresses are in the attachment's file before the first lease is written, and the lease before its address is
//! used. So DEL looks at the attachment and at the leases it names, not at all leases. The first ADD of a boot looks at
//! all leases, to remove those of earlier boots.

pub mod delegate;
pub mod lease;
pub mod range;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::attachment::{Attachments, Known, already_attached};
use crate::bandwidth;
use crate::fault;
use crate::link::{self, Attachment};
use crate::masquerade;
use crate::nft::Nft;
use crate::portmap;
use crate::spec::config::BUILT_IN_IPAM;
use crate::spec::field::Field;
use crate::spec::request::Call;
use crate::spec::result::{Dns, Route};
use crate::spec::{Cidr, CniError, Code, NetConf};
use crate::undo::Undo;

use lease::{DEFAULT_DATA_DIR, Leases, Locked, Owner};
use range::RangeSet;

/// What IPAM gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// The subnets that the addresses are from.
    pub subnets: Vec<Cidr>,
    /// Its routes, all by way of the pod's gateway; no `gw`.
    pub routes: Vec<Route>,
    /// The resolver's configuration.
    pub dns: Dns,
}

/// How addresses will be given: read and checked before anything is done.
#[derive(Clone, Debug)]
pub struct BuiltIn {
    sets: Vec<RangeSet>,
    asked: Vec<IpAddr>,
    network: String,
    leases: Leases,
    routes: Vec<Route>,
    dns: Dns,
}

/// Says whether the sandbox of an attachment is gone.
pub type Gone<'a> = &'a dyn Fn(&Attachment) -> bool;

/// Whether the configuration asks for the IPAM that is built in.
pub fn is_built_in(conf: &NetConf) -> bool {
    conf.ipam_type
        .as_deref()
        .is_none_or(|kind| kind == BUILT_IN_IPAM)
}

/// Where the leases of a configuration are.
pub fn leases_of(conf: &NetConf) -> Result<Leases, CniError> {
    let ipam = conf.root().get("ipam")?;
    let dir = ipam
        .map(|f| f.get("dataDir"))
        .transpose()?
        .flatten()
        .filter(|f| f.value() != "");
    let dir = match dir {
        None => PathBuf::from(DEFAULT_DATA_DIR),
        Some(field) if field.str()?.starts_with('/') => PathBuf::from(field.str()?),
        Some(field) => return Err(field.invalid("an absolute path")),
    };
    Ok(Leases::at(dir.join(link::file_part(&conf.name).as_ref())))
}

impl BuiltIn {
    /// From the configuration and the runtime's wishes.
    pub fn read(conf: &NetConf, call: &Call) -> Result<Self, CniError> {
        let root = conf.root();
        let sets = range::read(&root)?;
        let asked = if conf.ips.is_empty() {
            call.args.ips.clone()
        } else {
            conf.ips.clone()
        };
        let routes = routes_of(&root, &sets)?;
        Ok(Self {
            sets,
            asked,
            network: conf.name.clone(),
            leases: leases_of(conf)?,
            routes,
            dns: dns_of(&root)?,
        })
    }

    /// Where the leases are.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The subnets that addresses come from.
    pub fn subnets(&self) -> Vec<Cidr> {
        self.sets.iter().flat_map(RangeSet::subnets).collect()
    }

    /// The family of each address that will be given; true for IPv6.
    pub fn families(&self) -> Vec<bool> {
        let first = |set: &RangeSet| set.subnets().next();
        self.sets
            .iter()
            .filter_map(first)
            .map(Cidr::is_v6)
            .collect()
    }

    /// An error with code 50 if some range set has no address left. What it says of the leases is what `attachments`
    /// knows of them.
    pub fn check_room(&self, attachments: &Attachments) -> Result<(), CniError> {
        let leased = lease::addresses_in(self.leases.dir())?;
        for (i, set) in self.sets.iter().enumerate() {
            let used = leased
                .iter()
                .filter(|&&addr| set.range_of(addr).is_some())
                .count();
            if u64::try_from(used).unwrap_or(u64::MAX) >= set.size() {
                return Err(self.exhausted(set, i, attachments));
            }
        }
        Ok(())
    }

    /// The error of an ADD for which there is no address left: who has them, and what to do about it.
    fn exhausted(&self, set: &RangeSet, index: usize, attachments: &Attachments) -> CniError {
        let dir = self.leases.dir();
        let mut message = format!(
            "ipam.ranges[{index}]: all {} addresses are in use, by the leases in {}",
            set.size(),
            dir.display()
        );
        let known = |owner: &Owner| {
            let known = attachments.load(&owner.container_id, &owner.ifname);
            !matches!(known, Ok(Known::Nothing))
        };
        let leased = lease::addresses_in(dir).unwrap_or_default();
        let strange = leased
            .into_iter()
            .filter(|&addr| set.range_of(addr).is_some())
            .filter(|&addr| {
                lease::owner_in(dir, addr)
                    .flatten()
                    .is_none_or(|owner| !known(&owner))
            })
            .collect::<Vec<_>>();
        match strange.as_slice() {
            [] => message.push_str(
                "; each belongs to a pod that lives: give the node a larger range, or fewer pods",
            ),
            [first, ..] => message.push_str(&format!(
                "; no pod that is known in {} has {} of them ({first}{}). The runtime's GC removes such leases; without \
                 it, remove the file of each address that no container has",
                attachments.dir().display(),
                strange.len(),
                if strange.len() > 1 { " and others" } else { "" },
            )),
        }
        CniError::new(Code::NotAvailable, message)
    }

    /// Takes addresses: chosen, written into `attachment` and its file, then leased. `undo` gives them back.
    pub fn acquire(
        &self,
        attachments: &Attachments,
        attachment: &mut Attachment,
        gone: Gone<'_>,
        undo: &mut Undo<'_>,
    ) -> Result<Grant, CniError> {
        let owner = owner_of(attachment);
        let leases = self.leases.lock()?;
        if !attachment.boot_id.is_empty() && !leases.is_of_boot(&attachment.boot_id) {
            self.reclaim(&leases, attachments, gone, Orphans::Free)?;
            leases.set_boot(&attachment.boot_id)?;
            fault::point()?;
        }
        clear_predecessor(attachments, attachment, &leases, gone)?;
        attachment.addresses = self.choose(&leases, attachments, gone)?;
        attachment.lease_dir = Some(self.leases.dir().to_string_lossy().into_owned());
        claim(attachments, attachment, undo)?;
        let (dir, addresses) = (self.leases.clone(), attachment.addresses.clone());
        let inverse = owner.clone();
        undo.push("the leases", move || {
            release_all(&dir, &addresses, &inverse)
        });
        for (i, &addr) in attachment.addresses.iter().enumerate() {
            leases.write(addr, &owner)?;
            leases.set_last_reserved(i, addr);
        }
        let subnet = |&addr: &IpAddr| {
            let mut ranges = self.sets.iter().filter_map(|set| set.range_of(addr));
            ranges.next().map(|range| range.subnet)
        };
        Ok(Grant {
            addresses: attachment.addresses.clone(),
            subnets: attachment.addresses.iter().filter_map(subnet).collect(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
        })
    }

    /// One address from each set: the one that was asked for, or the next free one.
    fn choose(
        &self,
        leases: &Locked<'_>,
        attachments: &Attachments,
        gone: Gone<'_>,
    ) -> Result<Vec<IpAddr>, CniError> {
        let mut asked = self.asked.clone();
        let mut chosen = Vec::new();
        for (i, set) in self.sets.iter().enumerate() {
            let wanted = asked
                .iter()
                .position(|&addr| set.range_of(addr).is_some())
                .map(|at| asked.remove(at));
            chosen.push(match wanted {
                Some(addr) => self.particular(addr, set, leases, attachments, gone)?,
                None => self.next(i, set, leases, attachments, gone)?,
            });
        }
        match asked.first() {
            None => Ok(chosen),
            Some(addr) => {
                let message = format!(
                    "the address {addr} that was asked for is in none of the ranges, or one too many"
                );
                Err(CniError::new(Code::InvalidConfig, message))
            }
        }
    }

    fn particular(
        &self,
        addr: IpAddr,
        set: &RangeSet,
        leases: &Locked<'_>,
        attachments: &Attachments,
        gone: Gone<'_>,
    ) -> Result<IpAddr, CniError> {
        if set
            .range_of(addr)
            .is_some_and(|range| range.gateway == addr)
        {
            let message = format!("the address {addr} that was asked for is its subnet's gateway");
            return Err(CniError::new(Code::InvalidConfig, message));
        }
        if leases.holder(addr)?.is_none() {
            return Ok(addr);
        }
        self.reclaim(leases, attachments, gone, Orphans::Keep)?;
        match leases.holder(addr)? {
            None => Ok(addr),
            Some(holder) => {
                let who = holder.map_or_else(
                    || "somebody".to_owned(),
                    |h| format!("container {}", h.container_id),
                );
                let message = format!("the address {addr} that was asked for is in use by {who}");
                Err(CniError::new(Code::NotAvailable, message))
            }
        }
    }

    fn next(
        &self,
        index: usize,
        set: &RangeSet,
        leases: &Locked<'_>,
        attachments: &Attachments,
        gone: Gone<'_>,
    ) -> Result<IpAddr, CniError> {
        let last = leases.last_reserved(index);
        if let Some(addr) = leases.free(set, last)? {
            return Ok(addr);
        }
        self.reclaim(leases, attachments, gone, Orphans::Keep)?;
        leases
            .free(set, last)?
            .ok_or_else(|| self.exhausted(set, index, attachments))
    }

    /// Frees the addresses of sandboxes that are gone, and files that no program has written on purpose. A lease of
    /// another program's without an attachment stays.
    fn reclaim(
        &self,
        leases: &Locked<'_>,
        attachments: &Attachments,
        gone: Gone<'_>,
        orphans: Orphans,
    ) -> Result<(), CniError> {
        let mut ended = BTreeSet::new();
        for (addr, owner) in leases.all()? {
            let Some(owner) = owner else {
                leases.remove(addr)?;
                continue;
            };
            let behind =
                attachments.behind_lease(&self.network, &owner.container_id, &owner.ifname)?;
            match behind {
                Some(attachment) if gone(&attachment) => {
                    free_of(leases, attachments, addr, &attachment)?;
                    ended.insert(owner);
                }
                None if orphans == Orphans::Free && leases.is_ours(addr)? => leases.remove(addr)?,
                _ => {}
            }
        }
        ended
            .iter()
            .try_for_each(|owner| attachments.remove(&owner.container_id, &owner.ifname))
    }
}

/// What becomes of leases of this plugin that no attachment stands behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orphans {
    /// They are of an earlier boot, whose attachments were lost.
    Free,
    /// The state directory may have been lost while their pods live.
    Keep,
}

/// Writes the attachment's file; from here on DEL finds what follows.
pub fn claim(
    attachments: &Attachments,
    attachment: &Attachment,
    undo: &mut Undo<'_>,
) -> Result<(), CniError> {
    attachments.claim(attachment)?;
    let (store, id, ifname) = (
        attachments.clone(),
        attachment.container_id.clone(),
        attachment.ifname.clone(),
    );
    undo.push("the attachment's file", move || store.remove(&id, &ifname));
    fault::point()
}

/// Gives back what an attachment holds: the addresses of [`each_held`].
pub fn release(
    attachment: Option<&Attachment>,
    leases: &Leases,
    owner: &Owner,
) -> Result<(), CniError> {
    each_held(attachment, leases, owner, |locked, addr| {
        locked.remove(addr)
    })
}

/// Calls `act` for each address that an attachment holds, with the leases locked. `None`: whatever is leased to `owner`
/// below `leases`, as nothing is known about where to look. What is another's by now is left out.
pub fn each_held(
    attachment: Option<&Attachment>,
    leases: &Leases,
    owner: &Owner,
    mut act: impl FnMut(&Locked<'_>, IpAddr) -> Result<(), CniError>,
) -> Result<(), CniError> {
    let known = match attachment {
        Some(Attachment {
            lease_dir: None, ..
        }) => return Ok(()),
        Some(Attachment {
            lease_dir: Some(dir),
            ..
        }) => Leases::at(PathBuf::from(dir)),
        None => leases.clone(),
    };
    let Some(locked) = known.lock_existing()? else {
        return Ok(());
    };
    let addresses = match attachment {
        Some(attachment) => attachment.addresses.clone(),
        None => locked.addresses()?,
    };
    for addr in addresses {
        let held = match attachment {
            Some(_) => locked.is_held_or_begun_by(addr, owner)?,
            None => locked.is_held_by(addr, owner)?,
        };
        if held {
            act(&locked, addr)?;
        }
    }
    Ok(())
}

fn release_all(leases: &Leases, addresses: &[IpAddr], owner: &Owner) -> Result<(), CniError> {
    let Some(locked) = leases.lock_existing()? else {
        return Ok(());
    };
    for &addr in addresses {
        if locked.is_held_or_begun_by(addr, owner)? {
            locked.remove(addr)?;
        }
    }
    Ok(())
}

/// Frees an address of an attachment whose sandbox is gone.
fn free_of(
    leases: &Locked<'_>,
    attachments: &Attachments,
    addr: IpAddr,
    attachment: &Attachment,
) -> Result<(), CniError> {
    if !leases.is_held_or_begun_by(addr, &owner_of(attachment))? {
        return Ok(());
    }
    let mut nft = Nft::default();
    portmap::forget(&mut nft, attachments, addr)?;
    if attachment.bandwidth.is_some() {
        bandwidth::end(&attachment.host_if)?;
    }
    if attachment.ip_masq {
        masquerade::end(&mut nft, &[addr])?;
    }
    leases.remove(addr)
}

/// An attachment of the same container whose sandbox is gone makes room for the new one; any other stays, and the
/// new one is refused.
fn clear_predecessor(
    attachments: &Attachments,
    attachment: &Attachment,
    leases: &Locked<'_>,
    gone: Gone<'_>,
) -> Result<(), CniError> {
    match attachments.load(&attachment.container_id, &attachment.ifname)? {
        Known::Nothing => Ok(()),
        Known::This(old)
            if gone(&old)
                && old
                    .lease_dir
                    .as_deref()
                    .is_none_or(|dir| self_dir(leases, dir)) =>
        {
            old.addresses
                .iter()
                .try_for_each(|&addr| free_of(leases, attachments, addr, &old))?;
            attachments.remove(&old.container_id, &old.ifname)
        }
        _ => Err(already_attached(attachment)),
    }
}

fn self_dir(leases: &Locked<'_>, dir: &str) -> bool {
    leases.dir() == std::path::Path::new(dir)
}

/// Who an attachment's leases belong to.
pub fn owner_of(attachment: &Attachment) -> Owner {
    Owner {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    }
}

/// The container's routes: those of `ipam.routes`, none without.
fn routes_of(root: &Field<'_>, sets: &[RangeSet]) -> Result<Vec<Route>, CniError> {
    let families: Vec<bool> = sets
        .iter()
        .filter_map(|set| set.candidates(None).next())
        .map(|a| a.is_ipv6())
        .collect();
    let gateways = |gw: IpAddr| sets.iter().any(|set| set.has_gateway(gw));
    let list = root
        .get("ipam")?
        .map(|f| f.get("routes"))
        .transpose()?
        .flatten();
    let list = list.map(|f| f.list()).transpose()?.unwrap_or_default();
    let mut routes = Vec::new();
    for field in &list {
        let route = Route::read(field)?;
        if !families.contains(&route.dst.is_v6()) {
            return Err(field.invalid(&format!(
                "no range gives an address of the family of {}",
                route.dst
            )));
        }
        if let Some(gw) = route.gw.filter(|&gw| !gateways(gw)) {
            return Err(field.unsupported(&format!(
                "gw {gw}: all traffic of a pod goes by way of its host"
            )));
        }
        routes.push(supported(route, field)?);
    }
    Ok(routes)
}

fn supported(route: Route, field: &Field<'_>) -> Result<Route, CniError> {
    if route.mtu.or(route.advmss).is_some_and(|n| n != 0) || route.scope.is_some_and(|n| n != 0) {
        return Err(field.unsupported("mtu, advmss and scope of a route are not supported"));
    }
    Ok(Route {
        gw: None,
        mtu: None,
        advmss: None,
        scope: None,
        ..route
    })
}

fn dns_of(root: &Field<'_>) -> Result<Dns, CniError> {
    let path = root
        .get("ipam")?
        .map(|f| f.get("resolvConf"))
        .transpose()?
        .flatten()
        .filter(|f| f.value() != "");
    match path {
        Some(field) => {
            let path = std::path::Path::new(field.str()?);
            let text =
                std::fs::read_to_string(path).map_err(|e| CniError::file("read", path, &e))?;
            Ok(Dns::of_resolv_conf(&text))
        }
        None => root
            .get("dns")?
            .map(|f| Dns::read(&f))
            .transpose()
            .map(Option::unwrap_or_default),
    }
}
