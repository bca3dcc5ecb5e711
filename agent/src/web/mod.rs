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
    lives(&asker, HANGS)
}

/// Whether no thread has been in one turn for so long.
fn lives(asker: &Asker, limit: Duration) -> Response {
    match busy(asker, limit) {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::watch;

    use super::*;
    use crate::pulses::Pulses;

    async fn said(response: Response) -> (StatusCode, String) {
        let (head, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (head.status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// The owner of the world answers nobody, as when it waits for another thread.
    #[tokio::test]
    async fn whether_the_agent_lives_is_asked_of_nobody() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&asked);
        let pulses = Pulses::default();
        let (_turns, turned) = watch::channel(0);
        let asker = Asker::new(Arc::new(move |query| keep.lock().unwrap().push(query)))
            .with_signs(turned, pulses.clone());
        let thread = pulses.thread("routes");
        thread.work();
        let limit = Duration::from_secs(60);
        let answer = tokio::time::timeout(limit, livez(State(asker.clone())));
        let (status, text) = said(answer.await.expect("an answer")).await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "ok\n"));
        assert!(asked.lock().unwrap().is_empty());
        // A thread whose turn takes too long is named; one that waits for work is not.
        let (status, text) = said(lives(&asker, Duration::ZERO)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("the thread routes has been busy"), "{text}");
        thread.rest();
        assert_eq!(said(lives(&asker, Duration::ZERO)).await.0, StatusCode::OK);
    }
}
