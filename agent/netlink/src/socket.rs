//! A netlink socket, and the one way in which requests are sent and answers read.
//!
//! The kernel works on a request inside `sendmsg`: all answers are in the receive buffer when it
//! returns, and the next part of a listing is there when the previous one was read. So reading
//! never waits, and a missing answer is an error at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink,
    recvfrom, send, socket_with, sockopt,
};

use crate::attr::{Attrs, get_u16, get_u32};
use crate::batch::{Batch, DUMP, HEADER};
use crate::error::{Error, Failure, Refusal, Result};
use crate::{netns, sys};

/// The kernel gives no more than 32 KiB per datagram of a listing.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Asked for in both directions; the kernel doubles it.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// More messages in one `sendmsg` gain nothing.
const CHUNK_MESSAGES: usize = 1024;
/// What the answer to one message may take of the receive buffer, as the kernel counts.
const ANSWER_BYTES: usize = 2048;
/// How often a listing that changed while it was read is begun again.
const DUMP_ATTEMPTS: usize = 8;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const FLAG_MULTI: u16 = 0x2;
const FLAG_DUMP_INTR: u16 = 0x10;
const FLAG_CAPPED: u16 = 0x100;
const FLAG_ACK_TLVS: u16 = 0x200;

/// Which part of the kernel is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, nexthops, neighbours (`NETLINK_ROUTE`).
    Route,
    /// nf_tables and conntrack (`NETLINK_NETFILTER`).
    Netfilter,
}

/// A netlink socket. It belongs to the network namespace in which it was opened, forever.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    next_seq: u32,
    buffer: Vec<u8>,
    send_limit: usize,
    chunk_messages: usize,
    scratch: Batch,
}

/// A message as it was received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// The sequence number of the request that caused it; 0 for what others caused.
    pub seq: u32,
    /// The port of the socket that caused it.
    pub port: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// What a poll of a subscribed socket yielded.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A notification.
    Message(Message<'a>),
    /// Notifications were lost: read everything again.
    Overrun,
}

/// What became of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "messages may have been refused"]
pub struct Report {
    /// The refused messages in the order of the batch; all others took effect.
    pub failures: Vec<Failure>,
}

