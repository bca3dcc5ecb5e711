//! Host ports: connections to a port of the node lead to a pod.
//!
//! Once a pod of this node has asked for one, the file `.ports` is beside the attachments: changes are made with its
//! lock held, and as long as it is there, whoever calls looks whether the table is as it should be and makes it anew
//! from the attachments where it is not. The mappings are in the attachment before the first of their elements is in
//! the kernel, and leave it after the last one is gone. Before the first one goes, the attachment says that they end: what
//! is made anew has none of them, since a port that is free by then may be another pod's. An element leads to the address of
//! exactly one attachment, and is nobody's if there is none, or its pod is gone.

mod mapping;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rustix::io::Errno;
use selvage_netlink::conntrack::{self, Filter, Flow, Ports};
use selvage_netlink::devconf::{self, Ipv4};
use selvage_netlink::{Error, Socket, addr, link};

pub use mapping::{PortMapping, Transport};

use crate::attachment::{self, Attachments, Known};
use crate::fault;
use crate::link::Attachment;
use crate::nft::Nft;
use crate::spec::{CniError, Code};
use crate::veth::{self, GROUP, kernel};
use table::Entry;

const WHAT: &str = "host ports (table inet selvage-cni)";

/// What is asked for has to be possible with these addresses: the family of a given hostIP has to be the pod's, too.
/// `0.0.0.0` and `::`, which runtimes ask for together, say nothing about a family that the pod does not have.
pub fn check_families(mappings: &[PortMapping], addresses: &[IpAddr]) -> Result<(), CniError> {
    let served = |wanted: IpAddr| {
        addresses
            .iter()
            .any(|addr| addr.is_ipv6() == wanted.is_ipv6())
    };
    for mapping in mappings {
        if let Some(wanted) = mapping.particular().filter(|addr| !served(*addr)) {
            let family = if wanted.is_ipv6() { "IPv6" } else { "IPv4" };
            return Err(CniError::new(
                Code::InvalidConfig,
                format!("runtimeConfig.portMappings: {mapping}: the pod has no {family} address"),
            ));
        }
    }
    Ok(())
}

/// Places `mappings`: into the attachment and its file, then into the kernel. What is another living pod's is refused
/// with code 50.
pub fn begin(
    nft: &mut Nft,
    attachments: &Attachments,
    attachment: &mut Attachment,
    mappings: &[PortMapping],
) -> Result<(), CniError> {
    let _lock = attachments.lock_ports()?;
    let nft = nft.socket()?;
    ensure(nft, attachments)?;
    fault::point()?;
    let entries = table::entries(mappings, &attachment.addresses);
    let mut old = Vec::new();
    for entry in &entries {
        if let Some(found) = table::get(nft, entry).map_err(|e| failed("look for", &e))? {
            refuse_taken(attachments, attachment, &found)?;
            old.push(found);
        }
    }
    attachment.port_mappings = mappings.to_vec();
    attachment.ports_end = false;
    attachments.update(attachment)?;
    fault::point()?;
    table::exchange(nft, &old, &entries).map_err(|e| failed("place", &e))?;
    fault::point()?;
    if wants_localnet(mappings, &attachment.addresses) {
        let index = attachment.host_index;
        veth::host_socket()?
            .apply(|batch| devconf::set(batch, index, &[(Ipv4::RouteLocalnet, 1)], false))
            .map_err(|e| {
                let what = format!("cannot set route_localnet of {}", attachment.host_if);
                kernel(&what, &e)
            })?;
    }
    end_old_flows(nft, &entries, &own_addresses(attachments)?)
}

