//! A counted flow: numbered UDP datagrams at a fixed rate, each one accounted for at the end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rustix::net::sockopt;

use crate::netns::Netns;

/// A flow under way from one namespace to another.
#[derive(Debug)]
pub struct Flow {
    shared: Arc<Shared>,
    interval: Duration,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Received>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Numbers given out. A datagram that the kernel refused to send counts as sent and is lost.
    sent: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
    /// The receiver need not wait any longer.
    drained: AtomicBool,
}

#[derive(Debug)]
struct Received {
    seen: Vec<bool>,
    duplicates: u64,
}

/// What became of a flow. `sent == received + lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Datagrams that should have gone.
    pub sent: u64,
    /// Different datagrams that came.
    pub received: u64,
    /// Those that never came.
    pub lost: u64,
    /// Those that came more than once.
    pub duplicates: u64,
    /// The longest run of lost datagrams, as the time between them.
    pub longest_gap: Duration,
}

impl Flow {
    /// Starts sending `rate` datagrams a second from `from` to `at`, an address of `to`.
    ///
    /// # Errors
    /// When the port is taken in `to`.
    pub fn start(from: &Netns, to: &Netns, at: SocketAddr, rate: u32) -> Result<Flow> {
        let any: IpAddr = match at {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let sink = to.run(|| super::bind(at.port(), || UdpSocket::bind((any, at.port()))))?;
        let source = from.run(|| Ok(UdpSocket::bind((any, 0))?))?;
        // Otherwise a full receive buffer would look like loss on the way.
        let size = 4 << 20;
        if sockopt::set_socket_recv_buffer_size_force(&sink, size).is_err() {
            sockopt::set_socket_recv_buffer_size(&sink, size)?;
        }
        sink.set_read_timeout(Some(Duration::from_millis(20)))?;
        let interval = Duration::from_secs(1) / rate.max(1);
        let shared = Arc::new(Shared::default());
        let receiver = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || receive(&sink, &shared))
        };
        let sender = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                send(&source, at, interval, &shared);
                Ok(())
            })
        };
        Ok(Flow {
            shared,
            interval,
            sender,
            receiver,
        })
    }

    /// How many different datagrams have come so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Acquire)
    }

    /// How many have been sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }

    /// Ends the flow, waits up to `drain` for what is under way, and counts.
    ///
    /// # Errors
    /// When one of the two ends failed.
    pub fn stop(self, drain: Duration) -> Result<Account> {
        self.shared.stop.store(true, Ordering::Release);
        self.sender
            .join()
            .map_err(|_| anyhow!("the sender panicked"))??;
        let sent = self.shared.sent.load(Ordering::Acquire);
        // Not reaching the count is the loss that the account shows.
        let _ = crate::eventually(drain, "everything sent has come", || {
            self.shared.received.load(Ordering::Acquire) >= sent
        });
        self.shared.drained.store(true, Ordering::Release);
        let received = self
            .receiver
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))??;
        Ok(account(sent, &received, self.interval))
    }
}

/// Slots that may be made up for at once; more would be a burst that overflows the kernel's own queue (1,000 packets for
/// all namespaces) when every sender of a machine that stood still wakes up together.
const CATCH_UP: u32 = 4;

fn send(socket: &UdpSocket, to: SocketAddr, interval: Duration, shared: &Shared) {
    let mut due = Instant::now();
    let mut number: u64 = 0;
    while !shared.stop.load(Ordering::Acquire) {
        // Refused ones (no route, link down) are lost ones.
        let _ = socket.send_to(&number.to_be_bytes(), to);
        number += 1;
        shared.sent.store(number, Ordering::Release);
        due += interval;
        let now = Instant::now();
        if now > due + CATCH_UP * interval {
            due = now;
        }
        thread::sleep(due.saturating_duration_since(now));
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) -> Result<Received> {
    let mut received = Received {
        seen: Vec::new(),
        duplicates: 0,
    };
    let mut buffer = [0; 16];
    loop {
        // Looked at first: what is in the buffer by now is counted.
        let drained = shared.drained.load(Ordering::Acquire);
        let Ok(8) = socket.recv(&mut buffer) else {
            if drained {
                break;
            }
            continue;
        };
        let [a, b, c, d, e, f, g, h, ..] = buffer;
        let number = usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h]))?;
        if received.seen.len() <= number {
            received.seen.resize(number + 1, false);
        }
        if received.seen[number] {
            received.duplicates += 1;
            continue;
        }
        received.seen[number] = true;
        shared.received.fetch_add(1, Ordering::AcqRel);
    }
    Ok(received)
}

fn account(sent: u64, received: &Received, interval: Duration) -> Account {
    let mut account = Account {
        sent,
        received: 0,
        lost: 0,
        duplicates: received.duplicates,
        longest_gap: Duration::ZERO,
    };
    let mut run: u32 = 0;
    for number in 0..usize::try_from(sent).unwrap_or(usize::MAX) {
        if received.seen.get(number).copied().unwrap_or(false) {
            account.received += 1;
            run = 0;
            continue;
        }
        account.lost += 1;
        run += 1;
        account.longest_gap = account.longest_gap.max(interval * run);
    }
    account
}

/// Packets that the kernel has dropped because its queue between namespaces was full, ever, on all processors. A loss
/// while this grows is the machine's.
#[must_use]
pub fn machine_drops() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(dropped).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datagram_is_accounted_for() {
        let ms = Duration::from_millis;
        let table = [
            (0, vec![], (0, 0, 0)),
            (3, vec![true, true, true], (3, 0, 0)),
            (5, vec![true, false, false, true], (2, 3, 2)),
            (4, vec![], (0, 4, 4)),
        ];
        for (sent, seen, (came, lost, gap)) in table {
            let account = account(
                sent,
                &Received {
                    seen,
                    duplicates: 1,
                },
                ms(1),
            );
            let wanted = Account {
                sent,
                received: came,
                lost,
                duplicates: 1,
                longest_gap: ms(gap),
            };
            assert_eq!(account, wanted);
        }
    }
}
