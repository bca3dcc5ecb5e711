//! Deletion of links without the wait for the kernel's clean-up.
//!
//! The kernel deletes a link in two parts, both inside `sendmsg`. In the first part, under its lock of links, it takes
//! the link down, removes its routes and addresses, takes it out of all listings and tells `RTM_DELLINK`: from then on
//! the link, and a veth's other end, are gone for everybody. In the second part it waits until no processor can hold a
//! reference (`rcu_barrier` in `netdev_run_todo`), which takes several times as long and is nobody's concern.
//!
//! So a child process sends the message, and the caller returns at the notification. The message is one system call:
//! neither the end of the caller nor that of the child stops half way what the kernel has begun. If the child ends
//! before it has sent the message, the caller sends the message itself.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::link;
use crate::monitor::{Group, Monitor, RouteEvent};
use crate::socket::{Protocol, Socket};
use crate::sys;

/// Notifications that are read between two looks at the children.
const READ_AT_ONCE: usize = 64;

/// A link whose deletion a child process has been given.
struct Departing {
    index: u32,
    /// The reading end of a pipe: four bytes of error number if the kernel refused the message, then the end of file
    /// when the child is gone.
    outcome: OwnedFd,
}

/// Deletes the links `indexes` of the calling thread's namespace, all at the same time, and returns when none of them is
/// there any more. A link that is gone already is no error; a veth's other end goes with it.
///
/// The children hold `kept` open until the kernel has finished, so that closing it costs the caller no wait: the
/// last one to close a socket of nf_tables waits until the kernel has freed what was deleted by any such socket.
///
/// A child is left behind: it ends by itself, after some milliseconds, with no descriptor of the caller's open but
/// `kept`, and is waited for by whoever adopts the orphans of the caller.
pub fn delete_links(indexes: &[u32], kept: Option<BorrowedFd<'_>>) -> Result<()> {
    // Subscribed before the first message is sent, so that no notification is missed.
    let mut monitor = Monitor::open(&[Group::Link])?;
    let mut departing = Vec::with_capacity(indexes.len());
    for &index in indexes {
        match hand_over(index, kept) {
            Ok(outcome) => departing.push(Departing { index, outcome }),
            // No process could be made.
            Err(_) => delete_here(index)?,
        }
    }
    while !departing.is_empty() {
        wait(&monitor, &departing)?;
        let mut lost = false;
        let read = monitor.receive(READ_AT_ONCE, |event, _| match event {
            RouteEvent::LinkGone(gone) => departing.retain(|link| link.index != gone.index),
            RouteEvent::Overrun => lost = true,
            _ => {}
        })?;
        if lost {
            let mut socket = Socket::open(Protocol::Route)?;
            departing.retain(|link| link::get(&mut socket, link.index).is_ok());
        }
        if read == READ_AT_ONCE {
            continue;
        }
        // A child that ends has caused its notification before.
        let mut ended = Vec::new();
        for (at, link) in departing.iter().enumerate() {
            if let Some(errno) = outcome(&link.outcome)? {
                ended.push((at, link.index, errno));
            }
        }
        for (at, index, errno) in ended.into_iter().rev() {
            departing.remove(at);
            match errno {
                None => delete_here(index)?,
                Some(errno) if errno == Errno::NODEV => {}
                Some(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// Starts a child that deletes the link `index`; the reading end of the pipe to it.
fn hand_over(index: u32, kept: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let socket = Socket::open(Protocol::Route)?;
    let (outcome, report) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut batch = Batch::new();
    link::delete(&mut batch, index);
    batch.number(1);
    batch.set_ack(0, true);
    sys::send_in_child(socket.as_fd(), batch.as_bytes(), report.as_fd(), kept)?;
    Ok(outcome)
}

/// Deletes the link in this process, whatever it takes.
fn delete_here(index: u32) -> Result<()> {
    let mut socket = Socket::open(Protocol::Route)?;
    match socket.apply(|batch| link::delete(batch, index)) {
        Err(error) if error.is(Errno::NODEV) => Ok(()),
        other => other,
    }
}

/// Waits until there is a notification, or something to be learned of a child.
fn wait(monitor: &Monitor, departing: &[Departing]) -> Result<()> {
    let mut fds = vec![PollFd::new(monitor, PollFlags::IN)];
    fds.extend(
        departing
            .iter()
            .map(|link| PollFd::new(&link.outcome, PollFlags::IN)),
    );
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What a child has told: `None` while it runs, `Some(None)` if it ended without a word.
fn outcome(pipe: &OwnedFd) -> Result<Option<Option<Errno>>> {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let at_once = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&at_once)) {
        Ok(0) | Err(Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut bytes = Vec::new();
    std::fs::File::from(pipe.try_clone().map_err(Error::from)?)
        .take(4)
        .read_to_end(&mut bytes)?;
    let number = <[u8; 4]>::try_from(bytes.as_slice()).ok();
    Ok(Some(number.map(|bytes| {
        Errno::from_raw_os_error(i32::from_ne_bytes(bytes))
    })))
}
