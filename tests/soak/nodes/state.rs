//! What a node really has: routes in its kernel, attachments and leases on its disk.

use super::*;

pub(super) fn same(
    what: &str,
    found: &BTreeMap<IpNet, String>,
    wanted: &BTreeMap<IpNet, String>,
) -> Result<()> {
    let mut lines = Vec::new();
    for (prefix, way) in wanted {
        match found.get(prefix) {
            Some(found) if found == way => {}
            found => lines.push(format!("{prefix} by {found:?}, wanted {way}")),
        }
    }
    let left = found.keys().filter(|prefix| !wanted.contains_key(prefix));
    lines.extend(left.map(|prefix| format!("{prefix} is left over")));
    ensure!(lines.is_empty(), "{what}: {}", lines.join("; "));
    Ok(())
}

pub(super) fn addresses(link: &Link) -> Vec<IpAddr> {
    link.addresses().iter().map(IpNet::addr).collect()
}

pub(super) fn gateway(link: &Link, prefix: &IpNet) -> Result<String> {
    let address = match prefix {
        IpNet::V4(_) => link.ipv4()?,
        IpNet::V6(_) => link.ipv6()?,
    };
    Ok(address.to_string())
}

/// Prefixes that the router originates, one of each family.
pub(super) fn outside(n: usize) -> Result<[IpNet; 2]> {
    Ok([
        format!("10.99.{n}.0/24").parse()?,
        format!("fd99:{n:x}::/48").parse()?,
    ])
}

/// The routes of BGP in a node's kernel, each with its gateways.
pub(super) fn routes(netns: &Netns) -> Result<BTreeMap<IpNet, String>> {
    let mut socket = netns.rtnetlink()?;
    let filter = Filter {
        protocol: Some(PROTOCOL),
        ..Filter::default()
    };
    let hops: BTreeMap<u32, nexthop::Kind> = nexthop::list(&mut socket)?
        .into_iter()
        .map(|hop| (hop.id, hop.kind))
        .collect();
    let mut found = BTreeMap::new();
    for v6 in [false, true] {
        for route in route::list(&mut socket, v6, &filter)? {
            let prefix = IpNet::new(route.prefix.addr, route.prefix.len)?;
            let way = match route.target {
                Target::Nothing => "nowhere".to_owned(),
                Target::Nexthop(id) => gateways(&hops, id),
                other => format!("{other:?}"),
            };
            found.insert(prefix, way);
        }
    }
    Ok(found)
}

pub(super) fn gateways(hops: &BTreeMap<u32, nexthop::Kind>, id: u32) -> String {
    match hops.get(&id) {
        Some(nexthop::Kind::Group(members)) => {
            let members = members.iter();
            let mut all: Vec<String> = members.map(|m| gateways(hops, m.id)).collect();
            all.sort();
            all.join(" ")
        }
        Some(nexthop::Kind::Hop(hop)) => hop.gateway.map(|g| g.to_string()).unwrap_or_default(),
        other => format!("{other:?}"),
    }
}

/// Addresses of the attachments that the plugin has written.
pub(super) fn attached(state: &Path) -> Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for path in files(&state.join("attachments"))? {
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let attachment: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        for address in attachment["addresses"].as_array().into_iter().flatten() {
            let text = address.as_str().unwrap_or_default();
            found.insert(text.parse().with_context(|| attachment.to_string())?);
        }
    }
    Ok(found)
}

/// Addresses with a lease, as host-local lays them out.
pub(super) fn leases(state: &Path) -> Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for path in files(&state.join("leases/selvage"))? {
        let name = path.file_name().and_then(|name| name.to_str());
        found.extend(name.and_then(|name| name.replace('_', ":").parse::<IpAddr>().ok()));
    }
    Ok(found)
}

pub(super) fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect()),
        // Before the first pod.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| directory.display().to_string()),
    }
}

pub(super) fn pod(name: &str, namespace: &str, node: &str, app: &str) -> Result<Pod> {
    let text = format!(
        "networks: [{{name: rack, cidrs: [172.29.0.0/16]}}]\nnodes: [{{name: {node}, networks: [rack]}}]\n\
         pods: [{{name: {name}, namespace: {namespace}, node: {node}, labels: {{app: {app}}}, ports: [80, 81]}}]\n"
    );
    let topology = Topology::parse(&text, Path::new("pod"))?;
    topology.pods.into_iter().next().context("no pod")
}
