//! Watches a file or a directory with inotify and feeds what it says to a sink.
//!
//! A file is read when it is complete: after its writer closed it, or when it was moved into place. At the start,
//! and after the kernel lost events, everything is read; what is half written then is read again when it is closed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags};
use selvage_bgp::Pulse;

use super::ObjectEvent;
use super::directory::Directory;
use super::folder::{AWAY, watch_folder, watch_or_await};
use super::yaml::MAX_FILE;
use crate::inbox::{Inbox, Sender};
use crate::objects::Kind;

/// The most files that a directory may hold.
pub const MAX_FILES: usize = 20_000;

/// Where batches go. Called on the watcher's thread; returns false when nobody listens any more.
pub type Sink = Box<dyn FnMut(Vec<ObjectEvent>) -> bool + Send>;

/// A running watcher; dropping it stops the thread.
#[derive(Debug)]
pub struct Watcher {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    /// Say so when everything that is there now was sent.
    Reach(u64),
    Stop,
}

/// Starts to watch `path`, a file or a directory. Fails if it is not there. The thread stamps `pulse`.
pub fn spawn(path: &Path, pulse: Arc<Pulse>, sink: Sink) -> io::Result<Watcher> {
    let mut source = Source::open(path, sink)?;
    let (commands, inbox) = Inbox::new()?;
    let inbox = inbox.with_pulse(pulse);
    let thread = std::thread::Builder::new()
        .name("source".into())
        .spawn(move || source.run(&inbox))?;
    Ok(Watcher {
        commands,
        thread: Some(thread),
    })
}

impl Watcher {
    /// Asks for [`ObjectEvent::Reached`] after everything that the files hold now.
    pub fn reach(&self, mark: u64) {
        self.commands.send(Command::Reach(mark));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads a file, or all files of a directory, once and without watching.
pub fn stage_all(directory: &mut Directory, path: &Path) -> io::Result<()> {
    for file in list(path, None)? {
        load(directory, &file);
    }
    Ok(())
}

struct Source {
    inotify: OwnedFd,
    /// The directory that is watched.
    folder: PathBuf,
    /// The one file of it that counts, if the source is a file.
    only: Option<PathBuf>,
    watching: bool,
    directory: Directory,
    sink: Sink,
}

enum Seen {
    Nothing,
    Files(BTreeSet<PathBuf>),
    /// Events were lost, or a link to the directory was replaced.
    Everything,
    /// The directory went away.
    Gone,
}

impl Source {
    fn open(path: &Path, sink: Sink) -> io::Result<Source> {
        let path = std::path::absolute(path)?;
        let is_folder = fs::metadata(&path)?.is_dir();
        let (folder, only) = match (is_folder, path.parent()) {
            (false, Some(parent)) => (parent.to_owned(), Some(path.clone())),
            _ => (path, None),
        };
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        watch_folder(&inotify, &folder)?;
        Ok(Source {
            inotify,
            folder,
            only,
            watching: true,
            directory: Directory::default(),
            sink,
        })
    }

    fn run(&mut self, inbox: &Inbox<Command>) {
        let mut first: Vec<ObjectEvent> = Kind::ALL.into_iter().map(ObjectEvent::Relist).collect();
        first.extend(self.scan());
        first.extend(Kind::ALL.into_iter().map(ObjectEvent::Synced));
        if !(self.sink)(first) {
            return;
        }
        loop {
            // Only while the directory is away is there something to do without an event.
            let retry = (!self.watching).then_some(AWAY);
            if let Err(error) = inbox.wait(&[self.inotify.as_fd()], retry) {
                tracing::error!(%error, "the object directory is no longer watched");
                return;
            }
            // Commands first: what was written before a mark was asked for is then in the kernel's queue already.
            let commands = inbox.recv_all();
            if commands
                .iter()
                .any(|command| matches!(command, Command::Stop))
            {
                return;
            }
            let mut events = self.turn();
            events.extend(commands.into_iter().filter_map(|command| match command {
                Command::Reach(mark) => Some(ObjectEvent::Reached(mark)),
                Command::Stop => None,
            }));
            if !events.is_empty() && !(self.sink)(events) {
                return;
            }
        }
    }

    fn turn(&mut self) -> Vec<ObjectEvent> {
        if !self.watching {
            return self.look_for_folder();
        }
        match self.seen() {
            Seen::Nothing => return Vec::new(),
            Seen::Gone => {
                self.watching = false;
                tracing::warn!(path = %self.folder.display(), "the object directory is gone; its last objects stay in force");
                return self.look_for_folder();
            }
            Seen::Everything => return self.scan(),
            Seen::Files(paths) => {
                for path in paths {
                    load(&mut self.directory, &path);
                }
            }
        }
        self.directory.settle()
    }

    /// Reads everything if the directory is there again.
    fn look_for_folder(&mut self) -> Vec<ObjectEvent> {
        match watch_or_await(&self.folder) {
            Ok((inotify, there)) => {
                self.inotify = inotify;
                self.watching = there;
            }
            Err(error) => {
                tracing::warn!(path = %self.folder.display(), %error, "the object directory cannot be watched")
            }
        }
        if !self.watching {
            return Vec::new();
        }
        tracing::info!(path = %self.folder.display(), "the object directory is back");
        self.scan()
    }

    /// Takes everything that the kernel has to say.
    fn seen(&mut self) -> Seen {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut files = BTreeSet::new();
        let mut everything = false;
        let mut gone = false;
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF)
            {
                gone = true;
                continue;
            }
            let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else {
                everything |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
                continue;
            };
            // How the kubelet replaces all files of a ConfigMap at once.
            everything |= name == "..data" && flags.contains(ReadFlags::MOVED_TO);
            let path = self.folder.join(name);
            // A new file is complete when it is closed; a link is complete at once.
            let unfinished = flags.contains(ReadFlags::CREATE) && !path.is_symlink();
            if counts(&path, self.only.as_deref()) && !unfinished {
                files.insert(path);
            }
        }
        if gone {
            return Seen::Gone;
        }
        match (everything, files.is_empty()) {
            (true, _) => Seen::Everything,
            (false, true) => Seen::Nothing,
            (false, false) => Seen::Files(files),
        }
    }

