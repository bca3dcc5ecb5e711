//! The plugin named `loopback`: raises `lo` in a sandbox. Runtimes call it for every sandbox, beside the network.

use selvage_netlink::{addr, link};

use crate::spec::request::Call;
use crate::spec::result::{Interface, Ip};
use crate::spec::{Cidr, CniError, CniResult, Code, NetConf};
use crate::veth::{self, Sandbox};

/// Whether this plugin is meant: by the program's name or by the configuration's `type`.
pub fn is_meant(call: &Call, conf: &NetConf) -> bool {
    call.named_loopback || conf.kind == "loopback"
}

/// Raises `lo`. A `prevResult` is passed on as it is.
pub fn add(call: &Call, conf: &NetConf) -> Result<CniResult, CniError> {
    let previous = conf
        .root()
        .get("prevResult")?
        .map(|f| CniResult::read(&f))
        .transpose()?;
    let mut sandbox = Sandbox::open(&call.netns, call.allow_own_netns)?;
    let lo = raise(&mut sandbox, true)?;
    if let Some(previous) = previous {
        return Ok(previous);
    }
    let present = addr::list(sandbox.socket())
        .map_err(|e| veth::kernel("cannot list the sandbox's addresses", &e))?;
    let ips = present
        .iter()
        .filter(|a| a.index == lo.index)
        .filter_map(|a| {
            let address = Cidr::new(a.prefix.addr, a.prefix.len)?;
            Some(Ip {
                address,
                gateway: None,
                interface: Some(0),
            })
        });
    let interface = Interface {
        name: lo.name.clone(),
        mac: lo.address.map(|mac| mac.to_string()),
        mtu: None,
        sandbox: Some(call.netns.clone()),
    };
    Ok(CniResult {
        interfaces: vec![interface],
        ips: ips.collect(),
        ..CniResult::default()
    })
}

/// Lowers `lo`, if there is still a sandbox to do it in.
pub fn del(call: &Call) -> Result<(), CniError> {
    if call.netns.is_empty() {
        return Ok(());
    }
    match Sandbox::open(&call.netns, call.allow_own_netns) {
        Ok(mut sandbox) => raise(&mut sandbox, false).map(drop),
        Err(e) if e.code == Code::Environment as u32 => Ok(()),
        Err(e) => Err(e),
    }
}

/// Is `lo` up?
pub fn check(call: &Call) -> Result<(), CniError> {
    let mut sandbox = Sandbox::open(&call.netns, call.allow_own_netns)?;
    match sandbox.link(&call.ifname)? {
        Some(lo) if lo.is_up() => Ok(()),
        _ => Err(CniError::new(
            Code::CheckFailed,
            format!("{} is not up in {}", call.ifname, call.netns),
        )),
    }
}

fn raise(sandbox: &mut Sandbox, up: bool) -> Result<link::Link, CniError> {
    let missing = || CniError::new(Code::Kernel, "the sandbox has no loopback interface");
    let lo = sandbox.link("lo")?.ok_or_else(missing)?;
    let done = sandbox
        .socket()
        .apply(|batch| link::set_up(batch, lo.index, up));
    done.map_err(|e| veth::kernel("cannot change the loopback interface", &e))?;
    Ok(lo)
}
