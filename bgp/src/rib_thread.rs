//! The thread that owns the RIB: takes batches, gives batches, and never waits for anybody who reads them.

use std::{
    ops::ControlFlow,
    sync::{Arc, mpsc},
    time::Duration,
};

use selvage_bgp_core::{
    event::{FromPeer, PeerEvent},
    ids::Family,
    rib::{Page, Query, Rib, RibInput, RibOutput, RouteChange},
};
use std::net::IpAddr;

use crate::{
    io_thread::IoWork,
    queue::{ToIo, ToRib},
    speaker::Clock,
};

/// What the RIB thread is told.
pub(crate) enum RibWork {
    /// By the I/O thread or the owner of the kernel's routes.
    Input(RibInput),
    /// By the control API: a page of the table, sent back at once.
    Query(Query, mpsc::SyncSender<Page>),
    /// The end.
    Stop,
}

impl RibWork {
    /// What it weighs in the queue.
    pub(crate) fn octets(&self) -> usize {
        match self {
            RibWork::Input(RibInput::Event(FromPeer {
                event: PeerEvent::Reach { nlri, .. },
                ..
            })) => 256 + nlri.octets(),
            RibWork::Input(RibInput::Event(FromPeer {
                event: PeerEvent::Unreach(nlri),
                ..
            })) => 64 + nlri.octets(),
            _ => 64,
        }
    }

    /// Whether a session is in another state by it.
    fn is_transition(&self) -> bool {
        let RibWork::Input(input) = self else {
            return false;
        };
        match input {
            RibInput::Event(from) => matches!(
                from.event,
                PeerEvent::Up(_) | PeerEvent::Down { .. } | PeerEvent::EndOfRib(_)
            ),
            RibInput::Peer(..) | RibInput::PeerGone(_) => true,
            _ => false,
        }
    }
}

/// What the RIB has to say to whoever programs routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteEvent {
    /// Best paths that changed; one change for a prefix at most.
    Changes(Vec<RouteChange>),
    /// The table of a family is complete: what it does not hold is stale.
    Synced(Family),
    /// Tell how this next hop is reached, now and whenever that changes.
    Watch(IpAddr),
    /// Nobody needs this next hop any more.
    Unwatch(IpAddr),
    /// Sessions have come up or gone down, or an End-of-RIB has come: whoever shows neighbours looks again.
    Sessions,
}

/// Takes route events on the RIB thread; must not block.
pub type RouteSink = Box<dyn FnMut(Vec<RouteEvent>) + Send>;

/// Items taken from the queue at once.
const BATCH: usize = 1024;
/// Prefixes that one poll may work on.
const BUDGET: usize = 8192;

pub(crate) struct RibThread {
    pub(crate) rib: Rib,
    pub(crate) clock: Clock,
    pub(crate) inbox: Arc<ToRib<RibWork>>,
    pub(crate) io: Arc<ToIo<IoWork>>,
    pub(crate) routes: RouteSink,
}

/// However the thread ends, nobody waits for its answers.
impl Drop for RibThread {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl RibThread {
    pub(crate) fn run(mut self) {
        let mut work = Vec::new();
        let mut outputs = Vec::new();
        let mut to_io = Vec::new();
        let mut more = false;
        loop {
            let wait = if more {
                Some(Duration::ZERO)
            } else {
                self.rib.deadline().map(|at| at.since(self.clock.now()))
            };
            self.inbox.receive(&mut work, BATCH, wait);
            let octets = work.iter().map(RibWork::octets).sum();
            let sessions = work.iter().any(RibWork::is_transition);
            for item in work.drain(..) {
                if self.take(item).is_break() {
                    return;
                }
            }
            if self.inbox.done(octets) && self.io.wake().is_err() {
                return;
            }
            more = self.rib.poll(self.clock.now(), BUDGET, &mut outputs);
            let mut events = Vec::new();
            for output in outputs.drain(..) {
                match output {
                    RibOutput::Routes(changes) => events.push(RouteEvent::Changes(changes)),
                    RibOutput::Synced(family) => events.push(RouteEvent::Synced(family)),
                    RibOutput::Watch(addr) => events.push(RouteEvent::Watch(addr)),
                    RibOutput::Unwatch(addr) => events.push(RouteEvent::Unwatch(addr)),
                    other => to_io.push(IoWork::Rib(other)),
                }
            }
            // The wire first: neighbours wait longer for us than our kernel does.
            if self.io.send(&mut to_io).is_err() {
                return;
            }
            if sessions {
                events.push(RouteEvent::Sessions);
            }
            if !events.is_empty() {
                (self.routes)(events);
            }
        }
    }

    fn take(&mut self, work: RibWork) -> ControlFlow<()> {
        match work {
            RibWork::Input(input) => self.rib.apply(self.clock.now(), input),
            RibWork::Query(query, reply) => {
                // Whoever asked may have gone away.
                let _ = reply.send(self.rib.query(&query));
            }
            RibWork::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }
}
