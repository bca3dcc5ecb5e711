//! One TCP connection: what waits to be sent on it, in which order, and how it is read.
//!
//! Messages of the session (OPEN, KEEPALIVE, NOTIFICATION) go before routes, but never into the middle of a message.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
};

use bytes::Bytes;
use mio::net::TcpStream;
use selvage_bgp_core::{ids::PeerIdx, session::ConnId};

use crate::stream::{Member, Position, Streams};

/// How many chunks one system call may take.
const SLICES: usize = 128;

/// A connection.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    pub(crate) peer: PeerIdx,
    pub(crate) id: ConnId,
    /// An outgoing connection that the kernel still works on.
    pub(crate) connecting: bool,
    /// There may be bytes to read.
    pub(crate) readable: bool,
    /// The other side has ended its stream: a read that does not fill the buffer may still not be the last one.
    pub(crate) ended: bool,
    /// The kernel takes more bytes.
    writable: bool,
    /// Close when all session messages have left.
    pub(crate) closing: bool,
    /// Our stream is at its end, what still comes is of no interest.
    half_closed: bool,
    /// The rest of what is half sent.
    partial: Bytes,
    session: VecDeque<Bytes>,
    /// Octets sent, ever.
    pub(crate) sent: u64,
}

/// What became of an attempt to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flushed {
    /// All that there was.
    All,
    /// The kernel takes no more for now.
    Blocked,
}

/// Where bytes to be sent come from.
#[derive(Clone, Copy)]
enum Source {
    Partial,
    Session,
    /// The member's stream, and its position after this chunk.
    Routes(Position),
}

/// How far a write got.
#[derive(Default)]
struct Sent {
    partial: bool,
    session: usize,
    routes: Option<Position>,
    /// What is left of the last item that was begun.
    rest: Bytes,
}

impl Sent {
    fn of(items: &[(&Bytes, Source)], mut octets: usize) -> Sent {
        let mut sent = Sent::default();
        for (bytes, source) in items {
            if octets == 0 {
                break;
            }
            match source {
                Source::Partial => sent.partial = true,
                Source::Session => sent.session += 1,
                Source::Routes(end) => sent.routes = Some(*end),
            }
            if octets < bytes.len() {
                sent.rest = bytes.slice(octets..);
                break;
            }
            octets -= bytes.len();
        }
        sent
    }
}

impl Conn {
    pub(crate) fn new(stream: TcpStream, peer: PeerIdx, id: ConnId, connecting: bool) -> Conn {
        Conn {
            stream,
            peer,
            id,
            connecting,
            readable: false,
            ended: false,
            writable: !connecting,
            closing: false,
            half_closed: false,
            partial: Bytes::new(),
            session: VecDeque::new(),
            sent: 0,
        }
    }

    /// Queues a message of the session.
    pub(crate) fn send(&mut self, bytes: Bytes) {
        self.session.push_back(bytes);
    }

    /// The kernel takes bytes again.
    pub(crate) fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Whether the session's own messages have all left.
    pub(crate) fn is_drained(&self) -> bool {
        self.partial.is_empty() && self.session.is_empty()
    }

    /// Sends what the kernel takes: the rest of a half-sent chunk, the session's messages, then the member's stream.
    pub(crate) fn flush(
        &mut self,
        streams: &mut Streams,
        mut member: Option<&mut Member>,
    ) -> io::Result<Flushed> {
        loop {
            if !self.writable {
                return Ok(Flushed::Blocked);
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let nothing = Bytes::new();
            let mut items = [(&nothing, Source::Partial); SLICES];
            let (mut n, mut total) = (0, 0);
            let mut put = |bytes: &'_ Bytes, n: &mut usize| {
                total += bytes.len();
                *n += 1;
            };
            let own = self.session.iter().map(|b| (b, Source::Session));
            for item in Some((&self.partial, Source::Partial))
                .into_iter()
                .filter(|(b, _)| !b.is_empty())
                .chain(own)
            {
                if n == SLICES {
                    break;
                }
                slices[n] = IoSlice::new(item.0);
                items[n] = item;
                put(item.0, &mut n);
            }
            // Where the member's stream stands after all that is gathered here.
            let mut ahead = member.as_deref().copied().filter(|_| !self.closing);
            while let Some(m) = &mut ahead
                && n < SLICES
            {
                let (bytes, end) = streams.next(*m, self.peer);
                m.at = end;
                let Some(bytes) = bytes else { break };
                slices[n] = IoSlice::new(bytes);
                items[n] = (bytes, Source::Routes(end));
                put(bytes, &mut n);
            }
            if n == 0 {
                if let (Some(member), Some(ahead)) = (member, ahead) {
                    streams.advance(member, ahead.at);
                }
                return Ok(Flushed::All);
            }
            let written = match self.stream.write_vectored(&slices[..n]) {
                Ok(written) => written,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(Flushed::Blocked);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.sent += written as u64;
            self.writable = written == total;
            let sent = Sent::of(&items[..n], written);
            if sent.partial {
                self.partial = Bytes::new();
            }
            if !sent.rest.is_empty() {
                self.partial = sent.rest;
            }
            self.session.drain(..sent.session);
            if let (Some(member), Some(at)) = (member.as_deref_mut(), sent.routes) {
                streams.advance(member, at);
            }
        }
    }

    /// Gets on with closing; says whether the descriptor may go. It may not while the other side has not ended its stream:
    /// closing a socket that has unread bytes, or that more bytes come to, is a reset, and takes the last message with it.
    pub(crate) fn wind_down(&mut self, streams: &mut Streams, buffer: &mut [u8]) -> bool {
        if !self.half_closed {
            if self.flush(streams, None).is_err() {
                return true;
            }
            if !self.is_drained() {
                return false;
            }
            if self.stream.shutdown(Shutdown::Write).is_err() {
                return true;
            }
            self.half_closed = true;
        }
        // A bounded number: nobody sends us so much that others have to wait.
        for _ in 0..16 {
            if !self.readable {
                return false;
            }
            match self.read(buffer) {
                Ok(Some(0)) | Err(_) => return true,
                Ok(_) => {}
            }
        }
        false
    }

    /// Reads once into `buffer`. `Ok(None)`: nothing there now; `Ok(Some(0))`: the other side closed.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match self.stream.read(buffer) {
                Ok(n) => {
                    self.readable = n == buffer.len() || (self.ended && n > 0);
                    Ok(Some(n))
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    Ok(None)
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.readable = false;
                    Err(e)
                }
            };
        }
    }
}
