//! One agent per network namespace. The lock is an abstract socket: scoped by the namespace, freed by the kernel
//! however the agent ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// The name of the abstract socket.
const NAME: &str = "selvage-agent";

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _listener: UnixListener,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another agent runs in this network namespace{}", holder(*.0))]
    Held(Option<i32>),
    /// The kernel said no.
    #[error("cannot take the lock @{NAME}: {0}")]
    Io(#[from] io::Error),
}

fn holder(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(": process {pid}"))
}

impl Lock {
    /// Takes the lock of this network namespace, or says who has it.
    pub fn take() -> Result<Lock, LockError> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Lock {
                _listener: listener,
            }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(LockError::Held(pid_of_holder(&address)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// `None`: it went away meanwhile, or lives in a pid namespace that we cannot see.
fn pid_of_holder(address: &SocketAddr) -> Option<i32> {
    let stream = UnixStream::connect_addr(address).ok()?;
    let credentials = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(credentials.pid.as_raw_nonzero().get()).filter(|pid| *pid > 0)
}
