//! `selvage.sock`: HTTP/1.1 and JSON for whoever may open the file.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | `StatusView` |
//! | `GET /v1/status/watch` | | one `StatusView` per line, whenever it differs |
//! | `POST /v1/peers` | `PeerQuestion` | `[PeerView]` |
//! | `POST /v1/routes` | `RouteQuestion` | `RoutePage` |
//! | `POST /v1/why` | `WhyQuestion` | `WhyView` |
//! | `GET /v1/objects` | | `[ConditionView]` |
//! | `POST /v1/wait` | `WaitQuestion` | `WaitView` |
//!
//! A refusal is status 422 (409 while stopping) and a `Refusal`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::Query;
use super::asker::{Asker, stopping};
use crate::api::{
    PeerQuestion, Refusal, RouteQuestion, StatusView, WaitFor, WaitView, WhyQuestion,
};

/// Between two looks at a view that is followed, at least. Without a change there is no look.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// The longest that anybody may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// What to wait for, and how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitQuestion {
    /// What.
    #[serde(rename = "for")]
    pub what: WaitFor,
    /// Milliseconds.
    pub timeout: u64,
}

/// Opens a socket file with mode 0600. A file that is there already is a dead agent's: the lock says so.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the runtime ends.
pub async fn serve(listener: UnixListener, asker: Asker) -> io::Result<()> {
    axum::serve(listener, router(asker)).await
}

/// The routes of the control API.
pub fn router(asker: Asker) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/status/watch", get(watch_status))
        .route("/v1/peers", post(peers))
        .route("/v1/routes", post(routes))
        .route("/v1/why", post(why))
        .route("/v1/objects", get(objects))
        .route("/v1/wait", post(wait))
        .fallback(unknown)
        .with_state(asker)
}

async fn status(State(asker): State<Asker>) -> Response {
    answer(asker.ask(Query::Status).await)
}

async fn peers(State(asker): State<Asker>, Json(question): Json<PeerQuestion>) -> Response {
    answer(asker.ask(|reply| Query::Peers(question, reply)).await)
}

async fn routes(State(asker): State<Asker>, Json(question): Json<RouteQuestion>) -> Response {
    answer(asker.routes(question).await)
}

async fn why(State(asker): State<Asker>, Json(question): Json<WhyQuestion>) -> Response {
    answer(asker.ask(|reply| Query::Why(question, reply)).await)
}

async fn objects(State(asker): State<Asker>) -> Response {
    answer(asker.ask(Query::Objects).await)
}

async fn wait(State(asker): State<Asker>, Json(question): Json<WaitQuestion>) -> Response {
    let limit = Duration::from_millis(question.timeout).min(LONGEST_WAIT);
    let reached = asker.ask(|reply| Query::Wait(question.what, reply));
    match tokio::time::timeout(limit, reached).await {
        Ok(result) => answer(result.map(|()| WaitView {
            done: true,
            missing: Vec::new(),
        })),
        Err(_) => {
            let status = asker.ask(Query::Status).await;
            answer(status.map(|status| WaitView {
                done: false,
                missing: missing(&status, question.what),
            }))
        }
    }
}

/// What stands in the way, for people.
fn missing(status: &StatusView, what: WaitFor) -> Vec<String> {
    let mut missing = Vec::new();
    if !status.source.synced {
        missing.push(format!(
            "{} has not been read completely",
            status.source.from
        ));
    }
    if what == WaitFor::Peers {
        let peers = status.bgp.iter().flat_map(|bgp| &bgp.peers);
        let waiting = peers.filter(|peer| !peer.up || !peer.end_of_rib);
        missing.extend(waiting.map(|peer| format!("neighbour {} is {}", peer.address, peer.state)));
    }
    if what == WaitFor::Ready {
        missing.extend(status.ready.missing.iter().cloned());
    }
    if let Some(policy) = status
        .policy
        .as_ref()
        .filter(|policy| policy.enforced < policy.planned)
    {
        missing.push(format!(
            "policy generation {} of {} is in the kernel",
            policy.enforced, policy.planned
        ));
    }
    missing.extend(status.wrong.iter().map(|finding| finding.what.clone()));
    missing
}

async fn watch_status(State(asker): State<Asker>) -> Response {
    let (lines, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut last = Vec::new();
        let mut turns = asker.turns();
        while let Ok(status) = asker.ask(Query::Status).await {
            let seen = serde_json::to_vec(&timeless(&status)).unwrap_or_default();
            if seen != last {
                let mut line = serde_json::to_vec(&status).unwrap_or_default();
                line.push(b'\n');
                if lines.send(Bytes::from(line)).await.is_err() {
                    return;
                }
                last = seen;
            }
            let next = async {
                tokio::time::sleep(WATCH_PERIOD).await;
                turns.changed().await
            };
            tokio::select! {
                turned = next => {
                    if turned.is_err() {
                        return;
                    }
                }
                () = lines.closed() => return,
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (headers, Body::new(Lines(receiver))).into_response()
}

/// Without what changes by the clock alone.
fn timeless(status: &StatusView) -> StatusView {
    let mut status = status.clone();
    status.uptime = 0;
    for peer in status.bgp.iter_mut().flat_map(|bgp| &mut bgp.peers) {
        peer.since = 0;
    }
    status
}

/// A body that ends when its sender does.
struct Lines(mpsc::Receiver<Bytes>);

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

async fn unknown() -> Response {
    let refusal = Refusal::hinted(
        "no such request",
        "the command and the daemon may be of different versions",
    );
    (StatusCode::NOT_FOUND, Json(refusal)).into_response()
}

fn answer<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(view) => Json(view).into_response(),
        Err(refusal) if refusal == stopping() => {
            (StatusCode::CONFLICT, Json(refusal)).into_response()
        }
        Err(refusal) => (StatusCode::UNPROCESSABLE_ENTITY, Json(refusal)).into_response(),
    }
}
