//! The socket to nf_tables of a call: opened when it is needed first, and then used for everything.
//!
//! Closing such a socket waits until the kernel has freed what was deleted, by whomever (`nft_rcv_nl_event` in the
//! kernel: a grace period of some ten milliseconds). So a call opens one at most, deletes elements before links, and
//! lets the process that waits for the end of the links hold the socket open.

use std::os::fd::{AsFd, BorrowedFd};

use selvage_netlink::{Protocol, Socket};

use crate::spec::CniError;
use crate::veth::kernel;

/// A socket to nf_tables in the plugin's own namespace, if one was needed so far.
#[derive(Debug, Default)]
pub struct Nft(Option<Socket>);

impl Nft {
    /// The socket.
    pub fn socket(&mut self) -> Result<&mut Socket, CniError> {
        match &mut self.0 {
            Some(socket) => Ok(socket),
            none => {
                let opened = Socket::open(Protocol::Netfilter)
                    .map_err(|e| kernel("cannot speak to nf_tables", &e))?;
                Ok(none.insert(opened))
            }
        }
    }

    /// Its descriptor, if it is open.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}