impl Report {
    /// The first failure, if any, as an error.
    pub fn into_result(self) -> Result<()> {
        self.failures
            .into_iter()
            .next()
            .map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// As [`into_result`](Self::into_result), tolerating one error number (e.g. `ESRCH` in a
    /// deletion).
    pub fn ignoring(mut self, errno: Errno) -> Result<()> {
        self.failures
            .retain(|failure| failure.refusal.errno != errno.raw_os_error());
        self.into_result()
    }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Self> {
        let fd = open_fd(protocol)?;
        Self::prepare(fd)
    }

    /// Opens a socket in another network namespace, from a thread that enters it and ends.
    /// Needs CAP_SYS_ADMIN.
    pub fn open_in(netns: BorrowedFd<'_>, protocol: Protocol) -> Result<Self> {
        let fd = netns::within(netns, move || open_fd(protocol))??;
        Self::prepare(fd)
    }

    fn prepare(fd: OwnedFd) -> Result<Self> {
        sys::set_netlink(&fd, sys::NetlinkOption::ExtAck, 1)?;
        sys::set_netlink(&fd, sys::NetlinkOption::CapAck, 1)?;
        // Without it the kernel filters no listing; each is filtered here again.
        let _ = sys::set_netlink(&fd, sys::NetlinkOption::StrictCheck, 1);
        // In a user namespace the limits of the machine hold, and the batches become smaller.
        if sockopt::set_socket_send_buffer_size_force(&fd, BUFFER_BYTES).is_err() {
            sockopt::set_socket_send_buffer_size(&fd, BUFFER_BYTES)?;
        }
        if sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER_BYTES).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, BUFFER_BYTES)?;
        }
        let send_limit = sockopt::socket_send_buffer_size(&fd)?.saturating_sub(64);
        let answers = sockopt::socket_recv_buffer_size(&fd)? / ANSWER_BYTES;
        let address = rustix::net::getsockname(&fd)?;
        let port = SocketAddrNetlink::try_from(address)?.pid();
        Ok(Self {
            fd,
            port,
            next_seq: 1,
            buffer: vec![0; RECEIVE_BYTES],
            send_limit,
            chunk_messages: answers.clamp(16, CHUNK_MESSAGES),
            scratch: Batch::new(),
        })
    }

    /// The port of this socket: notifications that it caused carry it.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Subscribes to a multicast group (`RTNLGRP_*`, `NFNLGRP_*`).
    pub fn join(&self, group: u32) -> Result<()> {
        Ok(sys::set_netlink(
            &self.fd,
            sys::NetlinkOption::AddMembership,
            group,
        )?)
    }

    /// Ends the subscription to a multicast group.
    pub fn leave(&self, group: u32) -> Result<()> {
        Ok(sys::set_netlink(
            &self.fd,
            sys::NetlinkOption::DropMembership,
            group,
        )?)
    }

    /// Notifications that the socket with this port causes are not delivered here: a big batch of
    /// one's own then neither fills the buffer nor wakes anybody. Replies to requests made on
    /// this socket are not concerned.
    pub fn ignore_port(&self, port: u32) -> Result<()> {
        Ok(sys::drop_from_port(&self.fd, port)?)
    }

    /// Sets the size of the receive buffer in bytes, beyond the machine's limit where allowed.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<()> {
        if sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&self.fd, bytes)?;
        }
        Ok(())
    }

    /// Sends all messages, as few system calls as possible, and asks for an acknowledgement of
    /// the last one only. Each message stands alone: a refused one is reported and does not
    /// keep the others from taking effect. The batch is kept, so that an index can be mapped
    /// to what it was about.
    ///
    /// After any `Err` it is unknown which messages took effect.
    pub fn send_batch(&mut self, batch: &mut Batch) -> Result<Report> {
        let mut report = Report::default();
        if batch.overflow {
            return Err(Error::TooLong);
        }
        let first_seq = self.take_seqs(batch.len());
        batch.number(first_seq);
        let mut from = 0;
        while from < batch.len() {
            let to = self.chunk_end(batch, from)?;
            batch.set_ack(to - 1, true);
            let sent = self.send_range(batch, from, to);
            batch.set_ack(to - 1, false);
            sent?;
            self.collect(first_seq, from, to, &mut report)?;
            from = to;
        }
        report.failures.sort_by_key(|failure| failure.index);
        Ok(report)
    }

    /// Builds a batch and sends it; the first refusal is the error.
    pub fn apply(&mut self, build: impl FnOnce(&mut Batch)) -> Result<()> {
        self.report(build)?.into_result()
    }

    /// Builds a batch and sends it.
    pub fn report(&mut self, build: impl FnOnce(&mut Batch)) -> Result<Report> {
        let mut batch = std::mem::take(&mut self.scratch);
        batch.clear();
        build(&mut batch);
        let report = self.send_batch(&mut batch);
        self.scratch = batch;
        report
    }

    /// Sends one request that is answered by one message.
    pub fn get<T>(
        &mut self,
        build: impl FnOnce(&mut Batch),
        mut decode: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<T> {
        let mut found = None;
        self.ask(build, false, |message| {
            found = found.take().or_else(|| decode(message))
        })?;
        found.ok_or(Error::Malformed("unexpected answer"))
    }

    /// Sends one listing request (`NLM_F_DUMP` is added) and collects what `decode` makes of the
    /// answers. Begun again, a bounded number of times, if the kernel says that the listing is
    /// inconsistent.
    pub fn list<T>(
        &mut self,
        build: impl Fn(&mut Batch),
        mut decode: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        self.fold(build, Vec::new, |found, message| {
            found.extend(decode(message));
        })
    }

    /// The same, without a list of the answers: each is taken into what `start` gives. An interrupted dump begins anew,
    /// with another start.
    pub fn fold<T>(
        &mut self,
        build: impl Fn(&mut Batch),
        start: impl Fn() -> T,
        mut take: impl FnMut(&mut T, Message<'_>),
    ) -> Result<T> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = start();
            match self.ask(&build, true, |message| take(&mut found, message)) {
                Err(Error::Interrupted) => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(found),
            }
        }
        Err(Error::Interrupted)
    }

    /// Reads the notifications that are there and gives each to `handle`; returns how many
    /// datagrams were read. Reads at most `limit` of them. Poll the descriptor for more.
    pub fn receive(&mut self, limit: usize, mut handle: impl FnMut(Event<'_>)) -> Result<usize> {
        for count in 0..limit {
            let length = match self.read() {
                Ok(Some(length)) => length,
                Ok(None) => return Ok(count),
                Err(Error::Overrun | Error::Truncated) => {
                    handle(Event::Overrun);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                match message.kind {
                    NLMSG_OVERRUN => handle(Event::Overrun),
                    NLMSG_ERROR | NLMSG_DONE => {}
                    _ => handle(Event::Message(message)),
                }
            }
        }
        Ok(limit)
    }

    /// Sends a range of a batch as one datagram.
    pub(crate) fn send_range(&self, batch: &Batch, from: usize, to: usize) -> Result<()> {
        let start = batch.starts.get(from).copied().unwrap_or(batch.bytes.len());
        let bytes = batch
            .bytes
            .get(start..batch.end(to.saturating_sub(1)))
            .unwrap_or_default();
        loop {
            match send(&self.fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::MSGSIZE) => return Err(Error::TooLong),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads the answers to messages `from..to` until that of the last one.
    pub(crate) fn collect(
        &mut self,
        first_seq: u32,
        from: usize,
        to: usize,
        report: &mut Report,
    ) -> Result<()> {
        loop {
            let Some(length) = self.read()? else {
                return Err(Error::NoReply);
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                if message.kind != NLMSG_ERROR || message.port != self.port {
                    continue;
                }
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if !(from..to).contains(&index) {
                    continue;
                }
                if let Some(refusal) = refusal(&message)? {
                    report.failures.push(Failure { index, refusal });
                }
                if index == to - 1 {
                    return Ok(());
                }
            }
        }
    }

    /// Reads all answers that are there to `count` messages; returns whether the last was
    /// acknowledged. A failed commit is told in an answer to the first.
    pub(crate) fn collect_all(
        &mut self,
        first_seq: u32,
        count: usize,
        report: &mut Report,
    ) -> Result<bool> {
        let (mut acknowledged, mut overrun) = (false, false);
        loop {
            let length = match self.read() {
                Ok(Some(length)) => length,
                Ok(None) => break,
                // Only refusals can be so many; those that did fit tell enough.
                Err(Error::Overrun) => {
                    overrun = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                let index = message.seq.wrapping_sub(first_seq) as usize;
                if message.kind != NLMSG_ERROR || message.port != self.port || index >= count {
                    continue;
                }
                match refusal(&message)? {
                    Some(refusal) => report.failures.push(Failure { index, refusal }),
                    None => acknowledged |= index == count - 1,
                }
            }
        }
        if overrun && report.failures.is_empty() {
            Err(Error::Overrun)
        } else {
            Ok(acknowledged)
        }
    }

    /// Makes room in the send buffer for one datagram of this size, where that is allowed.
    pub(crate) fn reserve_send(&mut self, bytes: usize) -> Result<()> {
        if bytes <= self.send_limit {
            return Ok(());
        }
        if sockopt::set_socket_send_buffer_size_force(&self.fd, bytes).is_err() {
            sockopt::set_socket_send_buffer_size(&self.fd, bytes)?;
        }
        self.send_limit = sockopt::socket_send_buffer_size(&self.fd)?.saturating_sub(64);
        if bytes <= self.send_limit {
            Ok(())
        } else {
            Err(Error::TooLong)
        }
    }

    /// Reserves `count` sequence numbers and returns the first.
    pub(crate) fn take_seqs(&mut self, count: usize) -> u32 {
        let first = self.next_seq;
        self.next_seq = first.wrapping_add(count as u32).max(1);
        first
    }

    /// Reads one datagram from the kernel; `None` if there is none.
    pub(crate) fn read(&mut self) -> Result<Option<usize>> {
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match recvfrom(&self.fd, self.buffer.as_mut_slice(), flags) {
                Ok((_, length, _)) if length > self.buffer.len() => return Err(Error::Truncated),
                // Other processes may write to our port, too.
                Ok((_, _, sender)) if !from_kernel(sender.as_ref()) => {}
                Ok((_, length, _)) => return Ok(Some(length)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::NOBUFS) => return Err(Error::Overrun),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn chunk_end(&self, batch: &Batch, from: usize) -> Result<usize> {
        let start = batch.starts.get(from).copied().unwrap_or_default();
        let most = batch.len().min(from + self.chunk_messages);
        let mut to = from;
        while to < most && batch.end(to) - start <= self.send_limit {
            to += 1;
        }
        if to == from {
            Err(Error::TooLong)
        } else {
            Ok(to)
        }
    }

    /// Sends one request and hands every answer to `handle`, until an acknowledgement or the end
    /// of the listing.
    fn ask(
        &mut self,
        build: impl FnOnce(&mut Batch),
        dump: bool,
        mut handle: impl FnMut(Message<'_>),
    ) -> Result<()> {
        let mut batch = std::mem::take(&mut self.scratch);
        batch.clear();
        build(&mut batch);
        let seq = self.take_seqs(1);
        batch.number(seq);
        batch.add_flags(0, if dump { DUMP } else { crate::batch::ACK });
        let sent = if batch.overflow {
            Err(Error::TooLong)
        } else {
            self.send_range(&batch, 0, 1)
        };
        self.scratch = batch;
        sent?;
        let (mut interrupted, mut lost) = (false, None);
        loop {
            // A listing must be read to its end, or the next one is refused (EBUSY).
            let length = match self.read() {
                Ok(Some(length)) => length,
                Ok(None) => return Err(lost.unwrap_or(Error::NoReply)),
                Err(error @ (Error::Overrun | Error::Truncated)) => {
                    lost = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in messages(self.buffer.get(..length).unwrap_or_default()) {
                if message.seq != seq || message.port != self.port {
                    continue;
                }
                interrupted |=
                    message.flags & FLAG_MULTI != 0 && message.flags & FLAG_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match (refusal(&message)?, lost) {
                            (Some(refusal), _) => Err(Failure { index: 0, refusal }.into()),
                            (None, Some(error)) => Err(error),
                            (None, None) if interrupted => Err(Error::Interrupted),
                            (None, None) => Ok(()),
                        };
                    }
                    NLMSG_OVERRUN => lost = Some(Error::Overrun),
                    _ => handle(message),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_fd(protocol: Protocol) -> io::Result<OwnedFd> {
    let protocol = match protocol {
        // NETLINK_ROUTE is 0, which rustix writes as "no protocol".
        Protocol::Route => None,
        Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
    };
    let fd = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    bind(&fd, &SocketAddrNetlink::new(0, 0))?;
    Ok(fd)
}

fn from_kernel(sender: Option<&rustix::net::SocketAddrAny>) -> bool {
    sender
        .and_then(|address| SocketAddrNetlink::try_from(address.clone()).ok())
        .is_some_and(|address| address.pid() == 0)
}

/// The error in an acknowledgement or at the end of a listing; `None` if all went well.
fn refusal(message: &Message<'_>) -> Result<Option<Refusal>> {
    let code = match get_u32(message.body, 0) {
        Some(code) => code as i32,
        None if message.kind == NLMSG_DONE => 0,
        None => return Err(Error::Malformed("short acknowledgement")),
    };
    if code == 0 {
        return Ok(None);
    }
    let mut refusal = Refusal {
        errno: code.checked_neg().unwrap_or(code),
        message: None,
        offset: None,
    };
    if message.flags & FLAG_ACK_TLVS == 0 {
        return Ok(Some(refusal));
    }
    let header = match message.kind {
        NLMSG_DONE => 4,
        _ if message.flags & FLAG_CAPPED != 0 => 4 + HEADER,
        // The whole request is repeated before the attributes.
        _ => 4usize.saturating_add(get_u32(message.body, 4).unwrap_or_default() as usize),
    };
    for attr in Attrs::after(message.body, header.min(message.body.len())) {
        match attr.kind {
            1 => refusal.message = Some(attr.text()),
            2 => refusal.offset = attr.u32(),
            _ => {}
        }
    }
    Ok(Some(refusal))
}

/// Whether this is an answer that can be read.
pub(crate) fn answer(message: &Message<'_>) -> bool {
    matches!(message.kind, NLMSG_ERROR | NLMSG_DONE) && refusal(message).is_ok()
}

/// The messages in a datagram; ends at the first that does not fit.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = get_u32(rest, 0)? as usize;
        let message = Message {
            kind: get_u16(rest, 4)?,
            flags: get_u16(rest, 6)?,
            seq: get_u32(rest, 8)?,
            port: get_u32(rest, 12)?,
            body: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Message<'_> {
        Message {
            kind,
            flags,
            seq: 1,
            port: 2,
            body,
        }
    }

    /// The code, the header of the request, and a text as extended acknowledgement.
    fn refused(code: i32, request: &[u8], text: &[u8]) -> Vec<u8> {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&(16 + request.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(request);
        bytes.extend_from_slice(&(4 + text.len() as u16).to_ne_bytes());
        bytes.extend_from_slice(&1u16.to_ne_bytes());
        bytes.extend_from_slice(text);
        bytes
    }

    #[test]
    fn the_text_of_a_refusal_is_found_behind_a_whole_or_a_capped_request() {
        let whole = refused(-22, &[7; 8], b"no good\0");
        let mut capped = refused(-22, &[], b"no good\0");
        // The length says how long the request was, though it is not there.
        capped[4..8].copy_from_slice(&400u32.to_ne_bytes());
        let cases = [
            (FLAG_ACK_TLVS, &whole, Some("no good")),
            (FLAG_ACK_TLVS | FLAG_CAPPED, &capped, Some("no good")),
            (FLAG_CAPPED, &capped, None),
            (FLAG_ACK_TLVS, &capped, None),
        ];
        for (flags, body, text) in cases {
            let refusal = refusal(&message(NLMSG_ERROR, flags, body))
                .unwrap()
                .unwrap();
            assert_eq!(
                (refusal.errno, refusal.message.as_deref()),
                (22, text),
                "{flags:x}"
            );
        }
    }

    #[test]
    fn an_acknowledgement_is_no_refusal_and_a_short_one_is_malformed() {
        let fine = message(NLMSG_ERROR, 0, &[0; 20]);
        assert_eq!(refusal(&fine).unwrap(), None);
        assert_eq!(refusal(&message(NLMSG_DONE, 0, &[])).unwrap(), None);
        assert!(refusal(&message(NLMSG_ERROR, 0, &[0; 3])).is_err());
    }

    #[test]
    fn messages_end_at_the_first_that_does_not_fit() {
        let mut batch = Batch::new();
        batch.push(16, 0, |body| body.raw(&[1, 2, 3]));
        batch.push(17, 0, |body| body.u8(1, 9));
        batch.number(u32::MAX);
        let bytes = batch.as_bytes();
        let kinds = |bytes| messages(bytes).map(|m| (m.kind, m.seq)).collect::<Vec<_>>();
        assert_eq!(kinds(bytes), [(16, u32::MAX), (17, 0)]);
        assert_eq!(kinds(&bytes[..bytes.len() - 5]), [(16, u32::MAX)]);
        let mut endless = bytes.to_vec();
        endless[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(kinds(&endless), []);
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let result = socket.report(|batch| {
            batch.push(16, 0, |body| body.bytes(1, &[0; 70_000]));
        });
        assert!(matches!(result, Err(Error::TooLong)), "{result:?}");
    }
}
