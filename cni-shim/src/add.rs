//! ADD: lease, interface, hand-over, result.
//!
//! What can be refused is refused before anything is made. Then every step leaves its inverse on the undo stack.

use std::collections::BTreeMap;

use selvage_netlink::link::Link;
use selvage_netlink::{Socket, open_interface};

use crate::attachment::{self, Attachments};
use crate::bandwidth;
use crate::fault;
use crate::handover::{self, Budget, Outcome};
use crate::ipam::delegate::Delegate;
use crate::ipam::{self, BuiltIn, Grant};
use crate::link::{Attachment, PolicyMode};
use crate::masquerade;
use crate::nft::Nft;
use crate::portmap;
use crate::spec::request::Call;
use crate::spec::result::{Interface, Ip, Route};
use crate::spec::{Cidr, CniError, CniResult, Code, Command, NetConf};
use crate::undo::Undo;
use crate::veth::{self, Pair, Sandbox, Wanted};

/// RFC 8200 section 5.
const MIN_V6_MTU: u32 = 1280;

/// Where addresses will come from.
enum Ipam {
    BuiltIn(BuiltIn),
    Delegate(Delegate),
}

/// Attaches the container; the result has what plugins before this one made, too.
pub fn run(call: &Call, conf: &NetConf, budget: &Budget) -> Result<CniResult, CniError> {
    let ipam = match &conf.ipam_type {
        Some(kind) if !ipam::is_built_in(conf) => Ipam::Delegate(Delegate::find(kind, conf, call)?),
        _ => Ipam::BuiltIn(BuiltIn::read(conf, call)?),
    };
    if conf.mtu != 0
        && conf.mtu < MIN_V6_MTU
        && matches!(&ipam, Ipam::BuiltIn(plan) if plan.families().contains(&true))
    {
        let message = format!(
            "mtu: {} is too small for the IPv6 addresses that ipam.ranges give; at least {MIN_V6_MTU}",
            conf.mtu
        );
        return Err(CniError::new(Code::InvalidConfig, message));
    }
    let previous = conf
        .root()
        .get("prevResult")?
        .map(|f| CniResult::read(&f))
        .transpose()?;
    let mut sandbox = Sandbox::open(&call.netns, call.allow_own_netns)?;
    if sandbox.link(&call.ifname)?.is_some() {
        let message = format!(
            "the interface {} exists in {} already",
            call.ifname, call.netns
        );
        return Err(CniError::new(Code::AlreadyAttached, message));
    }
    let attachments = Attachments::of(&conf.state_dir);
    let _no_gc = attachments.share()?;
    let mut undo = Undo::default();
    match attach(
        call,
        conf,
        budget,
        &ipam,
        &mut sandbox,
        &attachments,
        &mut undo,
    ) {
        Ok(ours) => {
            undo.keep();
            let mut result = previous.unwrap_or_default();
            result.append(ours);
            Ok(result)
        }
        Err(error) => Err(undo.run(error)),
    }
}

fn attach(
    call: &Call,
    conf: &NetConf,
    budget: &Budget,
    ipam: &Ipam,
    sandbox: &mut Sandbox,
    attachments: &Attachments,
    undo: &mut Undo<'_>,
) -> Result<CniResult, CniError> {
    let mut host = veth::host_socket()?;
    let mut attachment = describe(call, conf, sandbox);
    let grant = acquire(ipam, attachments, &mut attachment, undo)?;
    portmap::check_families(&conf.port_mappings, &attachment.addresses)?;
    let mac = conf.mac.or(call.args.mac);
    let wanted = Wanted {
        host_if: &attachment.host_if,
        ifname: &call.ifname,
        mtu: conf.mtu,
        mac,
    };
    veth::create(&mut host, sandbox, &wanted)?;
    let name = attachment.host_if.clone();
    undo.push("the interface", move || {
        veth::delete(&mut veth::host_socket()?, &[&name], None)
    });
    fault::point()?;
    let pair = veth::inspect(&mut host, sandbox, &wanted)?;
    veth::configure(&mut host, sandbox, &pair, &grant)?;
    fault::point()?;
    attachment.host_index = pair.host.index;
    attachment.mtu = pair.pod.mtu;
    if attachment.ipam_plugin.is_some() {
        // Its addresses were not known when the file was written.
        attachments.update(&attachment)?;
    } else {
        attachments.note_interface(&attachment)?;
    }
    let ifb = limit(&attachment, &mut host, &pair, undo)?;
    let outcome = hand_over(conf, budget, &attachment, undo)?;
    let mut nft = Nft::default();
    place_ports(conf, &mut nft, attachments, &mut attachment, undo)?;
    if let Outcome::Open { masquerade } = outcome {
        let inside = match ipam {
            Ipam::BuiltIn(plan) => plan.subnets(),
            Ipam::Delegate(_) => Vec::new(),
        };
        open(&attachment, masquerade, &inside, &mut host, &mut nft, undo)?;
    }
    fault::point()?;
    Ok(describe_result(call, &pair, ifb.as_ref(), &grant))
}

