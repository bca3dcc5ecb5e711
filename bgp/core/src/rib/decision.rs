//! The decision process (RFC 4271 section 9.1.2.2): successive filters over the set of eligible paths, in the order of the
//! text, with the steps that all implementations have agreed on (local first, ORIGINATOR_ID and CLUSTER_LIST of RFC 4456,
//! no change between equal external paths of RFC 5004).
//!
//! What is left before the tie-breaking is the set of equal paths. As in BIRD, and unlike FRR without "multipath-relax",
//! the AS_PATHs of equal paths need only be of equal length: two top-of-rack routers in two autonomous systems share traffic.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::RouteOrigin;

/// The step that left one path: the reason why the best path is the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// There is one eligible path only.
    OnlyPath,
    /// Not a last resort: the others are kept long after their session (RFC 9494 section 4.3).
    LongLivedStale,
    /// The highest LOCAL_PREF.
    LocalPref,
    /// What we originate is preferred to what we learn.
    LocalOrigin,
    /// The shortest AS_PATH (a).
    AsPathLength,
    /// The lowest ORIGIN (b).
    Origin,
    /// The lowest MULTI_EXIT_DISC among paths from the same neighbouring AS (c).
    Med,
    /// External before internal (d).
    External,
    /// The nearest next hop (e).
    Metric,
    /// The external path that was the best already (RFC 5004).
    Incumbent,
    /// The lowest BGP identifier, or ORIGINATOR_ID (f; RFC 4456 section 9).
    RouterId,
    /// The shortest CLUSTER_LIST (RFC 4456 section 9).
    ClusterListLength,
    /// The lowest peer address (g).
    PeerAddress,
    /// The lowest path identifier, between paths of one peer (RFC 7911 leaves it to us).
    PathId,
}

impl Step {
    /// In words, as the end of "best because of …".
    pub fn name(self) -> &'static str {
        match self {
            Step::OnlyPath => "only path",
            Step::LongLivedStale => "the others are long-lived stale",
            Step::LocalPref => "higher local preference",
            Step::LocalOrigin => "originated here",
            Step::AsPathLength => "shorter AS path",
            Step::Origin => "lower origin",
            Step::Med => "lower MED",
            Step::External => "external over internal",
            Step::Metric => "nearer next hop",
            Step::Incumbent => "external path that was best before",
            Step::RouterId => "lower router id",
            Step::ClusterListLength => "shorter cluster list",
            Step::PeerAddress => "lower peer address",
            Step::PathId => "lower path id",
        }
    }
}

/// An eligible path: what the process looks at. Paths that were refused, or whose next hop is unreachable, are no candidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    /// Which path.
    pub(crate) path: u32,
    /// It has the community LLGR_STALE.
    pub(crate) llgr_stale: bool,
    pub(crate) origin_kind: RouteOrigin,
    pub(crate) local_pref: u32,
    pub(crate) as_path_len: u16,
    pub(crate) origin: u8,
    pub(crate) med: u32,
    pub(crate) neighbor_as: u32,
    pub(crate) metric: u32,
    /// It is the best path until now.
    pub(crate) incumbent: bool,
    /// ORIGINATOR_ID, or the peer's BGP identifier.
    pub(crate) router_id: u32,
    pub(crate) cluster_len: u8,
    pub(crate) peer_address: IpAddr,
    pub(crate) path_id: u32,
    /// The next hop, for the set of equal paths.
    pub(crate) next_hop: u32,
}

/// Paths that are candidates still.
pub(crate) type Candidates = SmallVec<[Candidate; 4]>;

/// What the process came to.
pub(crate) struct Decision {
    /// The best path.
    pub(crate) best: Candidate,
    /// The paths equal up to the tie-breaking, the best among them.
    pub(crate) equal: Candidates,
    /// What decided.
    pub(crate) step: Step,
}

