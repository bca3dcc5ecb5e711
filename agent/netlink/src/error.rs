//! What can go wrong between us and the kernel, and who erred.
//!
//! A [`Refusal`] is the kernel's answer to one message; the other variants of [`Error`] concern
//! the conversation as a whole, after which the state of the kernel has to be read again.

use std::fmt;
use std::io;

/// The result of a conversation with the kernel.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kernel refused one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive (`ENOENT` is 2).
    pub errno: i32,
    /// The kernel's extended acknowledgement, if it sent a text.
    pub message: Option<String>,
    /// Offset in bytes of the offending attribute from the start of the message, if known.
    pub offset: Option<u32>,
}

/// One message of a batch that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Position of the message in its batch, counted from 0.
    pub index: usize,
    /// Why.
    pub refusal: Refusal,
}

/// A conversation that did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    Io(io::Error),
    /// The kernel refused a message.
    Refused(Failure),
    /// The socket's receive buffer overflowed: replies or notifications were lost (`ENOBUFS`).
    /// What the kernel has must be read again.
    Overrun,
    /// A datagram was longer than the receive buffer (`MSG_TRUNC`).
    Truncated,
    /// What was listed changed during the listing, several times in a row (`NLM_F_DUMP_INTR`).
    Interrupted,
    /// The kernel's answer did not come; it always precedes the return of `sendmsg`.
    NoReply,
    /// The kernel sent something that cannot be decoded.
    Malformed(&'static str),
    /// A message or an attribute does not fit its length field, or a transaction not the send
    /// buffer. Nothing was sent.
    TooLong,
}

impl Error {
    /// The error number of a refusal or of a failed system call.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io(error) => error.raw_os_error(),
            Self::Refused(failure) => Some(failure.refusal.errno),
            _ => None,
        }
    }

    /// Whether this is the given error number, e.g. `Errno::NOENT`.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        match &self.message {
            Some(text) => write!(f, "{text}: {error}"),
            None => write!(f, "{error}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {}: {}", self.index, self.refusal)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "netlink: {error}"),
            Self::Refused(failure) => write!(f, "the kernel refused {failure}"),
            Self::Overrun => f.write_str("netlink receive buffer overflowed, messages were lost"),
            Self::Truncated => f.write_str("netlink message longer than the receive buffer"),
            Self::Interrupted => f.write_str("netlink listing kept changing while it was read"),
            Self::NoReply => f.write_str("the kernel did not answer a netlink request"),
            Self::Malformed(what) => write!(f, "malformed netlink message: {what}"),
            Self::TooLong => f.write_str("netlink message too long"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}
