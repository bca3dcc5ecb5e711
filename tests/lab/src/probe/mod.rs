//! Probes of our own: sockets opened in a thread that has entered the namespace.

pub mod flow;
pub mod ping;
pub mod raw;
pub mod server;
pub mod tcp;
pub mod udp;

use std::io;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::deadline::eventually_ok;

/// What came of an attempt to reach somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered.
    Yes,
    /// It answered that nobody listens there: the packet did arrive.
    Refused,
    /// Somebody, or our own kernel, said that there is no way.
    Unreachable,
    /// Nothing came back in time: dropped on the way, or nobody there.
    Silence,
}

impl Answer {
    /// Whether packets went both ways.
    #[must_use]
    pub fn is_yes(self) -> bool {
        self == Answer::Yes
    }

    /// What an error of a socket says about the way.
    ///
    /// # Errors
    /// The error itself when it says nothing about the way.
    fn from_error(error: io::Error) -> io::Result<Answer> {
        use io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused | K::ConnectionReset => Ok(Answer::Refused),
            // InvalidInput: the answer of a blackhole route to a sender of its own host.
            K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown
            | K::PermissionDenied
            | K::InvalidInput => Ok(Answer::Unreachable),
            K::TimedOut | K::WouldBlock => Ok(Answer::Silence),
            _ => Err(error),
        }
    }
}

/// Binds a port that a probe before this one may have used: for as long as another thread is between fork and exec, its
/// child holds a copy of the closed socket.
pub(crate) fn bind<T>(port: u16, mut bind: impl FnMut() -> io::Result<T>) -> Result<T> {
    eventually_ok(Duration::from_secs(10), "a free port", || {
        bind().with_context(|| format!("port {port}"))
    })
}