/// Takes an attachment's mappings out of the kernel, then out of its file. None, and no file, is no error.
pub fn end(
    nft: &mut Nft,
    attachments: &Attachments,
    container_id: &str,
    ifname: &str,
) -> Result<(), CniError> {
    if !attachments.has_ports() {
        return Ok(());
    }
    let _lock = attachments.lock_ports()?;
    // What the file says under the lock: another call may have ended them meanwhile.
    let Known::This(mut attachment) = attachments.load(container_id, ifname)? else {
        return Ok(());
    };
    if attachment.port_mappings.is_empty() {
        return Ok(());
    }
    if !attachment.ports_end {
        attachment.ports_end = true;
        attachments.update(&attachment)?;
    }
    fault::point()?;
    let mappings = std::mem::take(&mut attachment.port_mappings);
    let nft = nft.socket()?;
    let entries = table::entries(&mappings, &attachment.addresses);
    table::remove(nft, &entries).map_err(|e| failed("remove", &e))?;
    fault::point()?;
    end_flows_of(nft, &mappings, &attachment.addresses)?;
    fault::point()?;
    attachment.ports_end = false;
    attachments.update(&attachment)
}

/// Takes away whatever leads to an address that is about to be free, where nothing else is known.
pub fn forget(nft: &mut Nft, attachments: &Attachments, addr: IpAddr) -> Result<(), CniError> {
    let nft = nft.socket()?;
    let mut look = || {
        let mut found = table::all(nft).map_err(|e| failed("list", &e))?;
        found.retain(|entry| entry.target() == Some(addr));
        Ok::<_, CniError>(found)
    };
    // Not by the mark: the state directory may have been lost.
    if look()?.is_empty() {
        return Ok(());
    }
    let _lock = attachments.lock_ports()?;
    let found = look()?;
    table::remove(nft, &found).map_err(|e| failed("remove", &e))
}

/// Where there are host ports, makes the table anew if somebody else has emptied or removed it.
pub fn heal(nft: &mut Nft, attachments: &Attachments) -> Result<(), CniError> {
    if !attachments.has_ports() {
        return Ok(());
    }
    let _lock = attachments.lock_ports()?;
    ensure(nft.socket()?, attachments)
}

/// Where there are host ports, makes the table what the attachments of living pods ask for: chains, rules, and exactly
/// their elements. Says whether it was something else.
pub fn sweep(nft: &mut Nft, attachments: &Attachments) -> Result<bool, CniError> {
    if !attachments.has_ports() {
        return Ok(false);
    }
    let _lock = attachments.lock_ports()?;
    let nft = nft.socket()?;
    let wanted = living(attachments)?;
    let there = table::all(nft).map_err(|e| failed("list", &e))?;
    let is = |list: &[Entry], entry: &Entry| {
        list.iter()
            .any(|e| (e.set.name, &e.key, &e.data) == (entry.set.name, &entry.key, &entry.data))
    };
    let same = there.iter().all(|e| is(&wanted, e)) && wanted.iter().all(|e| is(&there, e));
    if same && table::is_intact(nft).map_err(|e| failed("list", &e))? {
        return Ok(false);
    }
    table::rebuild(nft, &wanted).map_err(|e| failed("place", &e))?;
    Ok(true)
}

/// The first thing that is not as the attachment says.
pub fn check(attachment: &Attachment) -> Result<(), CniError> {
    let mappings = &attachment.port_mappings;
    if mappings.is_empty() {
        return Ok(());
    }
    let differs = |what: String| CniError::new(Code::CheckFailed, what);
    let mut nft = Nft::default();
    let nft = nft.socket()?;
    if !table::is_intact(nft).map_err(|e| failed("list", &e))? {
        return Err(differs(
            "the rules for host ports are missing in the table inet selvage-cni; any ADD, DEL or GC makes it anew"
                .to_owned(),
        ));
    }
    for entry in table::entries(mappings, &attachment.addresses) {
        let found = table::get(nft, &entry).map_err(|e| failed("look for", &e))?;
        if found.is_some_and(|found| found.data == entry.data) {
            continue;
        }
        let target = entry.target().map(|addr| addr.to_string());
        let target = target.unwrap_or_default();
        return Err(differs(match entry.mapping {
            Some(mapping) => format!(
                "{mapping} does not lead to port {} of {target}: the element is missing in the map {} of inet selvage-cni",
                mapping.container_port, entry.set.name
            ),
            None => format!(
                "{target} is missing in the set {} of inet selvage-cni",
                entry.set.name
            ),
        }));
    }
    if wants_localnet(mappings, &attachment.addresses) {
        let name = &attachment.host_if;
        let (_, settings) = devconf::get(&mut veth::host_socket()?, name)
            .map_err(|e| kernel(&format!("cannot look for the interface {name}"), &e))?;
        if settings.ipv4(Ipv4::RouteLocalnet) != Some(1) {
            return Err(differs(format!("route_localnet of {name} is not 1")));
        }
    }
    Ok(())
}

