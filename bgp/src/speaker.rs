//! The speaker as its owner sees it: started with a configuration, told another one, asked questions, stopped.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use mio::{Poll, Waker};
use selvage_bgp_core::{
    clock::Now,
    config::{PeerConfig, SpeakerConfig},
    ids::{PeerIdx, PeerKey},
    rib::{Page, Query, Restarted, Rib, RibInput},
    session::{Snapshot, Stop},
};

use crate::{
    io_thread::{ConfigureError, IoThread, IoWork, Life, WAKER},
    peers::Slot,
    pulse::Pulse,
    queue::{ToIo, ToRib},
    rib_thread::{RibThread, RibWork, RouteSink},
    sockopt,
    unknown_sources::UnknownSources,
};

/// Takes an answer, on the thread that gives it: must not block. Dropped without a call when the speaker stops.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// Takes neighbours that have changed, on the I/O thread: must not block.
pub type PeerSink = Box<dyn FnMut(Vec<PeerChange>) + Send>;

/// A neighbour that has changed.
#[derive(Clone, Debug)]
pub enum PeerChange {
    /// It is new, or something that [`Outline`](selvage_bgp_core::session::Outline) has, or its configuration, is another.
    /// Sessions that come up or go down are told at once, other changes once a second at most.
    Is(Box<PeerStatus>),
    /// It is not configured any more, or came by a range and has left. Its place may have another owner from now on.
    Gone(PeerIdx, PeerKey),
    /// Somebody has connected who is not configured.
    Unknown(UnknownSources),
}

