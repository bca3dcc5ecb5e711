//! What the RIB knows of each peer.

use std::{net::IpAddr, sync::Arc};

use super::{RouteOrigin, prefixes::PrefixIdx, reflect::Source};
use crate::{
    clock::Now,
    config::PeerConfig,
    event::Negotiated,
    filter::FilterChain,
    ids::{Epoch, FamilySet, RouterId},
};

/// Numbers of a peer in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FamilyCounts {
    /// Paths in its Adj-RIB-In.
    pub received: u32,
    /// Of those, not refused.
    pub accepted: u32,
    /// Of those, the best ones.
    pub best: u32,
    /// Of those received, stale.
    pub stale: u32,
    /// Prefixes that it has been sent, or is being sent.
    pub advertised: u32,
}

impl FamilyCounts {
    /// Of the paths received, those of the present session.
    pub(crate) fn fresh(&self) -> u32 {
        self.received - self.stale
    }
}

/// Who a peer was in its last session. Its routes are compared and reflected as that peer's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) internal: bool,
    pub(crate) router_id: RouterId,
    pub(crate) address: IpAddr,
}

/// Past this many prefixes a peer's routes are found by looking at all prefixes.
const LIST_LIMIT: usize = 1 << 15;

/// The prefixes that a peer has, or had, paths for; for few of them only.
pub(crate) enum PrefixList {
    /// All that it has paths for are among these.
    Some(Vec<PrefixIdx>),
    /// Look everywhere.
    Any,
}

impl PrefixList {
    /// Notes one more; `live` says whether one is still needed, if the list has to be tidied up.
    pub(crate) fn push(&mut self, idx: PrefixIdx, count: u32, live: impl Fn(PrefixIdx) -> bool) {
        let PrefixList::Some(list) = self else { return };
        if list.len() > 64 + 2 * count as usize {
            list.sort_unstable();
            list.dedup();
            list.retain(|i| live(*i));
        }
        if list.len() >= LIST_LIMIT {
            *self = PrefixList::Any;
        } else {
            list.push(idx);
        }
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        *self = PrefixList::Some(Vec::new());
    }
}

pub(crate) struct Peer {
    pub(crate) config: Option<Arc<PeerConfig>>,
    pub(crate) import: FilterChain,
    /// The last session of this peer that was up; nothing older is listened to.
    pub(crate) epoch: Option<Epoch>,
    /// Its latest session, which stale routes are from.
    pub(crate) last: Option<Arc<Negotiated>>,
    /// While it is up.
    pub(crate) session: Option<Arc<Negotiated>>,
    pub(crate) identity: Option<Identity>,
    /// The identity changed while prefixes still waited for their decision: what was sent may be of the former one.
    pub(crate) reidentified: bool,
    /// The place of its update group.
    pub(crate) group: Option<usize>,
    pub(crate) counts: [FamilyCounts; 2],
    pub(crate) lists: [PrefixList; 2],
    pub(crate) end_of_rib: FamilySet,
    pub(crate) up_at: Now,
    pub(crate) too_many: bool,
    /// The families in which it has been said of this session that there are many prefixes.
    pub(crate) warned: FamilySet,
}

impl Default for Peer {
    fn default() -> Self {
        Peer {
            config: None,
            import: FilterChain::new(&[], true, true),
            epoch: None,
            last: None,
            session: None,
            identity: None,
            reidentified: false,
            group: None,
            counts: Default::default(),
            lists: [PrefixList::Some(Vec::new()), PrefixList::Some(Vec::new())],
            end_of_rib: FamilySet::NONE,
            up_at: Now(0),
            too_many: false,
            warned: FamilySet::NONE,
        }
    }
}

impl Peer {
    /// Whether this is the present session.
    pub(crate) fn is_up_in(&self, epoch: Epoch) -> bool {
        self.session.is_some() && self.epoch == Some(epoch)
    }

    /// What kind of source its routes have.
    pub(crate) fn source(&self) -> Source {
        let internal = self.identity.is_some_and(|i| i.internal);
        Source {
            origin: if internal {
                RouteOrigin::Ibgp
            } else {
                RouteOrigin::Ebgp
            },
            client: internal
                && self
                    .config
                    .as_ref()
                    .is_some_and(|c| c.route_reflector_client),
            router_id: self.identity.map_or(RouterId(0), |i| i.router_id),
        }
    }
}
