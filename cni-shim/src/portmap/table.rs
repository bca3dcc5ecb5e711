//! The part of table `inet selvage-cni` that host ports need: a fixed number of rules, whatever the number of pods.
//!
//! ```text
//!  prerouting, output ─ local ─► hostaddrs ─► hostaddrs4/6  daddr . proto . port : addr . port   dnat
//!          │                         └─ in nodeaddrs4/6 ─► hostports
//!          └─ of the link that it came over, 127.0.0.0/8 ─► hostports ─► hostports4/6  proto . port : addr . port   dnat
//!  (output: not [::1], which the kernel lets nobody reach a pod from)
//!  postrouting ─► hairpin   a pod that comes to itself, and the node's loopback addresses: masqueraded
//!  prerouting (raw) ─► guard   nothing from a pod is from or to a loopback address of the node
//! ```
//!
//! Not every address that is local is the node's own: proxies give those of services to interfaces that lead nowhere.
//!
//! The chains of type nat have priorities that no other program has. Of two chains with one hook and one priority that sees a
//! packet first which was made last; with -110 host ports are translated before services (-100), whoever was restarted last.
//!
//! A pod is elements of the maps. All other clients keep their address, so that policy by source holds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use rustix::io::Errno;
use selvage_netlink::nft::expr::{Expr, FibResult, Meta, NatKind, PayloadBase, Reg, fib};
use selvage_netlink::nft::list::{self, ElementData};
use selvage_netlink::nft::{
    Base, ChainType, DataType, Element, Hook, Set, Table, Transaction, Verdict,
};
use selvage_netlink::{Error, Socket};

use super::mapping::PortMapping;
use crate::veth::GROUP;

/// The plugin's own table.
pub(super) const TABLE: Table<'static> = Table::inet("selvage-cni");

const V4: DataType = DataType::IPV4_ADDR;
const V6: DataType = DataType::IPV6_ADDR;
const PROTO: DataType = DataType::INET_PROTO;
const PORT: DataType = DataType::INET_SERVICE;

const PORTS_V4: Set<'static> = Set::map("hostports4", &[PROTO, PORT], &[V4, PORT]);
const PORTS_V6: Set<'static> = Set::map("hostports6", &[PROTO, PORT], &[V6, PORT]);
const ADDRS_V4: Set<'static> = Set::map("hostaddrs4", &[V4, PROTO, PORT], &[V4, PORT]);
const ADDRS_V6: Set<'static> = Set::map("hostaddrs6", &[V6, PROTO, PORT], &[V6, PORT]);
const SELF_V4: Set<'static> = Set::hash("hairpin4", &[V4, V4]);
const SELF_V6: Set<'static> = Set::hash("hairpin6", &[V6, V6]);
const NODE_V4: Set<'static> = Set::hash("nodeaddrs4", &[V4]);
const NODE_V6: Set<'static> = Set::hash("nodeaddrs6", &[V6]);
const SETS: [&Set<'static>; 8] = [
    &PORTS_V4, &PORTS_V6, &ADDRS_V4, &ADDRS_V6, &SELF_V4, &SELF_V6, &NODE_V4, &NODE_V6,
];

/// Mappings for one address of the host.
const PARTICULAR: &str = "hostaddrs";
/// Mappings for any address of the host.
const ANY: &str = "hostports";

/// Of translations of destinations: before those of services at -100.
const DESTINATION: i32 = -110;
/// Of what hairpins: before the agent's masquerading at 99, other programs' at 100 and [`crate::masquerade`].
const SOURCE: i32 = 98;

/// `guard` at `raw`.
const CHAINS: [(&str, Option<Base>); 6] = [
    ("guard", Some(Base::filter(Hook::Prerouting, -300))),
    ("prerouting", Some(nat(Hook::Prerouting, DESTINATION))),
    ("output", Some(nat(Hook::Output, DESTINATION))),
    ("hairpin", Some(nat(Hook::Postrouting, SOURCE))),
    // Deleted in this order: what jumps, then what is jumped to.
    (PARTICULAR, None),
    (ANY, None),
];

const fn nat(hook: Hook, priority: i32) -> Base {
    Base {
        kind: ChainType::Nat,
        ..Base::filter(hook, priority)
    }
}

/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

/// The first byte of IPv4's loopback addresses.
const LOOPBACK: u8 = 127;

/// An element that a pod has in one of the sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) set: &'static Set<'static>,
    pub(super) key: Vec<u8>,
    /// Where to, in a map.
    pub(super) data: Option<Vec<u8>>,
    /// The mapping behind it.
    pub(super) mapping: Option<PortMapping>,
}

