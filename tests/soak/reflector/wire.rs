//! Prefixes of the reflector's world by number, and the bytes that speakers send.

use super::*;

pub(super) fn prefix(index: usize) -> (u32, u8) {
    let n = index as u32;
    let base = |a, b| u32::from(Ipv4Addr::new(a, b, 0, 0));
    if index < PREFIXES {
        (base(100, 64) + (n << 8), 24)
    } else if index < PREFIXES + NETWORKS {
        (base(10, 9) + ((n - PREFIXES as u32) << 8), 24)
    } else {
        (
            base(10, 200) + ((n - (PREFIXES + NETWORKS) as u32) << 8),
            24,
        )
    }
}

pub(super) fn index((address, length): (u32, u8)) -> Option<usize> {
    let [a, b, c, d] = address.to_be_bytes();
    let n = match (a, b) {
        (100, 64..=127) => (usize::from(b - 64) << 8) + usize::from(c),
        (10, 9) => PREFIXES + usize::from(c),
        (10, 200) => PREFIXES + NETWORKS + usize::from(c),
        _ => return None,
    };
    (length == 24 && d == 0 && n < ALL && prefix(n).0 == address).then_some(n)
}

pub(super) fn shown(index: usize) -> String {
    let (address, length) = prefix(index);
    format!("{}/{length}", Ipv4Addr::from(address))
}

pub(super) fn network(p: usize) -> Result<IpNet> {
    Ok(shown(p).parse()?)
}

pub(super) fn configure(
    objects: &Objects,
    hold: Duration,
    networks: &BTreeSet<usize>,
    version: usize,
) -> Result<()> {
    let networks: Vec<String> = networks.iter().map(|p| shown(*p)).collect();
    let spec = json!({
        "asn": ASN,
        "routerId": ADDRESS,
        "nodeMesh": {"mode": "off"},
        "routeReflector": {"clusterId": ADDRESS},
        "maximumPaths": 1 + version % 16,
        "networks": networks,
        "timers": {"hold": format!("{}s", hold.as_secs()), "sendHold": format!("{}s", 2 * hold.as_secs())},
        "gracefulRestart": {
            "restartTime": limits::RESTART,
            "stalePathTime": limits::STALE_PATH,
            "longLived": {"staleTime": format!("{}s", limits::LONG_LIVED)},
        },
    });
    objects.write(
        "configuration",
        &cluster::object("BGPConfiguration", "default", spec),
    )
}

/// ORIGIN IGP, no AS_PATH, the speaker as next hop, and this LOCAL_PREF.
pub(super) fn attributes(next_hop: Ipv4Addr, preference: u32) -> Vec<u8> {
    let mut attributes = fleet::attributes(&[], next_hop, false, &[]);
    attributes.extend([0x40, 5, 4]);
    attributes.extend(preference.to_be_bytes());
    attributes
}

pub(super) fn end_of_rib() -> Bytes {
    fleet::message(2, &[0, 0, 0, 0])
}

/// The LOCAL_PREF among path attributes.
pub(super) fn local_preference(mut attributes: &[u8]) -> Option<u32> {
    while let [flags, code, rest @ ..] = attributes {
        let (length, rest) = match (flags & 0x10 != 0, rest) {
            (false, [length, rest @ ..]) => (usize::from(*length), rest),
            (true, [high, low, rest @ ..]) => {
                (usize::from(u16::from_be_bytes([*high, *low])), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        if *code == 5 {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = rest;
    }
    None
}
