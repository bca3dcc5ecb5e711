//! The way to the API server: credentials, TLS, and a client that tries the servers in turn.
//!
//! A token in a file is read for each request: it is replaced on disk long before it expires, and an old one is worth
//! nothing. With TLS all requests share one connection (HTTP/2): thousands of nodes watch eight kinds each. One that has
//! died without a word is noticed by its own pings, and by TCP.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Service};

use super::servers::{self, Server, Servers};
use crate::config::ApiConfig;
use crate::objects::SYSTEM_NAMESPACE;

/// Where a pod finds the credentials of its service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// In the state directory: where the API servers were.
pub(super) const SERVERS: &str = "api-servers";

/// A server that does not take a connection for so long is not there.
const CONNECT: Duration = Duration::from_secs(3);
/// A connection without traffic is probed after this, this often, so many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// What is sent and not acknowledged for so long is lost, and so is the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// A connection on which nothing has come for so long is pinged, and is dead when nothing comes for as long as the second:
/// TCP does not see that something between us and the server has stopped to pass anything on.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));
/// Without a request for so long a connection takes no new ones. Watches begin anew more often: theirs is kept.
const IDLE: Duration = Duration::from_secs(600);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// The kubeconfig is not usable.
    #[error("kubeconfig {0}: {1}")]
    Kubeconfig(String, String),
    /// We are not in a pod, or it has no service account.
    #[error("{0}: {1}; outside of a cluster name a file with --kubeconfig")]
    ServiceAccount(PathBuf, std::io::Error),
    /// Nothing says where the API server is.
    #[error("nothing says where the API server is; name it with --kube-api HOST:PORT")]
    NoServer,
    /// The name to expect in the server's certificate is none.
    #[error("tls-server-name: {0:?} is not a name of a server")]
    ServerName(String),
    /// The client cannot be made of that.
    #[error("cannot speak to the API server: {0}")]
    Client(#[from] kube::Error),
}

/// The way to the API server.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) servers: Arc<Servers>,
    /// The agent's own namespace.
    pub(super) namespace: String,
    /// Where the servers are remembered; `None`: they are as they were given.
    pub(super) remembered: Option<PathBuf>,
}

/// Makes the client. Nothing is sent yet. `account`: see [`SERVICE_ACCOUNT`].
pub(super) async fn open(
    api: &ApiConfig,
    account: &Path,
    state_dir: &Path,
    node: &str,
    patience: Duration,
) -> Result<Connection, NoWay> {
    let mut config = match api.kubeconfig.as_slice() {
        [] => service_account(account)?,
        paths => kubeconfig(paths).await?,
    };
    let namespace = match api.kubeconfig.as_slice() {
        [] => std::fs::read_to_string(account.join("namespace")).ok(),
        _ => None,
    };
    let namespace = namespace
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty());
    let named = Server::of(&config.cluster_url).ok_or(NoWay::NoServer)?;
    let given = api.servers.iter();
    let mut list: Vec<Server> = given.filter_map(|text| named.elsewhere(text)).collect();
    if list.is_empty() {
        list.push(named);
    }
    let servers = Servers::new(list);
    let remembered = api.kubeconfig.is_empty().then(|| state_dir.join(SERVERS));
    if let Some(path) = &remembered {
        servers.remember(servers::load(path));
    }
    let (_, first) = servers.current().ok_or(NoWay::NoServer)?;
    config.cluster_url = first.uri().ok_or(NoWay::NoServer)?;
    let servers = Arc::new(servers);
    Ok(Connection {
        client: client(config, Arc::clone(&servers), node, patience)?,
        servers,
        namespace: namespace.unwrap_or_else(|| SYSTEM_NAMESPACE.into()),
        remembered,
    })
}

async fn kubeconfig(paths: &[PathBuf]) -> Result<Config, NoWay> {
    let names: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let refused =
        |error: kube::config::KubeconfigError| NoWay::Kubeconfig(names.join(":"), reason(&error));
    let mut merged: Option<Kubeconfig> = None;
    for path in paths {
        let next = Kubeconfig::read_from(path).map_err(refused)?;
        merged = Some(match merged {
            Some(before) => before.merge(next).map_err(refused)?,
            None => next,
        });
    }
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(merged.unwrap_or_default(), &options)
        .await
        .map_err(refused)
}

