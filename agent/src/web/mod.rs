//! What is open to whoever may connect: metrics, health, and a small page. Read only.

mod metrics;
mod page;

use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::api::StatusView;
use crate::control::server::Asker;
use crate::control::{Ask, Query};

/// Serves until the runtime ends.
pub async fn serve(listener: TcpListener, routes: Router) -> io::Result<()> {
    axum::serve(listener, routes).await
}

/// `/metrics` alone.
pub fn metrics_router(ask: Ask<Query>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(Asker(ask))
}

/// `/metrics`, `/livez` (also called `/healthz`), `/readyz`, `/`.
pub fn router(ask: Ask<Query>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/readyz", get(readyz))
        .route("/", get(front))
        .with_state(Asker(ask))
}

async fn metrics(State(asker): State<Asker>) -> Response {
    match asker
        .ask(Query::Status)
        .await
        .map(|status| metrics::text(&status))
    {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.error).into_response(),
    }
}

/// The owner of the world answers: it is alive.
async fn livez(State(asker): State<Asker>) -> Response {
    match asker.ask(Query::Status).await {
        Ok(_) => "ok\n".into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.error).into_response(),
    }
}

async fn readyz(State(asker): State<Asker>) -> Response {
    match asker.ask(Query::Status).await {
        Ok(status) => ready(&status),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.error).into_response(),
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
    match asker.ask(Query::Status).await {
        Ok(status) => Html(page::html(&status)).into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.error).into_response(),
    }
}
