//! What a process uses of the machine, before and after.

use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use selvage_lab::usage;

/// A quiet agent with its sessions may use so much of a core: keepalives, and a status that somebody asks for.
const MOST_CPU: f64 = 0.05;
/// Anonymous memory may be so many KiB above that of the start: what an allocator keeps of a load that is over.
const MOST_MORE_KIB: u64 = 12 << 10;
/// Descriptors may be so many more.
const MOST_MORE_FDS: usize = 4;

/// A process that is left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in KiB, mapped files included.
    pub rss: u64,
    /// Anonymous memory in KiB.
    pub anonymous: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Share of a core over the window.
    pub cpu: f64,
    /// Voluntary context switches a second: how often its threads were woken.
    pub wakeups: f64,
}

impl Usage {
    /// Watches a process for `window`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: u32, window: Duration) -> Result<Usage> {
        let before = counters(pid)?;
        thread::sleep(window);
        let after = counters(pid)?;
        // One that has just ended has no memory any more.
        let number = |field: &str| usage::status(pid, field).unwrap_or_default();
        let seconds = window.as_secs_f64().max(0.001);
        Ok(Usage {
            rss: number("VmRSS"),
            anonymous: number("RssAnon"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: usize::try_from(number("Threads"))?,
            cpu: after.0.saturating_sub(before.0) as f64 / 1e9 / seconds,
            wakeups: after.1.saturating_sub(before.1) as f64 / seconds,
        })
    }

    /// Writes both, figure by figure.
    pub fn table(
        f: &mut fmt::Formatter<'_>,
        name: &str,
        before: &Usage,
        after: &Usage,
    ) -> fmt::Result {
        writeln!(f, "{name:<24}{:>12}{:>12}", "at rest", "again")?;
        type Figure = fn(&Usage) -> String;
        let figures: [(&str, Figure); 6] = [
            ("RSS, MiB", |u| format!("{:.1}", u.rss as f64 / 1024.0)),
            ("anonymous memory, MiB", |u| {
                format!("{:.1}", u.anonymous as f64 / 1024.0)
            }),
            ("descriptors", |u| u.descriptors.to_string()),
            ("threads", |u| u.threads.to_string()),
            ("CPU, % of a core", |u| format!("{:.2}", u.cpu * 100.0)),
            ("wake-ups/s", |u| format!("{:.0}", u.wakeups)),
        ];
        for (figure, of) in figures {
            writeln!(f, "  {figure:<22}{:>12}{:>12}", of(before), of(after))?;
        }
        Ok(())
    }

    /// Whether a process that is quiet again is as it was.
    ///
    /// # Errors
    /// With what it keeps.
    pub fn is_as_before(&self, before: &Usage) -> Result<()> {
        let both = format!("before: {before}; after: {self}");
        let more = self.anonymous.saturating_sub(before.anonymous);
        ensure!(more <= MOST_MORE_KIB, "memory has grown; {both}");
        let more = self.descriptors.saturating_sub(before.descriptors);
        ensure!(more <= MOST_MORE_FDS, "descriptors are left open; {both}");
        ensure!(self.threads <= before.threads, "threads are left; {both}");
        ensure!(self.cpu <= MOST_CPU, "it is not idle; {both}");
        Ok(())
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RSS {:.1} MiB, anonymous {:.1} MiB, {} descriptors, {} threads, {:.2} % of a core, {:.0} wake-ups/s",
            self.rss as f64 / 1024.0,
            self.anonymous as f64 / 1024.0,
            self.descriptors,
            self.threads,
            self.cpu * 100.0,
            self.wakeups
        )
    }
}

/// The load of the machine: its averages over 1, 5 and 15 minutes.
#[must_use]
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let averages: Vec<&str> = text.split_whitespace().take(3).collect();
    averages.join(" ")
}

/// Nanoseconds on a core and voluntary context switches, of all threads.
fn counters(pid: u32) -> Result<(u64, u64)> {
    let threads = usage::threads(pid)?;
    let cpu = threads.iter().map(|thread| thread.cpu).sum();
    let sleeps = threads.iter().map(|thread| thread.sleeps).sum();
    Ok((cpu, sleeps))
}
