//! Where the watchers of all kinds meet: what they read becomes events, and how they stand is told.
//!
//! Of all kinds but pods the hub keeps the text as well: from it the snapshot is written, and it tells whether an
//! earlier form of a refused object is in force. Pods are too many for that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tracing::{info, warn};

use super::super::watch::Sink;
use super::super::{At, ObjectEvent, Origin, Problem};
use super::fault::Fault;
use super::read::{self, Read};
use super::resource::Resource;
use super::snapshot::{self, Snapshot};
use super::standing::{self, Basis, Phase};
use crate::objects::{Interner, Key, Kind, NotEnforced, Object, PolicyKind, Timestamp};

/// Told when something about the API server begins to be wrong (why), or is well again (`None`), by a stable name.
pub type Tell = Box<dyn Fn(&'static str, Option<String>) + Send>;

/// What is well again sooner is not worth a word.
const HICCUP: Duration = Duration::from_millis(250);

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
    /// Counts changes of what the snapshot has, but pods.
    objects: watch::Sender<u64>,
    /// Counts changes of pods.
    pods: watch::Sender<u64>,
    /// Whether something is known of every kind, and no list is under way: there is a snapshot to be written.
    whole: watch::Sender<bool>,
    /// Where the snapshot is.
    folder: PathBuf,
    /// What the API server has to say for so long before objects that we know are taken for gone with their kind.
    absent: Duration,
}

struct Inner {
    sink: Sink,
    tell: Tell,
    kinds: BTreeMap<Kind, Known>,
    told: BTreeMap<&'static str, String>,
    /// Kinds of policies that we may not list, in the API server's words.
    forbidden: BTreeMap<PolicyKind, String>,
    reached: u64,
    /// Nobody listens any more.
    over: bool,
}

/// What is known of a kind.
struct Known {
    resource: Resource,
    phase: Phase,
    basis: Basis,
    /// Since when it cannot be read, whether that was told already or not.
    failing: Option<(Timestamp, Instant)>,
    /// Since when the API server says that there is no such kind.
    absent_since: Option<Instant>,
    /// Not of pods.
    objects: BTreeMap<Key, Held>,
    /// What has a problem that was told.
    troubled: BTreeSet<Key>,
    /// What was not named yet by a list under way, of objects and troubles.
    unseen: Option<BTreeSet<Key>>,
    pods: usize,
    /// What pods have in common.
    shared: Interner,
    /// All that was there when this mark was asked for was sent.
    proved: u64,
    /// Something that the snapshot has was changed.
    changed: bool,
    /// There is nothing to be had from a snapshot any more.
    remembered: bool,
}

