//! A program running in a namespace: its output, its end.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::deadline::eventually;
use crate::netns::Netns;

/// A started program. Dropping it kills it, so that no trial leaves one to the next.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// How it ended, once it was waited for.
    status: Option<ExitStatus>,
}

/// How many lines of output a failure shows.
const TAIL: usize = 25;

impl Process {
    /// Starts `command` in `netns`. Standard output and error are appended to `log`, standard input is empty.
    ///
    /// # Errors
    /// When the program is not there or cannot be started.
    pub fn spawn(netns: &Netns, name: &str, log: &Path, command: Command) -> Result<Process> {
        Process::spawn_by(name, log, command, |mut command| {
            netns.run(|| {
                command.spawn().with_context(|| {
                    format!("cannot start {}", command.get_program().to_string_lossy())
                })
            })
        })
    }

    /// As [`Process::spawn`], where `start` knows the place.
    pub(crate) fn spawn_by(
        name: &str,
        log: &Path,
        mut command: Command,
        start: impl FnOnce(Command) -> Result<Child>,
    ) -> Result<Process> {
        let output = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = start(command)?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            status: None,
        })
    }

    /// The name given at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id within the sandbox.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with standard output and error.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All output so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The end of the output, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        tail_of(&self.output(), TAIL)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits until `condition` holds while the program runs.
    ///
    /// # Errors
    /// When the program ends or the time is over; the message carries the end of its output.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut() -> bool,
    ) -> Result<Duration> {
        let mut end = None;
        let waited = eventually(limit, what, || {
            if condition() {
                return true;
            }
            end = self.ended();
            end.is_some()
        });
        match (waited, end) {
            (Ok(_), Some(status)) => {
                bail!(
                    "{} ended ({status}) before: {what}\n{}",
                    self.name,
                    self.tail()
                )
            }
            (Ok(took), None) => Ok(took),
            (Err(error), _) => Err(error.context(format!("{} says:\n{}", self.name, self.tail()))),
        }
    }

    /// Waits for output that contains `text`.
    ///
    /// # Errors
    /// As [`Process::wait_for`].
    pub fn wait_line(&mut self, text: &str, limit: Duration) -> Result<Duration> {
        let log = self.log.clone();
        self.wait_for(limit, &format!("the line {text:?}"), || {
            fs::read(&log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        })
    }

    /// Waits for a file or socket to appear.
    ///
    /// # Errors
    /// As [`Process::wait_for`].
    pub fn wait_path(&mut self, path: &Path, limit: Duration) -> Result<Duration> {
        self.wait_for(limit, &format!("the file {}", path.display()), || {
            path.exists()
        })
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut end = None;
        let waited = eventually(limit, "its end", || {
            end = self.ended();
            end.is_some()
        });
        match (waited, end) {
            (Ok(_), Some(status)) => Ok(status),
            _ => bail!("{} still runs after {limit:?}\n{}", self.name, self.tail()),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended() {
            bail!(
                "{} has ended already ({status})\n{}",
                self.name,
                self.tail()
            );
        }
        kill_process(Pid::from_child(&self.child), signal).context("kill")
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it has ended before, or still runs after `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_end(limit)
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it had ended before by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        let status = self.child.wait()?;
        self.status = Some(status);
        match status.signal() {
            Some(9) => Ok(()),
            _ => bail!("{} ended by itself ({status})\n{}", self.name, self.tail()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The last `lines` lines of a text.
#[must_use]
pub fn tail_of(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a program in a namespace to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or does not succeed; the message carries its output.
pub fn output_of(netns: &Netns, mut command: Command) -> Result<String> {
    let output = netns.run(|| {
        command
            .output()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{:?} ended with {}:\n{stdout}{stderr}",
            command,
            output.status
        );
    }
    Ok(stdout)
}

#[cfg(test)]
mod tests {
    use super::tail_of;

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail_of("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail_of("a\n", 2), "a");
        assert_eq!(tail_of("", 2), "");
    }
}
