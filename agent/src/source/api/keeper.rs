//! Keeps the snapshot current, without haste: what changes often is written seldom.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use selvage_policy::model::{PodFact, PodKey};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::hub::Hub;
use super::snapshot::{self, OBJECTS, PODS, Writer};
use crate::objects::Timestamp;

/// Gives the pods that the store has after a key, some at a time; none: there are no more.
pub type PodsAfter =
    Arc<dyn Fn(Option<PodKey>) -> oneshot::Receiver<Vec<Arc<PodFact>>> + Send + Sync>;

/// Pods are not written more often than comes to this on average, in bytes a second.
const PACE: u64 = 100_000;
/// Without a change the files are written now and then all the same: their time says until when they were true.
const STILL_TRUE: Duration = Duration::from_secs(600);

/// Writes objects when they have changed.
pub(super) async fn keep_objects(hub: Arc<Hub>, folder: PathBuf, rest: Duration) {
    let (mut changed, mut whole) = (hub.objects_changed(), hub.whole());
    loop {
        let _ = timeout(STILL_TRUE, changed.changed()).await;
        sleep(rest).await;
        // The hub is ours: its end does not come.
        let _ = whole.wait_for(|whole| *whole).await;
        changed.mark_unchanged();
        let Some(time) = hub.true_until() else {
            continue;
        };
        let (texts, folder) = (hub.texts(), folder.clone());
        let written = spawn_blocking(move || write_objects(&folder, "new", time, &texts)).await;
        report(written.unwrap_or(Ok(())));
    }
}

/// Writes objects now, at the end of a run.
pub(super) fn last_words(hub: &Hub, folder: &Path) {
    if let Some(time) = hub.true_until() {
        report(write_objects(folder, "last", time, &hub.texts()));
    }
}

fn write_objects(folder: &Path, aside: &str, time: Timestamp, texts: &[String]) -> io::Result<()> {
    let mut writer = Writer::begin(folder, OBJECTS, aside, time)?;
    for text in texts {
        writer.object(text)?;
    }
    writer.finish().map(drop)
}

/// Writes pods when they have changed.
pub(super) async fn keep_pods(hub: Arc<Hub>, folder: PathBuf, rest: Duration, pods: PodsAfter) {
    let (mut changed, mut whole) = (hub.pods_changed(), hub.whole());
    loop {
        let _ = timeout(STILL_TRUE, changed.changed()).await;
        // The hub is ours: its end does not come.
        let _ = whole.wait_for(|whole| *whole).await;
        let Some(time) = hub.true_until() else {
            // A list has begun meanwhile. Whatever it brings counts as a change.
            changed.mark_changed();
            continue;
        };
        changed.mark_unchanged();
        let began = Instant::now();
        let written = write_pods(&folder, time, &pods).await;
        let bytes = *written.as_ref().unwrap_or(&0);
        report(written.map(drop));
        let pause = rest.max(Duration::from_secs(bytes / PACE));
        sleep(pause.saturating_sub(began.elapsed())).await;
    }
}

async fn write_pods(folder: &Path, time: Timestamp, pods: &PodsAfter) -> io::Result<u64> {
    let mut writer = Writer::begin(folder, PODS, "new", time)?;
    let mut after = None;
    loop {
        // Whoever has them is ending if there is no answer; the snapshot before stays.
        let some = pods(after).await.map_err(io::Error::other)?;
        let Some(last) = some.last() else { break };
        after = Some(last.key.clone());
        let done = spawn_blocking(move || {
            let mut put = || {
                some.iter()
                    .try_for_each(|fact| writer.object(&snapshot::pod(fact)))
            };
            put().map(|()| writer)
        });
        writer = done.await.map_err(io::Error::other)??;
    }
    let done = spawn_blocking(move || writer.finish());
    done.await.map_err(io::Error::other)?
}

fn report(written: io::Result<()>) {
    if let Err(error) = written {
        warn!(%error, "cannot write the snapshot of objects; a start without the API server will have an older one");
    }
}
