//! The command line's side of `selvage.sock`.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{Refusal, SOCKET};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error("no Selvage daemon answers at {}: {why}", path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said, for people.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The daemon said no.
    #[error("{}", .0.error)]
    Refused(Refusal),
    /// The conversation broke.
    #[error("the daemon's answer cannot be read: {0}")]
    Broken(String),
}

impl ClientError {
    /// What to do.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Absent { hint, .. } => Some(hint),
            ClientError::Refused(refusal) => refusal.hint.as_deref(),
            ClientError::Broken(_) => {
                Some("the command and the daemon may be of different versions")
            }
        }
    }
}

/// A daemon that can be asked.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The daemon with this run directory.
    pub fn new(run_dir: &Path) -> Self {
        Client {
            path: run_dir.join(SOCKET),
        }
    }

    /// A question without a body.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        decode(self.send(Method::GET, path, Bytes::new()).await?).await
    }

    /// A question with a body.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(question).map_err(broken)?;
        decode(self.send(Method::POST, path, body.into()).await?).await
    }

    /// Follows a stream of lines until the daemon or `each` (by returning false) ends it.
    pub async fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> bool,
    ) -> Result<(), ClientError> {
        let mut body = self
            .send(Method::GET, path, Bytes::new())
            .await?
            .into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broken)?.into_data() else {
                continue;
            };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if !each(serde_json::from_slice(&line).map_err(broken)?) {
                    return Ok(());
                }
            }
            if rest.len() > MAX_ANSWER {
                return Err(broken("a line without end"));
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.absent(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "selvage")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let refusal = collect(response).await?;
        Err(match serde_json::from_slice(&refusal) {
            Ok(refusal) => ClientError::Refused(refusal),
            Err(_) => broken(String::from_utf8_lossy(&refusal)),
        })
    }

    fn absent(&self, error: &io::Error) -> ClientError {
        let (why, hint) = match error.kind() {
            io::ErrorKind::NotFound => (
                "there is no such socket".to_owned(),
                "start it with `selvage agent`, or name its run directory with --run-dir",
            ),
            io::ErrorKind::ConnectionRefused => (
                "nobody listens there any more".to_owned(),
                "the daemon has ended; its log says why, `selvage agent` starts it again",
            ),
            io::ErrorKind::PermissionDenied => (
                "permission denied".to_owned(),
                "the socket belongs to root: use sudo",
            ),
            _ => (
                error.to_string(),
                "is this the right run directory? see --run-dir",
            ),
        };
        ClientError::Absent {
            path: self.path.clone(),
            why,
            hint: hint.to_owned(),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
    limited
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(broken)
}

async fn decode<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    serde_json::from_slice(&collect(response).await?).map_err(broken)
}
