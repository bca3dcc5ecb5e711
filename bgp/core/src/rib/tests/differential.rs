//! The RIB with its groups, logs and dumps against a speaker that knows each peer's routes and nothing else, and works out
//! from scratch what each peer should have been sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use proptest::prelude::*;

use super::{attrs_via, negotiated, peer_config, shell::Shell, speaker};
use crate::{
    config::{FilterRef, PeerConfig, SpeakerConfig},
    event::{DownReason, PeerEvent},
    ids::{Asn, Epoch, Epochs, Family, FamilySet, PeerIdx, RouterId},
    prefix::Prefix,
    rib::{Query, Rib, RibInput, RouteOrigin, group::SHORT_LOG},
    wire::attr::{NextHop, PathAttributes},
};

const PEERS: u8 = 7;
const ASN: u32 = 64512;

#[derive(Clone, Debug)]
enum Op {
    Up(u8),
    Down(u8, bool),
    DropStale(u8),
    EndOfRib(u8),
    Reach(u8, u8, Vec<u8>),
    Unreach(u8, Vec<u8>),
    Refresh(u8),
    Lose(u8),
    Resync(u8),
    Configure(u8, u8),
    Networks(u8),
    Distance(u8, Option<u32>),
    Poll(usize),
    Play(u8, usize),
    /// All work is done and read; all but this member, if one is named, which reads nothing.
    Drain(Option<u8>),
    Passed,
    Replace(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let peer = || 0..PEERS;
    let some = || proptest::collection::vec(0..24u8, 1..6);
    prop_oneof![
        3 => peer().prop_map(Op::Up),
        1 => (peer(), any::<bool>()).prop_map(|(p, k)| Op::Down(p, k)),
        1 => peer().prop_map(Op::DropStale),
        1 => peer().prop_map(Op::EndOfRib),
        8 => (peer(), 0..5u8, some()).prop_map(|(p, v, x)| Op::Reach(p, v, x)),
        4 => (peer(), some()).prop_map(|(p, x)| Op::Unreach(p, x)),
        1 => peer().prop_map(Op::Refresh),
        1 => peer().prop_map(Op::Lose),
        2 => peer().prop_map(Op::Resync),
        2 => (peer(), 0..8u8).prop_map(|(p, c)| Op::Configure(p, c)),
        1 => (0..8u8).prop_map(Op::Networks),
        1 => (0..PEERS, proptest::option::of(0..3u32)).prop_map(|(p, m)| Op::Distance(p, m)),
        6 => (1..12usize).prop_map(Op::Poll),
        6 => (peer(), 1..6usize).prop_map(|(p, n)| Op::Play(p, n)),
        4 => proptest::option::of(peer()).prop_map(Op::Drain),
        6 => Just(Op::Passed),
        1 => peer().prop_map(Op::Replace),
    ]
}

/// Steps with a story in between: a route comes and goes again and again, while what was withdrawn is forgotten piece by
/// piece, and a member that reads nothing of it falls behind or is moved.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    // After each announcement and each withdrawal: whether the slow member reads it, and how often all say what they have read.
    let times =
        proptest::collection::vec([(any::<bool>(), 0..3usize), (any::<bool>(), 0..3)], 1..4);
    let flap = (0..PEERS, 0..PEERS, 0..24u8, 0..5u8, times, 0..3u8);
    let flap = flap.prop_map(|(source, slow, n, variant, times, end)| {
        let mut story = vec![Op::Up(source), Op::Up(slow), Op::Drain(None)];
        for turn in times {
            let steps = [
                Op::Reach(source, variant, vec![n]),
                Op::Unreach(source, vec![n]),
            ];
            for (step, (reads, passed)) in steps.into_iter().zip(turn) {
                story.extend([step, Op::Drain(Some(slow).filter(|_| !reads))]);
                story.extend(std::iter::repeat_n(Op::Passed, passed));
            }
        }
        story.push(match end {
            0 => Op::Lose(slow),
            1 => Op::Refresh(slow),
            _ => Op::Configure(slow, n % 8),
        });
        story
    });
    let part = prop_oneof![12 => op().prop_map(|op| vec![op]), 1 => flap];
    proptest::collection::vec(part, 1..100).prop_map(|parts| parts.concat())
}

fn prefix(n: u8) -> Prefix {
    match n {
        0 => "0.0.0.0/0".parse().unwrap(),
        n if n % 3 == 0 => format!("fd00:{n}::/32").parse().unwrap(),
        n => format!("10.{n}.0.0/16").parse().unwrap(),
    }
}