fn describe(call: &Call, conf: &NetConf, sandbox: &Sandbox) -> Attachment {
    let id = sandbox.id();
    Attachment {
        network: conf.name.clone(),
        container_id: call.container_id.clone(),
        ifname: call.ifname.clone(),
        netns: call.netns.clone(),
        netns_dev: id.device,
        netns_inode: id.inode,
        boot_id: attachment::boot_id(),
        host_if: veth::host_name(&conf.name, &call.container_id, &call.ifname),
        host_index: 0,
        addresses: Vec::new(),
        lease_dir: None,
        ipam_plugin: None,
        ip_masq: conf.ip_masq,
        policy: conf.policy,
        pod: call.args.pod.clone(),
        mtu: conf.mtu,
        port_mappings: Vec::new(),
        ports_end: false,
        bandwidth: conf.bandwidth,
        other: BTreeMap::new(),
    }
}

fn acquire(
    ipam: &Ipam,
    attachments: &Attachments,
    attachment: &mut Attachment,
    undo: &mut Undo<'_>,
) -> Result<Grant, CniError> {
    let boot = attachment.boot_id.clone();
    let gone = |other: &Attachment| attachment::is_gone(other, &boot, veth::exists);
    let delegate = match ipam {
        Ipam::BuiltIn(plan) => return plan.acquire(attachments, attachment, &gone, undo),
        Ipam::Delegate(delegate) => delegate,
    };
    attachment.ipam_plugin = Some(delegate.name());
    ipam::claim(attachments, attachment, undo)?;
    let inverse = delegate.clone();
    // A plugin that failed is told to clean up as well.
    undo.push("the IPAM plugin's ADD", move || {
        inverse.run(Command::Del).map(drop)
    });
    let grant = delegate.add()?;
    attachment.addresses = grant.addresses.clone();
    Ok(grant)
}

fn hand_over(
    conf: &NetConf,
    budget: &Budget,
    attachment: &Attachment,
    undo: &mut Undo<'_>,
) -> Result<Outcome, CniError> {
    let (id, ifname) = (attachment.container_id.clone(), attachment.ifname.clone());
    let (run_dir, budget_again) = (conf.run_dir.clone(), *budget);
    undo.push("the registration", move || {
        handover::detach(&id, &ifname, &run_dir, &budget_again);
        Ok(())
    });
    let outcome = handover::attach(attachment, &conf.run_dir, budget)?;
    fault::point()?;
    if outcome == Outcome::Closed && attachment.policy != PolicyMode::Optional {
        let message = "the pod's interface was not released by the agent";
        return Err(CniError::new(Code::TryAgainLater, message));
    }
    Ok(outcome)
}

/// Before the first packet.
fn limit(
    attachment: &Attachment,
    host: &mut Socket,
    pair: &Pair,
    undo: &mut Undo<'_>,
) -> Result<Option<Link>, CniError> {
    let Some(limits) = &attachment.bandwidth else {
        return Ok(None);
    };
    let name = attachment.host_if.clone();
    undo.push("bandwidth", move || bandwidth::end(&name));
    let ifb = bandwidth::begin(host, &pair.host, limits)?;
    fault::point()?;
    Ok(ifb)
}

/// Host ports lead to the pod from here on, through an interface that lets nothing pass yet.
fn place_ports(
    conf: &NetConf,
    nft: &mut Nft,
    attachments: &Attachments,
    attachment: &mut Attachment,
    undo: &mut Undo<'_>,
) -> Result<(), CniError> {
    if conf.port_mappings.is_empty() {
        // Somebody else's: if that cannot be done, this pod does not suffer.
        let _ = portmap::heal(nft, attachments);
        return Ok(());
    }
    let (store, id, ifname) = (
        attachments.clone(),
        attachment.container_id.clone(),
        attachment.ifname.clone(),
    );
    undo.push("host ports", move || {
        portmap::end(&mut Nft::default(), &store, &id, &ifname)
    });
    portmap::begin(nft, attachments, attachment, &conf.port_mappings)?;
    fault::point()
}

/// Lets packets through: the last step, after which there is a pod on the network.
fn open(
    attachment: &Attachment,
    masquerade: bool,
    inside: &[Cidr],
    host: &mut Socket,
    nft: &mut Nft,
    undo: &mut Undo<'_>,
) -> Result<(), CniError> {
    if attachment.ip_masq && !masquerade {
        let addresses = attachment.addresses.clone();
        undo.push("masquerading", move || {
            masquerade::end(&mut Nft::default(), &addresses)
        });
        masquerade::begin(nft, &attachment.addresses, inside)?;
        fault::point()?;
    }
    open_interface(host, attachment.host_index, &attachment.addresses).map_err(|e| {
        veth::kernel(
            &format!("cannot open the interface {}", attachment.host_if),
            &e,
        )
    })
}

fn describe_result(call: &Call, pair: &Pair, ifb: Option<&Link>, grant: &Grant) -> CniResult {
    let interface = |link: &Link, sandbox: Option<String>| Interface {
        name: link.name.clone(),
        mac: link.address.map(|mac| mac.to_string()),
        mtu: Some(link.mtu),
        sandbox,
    };
    let ip = |&addr: &std::net::IpAddr| Ip {
        address: Cidr::host(addr),
        gateway: Some(veth::gateway(addr.is_ipv6())),
        interface: Some(1),
    };
    let route = |route: &Route| Route {
        gw: Some(veth::gateway(route.dst.is_v6())),
        ..route.clone()
    };
    let mut interfaces = vec![
        interface(&pair.host, None),
        interface(&pair.pod, Some(call.netns.clone())),
    ];
    interfaces.extend(ifb.map(|ifb| interface(ifb, None)));
    CniResult {
        interfaces,
        ips: grant.addresses.iter().map(ip).collect(),
        routes: grant.routes.iter().map(route).collect(),
        dns: grant.dns.clone(),
    }
}
