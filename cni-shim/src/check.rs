//! CHECK: is what ADD made still there, on both sides? What later plugins added is no concern of ours.

use std::net::IpAddr;

use selvage_netlink::link::Link;
use selvage_netlink::route::{self, Filter, Target};
use selvage_netlink::{Prefix, Socket, addr, neigh, open};

use crate::attachment::{Attachments, Known};
use crate::bandwidth;
use crate::forwarding;
use crate::ipam;
use crate::ipam::delegate::Delegate;
use crate::ipam::lease::Leases;
use crate::link::{Attachment, PolicyMode};
use crate::portmap;
use crate::spec::request::Call;
use crate::spec::result::Interface;
use crate::spec::{CniError, CniResult, Code, Command, NetConf};
use crate::veth::{self, Sandbox};

/// Compares `prevResult` and the attachment with the kernel and the leases; the first difference is the error.
pub fn run(call: &Call, conf: &NetConf) -> Result<(), CniError> {
    let root = conf.root();
    let previous = root
        .get("prevResult")?
        .ok_or_else(|| root.invalid("CHECK needs prevResult"))?;
    let previous = CniResult::read(&previous)?;
    let Known::This(attachment) =
        Attachments::of(&conf.state_dir).load(&call.container_id, &call.ifname)?
    else {
        return Err(differs(format!(
            "nothing is known of an attachment of {} to {}",
            call.container_id, conf.name
        )));
    };
    let ours = |i: &&Interface| i.name == call.ifname && i.sandbox.as_deref() == Some(&call.netns);
    let expected = previous.interfaces.iter().find(ours).ok_or_else(|| {
        differs(format!(
            "prevResult has no interface {} in the sandbox {}",
            call.ifname, call.netns
        ))
    })?;
    let mut sandbox = Sandbox::open(&call.netns, call.allow_own_netns)?;
    let pod = sandbox
        .link(&call.ifname)?
        .ok_or_else(|| differs(format!("{} is missing in the pod", call.ifname)))?;
    pod_link(&pod, expected)?;
    pod_addresses(sandbox.socket(), &pod, &attachment, &previous)?;
    pod_routes(sandbox.socket(), &pod, &attachment, &previous)?;
    host_side(&attachment, &pod)?;
    portmap::check(&attachment)?;
    reserved(&attachment, call, conf)
}

fn pod_link(pod: &Link, expected: &Interface) -> Result<(), CniError> {
    let name = &pod.name;
    if pod.kind != "veth" {
        return Err(differs(format!("{name} in the pod is not a veth")));
    }
    if !pod.is_up() {
        return Err(differs(format!("{name} in the pod is down")));
    }
    let mac = pod.address.map(|mac| mac.to_string()).unwrap_or_default();
    match &expected.mac {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&mac) => Err(differs(format!(
            "{name} in the pod has the hardware address {mac}, not {wanted}"
        ))),
        _ => Ok(()),
    }
}

fn pod_addresses(
    socket: &mut Socket,
    pod: &Link,
    attachment: &Attachment,
    previous: &CniResult,
) -> Result<(), CniError> {
    let present =
        addr::list(socket).map_err(|e| veth::kernel("cannot list the pod's addresses", &e))?;
    for wanted in &attachment.addresses {
        let found = present
            .iter()
            .find(|a| a.index == pod.index && a.prefix.addr == *wanted);
        if found.is_none_or(|a| a.flags & addr::DADFAILED != 0) {
            return Err(differs(format!(
                "the address {wanted} is missing in the pod"
            )));
        }
        if !previous.ips.iter().any(|ip| ip.address.addr() == *wanted) {
            return Err(differs(format!(
                "prevResult does not have the address {wanted}"
            )));
        }
    }
    Ok(())
}

