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
    let ranges = config
        .ranges
        .iter()
        .filter_map(|r| Some((r.prefix, r.template.password.clone()?)));
    peers
        .chain(ranges)
        .filter(|(prefix, _)| prefix.family() == family)
        .collect()
}

/// Makes a listener hold exactly the keys `new`, given that it holds `old`. Returns what the kernel refused.
pub(crate) fn set_keys(
    listener: &TcpListener,
    old: &[(Prefix, Password)],
    new: &[(Prefix, Password)],
) -> Vec<(Prefix, io::Error)> {
    let mut refused = Vec::new();
    for (prefix, _) in old.iter().filter(|(p, _)| !new.iter().any(|(n, _)| n == p)) {
        refused.extend(
            sockopt::set_md5(listener, *prefix, None)
                .err()
                .map(|e| (*prefix, e)),
        );
    }
    for (prefix, key) in new.iter().filter(|n| !old.contains(n)) {
        refused.extend(
            sockopt::set_md5(listener, *prefix, Some(key))
                .err()
                .map(|e| (*prefix, e)),
        );
    }
    refused
}
