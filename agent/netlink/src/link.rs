//! Links: listing, veth pairs and bridges, and changes by index or by group.
//!
//! A veth's peer is born in its namespace: moving a device waits for grace periods, some twenty
//! milliseconds each.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use crate::attr::{Attrs, Body, get_u8, get_u32};
use crate::batch::{Batch, CREATE, EXCL};
use crate::error::Result;
use crate::prefix::AF_UNSPEC;
use crate::socket::{Message, Socket};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
/// Size of `struct ifinfomsg`.
pub(crate) const IFINFO: usize = 16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_CARRIER: u16 = 33;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// The interface is administratively up.
pub const IFF_UP: u32 = 0x1;
/// The loopback interface.
pub const IFF_LOOPBACK: u32 = 0x8;
/// It is up and its carrier is there.
pub const IFF_RUNNING: u32 = 0x40;
/// The driver signals the carrier.
pub const IFF_LOWER_UP: u32 = 0x1_0000;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a hardware address of six bytes";
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() <= 2).ok_or(WRONG)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| WRONG)?;
        }
        if parts.next().is_some() {
            Err(WRONG)
        } else {
            Ok(Self(octets))
        }
    }
}

/// RFC 2863 operational state, as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OperState {
    /// The driver does not say (loopback).
    #[default]
    Unknown,
    /// The device is not present.
    NotPresent,
    /// No carrier, or administratively down.
    Down,
    /// The device below is down.
    LowerLayerDown,
    /// In a test.
    Testing,
    /// Waits for something, e.g. authentication.
    Dormant,
    /// Packets pass.
    Up,
    /// A number that this crate does not know.
    Other(u8),
}

impl From<u8> for OperState {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::Unknown,
            1 => Self::NotPresent,
            2 => Self::Down,
            3 => Self::LowerLayerDown,
            4 => Self::Testing,
            5 => Self::Dormant,
            6 => Self::Up,
            other => Self::Other(other),
        }
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Link group; 0 if none was set.
    pub group: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// Whether the carrier is there; `None` if the kernel did not say.
    pub carrier: Option<bool>,
    /// Operational state.
    pub oper_state: OperState,
    /// MTU in bytes.
    pub mtu: u32,
    /// Driver kind (`veth`, `bridge`, …); empty for hardware and loopback.
    pub kind: String,
    /// Hardware address, if it has six bytes.
    pub address: Option<Mac>,
    /// The bridge or bond that it belongs to.
    pub master: Option<u32>,
    /// The lower link; for a veth its peer's index, in the namespace `link_netns`.
    pub link: Option<u32>,
    /// The namespace of `link` by the number that this namespace has for it; `None` for the own.
    pub link_netns: Option<u32>,
    /// Alias, empty if none.
    pub alias: String,
}

impl Link {
    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Up, and its carrier is there.
    pub fn is_running(&self) -> bool {
        self.is_up() && self.carrier.unwrap_or(self.flags & IFF_LOWER_UP != 0)
    }
}

/// One end of a new veth pair. `Default` leaves everything but the name to the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct VethEnd<'a> {
    /// Name, at most 15 bytes.
    pub name: &'a str,
    /// Hardware address.
    pub address: Option<Mac>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Link group.
    pub group: Option<u32>,
    /// Transmit and receive queues.
    pub queues: Option<(u32, u32)>,
    /// The namespace in which it is born; `None` is the socket's.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Changes to a link; `Default` changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Administrative state.
    pub up: Option<bool>,
    /// New name.
    pub name: Option<&'a str>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub address: Option<Mac>,
    /// Link group.
    pub group: Option<u32>,
    /// Bridge to join; 0 leaves the present one.
    pub master: Option<u32>,
    /// Alias; empty removes it.
    pub alias: Option<&'a str>,
    /// Carrier, for the drivers that let it be set. A veth does not: its carrier follows the
    /// administrative state of both ends.
    pub carrier: Option<bool>,
}

/// All links of the socket's namespace.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>> {
    socket.list(
        |batch| get_message(batch, 0, |_| {}),
        |message| decode(&message),
    )
}

/// The link with this index; `ENODEV` if there is none.
pub fn get(socket: &mut Socket, index: u32) -> Result<Link> {
    socket.get(
        |batch| get_message(batch, index, |_| {}),
        |message| decode(&message),
    )
}

/// The link with this index in the namespace that ours knows by this number; `ENODEV` if there is none. Needs
/// CAP_NET_ADMIN over that namespace, not a descriptor of it. Linux 4.18.
pub fn get_in(socket: &mut Socket, netns: u32, index: u32) -> Result<Link> {
    let build =
        |batch: &mut Batch| get_message(batch, index, |body| body.u32(IFLA_TARGET_NETNSID, netns));
    socket.get(build, |message| decode(&message))
}

/// The link with this name; `ENODEV` if there is none.
pub fn get_by_name(socket: &mut Socket, name: &str) -> Result<Link> {
    socket.get(|batch| ask_by_name(batch, name), |message| decode(&message))
}

pub(crate) fn ask_by_name(batch: &mut Batch, name: &str) {
    get_message(batch, 0, |body| body.text(IFLA_IFNAME, name));
}

/// Creates a veth pair; both ends are left down. `EEXIST` if a name is taken.
pub fn add_veth(batch: &mut Batch, host: &VethEnd<'_>, peer: &VethEnd<'_>) {
    batch.push(RTM_NEWLINK, CREATE | EXCL, |body| {
        header(body, 0, 0, 0);
        veth_end(body, host);
        body.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.enclose(VETH_INFO_PEER, |end| {
                    header(end, 0, 0, 0);
                    veth_end(end, peer);
                });
            });
        });
    });
}

