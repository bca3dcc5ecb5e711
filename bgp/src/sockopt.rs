//! Socket options that no library offers: TCP-MD5 (RFC 2385), minimum TTL (RFC 5082), and the limit on open files.
//! The only `unsafe` of this crate.
#![allow(
    unsafe_code,
    reason = "setsockopt with structures that no library defines"
)]

use std::{
    io, mem,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use selvage_bgp_core::{config::Password, prefix::Prefix};

/// `TCP_MD5SIG_EXT` (linux/tcp.h): a key for a prefix of addresses.
const TCP_MD5SIG_EXT: libc::c_int = 32;
/// `TCP_MD5SIG_FLAG_PREFIX` (linux/tcp.h).
const FLAG_PREFIX: u8 = 1;
/// `IPV6_MINHOPCOUNT` (linux/in6.h).
const IPV6_MINHOPCOUNT: libc::c_int = 73;
/// `IP_MINTTL` (linux/in.h).
const IP_MINTTL: libc::c_int = 21;

/// `struct tcp_md5sig` (linux/tcp.h).
#[repr(C)]
struct TcpMd5Sig {
    addr: libc::sockaddr_storage,
    flags: u8,
    prefixlen: u8,
    keylen: u16,
    ifindex: libc::c_int,
    key: [u8; 80],
}

/// Sets (or, with `None`, removes) the key for all peers inside `peers` on a listening or not yet connected socket.
///
/// Errors: `ENOENT` when removing what is not there, `ENOMEM` past the kernel's limit on option memory
/// (`net.core.optmem_max`; under a thousand keys on one listener), `ENOPROTOOPT` where the kernel lacks TCP-MD5.
pub fn set_md5(socket: &impl AsFd, peers: Prefix, password: Option<&Password>) -> io::Result<()> {
    // SAFETY: the structure is plain data; all zeroes is a valid value of it.
    let mut sig: TcpMd5Sig = unsafe { mem::zeroed() };
    put_address(&mut sig.addr, peers.addr());
    let host = if matches!(peers, Prefix::V4 { .. }) {
        32
    } else {
        128
    };
    let option = if peers.len() == host {
        libc::TCP_MD5SIG
    } else {
        sig.flags = FLAG_PREFIX;
        sig.prefixlen = peers.len();
        TCP_MD5SIG_EXT
    };
    if let Some(password) = password {
        let key = password.expose();
        sig.key[..key.len()].copy_from_slice(key);
        sig.keylen = key.len() as u16;
    }
    set(socket, libc::IPPROTO_TCP, option, &sig)
}

fn put_address(to: &mut libc::sockaddr_storage, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => {
            // SAFETY: sockaddr_storage is large and aligned enough for every address structure, and both are plain data.
            let sin = unsafe { &mut *std::ptr::from_mut(to).cast::<libc::sockaddr_in>() };
            sin.sin_family = libc::AF_INET as libc::sa_family_t;
            sin.sin_addr.s_addr = u32::from(a).to_be();
        }
        IpAddr::V6(a) => {
            // SAFETY: as above.
            let sin6 = unsafe { &mut *std::ptr::from_mut(to).cast::<libc::sockaddr_in6>() };
            sin6.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            sin6.sin6_addr.s6_addr = a.octets();
        }
    }
}

/// Drops what arrives with a smaller TTL or hop limit (GTSM).
pub fn set_min_ttl(socket: &impl AsFd, ipv6: bool, min: u8) -> io::Result<()> {
    let value = libc::c_int::from(min);
    if ipv6 {
        set(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &value)
    } else {
        set(socket, libc::IPPROTO_IP, IP_MINTTL, &value)
    }
}

fn set<T>(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one live value; the kernel only reads it.
    let r = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if r == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the soft limit on open files to the hard one: a reflector holds thousands of connections.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it may not be raised, accept will say so when it matters.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
