//! System calls for which rustix has no safe function: the netlink socket options, a filter, the namespace
//! cookie and `unshare`. The only file of this crate with `unsafe` in it.
#![allow(unsafe_code, reason = "system calls that rustix does not offer")]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

const SOL_SOCKET: c_int = 1;
const SO_ATTACH_FILTER: c_int = 26;
const SO_NETNS_COOKIE: c_int = 71;
const SOL_NETLINK: c_int = 270;

/// Options at level `SOL_NETLINK` (`linux/netlink.h`).
#[derive(Debug, Clone, Copy)]
pub(crate) enum NetlinkOption {
    AddMembership = 1,
    DropMembership = 2,
    CapAck = 10,
    ExtAck = 11,
    StrictCheck = 12,
}

unsafe extern "C" {
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: u32) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut u32)
    -> c_int;
}

/// Sets a netlink option; fails with `ENOPROTOOPT` where the kernel does not know it.
pub(crate) fn set_netlink(fd: impl AsFd, option: NetlinkOption, value: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the borrow lives; the pointer is to four bytes
    // that outlive the call, and their length is given.
    let result = unsafe {
        setsockopt(
            fd.as_fd().as_raw_fd(),
            SOL_NETLINK,
            option as c_int,
            (&raw const value).cast(),
            size_of::<u32>() as u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct sock_filter` (`linux/filter.h`).
#[repr(C)]
struct FilterStep {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct FilterProgram {
    len: u16,
    steps: *const FilterStep,
}

/// Lets the kernel drop datagrams whose first message has this `nlmsg_pid`, before they take
/// room in the receive buffer.
pub(crate) fn drop_from_port(fd: impl AsFd, port: u32) -> io::Result<()> {
    // Classic BPF loads in network order what netlink writes in the host's.
    let value = u32::from_be_bytes(port.to_ne_bytes());
    let step = |code, jump_true, jump_false, k| FilterStep {
        code,
        jump_true,
        jump_false,
        k,
    };
    let steps = [
        step(0x20, 0, 0, 12),       // ld [12]: nlmsg_pid
        step(0x15, 0, 1, value),    // jeq
        step(0x06, 0, 0, 0),        // ret 0: drop
        step(0x06, 0, 0, u32::MAX), // ret all
    ];
    let program = FilterProgram {
        len: steps.len() as u16,
        steps: steps.as_ptr(),
    };
    // SAFETY: the descriptor is open for as long as the borrow lives; the program and the steps
    // that it points to outlive the call, which copies them, and both lengths are given.
    let result = unsafe {
        setsockopt(
            fd.as_fd().as_raw_fd(),
            SOL_SOCKET,
            SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<FilterProgram>() as u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The number of the network namespace of a socket, never used twice until reboot (Linux 5.14).
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as u32;
    // SAFETY: the descriptor is open for as long as the borrow lives; both pointers are to locals
    // that outlive the call, and `len` is the size of the value.
    let result = unsafe {
        getsockopt(
            socket.as_fd().as_raw_fd(),
            SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves the calling thread into a new, empty network namespace.
pub(crate) fn unshare_network() -> rustix::io::Result<()> {
    // SAFETY: CLONE_NEWNET alone changes neither the descriptor table nor memory, which is what
    // makes unshare unsafe; only later socket and procfs look-ups of this thread are affected.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
}
