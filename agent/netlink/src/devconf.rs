//! The settings of an interface that are files below `/proc/sys/net/ipv4/conf` and `ipv6/conf`, by netlink.
//!
//! Those of IPv4 are read and written, those of IPv6 only read, but for the way in which addresses are made. Netlink is
//! more than quicker: the kernel keeps the directory entries `/proc/sys/net/ipv6` of all namespaces that have ever
//! opened theirs in one hash chain, so that opening such a path takes the longer the more pods there are.

use crate::attr::{Attrs, get_u32};
use crate::batch::Batch;
use crate::error::Result;
use crate::link::{self, IFINFO, Link, RTM_SETLINK};
use crate::socket::{Message, Socket};

const IFLA_AF_SPEC: u16 = 26;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Settings of IPv4, by their numbers (`IPV4_DEVCONF_*` in `linux/ip.h`) and named as the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(
    missing_docs,
    reason = "the kernel's names: Documentation/networking/ip-sysctl.rst"
)]
pub enum Ipv4 {
    Forwarding = 1,
    ProxyArp = 3,
    AcceptRedirects = 4,
    SendRedirects = 6,
    RpFilter = 8,
    AcceptSourceRoute = 9,
    ArpAccept = 21,
    AcceptLocal = 23,
    ProxyArpPvlan = 25,
    RouteLocalnet = 26,
    BcForwarding = 32,
}

/// Settings of IPv6 (`DEVCONF_*` in `linux/ipv6.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6 {
    /// `forwarding`.
    pub forwarding: bool,
    /// `accept_ra`: 0 never, 1 unless the interface forwards, 2 always.
    pub accept_ra: u32,
    /// `accept_redirects`; means nothing where the interface forwards.
    pub accept_redirects: bool,
    /// `disable_ipv6`.
    pub disabled: bool,
}

/// The settings of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Those of IPv4, the first is number 1; empty without IPv4.
    ipv4: Vec<u32>,
    /// Those of IPv6; `None` if the kernel, or this interface because of its MTU, has no IPv6.
    pub ipv6: Option<Ipv6>,
}

impl Settings {
    /// The value of a setting of IPv4; `None` if the interface has none.
    pub fn ipv4(&self, setting: Ipv4) -> Option<u32> {
        self.ipv4.get(usize::from(setting as u16) - 1).copied()
    }
}

/// The link with this name and its settings; `ENODEV` if there is none.
pub fn get(socket: &mut Socket, name: &str) -> Result<(Link, Settings)> {
    socket.get(
        |batch| link::ask_by_name(batch, name),
        |message| Some((link::decode(&message)?, decode(&message))),
    )
}

/// Changes settings of a link: those of IPv4 that are listed, and with `no_ipv6_address` that the kernel gives it no
/// IPv6 address of its own when it is raised, which is refused (`EAFNOSUPPORT`) for a link without IPv6.
pub fn set(batch: &mut Batch, index: u32, ipv4: &[(Ipv4, u32)], no_ipv6_address: bool) {
    batch.push(RTM_SETLINK, 0, |body| {
        link::header(body, index, 0, 0);
        body.nest(IFLA_AF_SPEC, |families| {
            if !ipv4.is_empty() {
                families.nest(AF_INET, |family| {
                    family.nest(IFLA_INET_CONF, |list| {
                        for &(setting, value) in ipv4 {
                            list.u32(setting as u16, value);
                        }
                    });
                });
            }
            if no_ipv6_address {
                families.nest(AF_INET6, |family| {
                    family.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
                });
            }
        });
    });
}

fn decode(message: &Message<'_>) -> Settings {
    let mut settings = Settings::default();
    let families = Attrs::after(message.body, IFINFO)
        .filter(|attr| attr.kind == IFLA_AF_SPEC)
        .flat_map(|attr| attr.nested());
    for family in families {
        let wanted = match family.kind {
            AF_INET => IFLA_INET_CONF,
            AF_INET6 => IFLA_INET6_CONF,
            _ => continue,
        };
        let Some(conf) = family.nested().find(|attr| attr.kind == wanted) else {
            continue;
        };
        let values: Vec<u32> = (0..conf.value.len() / 4)
            .filter_map(|i| get_u32(conf.value, i * 4))
            .collect();
        if family.kind == AF_INET {
            settings.ipv4 = values;
        } else {
            let at = |number: usize| values.get(number).copied().unwrap_or_default();
            settings.ipv6 = Some(Ipv6 {
                forwarding: at(0) != 0,
                accept_ra: at(3),
                accept_redirects: at(4) != 0,
                disabled: at(26) != 0,
            });
        }
    }
    settings
}
