//! The machine's side of a cluster: the API server at an address of the machine, for any `kubectl` on it.
//!
//! ```text
//!   kubectl ─► 127.0.0.1:PORT ─► this process ─► FOLDER/api.sock ─► the sandbox ─► kube-apiserver
//! ```
//! A socket in the file system is the one thing that both sides see.

use std::env;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use selvage_lab::Netns;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The socket's name within the folder.
const SOCKET: &str = "api.sock";

/// A cluster's folder in the cache, by the process outside.
const PREFIX: &str = "kubernetes-";

/// Runs this program once more as `words`, with `--folder` and `--port` behind, and passes connections on to it until
/// it ends. Then the folder is removed.
///
/// # Errors
/// When the address is taken or the folder cannot be made.
pub fn stay(listen: SocketAddr, words: &[String]) -> Result<ExitCode> {
    let folder = cache()?.join(format!("{PREFIX}{}", std::process::id()));
    sweep();
    let listener =
        TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let port = listener.local_addr()?.port();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let inside = Command::new(env::current_exe()?)
        .args(words)
        .arg(format!("--folder={}", folder.display()))
        .arg(format!("--port={port}"))
        .spawn();
    let ended = inside.map_err(anyhow::Error::from).and_then(|mut inside| {
        let socket = folder.join(SOCKET);
        thread::spawn(move || accept(&listener, &socket));
        let pid = Pid::from_child(&inside);
        // It ends everything, and then itself.
        thread::spawn(move || {
            for _ in signals.forever() {
                let _ = kill_process(pid, Signal::TERM);
            }
        });
        Ok(inside.wait()?)
    });
    let _ = fs::remove_dir_all(&folder);
    let code = ended?.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Where sandbox and machine see the same files.
fn cache() -> Result<PathBuf> {
    let own = env::var_os("SELVAGE_CACHE").map(PathBuf::from);
    let general = env::var_os("XDG_CACHE_HOME").map(|path| PathBuf::from(path).join("selvage"));
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/selvage"));
    let cache = own.or(general).or(home);
    cache.context("neither HOME nor SELVAGE_CACHE is set")
}

/// Removes the folders of those that were killed.
fn sweep() {
    let entries = cache().and_then(|cache| Ok(fs::read_dir(cache)?));
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Gives a file to the user who has become root by `sudo`.
///
/// # Errors
/// When it cannot be given.
pub fn give(file: &Path) -> Result<()> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    match (number("SUDO_UID"), number("SUDO_GID")) {
        (Some(user), group) => Ok(chown(file, Some(user), group)?),
        (None, _) => Ok(()),
    }
}

fn accept(listener: &TcpListener, socket: &Path) {
    for client in listener.incoming().flatten() {
        // Before the API server is up, and after: the connection ends.
        if let Ok(server) = UnixStream::connect(socket) {
            couple(client.into(), server.into());
        }
    }
}

/// The sandbox's side: passes on what comes through the folder's socket to `server` in `netns`.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(folder: &Path, netns: &Netns, server: SocketAddr) -> Result<()> {
    let socket = folder.join(SOCKET);
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("cannot make {}", socket.display()))?;
    netns.thread(move || {
        for client in listener.incoming().flatten() {
            if let Ok(server) = TcpStream::connect(server) {
                couple(client.into(), server.into());
            }
        }
        Ok(())
    });
    Ok(())
}

/// Passes on what two sockets say to each other, until each has said all.
fn couple(one: OwnedFd, other: OwnedFd) {
    let ends = Arc::new((File::from(one), File::from(other)));
    let there = Arc::clone(&ends);
    thread::spawn(move || pass(&there.0, &there.1));
    thread::spawn(move || pass(&ends.1, &ends.0));
}

fn pass(mut from: &File, mut to: &File) {
    // An end is an end, whatever the reason.
    let _ = io::copy(&mut from, &mut to);
    let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
}
