//! Requests that read: their answers, or the fault that they mean.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::time::timeout;

use super::Patience;
use super::connection::reason;
use super::fault::Fault;
use super::servers::{Servers, Via};

/// A page is not larger.
const LARGEST: usize = 512 << 20;

/// What a request needs.
#[derive(Clone)]
pub(super) struct Fetch {
    pub(super) client: Client,
    pub(super) servers: Arc<Servers>,
    pub(super) patience: Patience,
}

impl Fetch {
    /// Sends a request; `accept` is the form of the answer.
    pub(super) async fn get(&self, query: String, accept: &str) -> Result<Response<Body>, Fault> {
        let request = Request::get(query).header("accept", accept);
        let request = request
            .body(Body::empty())
            .map_err(|error| Fault::Away(error.to_string()))?;
        let response = self.client.send(request).await;
        let response = response.map_err(|error| Fault::unanswered(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let via = via(&response);
        let fault = timeout(self.patience.stall, Fault::of(response)).await;
        let fault = fault.unwrap_or_else(|_| Fault::Away("an answer has no end".into()));
        if let Fault::Away(_) = fault {
            self.leave(via);
        }
        Err(fault)
    }

    /// Reads an answer to its end; `what` names it for people. A server that stops in the middle is left.
    pub(super) async fn body(
        &self,
        response: Response<Body>,
        what: &str,
    ) -> Result<Vec<u8>, Fault> {
        let via = via(&response);
        let body = self.whole(response, what).await;
        body.inspect_err(|_| self.leave(via))
    }

    async fn whole(&self, response: Response<Body>, what: &str) -> Result<Vec<u8>, Fault> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        loop {
            let frame = match timeout(self.patience.stall, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(bytes),
                Ok(Some(Err(error))) => return Err(Fault::Away(reason(&error))),
                Err(_) => return Err(Fault::Away("a list does not go on".into())),
            };
            if let Ok(piece) = frame.into_data() {
                bytes.extend_from_slice(&piece);
            }
            if bytes.len() > LARGEST {
                return Err(Fault::Away(format!(
                    "a page of {what} is larger than {} MiB",
                    LARGEST >> 20
                )));
            }
        }
    }

    /// The server that gave an answer does not serve: the next one is spoken to.
    pub(super) fn leave(&self, via: Option<Via>) {
        if let Some(via) = via {
            self.servers.leave(via);
        }
    }
}

/// The server that gave an answer.
pub(super) fn via(response: &Response<Body>) -> Option<Via> {
    response.extensions().get::<Via>().copied()
}
