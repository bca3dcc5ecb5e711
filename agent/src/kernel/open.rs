//! Pod interfaces that wait for us, and the removal of everything that we ever put into the kernel.

use std::net::IpAddr;

use selvage_netlink::{
    Error, Protocol, Socket, link, nexthop,
    nft::{self, Transaction, list},
    open_interface, route,
};

use super::{
    POD_LINK_GROUP, PROTOCOL_BGP, PROTOCOL_POD, masquerade,
    routes::fib::{FIRST_HOP_ID, LAST_ID},
};

/// Our tables, family inet: the agent's for policy, the plugin's, the agent's for masquerading.
pub const TABLES: [&str; 3] = ["selvage", "selvage-cni", masquerade::TABLE];

/// Raises a pod's interface and routes its addresses to it: for `policy: optional`, once the
/// pod's rules are in the kernel. Repeating it changes nothing. In the calling thread's namespace.
pub fn open(index: u32, addresses: &[IpAddr]) -> Result<(), Error> {
    open_interface(&mut Socket::open(Protocol::Route)?, index, addresses)
}

/// What a cleanup removed, or would.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Routes of both our protocols, in any table.
    pub routes: usize,
    /// Nexthop objects and groups in our range of ids.
    pub nexthops: usize,
    /// Tables of nf_tables.
    pub tables: Vec<String>,
    /// Pod interfaces, by name.
    pub links: Vec<String>,
}

impl Removed {
    /// Whether there was nothing of ours.
    pub fn is_nothing(&self) -> bool {
        *self == Removed::default()
    }
}

/// Removes what carries our mark from the calling thread's network namespace: routes, nexthop
/// objects, tables and, with `interfaces`, the pods' interfaces. Without, pods that are there
/// keep their network: interface, routes, and the plugin's table. What is gone already is no
/// error; a second call finds nothing. The agent must not be running.
pub fn cleanup(interfaces: bool) -> Result<Removed, Error> {
    let mut socket = Socket::open(Protocol::Route)?;
    let keep = !interfaces && !pod_links(&mut socket)?.is_empty();
    let (tables, protocols) = match keep {
        true => (&TABLES[..1], &[PROTOCOL_BGP][..]),
        false => (&TABLES[..], &[PROTOCOL_BGP, PROTOCOL_POD][..]),
    };
    let mut removed = Removed {
        tables: remove_tables(tables)?,
        routes: remove_routes(&mut socket, protocols)?,
        nexthops: remove_nexthops(&mut socket)?,
        links: Vec::new(),
    };
    if interfaces {
        removed.links = remove_links(&mut socket)?;
    }
    Ok(removed)
}

/// Names of the pods' interfaces in the calling thread's network namespace.
pub fn pod_interfaces() -> Result<Vec<String>, Error> {
    let links = pod_links(&mut Socket::open(Protocol::Route)?)?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

fn pod_links(socket: &mut Socket) -> Result<Vec<link::Link>, Error> {
    Ok(link::list(socket)?
        .into_iter()
        .filter(is_pod_link)
        .collect())
}

fn is_pod_link(link: &link::Link) -> bool {
    link.group == POD_LINK_GROUP && link.kind == "veth"
}

/// A pod's interface, or the one that its packets wait at where its bandwidth is limited.
fn is_ours(link: &link::Link) -> bool {
    is_pod_link(link) || link.group == POD_LINK_GROUP && link.kind == "ifb"
}

fn remove_tables(names: &[&str]) -> Result<Vec<String>, Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let ours = |table: &list::TableInfo| {
        table.family == nft::Family::Inet as u8 && names.contains(&table.name.as_str())
    };
    // A kernel without nf_tables has none of our tables.
    let there = list::tables(&mut socket).unwrap_or_default();
    let names: Vec<String> = there
        .into_iter()
        .filter(ours)
        .map(|table| table.name)
        .collect();
    let mut transaction = Transaction::new();
    for name in &names {
        let table = nft::Table::inet(name);
        // Made first, so that it is no error if it went in between.
        transaction.add_table(&table);
        transaction.delete_table(&table);
    }
    transaction.commit(&mut socket)?;
    Ok(names)
}

fn remove_routes(socket: &mut Socket, protocols: &[u8]) -> Result<usize, Error> {
    let mut count = 0;
    for protocol in protocols.iter().copied() {
        for v6 in [false, true] {
            let ours = route::Filter {
                protocol: Some(protocol),
                ..route::Filter::default()
            };
            let routes = route::list(socket, v6, &ours)?;
            count += routes.len();
            let report = socket.report(|batch| {
                for route in &routes {
                    let (prefix, table, metric) = (route.prefix, route.table, route.metric);
                    route::delete_any_target(batch, prefix, table, metric, protocol);
                }
            })?;
            report.ignoring(rustix::io::Errno::SRCH)?;
        }
    }
    Ok(count)
}

fn remove_nexthops(socket: &mut Socket) -> Result<usize, Error> {
    let objects = match nexthop::list(socket) {
        Err(error) if error.is(rustix::io::Errno::OPNOTSUPP) => return Ok(0),
        other => other?,
    };
    let ours = |object: &nexthop::Nexthop| {
        object.protocol == PROTOCOL_BGP && (FIRST_HOP_ID..=LAST_ID).contains(&object.id)
    };
    let mut ids: Vec<u32> = objects.iter().filter(|o| ours(o)).map(|o| o.id).collect();
    // Groups first, so that none is emptied by its members.
    ids.sort_unstable_by(|a, b| b.cmp(a));
    let report = socket.report(|batch| ids.iter().for_each(|id| nexthop::delete(batch, *id)))?;
    report.ignoring(rustix::io::Errno::NOENT)?;
    Ok(ids.len())
}

fn remove_links(socket: &mut Socket) -> Result<Vec<String>, Error> {
    let all = link::list(socket)?;
    let links: Vec<_> = all.iter().filter(|link| is_ours(link)).collect();
    // One after the other waits for the network's grace period each time; by group it is one wait.
    // Another kind of link in the group would go, too, so the group is used only if it is all ours.
    let only_ours = all
        .iter()
        .filter(|link| link.group == POD_LINK_GROUP)
        .all(is_ours);
    let report = match only_ours && !links.is_empty() {
        true => socket.report(|batch| link::delete_group(batch, POD_LINK_GROUP))?,
        false => socket.report(|batch| links.iter().for_each(|l| link::delete(batch, l.index)))?,
    };
    report.ignoring(rustix::io::Errno::NODEV)?;
    Ok(links.into_iter().map(|link| link.name.clone()).collect())
}
