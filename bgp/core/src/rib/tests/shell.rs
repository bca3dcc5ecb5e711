//! A shell without sockets: keeps logs and dumps as told, lets each member read as slowly as a test likes, and decodes what
//! it reads into the routes that the member has.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bytes::BytesMut;

use crate::{
    clock::Now,
    event::{FromPeer, Negotiated, PeerEvent},
    ids::{Epoch, Family, GroupId, PeerIdx},
    prefix::Prefix,
    rib::{Chunk, DumpId, Rib, RibInput, RibOutput, RouteSet},
    wire::{
        attr::PathAttributes,
        header::next_frame,
        nlri::{self, NlriBlock},
        update::{AttributeCache, Context, decode},
    },
};

#[derive(Default)]
struct Dump {
    chunks: Vec<Chunk>,
    log: Option<u64>,
    retired: bool,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Dump(DumpId, usize),
    Log(u64),
}

/// A member's end of the session.
pub(crate) struct Member {
    pub(crate) epoch: Epoch,
    context: Context,
    limit: usize,
    stream: Option<(GroupId, At)>,
    /// It fell out of the log, and has not asked to begin anew.
    lost: bool,
    pub(crate) routes: BTreeMap<Prefix, Arc<PathAttributes>>,
    /// The families whose End-of-RIB came, with the routes that were there when it first did.
    pub(crate) ends: BTreeMap<Family, BTreeMap<Prefix, Arc<PathAttributes>>>,
}

pub(crate) struct Shell {
    pub(crate) rib: Rib,
    pub(crate) now: Now,
    groups: BTreeMap<GroupId, Vec<Chunk>>,
    dumps: BTreeMap<DumpId, (GroupId, Dump)>,
    pub(crate) members: BTreeMap<PeerIdx, Member>,
    pub(crate) kernel: BTreeMap<Prefix, RouteSet>,
    pub(crate) synced: BTreeSet<Family>,
    pub(crate) too_many: Vec<PeerIdx>,
    pub(crate) many: Vec<(PeerIdx, u32)>,
    /// What the kernel's own routing says of next hops; 1 where nothing is said.
    pub(crate) distance: BTreeMap<IpAddr, Option<u32>>,
    pub(crate) watched: BTreeSet<IpAddr>,
    pub(crate) dumps_begun: usize,
    pub(crate) log_chunks: usize,
}

impl Shell {
    pub(crate) fn new(rib: Rib) -> Shell {
        Shell {
            rib,
            now: Now(0),
            groups: BTreeMap::new(),
            dumps: BTreeMap::new(),
            members: BTreeMap::new(),
            kernel: BTreeMap::new(),
            synced: BTreeSet::new(),
            too_many: Vec::new(),
            many: Vec::new(),
            distance: BTreeMap::new(),
            watched: BTreeSet::new(),
            dumps_begun: 0,
            log_chunks: 0,
        }
    }

    pub(crate) fn apply(&mut self, input: RibInput) {
        self.rib.apply(self.now, input);
    }

    pub(crate) fn event(&mut self, peer: PeerIdx, epoch: Epoch, event: PeerEvent) {
        self.apply(RibInput::Event(FromPeer { peer, epoch, event }));
    }

    pub(crate) fn up(&mut self, peer: PeerIdx, epoch: Epoch, session: Negotiated) {
        let context = Context {
            internal: session.internal,
            first_as: None,
            local_addr: IpAddr::from([127, 0, 0, 1]),
            ..Context::from(&session)
        };
        self.members.insert(
            peer,
            Member {
                epoch,
                context,
                limit: session.max_message,
                stream: None,
                lost: false,
                routes: BTreeMap::new(),
                ends: BTreeMap::new(),
            },
        );
        self.event(peer, epoch, PeerEvent::Up(Arc::new(session)));
    }

    pub(crate) fn reach(&mut self, peer: PeerIdx, attrs: &PathAttributes, prefixes: &[Prefix]) {
        let Some(epoch) = self.members.get(&peer).map(|m| m.epoch) else {
            return;
        };
        for family in Family::ALL {
            let nlri = block(family, prefixes);
            if !nlri.is_empty() {
                let attrs = Arc::new(attrs.clone());
                self.event(peer, epoch, PeerEvent::Reach { attrs, nlri });
            }
        }
    }