struct ModelPeer {
    config: PeerConfig,
    /// Its latest session; that of an earlier peer in its place is no matter.
    epoch: Epoch,
    up: bool,
    /// Changes with the peer that has the place.
    router_id: u32,
    routes: BTreeMap<Prefix, (PathAttributes, bool)>,
    /// What it should have had when it came up, less what changed since.
    steady: BTreeMap<Prefix, (Option<usize>, PathAttributes)>,
}

impl ModelPeer {
    fn external(&self) -> bool {
        self.config.asn != crate::config::PeerAsn::Exactly(Asn(ASN))
    }

    fn addr(&self) -> IpAddr {
        self.config.key.addr
    }
}

struct Model {
    speaker: SpeakerConfig,
    peers: Vec<ModelPeer>,
    distance: BTreeMap<IpAddr, Option<u32>>,
}

/// A path that may be used, in the order of preference.
type Rank = (u32, bool, u32, u8, bool, u32, u32, IpAddr);

impl Model {
    fn accepts(&self, peer: &ModelPeer, prefix: &Prefix, a: &PathAttributes) -> bool {
        let own_net = self.speaker.networks.iter().any(|n| n.covers(prefix));
        let filter = match peer.config.import.as_slice() {
            [FilterRef::RejectAll] => false,
            [FilterRef::AcceptAll] => true,
            _ => !peer.external() || !prefix.is_default() && !own_net,
        };
        filter && !a.as_path.contains(Asn(ASN)) && a.originator_id != Some(RouterId(1))
    }

    /// The usable paths: rank, source and attributes.
    fn paths(&self, p: &Prefix) -> Vec<(Rank, Option<usize>, PathAttributes)> {
        let mut all = Vec::new();
        if self.speaker.networks.contains(p) {
            let rank = (!100, false, 0, 0, false, 0, 0, Ipv4Addr::UNSPECIFIED.into());
            let nowhere = NextHop::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            all.push((rank, None, PathAttributes::local(nowhere)));
        }
        for (i, peer) in self.peers.iter().enumerate() {
            let Some((a, _)) = peer.routes.get(p) else {
                continue;
            };
            let distance = self.distance.get(&a.next_hop.global);
            if let Some(metric) = distance.copied().unwrap_or(Some(1))
                && self.accepts(peer, p, a)
            {
                let rank = (
                    !a.local_pref.unwrap_or(100),
                    true,
                    a.as_path.path_length(),
                    a.origin as u8,
                    !peer.external(),
                    metric,
                    a.originator_id.map_or(peer.router_id, |o| o.0),
                    peer.addr(),
                );
                all.push((rank, Some(i), a.clone()));
            }
        }
        all.sort_by_key(|x| (x.0, x.1));
        all
    }

    fn sent(&self, to: usize, p: &Prefix) -> Option<PathAttributes> {
        let (_, source, mut a) = self.paths(p).into_iter().next()?;
        if source == Some(to) {
            return None;
        }
        let to = &self.peers[to];
        let from = source.map(|s| &self.peers[s]);
        let learned_internally = from.is_some_and(|f| !f.external());
        let passes = match to.config.export.as_slice() {
            [FilterRef::RejectAll] => false,
            [FilterRef::AcceptAll] => true,
            _ => !to.external() || from.is_none(),
        };
        let reflected = learned_internally && !to.external();
        let client = |p: &ModelPeer| p.config.route_reflector_client;
        if !passes
            || reflected && !client(to) && !from.is_some_and(client)
            || a.communities.contains(&0xffff_ff01) && to.external()
        {
            return None;
        }
        let own: IpAddr = match p.family() {
            Family::Ipv4 => IpAddr::from([10, 0, 0, 100]),
            Family::Ipv6 => "fd00::100".parse().unwrap(),
        };
        let keeps =
            from.is_some() && !to.external() && (learned_internally || !to.config.next_hop_self);
        if !keeps {
            a.next_hop = own.into();
        }
        if to.external() {
            a.as_path = a.as_path.prepend(Asn(ASN), 1);
            a.local_pref = None;
            a.med = None;
            a.originator_id = None;
            a.cluster_list = Box::default();
        } else {
            a.local_pref = a.local_pref.or(Some(100));
        }
        if reflected {
            a.originator_id = a.originator_id.or(from.map(|f| RouterId(f.router_id)));
            a.cluster_list = [&[RouterId(1)], &a.cluster_list[..]].concat().into();
        }
        Some(a)
    }

