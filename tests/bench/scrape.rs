//! How long the agent takes to answer a scrape while it works on something else.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use selvage_lab::Netns;

use crate::report::Figures;

/// Between the end of a scrape and the next one.
const PAUSE: Duration = Duration::from_millis(20);

/// Scrapes one after the other.
pub(crate) struct Scrapes {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

impl Scrapes {
    /// Begins to scrape the agent in this namespace.
    pub(crate) fn start(netns: &Netns) -> Scrapes {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = netns.thread(move || {
            let mut took = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let began = Instant::now();
                scrape()?;
                took.push(began.elapsed());
                std::thread::sleep(PAUSE);
            }
            Ok(took)
        });
        Scrapes { over, thread }
    }

    /// Ends it; the slowest scrape and the one in the middle.
    pub(crate) fn stop(self) -> Result<Figures> {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        let mut took = ended.map_err(|_| anyhow::anyhow!("the scraper panicked"))??;
        took.sort();
        let middle = took.get(took.len() / 2).context("no scrape")?;
        let slowest = took.last().context("no scrape")?;
        Ok(vec![
            ("scrape p50, ms", middle.as_secs_f64() * 1e3),
            ("scrape max, ms", slowest.as_secs_f64() * 1e3),
        ])
    }
}

fn scrape() -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", 9179))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.contains("selvage_bgp_peer_up"), "no metrics: {text}");
    Ok(())
}