/// Finds the best path of `set`; `None` if it is empty.
pub(crate) fn decide(mut set: Candidates) -> Option<Decision> {
    let mut step = Step::OnlyPath;
    let mut narrow = |set: &mut Candidates, by: Step, filter: &dyn Fn(&mut Candidates)| {
        if set.len() > 1 {
            filter(set);
            if set.len() == 1 {
                step = by;
            }
        }
    };
    narrow(&mut set, Step::LongLivedStale, &|s| {
        keep_min(s, |c| c.llgr_stale);
    });
    narrow(&mut set, Step::LocalPref, &|s| {
        keep_min(s, |c| !c.local_pref)
    });
    narrow(&mut set, Step::LocalOrigin, &|s| {
        keep_min(s, |c| c.origin_kind != RouteOrigin::Local);
    });
    narrow(&mut set, Step::AsPathLength, &|s| {
        keep_min(s, |c| c.as_path_len)
    });
    narrow(&mut set, Step::Origin, &|s| keep_min(s, |c| c.origin));
    narrow(&mut set, Step::Med, &lowest_med);
    narrow(&mut set, Step::External, &|s| {
        keep_min(s, |c| c.origin_kind == RouteOrigin::Ibgp);
    });
    narrow(&mut set, Step::Metric, &|s| keep_min(s, |c| c.metric));
    let equal = set.clone();
    narrow(&mut set, Step::Incumbent, &incumbent);
    narrow(&mut set, Step::RouterId, &|s| keep_min(s, |c| c.router_id));
    narrow(&mut set, Step::ClusterListLength, &|s| {
        keep_min(s, |c| c.cluster_len);
    });
    narrow(&mut set, Step::PeerAddress, &|s| {
        keep_min(s, |c| c.peer_address)
    });
    narrow(&mut set, Step::PathId, &|s| keep_min(s, |c| c.path_id));
    let best = *set.first()?;
    Some(Decision { best, equal, step })
}

fn keep_min<K: Ord>(set: &mut Candidates, key: impl Fn(&Candidate) -> K) {
    if let Some(min) = set.iter().map(&key).min() {
        set.retain(|c| key(c) == min);
    }
}

/// Takes out every path for which there is one from the same neighbouring AS with a lower MED.
fn lowest_med(set: &mut Candidates) {
    let all = set.clone();
    set.retain(|c| {
        !all.iter()
            .any(|o| o.neighbor_as == c.neighbor_as && o.med < c.med)
    });
}