impl Entry {
    fn element(&self) -> Element<'_> {
        match &self.data {
            Some(data) => Element::value(&self.key, data),
            None => Element::one(&self.key),
        }
    }

    /// The pod's address that the element is about.
    pub(super) fn target(&self) -> Option<IpAddr> {
        addr_at(self.data.as_deref().unwrap_or(&self.key), is_v6(self.set))
    }
}

fn is_v6(set: &Set<'_>) -> bool {
    set.name.ends_with('6')
}

fn addr_at(bytes: &[u8], v6: bool) -> Option<IpAddr> {
    if v6 {
        <[u8; 16]>::try_from(bytes.get(..16)?)
            .ok()
            .map(IpAddr::from)
    } else {
        <[u8; 4]>::try_from(bytes.get(..4)?).ok().map(IpAddr::from)
    }
}

/// The elements that say which addresses are the node's own.
pub(super) fn node_entries(addresses: &[IpAddr]) -> Vec<Entry> {
    let entry = |&addr: &IpAddr| Entry {
        set: if addr.is_ipv6() { &NODE_V6 } else { &NODE_V4 },
        key: octets(addr),
        data: None,
        mapping: None,
    };
    addresses.iter().map(entry).collect()
}

/// The elements of a pod with these mappings and addresses: ports lead to the first address of each family.
pub(super) fn entries(mappings: &[PortMapping], addresses: &[IpAddr]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for v6 in [false, true] {
        let family: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|addr| addr.is_ipv6() == v6)
            .collect();
        let of_family: Vec<_> = mappings.iter().filter(|m| m.applies(v6)).collect();
        let (Some(&target), false) = (family.first(), of_family.is_empty()) else {
            continue;
        };
        entries.extend(of_family.into_iter().map(|m| translation(m, target)));
        for from in &family {
            entries.extend(family.iter().map(|to| Entry {
                set: if v6 { &SELF_V6 } else { &SELF_V4 },
                key: [octets(*from), octets(*to)].concat(),
                data: None,
                mapping: None,
            }));
        }
    }
    entries
}

fn translation(mapping: &PortMapping, target: IpAddr) -> Entry {
    let v6 = target.is_ipv6();
    let set = match (mapping.particular().is_some(), v6) {
        (false, false) => &PORTS_V4,
        (false, true) => &PORTS_V6,
        (true, false) => &ADDRS_V4,
        (true, true) => &ADDRS_V6,
    };
    let mut key = mapping.particular().map(octets).unwrap_or_default();
    key.extend([mapping.protocol.number(), 0, 0, 0]);
    key.extend(port(mapping.host_port));
    Entry {
        set,
        key,
        data: Some([octets(target), port(mapping.container_port).to_vec()].concat()),
        mapping: Some(*mapping),
    }
}

/// As a field of a concatenation.
fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The rules: chain, what they do, and a word on it.
fn rules() -> Vec<(&'static str, Vec<Expr>, &'static str)> {
    let mut rules = Vec::new();
    for (offset, text) in [
        (12, "from the node's loopback"),
        (16, "to the node's loopback"),
    ] {
        let from_pods = Expr::iif_group(GROUP).to_vec();
        let rule = [from_pods, loopback(offset), vec![Expr::DROP]].concat();
        rules.push(("guard", rule, text));
    }
    for chain in ["prerouting", "output"] {
        let local = Expr::Fib {
            dreg: Reg::FIRST,
            result: FibResult::AddressType,
            flags: fib::DADDR,
        };
        let rule = vec![local, Expr::eq(LOCAL.to_ne_bytes()), Expr::jump(PARTICULAR)];
        rules.push((chain, rule, "local"));
    }
    // Whatever address the link has by now.
    let own = Expr::Fib {
        dreg: Reg::FIRST,
        result: FibResult::AddressType,
        flags: fib::DADDR | fib::IIF,
    };
    let rule = vec![own, Expr::eq(LOCAL.to_ne_bytes()), Expr::jump(ANY)];
    rules.push(("prerouting", rule, "to the link that it came over"));
    let rule = [loopback(16), vec![Expr::jump(ANY)]].concat();
    rules.push(("output", rule, "to the node's loopback"));
    let mut rule = Expr::family(true).to_vec();
    rule.push(Expr::destination(true, Reg::FIRST));
    rule.push(Expr::eq(Ipv6Addr::LOCALHOST.octets()));
    rule.push(Expr::Verdict(Verdict::Return));
    rules.insert(0, ("output", rule, "no way from ::1 to a pod"));
    for v6 in [false, true] {
        let (particular, any) = if v6 {
            (ADDRS_V6, PORTS_V6)
        } else {
            (ADDRS_V4, PORTS_V4)
        };
        rules.push((
            PARTICULAR,
            translate(v6, particular.name, true),
            "a given hostIP",
        ));
        rules.push((ANY, translate(v6, any.name, false), "any hostIP"));
    }
    for v6 in [false, true] {
        let mut rule = Expr::family(v6).to_vec();
        rule.push(Expr::destination(v6, Reg::FIRST));
        rule.push(Expr::in_set(
            if v6 { NODE_V6.name } else { NODE_V4.name },
            false,
        ));
        rule.push(Expr::jump(ANY));
        rules.push((PARTICULAR, rule, "the node's own"));
    }
    let to_pods = || Expr::oif_group(GROUP).to_vec();
    for v6 in [false, true] {
        let mut rule = to_pods();
        rule.extend(Expr::family(v6));
        rule.push(Expr::source(v6, Reg::FIRST));
        rule.push(Expr::destination(v6, Reg::slot(slots(v6))));
        rule.push(Expr::in_set(
            if v6 { SELF_V6.name } else { SELF_V4.name },
            false,
        ));
        rule.push(Expr::Masquerade { flags: 0 });
        rules.push(("hairpin", rule, "a pod to itself"));
    }
    let rule = [to_pods(), loopback(12), vec![Expr::Masquerade { flags: 0 }]].concat();
    rules.push(("hairpin", rule, "the node's loopback to a pod"));
    rules
}