    pub(crate) fn unreach(&mut self, peer: PeerIdx, prefixes: &[Prefix]) {
        let Some(epoch) = self.members.get(&peer).map(|m| m.epoch) else {
            return;
        };
        for family in Family::ALL {
            let nlri = block(family, prefixes);
            if !nlri.is_empty() {
                self.event(peer, epoch, PeerEvent::Unreach(nlri));
            }
        }
    }

    pub(crate) fn set_distance(&mut self, next_hop: IpAddr, metric: Option<u32>) {
        self.distance.insert(next_hop, metric);
        if self.watched.contains(&next_hop) {
            self.apply(RibInput::Reachability { next_hop, metric });
        }
    }

    /// One poll; answers what is asked.
    pub(crate) fn poll(&mut self, budget: usize) -> bool {
        let mut out = Vec::new();
        let more = self.rib.poll(self.now, budget, &mut out);
        let mut answers = Vec::new();
        for output in out {
            self.take(output, &mut answers);
        }
        let answered = !answers.is_empty();
        for next_hop in answers {
            let metric = self.distance.get(&next_hop).copied().unwrap_or(Some(1));
            self.apply(RibInput::Reachability { next_hop, metric });
        }
        more || answered
    }

    fn take(&mut self, output: RibOutput, answers: &mut Vec<IpAddr>) {
        match output {
            RibOutput::Log { group, chunk } => {
                self.log_chunks += 1;
                self.groups.entry(group).or_default().push(chunk);
            }
            RibOutput::Join {
                peer,
                epoch,
                group,
                dump,
            } => {
                self.groups.entry(group).or_default();
                let known = self.dumps.len();
                self.dumps.entry(dump).or_insert((group, Dump::default()));
                self.dumps_begun += self.dumps.len() - known;
                assert!(!self.dumps[&dump].1.retired, "joined by a retired dump");
                if let Some(m) = self.members.get_mut(&peer)
                    && m.epoch == epoch
                {
                    m.stream = Some((group, At::Dump(dump, 0)));
                }
            }
            RibOutput::Dump { dump, chunk } => {
                self.dumps.get_mut(&dump).unwrap().1.chunks.push(chunk);
            }
            RibOutput::DumpEnd { dump, log } => {
                let (group, dump) = self.dumps.get_mut(&dump).unwrap();
                assert!(log <= self.groups[group].len() as u64);
                assert_eq!(dump.log.replace(log), None);
            }
            RibOutput::DumpRetired(dump) => {
                let dump = &mut self.dumps.get_mut(&dump).unwrap().1;
                assert!(dump.log.is_some() && !dump.retired);
                dump.retired = true;
            }
            RibOutput::GroupGone(group) => {
                self.groups.remove(&group);
                assert!(
                    self.members
                        .values()
                        .all(|m| m.stream.is_none_or(|s| s.0 != group)),
                    "a member's group is gone"
                );
            }
            RibOutput::Routes(changes) => {
                let mut seen = BTreeSet::new();
                for change in changes {
                    assert!(
                        seen.insert(change.prefix),
                        "two changes of {}",
                        change.prefix
                    );
                    match change.set {
                        Some(set) => self.kernel.insert(change.prefix, set),
                        None => self.kernel.remove(&change.prefix),
                    };
                }
            }
            RibOutput::Synced(family) => assert!(self.synced.insert(family)),
            RibOutput::Watch(addr) => {
                assert!(self.watched.insert(addr));
                answers.push(addr);
            }
            RibOutput::Unwatch(addr) => assert!(self.watched.remove(&addr)),
            RibOutput::UnusableNextHop { .. } => {}
            RibOutput::TooManyPrefixes(peer, _) => self.too_many.push(peer),
            RibOutput::ManyPrefixes(peer, _, _, count) => self.many.push((peer, count)),
        }
    }

