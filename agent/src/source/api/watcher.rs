//! One kind of object, followed at the API server: list or stream, then watch, again and again.
//!
//! ```text
//!   nothing known ──► stream, else pages ──► version ──► watch from it ──► closed, cut, silent: from the last version
//!        ▲                                                  │
//!        └────────────── 410 Gone, garbage, a mark ◄────────┘
//! ```
//! A list is a mark and sweep: nobody keeps it, and what the store has stays in force until the list is complete.
//!
//! **Marks.** Whoever waits for all that the API server holds now cannot be told by the watch: a kind that nobody
//! changes says nothing but a bookmark a minute. So a small kind is listed anew, which is exact. A large one is watched
//! from where we are with a deadline of three seconds: two seconds before it the server sends a bookmark after all that it
//! has dispatched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::backoff::{Backoff, dice};
use super::connection::reason;
use super::fault::Fault;
use super::fetch::{Fetch, via};
use super::hub::{Change, Hub};
use super::lines::Lines;
use super::read::{self, Head, Line, Page, Status};
use super::resource::{PAGE, Resource};

/// The server ends a watch after this, and up to so much more that not all are ended together.
const WATCH: (u64, f64) = (300, 120.0);
const JSON: &str = "application/json";
/// A watch that is to end with a bookmark soon.
const SHORT_WATCH: u64 = 3;
/// What ends sooner was no success.
pub(super) const BRIEF: Duration = Duration::from_secs(1);
/// After so many streams in a row that were cut in the middle of a list, lists come in pages, which get further.
const MOST_CUT: u32 = 3;
/// The first pause where only an administrator can help.
pub(super) const CALM: u32 = 4;

/// Follows one kind.
pub(super) struct Watcher {
    pub(super) resource: Resource,
    pub(super) fetch: Fetch,
    pub(super) hub: Arc<Hub>,
    /// Whether lists are asked for as streams.
    pub(super) streams: Arc<AtomicBool>,
    /// The newest mark.
    pub(super) asked: watch::Receiver<u64>,
    pub(super) revived: watch::Receiver<u64>,
    pub(super) version: Version,
    /// The newest mark for which all was sent.
    pub(super) proved: u64,
    /// How often in a row a list that came as a stream was cut.
    pub(super) cut: u32,
}

/// How far we are.
#[derive(Debug, Default)]
pub(super) struct Version {
    /// Empty: nothing is known.
    text: String,
    /// The same as a number, if it is one. Of one kind, versions can be compared.
    number: Option<u64>,
}

impl Version {
    fn is_known(&self) -> bool {
        !self.text.is_empty()
    }

    fn forget(&mut self) {
        *self = Version::default();
    }

    fn set(&mut self, text: &str) {
        text.clone_into(&mut self.text);
        self.number = text.parse().ok();
    }

    /// Goes on to a version; false if we have been there.
    fn advance(&mut self, text: &str) -> bool {
        let number = text.parse().ok();
        let old = match (self.number, number) {
            (Some(before), Some(now)) => now <= before,
            _ => false,
        };
        if !old && !text.is_empty() {
            text.clone_into(&mut self.text);
            self.number = number;
        }
        !old
    }
}

/// Why a watch has ended without a fault.
enum End {
    /// By the server, or by whatever is between.
    Closed,
    /// By us: somebody has asked for a mark.
    Asked,
}

/// What a watch is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// It begins with all objects; the mark that had been asked for before.
    Fill(u64),
    /// To follow.
    Follow,
    /// To end with a bookmark, for this mark.
    Prove(u64),
}

