//! The daemon's two sockets: `selvage.sock` for people and programs, `cni.sock` for the plugin.
//!
//! ```text
//!   selvage.sock ── server ──┐                       ┌── views (of the store, by its owner)
//!                            ├─► Query, LinkQuery ─► owner of the world ─► reply
//!   cni.sock ────── cni ─────┘                       └── waits (answered when they come true)
//! ```
//! The servers hold no state and take no lock: every request is a message to the thread that owns what is asked
//! for, and carries where the answer goes. Routes are asked of the RIB, not of the owner of the world, who would have to wait
//! for it; whether a thread hangs is read from its pulse, without asking anybody.

pub mod client;
pub mod cni;
pub mod lock;
pub mod server;
pub mod views;
pub mod waits;

mod asker;

use std::sync::Arc;

use selvage_cni::link;
use tokio::sync::oneshot;

pub use self::asker::Asker;

use crate::api::{
    ConditionView, PeerQuestion, PeerView, Refusal, StatusView, WaitFor, WhyQuestion, WhyView,
};

/// Where an answer goes. A dropped one means that the daemon is stopping.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A question to the owner of the world.
#[derive(Debug)]
pub enum Query {
    /// Everything on one screen.
    Status(Reply<StatusView>),
    /// The neighbours.
    Peers(PeerQuestion, Reply<Vec<PeerView>>),
    /// May this packet pass?
    Why(WhyQuestion, Reply<WhyView>),
    /// The conditions of the objects.
    Objects(Reply<Vec<ConditionView>>),
    /// Answered when it comes true; see [`waits::Waits`].
    Wait(WaitFor, Reply<()>),
}

/// A request of the plugin.
#[derive(Debug)]
pub enum LinkQuery {
    /// A new attachment; answered with `Enforced` when the pod's policy is in the kernel. If the plugin hangs up
    /// before, the sender is closed.
    Attach(Box<link::Attachment>, oneshot::Sender<link::Reply>),
    /// An attachment that goes away.
    Detach {
        /// `CNI_CONTAINERID`.
        id: String,
        /// `CNI_IFNAME`.
        ifname: String,
        /// Answered at once.
        reply: oneshot::Sender<link::Reply>,
    },
}

/// How queries reach the owner of the world; must not block.
pub type Ask<Q> = Arc<dyn Fn(Q) + Send + Sync>;