fn pod_routes(
    socket: &mut Socket,
    pod: &Link,
    attachment: &Attachment,
    previous: &CniResult,
) -> Result<(), CniError> {
    let neighbours =
        neigh::list(socket).map_err(|e| veth::kernel("cannot list the pod's neighbours", &e))?;
    for v6 in [false, true] {
        if !attachment.addresses.iter().any(|addr| addr.is_ipv6() == v6) {
            continue;
        }
        let gateway = veth::gateway(v6);
        let known = |n: &neigh::Neighbour| {
            n.index == pod.index && n.addr == gateway && n.mac == Some(veth::HOST_MAC)
        };
        if !neighbours.iter().any(known) {
            return Err(differs(format!(
                "the neighbour {gateway} is missing in the pod"
            )));
        }
        let filter = Filter {
            oif: Some(pod.index),
            ..Filter::default()
        };
        let routes = route::list(socket, v6, &filter)
            .map_err(|e| veth::kernel("cannot list the pod's routes", &e))?;
        let by_gateway =
            |target: &Target| matches!(target, Target::Hop(hop) if hop.gateway == Some(gateway));
        for wanted in previous.routes.iter().filter(|r| r.gw == Some(gateway)) {
            let prefix = veth::prefix(wanted.dst);
            if !routes
                .iter()
                .any(|r| r.prefix == prefix && by_gateway(&r.target))
            {
                return Err(differs(format!(
                    "the route to {} is missing in the pod",
                    wanted.dst
                )));
            }
        }
    }
    Ok(())
}

fn host_side(attachment: &Attachment, pod: &Link) -> Result<(), CniError> {
    let families: Vec<bool> = attachment.addresses.iter().map(IpAddr::is_ipv6).collect();
    forwarding::check(&families, Code::CheckFailed)?;
    let mut host = veth::host_socket()?;
    let name = &attachment.host_if;
    let link = veth::find(&mut host, name)?
        .ok_or_else(|| differs(format!("{name} is missing on the host")))?;
    if link.group != veth::GROUP || pod.link != Some(link.index) {
        return Err(differs(format!(
            "{name} on the host is not the other end of the pod's interface"
        )));
    }
    bandwidth::check(&mut host, attachment, &link)?;
    if !link.is_up() {
        // Under `optional` the agent opens it when it can.
        let may_wait = attachment.policy == PolicyMode::Optional;
        return if may_wait {
            Ok(())
        } else {
            Err(differs(format!("{name} on the host is down")))
        };
    }
    attachment
        .addresses
        .iter()
        .try_for_each(|&addr| host_route(&mut host, &link, addr))
}

fn host_route(host: &mut Socket, link: &Link, addr: IpAddr) -> Result<(), CniError> {
    let filter = Filter {
        oif: Some(link.index),
        protocol: Some(open::PROTOCOL_POD),
        ..Filter::default()
    };
    let routes = route::list(host, addr.is_ipv6(), &filter)
        .map_err(|e| veth::kernel("cannot list routes", &e))?;
    if routes
        .iter()
        .any(|route| route.prefix == Prefix::host(addr))
    {
        return Ok(());
    }
    Err(differs(format!(
        "the route to {addr} over {} is missing on the host",
        link.name
    )))
}

fn reserved(attachment: &Attachment, call: &Call, conf: &NetConf) -> Result<(), CniError> {
    if let Some(kind) = &attachment.ipam_plugin {
        return Delegate::find(kind, conf, call)?
            .run(Command::Check)
            .map(drop);
    }
    let Some(dir) = &attachment.lease_dir else {
        return Ok(());
    };
    let leases = Leases::at(dir.into());
    let locked = leases.lock()?;
    let owner = ipam::owner_of(attachment);
    for &addr in &attachment.addresses {
        if locked.holder(addr)?.flatten().as_ref() != Some(&owner) {
            return Err(differs(format!(
                "the address {addr} is not leased to the container any more"
            )));
        }
    }
    Ok(())
}

fn differs(what: String) -> CniError {
    CniError::new(Code::CheckFailed, what)
}