fn service_account(folder: &Path) -> Result<Config, NoWay> {
    let (token, ca) = (folder.join("token"), folder.join("ca.crt"));
    for path in [&token, &ca] {
        std::fs::metadata(path).map_err(|error| NoWay::ServiceAccount(path.clone(), error))?;
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let host =
        variable("KUBERNETES_SERVICE_HOST").unwrap_or_else(|| "kubernetes.default.svc".into());
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let url: Uri = format!("https://{host}:{port}")
        .parse()
        .map_err(|_| NoWay::NoServer)?;
    let mut config = Config::new(url);
    // Read again when it changes, as the token is. No others: without a list, however empty, the client asks the system for
    // its own, and our image has none.
    config.root_cert_file = Some(ca);
    config.root_cert = Some(Vec::new());
    config.auth_info.token_file = Some(token.display().to_string());
    Ok(config)
}

fn client(
    mut config: Config,
    servers: Arc<Servers>,
    node: &str,
    patience: Duration,
) -> Result<Client, NoWay> {
    // Inline tokens go first, as everywhere.
    let token = match config.auth_info.token {
        Some(_) => None,
        None => config.auth_info.token_file.take().map(PathBuf::from),
    };
    let agent = format!("selvage/{} ({node})", env!("CARGO_PKG_VERSION"));
    let agent = HeaderValue::try_from(agent).unwrap_or(HeaderValue::from_static("selvage"));
    let door = Door {
        send: sender(&config)?,
        servers,
        token,
        agent,
        patience,
    };
    let headers = config.extra_headers_layer()?;
    let namespace = config.default_namespace.clone();
    Ok(match config.auth_layer()? {
        Some(auth) => ClientBuilder::new(door, namespace)
            .with_layer(&headers)
            .with_layer(&auth)
            .build(),
        None => ClientBuilder::new(door, namespace)
            .with_layer(&headers)
            .build(),
    })
}

type Answer = Result<Response<Incoming>, legacy::Error>;
type Send = Arc<
    dyn Fn(Request<Body>) -> Pin<Box<dyn Future<Output = Answer> + std::marker::Send>>
        + std::marker::Send
        + Sync,
>;

fn sender(config: &Config) -> Result<Send, NoWay> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    let (idle, interval, times) = KEEPALIVE;
    http.set_keepalive(Some(idle));
    http.set_keepalive_interval(Some(interval));
    http.set_keepalive_retries(Some(times));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let mut https = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name
            .clone()
            .try_into()
            .map_err(|_| NoWay::ServerName(name.clone()))?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let (quiet, answer) = PING;
    let client = legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(quiet)
        .http2_keep_alive_timeout(answer)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(2)
        .build::<_, Body>(https.enable_all_versions().wrap_connector(http));
    Ok(Arc::new(move |request| Box::pin(client.request(request))))
}

/// Sends requests to the current server, and to the next one if that takes no connection.
#[derive(Clone)]
struct Door {
    send: Send,
    servers: Arc<Servers>,
    token: Option<PathBuf>,
    agent: HeaderValue,
    /// A server that does not begin to answer for so long does not serve.
    patience: Duration,
}

impl Service<Request<Body>> for Door {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + std::marker::Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let door = self.clone();
        Box::pin(async move { door.pass(request).await })
    }
}

impl Door {
    async fn pass(self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let (mut parts, mut body) = request.into_parts();
        parts.headers.insert(USER_AGENT, self.agent.clone());
        if let Some(path) = &self.token {
            parts.headers.insert(AUTHORIZATION, bearer(path)?);
        }
        let wanted = parts.uri.clone();
        for left in (0..self.servers.len()).rev() {
            let Some((via, server)) = self.servers.current() else {
                break;
            };
            let again = body.try_clone();
            let mut parts = parts.clone();
            parts.uri = server.rebase(&wanted).ok_or("not a path of the API")?;
            let answer = (self.send)(Request::from_parts(parts, body));
            let error = match tokio::time::timeout(self.patience, answer).await {
                Ok(Ok(mut response)) => {
                    response.extensions_mut().insert(via);
                    return Ok(response);
                }
                Ok(Err(error)) => {
                    if !error.is_connect() {
                        return Err(Unanswered(format!("{server}: {}", reason(&error))).into());
                    }
                    Unanswered(format!("{server}: {}", cause(&error)))
                }
                Err(_) => Unanswered(format!(
                    "{server}: no answer within {} s",
                    self.patience.as_secs()
                )),
            };
            self.servers.leave(via);
            body = match again {
                Some(body) if left > 0 => body,
                _ => return Err(error.into()),
            };
        }
        Err("there is no API server to ask".into())
    }
}

/// A request that no server has answered, and why the last one did not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unanswered(String);

fn bearer(path: &Path) -> Result<HeaderValue, BoxError> {
    let token =
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| format!("{}: not a token", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Why there is no connection: what is behind all that is behind the error.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    loop {
        let io = last.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut) {
            return "no connection within a few seconds".to_owned();
        }
        match last.source() {
            Some(next) => last = next,
            None => return last.to_string(),
        }
    }
}

/// An error with all that is behind it, on one line, each thing once.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}
