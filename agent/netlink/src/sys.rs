//! System calls for which rustix has no safe function: the netlink socket options, a filter, the namespace
//! cookie, `unshare`, and a child process that sends one message. The only file of this crate with `unsafe` in it.
#![allow(unsafe_code, reason = "system calls that rustix does not offer")]

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const SOL_SOCKET: c_int = 1;
const SO_ATTACH_FILTER: c_int = 26;
const SO_NETNS_COOKIE: c_int = 71;
const SOL_NETLINK: c_int = 270;
const MSG_DONTWAIT: c_int = 0x40;
/// The same number on all architectures (Linux 5.9).
const SYS_CLOSE_RANGE: c_long = 436;

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
    fn fork() -> c_int;
    fn _exit(status: c_int) -> !;
    fn syscall(number: c_long, ...) -> c_long;
    fn send(fd: c_int, bytes: *const c_void, len: usize, flags: c_int) -> isize;
    fn recv(fd: c_int, bytes: *mut c_void, len: usize, flags: c_int) -> isize;
    fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize;
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

/// Starts a child process that sends `message`, which asks for an acknowledgement, over the netlink socket and ends when
/// the kernel has done what it says. If the kernel refuses it, the child writes the error number, four bytes, to
/// `report`. The child keeps no other descriptor open than these two and `kept`.
pub(crate) fn send_in_child(
    socket: BorrowedFd<'_>,
    message: &[u8],
    report: BorrowedFd<'_>,
    kept: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let (socket, report) = (socket.as_raw_fd(), report.as_raw_fd());
    // In ascending order: what lies between is closed.
    let mut open = [socket, report, kept.map_or(report, |fd| fd.as_raw_fd())];
    open.sort_unstable();
    // SAFETY: the child runs on a copy of this thread's memory, in which a lock of the allocator may be held by a thread
    // that does not exist there. It calls nothing but `child`, which makes system calls on locals and on descriptors
    // that it has inherited, allocates nothing, and does not return.
    match unsafe { fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => child(socket, message, report, open),
        _ => Ok(()),
    }
}

/// What the child of [`send_in_child`] does.
fn child(socket: c_int, message: &[u8], report: c_int, open: [c_int; 3]) -> ! {
    // `struct nlmsghdr`, then the error number.
    const ERROR_AT: usize = 16;
    let mut answer = [0u8; 256];
    let mut begin: c_uint = 0;
    // SAFETY: descriptors are closed that nothing in this process uses any more; the others were open in the parent when
    // it forked. All pointers are to locals that outlive the calls, with their lengths. `_exit` runs no destructor.
    unsafe {
        let mut closed = 0;
        for kept in open {
            let kept = kept as c_uint;
            if begin < kept {
                closed |= syscall(SYS_CLOSE_RANGE, begin, kept - 1, 0 as c_uint);
            }
            begin = kept + 1;
        }
        closed |= syscall(SYS_CLOSE_RANGE, begin, c_uint::MAX, 0 as c_uint);
        // Whoever waits for the end of the caller's output must not wait for this process: then the caller does it.
        if closed == 0 && send(socket, message.as_ptr().cast(), message.len(), 0) >= 0 {
            let length = recv(
                socket,
                answer.as_mut_ptr().cast(),
                answer.len(),
                MSG_DONTWAIT,
            );
            let code = match answer.get(ERROR_AT..ERROR_AT + 4) {
                Some(&[a, b, c, d]) if length >= (ERROR_AT + 4) as isize => {
                    i32::from_ne_bytes([a, b, c, d])
                }
                _ => 0,
            };
            if code < 0 {
                let errno = code.wrapping_neg().to_ne_bytes();
                write(report, errno.as_ptr().cast(), errno.len());
            }
        }
        _exit(0)
    }
}