    fn scan(&mut self) -> Vec<ObjectEvent> {
        let files = match list(&self.folder, self.only.as_deref()) {
            Ok(files) => files,
            Err(error) => {
                self.directory
                    .stage_unreadable(&self.folder, error.to_string());
                return self.directory.settle();
            }
        };
        let gone: Vec<PathBuf> = self
            .directory
            .paths()
            .filter(|path| !files.contains(*path))
            .map(Path::to_owned)
            .collect();
        for path in gone {
            self.directory.stage_removed(&path);
        }
        for path in files {
            load(&mut self.directory, &path);
        }
        self.directory.settle()
    }
}

/// Whether a file is one of those that hold objects.
fn counts(path: &Path, only: Option<&Path>) -> bool {
    if let Some(only) = only {
        return path == only;
    }
    let hidden = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_none_or(|name| name.starts_with('.'));
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    !hidden && ["yaml", "yml", "json"].contains(&extension)
}

fn list(path: &Path, only: Option<&Path>) -> io::Result<BTreeSet<PathBuf>> {
    if let Some(only) = only {
        return Ok(only.exists().then(|| only.to_owned()).into_iter().collect());
    }
    if !fs::metadata(path)?.is_dir() {
        return Ok([path.to_owned()].into());
    }
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if counts(&path, None) && path.is_file() {
            files.insert(path);
        }
    }
    if files.len() > MAX_FILES {
        return Err(io::Error::other(format!(
            "{} files, at most {MAX_FILES} are read",
            files.len()
        )));
    }
    Ok(files)
}

fn load(directory: &mut Directory, path: &Path) {
    match text(path) {
        Ok(text) => directory.stage_text(path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => directory.stage_removed(path),
        Err(error) => directory.stage_unreadable(path, error.to_string()),
    }
}

/// The text of a file that is not larger than [`MAX_FILE`].
pub fn text(path: &Path) -> io::Result<String> {
    // Asked before opening: to open a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "larger than {} MiB",
            MAX_FILE >> 20
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        io::Error::other(format!(
            "not UTF-8 text: byte {} is not a character",
            error.utf8_error().valid_up_to()
        ))
    })
}
