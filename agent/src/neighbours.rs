//! The neighbours that have a session, remembered for the next run of the agent: after a restart End-of-RIB waits for them,
//! and those that came by a range are tried once (ADR 9).
//!
//! One small file in the state directory, replaced as a whole. It need not survive the machine: after a boot nobody keeps
//! routes of ours. It is written by a thread of its own, at once after a quiet time, and at most once a second.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use selvage_bgp::{
    Handle,
    core::{
        ids::{IfIndex, PeerKey},
        session::State,
    },
};
use tracing::warn;

/// The file in the state directory, and the one that is renamed to it.
pub const FILES: [&str; 2] = [FILE, FRESH];
const FILE: &str = "neighbours";
const FRESH: &str = "neighbours.new";
/// Its first line.
const HEAD: &str = "selvage neighbours 1";
/// The largest file that is read, in octets: 65,535 neighbours, the most that a speaker can have, take less.
const LARGEST: u64 = 8 << 20;
/// The time between two writes.
const PAUSE: Duration = Duration::from_secs(1);

/// Says that sessions may have changed. Dropping it ends the thread.
#[derive(Debug)]
pub struct Changed(SyncSender<()>);

impl Changed {
    /// Never waits: one word that is waiting to be heard is enough.
    pub fn tell(&self) {
        // The thread has yet to hear an earlier word, or has ended with the speaker.
        let _ = self.0.try_send(());
    }
}

/// Who had a session with the agent's earlier run; `None`: it left no list that can be read.
pub fn read(state_dir: &Path) -> Option<Vec<PeerKey>> {
    let path = state_dir.join(FILE);
    match read_file(&path) {
        Ok(neighbours) => Some(neighbours),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot read who had a session before: End-of-RIB waits for the whole restart time");
            None
        }
    }
}

fn read_file(path: &Path) -> io::Result<Vec<PeerKey>> {
    let malformed = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = fs::File::open(path)?;
    if file.metadata()?.len() > LARGEST {
        return Err(malformed(format!("it has more than {LARGEST} octets")));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return Err(malformed(format!("its first line is not {HEAD:?}")));
    }
    let parsed = lines.map(|line| {
        key(line).ok_or_else(|| malformed(format!("{line:?} is not the address of a neighbour")))
    });
    parsed.collect()
}

/// An address; behind a `%`, the index of the interface of a link-local one.
fn key(line: &str) -> Option<PeerKey> {
    let (addr, scope) = match line.split_once('%') {
        Some((addr, scope)) => (addr, Some(IfIndex(scope.parse().ok()?))),
        None => (line, None),
    };
    let addr: IpAddr = addr.parse().ok()?;
    Some(PeerKey { addr, scope })
}

/// What a thread is to remember, and where.
#[derive(Debug)]
pub struct Neighbours {
    path: PathBuf,
    changed: Receiver<()>,
    /// Those of the earlier run that have not come back.
    awaited: BTreeSet<(IpAddr, Option<u32>)>,
    /// Until when they may.
    until: Instant,
    written: Option<BTreeSet<(IpAddr, Option<u32>)>>,
}

/// A list that is not written yet. `before`: who is waited for, for `restart_time`, after a restart.
pub fn new(
    state_dir: &Path,
    before: Option<&[PeerKey]>,
    restart_time: Duration,
) -> (Changed, Neighbours) {
    let (sender, changed) = mpsc::sync_channel(1);
    let neighbours = Neighbours {
        path: state_dir.join(FILE),
        changed,
        awaited: before.unwrap_or_default().iter().map(place).collect(),
        until: Instant::now() + restart_time,
        written: None,
    };
    (Changed(sender), neighbours)
}

fn place(key: &PeerKey) -> (IpAddr, Option<u32>) {
    (key.addr, key.scope.map(|i| i.0))
}

impl Neighbours {
    /// Starts the thread; it ends when the [`Changed`] is dropped, or the speaker stops.
    pub fn watch(mut self, speaker: Handle) -> io::Result<()> {
        let run = move || while self.wait() && self.look(&speaker) {};
        thread::Builder::new()
            .name("neighbours".into())
            .spawn(run)?;
        Ok(())
    }

    /// Until something has changed; false: nothing will any more.
    fn wait(&mut self) -> bool {
        if self.awaited.is_empty() {
            return self.changed.recv().is_ok();
        }
        let left = self.until.saturating_duration_since(Instant::now());
        match self.changed.recv_timeout(left) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => {
                self.awaited.clear();
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Writes the list if it is another one; false: the speaker has stopped.
    fn look(&mut self, speaker: &Handle) -> bool {
        let Ok(peers) = speaker.peers() else {
            return false;
        };
        let mut now = BTreeSet::new();
        for peer in &peers {
            let place = place(&peer.config.key);
            if peer.session.state == State::Established {
                self.awaited.remove(&place);
                now.insert(place);
            } else if !peer.session.stale.is_empty() {
                now.insert(place);
            }
        }
        now.extend(&self.awaited);
        if self.written.as_ref() != Some(&now) {
            if let Err(error) = self.write(&now) {
                warn!(path = %self.path.display(), %error, "cannot write down who has a session: after a restart End-of-RIB may come too early");
            }
            // What could not be written is tried again with the next change.
            self.written = Some(now);
            thread::sleep(PAUSE);
        }
        true
    }

    fn write(&self, neighbours: &BTreeSet<(IpAddr, Option<u32>)>) -> io::Result<()> {
        let mut text = format!("{HEAD}\n");
        for (addr, scope) in neighbours {
            text += &addr.to_string();
            if let Some(scope) = scope {
                text += &format!("%{scope}");
            }
            text.push('\n');
        }
        let fresh = self.path.with_file_name(FRESH);
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = std::env::temp_dir().join(format!("neighbours-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(read(&folder), None);
        let keys = [
            PeerKey::from(IpAddr::from([192, 0, 2, 7])),
            PeerKey {
                addr: "fe80::1".parse().unwrap(),
                scope: Some(IfIndex(3)),
            },
        ];
        let (_changed, neighbours) = new(&folder, Some(&keys), PAUSE);
        neighbours.write(&neighbours.awaited).unwrap();
        assert_eq!(read(&folder).as_deref(), Some(&keys[..]));
        for wrong in [
            "",
            "192.0.2.7\n",
            "selvage neighbours 1\n192.0.2.256\n",
            "selvage neighbours 1\nfe80::1%eth0\n",
        ] {
            fs::write(folder.join(FILE), wrong).unwrap();
            assert_eq!(read(&folder), None, "{wrong:?}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
