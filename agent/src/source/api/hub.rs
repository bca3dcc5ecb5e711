//! Where the watchers of all kinds meet: what they read becomes events, and how they stand is told.
//!
//! Of all kinds but pods the hub keeps the text as well: from it the snapshot is written, and it tells whether an
//! earlier form of a refused object is in force. Pods are too many for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tracing::{info, warn};

use super::super::watch::Sink;
use super::super::{At, ObjectEvent, Origin, Problem};
use super::fault::Fault;
use super::read::Read;
use super::resource::Resource;
use super::standing::{self, Basis, Phase};
use crate::objects::{Key, Kind, Timestamp};

/// Told when something about the API server begins to be wrong (why), or is well again (`None`), by a stable name.
pub type Tell = Box<dyn Fn(&'static str, Option<String>) + Send>;

/// What the API server has to say for so long before objects that we know are taken for gone with their kind.
const ABSENT: i64 = 30;

/// One step of a watcher.
pub(super) enum Change {
    /// It is there in this form.
    Read {
        read: Read,
        /// It was not there before.
        new: bool,
    },
    Deleted(Key),
}

/// The hub.
pub(super) struct Hub {
    inner: Mutex<Inner>,
    /// Counts how often the API server came back: nobody sleeps on then.
    revived: watch::Sender<u64>,
}

struct Inner {
    sink: Sink,
    tell: Tell,
    kinds: BTreeMap<Kind, Known>,
    told: BTreeMap<&'static str, String>,
    reached: u64,
    /// Nobody listens any more.
    over: bool,
}

/// What is known of a kind.
struct Known {
    resource: Resource,
    phase: Phase,
    basis: Basis,
    /// Since when the API server says that there is no such kind.
    absent_since: Option<Timestamp>,
    /// Not of pods.
    objects: BTreeMap<Key, Held>,
    /// What has a problem that was told.
    troubled: BTreeSet<Key>,
    /// What was not named yet by a list under way, of objects and troubles.
    unseen: Option<BTreeSet<Key>>,
    pods: usize,
    /// All that was there when this mark was asked for was sent.
    proved: u64,
}

struct Held {
    #[allow(dead_code, reason = "for the snapshot")]
    text: Box<str>,
    /// It is in force as it stands; if not, something else is in its place.
    good: bool,
}

impl Known {
    fn new(resource: Resource) -> Known {
        Known {
            resource,
            phase: Phase::default(),
            basis: Basis::Nothing,
            absent_since: None,
            objects: BTreeMap::new(),
            troubled: BTreeSet::new(),
            unseen: None,
            pods: 0,
            proved: 0,
        }
    }

    fn see(&mut self, key: &Key) {
        if let Some(unseen) = &mut self.unseen {
            unseen.remove(key);
        }
    }

    fn take(&mut self, change: Change, events: &mut Vec<ObjectEvent>) {
        match change {
            Change::Read { read, new } => {
                self.pods += usize::from(new && self.resource.kind == Kind::Pod);
                self.read(read, events);
            }
            Change::Deleted(key) => {
                self.see(&key);
                self.pods = self.pods.saturating_sub(1);
                self.objects.remove(&key);
                self.settle(key.clone(), Vec::new(), events);
                events.push(ObjectEvent::Deleted(self.resource.kind, key));
            }
        }
    }

    fn read(&mut self, read: Read, events: &mut Vec<ObjectEvent>) {
        match read {
            Read::Good {
                object,
                ignored,
                shown,
                kept,
            } => {
                let key = object.key().clone();
                self.see(&key);
                if let Some(text) = kept {
                    self.objects.insert(key.clone(), Held { text, good: true });
                }
                self.settle(key, ignored, events);
                events.push(ObjectEvent::Applied(object));
                events.extend(shown.map(ObjectEvent::Shown));
            }
            Read::Bad {
                key,
                mut problems,
                stand_in,
                shown,
                kept,
            } => {
                self.see(&key);
                let good = self.objects.get(&key).is_some_and(|held| held.good);
                if let Some(stand_in) = stand_in.filter(|_| !good) {
                    if let Some(text) = kept {
                        self.objects.insert(key.clone(), Held { text, good: false });
                    }
                    problems.push(super::super::closed(
                        self.resource.kind,
                        &key,
                        at(&problems),
                    ));
                    events.push(ObjectEvent::Applied(stand_in));
                }
                self.settle(key, problems, events);
                events.extend(shown.map(ObjectEvent::Shown));
            }
        }
    }

    /// Says what is wrong with an object now, instead of what was.
    fn settle(&mut self, key: Key, problems: Vec<Problem>, events: &mut Vec<ObjectEvent>) {
        let origin = Origin::Api(self.resource.kind.name().to_owned(), key.clone());
        if self.troubled.remove(&key) {
            events.push(ObjectEvent::Cleared(origin));
        }
        if !problems.is_empty() {
            self.troubled.insert(key);
            events.extend(problems.into_iter().map(ObjectEvent::Invalid));
        }
    }

    fn begin(&mut self, events: &mut Vec<ObjectEvent>) {
        let mut unseen: BTreeSet<Key> = self.objects.keys().cloned().collect();
        unseen.extend(self.troubled.iter().cloned());
        self.unseen = Some(unseen);
        self.pods = 0;
        events.push(ObjectEvent::Relist(self.resource.kind));
    }

    fn finish(&mut self, events: &mut Vec<ObjectEvent>) {
        for key in self.unseen.take().unwrap_or_default() {
            self.objects.remove(&key);
            self.settle(key, Vec::new(), events);
        }
        self.basis = Basis::Heard;
        events.push(ObjectEvent::Synced(self.resource.kind));
    }
}

fn at(problems: &[Problem]) -> At {
    let at = problems.first().map(|problem| problem.at.clone());
    at.unwrap_or(At::Api {
        resource_version: String::new(),
    })
}

impl Hub {
    pub(super) fn new(resources: &[Resource], sink: Sink, tell: Tell) -> Hub {
        let kinds = resources
            .iter()
            .map(|resource| (resource.kind, Known::new(resource.clone())))
            .collect();
        Hub {
            inner: Mutex::new(Inner {
                sink,
                tell,
                kinds,
                told: BTreeMap::new(),
                reached: 0,
                over: false,
            }),
            revived: watch::Sender::new(0),
        }
    }

    /// Told whenever the API server came back.
    pub(super) fn revived(&self) -> watch::Receiver<u64> {
        self.revived.subscribe()
    }

    /// Nobody listens any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// All objects of a kind follow.
    pub(super) fn begin(&self, kind: Kind) {
        self.with(kind, Known::begin);
    }

    /// Objects of a kind were read.
    pub(super) fn take(&self, kind: Kind, changes: Vec<Change>) {
        self.with(kind, |known, events| {
            for change in changes {
                known.take(change, events);
            }
        });
    }

    /// All objects of a kind were read. `mark`: the newest one that had been asked for before.
    pub(super) fn finish(&self, kind: Kind, mark: u64) {
        self.with(kind, |known, events| {
            known.finish(events);
            known.proved = known.proved.max(mark);
        });
        self.reach();
    }

    /// All that happened to a kind before this mark was asked for was sent.
    pub(super) fn prove(&self, kind: Kind, mark: u64) {
        self.with(kind, |known, _| known.proved = known.proved.max(mark));
        self.reach();
    }

    /// How many objects of a kind there are, about.
    pub(super) fn count(&self, kind: Kind) -> usize {
        let inner = self.lock();
        let known = inner.kinds.get(&kind);
        known.map_or(0, |known| known.objects.len() + known.pods)
    }

    /// A kind is followed.
    pub(super) fn live(&self, kind: Kind) {
        let mut back = false;
        self.with(kind, |known, _| {
            back = matches!(known.phase, Phase::Away(..));
            known.phase = Phase::Live;
            known.absent_since = None;
        });
        self.lock().tell();
        if back {
            self.revived.send_modify(|count| *count += 1);
        }
    }

    /// A kind could not be read. `mark`: the newest one that had been asked for before.
    pub(super) fn failed(&self, kind: Kind, fault: &Fault, mark: u64) {
        let now = now();
        self.with(kind, |known, events| {
            let since = match &known.phase {
                Phase::Away(since, _) => *since,
                _ => now,
            };
            match fault {
                Fault::Away(reason) => {
                    known.phase = Phase::Away(since, reason.clone());
                    known.absent_since = None;
                }
                Fault::Forbidden(message) => {
                    known.phase = Phase::Forbidden(message.clone());
                    known.proved = known.proved.max(mark);
                }
                Fault::Absent => {
                    let since = *known.absent_since.get_or_insert(now);
                    known.phase = Phase::Absent;
                    known.proved = known.proved.max(mark);
                    // An API server that has just started may not know of it yet.
                    let expected = !known.objects.is_empty();
                    let sure = !expected || now.0 - since.0 >= ABSENT;
                    if sure && (expected || known.basis != Basis::Heard) {
                        known.begin(events);
                        known.finish(events);
                    }
                }
                Fault::Gone | Fault::NoStreams => {}
            }
        });
        self.lock().tell();
        self.reach();
    }

    fn reach(&self) {
        let mut inner = self.lock();
        let reached = inner.kinds.values().map(|known| known.proved).min();
        let reached = reached.unwrap_or_default();
        if reached > inner.reached {
            inner.reached = reached;
            inner.send(vec![ObjectEvent::Reached(reached)]);
        }
    }

    fn with(&self, kind: Kind, step: impl FnOnce(&mut Known, &mut Vec<ObjectEvent>)) {
        let mut inner = self.lock();
        let mut events = Vec::new();
        if let Some(known) = inner.kinds.get_mut(&kind) {
            step(known, &mut events);
        }
        inner.send(events);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn send(&mut self, events: Vec<ObjectEvent>) {
        if !events.is_empty() && !self.over {
            self.over = !(self.sink)(events);
        }
    }

    /// Says what has begun to be wrong, and what is well again.
    fn tell(&mut self) {
        let kinds = self.kinds.values();
        let kinds = kinds.map(|known| (&known.resource, &known.phase, known.basis));
        let now = standing::texts(kinds);
        for (name, text) in &now {
            match self.told.get(name) {
                Some(told) if told == text => continue,
                Some(_) => {}
                None => warn!("{text}"),
            }
            (self.tell)(name, Some(text.clone()));
        }
        for (name, text) in &self.told {
            if !now.contains_key(name) {
                info!("no longer: {text}");
                (self.tell)(name, None);
            }
        }
        self.told = now;
    }
}

fn now() -> Timestamp {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
