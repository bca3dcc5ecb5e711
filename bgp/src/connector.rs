//! Outgoing connections, and the options that incoming ones get as well.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use mio::net::TcpStream;
use selvage_bgp_core::{config::PeerConfig, prefix::Prefix};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::sockopt;

/// Starts to connect; the kernel says when it is done. An error comes at once if no attempt is possible.
pub(crate) fn connect(config: &PeerConfig, external: bool) -> io::Result<TcpStream> {
    let to = address(config, config.port);
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if let Some(password) = &config.password {
        sockopt::set_md5(&socket, Prefix::host(config.key.addr), Some(password))?;
    }
    set_ttl(&SockRef::from(&socket), config, external)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = config.local_address {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Gives an accepted connection what a connection of this peer needs.
pub(crate) fn adopt(stream: &TcpStream, config: &PeerConfig, external: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_ttl(&SockRef::from(stream), config, external)
}

fn address(config: &PeerConfig, port: u16) -> SocketAddr {
    match (config.key.addr, config.key.scope) {
        (IpAddr::V6(a), Some(scope)) => SocketAddrV6::new(a, port, 0, scope.0).into(),
        (addr, _) => SocketAddr::new(addr, port),
    }
}

/// External neighbours are one hop away unless told otherwise; with GTSM both send 255 and check it.
fn set_ttl(socket: &SockRef<'_>, config: &PeerConfig, external: bool) -> io::Result<()> {
    let ipv6 = config.key.addr.is_ipv6();
    let (ttl, min) = match (config.ttl_security, config.multihop) {
        (Some(hops), _) => (255, Some(255 - hops.saturating_sub(1))),
        (None, Some(hops)) => (hops, None),
        (None, None) if external => (1, None),
        (None, None) => return Ok(()),
    };
    if ipv6 {
        socket.set_unicast_hops_v6(ttl.into())?;
    } else {
        socket.set_ttl_v4(ttl.into())?;
    }
    min.map_or(Ok(()), |min| sockopt::set_min_ttl(&**socket, ipv6, min))
}