struct Held {
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
            failing: None,
            absent_since: None,
            objects: BTreeMap::new(),
            troubled: BTreeSet::new(),
            unseen: None,
            pods: 0,
            shared: Interner::default(),
            proved: 0,
            changed: false,
            remembered: false,
        }
    }

    /// Nothing is known of the kind yet, or a list of it is under way.
    fn is_missing(&self) -> bool {
        let forbidden = matches!(self.phase, Phase::Forbidden(_));
        self.basis == Basis::Nothing && !forbidden || self.unseen.is_some()
    }

    /// Until when what is known was true.
    fn true_until(&self, now: Timestamp) -> Timestamp {
        match (self.basis, &self.phase) {
            (Basis::Snapshot(time), _) => time,
            (_, Phase::Away(since, _)) => *since,
            _ => now,
        }
    }

    fn keep(&mut self, key: &Key, text: Option<Box<str>>, good: bool) {
        let Some(text) = text else { return };
        let held = Held { text, good };
        let before = self.objects.insert(key.clone(), held);
        let now = self.objects.get(key);
        self.changed |= before.as_ref().map(|held| &held.text) != now.map(|held| &held.text);
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
                self.changed |= self.objects.remove(&key).is_some();
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
                self.keep(&key, kept, true);
                self.settle(key, ignored, events);
                events.push(match object {
                    Object::Pod(pod) => ObjectEvent::Pod(Arc::new(pod.fact(&mut self.shared))),
                    object => ObjectEvent::Applied(object),
                });
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
                    self.keep(&key, kept, false);
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
        if self.troubled.remove(&key) {
            let origin = Origin::Api(self.resource.kind.name().to_owned(), key.clone());
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

    /// Takes what an earlier run has kept for what the API server would say.
    fn remember(&mut self, folder: &Path, events: &mut Vec<ObjectEvent>) {
        let name = match self.resource.kind {
            Kind::Pod => snapshot::PODS,
            _ => snapshot::OBJECTS,
        };
        let snapshot = match Snapshot::read(folder, name) {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return,
            Err(error) => {
                let path = folder.join(name);
                warn!(path = %path.display(), %error, "the snapshot of objects is not usable");
                return;
            }
        };
        for text in snapshot.objects() {
            let Some(mut read) = read::kept(self.resource.kind, text) else {
                continue;
            };
            // What the API server has said meanwhile is newer.
            if !self.objects.contains_key(read.key()) {
                read.forget_status();
                self.pods += usize::from(self.resource.kind == Kind::Pod);
                self.read(read, events);
            }
        }
        // It is what was there before.
        self.changed = false;
        self.basis = Basis::Snapshot(snapshot.time);
        events.push(ObjectEvent::Synced(self.resource.kind));
    }

    fn finish(&mut self, events: &mut Vec<ObjectEvent>) {
        for key in self.unseen.take().unwrap_or_default() {
            self.changed |= self.objects.remove(&key).is_some();
            self.settle(key, Vec::new(), events);
        }
        self.basis = Basis::Heard;
        self.remembered = true;
        events.push(ObjectEvent::Synced(self.resource.kind));
    }
}

fn at(problems: &[Problem]) -> At {
    let at = problems.first().map(|problem| problem.at.clone());
    at.unwrap_or(At::Api {
        resource_version: String::new(),
        uid: String::new(),
    })
}

impl Hub {
    pub(super) fn new(
        resources: &[Resource],
        folder: &Path,
        absent: Duration,
        sink: Sink,
        tell: Tell,
    ) -> Hub {
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
                forbidden: BTreeMap::new(),
                reached: 0,
                over: false,
            }),
            revived: watch::Sender::new(0),
            objects: watch::Sender::new(0),
            pods: watch::Sender::new(0),
            whole: watch::Sender::new(false),
            folder: folder.to_owned(),
            absent,
        }
    }

    /// Told when something has changed that the snapshot has, but pods.
    pub(super) fn objects_changed(&self) -> watch::Receiver<u64> {
        self.objects.subscribe()
    }

    /// Told when pods have changed.
    pub(super) fn pods_changed(&self) -> watch::Receiver<u64> {
        self.pods.subscribe()
    }

    /// Told when the last thing that was missing has come; see [`true_until`](Self::true_until).
    pub(super) fn whole(&self) -> watch::Receiver<bool> {
        self.whole.subscribe()
    }

    /// Until when what is known was true; `None` while something is missing.
    pub(super) fn true_until(&self) -> Option<Timestamp> {
        let inner = self.lock();
        let now = now();
        if !inner.is_whole() {
            return None;
        }
        let times = inner.kinds.values().map(|known| known.true_until(now));
        times.min()
    }

    /// What the snapshot has to have, but pods.
    pub(super) fn texts(&self) -> Vec<String> {
        let inner = self.lock();
        let held = inner
            .kinds
            .values()
            .flat_map(|known| known.objects.values());
        held.map(|held| held.text.to_string()).collect()
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
            known.failing = None;
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
        let folder = &self.folder;
        self.with(kind, |known, events| {
            if !matches!(fault, Fault::Away(_)) {
                known.failing = None;
            }
            match fault {
                Fault::Away(reason) => {
                    known.absent_since = None;
                    let (since, began) = *known.failing.get_or_insert((now, Instant::now()));
                    if began.elapsed() < HICCUP {
                        return;
                    }
                    known.phase = Phase::Away(since, reason.clone());
                }
                Fault::Forbidden(message) => {
                    known.phase = Phase::Forbidden(message.clone());
                    known.proved = known.proved.max(mark);
                }
                Fault::Absent => {
                    let since = known.absent_since.get_or_insert_with(Instant::now);
                    known.phase = Phase::Absent;
                    known.proved = known.proved.max(mark);
                    // An API server that has just started may not know of it yet.
                    let expected = !known.objects.is_empty();
                    let sure = !expected || since.elapsed() >= self.absent;
                    if sure && (expected || known.basis != Basis::Heard) {
                        known.begin(events);
                        known.finish(events);
                    }
                }
                Fault::Gone | Fault::NoStreams => {}
            }
            let unheard = matches!(fault, Fault::Away(_) | Fault::Forbidden(_));
            if unheard && !std::mem::replace(&mut known.remembered, true) {
                known.remember(folder, events);
            }
        });
        self.lock().tell();
        self.reach();
    }

    /// All policies of a kind that this version does not enforce.
    pub(super) fn not_enforced(&self, kind: PolicyKind, policies: Vec<NotEnforced>) {
        let mut inner = self.lock();
        inner.forbidden.remove(&kind);
        inner.tell();
        inner.send(vec![ObjectEvent::NotEnforced(kind, policies)]);
    }

    /// Whether there are policies of such a kind cannot be seen.
    pub(super) fn not_enforced_forbidden(&self, kind: PolicyKind, message: String) {
        let mut inner = self.lock();
        inner.forbidden.insert(kind, message);
        inner.tell();
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
        let mut changed = false;
        if let Some(known) = inner.kinds.get_mut(&kind) {
            step(known, &mut events);
            changed = std::mem::take(&mut known.changed);
        }
        let pods = kind == Kind::Pod && !events.is_empty();
        inner.send(events);
        let whole = inner.is_whole();
        drop(inner);
        self.whole
            .send_if_modified(|was| std::mem::replace(was, whole) != whole);
        if changed {
            self.objects.send_modify(|count| *count += 1);
        }
        if pods {
            self.pods.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_whole(&self) -> bool {
        !self.kinds.values().any(Known::is_missing)
    }

    fn send(&mut self, events: Vec<ObjectEvent>) {
        if !events.is_empty() && !self.over {
            self.over = !(self.sink)(events);
        }
    }

    /// Says what has begun to be wrong, and what is well again.
    fn tell(&mut self) {
        let kinds = self.kinds.values();
        let kinds = kinds.map(|known| (&known.resource, &known.phase, known.basis));
        let now = standing::texts(kinds, self.forbidden.values());
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

/// The time of day.
pub(super) fn now() -> Timestamp {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}