    fn all_sent(&self, to: usize) -> BTreeMap<Prefix, PathAttributes> {
        (0..24)
            .map(prefix)
            .filter_map(|p| Some((p, self.sent(to, &p)?)))
            .collect()
    }

    /// With the source: the same content from elsewhere may come through a next hop that is not known yet.
    fn all_steady(&self, to: usize) -> BTreeMap<Prefix, (Option<usize>, PathAttributes)> {
        let sent = self.all_sent(to).into_iter();
        sent.filter_map(|(p, a)| Some((p, (self.paths(&p).first()?.1, a))))
            .collect()
    }

    fn kernel(&self, p: &Prefix) -> Option<(RouteOrigin, Vec<NextHop>)> {
        let paths = self.paths(p);
        let (rank, source, _) = paths.first()?;
        let Some(source) = source else {
            return Some((RouteOrigin::Local, Vec::new()));
        };
        let up_to_metric = |r: &Rank| (r.0, r.1, r.2, r.3, r.4, r.5);
        let equal: BTreeSet<NextHop> = paths
            .iter()
            .filter(|x| up_to_metric(&x.0) == up_to_metric(rank))
            .map(|x| x.2.next_hop)
            .collect();
        let origin = if self.peers[*source].external() {
            RouteOrigin::Ebgp
        } else {
            RouteOrigin::Ibgp
        };
        Some((origin, equal.into_iter().collect()))
    }

    /// Forgets those steady routes that are steady no more.
    fn unsteady(&mut self) {
        for i in 0..self.peers.len() {
            if !self.peers[i].steady.is_empty() {
                let now = self.all_steady(i);
                self.peers[i].steady.retain(|p, a| now.get(p) == Some(&*a));
            }
        }
    }
}

/// External peers have paths of different length, so that no tie is left to who came first (RFC 5004).
fn announced(peer: usize, external: bool, variant: u8, family: Family) -> PathAttributes {
    let mut path = vec![65000 + peer as u32];
    path.extend((0..peer).map(|i| 100 + i as u32));
    let mut a = attrs_via(
        [10, 0, 0, peer as u8 + 1],
        if external { &path } else { &[] },
    );
    if family == Family::Ipv6 {
        let addr: std::net::Ipv6Addr = format!("fd00::{}", peer + 1).parse().unwrap();
        a.next_hop = IpAddr::V6(addr).into();
    }
    a.local_pref = (!external).then_some(100);
    match variant {
        1 => a.communities = [0xffff_ff01].into(),
        2 if !external => {
            a.local_pref = Some(150);
            a.med = Some(7);
        }
        3 if !external => a.originator_id = Some(RouterId(1)),
        3 => {
            a.as_path = a
                .as_path
                .prepend(Asn(ASN), 1)
                .prepend(Asn(65000 + peer as u32), 1)
        }
        4 if !external => {
            a.originator_id = Some(RouterId(9));
            a.cluster_list = [RouterId(8)].into();
        }
        _ => {}
    }
    a
}

struct Run {
    shell: Shell,
    model: Model,
    /// The speaker's own counter of sessions.
    epochs: Epochs,
}

