//! An API server for one agent: initial objects made up as they are sent, and what happens afterwards, on watches.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use selvage_lab::{Netns, kubernetes::plain_kubeconfig};
use serde_json::{Value, json};

/// The objects that a collection begins with, by its plural name.
pub(crate) type Initial = Box<dyn Fn(&str) -> Box<dyn Iterator<Item = String>> + Send + Sync>;

/// The collections that an agent follows. What else is asked for is not there.
const COLLECTIONS: [&str; 7] = [
    "nodes",
    "namespaces",
    "pods",
    "secrets",
    "networkpolicies",
    "bgpconfigurations",
    "bgppeers",
];
/// Objects are sent in pieces of at least this many bytes.
const PIECE: usize = 64 << 10;

/// The server. It ends with the process.
pub(crate) struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    initial: Initial,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    version: u64,
    /// What has happened: version, collection, line of a watch.
    log: Vec<(u64, &'static str, Arc<str>)>,
}

impl Server {
    /// Listens on the loopback address of a namespace.
    pub(crate) fn start(netns: &Netns, initial: Initial) -> Result<Server> {
        let listener = netns.run(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
        let address = listener.local_addr()?;
        let state = State {
            version: 1,
            log: Vec::new(),
        };
        let shared = Arc::new(Shared {
            initial,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let server = Server {
            shared: Arc::clone(&shared),
            address,
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that hangs up is done.
                thread::spawn(move || shared.serve(&stream).is_ok());
            }
        });
        Ok(server)
    }

    /// What `--kubeconfig` wants.
    pub(crate) fn kubeconfig(&self) -> Value {
        plain_kubeconfig(self.address)
    }

    /// Sends an event (`ADDED`, `MODIFIED`, `DELETED`) to whoever watches.
    pub(crate) fn send(&self, event: &str, plural: &str, mut object: Value) -> Result<()> {
        let collection = COLLECTIONS.into_iter().find(|name| *name == plural);
        let collection = collection.context("no such collection")?;
        let mut state = self.shared.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let line = format!("{{\"type\":\"{event}\",\"object\":{object}}}\n");
        state.log.push((version, collection, line.into()));
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request for each connection.
    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut request, mut length) = (String::new(), 0);
        reader.read_line(&mut request)?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            let header = line.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let target = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: BTreeMap<&str, &str> =
            query.split('&').filter_map(|p| p.split_once('=')).collect();
        let last = path.rsplit('/').next().unwrap_or_default();
        let collection = COLLECTIONS.into_iter().find(|name| *name == last);
        match collection.filter(|_| request.starts_with("GET ")) {
            Some(collection) if query.contains_key("watch") => {
                self.watch(stream, collection, &query)
            }
            // Streams are what is served; lists are not asked for then.
            _ => {
                // What is written is taken as it is.
                let (code, body) = match request.starts_with("GET ") {
                    true => (404, br#"{"kind":"Status","code":404}"#.to_vec()),
                    false => (200, body),
                };
                write!(
                    stream,
                    "HTTP/1.1 {code} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                )?;
                stream.write_all(&body)
            }
        }
    }

    fn watch(
        &self,
        mut stream: &TcpStream,
        collection: &str,
        query: &BTreeMap<&str, &str>,
    ) -> std::io::Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        )?;
        let mut at;
        if query.contains_key("sendInitialEvents") {
            let mut piece = String::new();
            for object in (self.initial)(collection) {
                piece += &format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n");
                if piece.len() > PIECE {
                    chunk(stream, &std::mem::take(&mut piece))?;
                }
            }
            let version = {
                let state = self.lock();
                at = state.log.len();
                let own = state.log.iter().filter(|(_, of, _)| *of == collection);
                own.for_each(|(.., line)| piece += line);
                state.version
            };
            piece += &format!(
                "{{\"type\":\"BOOKMARK\",\"object\":{{\"metadata\":{{\"resourceVersion\":\"{version}\",\
                 \"annotations\":{{\"k8s.io/initial-events-end\":\"true\"}}}}}}}}\n"
            );
            chunk(stream, &piece)?;
        } else {
            let after = query.get("resourceVersion").and_then(|v| v.parse().ok());
            let after: u64 = after.unwrap_or_default();
            at = self.lock().log.partition_point(|(v, ..)| *v <= after);
        }
        loop {
            let mut lines = String::new();
            let mut state = self.lock();
            while state.log.len() == at {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            for (_, of, line) in state.log.get(at..).unwrap_or_default() {
                if *of == collection {
                    lines += line;
                }
            }
            at = state.log.len();
            drop(state);
            if !lines.is_empty() {
                chunk(stream, &lines)?;
            }
        }
    }
}

fn chunk(mut stream: &TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}
