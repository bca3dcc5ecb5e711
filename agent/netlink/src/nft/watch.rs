//! What changes in nf_tables, and who did it.
//!
//! The kernel sends the changes of a transaction when it is committed, then its generation. A
//! change that carries the port of our own writing socket is our own.

use std::os::fd::{AsFd, BorrowedFd};

use super::{
    DELCHAIN, DELFLOWTABLE, DELOBJ, DELRULE, DELSET, DELSETELEM, DELTABLE, NEWCHAIN, NEWFLOWTABLE,
    NEWGEN, NEWOBJ, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE, NFGENMSG, SUBSYSTEM,
};
use crate::attr::{Attrs, get_u8};
use crate::error::Result;
use crate::socket::{Event, Message, Protocol, Socket};

const NFNLGRP_NFTABLES: u32 = 7;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;

/// What a change concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Object {
    /// A table.
    Table,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
    /// A set or map.
    Set,
    /// Elements of a set.
    Element,
    /// A named object (counter, …).
    Stateful,
    /// A flow table.
    Flowtable,
}

/// A change to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it concerns.
    pub object: Object,
    /// Whether that is gone; else it is new or changed.
    pub gone: bool,
    /// `NFPROTO_*` of the table.
    pub family: u8,
    /// The table.
    pub table: String,
    /// Of a chain: its name, and whether it says where it hooks in.
    pub chain: Option<(String, bool)>,
    /// The port of the socket that made it.
    pub port: u32,
}

/// What a [`Watch`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftEvent {
    /// A change; those of a transaction come together.
    Change(Change),
    /// A transaction is complete.
    Generation {
        /// Its number in the namespace.
        id: u32,
        /// The thread that made it (the process, if it has one thread only); 0 if not told.
        pid: u32,
        /// The name of its program.
        name: String,
        /// The port of the socket that made it.
        port: u32,
    },
    /// Notifications were lost: read everything again.
    Overrun,
}

impl NftEvent {
    /// The event that a notification tells; `None` if it is of another kind or damaged.
    pub fn decode(message: &Message<'_>) -> Option<Self> {
        let kind = message.kind.checked_sub(SUBSYSTEM)?;
        if kind == NEWGEN {
            return decode_generation(message);
        }
        let (object, gone) = match kind {
            NEWTABLE => (Object::Table, false),
            DELTABLE => (Object::Table, true),
            NEWCHAIN => (Object::Chain, false),
            DELCHAIN => (Object::Chain, true),
            NEWRULE => (Object::Rule, false),
            DELRULE => (Object::Rule, true),
            NEWSET => (Object::Set, false),
            DELSET => (Object::Set, true),
            NEWSETELEM => (Object::Element, false),
            DELSETELEM => (Object::Element, true),
            NEWOBJ => (Object::Stateful, false),
            DELOBJ => (Object::Stateful, true),
            NEWFLOWTABLE => (Object::Flowtable, false),
            DELFLOWTABLE => (Object::Flowtable, true),
            _ => return None,
        };
        // The name of the table is attribute 1 of all of them.
        let mut attrs = Attrs::after(message.body, NFGENMSG);
        let table = attrs.find(|attr| attr.kind == 1)?.text();
        let family = get_u8(message.body, 0)?;
        let chain = (object == Object::Chain).then(|| {
            let attrs = || Attrs::after(message.body, NFGENMSG);
            let name = attrs().find(|attr| attr.kind == CHAIN_NAME);
            let hooked = attrs().any(|attr| attr.kind == CHAIN_HOOK);
            (name.map(|attr| attr.text()).unwrap_or_default(), hooked)
        });
        Some(Self::Change(Change {
            object,
            gone,
            family,
            table,
            chain,
            port: message.port,
        }))
    }
}

fn decode_generation(message: &Message<'_>) -> Option<NftEvent> {
    let (mut id, mut pid, mut name) = (None, 0, String::new());
    for attr in Attrs::after(message.body, NFGENMSG) {
        match attr.kind {
            1 => id = attr.be32(),
            2 => pid = attr.be32()?,
            3 => name = attr.text(),
            _ => {}
        }
    }
    Some(NftEvent::Generation {
        id: id?,
        pid,
        name,
        port: message.port,
    })
}

/// A socket subscribed to the changes of nf_tables in its namespace.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Subscribes in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Self::with(Socket::open(Protocol::Netfilter)?)
    }

    /// Subscribes in another namespace.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        Self::with(Socket::open_in(netns, Protocol::Netfilter)?)
    }

    fn with(socket: Socket) -> Result<Self> {
        socket.join(NFNLGRP_NFTABLES)?;
        Ok(Self { socket })
    }

    /// Hands on the events of at most `limit` datagrams that are there, without waiting. Returns
    /// the number of datagrams: less than `limit` means that no more were there.
    pub fn receive(&mut self, limit: usize, mut handle: impl FnMut(NftEvent)) -> Result<usize> {
        self.socket.receive(limit, |event| match event {
            Event::Overrun => handle(NftEvent::Overrun),
            Event::Message(message) => {
                if let Some(event) = NftEvent::decode(&message) {
                    handle(event);
                }
            }
        })
    }

    /// The socket, to set its buffer.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
