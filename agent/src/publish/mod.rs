//! What the agent writes to the API server: the node's condition, the statuses of our objects, events.
//!
//! ```text
//!   world ──► Wanted (the newest one counts) ──► writer ──► API server
//! ```
//! Level-triggered: the world says what should stand there, the writer makes it so, and again until it is. An object
//! that concerns many nodes is worked out by all agents alike; each waits for a random while before it writes, and
//! the first spares the others theirs, because they see it done. So there is no leader to elect or to lose.

mod event;
pub mod folder;
mod job;
mod request;
mod writer;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::desired::{StatusWrite, Verdict};
use crate::objects::Key;
use crate::objects::bgp_node_status::BgpNodeStatusStatus;

/// Who has written a field (server-side apply).
const FIELD_MANAGER: &str = "selvage";

/// All that should stand at the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// This node; without it nothing is written.
    pub node: Option<NodeRef>,
    /// How many nodes there are: what all write is spread over a while that grows with them.
    pub nodes: usize,
    /// Whether the node can have pods; `None` while it starts.
    pub network: Option<Network>,
    /// What the node's condition says at the API server; `None`: nothing yet.
    pub network_unavailable: Option<bool>,
    /// What the node has to say about itself, and whether it is ready.
    pub report: Option<(BgpNodeStatusStatus, Verdict)>,
    /// Statuses that are not as they should be.
    pub statuses: Vec<StatusWrite>,
    /// Objects without a status of ours that could not be used, or are not enforced.
    pub refused: Vec<Refused>,
}

/// A Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRef {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The condition `NetworkUnavailable` of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The node can have pods.
    pub available: bool,
    /// One word for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// An object of others that could not be used, or is not enforced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its kind.
    pub kind: &'static str,
    /// Which one.
    pub key: Key,
    /// Which of the objects that have had this name: `kubectl describe` asks by it.
    pub uid: String,
    /// The generation of the object that the event is about: one event for each. Empty: one event for each message.
    pub version: String,
    /// One word for programs.
    pub reason: &'static str,
    /// Why.
    pub message: String,
}

/// The world's end of the writer.
#[derive(Debug)]
pub struct Publisher {
    wanted: watch::Sender<Wanted>,
}

impl Publisher {
    /// Says what should stand there. Never waits.
    pub fn tell(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|told| {
            let differs = *told != wanted;
            *told = wanted;
            differs
        });
    }
}

/// Called when writing has begun to fail (why) or works again (`None`).
pub type Trouble = Box<dyn Fn(Option<String>) + Send + Sync>;

/// Starts the writer on a runtime. It ends with the [`Publisher`].
pub fn spawn(runtime: &Handle, client: kube::Client, trouble: Trouble) -> Publisher {
    let (wanted, told) = watch::channel(Wanted::default());
    runtime.spawn(writer::Writer::new(client, trouble).run(told));
    Publisher { wanted }
}
