//! What is open to whoever may connect: metrics, health, and a small page. Read only.

mod metrics;
mod page;

use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::api::StatusView;
use crate::control::{Asker, Query};
use crate::pulses::HANGS;

/// How long the owner of the world may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the runtime ends.
pub async fn serve(listener: TcpListener, routes: Router) -> io::Result<()> {
    axum::serve(listener, routes).await
}

/// `/metrics` alone.
pub fn metrics_router(asker: Asker) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(asker)
}

/// `/metrics`, `/livez` (also called `/healthz`), `/readyz`, `/`.
pub fn router(asker: Asker) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .route("/", get(front))
        .with_state(asker)
}

/// What the owner of the world says, if it says something in time.
async fn look(asker: &Asker) -> Result<StatusView, Response> {
    let refuse = |text| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    match tokio::time::timeout(PATIENCE, asker.ask(Query::Status)).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(refusal)) => Err(refuse(refusal.error)),
        Err(_) => Err(refuse(busy(asker, PATIENCE))),
    }
}

/// The threads that have been in one turn for so long, a line each.
fn busy(asker: &Asker, limit: Duration) -> String {
    let busy = asker.pulses().busy_for(limit).into_iter();
    busy.map(|(name, turn)| {
        format!(
            "the thread {name} has been busy with one piece of work for {} s\n",
            turn.as_secs()
        )
    })
    .collect()
}

async fn metrics(State(asker): State<Asker>) -> Response {
    let status = match look(&asker).await {
        Ok(status) => status,
        Err(refusal) => return refusal,
    };
    match metrics::text(&status, &asker.pulses().all()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// No thread hangs. Nobody is asked: a thread that is busy, or that waits for one that is, could not answer.
async fn livez(State(asker): State<Asker>) -> Response {
    match busy(&asker, HANGS) {
        none if none.is_empty() => "ok\n".into_response(),
        hanging => (StatusCode::SERVICE_UNAVAILABLE, hanging).into_response(),
    }
}

async fn readyz(State(asker): State<Asker>) -> Response {
    match look(&asker).await {
        Ok(status) => ready(&status),
        Err(refusal) => refusal,
    }
}

fn ready(status: &StatusView) -> Response {
    let missing: String = status
        .ready
        .missing
        .iter()
        .map(|missing| format!("{missing}\n"))
        .collect();
    if status.ready.ready {
        return format!("ready\n{missing}").into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready\n{missing}"),
    )
        .into_response()
}

async fn front(State(asker): State<Asker>) -> Response {
    match look(&asker).await {
        Ok(status) => Html(page::html(&status)).into_response(),
        Err(refusal) => refusal,
    }
}
