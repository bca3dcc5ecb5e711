//! The routes: Adj-RIB-In, decision, Loc-RIB, update groups. One owner, one thread, no I/O, no clock.
//!
//! The [`Rib`] takes batches of [`RibInput`] and is then polled for [`RibOutput`] until it has no more work.

mod adj_rib_in;
mod adj_rib_out;
mod arena;
mod attrs;
mod decision;
mod group;
mod loc_rib;
mod nexthop;
mod peers;
mod poll;
mod prefixes;
mod query;
mod reflect;
mod stale;
mod sync;
#[cfg(test)]
pub(crate) mod tests;

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use bytes::Bytes;

use self::{
    adj_rib_in::Path,
    adj_rib_out::Packer,
    arena::Arena,
    attrs::Attrs,
    group::Group,
    loc_rib::RouteSets,
    nexthop::{Announcer, NextHops},
    peers::Peer,
    prefixes::Prefixes,
    reflect::Source,
    sync::InitialSync,
};
pub use self::{
    adj_rib_in::Rejection,
    decision::Step,
    peers::FamilyCounts,
    query::{Listing, Page, PathView, PeerCounts, Query, Row, Totals},
    sync::Restarted,
};
use crate::{
    clock::Now,
    config::{PeerConfig, SpeakerConfig},
    event::FromPeer,
    filter::FilterChain,
    ids::{Epoch, Family, GroupId, PeerIdx, RouterId},
    prefix::Prefix,
    wire::attr::NextHop,
};

/// What the RIB is told.
#[derive(Clone, Debug)]
pub enum RibInput {
    /// The speaker's settings (networks to originate, width, addresses); only what differs has effects.
    Configure(Arc<SpeakerConfig>),
    /// A peer is there, or has other settings. Filters changed in place take effect by re-evaluation and re-announcement.
    Peer(PeerIdx, Arc<PeerConfig>),
    /// The peer's place is free again: nothing is kept of its sessions and its routes, and another peer may have the place at once.
    PeerGone(PeerIdx),
    /// From a session.
    Event(FromPeer),
    /// What the kernel's own routing knows of a next hop; asked for by [`RibOutput::Watch`].
    Reachability {
        /// Of which.
        next_hop: IpAddr,
        /// The distance; `None`: unreachable.
        metric: Option<u32>,
    },
    /// A member fell too far behind in its group's log: it has left, and needs a dump of its own when it can read again.
    Resync(PeerIdx, Epoch),
    /// All members of a group, and all its dumps, are past the log chunks before `log`. Never needed for correctness: what
    /// the RIB remembers of withdrawn prefixes, for members that may not have seen the withdrawal yet, is freed by it.
    /// A member that fell out of the log and has not asked for [`RibInput::Resync`] yet is past nothing: while there is one,
    /// this is not to be said of its group.
    Passed {
        /// Whose log.
        group: GroupId,
        /// The first sequence number that somebody may still need.
        log: u64,
    },
}

/// What the RIB has to say, in order.
#[derive(Clone, Debug)]
pub enum RibOutput {
    /// Append to the group's log; the sequence numbers of a group are dense, from 0.
    Log {
        /// Whose log.
        group: GroupId,
        /// What.
        chunk: Chunk,
    },
    /// A member's stream begins: all chunks of `dump`, then the group's log from the sequence number that [`RibOutput::DumpEnd`] names.
    /// A member that is in a stream already (refresh, other filters) leaves it at a message boundary and begins here: what it
    /// has not been sent yet, it need not be sent. End-of-RIB follows in the log, behind all that was known at the join;
    /// after a restart, behind the first synchronisation.
    Join {
        /// Who.
        peer: PeerIdx,
        /// In which session; ignored if it is not the present one.
        epoch: Epoch,
        /// Which group.
        group: GroupId,
        /// What to send first.
        dump: DumpId,
    },
    /// More of a dump. All members that play it get it.
    Dump {
        /// Which.
        dump: DumpId,
        /// What.
        chunk: Chunk,
    },
    /// The dump is complete; its players go on in the group's log at `log`, which is where the log ended when the first of
    /// them joined, and is needed until the dump is retired.
    DumpEnd {
        /// Which.
        dump: DumpId,
        /// The sequence number of the first log chunk that the dump does not hold.
        log: u64,
    },
    /// Nobody will join by this dump any more: free it when its players are through.
    DumpRetired(DumpId),
    /// The group has no members left: free its log.
    GroupGone(GroupId),
    /// Best paths that changed, for the kernel; at most one change for a prefix in a batch.
    Routes(Vec<RouteChange>),
    /// All peers that we waited for have said End-of-RIB in this family, or their time is over: what is not announced by now is stale.
    Synced(Family),
    /// Tell how this next hop is reached, now and whenever it changes.
    Watch(IpAddr),
    /// Nobody uses this next hop any more.
    Unwatch(IpAddr),
    /// The peer announced prefixes that are not used for their next hop, in one message.
    UnusableNextHop {
        /// The peer that announced them.
        peer: PeerIdx,
        /// The session of that peer.
        epoch: Epoch,
        /// The next hop.
        next_hop: IpAddr,
        /// What is wrong with it.
        why: UnusableNextHop,
        /// How many prefixes.
        prefixes: u32,
    },
    /// The peer announced more than it may.
    TooManyPrefixes(PeerIdx, Epoch),
    /// The peer announces as many prefixes of a family as to warn of, or more than it may; once a session.
    ManyPrefixes(PeerIdx, Epoch, Family, u32),
}