/// Between external paths the present best one stays (RFC 5004): they would flap otherwise.
fn incumbent(set: &mut Candidates) {
    let external = set.iter().all(|c| c.origin_kind == RouteOrigin::Ebgp);
    if external && set.iter().any(|c| c.incumbent) {
        set.retain(|c| c.incumbent);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base(path: u32) -> Candidate {
        Candidate {
            path,
            llgr_stale: false,
            origin_kind: RouteOrigin::Ebgp,
            local_pref: 100,
            as_path_len: 2,
            origin: 1,
            med: 10,
            neighbor_as: 65001,
            metric: 5,
            incumbent: false,
            router_id: 5,
            cluster_len: 1,
            peer_address: IpAddr::from([10, 0, 0, 5]),
            path_id: 5,
            next_hop: 0,
        }
    }

    fn with(path: u32, change: impl Fn(&mut Candidate)) -> Candidate {
        let mut c = base(path);
        change(&mut c);
        c
    }

    /// Each row: the better path, the worse one (better in all that comes later), the step of RFC 4271 9.1.2.2 that decides.
    #[test]
    fn each_step_decides_before_the_next() {
        let later = |c: &mut Candidate, from: Step| {
            if from < Step::LocalOrigin {
                c.origin_kind = RouteOrigin::Local;
            }
            if from < Step::AsPathLength {
                c.as_path_len = 1;
            }
            if from < Step::Origin {
                c.origin = 0;
            }
            if from < Step::Med {
                c.med = 0;
            }
            if from < Step::Metric {
                c.metric = 1;
            }
            if from < Step::RouterId {
                c.router_id = 1;
            }
            if from < Step::ClusterListLength {
                c.cluster_len = 0;
            }
            if from < Step::PeerAddress {
                c.peer_address = IpAddr::from([10, 0, 0, 1]);
            }
            c.path_id = 1;
        };
        let rows: &[(Step, &dyn Fn(&mut Candidate))] = &[
            (Step::LocalPref, &|c| c.local_pref = 101),
            (Step::LocalOrigin, &|c| c.origin_kind = RouteOrigin::Local),
            (Step::AsPathLength, &|c| c.as_path_len = 1),
            (Step::Origin, &|c| c.origin = 0),
            (Step::Med, &|c| c.med = 9),
            (Step::Metric, &|c| c.metric = 4),
            (Step::Incumbent, &|c| c.incumbent = true),
            (Step::RouterId, &|c| c.router_id = 4),
            (Step::ClusterListLength, &|c| c.cluster_len = 0),
            (Step::PeerAddress, &|c| {
                c.peer_address = IpAddr::from([10, 0, 0, 4]);
            }),
            (Step::PathId, &|c| c.path_id = 4),
        ];
        for (step, better) in rows {
            let good = with(0, better);
            let mut bad = with(1, |c| later(c, *step));
            if *step == Step::PathId {
                bad.path_id = 5;
            }
            for set in [[good, bad], [bad, good]] {
                let d = decide(set.into_iter().collect()).unwrap();
                assert_eq!((d.best.path, d.step), (0, *step));
            }
        }
    }

    #[test]
    fn a_last_resort_is_taken_when_there_is_nothing_else() {
        let stale = with(0, |c| {
            c.llgr_stale = true;
            c.local_pref = 200;
            c.origin_kind = RouteOrigin::Local;
        });
        let d = decide([stale, base(1)].into_iter().collect()).unwrap();
        assert_eq!((d.best.path, d.step), (1, Step::LongLivedStale));
        assert_eq!(d.equal.len(), 1);
        let d = decide([stale].into_iter().collect()).unwrap();
        assert_eq!((d.best.path, d.step), (0, Step::OnlyPath));
    }

    #[test]
    fn external_before_internal() {
        let ebgp = with(0, |c| c.metric = 9);
        let ibgp = with(1, |c| {
            c.origin_kind = RouteOrigin::Ibgp;
            c.metric = 0;
            c.router_id = 0;
        });
        let d = decide([ibgp, ebgp].into_iter().collect()).unwrap();
        assert_eq!((d.best.path, d.step), (0, Step::External));
    }

    #[test]
    fn med_counts_between_paths_from_one_as_only() {
        let a = with(0, |c| c.med = 5);
        let b = with(1, |c| {
            c.med = 1;
            c.neighbor_as = 65002;
            c.router_id = 6;
        });
        let d = decide([a, b].into_iter().collect()).unwrap();
        assert_eq!((d.best.path, d.step, d.equal.len()), (0, Step::RouterId, 2));
        // A third path, from b's AS, takes nothing away from a.
        let c = with(2, |c| {
            c.med = 9;
            c.neighbor_as = 65002;
            c.router_id = 0;
        });
        let d = decide([a, b, c].into_iter().collect()).unwrap();
        assert_eq!((d.best.path, d.equal.len()), (0, 2));
    }

    #[test]
    fn an_internal_incumbent_does_not_stay() {
        let internal = |c: &mut Candidate| c.origin_kind = RouteOrigin::Ibgp;
        let old = with(0, |c| {
            internal(c);
            c.incumbent = true;
        });
        let new = with(1, |c| {
            internal(c);
            c.router_id = 1;
        });
        let d = decide([old, new].into_iter().collect()).unwrap();
        assert_eq!((d.best.path, d.step), (1, Step::RouterId));
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (
            (0..3u8, 0..2u32, 0..2u16, 0..2u8, 0..3u32, 0..2u32),
            (0..2u32, 0..2u32, 0..2u8, 0..2u8, any::<bool>()),
        );
        proptest::collection::vec(one, 1..8).prop_map(|list| {
            let mut incumbent = false;
            list.into_iter()
                .enumerate()
                .map(|(i, (a, b))| {
                    let first = b.4 && !incumbent;
                    incumbent |= b.4;
                    Candidate {
                        path: i as u32,
                        // Decided before all else: `a_last_resort_is_taken_when_there_is_nothing_else`.
                        llgr_stale: false,
                        origin_kind: [RouteOrigin::Local, RouteOrigin::Ebgp, RouteOrigin::Ibgp]
                            [usize::from(a.0)],
                        local_pref: a.1,
                        as_path_len: a.2,
                        origin: a.3,
                        med: a.4,
                        neighbor_as: a.5,
                        metric: b.0,
                        incumbent: first,
                        router_id: b.1,
                        cluster_len: b.2,
                        peer_address: IpAddr::from([10, 0, 0, b.3]),
                        path_id: i as u32,
                        next_hop: i as u32,
                    }
                })
                .collect()
        })
    }

    /// The text of RFC 4271 as a tournament: `a` is out if some `b` that is not out by an earlier rule beats it.
    fn model(all: &[Candidate]) -> (u32, Vec<u32>) {
        let mut alive: Vec<bool> = vec![true; all.len()];
        let rules: &[&dyn Fn(&Candidate, &Candidate) -> bool] = &[
            &|a, b| b.local_pref > a.local_pref,
            &|a, b| b.origin_kind == RouteOrigin::Local && a.origin_kind != RouteOrigin::Local,
            &|a, b| b.as_path_len < a.as_path_len,
            &|a, b| b.origin < a.origin,
            &|a, b| b.neighbor_as == a.neighbor_as && b.med < a.med,
            &|a, b| b.origin_kind != RouteOrigin::Ibgp && a.origin_kind == RouteOrigin::Ibgp,
            &|a, b| b.metric < a.metric,
        ];
        let ties: &[&dyn Fn(&Candidate, &Candidate) -> bool] = &[
            &|a, b| b.router_id < a.router_id,
            &|a, b| b.cluster_len < a.cluster_len,
            &|a, b| b.peer_address < a.peer_address,
            &|a, b| b.path_id < a.path_id,
        ];
        let apply = |alive: &mut Vec<bool>, rule: &dyn Fn(&Candidate, &Candidate) -> bool| {
            let before = alive.clone();
            for (i, a) in all.iter().enumerate() {
                if all.iter().enumerate().any(|(j, b)| before[j] && rule(a, b)) {
                    alive[i] = false;
                }
            }
        };
        for rule in rules {
            apply(&mut alive, rule);
        }
        let equal = all
            .iter()
            .filter(|c| alive[c.path as usize])
            .map(|c| c.path)
            .collect();
        let left: Vec<&Candidate> = all.iter().filter(|c| alive[c.path as usize]).collect();
        if left.iter().all(|c| c.origin_kind == RouteOrigin::Ebgp)
            && left.iter().any(|c| c.incumbent)
        {
            for c in all {
                alive[c.path as usize] &= c.incumbent;
            }
        }
        for rule in ties {
            apply(&mut alive, rule);
        }
        let best = all
            .iter()
            .find(|c| alive[c.path as usize])
            .map_or(99, |c| c.path);
        (best, equal)
    }

    proptest! {
        #[test]
        fn as_the_model_and_whatever_the_order(all in candidates(), seed in any::<u64>()) {
            let (best, equal) = model(&all);
            let mut shuffled = all.clone();
            let n = shuffled.len();
            for i in 0..n {
                shuffled.swap(i, (seed as usize).wrapping_mul(i + 7) % n);
            }
            for set in [all, shuffled] {
                let d = decide(set.into()).unwrap();
                let mut got: Vec<u32> = d.equal.iter().map(|c| c.path).collect();
                got.sort_unstable();
                prop_assert_eq!(d.best.path, best);
                prop_assert_eq!(&got, &equal);
            }
        }
    }
}
