//! The load generator: many BGP speakers in one thread, each with an address of its own, that know just enough of the protocol.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Raises the limit on open files as far as it goes.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // If it stays low, connecting will say so.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// One speaker.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where it connects from, its identifier as well.
    pub address: Ipv4Addr,
    /// Its autonomous system.
    pub asn: u32,
    /// What it sends once the session is up.
    pub announce: Vec<Bytes>,
    /// Its routes are to be kept so many seconds after the connection breaks (RFC 4724); `None`: it knows no graceful restart.
    pub restart: Option<u16>,
    /// Its routes are to be kept as a last resort so many seconds after that (RFC 9494); `None`: it knows no long-lived graceful
    /// restart.
    pub long_lived: Option<u32>,
    /// Has a small receive buffer, so that little is under way to it when it reads nothing.
    pub narrow: bool,
    /// Connects, and never sends anything.
    pub mute: bool,
}

impl Spec {
    /// A speaker without routes that knows no graceful restart.
    #[must_use]
    pub fn new(address: Ipv4Addr, asn: u32) -> Spec {
        Spec {
            address,
            asn,
            announce: Vec::new(),
            restart: None,
            long_lived: None,
            narrow: false,
            mute: false,
        }
    }
}

/// How a session is ended from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The connection is closed.
    Fin,
    /// The connection is reset.
    Reset,
    /// NOTIFICATION Cease, Administrative Shutdown (RFC 4486), then closed.
    Cease,
}

/// What a speaker saw.
#[derive(Debug)]
pub enum Event<'a> {
    /// The session is up.
    Established,
    /// An UPDATE: withdrawn and announced IPv4 prefixes and the path attributes, as on the wire.
    Update {
        /// Withdrawn prefixes.
        withdrawn: &'a [u8],
        /// Path attributes.
        attributes: &'a [u8],
        /// Announced prefixes.
        announced: &'a [u8],
    },
    /// All that waited to be sent is with the kernel.
    Drained,
    /// The daemon has ended the session, or an attempt to have one.
    Lost {
        /// The session was up.
        established: bool,
        /// Code and subcode of the daemon's NOTIFICATION, if it sent one.
        why: Option<(u8, u8)>,
    },
}

struct Endpoint {
    spec: Spec,
    stream: Option<TcpStream>,
    input: Vec<u8>,
    output: VecDeque<Bytes>,
    open_sent: bool,
    established: bool,
    writable: bool,
    /// Sends no keepalives.
    silent: bool,
    /// Reads nothing.
    deaf: bool,
    /// Its last NOTIFICATION.
    notified: Option<(u8, u8)>,
}

impl Endpoint {
    fn new(spec: Spec) -> Endpoint {
        Endpoint {
            spec,
            stream: None,
            input: Vec::new(),
            output: VecDeque::new(),
            open_sent: false,
            established: false,
            writable: false,
            silent: false,
            deaf: false,
            notified: None,
        }
    }
}

/// Many speakers.
pub struct Fleet {
    poll: Poll,
    target: SocketAddrV4,
    endpoints: Vec<Endpoint>,
    next_keepalive: Instant,
    buffer: Vec<u8>,
    events: Events,
    /// Who has something to send that was queued from outside.
    queued: Vec<usize>,
    /// Connections that had to be tried again, and sessions that were lost.
    pub retries: usize,
    /// A session that the daemon ends is told ([`Event::Lost`]) and left alone; if not, it is opened again, and a
    /// NOTIFICATION is an error.
    pub told: bool,
}

const KEEPALIVE: [u8; 19] = {
    let mut m = [0xff; 19];
    m[16] = 0;
    m[17] = 19;
    m[18] = 4;
    m
};

impl Fleet {
    /// Nobody yet, for a daemon at `target`.
    ///
    /// # Errors
    /// When there is no `epoll` to be had.
    pub fn new(target: SocketAddrV4) -> Result<Fleet> {
        Ok(Fleet {
            poll: Poll::new()?,
            target,
            endpoints: Vec::new(),
            next_keepalive: Instant::now() + Duration::from_secs(2),
            buffer: vec![0; 256 << 10],
            events: Events::with_capacity(1024),
            queued: Vec::new(),
            retries: 0,
            told: false,
        })
    }