/// Why routes by a next hop are not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnusableNextHop {
    /// It is one of our own addresses.
    #[error("is our own address")]
    Ours,
    /// No route leads there.
    #[error("cannot be reached")]
    Unreachable,
}

/// Whole messages for all members of a group but one at most, or for a few members only: see [`Chunk::is_for`].
///
/// Chunks that were made together lie one after the other in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// One or more complete BGP messages.
    pub bytes: Bytes,
    /// The member that must not get them: the routes are its own.
    pub skip: Option<PeerIdx>,
    /// If present: nobody else gets them. Sorted. (The withdrawal for a member whose own route has become the best one,
    /// which all others are told as an announcement; End-of-RIB for those who have just joined.)
    pub only: Option<Arc<[PeerIdx]>>,
}

impl Chunk {
    /// Whether `peer`, a member of the group, is to be sent this.
    pub fn is_for(&self, peer: PeerIdx) -> bool {
        match &self.only {
            None => self.skip != Some(peer),
            Some(only) => only.binary_search(&peer).is_ok(),
        }
    }
}

/// One encoding of a group's whole table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DumpId(pub u64);

/// A best path that changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteChange {
    /// Of which prefix.
    pub prefix: Prefix,
    /// How to get there now; `None`: no longer.
    pub set: Option<RouteSet>,
}

/// How to get somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteSet {
    /// Where the best path came from.
    pub origin: RouteOrigin,
    /// The next hops of all equal paths, sorted, without repetition; empty for a local route. Shared: equal sets are one value.
    pub next_hops: Arc<[NextHop]>,
}

/// Where a route came from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RouteOrigin {
    /// We originate it.
    Local,
    /// An external peer.
    Ebgp,
    /// An internal peer.
    Ibgp,
}

/// The peer of what we originate. No peer has this number.
pub(crate) const LOCAL: PeerIdx = PeerIdx(u16::MAX);

/// The table and everything that follows from it. See the module.
pub struct Rib {
    config: Arc<SpeakerConfig>,
    prefixes: [Prefixes; 2],
    paths: Arena<Path>,
    attrs: Attrs,
    next_hops: NextHops,
    route_sets: RouteSets,
    peers: Vec<Peer>,
    /// By place, which is used again; [`GroupId`]s are not.
    groups: Vec<Option<Box<Group>>>,
    /// Peers that belong into another group, but are still being moved into their present one.
    regroup_later: Vec<PeerIdx>,
    /// Those of [`Peer::reidentified`].
    reidentified: Vec<PeerIdx>,
    next_group: u32,
    next_dump: u64,
    /// [`group::SHORT_LOG`], but for tests.
    short_log: u64,
    /// Prefixes that wait for their decision, first come, first served: number and, in the lowest bit, family.
    dirty: VecDeque<u32>,
    /// How many were ever put there.
    marked: u64,
    /// A search for the paths by next hops that have changed: family and prefix that it has come to.
    search: Option<(usize, u32)>,
    searches_done: u64,
    sync: InitialSync,
    /// The time of the last poll.
    polled: Now,
    packer: Packer,
    /// What is to be said at the next poll.
    to_say: Vec<RibOutput>,
    version: u64,
}

impl Rib {
    /// An empty table that originates the networks of `config`. The time of the first synchronisation begins at `now`.
    pub fn new(config: Arc<SpeakerConfig>, now: Now) -> Rib {
        let mut rib = Rib {
            prefixes: Family::ALL.map(Prefixes::new),
            paths: Arena::default(),
            attrs: Attrs::default(),
            next_hops: NextHops::default(),
            route_sets: RouteSets::default(),
            peers: Vec::new(),
            groups: Vec::new(),
            regroup_later: Vec::new(),
            reidentified: Vec::new(),
            next_group: 0,
            next_dump: 0,
            short_log: group::SHORT_LOG,
            dirty: VecDeque::new(),
            marked: 0,
            search: None,
            searches_done: 0,
            sync: InitialSync::new(now, config.limits),
            polled: now,
            packer: Packer::default(),
            to_say: Vec::new(),
            version: 0,
            config,
        };
        rib.next_hops.assume_reachable(rib.config.assume_reachable);
        let networks = rib.config.networks.clone();
        rib.originate(&[], &networks);
        rib
    }

