//! Masquerading where no agent does it: `ipMasq` as the reference plugins understand it.
//!
//! One table of our own with one rule per family, whatever the number of pods: packets from an address in a set,
//! that leave the node by another interface than a pod's, for an address outside the pods' ranges that is not
//! multicast, take the address of that interface. A pod is an element of the set. The ranges are those of the
//! configuration: where they are this node's only, what goes to pods of other nodes is translated as well, and policy
//! by source does not work there; the agent, which knows all nodes' ranges, does better.

use std::net::IpAddr;

use rustix::io::Errno;
use selvage_netlink::nft::expr::{CmpOp, Expr, Meta, Reg};
use selvage_netlink::nft::{
    Base, ChainType, DataType, Element, Hook, Set, Table, Transaction, list,
};
use selvage_netlink::{Error, Socket};

use crate::nft::Nft;
use crate::spec::{Cidr, CniError};
use crate::veth::{GROUP, kernel};

const TABLE: Table<'static> = Table::inet("selvage-cni");
const CHAIN: &str = "postrouting";
const SET_V4: Set<'static> = Set::hash("masquerade4", &[DataType::IPV4_ADDR]);
const SET_V6: Set<'static> = Set::hash("masquerade6", &[DataType::IPV6_ADDR]);
const INSIDE_V4: Set<'static> = ranges("inside4", &[DataType::IPV4_ADDR]);
const INSIDE_V6: Set<'static> = ranges("inside6", &[DataType::IPV6_ADDR]);

const fn ranges(name: &'static str, key: &'static [DataType]) -> Set<'static> {
    let set = Set::hash(name, key);
    Set {
        interval: true,
        ..set
    }
}

/// After other programs' translations of sources (`srcnat`, 100), which know more about what they translate, and the
/// agent's (99): ours takes what is left.
const PRIORITY: i32 = 101;
const BASE: Base = Base {
    hook: Hook::Postrouting,
    priority: PRIORITY,
    kind: ChainType::Nat,
    drop: false,
};

/// Masquerades what comes from `addresses` and does not go to `inside`. What is in the sets already stays there.
pub fn begin(nft: &mut Nft, addresses: &[IpAddr], inside: &[Cidr]) -> Result<(), CniError> {
    let socket = nft.socket()?;
    let failed = |e: Error| kernel("cannot masquerade for the pod (table inet selvage-cni)", &e);
    replace_old_chain(socket).map_err(failed)?;
    let added = insert(socket, addresses, inside).or_else(|e| match e {
        e if e.is(Errno::NOENT) => {
            // Somebody else may have made the table meanwhile.
            match make_table(socket) {
                Err(e) if !e.is(Errno::EXIST) => Err(e),
                _ => insert(socket, addresses, inside),
            }
        }
        e => Err(e),
    });
    added.map_err(failed)
}

/// Ends it. What is not there is no error.
pub fn end(nft: &mut Nft, addresses: &[IpAddr]) -> Result<(), CniError> {
    let socket = nft.socket()?;
    for addr in addresses {
        let key = octets(*addr);
        let mut transaction = Transaction::new();
        transaction.delete_elements(&TABLE, set(*addr), [Element::one(&key)]);
        match transaction.commit(socket) {
            Err(e) if !e.is(Errno::NOENT) => {
                return Err(kernel(
                    &format!("cannot end masquerading for {addr} (table inet selvage-cni)"),
                    &e,
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn insert(socket: &mut Socket, addresses: &[IpAddr], inside: &[Cidr]) -> Result<(), Error> {
    let mut add = |set: &Set<'_>, element: Element<'_>| {
        let mut transaction = Transaction::new();
        transaction.ensure_elements(&TABLE, set, [element]);
        match transaction.commit(socket) {
            // A range that overlaps another: pools of one network do not.
            Err(e) if e.is(Errno::EXIST) || e.is(Errno::NOTEMPTY) => Ok(()),
            other => other,
        }
    };
    for cidr in inside {
        let (first, last) = (octets(cidr.first()), octets(cidr.last()));
        let set = if cidr.is_v6() { &INSIDE_V6 } else { &INSIDE_V4 };
        add(set, Element::range(&first, &last))?;
    }
    for addr in addresses {
        add(set(*addr), Element::one(&octets(*addr)))?;
    }
    Ok(())
}

/// All or nothing: the sets are refused if they exist, so that no rule is ever there twice.
fn make_table(socket: &mut Socket) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.add_table(&TABLE);
    transaction.add_set(&TABLE, &SET_V4);
    transaction.add_set(&TABLE, &SET_V6);
    transaction.add_set(&TABLE, &INSIDE_V4);
    transaction.add_set(&TABLE, &INSIDE_V6);
    add_chain(&mut transaction);
    transaction.commit(socket)
}

fn add_chain(transaction: &mut Transaction) {
    transaction.add_base_chain(&TABLE, CHAIN, &BASE);
    for v6 in [false, true] {
        let (pods, inside) = match v6 {
            true => (SET_V6, INSIDE_V6),
            false => (SET_V4, INSIDE_V4),
        };
        let rule = rule(v6, pods.name, inside.name);
        transaction.add_rule(&TABLE, CHAIN, &rule, Some("pods with ipMasq"));
    }
}

/// Replaces the chain of an earlier release, which hooked in elsewhere: the kernel changes no chain's priority.
fn replace_old_chain(socket: &mut Socket) -> Result<(), Error> {
    let chains = list::chains(socket, &TABLE)?;
    let is_old = |chain: &list::ChainInfo| chain.name == CHAIN && chain.base != Some(BASE);
    if !chains.iter().any(is_old) {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    transaction.flush_chain(&TABLE, CHAIN);
    transaction.delete_chain(&TABLE, CHAIN);
    add_chain(&mut transaction);
    transaction.commit(socket)
}

/// What comes from an address in the set `pods`, leaves by another interface than a pod's for an address that is not in
/// the set `inside` and is no group, is masqueraded. For a chain of type nat at postrouting.
pub fn rule(v6: bool, pods: &str, inside: &str) -> Vec<Expr> {
    let mut rule = Expr::family(v6).to_vec();
    rule.extend([Expr::meta(Meta::OIFGROUP), Expr::ne(GROUP.to_ne_bytes())]);
    rule.extend([
        Expr::source(v6, Reg::FIRST),
        Expr::in_set(pods, false),
        Expr::destination(v6, Reg::FIRST),
        Expr::in_set(inside, true),
    ]);
    // Multicast is everything from here on upwards: 224.0.0.0 and what follows, ff00::/8.
    let multicast = if v6 {
        [&[0xff][..], &[0; 15]].concat()
    } else {
        vec![224, 0, 0, 0]
    };
    rule.push(Expr::Cmp {
        sreg: Reg::FIRST,
        op: CmpOp::Lt,
        value: multicast,
    });
    rule.push(Expr::Masquerade { flags: 0 });
    rule
}

fn set(addr: IpAddr) -> &'static Set<'static> {
    if addr.is_ipv6() { &SET_V6 } else { &SET_V4 }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