/// Registers that an address takes.
fn slots(v6: bool) -> u8 {
    if v6 { 4 } else { 1 }
}

/// IPv4 with a loopback address at this offset.
fn loopback(offset: u32) -> Vec<Expr> {
    let first_byte = Expr::Payload {
        dreg: Reg::FIRST,
        base: PayloadBase::Network,
        offset,
        len: 1,
    };
    let mut rule = Expr::family(false).to_vec();
    rule.extend([first_byte, Expr::eq([LOOPBACK])]);
    rule
}

fn translate(v6: bool, map: &str, by_address: bool) -> Vec<Expr> {
    let mut rule = Expr::family(v6).to_vec();
    let mut slot = 0;
    if by_address {
        rule.push(Expr::destination(v6, Reg::FIRST));
        slot = slots(v6);
    }
    rule.extend([
        Expr::Meta {
            dreg: Reg::slot(slot),
            key: Meta::L4PROTO,
        },
        Expr::destination_port(Reg::slot(slot + 1)),
        Expr::Lookup {
            set: map.to_owned(),
            sreg: Reg::FIRST,
            dreg: Some(Reg::FIRST),
            inverted: false,
        },
        Expr::Nat {
            kind: NatKind::Destination,
            v6,
            addr: Some(Reg::FIRST),
            port: Some(Reg::slot(slots(v6))),
            flags: 0,
        },
    ]);
    rule
}

/// Whether all chains are there and hook in where they should, and all rules are there, and no others in their chains.
pub(super) fn is_intact(socket: &mut Socket) -> Result<bool, Error> {
    let chains = list::chains(socket, &TABLE)?;
    let hooks = |(name, base): &(&str, Option<Base>)| {
        let there = |chain: &list::ChainInfo| chain.name == *name && chain.base == *base;
        chains.iter().any(there)
    };
    if !CHAINS.iter().all(hooks) {
        return Ok(false);
    }
    let mut listed = list::rules(socket, &TABLE, None)?;
    listed.retain(|rule| CHAINS.iter().any(|(name, _)| *name == rule.chain));
    let mut wanted = rules();
    // Chains come in any order, rules of one chain in theirs.
    listed.sort_by(|a, b| a.chain.cmp(&b.chain));
    wanted.sort_by_key(|(chain, ..)| *chain);
    Ok(listed.len() == wanted.len()
        && listed
            .iter()
            .zip(&wanted)
            .all(|(listed, (chain, rule, _))| listed.chain == *chain && listed.does(rule)))
}

/// Makes all of it anew with these elements, in one step. What else is in the table stays.
pub(super) fn rebuild(socket: &mut Socket, entries: &[Entry]) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.add_table(&TABLE);
    let chains = list::chains(socket, &TABLE)?;
    for (name, _) in CHAINS {
        if chains.iter().any(|chain| chain.name == name) {
            transaction.flush_chain(&TABLE, name);
            transaction.delete_chain(&TABLE, name);
        }
    }
    for set in list::sets(socket, &TABLE)? {
        if SETS.iter().any(|ours| ours.name == set.name) {
            transaction.delete_set(&TABLE, &set.name);
        }
    }
    SETS.iter().for_each(|set| transaction.add_set(&TABLE, set));
    for (name, base) in CHAINS {
        match &base {
            Some(base) => transaction.add_base_chain(&TABLE, name, base),
            None => transaction.add_chain(&TABLE, name),
        }
    }
    for (chain, rule, text) in rules() {
        transaction.add_rule(&TABLE, chain, &rule, Some(text));
    }
    for entry in unique(entries) {
        transaction.add_elements(&TABLE, entry.set, [entry.element()]);
    }
    transaction.commit(socket)
}

