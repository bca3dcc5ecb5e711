//! A byte proxy in front of a server, for what goes wrong between it and its clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use crate::netns::Netns;
use crate::probe::bind;

/// Passes TCP connections on to a server, until told otherwise. Dropping it ends them.
#[derive(Debug)]
pub struct Proxy {
    netns: Netns,
    listen: Vec<SocketAddr>,
    server: SocketAddr,
    shared: Arc<Shared>,
    /// A stop signal and the thread of each listener; none while connections are refused.
    listeners: Mutex<Vec<(UnixStream, JoinHandle<Result<()>>)>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Nothing moves, neither bytes nor ends of connections.
    paused: bool,
    /// Bytes wait this long before they are passed on.
    delay: Duration,
    /// Rises with each cut: who belongs to an earlier one ends.
    epoch: u64,
    connections: Vec<Connection>,
    /// All that were ever accepted.
    accepted: u64,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    ends: [TcpStream; 2],
}

impl Proxy {
    /// Listens on these addresses of `netns` and passes on to `server`, seen from there.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub fn start(netns: &Netns, listen: &[SocketAddr], server: SocketAddr) -> Result<Proxy> {
        let proxy = Proxy {
            netns: netns.clone(),
            listen: listen.to_vec(),
            server,
            shared: Arc::default(),
            listeners: Mutex::default(),
        };
        proxy.accept()?;
        Ok(proxy)
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Ends every connection; new ones are passed on.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        state.epoch += 1;
        for connection in state.connections.drain(..) {
            for end in &connection.ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
    }

    /// Nothing passes any more, while connections stay: a server or a path that hangs.
    pub fn pause(&self) {
        self.shared.lock().paused = true;
    }

    /// Undoes [`Proxy::pause`]; what has waited is passed on.
    pub fn resume(&self) {
        self.shared.lock().paused = false;
        self.shared.changed.notify_all();
    }

    /// Whatever is read waits this long before it is passed on.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
        self.shared.changed.notify_all();
    }

    /// Ends every connection and refuses new ones, as when nobody listens.
    pub fn refuse(&self) {
        for (stop, thread) in self.listeners().drain(..) {
            drop(stop);
            let _ = thread.join();
        }
        self.cut();
    }

    /// Undoes [`Proxy::refuse`].
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub fn accept(&self) -> Result<()> {
        let mut listeners = self.listeners();
        if !listeners.is_empty() {
            return Ok(());
        }
        for address in &self.listen {
            let listener = self
                .netns
                .run(|| bind(address.port(), || TcpListener::bind(address)))
                .with_context(|| format!("cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            let (stop, stopped) = UnixStream::pair()?;
            let (shared, server) = (Arc::clone(&self.shared), self.server);
            let thread = self
                .netns
                .thread(move || serve(&listener, &stopped, &shared, server));
            listeners.push((stop, thread));
        }
        Ok(())
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// How many connections there have been.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<(UnixStream, JoinHandle<Result<()>>)>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
    }
}

/// Accepts until the other end of `stopped` is gone.
fn serve(
    listener: &TcpListener,
    stopped: &UnixStream,
    shared: &Arc<Shared>,
    server: SocketAddr,
) -> Result<()> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        if let Ok((client, _)) = listener.accept() {
            client.set_nonblocking(false)?;
            let shared = Arc::clone(shared);
            // A server that is not there: the client's connection ends, and says enough.
            thread::spawn(move || pass_on(client, server, &shared));
        }
    }
}

/// One connection: both directions, until one side has ended both.
fn pass_on(client: TcpStream, server: SocketAddr, shared: &Arc<Shared>) -> Result<()> {
    let epoch = shared.lock().epoch;
    if !shared.wait_while_paused(epoch) {
        return Ok(());
    }
    let server = TcpStream::connect(server)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let Some(number) = shared.open(epoch, [client.try_clone()?, server.try_clone()?]) else {
        return Ok(());
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(&client, &server, shared, epoch));
        copy(&server, &client, shared, epoch);
    });
    shared.close(number);
    Ok(())
}

/// Passes bytes on in one direction; an end of stream is passed on, too.
fn copy(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared, epoch: u64) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut bytes).unwrap_or(0);
        if !shared.wait_while_paused(epoch) || !shared.wait_delay(epoch) {
            return;
        }
        if length == 0 || to.write_all(&bytes[..length]).is_err() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the connection, unless it was cut while it came up.
    fn open(&self, epoch: u64, ends: [TcpStream; 2]) -> Option<u64> {
        let mut state = self.lock();
        if state.epoch != epoch {
            return None;
        }
        state.accepted += 1;
        let number = state.accepted;
        state.connections.push(Connection { number, ends });
        Some(number)
    }

    fn close(&self, number: u64) {
        self.lock()
            .connections
            .retain(|connection| connection.number != number);
    }

    /// False when the connection was cut meanwhile.
    fn wait_while_paused(&self, epoch: u64) -> bool {
        let state = self.lock();
        let state = self
            .changed
            .wait_while(state, |state| state.paused && state.epoch == epoch)
            .unwrap_or_else(PoisonError::into_inner);
        state.epoch == epoch
    }

    /// False when the connection was cut meanwhile.
    fn wait_delay(&self, epoch: u64) -> bool {
        let start = Instant::now();
        let mut state = self.lock();
        while state.epoch == epoch {
            let left = state.delay.saturating_sub(start.elapsed());
            if left.is_zero() {
                return true;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        false
    }
}
