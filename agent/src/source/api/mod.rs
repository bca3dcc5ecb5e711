//! The Kubernetes API as a source of objects: the same events as the directory's, in the same order.
//!
//! ```text
//!   API servers ◄── connection ◄── watcher (one per kind) ──► read ──► hub ──► sink (events), tell (how we stand)
//! ```
//! All of it runs on one thread with a runtime of its own; whoever writes to the API server may share it. While the API is
//! away nothing is sent: what it said last stays in force.

mod backoff;
mod connection;
mod endpoints;
mod fault;
mod fetch;
mod hub;
mod keeper;
mod lines;
mod not_enforced;
mod read;
mod resource;
mod servers;
mod snapshot;
mod standing;
mod watcher;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use kube::Client;
use selvage_bgp::Pulse;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{oneshot, watch};

pub(crate) use backoff::dice;
pub(crate) use connection::reason;
pub use connection::{NoWay, SERVICE_ACCOUNT};
pub use hub::Tell;
pub use keeper::PodsAfter;

use self::fetch::Fetch;
use self::hub::Hub;
use self::resource::Resource;
use self::watcher::{Version, Watcher};
use super::ObjectEvent;
use super::watch::Sink;
use crate::config::ApiConfig;
use crate::objects::Kind;

/// What has to be known before anything can be asked.
#[derive(Clone)]
pub struct Settings {
    /// How the API server is reached.
    pub api: ApiConfig,
    /// Where the credentials of the service account are; see [`SERVICE_ACCOUNT`].
    pub account: PathBuf,
    /// This node.
    pub node: String,
    /// What outlives a restart.
    pub state_dir: PathBuf,
    /// Policies are enforced: pods of other nodes matter, too, because they may be peers of a policy, and so do policies of
    /// kinds that this version does not enforce.
    pub all_pods: bool,
    /// BGP is spoken: our own kinds and the passwords of neighbours are read. Else they are never asked for, and neither
    /// rights nor definitions are needed.
    pub bgp: bool,
    /// Where the snapshot gets its pods: they are kept once only. `None`: it has none.
    pub pods: Option<PodsAfter>,
    /// When things are given up.
    pub patience: Patience,
    /// Stamped by the thread.
    pub pulse: Arc<Pulse>,
}

/// What the source keeps in the state directory, half-written files included.
pub const FILES: [&str; 7] = [
    snapshot::OBJECTS,
    snapshot::PODS,
    "snapshot.new",
    "snapshot.last",
    "snapshot.pods.new",
    connection::SERVERS,
    "api-servers.new",
];

/// How long something may last before it is taken for broken, and how long changes are collected.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A server that does not begin to answer for so long does not serve.
    pub answer: Duration,
    /// Bookmarks come about once a minute: a watch that is silent for so long leads nowhere.
    pub silence: Duration,
    /// A list that does not go on for so long leads nowhere.
    pub stall: Duration,
    /// What the API server has to say for so long before objects that we know are taken for gone with their kind.
    pub absent: Duration,
    /// The longest pause between two looks whether the API server has kinds of policies by now that are not enforced.
    pub discovery: Duration,
    /// Changes of objects are collected for so long before the snapshot is written.
    pub objects: Duration,
    /// The same of pods.
    pub pods: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            answer: Duration::from_secs(20),
            silence: Duration::from_secs(150),
            stall: Duration::from_secs(30),
            absent: Duration::from_secs(30),
            discovery: Duration::from_secs(300),
            objects: Duration::from_secs(3),
            pods: Duration::from_secs(30),
        }
    }
}