impl Watcher {
    /// Runs until nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut aim = Aim::Follow;
        while !self.hub.is_over() {
            let mark = *self.asked.borrow_and_update();
            if self.version.is_known() && mark > self.proved {
                match self.hub.count(self.resource.kind) <= PAGE {
                    true => self.version.forget(),
                    false => aim = Aim::Prove(mark),
                }
            }
            let began = Instant::now();
            let done = match self.version.is_known() {
                false => self.fill(mark).await,
                true => self.follow(aim).await,
            };
            aim = Aim::Follow;
            match done {
                Ok(End::Asked) => {}
                Ok(End::Closed) if began.elapsed() > BRIEF => backoff.reset(),
                Ok(End::Closed) => self.pause(&mut backoff, false).await,
                Err(fault) => self.fail(&fault, mark, &mut backoff).await,
            }
        }
    }

    async fn fail(&mut self, fault: &Fault, mark: u64, backoff: &mut Backoff) {
        debug!(kind = %self.resource.kind, ?fault, "the API server");
        match fault {
            Fault::NoStreams => {
                self.streams.store(false, Ordering::Relaxed);
                return;
            }
            Fault::Gone => self.version.forget(),
            Fault::Away(_) => {}
            Fault::Absent | Fault::Forbidden(_) => {
                self.version.forget();
                backoff.at_least(CALM);
            }
        }
        self.hub.failed(self.resource.kind, fault, mark);
        let asking = matches!(fault, Fault::Absent | Fault::Forbidden(_));
        self.pause(backoff, asking).await;
    }

    /// Waits; not longer than until the API server is known to be back, and if `asking` not longer than until somebody asks
    /// for a mark.
    async fn pause(&mut self, backoff: &mut Backoff, asking: bool) {
        tokio::select! {
            () = sleep(backoff.next()) => {}
            // Gone senders are an end as well: the loop looks.
            _ = self.revived.changed() => {}
            _ = self.asked.changed(), if asking => {}
        }
    }

    async fn fill(&mut self, mark: u64) -> Result<End, Fault> {
        if self.streams.load(Ordering::Relaxed) && self.cut < MOST_CUT {
            let query = self.resource.stream(seconds());
            return self.watch(query, Aim::Fill(mark)).await;
        }
        let mut after: Option<String> = None;
        let mut begun = false;
        loop {
            let list = self.resource.list(after.as_deref());
            let response = self.fetch.get(list, JSON).await?;
            let page = self.fetch.body(response, &self.resource.name()).await?;
            if !std::mem::replace(&mut begun, true) {
                self.hub.begin(self.resource.kind);
            }
            let Page { metadata, items } = serde_json::from_slice(&page).map_err(|error| {
                Fault::Away(format!(
                    "a list of {} is not readable: {error}",
                    self.resource.name()
                ))
            })?;
            let items = items.unwrap_or_default().into_iter();
            let changes = items.map(|item| Change::Read {
                read: read::object(self.resource.kind, item),
                new: true,
            });
            self.hub.take(self.resource.kind, changes.collect());
            after = metadata.next.filter(|next| !next.is_empty());
            if after.is_none() {
                self.version.set(&metadata.resource_version);
                self.finish(mark);
                return self.follow(Aim::Follow).await;
            }
        }
    }

    async fn follow(&mut self, aim: Aim) -> Result<End, Fault> {
        let seconds = match aim {
            Aim::Prove(_) => SHORT_WATCH,
            Aim::Follow | Aim::Fill(_) => seconds(),
        };
        let query = self.resource.watch(&self.version.text, seconds);
        let began = Instant::now();
        let end = self.watch(query, aim).await?;
        if let Aim::Prove(mark) = aim
            && began.elapsed() >= Duration::from_secs(SHORT_WATCH)
        {
            // Without a bookmark it was silent for as long as it could be.
            self.prove(mark);
        }
        Ok(end)
    }

    async fn watch(&mut self, query: String, mut aim: Aim) -> Result<End, Fault> {
        let response = self.fetch.get(query, JSON).await?;
        let server = via(&response);
        if !matches!(aim, Aim::Fill(_)) {
            self.hub.live(self.resource.kind);
        }
        let mut begun = false;
        let mut body = response.into_body();
        let mut lines = Lines::default();
        loop {
            let frame = tokio::select! {
                frame = timeout(self.fetch.patience.silence, body.frame()) => frame,
                asked = self.asked.changed(), if aim == Aim::Follow => {
                    // Without anybody who could ask there is nobody to follow for.
                    return asked.map(|()| End::Asked).map_err(|_| Fault::Gone);
                }
            };
            let frame = match frame {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return self.closed(aim, "closed"),
                Ok(Some(Err(error))) => return self.closed(aim, &reason(&error)),
                Err(_) => {
                    self.fetch.leave(server);
                    return self.closed(aim, "silent");
                }
            };
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            if lines.push(&piece).is_err() {
                return Err(self.garbage("a line without end"));
            }
            if let Aim::Fill(_) = aim
                && !std::mem::replace(&mut begun, true)
            {
                self.hub.begin(self.resource.kind);
            }
            if self.lines(&mut lines, &mut aim)? {
                return Ok(End::Closed);
            }
        }
    }

    /// A watch that has ended goes on from the last version. One that was to begin with all objects has come to nothing.
    fn closed(&mut self, aim: Aim, why: &str) -> Result<End, Fault> {
        debug!(kind = %self.resource.kind, why, "the end of a watch");
        let Aim::Fill(_) = aim else {
            return Ok(End::Closed);
        };
        self.cut += 1;
        Err(Fault::Away(format!(
            "a list of {} has no end: {why}",
            self.resource.name()
        )))
    }

    /// Takes in whole lines; true if that is all that this watch was for.
    fn lines(&mut self, lines: &mut Lines, aim: &mut Aim) -> Result<bool, Fault> {
        let mut changes = Vec::new();
        while let Some(line) = lines.next() {
            let parsed = serde_json::from_slice::<Line<'_>>(line);
            let done = match parsed {
                Ok(line) => self.line(&line, aim, &mut changes),
                Err(error) => Err(self.garbage(&error.to_string())),
            };
            match done {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                Err(fault) => {
                    self.hub.take(self.resource.kind, changes);
                    return Err(fault);
                }
            }
        }
        self.hub.take(self.resource.kind, changes);
        Ok(false)
    }

    fn line(
        &mut self,
        line: &Line<'_>,
        aim: &mut Aim,
        changes: &mut Vec<Change>,
    ) -> Result<bool, Fault> {
        let kind = self.resource.kind;
        match line.kind.as_ref() {
            event @ ("ADDED" | "MODIFIED") => {
                if self.is_news(line.object, *aim) {
                    let (read, new) = (read::object(kind, line.object), event == "ADDED");
                    changes.push(Change::Read { read, new });
                }
            }
            "DELETED" => {
                if self.is_news(line.object, *aim) {
                    changes.push(Change::Deleted(Head::of(line.object).key(kind)));
                }
            }
            "BOOKMARK" => {
                let head = Head::of(line.object);
                match *aim {
                    Aim::Fill(mark) if head.ends_initial() => {
                        self.hub.take(kind, std::mem::take(changes));
                        self.version.set(head.version());
                        self.hub.live(kind);
                        self.finish(mark);
                        *aim = Aim::Follow;
                    }
                    // It does not know what it was asked for.
                    Aim::Fill(_) => return Err(Fault::NoStreams),
                    Aim::Follow => {
                        self.version.advance(head.version());
                    }
                    Aim::Prove(mark) => {
                        self.version.advance(head.version());
                        self.hub.take(kind, std::mem::take(changes));
                        self.prove(mark);
                        return Ok(true);
                    }
                }
            }
            "ERROR" => {
                let status = serde_json::from_str::<Status>(line.object.get()).unwrap_or_default();
                return Err(Fault::from_status(status.code, &status));
            }
            other => debug!(%kind, event = other, "an event that this version does not know"),
        }
        Ok(false)
    }

    fn finish(&mut self, mark: u64) {
        self.cut = 0;
        self.proved = self.proved.max(mark);
        self.hub.finish(self.resource.kind, mark);
    }

    fn prove(&mut self, mark: u64) {
        self.proved = self.proved.max(mark);
        self.hub.prove(self.resource.kind, mark);
    }

    /// Whether an event is one that we have not seen. The objects with which a stream begins come in any order.
    fn is_news(&mut self, object: &RawValue, aim: Aim) -> bool {
        matches!(aim, Aim::Fill(_)) || self.version.advance(Head::of(object).version())
    }

    /// What cannot be read means that we do not know where we are.
    fn garbage(&mut self, what: &str) -> Fault {
        self.version.forget();
        Fault::Away(format!(
            "a watch of {} is not readable: {what}",
            self.resource.name()
        ))
    }
}

pub(super) fn seconds() -> u64 {
    let (least, more) = WATCH;
    least + (dice() * more) as u64
}
