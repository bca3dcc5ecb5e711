//! A small API server that can be told to misbehave: lists in pages, watches, bookmarks, streams, and every way to break them.
//!
//! Plain HTTP/1.1, one thread per connection. It keeps what happened to each kind, so that a watch can begin anywhere; what
//! is compacted away answers 410.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The server. Dropping it ends it.
pub struct Fake {
    shared: Arc<Shared>,
    pub addr: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What it has and how it behaves.
pub struct State {
    pub version: u64,
    resources: BTreeMap<String, Resource>,
    /// Streams instead of lists are understood.
    pub streams: bool,
    /// Bookmarks are sent this often; `None`: never but at the end of a short watch or of initial objects.
    pub bookmarks: Option<Duration>,
    /// Answers instead of what was asked, for paths that contain a text.
    pub refuse: Vec<(&'static str, u16, String)>,
    /// The newest version in a bookmark, by kind.
    pub bookmarked: BTreeMap<String, u64>,
    /// No byte is sent on any watch.
    pub stalled: bool,
    /// Only this token is accepted.
    pub token: Option<String>,
    /// All requests: path with query.
    pub requests: Vec<String>,
    /// Sent as it is on the watches of a kind, once.
    raw: BTreeMap<String, (u64, Vec<u8>)>,
    raws: u64,
    /// Kinds that were listed and are watched since.
    followed: BTreeSet<String>,
    /// Watches that were begun before this was counted on are cut.
    cut: u64,
    /// Lists answer so many objects, whatever is asked for.
    pub page: usize,
    /// Says so once when the second page of a list is asked for: 410.
    pub forget_page: bool,
    /// Does not know how to begin with all objects, and does not say so either.
    pub oblivious: bool,
    /// Runs; if not, it is to end.
    up: bool,
    sockets: Vec<TcpStream>,
}

#[derive(Default)]
struct Resource {
    objects: BTreeMap<String, Value>,
    log: Vec<(u64, &'static str, Value)>,
    /// What happened up to here is forgotten.
    compacted: u64,
}

/// Collections by the last part of their path.
const KINDS: [(&str, &str, &str); 10] = [
    ("nodes", "v1", "Node"),
    ("namespaces", "v1", "Namespace"),
    ("pods", "v1", "Pod"),
    ("secrets", "v1", "Secret"),
    ("networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    (
        "bgpconfigurations",
        "selvage.io/v1alpha1",
        "BGPConfiguration",
    ),
    ("bgppeers", "selvage.io/v1alpha1", "BGPPeer"),
    (
        "clusternetworkpolicies",
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
    ),
    (
        "adminnetworkpolicies",
        "policy.networking.k8s.io/v1alpha1",
        "AdminNetworkPolicy",
    ),
    (
        "baselineadminnetworkpolicies",
        "policy.networking.k8s.io/v1alpha1",
        "BaselineAdminNetworkPolicy",
    ),
];

/// The group whose kinds are there only when they are installed.
const OPTIONAL: &str = "policy.networking.k8s.io";

impl Fake {
    pub fn start() -> Fake {
        Fake::start_at("127.0.0.1:0".parse().unwrap())
    }

    /// At an address that may be one of a server that was stopped.
    pub fn start_at(addr: SocketAddr) -> Fake {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let state = State {
            version: 100,
            resources: KINDS
                .iter()
                .filter(|(_, version, _)| !version.starts_with(OPTIONAL))
                .map(|(plural, ..)| ((*plural).to_owned(), Resource::default()))
                .collect(),
            streams: true,
            bookmarks: None,
            refuse: Vec::new(),
            bookmarked: BTreeMap::new(),
            stalled: false,
            token: None,
            requests: Vec::new(),
            raw: BTreeMap::new(),
            raws: 0,
            followed: BTreeSet::new(),
            cut: 0,
            page: 500,
            forget_page: false,
            oblivious: false,
            up: true,
            sockets: Vec::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let fake = Fake { shared, addr };
        fake.listen(listener);
        fake
    }

    fn listen(&self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if !shared.lock().up {
                    return;
                }
                shared.lock().sockets.push(stream.try_clone().unwrap());
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let _ = serve(&shared, &stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
    }

    /// Changes how it behaves.
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.shared.lock());
        self.shared.changed.notify_all();
        done
    }

    /// Makes or changes an object.
    pub fn put(&self, plural: &str, object: Value) {
        self.with(|state| state.put(plural, object));
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.with(|state| state.delete(plural, namespace, name));
    }

    /// Cuts all watches.
    pub fn cut(&self) {
        self.with(|state| state.cut += 1);
    }

