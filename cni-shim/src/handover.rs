//! Handing an attachment over to the agent, and taking it back.
//!
//! Fail closed: the pod's interface is opened after the agent has said `enforced` (or that it has no policy to
//! enforce), or where the configuration says that policy is not wanted. Never because something took too long.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::link::{self, Attachment, LinkError, PolicyMode, Reply, Request, SOCKET};
use crate::spec::{CniError, Code};

/// How long others are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// For somebody to listen, under `policy: required`.
    pub connect: Duration,
    /// For `enforced`, under `policy: required`.
    pub enforced: Duration,
    /// For any answer where little depends on it.
    pub courtesy: Duration,
    /// By GC, for ADDs under way to end.
    pub quiet: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            enforced: Duration::from_secs(30),
            courtesy: Duration::from_secs(1),
            quiet: Duration::from_secs(5),
        }
    }
}

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The interface may be opened.
    Open {
        /// The agent masquerades for this pod.
        masquerade: bool,
    },
    /// It stays closed; the agent will open it.
    Closed,
}

/// Tells the agent in `run_dir` of an attachment. Code 11 under `policy: required` if it does not say in time that
/// the interface may be opened.
pub fn attach(
    attachment: &Attachment,
    run_dir: &Path,
    budget: &Budget,
) -> Result<Outcome, CniError> {
    let request = Request::Attach {
        attachment: Box::new(attachment.clone()),
    };
    if attachment.policy == PolicyMode::Required {
        return required(&request, run_dir, budget);
    }
    if attachment.policy == PolicyMode::None && !attachment.ip_masq {
        // Nothing depends on the answer, so it is not waited for.
        let _ = tell(&request, run_dir, budget.courtesy);
        return Ok(Outcome::Open { masquerade: false });
    }
    let answer = ask_once(&request, run_dir, budget.courtesy).ok();
    Ok(
        match (attachment.policy, answer.as_ref().and_then(outcome)) {
            (_, Some(outcome)) => outcome,
            (PolicyMode::None, None) => Outcome::Open { masquerade: false },
            (_, None) => Outcome::Closed,
        },
    )
}

/// Tells the agent that an attachment goes. Nothing depends on whether it hears it.
pub fn detach(container_id: &str, ifname: &str, run_dir: &Path, budget: &Budget) {
    let request = Request::Detach {
        id: container_id.to_owned(),
        ifname: ifname.to_owned(),
    };
    let _ = ask_once(&request, run_dir, budget.courtesy);
}

fn outcome(reply: &Reply) -> Option<Outcome> {
    match reply {
        Reply::Enforced { masquerade, .. } | Reply::NotApplicable { masquerade } => {
            Some(Outcome::Open {
                masquerade: *masquerade,
            })
        }
        Reply::Ok | Reply::Error { .. } => None,
    }
}

/// Asks until there is an answer: an agent that is replaced meanwhile is asked again when it is back.
fn required(request: &Request, run_dir: &Path, budget: &Budget) -> Result<Outcome, CniError> {
    let begin = Instant::now();
    let give_up = begin + budget.connect + budget.enforced;
    let mut connect_by = begin + budget.connect;
    loop {
        let failed = match dial(run_dir) {
            Ok(mut stream) => match ask(
                &mut stream,
                request,
                give_up.min(Instant::now() + budget.enforced),
            ) {
                Ok(reply) => return answered(&reply),
                Err(LinkError::Io(e)) if is_timeout(&e) => {
                    return Err(later(
                        "the agent did not have the pod's policy in the kernel in time",
                        run_dir,
                        "",
                    ));
                }
                Err(LinkError::Io(e)) => {
                    connect_by = Instant::now() + budget.connect;
                    e
                }
                Err(e) => {
                    return Err(later(
                        "the agent cannot be understood",
                        run_dir,
                        &e.to_string(),
                    ));
                }
            },
            Err(e) => e,
        };
        if Instant::now() >= connect_by.min(give_up) {
            return Err(later(
                "the agent does not answer, and policy is required",
                run_dir,
                &failed.to_string(),
            ));
        }
        std::thread::sleep(PAUSE);
    }
}

fn answered(reply: &Reply) -> Result<Outcome, CniError> {
    match (outcome(reply), reply) {
        (Some(outcome), _) => Ok(outcome),
        (None, Reply::Error { message }) => Err(CniError::new(
            Code::TryAgainLater,
            format!("the agent refused the attachment: {message}"),
        )),
        (None, other) => Err(CniError::new(
            Code::TryAgainLater,
            format!("the agent's answer to attach makes no sense: {other:?}"),
        )),
    }
}

fn later(why: &str, run_dir: &Path, details: &str) -> CniError {
    let message = format!("{why} ({})", run_dir.join(SOCKET).display());
    CniError::new(Code::TryAgainLater, message).with_details(details)
}

fn ask_once(request: &Request, run_dir: &Path, patience: Duration) -> Result<Reply, LinkError> {
    let deadline = Instant::now() + patience;
    ask(&mut dial(run_dir)?, request, deadline)
}

fn tell(request: &Request, run_dir: &Path, patience: Duration) -> Result<(), LinkError> {
    let mut stream = dial(run_dir)?;
    stream.set_write_timeout(Some(patience))?;
    link::send(&mut stream, request)
}

fn ask(stream: &mut UnixStream, request: &Request, deadline: Instant) -> Result<Reply, LinkError> {
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left))?;
    link::send(stream, request)?;
    stream.set_read_timeout(Some(left))?;
    link::receive(stream)
}

/// Connects without waiting: where the agent's backlog is full, a blocking connect would wait without end.
fn dial(run_dir: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(run_dir.join(SOCKET))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::NOENT) => {
            return Err(io::Error::other(
                "nobody listens: the socket does not exist",
            ));
        }
        Err(e) => return Err(e.into()),
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
