//! Raw packets: a TCP SYN that names any source, and an ear for SYNs.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::net::ipproto::{RAW, TCP};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with, sockopt};

use crate::netns::Netns;

const SYN: u8 = 2;
const TCP_NUMBER: u8 = 6;
/// Bytes of a TCP header without options.
const TCP_LENGTH: u16 = 20;

/// Sends one TCP SYN out of `netns`, with `from` as its source whether `netns` has that address or not. The packet
/// passes the output hook like any other that the namespace sends; one that is dropped there is no error.
///
/// # Errors
/// When the ends are of different families, or the kernel has no route.
pub fn send_syn(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let (family, packet) = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (AddressFamily::INET, ipv4(source, destination, from, to))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            (AddressFamily::INET6, ipv6(source, destination, from, to))
        }
        _ => bail!("{from} and {to} are of different families"),
    };
    netns.run(|| {
        let socket = raw(family, RAW)?;
        // A raw socket has no ports.
        match socket.send_to(&packet, (to.ip(), 0)) {
            // Dropped at the output hook: the kernel tells the sender.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            sent => sent
                .map(drop)
                .with_context(|| format!("a SYN from {from} to {to}")),
        }
    })
}

/// A raw socket, in the clothes of a datagram socket.
fn raw(family: AddressFamily, protocol: Protocol) -> Result<UdpSocket> {
    let socket = socket_with(
        family,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(protocol),
    );
    Ok(UdpSocket::from(socket.context("no raw socket")?))
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    // Version and length, no service class, total length, identification, no fragment, hops, protocol; the kernel sums
    // the header.
    let mut packet = vec![0x45, 0, 0, 40, 0x5e, 0x1a, 0x40, 0, 64, TCP_NUMBER, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let ends = [&source.octets()[..], &destination.octets()[..]].concat();
    packet.extend(syn(&ends, from.port(), to.port()));
    packet
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, TCP_NUMBER, 64];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let ends = [&source.octets()[..], &destination.octets()[..]].concat();
    packet.extend(syn(&ends, from.port(), to.port()));
    packet
}

/// The TCP header; `ends` are both addresses, for the checksum.
fn syn(ends: &[u8], from: u16, to: u16) -> Vec<u8> {
    let mut header = Vec::from(from.to_be_bytes());
    header.extend(to.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0x10, 0, 0, 0, 0, 0]);
    let mut summed = ends.to_vec();
    summed.extend(TCP_LENGTH.to_be_bytes());
    summed.extend([0, TCP_NUMBER]);
    summed.extend(&header);
    let sum = checksum(&summed).to_be_bytes();
    header.splice(16..18, sum);
    header
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// Hears every TCP segment that reaches a namespace in one family, whether anybody listens on its port or not.
#[derive(Debug)]
pub struct SynEar {
    socket: UdpSocket,
    v6: bool,
}

impl SynEar {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no raw socket.
    pub fn open(netns: &Netns, v6: bool) -> Result<SynEar> {
        let family = if v6 {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let socket = netns.run(|| raw(family, TCP))?;
        Ok(SynEar { socket, v6 })
    }

    /// The next SYN: who it says that it comes from, and the port that it asks for.
    ///
    /// # Errors
    /// When none comes within the limit.
    pub fn hear(&self, limit: Duration) -> Result<(SocketAddr, u16)> {
        let until = Instant::now() + limit;
        let mut buffer = [0; 256];
        loop {
            // Other segments may come without end.
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no SYN came");
            self.socket.set_read_timeout(Some(left))?;
            let (length, sender) = self.socket.recv_from(&mut buffer).context("no SYN came")?;
            let packet = &buffer[..length];
            // The kernel gives the header of IPv4 only.
            let header = if self.v6 {
                0
            } else {
                4 * usize::from(packet[0] & 0xf)
            };
            let [a, b, c, d, .., flags, _, _, _, _, _, _] = packet[header..header + 20] else {
                continue;
            };
            if flags == SYN {
                let from = SocketAddr::new(sender.ip(), u16::from_be_bytes([a, b]));
                return Ok((from, u16::from_be_bytes([c, d])));
            }
        }
    }
}

/// New flows at a fixed rate: SYNs of ever other source ports, each one accounted for at the end.
#[derive(Debug)]
pub struct NewFlows {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    heard: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    listener: JoinHandle<Result<()>>,
}

impl NewFlows {
    /// Starts sending `rate` SYNs a second from the address `from` of `source` to `to`, an address of `destination`.
    /// One such stream at a time may go to a port of a namespace.
    ///
    /// # Errors
    /// When there is no raw socket.
    pub fn start(
        source: &Netns,
        from: IpAddr,
        destination: &Netns,
        to: SocketAddr,
        rate: u32,
    ) -> Result<NewFlows> {
        let ear = SynEar::open(destination, to.is_ipv6())?;
        sockopt::set_socket_recv_buffer_size_force(&ear.socket, 8 << 20)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, heard) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let listener = {
            let (stop, heard) = (Arc::clone(&stop), Arc::clone(&heard));
            thread::spawn(move || {
                // Ends when told to, and nothing has come for a while after that.
                loop {
                    let last = stop.load(Ordering::Acquire);
                    match ear.hear(Duration::from_millis(300)) {
                        Ok((_, port)) if port == to.port() => {
                            heard.fetch_add(1, Ordering::AcqRel);
                        }
                        Ok(_) => {}
                        Err(_) if last => return Ok(()),
                        Err(_) => {}
                    }
                }
            })
        };
        let sender = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            let interval = Duration::from_secs(1) / rate.max(1);
            source.thread(move || {
                let family = if to.is_ipv6() {
                    AddressFamily::INET6
                } else {
                    AddressFamily::INET
                };
                let socket = raw(family, RAW)?;
                // Ports below the ones that a kernel gives out, so that nothing else has them.
                for port in (1025..32_000).cycle() {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let packet = match (from, to.ip()) {
                        (IpAddr::V4(a), IpAddr::V4(b)) => {
                            ipv4(a, b, SocketAddr::new(from, port), to)
                        }
                        (IpAddr::V6(a), IpAddr::V6(b)) => {
                            ipv6(a, b, SocketAddr::new(from, port), to)
                        }
                        _ => bail!("{from} and {to} are of different families"),
                    };
                    // One that cannot be sent is a lost one.
                    let _ = socket.send_to(&packet, (to.ip(), 0));
                    sent.fetch_add(1, Ordering::AcqRel);
                    thread::sleep(interval);
                }
                Ok(())
            })
        };
        Ok(NewFlows {
            stop,
            sent,
            heard,
            sender,
            listener,
        })
    }

    /// How many have been sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// How many have come so far.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Ends the stream; how many were sent, and how many came.
    ///
    /// # Errors
    /// When one of the two ends failed.
    pub fn stop(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Release);
        let panicked = |_| anyhow!("a thread panicked");
        self.sender.join().map_err(panicked)??;
        self.listener.join().map_err(panicked)??;
        Ok((
            self.sent.load(Ordering::Acquire),
            self.heard.load(Ordering::Acquire),
        ))
    }
}
