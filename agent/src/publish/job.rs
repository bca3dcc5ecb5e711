//! What there is to write, and when: pure, with the time told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Network, Refused, Wanted};
use crate::desired::{StatusWrite, Verdict};
use crate::objects::bgp_node_status::BgpNodeStatusStatus;
use crate::objects::{Key, Kind};

/// Between two reports of one node, at least.
const REPORT_REST: Duration = Duration::from_secs(1);
/// What all agents would write is spread over so much for each node there is,
const SPREAD_PER_NODE: Duration = Duration::from_millis(5);
/// but over no more than this.
const SPREAD_MOST: Duration = Duration::from_secs(30);
/// What was written is shown by the API server within this time; if it is not, somebody else has written since.
const SHOWN_WITHIN: Duration = Duration::from_secs(3);
/// The first pause after a failure; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest pause after a failure.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// A place that is written to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Network,
    Report,
    Status(Kind, Key),
    Refused(&'static str, Key),
}

/// What is to stand there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Text {
    Network(Network),
    Report(Box<BgpNodeStatusStatus>, Verdict),
    Status(StatusWrite),
    Refused(Refused),
}

#[derive(Debug)]
struct Job {
    text: Text,
    at: Instant,
    failures: u32,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    due: BTreeMap<Place, Job>,
    done: BTreeMap<Place, (Text, Instant)>,
    last_report: Option<Instant>,
}

impl Jobs {
    /// Takes in what should stand there now. `dice` gives a number from 0 to 1.
    pub(super) fn want(&mut self, wanted: &Wanted, now: Instant, mut dice: impl FnMut() -> f64) {
        let texts = texts(wanted);
        self.done.retain(|place, _| texts.contains_key(place));
        // What became as it should be while it waited needs nobody.
        self.due.retain(|place, _| texts.contains_key(place));
        for (place, text) in texts {
            let done = self.done.get(&place).filter(|(done, _)| *done == text);
            let at = match done {
                None => now + self.delay(&place, wanted.nodes, now, &mut dice),
                Some((_, at)) if shows_otherwise(wanted, &place) => *at + SHOWN_WITHIN,
                Some(_) => {
                    self.due.remove(&place);
                    continue;
                }
            };
            let job = self.due.remove(&place).filter(|job| job.text == text);
            let fresh = Job {
                at,
                failures: 0,
                text,
            };
            self.due.insert(place, job.unwrap_or(fresh));
        }
    }

    fn delay(
        &self,
        place: &Place,
        nodes: usize,
        now: Instant,
        dice: &mut impl FnMut() -> f64,
    ) -> Duration {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let spread = (SPREAD_PER_NODE.saturating_mul(nodes)).min(SPREAD_MOST);
        match place {
            // Pods wait for it.
            Place::Network => Duration::ZERO,
            Place::Report => {
                let rest = self
                    .last_report
                    .map(|last| (last + REPORT_REST).saturating_duration_since(now));
                rest.unwrap_or_default() + spread.mul_f64(dice())
            }
            Place::Status(..) | Place::Refused(..) => spread.mul_f64(dice()),
        }
    }

    /// When there is something to do next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().map(|job| job.at).min()
    }

    /// What is due by now, the oldest first.
    pub(super) fn take(&self, now: Instant) -> Option<(Place, Text)> {
        let due = self.due.iter().filter(|(_, job)| job.at <= now);
        let (place, job) = due.min_by_key(|(_, job)| job.at)?;
        Some((place.clone(), job.text.clone()))
    }

    /// It stands there.
    pub(super) fn succeeded(&mut self, place: Place, text: Text, now: Instant) {
        if place == Place::Report {
            self.last_report = Some(now);
        }
        self.due
            .retain(|other, job| *other != place || job.text != text);
        self.done.insert(place, (text, now));
    }

    /// It could not be written, and is tried again later.
    pub(super) fn failed(&mut self, place: &Place, now: Instant, mut dice: impl FnMut() -> f64) {
        if let Some(job) = self.due.get_mut(place) {
            let pause = RETRY_FIRST.saturating_mul(1 << job.failures.min(10));
            job.failures += 1;
            job.at = now + pause.min(RETRY_MOST).mul_f64(0.5 + dice() / 2.0);
        }
    }
}

/// Whether the API server shows something else than what is wanted there, as far as it shows it to us.
fn shows_otherwise(wanted: &Wanted, place: &Place) -> bool {
    match place {
        Place::Network => {
            let available = wanted.network.as_ref().map(|network| network.available);
            wanted.network_unavailable != available.map(|available| !available)
        }
        // It would not be listed.
        Place::Status(..) => true,
        Place::Report | Place::Refused(..) => false,
    }
}