/// The clock of a speaker: nanoseconds since it started.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// What time it is.
    pub fn now(&self) -> Now {
        Now(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// How a speaker starts.
pub struct Start {
    /// What it will be told to be first, by [`Handle::configure`].
    pub config: Arc<SpeakerConfig>,
    /// Whether an earlier run left its routes in the kernel: then the restart bit is set, and End-of-RIB waits for those who
    /// had a session before (RFC 4724 section 4.1).
    pub restarting: bool,
    /// After a restart: the neighbours that had a session before; `None`: nobody knows. Those that came by a range are tried
    /// once, since they may wait for longer than they keep our routes before they try again.
    pub before: Option<Vec<PeerKey>>,
    /// Anything that differs between machines: spreads retries.
    pub seed: u64,
    /// Who programs routes.
    pub routes: RouteSink,
    /// Who shows neighbours.
    pub peers: PeerSink,
}

/// A neighbour, as it is at the moment.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its place in the RIB's tables.
    pub idx: PeerIdx,
    /// How it is configured.
    pub config: Arc<PeerConfig>,
    /// Whether it came by a range.
    pub dynamic: bool,
    /// Its session.
    pub session: Snapshot,
}

impl PeerStatus {
    pub(crate) fn of(now: Now, idx: PeerIdx, slot: &Slot) -> PeerStatus {
        PeerStatus {
            idx,
            config: slot.config.clone(),
            dynamic: slot.dynamic,
            session: slot.peer.snapshot(now),
        }
    }
}

/// A running speaker. Two threads: one for sockets and timers, one for the table. Cheap to ask, never in their way.
pub struct Speaker {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// Speaks to a running speaker; cloned for everybody who needs it.
#[derive(Clone)]
pub struct Handle {
    clock: Clock,
    io: Arc<ToIo<IoWork>>,
    rib: Arc<ToRib<RibWork>>,
    pulses: [Arc<Pulse>; 2],
}

/// The speaker's threads are gone.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the BGP speaker has stopped")]
pub struct Stopped;

impl Speaker {
    /// Starts the threads. The speaker listens nowhere and has no neighbour until [`Handle::configure`], so whoever answers
    /// what [`Start::routes`] asks for can be given the [`Handle`] before the first question.
    pub fn start(start: Start) -> io::Result<Speaker> {
        sockopt::raise_open_files();
        let poll = Poll::new()?;
        let io = Arc::new(ToIo::new(Waker::new(poll.registry(), WAKER)?));
        let rib = Arc::new(ToRib::new());
        let clock = Clock(Instant::now());
        let mut table = Rib::new(start.config.clone(), clock.now());
        let before = start.before.filter(|_| start.restarting);
        if start.restarting {
            table.restarted(Restarted {
                before: before.clone(),
                restart_time: start.config.graceful_restart.restart_time,
            });
        }
        let pulses = [Pulse::new("bgp-io"), Pulse::new("bgp-rib")];
        let [io_pulse, rib_pulse] = pulses.clone();
        let rib_thread = RibThread {
            rib: table,
            clock,
            inbox: rib.clone(),
            io: io.clone(),
            routes: start.routes,
            pulse: rib_pulse,
        };
        let io_thread = IoThread::new(
            poll,
            clock,
            io.clone(),
            rib.clone(),
            start.config,
            Life {
                restarting: start.restarting,
                before: before.unwrap_or_default(),
            },
            start.seed,
            start.peers,
            io_pulse,
        );
        let threads = vec![
            thread::Builder::new()
                .name("bgp-rib".into())
                .spawn(|| rib_thread.run())?,
            thread::Builder::new()
                .name("bgp-io".into())
                .spawn(|| io_thread.run())?,
        ];
        Ok(Speaker {
            handle: Handle {
                clock,
                io,
                rib,
                pulses,
            },
            threads,
        })
    }

    /// What others need to speak to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends every session in the given way, then the threads.
    pub fn stop(self, how: Stop) {
        let (done, ended) = mpsc::sync_channel(1);
        if self
            .handle
            .io
            .send(&mut vec![IoWork::Stop(how, done)])
            .is_ok()
        {
            // The thread may have gone by itself.
            let _ = ended.recv();
        }
        for thread in self.threads {
            // A panic in it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Handle {
    /// The speaker's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Be this from now on: sessions that need not end go on. What is refused comes back; all else is in force.
    pub fn configure(&self, config: Arc<SpeakerConfig>) -> Result<Vec<ConfigureError>, Stopped> {
        let (answer, errors) = answer();
        self.configure_then(config, answer)?;
        errors.recv().map_err(|_| Stopped)
    }

    /// As [`Handle::configure`], without waiting: `answer` is called with what is refused.
    pub fn configure_then(
        &self,
        config: Arc<SpeakerConfig>,
        answer: Answer<Vec<ConfigureError>>,
    ) -> Result<(), Stopped> {
        self.tell_io(IoWork::Configure(config, answer))
    }

    /// All neighbours, in no order.
    pub fn peers(&self) -> Result<Vec<PeerStatus>, Stopped> {
        let (answer, peers) = answer();
        self.tell_io(IoWork::Peers(answer))?;
        peers.recv().map_err(|_| Stopped)
    }

    /// Has [`RouteEvent::Barrier`](crate::RouteEvent::Barrier) given out when everything is decided that the speaker has
    /// been told so far.
    pub fn barrier(&self, number: u64) -> Result<(), Stopped> {
        self.tell_io(IoWork::Barrier(number))
    }

    /// The pulses of the speaker's threads.
    pub fn pulses(&self) -> &[Arc<Pulse>] {
        &self.pulses
    }

    /// Connections from addresses that are no neighbour's.
    pub fn unknown_sources(&self) -> Result<UnknownSources, Stopped> {
        let (answer, sources) = answer();
        self.tell_io(IoWork::UnknownSources(answer))?;
        sources.recv().map_err(|_| Stopped)
    }

    /// Asks a neighbour for all its routes again (RFC 2918).
    pub fn refresh(&self, peer: PeerKey) -> Result<(), Stopped> {
        self.tell_io(IoWork::Refresh(peer))
    }

    /// A page of the table. Waits until the RIB has done what it was told before.
    pub fn query(&self, query: Query) -> Result<Page, Stopped> {
        let (answer, page) = answer();
        self.rib.send(&mut vec![RibWork::Query(query, answer)], 64);
        page.recv().map_err(|_| Stopped)
    }

    /// Something for the RIB, such as [`RibInput::Reachability`].
    pub fn tell(&self, inputs: impl IntoIterator<Item = RibInput>) {
        let mut work: Vec<RibWork> = inputs.into_iter().map(RibWork::Input).collect();
        let octets = work.iter().map(RibWork::octets).sum();
        self.rib.send(&mut work, octets);
    }

    fn tell_io(&self, work: IoWork) -> Result<(), Stopped> {
        self.io.send(&mut vec![work]).map_err(|_| Stopped)
    }
}

/// An answer that is waited for.
fn answer<T: Send + 'static>() -> (Answer<T>, mpsc::Receiver<T>) {
    let (reply, answer) = mpsc::sync_channel(1);
    // Whoever asked may have gone away.
    (Box::new(move |value| drop(reply.send(value))), answer)
}
