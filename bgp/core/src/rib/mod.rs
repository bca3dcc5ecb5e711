//! The routes: Adj-RIB-In, decision, Loc-RIB, update groups. One owner, one thread, no I/O, no clock.
//!
//! The [`Rib`] takes batches of [`RibInput`] and is then polled for [`RibOutput`] until it has no more work.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;

use crate::{
    config::{PeerConfig, SpeakerConfig},
    event::FromPeer,
    ids::{Epoch, Family, GroupId, PeerIdx},
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
    /// The peer's place is free again. Its routes are gone already (`Down` precedes).
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
    /// has not been sent yet, it need not be sent. End-of-RIB follows in the log, behind all that was known at the join.
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
    /// The peer announced more than it may.
    TooManyPrefixes(PeerIdx, Epoch),
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