fn texts(wanted: &Wanted) -> BTreeMap<Place, Text> {
    let mut texts = BTreeMap::new();
    if wanted.node.is_none() {
        return texts;
    }
    if let Some(network) = &wanted.network {
        texts.insert(Place::Network, Text::Network(network.clone()));
    }
    if let Some((report, ready)) = &wanted.report {
        let text = Text::Report(Box::new(report.clone()), ready.clone());
        texts.insert(Place::Report, text);
    }
    for write in &wanted.statuses {
        let place = Place::Status(write.kind, write.key.clone());
        texts.insert(place, Text::Status(write.clone()));
    }
    for refused in &wanted.refused {
        let place = Place::Refused(refused.kind, refused.key.clone());
        texts.insert(place, Text::Refused(refused.clone()));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::NodeRef;

    fn wanted() -> Wanted {
        Wanted {
            node: Some(NodeRef::default()),
            nodes: 1_000,
            ..Wanted::default()
        }
    }

    fn network(available: bool) -> Option<Network> {
        Some(Network {
            available,
            reason: "r",
            message: String::new(),
        })
    }

    fn status(message: &str) -> StatusWrite {
        StatusWrite {
            kind: Kind::BgpPeer,
            key: Key::new("", "tor"),
            uid: "u".into(),
            generation: 1,
            conditions: vec![Verdict {
                name: "Accepted",
                status: true,
                reason: "Valid",
                message: message.into(),
            }],
        }
    }

    fn places(jobs: &Jobs, now: Instant) -> Vec<Place> {
        let due = jobs.due.iter().filter(|(_, job)| job.at <= now);
        due.map(|(place, _)| place.clone()).collect()
    }

    #[test]
    fn the_condition_of_the_node_is_written_at_once_and_again_when_somebody_else_writes() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let mut wanted = wanted();
        jobs.want(&wanted, now, || 1.0);
        assert_eq!(jobs.next(), None, "nothing is known yet");
        wanted.network = network(true);
        jobs.want(&wanted, now, || 1.0);
        let (place, text) = jobs.take(now).unwrap();
        jobs.succeeded(place, text, now);
        // Until the API server shows it, what it shows is old: for a while.
        for (shown, again) in [
            (None, Some(now + SHOWN_WITHIN)),
            (Some(false), None),
            (Some(true), Some(now + SHOWN_WITHIN)),
            (Some(false), None),
        ] {
            wanted.network_unavailable = shown;
            jobs.want(&wanted, now, || 1.0);
            assert_eq!(jobs.next(), again, "{shown:?}");
        }
    }

    #[test]
    fn what_others_have_written_meanwhile_is_not_written_again() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let mut wanted = wanted();
        wanted.statuses = vec![status("a")];
        jobs.want(&wanted, now, || 0.5);
        assert_eq!(jobs.take(now), None);
        let later = now + SPREAD_PER_NODE * 500;
        assert_eq!(places(&jobs, later).len(), 1);
        // The same wish does not move it; another one draws anew; a wish that is granted is no job.
        jobs.want(&wanted, now, || 1.0);
        assert_eq!(places(&jobs, later).len(), 1);
        wanted.statuses = vec![status("b")];
        jobs.want(&wanted, now, || 1.0);
        assert_eq!(places(&jobs, later).len(), 0);
        wanted.statuses.clear();
        jobs.want(&wanted, now, || 1.0);
        assert_eq!(jobs.next(), None);
    }

    #[test]
    fn a_status_that_was_overwritten_is_written_again() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let mut wanted = wanted();
        for _ in 0..2 {
            wanted.statuses = vec![status("a")];
            jobs.want(&wanted, now, || 0.0);
            let (place, text) = jobs.take(now).unwrap();
            jobs.succeeded(place, text, now);
            jobs.want(&wanted, now, || 0.0);
            // Written, and not shown yet; or shown, and overwritten before we looked.
            assert_eq!(jobs.next(), Some(now + SHOWN_WITHIN));
            wanted.statuses.clear();
            jobs.want(&wanted, now, || 0.0);
        }
    }

    #[test]
    fn failures_are_retried_less_and_less_often() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let mut wanted = wanted();
        wanted.network = network(false);
        jobs.want(&wanted, now, || 1.0);
        let mut pauses = Vec::new();
        for _ in 0..20 {
            jobs.failed(&Place::Network, now, || 1.0);
            pauses.push(jobs.next().unwrap() - now);
        }
        assert_eq!(pauses.first(), Some(&RETRY_FIRST));
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&RETRY_MOST));
        // What should stand there has changed: it is tried at once.
        wanted.network = network(true);
        jobs.want(&wanted, now, || 1.0);
        assert_eq!(jobs.next(), Some(now));
    }
}