/// A running source; dropping it stops it.
pub struct Api {
    client: Client,
    handle: Handle,
    namespace: String,
    asked: watch::Sender<u64>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why the source does not run.
#[derive(Debug, thiserror::Error)]
pub enum NoSource {
    /// There is no way to the API server.
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// No runtime or no thread.
    #[error("cannot start a thread for the Kubernetes API: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts to follow all kinds that are needed. That the API server cannot be reached is no error: it is tried again, and told.
pub fn spawn(settings: &Settings, mut sink: Sink, tell: Tell) -> Result<Api, NoSource> {
    let (parked, woken) = (Arc::clone(&settings.pulse), Arc::clone(&settings.pulse));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || parked.rest())
        .on_thread_unpark(move || woken.work())
        .build()?;
    let connection = runtime.block_on(connection::open(
        &settings.api,
        &settings.account,
        &settings.state_dir,
        &settings.node,
        settings.patience.answer,
    ))?;
    let node = (!settings.all_pods).then_some(settings.node.as_str());
    let (followed, left): (Vec<Kind>, Vec<Kind>) = Kind::ALL
        .into_iter()
        .partition(|kind| settings.bgp || !is_of_bgp(*kind));
    // Nothing is to come of the others. A source without a listener ends soon.
    let _ = sink(left.into_iter().map(ObjectEvent::Synced).collect());
    let resources: Vec<Resource> = followed
        .into_iter()
        .map(|kind| Resource::new(kind, &connection.namespace, node))
        .collect();
    let patience = settings.patience;
    let hub = Hub::new(&resources, &settings.state_dir, patience.absent, sink, tell);
    let hub = Arc::new(hub);
    let asked = watch::Sender::new(0);
    let streams = Arc::new(AtomicBool::new(true));
    let fetch = Fetch {
        client: connection.client.clone(),
        servers: Arc::clone(&connection.servers),
        patience,
    };
    for resource in resources {
        let watcher = Watcher {
            resource,
            fetch: fetch.clone(),
            hub: Arc::clone(&hub),
            streams: Arc::clone(&streams),
            asked: asked.subscribe(),
            revived: hub.revived(),
            version: Version::default(),
            proved: 0,
            cut: 0,
        };
        runtime.spawn(watcher.run());
    }
    if settings.all_pods {
        let look = not_enforced::look(fetch, Arc::clone(&hub), asked.subscribe(), hub.revived());
        runtime.spawn(look);
    }
    if let Some(path) = connection.remembered {
        let (client, servers) = (connection.client.clone(), connection.servers);
        runtime.spawn(endpoints::follow(client, servers, path, hub.revived()));
    }
    let folder = settings.state_dir.clone();
    let keeper = keeper::keep_objects(Arc::clone(&hub), folder.clone(), patience.objects);
    runtime.spawn(keeper);
    if let Some(pods) = settings.pods.clone() {
        let keeper = keeper::keep_pods(Arc::clone(&hub), folder.clone(), patience.pods, pods);
        runtime.spawn(keeper);
    }
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("kubernetes".into())
        .spawn(move || {
            run(runtime, ended);
            keeper::last_words(&hub, &folder);
        })?;
    Ok(Api {
        client: connection.client,
        handle,
        namespace: connection.namespace,
        asked,
        end: Some(end),
        thread: Some(thread),
    })
}

/// Whether a kind says something to the speaker alone.
fn is_of_bgp(kind: Kind) -> bool {
    match kind {
        Kind::BgpConfiguration | Kind::BgpPeer | Kind::Secret => true,
        Kind::Node | Kind::Namespace | Kind::Pod | Kind::NetworkPolicy => false,
    }
}

fn run(runtime: Runtime, ended: oneshot::Receiver<()>) {
    // A sender that is gone is an end as well.
    let _ = runtime.block_on(ended);
    runtime.shutdown_timeout(Duration::from_millis(200));
}

impl Api {
    /// Asks for [`super::ObjectEvent::Reached`] after everything that the API holds now.
    pub fn reach(&self, mark: u64) {
        self.asked.send_modify(|asked| *asked = (*asked).max(mark));
    }

    /// For other requests. Tokens are current and servers are tried in turn as for ours; nothing is tried again.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The runtime of this source, for tasks (not for `block_on`). They end with it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The agent's own namespace, from which Secrets are read.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
