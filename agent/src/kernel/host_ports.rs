//! The plugin's table of host ports, looked after while no plugin runs: the thread `host-ports`.
//!
//! The plugin is the table's one writer. What is done here is done by the plugin's library, under its lock, from the
//! attachments. That lock may be another's for a while, hence a thread that nobody waits for.

use std::{
    net::IpAddr,
    path::Path,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use selvage_cni::{attachment::Attachments, nft::Nft, portmap};
use selvage_netlink::Error;

use super::{Shutdown, nft::Shared};
use crate::inbox::Inbox;

/// The table, and those who write it: the plugin and this thread.
pub const TABLE: Shared = Shared {
    table: "selvage-cni",
    writers: &["selvage-cni", THREAD],
};

const THREAD: &str = "host-ports";
/// A table that could not be looked after is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What the thread is told.
#[derive(Debug)]
pub enum HostPortWork {
    /// These programs, for people, have changed the table: look at it.
    Look {
        /// Their names.
        by: String,
    },
    /// The addresses of the node's Node object, or those of its links, are others than before: these are the Node's.
    Addresses(Vec<IpAddr>),
    /// End the thread; the table stays.
    Shutdown(Shutdown),
}

/// What the thread tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostPortEvent {
    /// The table is as it should be.
    Good {
        /// It was not.
        repaired: bool,
    },
    /// The table could not be looked at or written; the thread goes on trying.
    Failed {
        /// For people.
        reason: String,
    },
}

/// Starts the thread in the calling thread's network namespace: it looks at the table once, and whenever it is told
/// to. `output` is called there.
pub fn spawn(
    state_dir: &Path,
    inbox: Inbox<HostPortWork>,
    mut output: impl FnMut(HostPortEvent) + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let attachments = Attachments::of(state_dir);
    let run = move || {
        let mut look = Some("somebody, while no agent ran".to_owned());
        let mut addresses: Option<Vec<IpAddr>> = None;
        loop {
            if let Some(now) = addresses.take()
                && let Err(error) = attachments
                    .set_node_addresses(&now)
                    .and_then(|_| portmap::heal(&mut Nft::default(), &attachments))
            {
                let reason = error.to_string();
                tracing::warn!(
                    reason,
                    "host ports: the node's own addresses cannot be noted, trying again"
                );
                output(HostPortEvent::Failed { reason });
                addresses = Some(now);
            }
            if let Some(by) = look.take() {
                match portmap::sweep(&mut Nft::default(), &attachments) {
                    Ok(repaired) => {
                        if repaired {
                            tracing::warn!(
                                table = TABLE.table,
                                by,
                                "host ports: the plugin's table was repaired: another program had changed it"
                            );
                        }
                        output(HostPortEvent::Good { repaired });
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        tracing::warn!(
                            reason,
                            "host ports: the plugin's table cannot be looked after, trying again"
                        );
                        output(HostPortEvent::Failed { reason });
                        look = Some(by);
                    }
                }
            }
            let again = look.is_some() || addresses.is_some();
            if let Err(error) = inbox.wait(&[], again.then_some(RETRY)) {
                tracing::error!(%error, "host ports: cannot wait");
                std::thread::sleep(Duration::from_millis(100));
            }
            for work in inbox.recv_all() {
                match work {
                    HostPortWork::Look { by } => look = Some(by),
                    HostPortWork::Addresses(now) => addresses = Some(now),
                    HostPortWork::Shutdown(_) => return,
                }
            }
        }
    };
    Ok(Builder::new().name(THREAD.into()).spawn(run)?)
}
