//! Where the API servers are themselves: remembered for a start at which the service address leads nowhere, as it does
//! before kube-proxy has started.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::servers::{self, Server, Servers};

/// The API servers keep it themselves.
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
/// API servers seldom come and go.
const OFTEN: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
struct Slice {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Endpoint {
    addresses: Vec<std::net::IpAddr>,
}

#[derive(Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
}

impl Slice {
    fn servers(&self) -> Vec<Server> {
        let ports = self.ports.iter().flatten();
        let mut ports = ports.filter(|port| port.name.as_deref() == Some("https"));
        let port = ports.find_map(|port| port.port).unwrap_or(443);
        let addresses = self
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| &endpoint.addresses);
        let mut servers: Vec<Server> = addresses
            .filter_map(|address| {
                Server::at(&std::net::SocketAddr::new(*address, port).to_string())
            })
            .collect();
        servers.sort_by_key(ToString::to_string);
        servers
    }
}

/// Asks now and then, and at once when the API server has come back.
pub(super) async fn follow(
    client: Client,
    servers: Arc<Servers>,
    path: PathBuf,
    mut revived: watch::Receiver<u64>,
) {
    loop {
        let request = hyper::Request::get(SLICE).body(Vec::new());
        let Ok(request) = request else { return };
        match client.request::<Slice>(request).await {
            Ok(slice) => {
                let now = slice.servers();
                // Never none: somebody has just answered.
                if !now.is_empty()
                    && servers.remember(now)
                    && let Err(error) = servers::save(&path, &servers.remembered())
                {
                    warn!(path = %path.display(), %error, "cannot remember where the API servers are");
                }
            }
            Err(error) => debug!(%error, "where the API servers are"),
        }
        tokio::select! {
            () = sleep(OFTEN) => {}
            _ = revived.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_slice() {
        let slice: Slice = serde_json::from_str(
            r#"{"endpoints":[{"addresses":["10.0.0.2"]},{"addresses":["10.0.0.1"],"conditions":{"ready":true}}],"ports":[{"name":"https","port":6443,"protocol":"TCP"}]}"#,
        )
        .unwrap();
        let texts: Vec<String> = slice.servers().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["https://10.0.0.1:6443", "https://10.0.0.2:6443"]);
        let empty: Slice = serde_json::from_str("{}").unwrap();
        assert!(empty.servers().is_empty());
    }
}
