//! Questions to the RIB, answered in pages.

use super::{
    LOCAL, Rib,
    adj_rib_in::{Rejection, STALE},
    decision::Step,
    group::Group,
    peers::FamilyCounts,
    prefixes::{BEST, PrefixIdx},
};
use crate::{
    ids::{Epoch, Family, FamilySet, PeerIdx},
    prefix::Prefix,
    wire::attr::PathAttributes,
};

/// Which routes are listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listing {
    /// All paths of all prefixes.
    All,
    /// The best path of each prefix.
    Best,
    /// What a peer has announced, refused paths included.
    Received(PeerIdx),
    /// What a peer has been sent, with the attributes as sent.
    Advertised(PeerIdx),
}

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Query {
    /// A page of a listing.
    Routes {
        /// Which routes.
        what: Listing,
        /// Of which family.
        family: Family,
        /// [`Page::next`] of the page before; 0 for the first.
        after: u32,
        /// The most rows on the page; 0 counts as 1.
        limit: usize,
    },
    /// One prefix with all its paths.
    Prefix(Prefix),
    /// The numbers of all peers.
    Peers,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// A row for each prefix, in no particular order.
    pub rows: Vec<Row>,
    /// Where the next page begins; `None`: this was the last. A page may have fewer rows than asked for, or none.
    pub next: Option<u32>,
    /// Counts changes of best paths. Equal on two pages: nothing changed between them.
    pub version: u64,
    /// For [`Query::Peers`].
    pub peers: Vec<(PeerIdx, PeerCounts)>,
    /// The size of it all.
    pub totals: Totals,
}

/// A prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Which.
    pub prefix: Prefix,
    /// Its paths; those that the listing is about.
    pub paths: Vec<PathView>,
    /// The step of the decision process that made the best path the best; in [`Listing::All`] and for one prefix.
    pub decided_by: Option<Step>,
}

/// A path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathView {
    /// Where it came from; `None`: we originate it.
    pub peer: Option<PeerIdx>,
    /// Its path identifier; 0 without Add-Path.
    pub path_id: u32,
    /// Its attributes as received; as sent in [`Listing::Advertised`].
    pub attrs: PathAttributes,
    /// It is the best path.
    pub best: bool,
    /// It is used besides the best path, or is the best path.
    pub multipath: bool,
    /// Its peer has restarted and not announced it again.
    pub stale: bool,
    /// Why it is not used at all.
    pub rejected: Option<Rejection>,
    /// The distance of its next hop; `None`: unreachable.
    pub metric: Option<u32>,
}

/// The numbers of a peer, by [`Family::index`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerCounts {
    /// The session that they are of, the last one if none is up; 0 before the first. Another peer may have the place by now:
    /// numbers are a peer's if this is its session.
    pub epoch: Epoch,
    /// Of each family.
    pub families: [FamilyCounts; 2],
    /// The families in which it has said End-of-RIB in this session.
    pub end_of_rib: FamilySet,
}

/// The size of the RIB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Prefixes, by [`Family::index`]; those withdrawn of late included.
    pub prefixes: [usize; 2],
    /// Paths.
    pub paths: usize,
    /// Distinct attribute sets.
    pub attribute_sets: usize,
    /// Distinct next hops.
    pub next_hops: usize,
    /// Distinct sets of next hops told to the kernel.
    pub route_sets: usize,
    /// Update groups.
    pub groups: usize,
    /// Octets of memory that the tables hold, about.
    pub octets: usize,
}

/// Prefixes looked at for one row of a page at most, on average.
const LOOKS_PER_ROW: usize = 64;

impl Rib {
    /// Answers a question.
    pub fn query(&self, query: &Query) -> Page {
        let mut page = Page {
            version: self.version,
            totals: self.totals(),
            ..Page::default()
        };
        match *query {
            Query::Routes {
                what,
                family,
                after,
                limit,
            } => self.list(what, family, after, limit.max(1), &mut page),
            Query::Prefix(prefix) => {
                let family = prefix.family();
                let found = self.prefixes[family.index()].find(&prefix);
                page.rows
                    .extend(found.and_then(|idx| self.row(Listing::All, family, idx)));
            }
            Query::Peers => {
                let peers = self.peer_indices().filter(|idx| {
                    let peer = self.peers.get(usize::from(idx.0));
                    peer.is_some_and(|peer| peer.config.is_some())
                });
                page.peers = peers.map(|idx| (idx, self.peer_counts(idx))).collect();
            }
        }
        page
    }