    /// Sends bytes on the watches of a kind that are open, as soon as there is one for whoever has listed.
    pub fn raw(&self, plural: &str, bytes: impl Into<Vec<u8>>) {
        self.until("it is watched", |state| state.followed.contains(plural));
        self.with(|state| {
            state.raws += 1;
            let raw = (state.raws, bytes.into());
            state.raw.insert(plural.to_owned(), raw);
        });
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, is: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut state = self.shared.lock();
        while !is(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what}: never; asked was {:#?}",
                state.requests
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Nobody listens and all connections are closed.
    pub fn stop(&self) {
        let sockets = self.with(|state| {
            state.up = false;
            std::mem::take(&mut state.sockets)
        });
        // The listener is woken by a connection of ours, sees that it is to end, and is closed.
        drop(TcpStream::connect(self.addr));
        for socket in sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        while TcpStream::connect(self.addr).is_ok() {
            thread::yield_now();
        }
    }

    /// Listens again, with what it had.
    pub fn resume(&self) {
        let listener = TcpListener::bind(self.addr).unwrap();
        self.with(|state| state.up = true);
        self.listen(listener);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if self.shared.lock().up {
            self.stop();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub fn put(&mut self, plural: &str, mut object: Value) {
        self.version += 1;
        let (_, api_version, kind) = KINDS
            .into_iter()
            .find(|(name, ..)| *name == plural)
            .unwrap();
        if object.get("kind").is_none() {
            object["kind"] = json!(kind);
            object["apiVersion"] = json!(api_version);
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let key = key(&object);
        let resource = self.resources.get_mut(plural).unwrap();
        let before = resource.objects.insert(key, object.clone());
        let event = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        resource.log.push((self.version, event, object));
    }

    pub fn delete(&mut self, plural: &str, namespace: &str, name: &str) {
        self.version += 1;
        let resource = self.resources.get_mut(plural).unwrap();
        let mut object = resource
            .objects
            .remove(&format!("{namespace}/{name}"))
            .unwrap();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        resource.log.push((self.version, "DELETED", object));
    }

    /// Sends the last event of a kind again.
    pub fn again(&mut self, plural: &str, back: usize) {
        let log = &mut self.resources.get_mut(plural).unwrap().log;
        if let Some(event) = log.iter().rev().nth(back).cloned() {
            log.push(event);
        }
    }

    /// Forgets what has happened before a version: who watches from before is told 410.
    pub fn compact(&mut self, version: u64) {
        for resource in self.resources.values_mut() {
            resource.compacted = version;
        }
    }

    /// A kind that there is no longer, or not yet.
    pub fn uninstall(&mut self, plural: &str) {
        self.resources.remove(plural);
    }

    pub fn install(&mut self, plural: &str) {
        self.resources
            .insert(plural.to_owned(), Resource::default());
    }

    /// The discovery document of the optional group, or of one of its versions, if there is one.
    fn discover(&self, path: &str) -> Option<Value> {
        let path = path.strip_prefix("/apis/")?;
        let there = || {
            let known = KINDS.iter();
            known.filter(|(plural, ..)| self.resources.contains_key(*plural))
        };
        if path == OPTIONAL {
            let versions: BTreeSet<&str> = there()
                .map(|(_, version, _)| *version)
                .filter(|version| version.starts_with(OPTIONAL))
                .collect();
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| json!({"groupVersion": version}))
                .collect();
            return (!versions.is_empty()).then(|| {
                json!({"kind": "APIGroup", "apiVersion": "v1", "name": OPTIONAL, "versions": versions})
            });
        }
        let resources: Vec<Value> = there()
            .filter(|(_, version, _)| *version == path && version.starts_with(OPTIONAL))
            .flat_map(|(plural, _, kind)| {
                [
                    json!({"name": plural, "kind": kind, "namespaced": false}),
                    json!({"name": format!("{plural}/status"), "kind": kind, "namespaced": false}),
                ]
            })
            .collect();
        (!resources.is_empty()).then(|| json!({"kind": "APIResourceList", "resources": resources}))
    }

    /// How often something was asked for.
    pub fn asked(&self, parts: &[&str]) -> usize {
        let all = |path: &&String| parts.iter().all(|part| path.contains(part));
        self.requests.iter().filter(all).count()
    }
}

fn key(object: &Value) -> String {
    let part = |name: &str| {
        object["metadata"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    format!("{}/{}", part("namespace"), part("name"))
}

fn serve(shared: &Shared, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let reads = line.starts_with("GET ");
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut token = None;
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.trim().strip_prefix("authorization: Bearer ") {
                token = Some(value.to_owned());
            }
            if let Some(value) = header.trim().strip_prefix("content-length: ") {
                length = value.parse().unwrap_or_default();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if !reads {
            write_status(shared, stream, &path, &body)?;
            continue;
        }
        if let Some(node) = path.strip_prefix("/api/v1/nodes/") {
            let state = shared.lock();
            let found = state.resources["nodes"].objects.get(&format!("/{node}"));
            let (code, body) = match found {
                Some(found) => (200, found.clone()),
                None => (404, status(404, "not found")),
            };
            drop(state);
            respond(stream, code, &body)?;
            continue;
        }
        if !answer(shared, stream, &path, token)? {
            return Ok(());
        }
    }
}

/// Takes what is written. Of a node the conditions are kept; of all else nothing is.
fn write_status(
    shared: &Shared,
    stream: &TcpStream,
    path: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let node = path.split('?').next().unwrap_or_default();
    let node = node.strip_prefix("/api/v1/nodes/");
    let node = node.and_then(|rest| rest.strip_suffix("/status"));
    let written: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut state = shared.lock();
    state.requests.push(path.to_owned());
    if let Some(node) = node {
        let found = state.resources["nodes"].objects.get(&format!("/{node}"));
        if let Some(mut found) = found.cloned() {
            found["status"]["conditions"] = written["status"]["conditions"].clone();
            state.put("nodes", found);
        }
    }
    drop(state);
    shared.changed.notify_all();
    respond(stream, 200, &written)
}

/// Answers one request; false if the connection is over.
fn answer(
    shared: &Shared,
    mut stream: &TcpStream,
    path: &str,
    token: Option<String>,
) -> std::io::Result<bool> {
    let (collection, query) = path.split_once('?').unwrap_or((path, ""));
    let query: BTreeMap<&str, &str> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let plural = collection.rsplit('/').next().unwrap_or_default().to_owned();
    let mut state = shared.lock();
    state.requests.push(path.to_owned());
    shared.changed.notify_all();
    let refused = state.refuse.iter().find(|(part, ..)| path.contains(part));
    let mut refused = refused.map(|(_, code, message)| (*code, message.clone()));
    if state.token.is_some() && state.token != token {
        refused = Some((401, "Unauthorized".into()));
    }
    let discovered = state.discover(collection);
    if !state.resources.contains_key(&plural) && discovered.is_none() {
        refused = refused.or(Some((
            404,
            "the server could not find the requested resource".into(),
        )));
    }
    let watching = query.contains_key("watch");
    let initial = query.contains_key("sendInitialEvents");
    if initial && !state.streams {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        refused = refused.or(Some((422, message.into())));
    }
    let from: u64 = query
        .get("resourceVersion")
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    let compacted = state
        .resources
        .get(&plural)
        .map_or(0, |resource| resource.compacted);
    if start_of(&query) > 0 && std::mem::take(&mut state.forget_page) {
        refused = Some((410, "The provided continue parameter is too old".into()));
    }
    let oblivious = state.oblivious;
    if let Some((code, message)) = refused {
        drop(state);
        return respond(stream, code, &status(code, &message)).map(|()| true);
    }
    if let Some(document) = discovered {
        drop(state);
        return respond(stream, 200, &document).map(|()| true);
    }
    if watching {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
        if !initial && from < compacted && from > 0 {
            drop(state);
            let error = json!({"type": "ERROR", "object": status(410, "too old resource version")});
            chunk(stream, format!("{error}\n").as_bytes())?;
            return end(stream).map(|()| true);
        }
        let seconds = query
            .get("timeoutSeconds")
            .and_then(|text| text.parse().ok());
        let deadline = Instant::now() + Duration::from_secs(seconds.unwrap_or(300));
        let cut = state.cut;
        let raws = state.raws;
        state.followed.insert(plural.clone());
        shared.changed.notify_all();
        drop(state);
        let mut watch = Watch {
            shared,
            stream,
            plural,
            from,
            cut,
            raws,
            deadline,
        };
        return watch.run(initial && !oblivious);
    }
    state.followed.remove(&plural);
    let start = start_of(&query);
    let limit = state.page;
    let resource = &state.resources[&plural];
    let kind = KINDS.iter().find(|(name, ..)| *name == plural).unwrap().2;
    let items: Vec<Value> = resource
        .objects
        .values()
        .skip(start)
        .take(limit)
        .cloned()
        .map(|mut item| {
            // As the real one does for its own kinds.
            if item["kind"] == kind && item["apiVersion"] != "v2" {
                item.as_object_mut().unwrap().remove("kind");
                item.as_object_mut().unwrap().remove("apiVersion");
            }
            item
        })
        .collect();
    let next = start + items.len();
    let more = (next < resource.objects.len()).then(|| next.to_string());
    let list = json!({
        "kind": format!("{kind}List"),
        "metadata": {"resourceVersion": state.version.to_string(), "continue": more},
        "items": items,
    });
    drop(state);
    respond(stream, 200, &list).map(|()| true)
}

fn start_of(query: &BTreeMap<&str, &str>) -> usize {
    let start = query.get("continue").and_then(|text| text.parse().ok());
    start.unwrap_or_default()
}

struct Watch<'a> {
    shared: &'a Shared,
    stream: &'a TcpStream,
    plural: String,
    from: u64,
    cut: u64,
    raws: u64,
    deadline: Instant,
}

impl Watch<'_> {
    fn run(&mut self, initial: bool) -> std::io::Result<bool> {
        if initial {
            self.initial()?;
        }
        let mut sent = 0;
        let mut bookmark_at = self.bookmark_at();
        loop {
            let mut state = self.shared.lock();
            loop {
                let now = Instant::now();
                let more = state
                    .resources
                    .get(&self.plural)
                    .is_none_or(|r| r.log.len() > sent);
                let raw = state
                    .raw
                    .get(&self.plural)
                    .is_some_and(|(number, _)| *number > self.raws);
                if !state.up || state.cut > self.cut {
                    return Ok(false);
                }
                if !state.stalled && (more || raw || bookmark_at.is_some_and(|at| at <= now))
                    || self.deadline <= now
                {
                    break;
                }
                let next = bookmark_at
                    .filter(|_| !state.stalled)
                    .unwrap_or(self.deadline)
                    .min(self.deadline);
                let wait = next.saturating_duration_since(now);
                state = self
                    .shared
                    .changed
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            let Some(resource) = state.resources.get(&self.plural) else {
                return end(self.stream).map(|()| true);
            };
            let mut text = String::new();
            for (version, event, object) in resource.log.iter().skip(sent) {
                if *version > self.from {
                    text += &format!("{}\n", json!({"type": event, "object": object}));
                }
            }
            sent = resource.log.len();
            let version = state.version;
            let raw = state
                .raw
                .get(&self.plural)
                .filter(|(number, _)| *number > self.raws)
                .cloned();
            drop(state);
            if bookmark_at.is_some_and(|at| at <= Instant::now()) {
                text += &self.bookmark(version, false);
                bookmark_at = self.bookmark_at().filter(|at| *at < self.deadline);
            }
            if !text.is_empty() {
                chunk(self.stream, text.as_bytes())?;
            }
            if text.contains("BOOKMARK") {
                let mut state = self.shared.lock();
                state.bookmarked.insert(self.plural.clone(), version);
                self.shared.changed.notify_all();
            }
            if let Some((number, bytes)) = raw {
                self.raws = number;
                chunk(self.stream, &bytes)?;
            }
            if self.deadline <= Instant::now() {
                return end(self.stream).map(|()| true);
            }
        }
    }

    /// As the real one: two seconds before the deadline, and every now and then.
    fn bookmark_at(&self) -> Option<Instant> {
        let before = self.deadline.checked_sub(Duration::from_secs(2));
        let before = before.filter(|at| *at > Instant::now());
        let often = self
            .shared
            .lock()
            .bookmarks
            .map(|pause| Instant::now() + pause);
        before.into_iter().chain(often).min()
    }

    fn initial(&mut self) -> std::io::Result<()> {
        let state = self.shared.lock();
        let mut text = String::new();
        for object in state.resources[&self.plural].objects.values() {
            text += &format!("{}\n", json!({"type": "ADDED", "object": object}));
        }
        self.from = state.version;
        drop(state);
        text += &self.bookmark(self.from, true);
        chunk(self.stream, text.as_bytes())
    }

    fn bookmark(&self, version: u64, end: bool) -> String {
        let annotations = if end {
            json!({"k8s.io/initial-events-end": "true"})
        } else {
            json!({})
        };
        let object = json!({"kind": "X", "metadata": {"resourceVersion": version.to_string(), "annotations": annotations}});
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "code": code, "message": message, "status": "Failure"})
}

fn respond(mut stream: &TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn chunk(mut stream: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n", bytes.len())?;
    stream.write_all(bytes)?;
    stream.write_all(b"\r\n")
}

fn end(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"0\r\n\r\n")
}

/// The names of kinds that were asked for with certain words.
pub fn kinds_asked(state: &State, word: &str) -> BTreeSet<String> {
    let asked = state.requests.iter().filter(|path| path.contains(word));
    let names = asked.filter_map(|path| path.split('?').next()?.rsplit('/').next());
    names.map(str::to_owned).collect()
}
