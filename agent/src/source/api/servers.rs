//! The API servers that there are, and the one that is spoken to.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::Uri;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};

/// More servers than this are not remembered.
const MOST: usize = 16;

/// One API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    scheme: Scheme,
    authority: Authority,
    /// What stands before `/api`; empty but behind some proxies.
    prefix: String,
}

impl Server {
    /// The server at `HOST:PORT`.
    pub(super) fn at(text: &str) -> Option<Server> {
        Some(Server {
            scheme: Scheme::HTTPS,
            authority: text.parse().ok()?,
            prefix: String::new(),
        })
    }

    /// The server of an address as a kubeconfig has it.
    pub(super) fn of(uri: &Uri) -> Option<Server> {
        Some(Server {
            scheme: uri.scheme().cloned().unwrap_or(Scheme::HTTPS),
            authority: uri.authority()?.clone(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The same at another `HOST:PORT`.
    pub(super) fn elsewhere(&self, text: &str) -> Option<Server> {
        let authority = text.parse().ok()?;
        Some(Server {
            authority,
            ..self.clone()
        })
    }

    /// Its address.
    pub(super) fn uri(&self) -> Option<Uri> {
        self.rebase(&Uri::from_static("/"))
    }

    /// The address of a path of the API at this server.
    pub(super) fn rebase(&self, uri: &Uri) -> Option<Uri> {
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let built = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}", self.prefix));
        built.build().ok()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

/// The number of a server, on each response: who finds it bad can say which one it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Via(pub(super) usize);

/// The servers that are tried in turn. One that works is kept.
#[derive(Debug)]
pub(super) struct Servers {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    list: Vec<Server>,
    /// How many of them were given; the others are remembered.
    given: usize,
    current: usize,
}

impl Servers {
    pub(super) fn new(given: Vec<Server>) -> Servers {
        let inner = Inner {
            given: given.len(),
            list: given,
            current: 0,
        };
        Servers {
            inner: Mutex::new(inner),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().list.len()
    }

    /// The one to speak to.
    pub(super) fn current(&self) -> Option<(Via, Server)> {
        let inner = self.lock();
        let server = inner.list.get(inner.current)?;
        Some((Via(inner.current), server.clone()))
    }

    /// This one does not serve: the next one is spoken to, unless somebody has gone there already.
    pub(super) fn leave(&self, Via(number): Via) {
        let mut inner = self.lock();
        if inner.current == number && !inner.list.is_empty() {
            inner.current = (number + 1) % inner.list.len();
        }
    }

    /// Takes in where the API servers are now, besides those that were given. Says whether that is news.
    pub(super) fn remember(&self, now: Vec<Server>) -> bool {
        let mut inner = self.lock();
        let current = inner.list.get(inner.current).cloned();
        let given = inner.given;
        let before = inner.list.split_off(given);
        let mut now: Vec<Server> = now
            .into_iter()
            .filter(|server| !inner.list.contains(server))
            .collect();
        now.truncate(MOST);
        let news = now != before;
        inner.list.append(&mut now);
        let place = inner
            .list
            .iter()
            .position(|server| Some(server) == current.as_ref());
        inner.current = place.unwrap_or_default();
        news
    }

    /// Those that were not given.
    pub(super) fn remembered(&self) -> Vec<Server> {
        let inner = self.lock();
        inner.list.iter().skip(inner.given).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an earlier run has written with [`save`].
pub(super) fn load(path: &Path) -> Vec<Server> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(Server::at).take(MOST).collect()
}

/// Writes servers down, one `HOST:PORT` a line.
pub(super) fn save(path: &Path, servers: &[Server]) -> io::Result<()> {
    let text: String = servers
        .iter()
        .map(|server| format!("{}\n", server.authority))
        .collect();
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        Server::at(text).unwrap()
    }

    #[test]
    fn addresses() {
        let path = Uri::from_static("/api/v1/pods?watch=1");
        for (server, uri) in [
            (
                Server::at("10.0.0.1:6443"),
                "https://10.0.0.1:6443/api/v1/pods?watch=1",
            ),
            (
                Server::at("[fd00::1]:6443"),
                "https://[fd00::1]:6443/api/v1/pods?watch=1",
            ),
            (
                Server::of(&Uri::from_static("http://127.0.0.1:80/k8s/c/")),
                "http://127.0.0.1:80/k8s/c/api/v1/pods?watch=1",
            ),
        ] {
            assert_eq!(server.unwrap().rebase(&path).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn each_is_tried_and_the_one_that_works_is_kept() {
        let servers = Servers::new(vec![server("a:1"), server("b:1")]);
        let now = |servers: &Servers| {
            servers
                .current()
                .map(|(via, server)| (via.0, server.authority.to_string()))
        };
        assert_eq!(now(&servers), Some((0, "a:1".into())));
        servers.leave(Via(0));
        servers.leave(Via(0));
        assert_eq!(now(&servers), Some((1, "b:1".into())));
        assert!(servers.remember(vec![server("b:1"), server("c:1")]));
        assert!(!servers.remember(vec![server("c:1")]));
        assert_eq!(servers.remembered(), [server("c:1")]);
        assert_eq!(now(&servers), Some((1, "b:1".into())));
        servers.leave(Via(1));
        assert_eq!(now(&servers), Some((2, "c:1".into())));
        assert!(servers.remember(vec![server("d:1")]));
        assert_eq!(now(&servers), Some((0, "a:1".into())));
        let nobody = Servers::new(Vec::new());
        nobody.leave(Via(0));
        assert!(nobody.current().is_none());
    }
}