    fn list(&self, what: Listing, family: Family, after: u32, limit: usize, page: &mut Page) {
        let end = self.prefixes[family.index()].end();
        let looks = u32::try_from(limit.saturating_mul(LOOKS_PER_ROW)).unwrap_or(u32::MAX);
        for idx in after..end.min(after.saturating_add(looks)) {
            page.rows.extend(self.row(what, family, idx));
            if page.rows.len() >= limit {
                page.next = Some(idx + 1).filter(|next| *next < end);
                return;
            }
        }
        page.next = Some(after.saturating_add(looks)).filter(|next| *next < end);
    }

    fn row(&self, what: Listing, family: Family, idx: PrefixIdx) -> Option<Row> {
        let prefixes = &self.prefixes[family.index()];
        if !prefixes.is_used(idx) {
            return None;
        }
        if let Listing::Advertised(peer) = what {
            return self.advertised_row(peer, family, idx);
        }
        let mut row = Row {
            prefix: prefixes.prefix(idx),
            paths: Vec::new(),
            decided_by: None,
        };
        let entry = *prefixes.entry(idx);
        let decision = self.decision(family, idx);
        for at in self.paths_of(family, idx) {
            let path = &self.paths[at];
            let best = entry.is(BEST) && at == entry.first;
            let listed = match what {
                Listing::Best => best,
                Listing::Received(peer) => path.peer == peer,
                _ => true,
            };
            if !listed {
                continue;
            }
            let equal = decision
                .as_ref()
                .is_some_and(|d| self.multipath(d).any(|c| c.path == at));
            row.paths.push(PathView {
                peer: (path.peer != LOCAL).then_some(path.peer),
                path_id: path.path_id,
                attrs: self.attrs.expand(path.attr),
                best,
                multipath: equal,
                stale: path.flags & STALE != 0,
                rejected: path.rejection(),
                metric: self.next_hops.metric(self.attrs.get(path.attr).next_hop),
            });
        }
        if what == Listing::All {
            row.decided_by = decision.map(|d| d.step);
        }
        (!row.paths.is_empty()).then_some(row)
    }

    fn advertised_row(&self, peer: PeerIdx, family: Family, idx: PrefixIdx) -> Option<Row> {
        let group = self.group_of(peer)?;
        let (attr, source) = group.out.get(family, idx).announced()?;
        if source == peer {
            return None;
        }
        let attrs = group
            .view
            .export(family, self.source(source), self.attrs.expand(attr));
        let path = PathView {
            peer: (source != LOCAL).then_some(source),
            path_id: 0,
            attrs,
            best: true,
            multipath: true,
            stale: false,
            rejected: None,
            metric: self.next_hops.metric(self.attrs.get(attr).next_hop),
        };
        Some(Row {
            prefix: self.prefixes[family.index()].prefix(idx),
            paths: vec![path],
            decided_by: None,
        })
    }

    fn group_of(&self, peer: PeerIdx) -> Option<&Group> {
        let at = self.peers.get(usize::from(peer.0))?.group?;
        self.groups.get(at)?.as_deref()
    }

    /// All places of peers, those that are free included.
    pub fn peer_indices(&self) -> impl Iterator<Item = PeerIdx> + use<> {
        let count = u16::try_from(self.peers.len()).unwrap_or(u16::MAX);
        (0..count).map(PeerIdx)
    }

    /// The numbers of one peer; zeroes for one that is not there.
    pub fn peer_counts(&self, idx: PeerIdx) -> PeerCounts {
        let Some(peer) = self.peers.get(usize::from(idx.0)) else {
            return PeerCounts::default();
        };
        let mut families = peer.counts;
        if let Some(group) = self.group_of(idx) {
            for family in Family::ALL {
                families[family.index()].advertised = group.out.sent_to(idx, family);
            }
        }
        PeerCounts {
            epoch: peer.epoch.unwrap_or_default(),
            families,
            end_of_rib: peer.end_of_rib,
        }
    }

    /// The size of it all.
    pub fn totals(&self) -> Totals {
        let groups = self.groups.iter().flatten();
        let out: usize = groups.clone().map(|g| g.out.octets()).sum();
        let prefixes: usize = self.prefixes.iter().map(|p| p.octets()).sum();
        Totals {
            prefixes: [self.prefixes[0].len(), self.prefixes[1].len()],
            paths: self.paths.in_use(),
            attribute_sets: self.attrs.len(),
            next_hops: self.next_hops.len(),
            route_sets: self.route_sets.len(),
            groups: groups.count(),
            octets: out
                + prefixes
                + self.paths.octets()
                + self.attrs.octets()
                + self.next_hops.octets()
                + self.dirty.capacity() * 4,
        }
    }
}