/// Errors if what is found leads to a pod that lives.
fn refuse_taken(
    attachments: &Attachments,
    attachment: &Attachment,
    found: &Entry,
) -> Result<(), CniError> {
    let (Some(mapping), Some(target)) = (found.mapping, found.target()) else {
        return Ok(());
    };
    let same = |other: &Attachment| {
        (&other.container_id, &other.ifname) == (&attachment.container_id, &attachment.ifname)
    };
    let owner = attachments.list()?.into_iter().find(|other| {
        !same(other) && other.addresses.contains(&target) && other.port_mappings.contains(&mapping)
    });
    let boot = attachment::boot_id();
    match owner.filter(|owner| !attachment::is_gone(owner, &boot, veth::exists)) {
        None => Ok(()),
        Some(owner) => {
            let message = format!("{mapping} is in use by {}", who(&owner));
            Err(CniError::new(Code::NotAvailable, message))
        }
    }
}

fn who(owner: &Attachment) -> String {
    match &owner.pod {
        Some(pod) => format!(
            "the pod {}/{} (container {})",
            pod.namespace, pod.name, owner.container_id
        ),
        None => format!("the container {}", owner.container_id),
    }
}

/// Makes the table, or makes it anew, if it is not as it should be.
fn ensure(nft: &mut Socket, attachments: &Attachments) -> Result<(), CniError> {
    if table::is_intact(nft).map_err(|e| failed("list", &e))? {
        let own = own_addresses(attachments)?;
        return table::set_node_addresses(nft, &own).map_err(|e| failed("place", &e));
    }
    table::rebuild(nft, &living(attachments)?).map_err(|e| failed("place", &e))
}

/// What the attachments of living pods ask for; first those whose interface is open: an ADD that died may have noted
/// a port without having placed it, which was another's then.
fn living(attachments: &Attachments) -> Result<Vec<Entry>, CniError> {
    let boot = attachment::boot_id();
    let links =
        link::list(&mut veth::host_socket()?).map_err(|e| kernel("cannot list interfaces", &e))?;
    let is_closed = |attachment: &Attachment| {
        !links
            .iter()
            .any(|link| link.name == attachment.host_if && link.is_up())
    };
    let mut all = attachments.list()?;
    all.sort_by_key(is_closed);
    let mut entries = table::node_entries(&own_addresses(attachments)?);
    for attachment in all {
        if attachment.port_mappings.is_empty()
            || attachment.ports_end
            || attachment::is_gone(&attachment, &boot, veth::exists)
        {
            continue;
        }
        entries.extend(table::entries(
            &attachment.port_mappings,
            &attachment.addresses,
        ));
    }
    Ok(entries)
}

/// Kinds of interfaces that lead nowhere. Service proxies and caches give them the addresses that they serve
/// (`kube-ipvs0`, `kube-dummy-if`, `nodelocaldns`).
const NOWHERE: [&str; 2] = ["dummy", "ifb"];

