//! A stream of packets from one namespace to another, and when the last one arrived.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use selvage_lab::Netns;

/// Between two packets.
const PACE: Duration = Duration::from_micros(200);
/// Without a packet for so long, none comes any more.
const SILENCE: Duration = Duration::from_millis(100);
/// How long a verdict is waited for.
const LIMIT: Duration = Duration::from_secs(10);

/// UDP packets that nobody answers: each is a packet of a new flow for the rules. Dropping it ends the stream.
pub(crate) struct Packets {
    began: Instant,
    /// Microseconds from `began` to the packet that arrived last; 0: none yet.
    last: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Packets {
    /// Begins to send from `from` to a receiver in `to`, which has this address.
    pub(crate) fn start(from: &Netns, to: &Netns, address: IpAddr) -> Result<Packets> {
        let at = SocketAddr::new(address, 9000);
        let receiver = to.run(|| Ok(UdpSocket::bind(at)?))?;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let sender = from.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        let began = Instant::now();
        let (last, end) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (seen, stop) = (Arc::clone(&last), Arc::clone(&end));
        let receiving = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !stop.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    let now = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                    seen.store(now, Ordering::Relaxed);
                }
            }
        });
        let stop = Arc::clone(&end);
        let sending = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // A packet that is dropped is what the bench looks for.
                let _ = sender.send_to(b"x", at);
                thread::sleep(PACE);
            }
        });
        let threads = vec![receiving, sending];
        Ok(Packets {
            began,
            last,
            end,
            threads,
        })
    }

    /// When the packet that arrived last did.
    pub(crate) fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    /// From `start` to the first packet that arrives after it.
    pub(crate) fn wait_first(&self, start: Instant) -> Result<Duration> {
        while start.elapsed() < LIMIT {
            let last = self.last();
            if last > start {
                return Ok(last - start);
            }
            thread::sleep(Duration::from_micros(50));
        }
        bail!("no packet within {LIMIT:?}")
    }

    /// Waits until no packet arrives any more.
    pub(crate) fn wait_silence(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if self.last().elapsed() > SILENCE {
                return Ok(());
            }
            thread::sleep(SILENCE / 10);
        }
        Err(anyhow::anyhow!("packets come for {LIMIT:?}")).context("the policy does not hold")
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