/// Of those with the same key the first.
fn unique(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    let mut seen = BTreeMap::new();
    for entry in entries {
        seen.entry((entry.set.name, &entry.key)).or_insert(entry);
    }
    seen.into_values()
}

/// What is under an entry's key by now; its data, as far as it has any, is what is there.
pub(super) fn get(socket: &mut Socket, entry: &Entry) -> Result<Option<Entry>, Error> {
    let found = list::element(socket, &TABLE, entry.set, &entry.key)?;
    Ok(found.map(|found| Entry {
        data: value(found.data),
        ..entry.clone()
    }))
}

fn value(data: Option<ElementData>) -> Option<Vec<u8>> {
    match data {
        Some(ElementData::Value(value)) => Some(value),
        _ => None,
    }
}

/// Removes those of these elements that are there and lead where they say.
pub(super) fn remove(socket: &mut Socket, entries: &[Entry]) -> Result<(), Error> {
    loop {
        let mut there = Vec::new();
        for entry in entries {
            there.extend(get(socket, entry)?.filter(|found| found.data == entry.data));
        }
        match exchange(socket, &there, &[]) {
            // Somebody has emptied the table meanwhile.
            Err(e) if e.is(Errno::NOENT) => {}
            other => return other,
        }
    }
}

/// Replaces elements, in one step.
pub(super) fn exchange(socket: &mut Socket, remove: &[Entry], add: &[Entry]) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    for entry in remove {
        transaction.delete_elements(&TABLE, entry.set, [Element::one(&entry.key)]);
    }
    for entry in add {
        transaction.add_elements(&TABLE, entry.set, [entry.element()]);
    }
    transaction.commit(socket)
}

/// Makes the node's own addresses these, by the elements that differ.
pub(super) fn set_node_addresses(socket: &mut Socket, addresses: &[IpAddr]) -> Result<(), Error> {
    let wanted = node_entries(addresses);
    let mut there = Vec::new();
    for listed in list::sets(socket, &TABLE)? {
        let Some(set) = [&NODE_V4, &NODE_V6]
            .into_iter()
            .find(|set| set.name == listed.name)
        else {
            continue;
        };
        let elements = list::elements(socket, &TABLE, &listed)?;
        there.extend(elements.into_iter().map(|element| Entry {
            set,
            key: element.key,
            data: None,
            mapping: None,
        }));
    }
    let missing = |from: &[Entry], what: &[Entry]| -> Vec<Entry> {
        let mut left = what.to_vec();
        left.retain(|entry| !from.contains(entry));
        left
    };
    let (gone, new) = (missing(&wanted, &there), missing(&there, &wanted));
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    exchange(socket, &gone, &new)
}

/// All elements of all sets.
pub(super) fn all(socket: &mut Socket) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for listed in list::sets(socket, &TABLE)? {
        let Some(set) = SETS.iter().find(|set| set.name == listed.name) else {
            continue;
        };
        let elements = list::elements(socket, &TABLE, &listed)?;
        found.extend(elements.into_iter().map(|element| Entry {
            set,
            key: element.key,
            data: value(element.data),
            mapping: None,
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portmap::mapping::Transport;

    fn mapping(host_ip: Option<&str>) -> PortMapping {
        PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Transport::Udp,
            host_ip: host_ip.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn elements_of_a_pod() {
        let both: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (host_ip, addresses, sets) in [
            (
                None,
                &both[..],
                &["hostports4", "hairpin4", "hostports6", "hairpin6"][..],
            ),
            (None, &both[1..], &["hostports6", "hairpin6"]),
            (Some("0.0.0.0"), &both, &["hostports4", "hairpin4"]),
            (Some("::"), &both, &["hostports6", "hairpin6"]),
            (Some("::"), &both[..1], &[]),
            (Some("192.0.2.1"), &both, &["hostaddrs4", "hairpin4"]),
            (Some("2001:db8::1"), &both, &["hostaddrs6", "hairpin6"]),
        ] {
            let entries = entries(&[mapping(host_ip)], addresses);
            let names: Vec<_> = entries.iter().map(|entry| entry.set.name).collect();
            assert_eq!(names, sets, "{host_ip:?}");
            assert!(
                entries
                    .iter()
                    .all(|e| addresses.contains(&e.target().unwrap()))
            );
            assert!(
                entries
                    .iter()
                    .all(|e| e.key.len() as u32 == e.set.key_len())
            );
        }
        let [entry, _] = &entries(&[mapping(Some("192.0.2.1"))], &both)[..] else {
            panic!("one mapping, one pair");
        };
        assert_eq!(entry.key, [192, 0, 2, 1, 17, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(entry.data.as_deref(), Some(&[10, 0, 0, 2, 0, 80, 0, 0][..]));
    }
}