/// Creates a bridge, left down.
pub fn add_bridge(batch: &mut Batch, name: &str) {
    batch.push(RTM_NEWLINK, CREATE | EXCL, |body| {
        header(body, 0, 0, 0);
        body.text(IFLA_IFNAME, name);
        body.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
    });
}

/// Creates an interface that packets are sent by way of to wait in its queue, left down.
pub fn add_ifb(batch: &mut Batch, name: &str, mtu: u32, group: u32) {
    batch.push(RTM_NEWLINK, CREATE | EXCL, |body| {
        header(body, 0, 0, 0);
        body.text(IFLA_IFNAME, name);
        body.u32(IFLA_MTU, mtu);
        body.u32(IFLA_GROUP, group);
        body.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "ifb"));
    });
}

/// Changes a link by index.
pub fn change(batch: &mut Batch, index: u32, change: &Change<'_>) {
    batch.push(RTM_SETLINK, 0, |body| {
        let flags = if change.up == Some(true) { IFF_UP } else { 0 };
        let mask = if change.up.is_some() { IFF_UP } else { 0 };
        header(body, index, flags, mask);
        if let Some(name) = change.name {
            body.text(IFLA_IFNAME, name);
        }
        if let Some(Mac(octets)) = change.address {
            body.bytes(IFLA_ADDRESS, &octets);
        }
        for (kind, value) in [
            (IFLA_MTU, change.mtu),
            (IFLA_GROUP, change.group),
            (IFLA_MASTER, change.master),
        ] {
            if let Some(value) = value {
                body.u32(kind, value);
            }
        }
        if let Some(alias) = change.alias {
            body.bytes(IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(carrier) = change.carrier {
            body.u8(IFLA_CARRIER, carrier.into());
        }
    });
}

/// Raises or lowers a link.
pub fn set_up(batch: &mut Batch, index: u32, up: bool) {
    change(
        batch,
        index,
        &Change {
            up: Some(up),
            ..Change::default()
        },
    );
}

/// Makes a link a port of a bridge.
pub fn set_master(batch: &mut Batch, index: u32, master: u32) {
    change(
        batch,
        index,
        &Change {
            master: Some(master),
            ..Change::default()
        },
    );
}

/// Renames a link.
pub fn rename(batch: &mut Batch, index: u32, name: &str) {
    change(
        batch,
        index,
        &Change {
            name: Some(name),
            ..Change::default()
        },
    );
}

/// Deletes a link; a veth's peer goes with it.
pub fn delete(batch: &mut Batch, index: u32) {
    batch.push(RTM_DELLINK, 0, |body| header(body, index, 0, 0));
}

/// Deletes all links of a group at once: 250 take the time of five deleted singly. `ENODEV` if
/// the group is empty.
pub fn delete_group(batch: &mut Batch, group: u32) {
    batch.push(RTM_DELLINK, 0, |body| {
        header(body, 0, 0, 0);
        body.u32(IFLA_GROUP, group);
    });
}

/// The link in an `RTM_NEWLINK` or `RTM_DELLINK`; `None` for anything else.
pub fn decode(message: &Message<'_>) -> Option<Link> {
    if message.kind != RTM_NEWLINK && message.kind != RTM_DELLINK {
        return None;
    }
    let body = message.body;
    // Bridges tell of their ports in messages of the same types, a port's departure as RTM_DELLINK.
    if get_u8(body, 0)? != AF_UNSPEC {
        return None;
    }
    let mut link = Link {
        index: get_u32(body, 4)?,
        flags: get_u32(body, 8)?,
        ..Link::default()
    };
    for attr in Attrs::after(body, IFINFO) {
        match attr.kind {
            IFLA_IFNAME => link.name = attr.text(),
            IFLA_ADDRESS => link.address = attr.value.try_into().ok().map(Mac),
            IFLA_MTU => link.mtu = attr.u32()?,
            IFLA_GROUP => link.group = attr.u32()?,
            IFLA_LINK => link.link = attr.u32(),
            IFLA_LINK_NETNSID => link.link_netns = attr.u32(),
            IFLA_MASTER => link.master = attr.u32(),
            IFLA_OPERSTATE => link.oper_state = attr.u8()?.into(),
            IFLA_CARRIER => link.carrier = attr.u8().map(|carrier| carrier != 0),
            IFLA_IFALIAS => link.alias = attr.text(),
            IFLA_LINKINFO => {
                let kind = attr.nested().find(|info| info.kind == IFLA_INFO_KIND);
                link.kind = kind.map(|info| info.text()).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn get_message(batch: &mut Batch, index: u32, fill: impl FnOnce(&mut Body<'_>)) {
    batch.push(RTM_GETLINK, 0, |body| {
        header(body, index, 0, 0);
        fill(body);
    });
}

/// `struct ifinfomsg`.
pub(crate) fn header(body: &mut Body<'_>, index: u32, flags: u32, mask: u32) {
    let mut bytes = [0; IFINFO];
    for (field, value) in bytes.chunks_exact_mut(4).zip([0, index, flags, mask]) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
    body.raw(&bytes);
}

fn veth_end(body: &mut Body<'_>, end: &VethEnd<'_>) {
    body.text(IFLA_IFNAME, end.name);
    if let Some(Mac(octets)) = end.address {
        body.bytes(IFLA_ADDRESS, &octets);
    }
    if let Some(mtu) = end.mtu {
        body.u32(IFLA_MTU, mtu);
    }
    if let Some(group) = end.group {
        body.u32(IFLA_GROUP, group);
    }
    if let Some((tx, rx)) = end.queues {
        body.u32(IFLA_NUM_TX_QUEUES, tx);
        body.u32(IFLA_NUM_RX_QUEUES, rx);
    }
    if let Some(netns) = end.netns {
        body.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    }
}