/// The node's own addresses: those of its interfaces that lead somewhere other than to a pod, and of its loopback interface;
/// and those of its Node object, wherever they are, as far as an agent has noted them. Not 127.0.0.0/8 and ::1, and none that is
/// of one link only (fe80::/10): the table has rules for both.
fn own_addresses(attachments: &Attachments) -> Result<Vec<IpAddr>, CniError> {
    let mut host = veth::host_socket()?;
    let listed =
        addr::list(&mut host).map_err(|e| kernel("cannot list the node's addresses", &e))?;
    let named = attachments.node_addresses();
    let mut others = BTreeMap::new();
    let mut own = BTreeSet::new();
    for found in listed {
        let addr = found.prefix.addr;
        let is_link_local = matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if addr.is_loopback() || is_link_local {
            continue;
        }
        let of_another = *others.entry(found.index).or_insert_with(|| {
            link::get(&mut host, found.index)
                .is_ok_and(|link| link.group == GROUP || NOWHERE.contains(&link.kind.as_str()))
        });
        if !of_another || named.contains(&addr) {
            own.insert(addr);
        }
    }
    Ok(own.into_iter().collect())
}

/// Only who comes to an IPv4 address of the loopback needs it.
fn wants_localnet(mappings: &[PortMapping], addresses: &[IpAddr]) -> bool {
    let loopback = |m: &PortMapping| m.particular().is_none_or(|addr| addr.is_loopback());
    addresses.iter().any(IpAddr::is_ipv4)
        && mappings.iter().any(|m| m.applies(false) && loopback(m))
}

/// Flows of UDP to the node that would go on to where the port led before: to another pod, or to the node itself.
fn end_old_flows(nft: &mut Socket, entries: &[Entry], own: &[IpAddr]) -> Result<(), CniError> {
    let udp = |m: &PortMapping| m.protocol == Transport::Udp;
    if !entries.iter().any(|e| e.mapping.is_some_and(|m| udp(&m))) {
        return Ok(());
    }
    let is_own = |to: IpAddr| to.is_loopback() || own.contains(&to);
    for entry in entries {
        let (Some(mapping), Some(target)) = (entry.mapping.filter(udp), entry.target()) else {
            continue;
        };
        let new = |flow: &Flow| {
            let Ports::Ports { src, .. } = flow.reply.ports else {
                return true;
            };
            (flow.reply.src, src) == (target, mapping.container_port)
        };
        let is_old = |flow: &Flow| {
            let meant = mapping
                .particular()
                .map_or_else(|| is_own(flow.orig.dst), |addr| addr == flow.orig.dst);
            meant && !new(flow)
        };
        end_flows(nft, &mapping, target.is_ipv6(), is_old)
            .map_err(|e| failed("end the old flows of", &e))?;
    }
    Ok(())
}

/// Flows of UDP through these mappings. A kernel that does not let flows be listed has no better way.
fn end_flows_of(
    nft: &mut Socket,
    mappings: &[PortMapping],
    addresses: &[IpAddr],
) -> Result<(), CniError> {
    for mapping in mappings.iter().filter(|m| m.protocol == Transport::Udp) {
        for &target in addresses {
            let ours = |flow: &Flow| flow.reply.src == target && flow.orig.dst != target;
            match end_flows(nft, mapping, target.is_ipv6(), ours) {
                Err(e) if !e.is(Errno::INVAL) && !e.is(Errno::OPNOTSUPP) => {
                    return Err(failed("end the flows of", &e));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn end_flows(
    nft: &mut Socket,
    mapping: &PortMapping,
    v6: bool,
    which: impl Fn(&Flow) -> bool,
) -> Result<(), Error> {
    let filter = Filter {
        v6: Some(v6),
        to_port: Some((mapping.protocol.number(), mapping.host_port)),
        ..Filter::default()
    };
    let mut flows = conntrack::list(nft, &filter)?;
    flows.retain(which);
    if flows.is_empty() {
        return Ok(());
    }
    nft.report(|batch| flows.iter().for_each(|flow| conntrack::delete(batch, flow)))?
        .ignoring(Errno::NOENT)
}

fn failed(what: &str, error: &Error) -> CniError {
    kernel(&format!("cannot {what} {WHAT}"), error)
}
