//! The thread that owns the RIB: takes batches, gives batches, and never waits for anybody who reads them.

use std::{net::IpAddr, ops::ControlFlow, sync::Arc, time::Duration};

use selvage_bgp_core::{
    clock::earlier,
    event::{FromPeer, PeerEvent},
    ids::{Family, PeerIdx},
    rib::{Page, PeerCounts, Query, Rib, RibInput, RibOutput, RouteChange},
};

use crate::{
    io_thread::IoWork,
    pulse::Pulse,
    queue::{ToIo, ToRib},
    rib_counts::Counts,
    speaker::{Answer, Clock},
};

/// What the RIB thread is told.
pub(crate) enum RibWork {
    /// By the I/O thread or the owner of the kernel's routes.
    Input(RibInput),
    /// By the control API: a page of the table.
    Query(Query, Answer<Page>),
    /// Say so when everything before it is decided; see [`RouteEvent::Barrier`].
    Barrier(u64),
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

    /// The peer whose session is in another state by it.
    fn transition(&self) -> Option<PeerIdx> {
        let RibWork::Input(input) = self else {
            return None;
        };
        match input {
            RibInput::Event(from) => matches!(
                from.event,
                PeerEvent::Up(_) | PeerEvent::Down { .. } | PeerEvent::EndOfRib(_)
            )
            .then_some(from.peer),
            RibInput::Peer(peer, _) | RibInput::PeerGone(peer) => Some(*peer),
            _ => None,
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
    /// The numbers of peers that have changed: at once where a session has come up or gone down or an End-of-RIB has come,
    /// once a second at most for all else.
    Peers(Vec<(PeerIdx, PeerCounts)>),
    /// All that the speaker was told before [`Handle::barrier`](crate::Handle::barrier) was called with this number is
    /// decided, and its changes came before this.
    Barrier(u64),
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
    pub(crate) pulse: Arc<Pulse>,
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
        let mut counts = Counts::default();
        let mut barriers = Vec::new();
        loop {
            let wait = if more {
                Some(Duration::ZERO)
            } else {
                let due = earlier(self.rib.deadline(), counts.deadline());
                due.map(|at| at.since(self.clock.now()))
            };
            self.pulse.rest();
            self.inbox.receive(&mut work, BATCH, wait);
            self.pulse.work();
            let octets = work.iter().map(RibWork::octets).sum();
            let moved: Vec<PeerIdx> = work.iter().filter_map(RibWork::transition).collect();
            let mut worked = more;
            for item in work.drain(..) {
                match &item {
                    RibWork::Input(_) => worked = true,
                    RibWork::Barrier(number) => barriers.push(*number),
                    RibWork::Query(..) | RibWork::Stop => {}
                }
                if self.take(item).is_break() {
                    return;
                }
            }
            if self.inbox.done(octets) && self.io.wake().is_err() {
                return;
            }
            let now = self.clock.now();
            more = self.rib.poll(now, BUDGET, &mut outputs);
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
            if worked {
                counts.touch(now);
            }
            let changed = counts.changes(now, &self.rib, &moved);
            if !changed.is_empty() {
                events.push(RouteEvent::Peers(changed));
            }
            if !more {
                events.extend(barriers.drain(..).map(RouteEvent::Barrier));
            }
            if !events.is_empty() {
                (self.routes)(events);
            }
        }
    }

    fn take(&mut self, work: RibWork) -> ControlFlow<()> {
        match work {
            RibWork::Input(input) => self.rib.apply(self.clock.now(), input),
            RibWork::Query(query, answer) => answer(self.rib.query(&query)),
            RibWork::Barrier(_) => {}
            RibWork::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }
}