impl Run {
    fn new(short_log: u64) -> Run {
        let mut config = speaker(ASN);
        config.assume_reachable = false;
        config.local_address[1] = Some("fd00::100".parse().unwrap());
        let mut shell = Shell::new(Rib::new(Arc::new(config.clone()), crate::clock::Now(0)));
        shell.rib.short_log = short_log;
        let mut peers = Vec::new();
        for i in 0..PEERS {
            let external = (4..6).contains(&i);
            let mut peer = peer_config(i + 1, if external { 65000 + u32::from(i) } else { ASN });
            peer.route_reflector_client = i < 3;
            peer.next_hop_self = i == 2;
            if i == 4 {
                peer.export = vec![FilterRef::AcceptAll];
            }
            shell.apply(RibInput::Peer(PeerIdx(i.into()), Arc::new(peer.clone())));
            peers.push(ModelPeer {
                config: peer,
                epoch: Epoch::default(),
                up: false,
                router_id: 256 + u32::from(i) + 1,
                routes: BTreeMap::new(),
                steady: BTreeMap::new(),
            });
        }
        Run {
            shell,
            epochs: Epochs::default(),
            model: Model {
                speaker: config,
                peers,
                distance: BTreeMap::new(),
            },
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Up(p) => self.up(p),
            Op::Down(p, keep) => self.down(p, keep),
            Op::DropStale(p) => {
                let peer = &mut self.model.peers[usize::from(p)];
                peer.routes.retain(|_, r| !r.1);
                let epoch = peer.epoch;
                self.shell.event(
                    PeerIdx(p.into()),
                    epoch,
                    PeerEvent::DropStale(FamilySet::ALL),
                );
            }
            Op::EndOfRib(p) => {
                let peer = &mut self.model.peers[usize::from(p)];
                if peer.up {
                    peer.routes
                        .retain(|p, r| !r.1 || p.family() != Family::Ipv4);
                }
                let (idx, epoch) = (PeerIdx(p.into()), peer.epoch);
                self.shell
                    .event(idx, epoch, PeerEvent::EndOfRib(Family::Ipv4));
            }
            Op::Reach(p, variant, list) => {
                let peer = &mut self.model.peers[usize::from(p)];
                if !peer.up {
                    return;
                }
                let external = peer.external();
                for n in list {
                    let x = prefix(n);
                    let a = announced(usize::from(p), external, variant, x.family());
                    peer.routes.insert(x, (a.clone(), false));
                    self.shell.reach(PeerIdx(p.into()), &a, &[x]);
                }
            }
            Op::Unreach(p, list) => {
                let peer = &mut self.model.peers[usize::from(p)];
                if !peer.up {
                    return;
                }
                let list: Vec<Prefix> = list.into_iter().map(prefix).collect();
                for x in &list {
                    peer.routes.remove(x);
                }
                self.shell.unreach(PeerIdx(p.into()), &list);
            }
            Op::Refresh(p) => {
                let epoch = self.model.peers[usize::from(p)].epoch;
                self.shell
                    .event(PeerIdx(p.into()), epoch, PeerEvent::Refresh(Family::Ipv4));
            }
            Op::Lose(p) => self.shell.lose(PeerIdx(p.into())),
            Op::Resync(p) => self.shell.resync(PeerIdx(p.into())),
            Op::Configure(p, what) => self.configure(p, what),
            Op::Networks(bits) => {
                let nets = (0..3).filter(|i| bits & 1 << i != 0);
                self.model.speaker.networks = nets.map(|i| prefix(i * 3 + 1)).collect();
                let config = Arc::new(self.model.speaker.clone());
                self.shell.apply(RibInput::Configure(config));
            }
            Op::Distance(p, metric) => {
                let addr = IpAddr::from([10, 0, 0, p + 1]);
                self.model.distance.insert(addr, metric);
                self.shell.set_distance(addr, metric);
            }
            Op::Poll(n) => {
                self.shell.poll(n);
            }
            Op::Play(p, n) => self.shell.play(PeerIdx(p.into()), n),
            Op::Drain(but) => {
                self.shell.settle();
                self.shell.play_all_but(but.map(|p| PeerIdx(p.into())));
            }
            Op::Passed => self.shell.say_passed(),
            Op::Replace(p) => {
                self.down(p, false);
                let peer = &mut self.model.peers[usize::from(p)];
                peer.routes.clear();
                peer.router_id ^= 512;
                peer.epoch = Epoch::default();
                let idx = PeerIdx(p.into());
                self.shell.apply(RibInput::PeerGone(idx));
                self.shell
                    .apply(RibInput::Peer(idx, Arc::new(peer.config.clone())));
            }
        }
        self.model.unsteady();
    }

    fn up(&mut self, p: u8) {
        let i = usize::from(p);
        if self.model.peers[i].up {
            return;
        }
        let peer = &mut self.model.peers[i];
        peer.up = true;
        peer.epoch = self.epochs.next();
        let epoch = peer.epoch;
        let mut session = negotiated(&self.model.speaker, &peer.config, p + 1);
        session.peer_id = RouterId(peer.router_id);
        self.shell.up(PeerIdx(p.into()), epoch, session);
        // A next hop that the kernel has not been asked about yet may become reachable at any time.
        let mut paths = self.model.peers.iter().flat_map(|p| p.routes.values());
        if paths.all(|r| self.shell.watched.contains(&r.0.next_hop.global)) {
            self.model.peers[i].steady = self.model.all_steady(i);
        }
    }

