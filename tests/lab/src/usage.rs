//! What the kernel has counted for a process (`/proc/PID`).

use std::fs;

use anyhow::{Context, Result};

/// A thread that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub id: u32,
    /// Its name, 15 octets at most.
    pub name: String,
    /// Time on a core, in nanoseconds.
    pub cpu: u64,
    /// How often it has given its core up of its own will: how often it went to sleep.
    pub sleeps: u64,
}

/// The threads of a process, in no order.
///
/// # Errors
/// When the process is gone.
pub fn threads(pid: u32) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("it has ended")? {
        let task = task?.path();
        let read = |file: &str| fs::read_to_string(task.join(file));
        // A thread may end between the listing and the look.
        let (Ok(name), Ok(status), Ok(times)) = (read("comm"), read("status"), read("schedstat"))
        else {
            continue;
        };
        let id = task.file_name().unwrap_or_default().to_string_lossy();
        let cpu = times.split_whitespace().next();
        threads.push(Thread {
            id: id.parse()?,
            name: name.trim().to_owned(),
            cpu: cpu.context("an empty schedstat")?.parse()?,
            sleeps: number(&status, "voluntary_ctxt_switches")?,
        });
    }
    Ok(threads)
}

/// A number of `/proc/PID/status`, as `RssAnon` (in KiB) or `Threads`.
///
/// # Errors
/// When the process is gone, or has no such number: one that has ended and waits for its parent has no memory.
pub fn status(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    number(&fs::read_to_string(path).context("it has ended")?, field)
}

fn number(status: &str, field: &str) -> Result<u64> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let line = lines.find(|(name, _)| *name == field);
    let number = line.and_then(|(_, rest)| rest.split_whitespace().next());
    number
        .with_context(|| format!("no {field}"))?
        .parse()
        .with_context(|| field.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_counted() {
        let pid = std::process::id();
        let own = threads(pid).unwrap();
        let main = own.iter().find(|thread| thread.id == pid).unwrap();
        assert!(main.sleeps + main.cpu > 0);
        assert!(status(pid, "RssAnon").unwrap() > 0);
        assert!(status(pid, "Threads").unwrap() >= 1);
        assert!(status(pid, "RssAno").is_err());
    }
}
