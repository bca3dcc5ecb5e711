//! Listening sockets: a long accept queue, both families apart, keys for those who must have one.

use std::{io, net::SocketAddr};

use mio::net::TcpListener;
use selvage_bgp_core::{
    config::{Password, SpeakerConfig},
    ids::Family,
    prefix::Prefix,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sockopt;

/// Connections that may wait to be accepted: a whole cluster may come at once.
const BACKLOG: i32 = 4096;

/// Opens a listening socket, not blocking.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// The keys that a listener of one family must hold: for each neighbour, and for each range as a whole.
pub(crate) fn keys(config: &SpeakerConfig, family: Family) -> Vec<(Prefix, Password)> {
    let peers = config
        .peers
        .iter()
        .filter_map(|p| Some((Prefix::host(p.key.addr), p.password.clone()?)));
    let ranges = config.ranges.iter().filter_map(|range| {
        let password = range.template.password.clone()?;
        let holes = without_password(config, &range.prefix);
        Some((outside(range.prefix, &holes), password))
    });
    let ranges = ranges.flat_map(|(parts, password)| {
        let with_key = move |part| (part, password.clone());
        parts.into_iter().map(with_key)
    });
    peers
        .chain(ranges)
        .filter(|(prefix, _)| prefix.family() == family)
        .collect()
}

/// Who inside a range has no password: neighbours with an address of their own, and longer ranges. The kernel knows no
/// exception from the key of a prefix, so that the prefix must not hold them.
fn without_password(config: &SpeakerConfig, range: &Prefix) -> Vec<Prefix> {
    let peers = config
        .peers
        .iter()
        .filter(|p| p.password.is_none())
        .map(|p| Prefix::host(p.key.addr));
    let ranges = config
        .ranges
        .iter()
        .filter(|r| r.template.password.is_none() && r.prefix.len() > range.len())
        .map(|r| r.prefix);
    let inside = |hole: &Prefix| range.covers(hole);
    peers.chain(ranges).filter(inside).collect()
}

/// The fewest prefixes that together hold all of `prefix` but the holes.
fn outside(prefix: Prefix, holes: &[Prefix]) -> Vec<Prefix> {
    let mut parts = Vec::new();
    let mut rest = vec![(prefix, holes.to_vec())];
    while let Some((part, holes)) = rest.pop() {
        if holes.is_empty() {
            parts.push(part);
        } else if !holes.iter().any(|hole| hole.covers(&part)) {
            for half in part.halves().into_iter().flatten() {
                let inside = holes.iter().filter(|hole| half.covers(hole));
                rest.push((half, inside.copied().collect()));
            }
        }
    }
    parts
}

/// Makes a listener hold exactly the keys `new`, given that it holds `old`. Returns what the kernel refused.
pub(crate) fn set_keys(
    listener: &TcpListener,
    old: &[(Prefix, Password)],
    new: &[(Prefix, Password)],
) -> Vec<(Prefix, io::Error)> {
    let mut refused = Vec::new();
    // New ones first: nobody who needs a key is without one in between.
    for (prefix, key) in new.iter().filter(|n| !old.contains(n)) {
        refused.extend(
            sockopt::set_md5(listener, *prefix, Some(key))
                .err()
                .map(|e| (*prefix, e)),
        );
    }
    for (prefix, _) in old.iter().filter(|(p, _)| !new.iter().any(|(n, _)| n == p)) {
        refused.extend(
            sockopt::set_md5(listener, *prefix, None)
                .err()
                .map(|e| (*prefix, e)),
        );
    }
    refused
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use selvage_bgp_core::{
        config::{PeerAsn, PeerConfig, RangeConfig},
        ids::{Asn, PeerKey, RouterId},
    };

    use super::*;

    fn peer(addr: &str, password: Option<&str>) -> Arc<PeerConfig> {
        let key = PeerKey::from(addr.parse::<std::net::IpAddr>().unwrap());
        let mut config = PeerConfig::new(key, PeerAsn::Internal);
        config.password = password.and_then(|p| Password::new(p.as_bytes()));
        Arc::new(config)
    }

    fn range(prefix: &str, password: Option<&str>) -> RangeConfig {
        RangeConfig {
            prefix: prefix.parse().unwrap(),
            template: peer("0.0.0.0", password),
        }
    }

    /// The key of the longest prefix that holds an address, as the kernel finds it.
    fn key_of(keys: &[(Prefix, Password)], addr: &str) -> Option<String> {
        let holding = keys
            .iter()
            .filter(|(p, _)| p.contains(addr.parse().unwrap()));
        let (_, key) = holding.max_by_key(|(p, _)| p.len())?;
        Some(String::from_utf8(key.expose().to_vec()).unwrap())
    }

    #[test]
    fn who_has_no_password_gets_none_of_the_range_around_it() {
        let mut config = SpeakerConfig::new(Asn(64512), RouterId(1));
        config.peers = vec![
            peer("10.0.0.7", None),
            peer("10.0.0.8", Some("own")),
            peer("10.3.0.9", None),
            peer("fd00::7", None),
        ];
        config.ranges = vec![
            range("10.0.0.0/8", Some("wide")),
            range("10.2.0.0/16", None),
            range("10.3.0.0/16", Some("narrow")),
            range("fd00::/64", Some("six")),
        ];
        let v4 = keys(&config, Family::Ipv4);
        for (addr, key) in [
            ("10.0.0.6", Some("wide")),
            ("10.0.0.7", None),
            ("10.0.0.8", Some("own")),
            ("10.2.1.1", None),
            ("10.3.0.8", Some("narrow")),
            ("10.3.0.9", None),
            ("10.255.255.255", Some("wide")),
            ("11.0.0.1", None),
        ] {
            assert_eq!(key_of(&v4, addr).as_deref(), key, "{addr}");
        }
        assert!(v4.len() < 64, "{}", v4.len());
        let v6 = keys(&config, Family::Ipv6);
        assert_eq!(key_of(&v6, "fd00::6").as_deref(), Some("six"));
        assert_eq!(key_of(&v6, "fd00::7"), None);
    }
}