    /// We have restarted, and peers keep the routes of our earlier run (RFC 4724 section 4.1): routes are announced as they
    /// come, End-of-RIB only when the first synchronisation is over. Said before the first poll.
    pub fn restarted(&mut self, restarted: Restarted) {
        self.sync.restarted(&self.config, restarted);
    }

    /// Takes something in. What follows from it is worked out by [`Rib::poll`].
    pub fn apply(&mut self, now: Now, input: RibInput) {
        match input {
            RibInput::Configure(config) => self.configure(config),
            RibInput::Peer(peer, config) => self.configure_peer(peer, config),
            RibInput::PeerGone(peer) => self.peer_gone(peer),
            RibInput::Event(event) => self.event(now, event),
            RibInput::Reachability { next_hop, metric } => {
                for announcer in self.next_hops.set_reachability(next_hop, metric) {
                    self.say_unusable(announcer, next_hop, UnusableNextHop::Unreachable);
                }
            }
            RibInput::Resync(peer, epoch) => {
                if self.is_up_in(peer, epoch) {
                    self.send_again(peer);
                }
            }
            RibInput::Passed { group, log } => self.sweep(group, log),
        }
    }

    fn say_unusable(&mut self, by: Announcer, next_hop: IpAddr, why: UnusableNextHop) {
        let Announcer {
            peer,
            epoch,
            prefixes,
        } = by;
        self.to_say.push(RibOutput::UnusableNextHop {
            peer,
            epoch,
            next_hop,
            why,
            prefixes,
        });
    }

    fn configure(&mut self, config: Arc<SpeakerConfig>) {
        let old = std::mem::replace(&mut self.config, config);
        let new = self.config.clone();
        self.sync.configured(&new);
        self.originate(&old.networks, &new.networks);
        if old.assume_reachable != new.assume_reachable {
            self.next_hops.assume_reachable(new.assume_reachable);
            self.mark_all();
        }
        if old.maximum_paths != new.maximum_paths {
            self.mark_all();
        }
        for peer in (0..self.peers.len()).map(|i| PeerIdx(i as u16)) {
            if old.networks != new.networks
                || old.connected != new.connected
                || old.local_address != new.local_address
                || old.links != new.links
                || (old.asn, old.router_id, old.cluster_id)
                    != (new.asn, new.router_id, new.cluster_id)
            {
                self.judge_again(peer);
            }
            self.regroup(peer);
        }
    }

    fn configure_peer(&mut self, idx: PeerIdx, config: Arc<PeerConfig>) {
        if idx == LOCAL {
            return;
        }
        let at = usize::from(idx.0);
        if at >= self.peers.len() {
            self.peers.resize_with(at + 1, Peer::default);
        }
        let peer = &mut self.peers[at];
        let external = peer.last.as_ref().is_none_or(|s| !s.internal);
        let import = FilterChain::new(&config.import, config.require_policy, external);
        let judge = peer.import != import
            || peer
                .config
                .as_ref()
                .is_some_and(|old| old.allow_own_as != config.allow_own_as);
        let limit = peer
            .config
            .as_ref()
            .is_some_and(|old| old.max_prefix != config.max_prefix);
        let was_client = peer.source().client;
        peer.import = import;
        peer.config = Some(config);
        let reflect = was_client != peer.source().client;
        if judge {
            self.judge_again(idx);
        }
        if limit {
            self.judge_limit(idx);
        }
        if reflect {
            for family in Family::ALL {
                for prefix in self.prefixes_of(idx, family) {
                    self.mark(family, prefix);
                }
            }
        }
        self.regroup(idx);
    }

    fn mark_all(&mut self) {
        for family in Family::ALL {
            for idx in 0..self.prefixes[family.index()].end() {
                if self.prefixes[family.index()].is_used(idx) {
                    self.mark(family, idx);
                }
            }
        }
    }

    fn is_up_in(&self, peer: PeerIdx, epoch: Epoch) -> bool {
        let peer = self.peers.get(usize::from(peer.0));
        peer.is_some_and(|p| p.is_up_in(epoch))
    }

    fn source(&self, peer: PeerIdx) -> Source {
        source_of(&self.peers, peer)
    }
}

fn source_of(peers: &[Peer], peer: PeerIdx) -> Source {
    match peers.get(usize::from(peer.0)) {
        Some(peer) => peer.source(),
        None => Source {
            origin: RouteOrigin::Local,
            client: false,
            router_id: RouterId(0),
        },
    }
}

impl std::fmt::Debug for Rib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rib")
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}