    fn down(&mut self, p: u8, keep: bool) {
        let peer = &mut self.model.peers[usize::from(p)];
        if !peer.up {
            return;
        }
        peer.up = false;
        peer.steady.clear();
        if keep {
            peer.routes.values_mut().for_each(|r| r.1 = true);
        } else {
            peer.routes.clear();
        }
        let keep_stale = if keep {
            FamilySet::ALL
        } else {
            FamilySet::NONE
        };
        let reason = DownReason::ConnectionLost;
        let idx = PeerIdx(p.into());
        self.shell.members.remove(&idx);
        let epoch = peer.epoch;
        self.shell
            .event(idx, epoch, PeerEvent::Down { reason, keep_stale });
    }

    fn configure(&mut self, p: u8, what: u8) {
        let peer = &mut self.model.peers[usize::from(p)];
        let config = &mut peer.config;
        match what {
            0 => config.export = vec![FilterRef::AcceptAll],
            1 => config.export = vec![FilterRef::RejectAll],
            2 => config.export = Vec::new(),
            3 => config.import = vec![FilterRef::RejectAll],
            4 => config.import = vec![FilterRef::AcceptAll],
            5 => config.import = Vec::new(),
            6 => config.next_hop_self ^= true,
            _ => config.route_reflector_client ^= true,
        }
        let config = Arc::new(config.clone());
        self.shell.apply(RibInput::Peer(PeerIdx(p.into()), config));
    }

    fn check(&mut self) {
        for p in 0..PEERS {
            self.shell.resync(PeerIdx(p.into()));
        }
        self.shell.settle();
        self.shell.play_all();
        let mut advertised = Vec::new();
        for (idx, member) in &self.shell.members {
            let i = usize::from(idx.0);
            let expected = self.model.all_sent(i);
            let got: BTreeMap<Prefix, PathAttributes> = member
                .routes
                .iter()
                .map(|(p, a)| (*p, (**a).clone()))
                .collect();
            assert_eq!(got, expected, "routes of peer {i}");
            advertised.push((*idx, expected.len()));
            assert_eq!(member.ends.len(), 2, "End-of-RIB for peer {i}");
            for (p, (_, a)) in &self.model.peers[i].steady {
                let there = member.ends[&p.family()].get(p).map(|a| &**a);
                assert_eq!(there, Some(a), "{p} for peer {i} before End-of-RIB");
            }
        }
        for n in 0..24 {
            let p = prefix(n);
            let set = self.shell.kernel.get(&p);
            let got = set.map(|s| (s.origin, s.next_hops.to_vec()));
            assert_eq!(got, self.model.kernel(&p), "the kernel's route to {p}");
        }
        for (idx, n) in advertised {
            let counts = self.shell.rib.peer_counts(idx).families;
            assert_eq!((counts[0].advertised + counts[1].advertised) as usize, n);
        }
        for (i, peer) in self.model.peers.iter().enumerate() {
            let counts = self.shell.rib.peer_counts(PeerIdx(i as u16)).families;
            let sum =
                |f: fn(&crate::rib::FamilyCounts) -> u32| (f(&counts[0]) + f(&counts[1])) as usize;
            assert_eq!(sum(|c| c.received), peer.routes.len(), "peer {i}");
            assert_eq!(
                sum(|c| c.stale),
                peer.routes.values().filter(|r| r.1).count()
            );
            let accepted = peer
                .routes
                .iter()
                .filter(|(p, r)| self.model.accepts(peer, p, &r.0));
            assert_eq!(
                sum(|c| c.accepted),
                accepted.count(),
                "accepted of peer {i}"
            );
            let best = (0..24)
                .filter(|n| {
                    self.model
                        .paths(&prefix(*n))
                        .first()
                        .is_some_and(|x| x.1 == Some(i))
                })
                .count();
            assert_eq!(sum(|c| c.best), best, "best of peer {i}");
        }
    }

    /// When all are gone, so is everything.
    fn end(mut self) {
        for p in 0..PEERS {
            self.down(p, false);
            self.step(Op::DropStale(p));
        }
        self.step(Op::Networks(0));
        self.shell.settle();
        let totals = self.shell.rib.query(&Query::Peers).totals;
        assert_eq!(totals.prefixes, [0, 0]);
        assert_eq!(
            (totals.paths, totals.attribute_sets, totals.next_hops),
            (0, 0, 0)
        );
        assert_eq!((totals.groups, totals.route_sets), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn grouped_is_as_a_speaker_for_each_peer(ops in ops(), cut in 0..200usize, short_log in prop_oneof![Just(0), 1..500u64, Just(SHORT_LOG)]) {
        let mut run = Run::new(short_log);
        for (i, op) in ops.into_iter().enumerate() {
            run.step(op);
            if i == cut {
                run.check();
            }
        }
        run.check();
        run.end();
    }
}