    /// Starts to connect all of them at once.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn connect(target: SocketAddrV4, specs: Vec<Spec>) -> Result<Fleet> {
        let mut fleet = Fleet::new(target)?;
        for spec in specs {
            let i = fleet.add(spec);
            fleet.open(i)?;
        }
        Ok(fleet)
    }

    /// Adds a speaker that does not connect yet; its number.
    pub fn add(&mut self, spec: Spec) -> usize {
        self.endpoints.push(Endpoint::new(spec));
        self.endpoints.len() - 1
    }

    /// Replaces a speaker that has no connection by another one.
    pub fn replace(&mut self, i: usize, spec: Spec) {
        self.endpoints[i] = Endpoint::new(spec);
    }

    /// Ends a session, or an attempt.
    pub fn close(&mut self, i: usize, how: Close) {
        let e = &mut self.endpoints[i];
        let Some(mut stream) = e.stream.take() else {
            return;
        };
        let socket = SockRef::from(&stream);
        match how {
            Close::Fin => {}
            // Where it cannot be reset it is closed.
            Close::Reset => drop(socket.set_linger(Some(Duration::ZERO))),
            // What is cut off in the middle of a message is closed without this one.
            Close::Cease if e.output.is_empty() => drop(stream.write(&message(3, &[6, 2]))),
            Close::Cease => {}
        }
        *e = Endpoint::new(e.spec.clone());
    }

    /// No keepalives from now on, or again.
    pub fn silence(&mut self, i: usize, silent: bool) {
        self.endpoints[i].silent = silent;
    }

    /// Nothing is read from now on, or again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn deafen(&mut self, i: usize, deaf: bool) -> Result<()> {
        let e = &mut self.endpoints[i];
        e.deaf = deaf;
        if let Some(stream) = &mut e.stream {
            let interest = match deaf {
                true => Interest::WRITABLE,
                false => Interest::WRITABLE | Interest::READABLE,
            };
            self.poll
                .registry()
                .reregister(stream, Token(i), interest)?;
        }
        Ok(())
    }

    /// Whether its session is up.
    #[must_use]
    pub fn is_up(&self, i: usize) -> bool {
        self.endpoints[i].established
    }

    /// Connects one of them.
    ///
    /// # Errors
    /// When its address cannot be bound.
    pub fn open(&mut self, i: usize) -> Result<()> {
        let e = &mut self.endpoints[i];
        let socket = Socket::new(
            Domain::IPV4,
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        if e.spec.narrow {
            socket.set_recv_buffer_size(4 << 10)?;
        }
        socket
            .bind(&SocketAddr::from((e.spec.address, 0)).into())
            .with_context(|| e.spec.address.to_string())?;
        match socket.connect(&SocketAddr::from(self.target).into()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(e) => return Err(e).context("connect"),
        }
        let mut stream = TcpStream::from_std(socket.into());
        self.poll.registry().register(
            &mut stream,
            Token(i),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        *e = Endpoint {
            stream: Some(stream),
            ..Endpoint::new(e.spec.clone())
        };
        Ok(())
    }

    /// Queues messages.
    pub fn send(&mut self, i: usize, messages: &[Bytes]) {
        self.queued.push(i);
        self.endpoints[i].output.extend(messages.iter().cloned());
    }

    /// How many messages wait to be sent by all.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.endpoints.iter().map(|e| e.output.len()).sum()
    }

    /// Sends and receives until `on` says so, which hears of everything first.
    ///
    /// # Errors
    /// When it does not within `limit`, or the daemon ends a session.
    pub fn drive(
        &mut self,
        limit: Duration,
        what: &str,
        mut on: impl FnMut(usize, Event<'_>) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        while !self.turn(Duration::from_millis(100), &mut on)? {
            if start.elapsed() > limit {
                bail!("not within {limit:?}: {what}");
            }
        }
        Ok(start.elapsed())
    }

    /// Sends what can be sent, waits up to `patience` for something to happen, and takes it in. True if `on` has said so.
    ///
    /// # Errors
    /// When the daemon ends a session that is to be kept.
    pub fn turn(
        &mut self,
        patience: Duration,
        on: &mut impl FnMut(usize, Event<'_>) -> bool,
    ) -> Result<bool> {
        let mut done = false;
        let now = Instant::now();
        if now >= self.next_keepalive {
            self.next_keepalive = now + Duration::from_secs(2);
            let endpoints = self.endpoints.iter_mut().enumerate();
            for (i, e) in endpoints.filter(|(_, e)| e.established && !e.silent) {
                // Behind what is half sent, in front of the rest.
                let place = e.output.len().min(1);
                e.output.insert(place, Bytes::from_static(&KEEPALIVE));
                self.queued.push(i);
            }
        }
        for i in std::mem::take(&mut self.queued) {
            done |= self.flush(i, on)?;
        }
        if done {
            return Ok(true);
        }
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, Some(patience));
        match polled {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            polled => polled?,
        }
        for event in &events {
            let i = event.token().0;
            if event.is_writable() {
                self.endpoints[i].writable = true;
                done |= self.flush(i, on)?;
            }
            if event.is_readable() && !self.endpoints[i].deaf {
                done |= self.read(i, on)?;
            }
        }
        self.events = events;
        Ok(done)
    }

    fn flush(&mut self, i: usize, on: &mut impl FnMut(usize, Event<'_>) -> bool) -> Result<bool> {
        let e = &mut self.endpoints[i];
        let Some(stream) = &mut e.stream else {
            return Ok(false);
        };
        if !e.writable {
            return Ok(false);
        }
        if !e.open_sent {
            if stream.peer_addr().is_err() {
                return self.again(i, on);
            }
            e.open_sent = true;
            if !e.spec.mute {
                e.output.push_front(open(&e.spec));
            }
        }
        let had = !e.output.is_empty();
        while !e.output.is_empty() {
            let slices: Vec<io::IoSlice<'_>> = e
                .output
                .iter()
                .take(256)
                .map(|b| io::IoSlice::new(b))
                .collect();
            match stream.write_vectored(&slices) {
                Ok(mut n) => {
                    while let Some(front) = e.output.front_mut() {
                        if n < front.len() {
                            *front = front.slice(n..);
                            break;
                        }
                        n -= front.len();
                        e.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    e.writable = false;
                    return Ok(false);
                }
                Err(_) => return self.again(i, on),
            }
        }
        Ok(had && on(i, Event::Drained))
    }

    /// Lost or refused: told, or once more and counted.
    fn again(&mut self, i: usize, on: &mut impl FnMut(usize, Event<'_>) -> bool) -> Result<bool> {
        if self.told {
            let e = &mut self.endpoints[i];
            let (established, why) = (e.established, e.notified);
            *e = Endpoint::new(e.spec.clone());
            return Ok(on(i, Event::Lost { established, why }));
        }
        self.retries += 1;
        if self.retries > 10 * self.endpoints.len() + 10_000 {
            bail!("the daemon refuses connections");
        }
        self.endpoints[i].stream = None;
        std::thread::sleep(Duration::from_millis(1));
        self.open(i)?;
        Ok(false)
    }

    fn read(&mut self, i: usize, on: &mut impl FnMut(usize, Event<'_>) -> bool) -> Result<bool> {
        let mut done = false;
        loop {
            let Some(stream) = &mut self.endpoints[i].stream else {
                return Ok(done);
            };
            let n = match stream.read(&mut self.buffer) {
                Ok(0) => return Ok(done | self.again(i, on)?),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(done),
                Err(_) => return Ok(done | self.again(i, on)?),
            };
            let buffer = std::mem::take(&mut self.buffer);
            done |= self.take(i, &buffer[..n], on)?;
            self.buffer = buffer;
        }
    }

    fn take(
        &mut self,
        i: usize,
        bytes: &[u8],
        on: &mut impl FnMut(usize, Event<'_>) -> bool,
    ) -> Result<bool> {
        let mut done = false;
        let mut input = std::mem::take(&mut self.endpoints[i].input);
        let joined;
        let mut rest: &[u8] = if input.is_empty() {
            bytes
        } else {
            input.extend_from_slice(bytes);
            joined = std::mem::take(&mut input);
            &joined
        };
        while let Some(header) = rest.get(..19) {
            let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
            let Some(message) = rest.get(..length) else {
                break;
            };
            let body = &message[19..];
            match message[18] {
                1 if self.endpoints[i].spec.mute => {}
                1 => {
                    self.endpoints[i]
                        .output
                        .push_back(Bytes::from_static(&KEEPALIVE));
                    done |= self.flush(i, on)?;
                }
                2 => done |= update(i, body, on)?,
                3 if self.told => {
                    self.endpoints[i].notified = body.first().copied().zip(body.get(1).copied());
                }
                3 => bail!("notification {:?} from the daemon", body.get(..2)),
                4 if !self.endpoints[i].established => {
                    self.endpoints[i].established = true;
                    let announce = self.endpoints[i].spec.announce.clone();
                    self.endpoints[i].output.extend(announce);
                    done |= on(i, Event::Established);
                    done |= self.flush(i, on)?;
                }
                _ => {}
            }
            rest = &rest[length..];
        }
        // It may have been lost meanwhile.
        if self.endpoints[i].stream.is_some() {
            self.endpoints[i].input = rest.to_vec();
        }
        Ok(done)
    }
}

fn update(i: usize, body: &[u8], on: &mut impl FnMut(usize, Event<'_>) -> bool) -> Result<bool> {
    let cut = || anyhow::anyhow!("a truncated UPDATE from the daemon");
    let two = |at: usize| {
        body.get(at..at + 2)
            .map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
    };
    let withdrawn_len = two(0).ok_or_else(cut)?;
    let withdrawn = body.get(2..2 + withdrawn_len).ok_or_else(cut)?;
    let attributes_len = two(2 + withdrawn_len).ok_or_else(cut)?;
    let attributes = body
        .get(4 + withdrawn_len..4 + withdrawn_len + attributes_len)
        .ok_or_else(cut)?;
    let announced = body
        .get(4 + withdrawn_len + attributes_len..)
        .ok_or_else(cut)?;
    Ok(on(
        i,
        Event::Update {
            withdrawn,
            attributes,
            announced,
        },
    ))
}

fn open(spec: &Spec) -> Bytes {
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 2, 0, 65, 4];
    capabilities.extend(spec.asn.to_be_bytes());
    if let Some(seconds) = spec.restart {
        // IPv4 unicast, forwarding state kept.
        let [high, low] = seconds.min(0x0fff).to_be_bytes();
        capabilities.extend([64, 6, high, low, 0, 1, 1, 0x80]);
    }
    if let Some(seconds) = spec.long_lived {
        let [_, time @ ..] = seconds.min(0x00ff_ffff).to_be_bytes();
        capabilities.extend([71, 7, 0, 1, 1, 0x80]);
        capabilities.extend(time);
    }
    let mut body = vec![4];
    body.extend(u16::try_from(spec.asn).unwrap_or(23456).to_be_bytes());
    body.extend(90u16.to_be_bytes());
    body.extend(spec.address.octets());
    body.push(capabilities.len() as u8 + 2);
    body.extend([2, capabilities.len() as u8]);
    body.extend(capabilities);
    message(1, &body)
}

/// A whole message.
pub fn message(kind: u8, body: &[u8]) -> Bytes {
    let mut m = BytesMut::with_capacity(19 + body.len());
    m.extend_from_slice(&[0xff; 16]);
    m.extend_from_slice(&(19 + body.len() as u16).to_be_bytes());
    m.extend_from_slice(&[kind]);
    m.extend_from_slice(body);
    m.freeze()
}

/// An UPDATE that announces `prefixes` (address, length) with these attributes.
pub fn announce(attributes: &[u8], prefixes: impl Iterator<Item = (u32, u8)>) -> Bytes {
    let mut body = vec![0, 0];
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    put(&mut body, prefixes);
    message(2, &body)
}

/// An UPDATE that withdraws `prefixes`.
pub fn withdraw(prefixes: impl Iterator<Item = (u32, u8)>) -> Bytes {
    let mut nlri = Vec::new();
    put(&mut nlri, prefixes);
    let mut body = (nlri.len() as u16).to_be_bytes().to_vec();
    body.extend(nlri);
    body.extend([0, 0]);
    message(2, &body)
}

fn put(to: &mut Vec<u8>, prefixes: impl Iterator<Item = (u32, u8)>) {
    for (address, length) in prefixes {
        to.push(length);
        to.extend(&address.to_be_bytes()[..usize::from(length).div_ceil(8)]);
    }
}

/// Path attributes: origin, path, next hop, local preference 100 (internal sessions).
pub fn attributes(path: &[u32], next_hop: Ipv4Addr, internal: bool, extra: &[u8]) -> Vec<u8> {
    let mut a = vec![0x40, 1, 1, 0, 0x40, 2];
    if path.is_empty() {
        a.push(0);
    } else {
        a.extend([2 + 4 * path.len() as u8, 2, path.len() as u8]);
        path.iter().for_each(|asn| a.extend(asn.to_be_bytes()));
    }
    a.extend([0x40, 3, 4]);
    a.extend(next_hop.octets());
    if internal {
        a.extend([0x40, 5, 4, 0, 0, 0, 100]);
    }
    a.extend(extra);
    a
}

/// The prefixes of a field, as on the wire.
pub fn prefixes(mut field: &[u8]) -> impl Iterator<Item = (u32, u8)> + '_ {
    std::iter::from_fn(move || {
        let (&length, rest) = field.split_first()?;
        let octets = usize::from(length).div_ceil(8);
        let (bits, rest) = rest.split_at_checked(octets)?;
        field = rest;
        let mut a = [0; 4];
        a.get_mut(..octets)?.copy_from_slice(bits);
        Some((u32::from_be_bytes(a), length))
    })
}