    /// Polls until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.poll(1000) {
                return;
            }
        }
        panic!("there is always more to do");
    }

    /// Lets a member read `n` chunks.
    pub(crate) fn play(&mut self, peer: PeerIdx, n: usize) {
        let Some(member) = self.members.get_mut(&peer) else {
            return;
        };
        for _ in 0..n {
            let Some((group, at)) = member.stream else {
                return;
            };
            let (chunk, next) = match at {
                At::Dump(id, i) => {
                    let dump = &self.dumps[&id].1;
                    match (dump.chunks.get(i), dump.log) {
                        (Some(chunk), _) => (Some(chunk), At::Dump(id, i + 1)),
                        (None, Some(log)) => (None, At::Log(log)),
                        (None, None) => return,
                    }
                }
                At::Log(seq) => match self.groups[&group].get(seq as usize) {
                    Some(chunk) => (Some(chunk), At::Log(seq + 1)),
                    None => return,
                },
            };
            if let Some(chunk) = chunk.filter(|c| c.is_for(peer)) {
                let mut bytes = BytesMut::from(&chunk.bytes[..]);
                while let Some(frame) = next_frame(&mut bytes, member.limit).unwrap() {
                    read(member, &frame.body);
                }
                assert!(bytes.is_empty(), "a chunk ends inside a message");
            }
            member.stream = Some((group, next));
        }
    }

    /// Lets all members read all there is.
    pub(crate) fn play_all(&mut self) {
        self.play_all_but(None);
    }

    /// Lets all members but one read all there is.
    pub(crate) fn play_all_but(&mut self, but: Option<PeerIdx>) {
        for peer in self.members.keys().copied().collect::<Vec<_>>() {
            if Some(peer) != but {
                self.play(peer, usize::MAX);
            }
        }
    }

    /// A member loses its place: what it has not read is lost.
    pub(crate) fn lose(&mut self, peer: PeerIdx) {
        if let Some(m) = self.members.get_mut(&peer)
            && m.stream.take().is_some()
        {
            m.lost = true;
        }
    }

    /// A member that has lost its place can read again.
    pub(crate) fn resync(&mut self, peer: PeerIdx) {
        if let Some(m) = self.members.get_mut(&peer)
            && std::mem::take(&mut m.lost)
        {
            let epoch = m.epoch;
            self.apply(RibInput::Resync(peer, epoch));
        }
    }

    /// Says how far all members have read.
    pub(crate) fn say_passed(&mut self) {
        if self.members.values().any(|m| m.lost) {
            return;
        }
        for (group, log) in &self.groups {
            let mut passed = log.len() as u64;
            for member in self.members.values() {
                match member.stream {
                    Some((g, At::Log(seq))) if g == *group => passed = passed.min(seq),
                    Some((_, At::Dump(..))) => passed = 0,
                    _ => {}
                }
            }
            for (_, dump) in self
                .dumps
                .values()
                .filter(|(g, d)| g == group && !d.retired)
            {
                passed = passed.min(dump.log.unwrap_or(0));
            }
            let input = RibInput::Passed {
                group: *group,
                log: passed,
            };
            self.rib.apply(self.now, input);
        }
    }
}

fn read(member: &mut Member, body: &bytes::Bytes) {
    let update = decode(body, &member.context, &mut AttributeCache::default()).unwrap();
    assert_eq!(update.faults, []);
    for (_, prefix) in update.withdrawn.iter().flatten() {
        member.routes.remove(&prefix);
    }
    for (attrs, nlri) in &update.reach {
        for (_, prefix) in nlri {
            member.routes.insert(prefix, attrs.clone());
        }
    }
    if let Some(family) = update.end_of_rib {
        let routes = &member.routes;
        member.ends.entry(family).or_insert_with(|| routes.clone());
    }
}

/// The prefixes of one family as NLRI.
pub(crate) fn block(family: Family, prefixes: &[Prefix]) -> NlriBlock {
    let mut bytes = Vec::new();
    for prefix in prefixes.iter().filter(|p| p.family() == family) {
        nlri::put(&mut bytes, None, prefix);
    }
    NlriBlock::new(family, false, bytes.into()).unwrap()
}
