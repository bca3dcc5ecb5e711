//! Masquerading: what pods send to the world outside takes the node's address, what they send to other pods does not.
//!
//! A table of its own, `inet selvage-nat`, with one rule per family: its sets hold the pods that asked for it and the
//! prefixes of all nodes' pods, so that policy by source works on every node. It is written on the thread of the
//! world, by a message or two per pod.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use selvage_cni::masquerade::rule;
use selvage_netlink::{
    Error, Protocol, Socket,
    nft::{Base, ChainType, DataType, Element, Hook, Set, Table, Transaction, expr::Expr, list},
};

/// Its table, of family inet.
pub const TABLE: &str = "selvage-nat";

const CHAIN: &str = "postrouting";
/// The priority `srcnat`: before the plugin's own, which has no effect then.
const PRIORITY: i32 = 99;
const BASE: Base = Base {
    hook: Hook::Postrouting,
    priority: PRIORITY,
    kind: ChainType::Nat,
    drop: false,
};

/// What should be masqueraded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Masqueraded {
    /// From these addresses,
    pub pods: BTreeSet<IpAddr>,
    /// but not to these prefixes; none overlaps another.
    pub inside: BTreeSet<IpNet>,
}

/// The table and what it holds.
#[derive(Debug)]
pub struct Masquerade {
    socket: Socket,
    /// `None` before it was written, and when somebody may have changed it.
    known: Option<Masqueraded>,
    /// What the kernel has refused: the same is not tried again.
    refused: Option<Masqueraded>,
}

impl Masquerade {
    /// In the calling thread's network namespace. Nothing is written yet.
    pub fn open() -> Result<Self, Error> {
        Ok(Masquerade {
            socket: Socket::open(Protocol::Netfilter)?,
            known: None,
            refused: None,
        })
    }

    /// The table may not be what was written: the next time it is written anew.
    pub fn doubt(&mut self) {
        self.known = None;
        self.refused = None;
    }

    /// Whether it is to be written anew.
    pub fn is_in_doubt(&self) -> bool {
        self.known.is_none() && self.refused.is_none()
    }

    /// Whether what comes from an address is masqueraded by us.
    pub fn has(&self, pod: &IpAddr) -> bool {
        self.known
            .as_ref()
            .is_some_and(|known| known.pods.contains(pod))
    }

    /// Makes it so: by the elements that differ where only pods do, else by all
    /// elements in one transaction, with the table only where it is not there or not ours. What is
    /// translated already goes on as it is.
    pub fn apply(&mut self, wanted: &Masqueraded) -> Result<(), Error> {
        if [&self.known, &self.refused]
            .into_iter()
            .flatten()
            .any(|told| told == wanted)
        {
            return Ok(());
        }
        let known = self.known.take();
        let by_elements = known
            .filter(|known| known.inside == wanted.inside)
            .is_some_and(|known| self.change(&known.pods, &wanted.pods).is_ok());
        if !by_elements && let Err(error) = self.replace(wanted) {
            self.refused = Some(wanted.clone());
            return Err(error);
        }
        self.refused = None;
        self.known = Some(wanted.clone());
        Ok(())
    }

    fn change(&mut self, from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let mut transaction = Transaction::new();
        for addr in from.difference(to) {
            let key = octets(*addr);
            transaction.delete_elements(&table(), &pods(*addr), [Element::one(&key)]);
        }
        for addr in to.difference(from) {
            let key = octets(*addr);
            transaction.add_elements(&table(), &pods(*addr), [Element::one(&key)]);
        }
        transaction.commit(&mut self.socket)
    }

    /// Whether the kernel has the chain and its rules; their sets are then there, too.
    fn is_whole(&mut self) -> bool {
        let Ok(chains) = list::chains(&mut self.socket, &table()) else {
            return false;
        };
        let Ok(rules) = list::rules(&mut self.socket, &table(), None) else {
            return false;
        };
        matches!(chains.as_slice(), [chain] if chain.name == CHAIN && chain.base == Some(BASE))
            && matches!(rules.as_slice(), [v4, v6]
                if v4.does(&wanted_rule(false)) && v6.does(&wanted_rule(true)))
    }

    fn replace(&mut self, wanted: &Masqueraded) -> Result<(), Error> {
        let mut transaction = Transaction::new();
        if self.is_whole() {
            // The chain stays: packets that are in one when it is replaced are lost.
            for v6 in [false, true] {
                transaction.flush_set(&table(), pods_of(v6).name);
                transaction.flush_set(&table(), inside_of(v6).name);
            }
        } else {
            make(&mut transaction);
        }
        for addr in &wanted.pods {
            let key = octets(*addr);
            transaction.add_elements(&table(), &pods(*addr), [Element::one(&key)]);
        }
        for net in &wanted.inside {
            let set = inside_of(net.addr().is_ipv6());
            let (first, last) = (octets(net.network()), octets(net.broadcast()));
            transaction.add_elements(&table(), &set, [Element::range(&first, &last)]);
        }
        transaction.commit(&mut self.socket)
    }
}

/// The table without elements, whatever was there.
fn make(transaction: &mut Transaction) {
    transaction.reset_table(&table());
    transaction.add_base_chain(&table(), CHAIN, &BASE);
    for v6 in [false, true] {
        transaction.add_set(&table(), &pods_of(v6));
        transaction.add_set(&table(), &inside_of(v6));
        transaction.add_rule(&table(), CHAIN, &wanted_rule(v6), None);
    }
}

fn wanted_rule(v6: bool) -> Vec<Expr> {
    rule(v6, pods_of(v6).name, inside_of(v6).name)
}

fn table() -> Table<'static> {
    Table::inet(TABLE)
}

fn pods(addr: IpAddr) -> Set<'static> {
    pods_of(addr.is_ipv6())
}

fn pods_of(v6: bool) -> Set<'static> {
    match v6 {
        false => Set::hash("pods4", &[DataType::IPV4_ADDR]),
        true => Set::hash("pods6", &[DataType::IPV6_ADDR]),
    }
}

fn inside_of(v6: bool) -> Set<'static> {
    let set = match v6 {
        false => Set::hash("inside4", &[DataType::IPV4_ADDR]),
        true => Set::hash("inside6", &[DataType::IPV6_ADDR]),
    };
    Set {
        interval: true,
        ..set
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
