//! The requests themselves, as plain JSON: a handful, so that no type of a client library is needed.

use hyper::http::{Method, Request, header};
use kube::{Client, Error};
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use crate::objects::Kind;

/// Where the objects of a kind lie, cluster-wide ones.
pub(super) fn collection(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Node => Some("/api/v1/nodes"),
        Kind::BgpConfiguration => Some("/apis/selvage.io/v1alpha1/bgpconfigurations"),
        Kind::BgpPeer => Some("/apis/selvage.io/v1alpha1/bgppeers"),
        Kind::Namespace | Kind::Pod | Kind::NetworkPolicy | Kind::Secret => None,
    }
}

/// Where the nodes' reports lie.
pub(super) const REPORTS: &str = "/apis/selvage.io/v1alpha1/bgpnodestatuses";

/// Reads an object; `None` if there is none.
pub(super) async fn get(client: &Client, path: &str) -> Result<Option<Value>, Error> {
    match client.request(request(Method::GET, path, None)?).await {
        Ok(value) => Ok(Some(value)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Server-side apply: the fields in `value` are ours from now on.
pub(super) async fn apply(client: &Client, path: &str, value: &Value) -> Result<Value, Error> {
    let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
    let mut request = request(Method::PATCH, &path, Some(value))?;
    let kind = header::HeaderValue::from_static("application/apply-patch+yaml");
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    client.request(request).await
}

/// Makes an object; one that is there already is left as it is.
pub(super) async fn create(client: &Client, path: &str, value: &Value) -> Result<(), Error> {
    let made: Result<Value, Error> = client
        .request(request(Method::POST, path, Some(value))?)
        .await;
    match made {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

fn request(method: Method, path: &str, body: Option<&Value>) -> Result<Request<Vec<u8>>, Error> {
    let bytes = body.map(serde_json::to_vec).transpose();
    let bytes = bytes.map_err(Error::SerdeError)?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json");
    request.body(bytes).map_err(Error::HttpError)
}

/// Why the API server, or the way to it, refused; for people.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Api(status) if status.code == 403 => {
            format!(
                "{} (does the ClusterRole `selvage` fit this version?)",
                status.message
            )
        }
        Error::Api(status) => status.message.clone(),
        Error::Service(error) => crate::source::api::reason(error.as_ref()),
        other => crate::source::api::reason(other),
    }
}

/// The condition of a type, of all that an object has.
pub(super) fn condition_of<'a>(all: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    let mut all = all.and_then(Value::as_array).into_iter().flatten();
    all.find(|condition| condition.get("type").and_then(Value::as_str) == Some(name))
}

/// A condition with the time at which it became what it is: the time that is there already, unless it changes.
pub(super) fn condition(
    there: Option<&Value>,
    name: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: &str,
) -> Value {
    let status = if status { "True" } else { "False" };
    let same = condition_of(there, name)
        .filter(|condition| condition.get("status").and_then(Value::as_str) == Some(status));
    let since = same.and_then(|condition| condition.get("lastTransitionTime")?.as_str());
    json!({
        "type": name,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since.unwrap_or(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let there = json!([
            {"type": "Other", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Accepted", "status": "True", "lastTransitionTime": "2026-02-02T00:00:00Z"},
        ]);
        for (there, status, since) in [
            (Some(&there), true, "2026-02-02T00:00:00Z"),
            (Some(&there), false, "now"),
            (None, true, "now"),
            (Some(&json!("nonsense")), true, "now"),
        ] {
            let made = condition(there, "Accepted", status, "r", "m", "now");
            assert_eq!(made["lastTransitionTime"], since);
        }
    }
}
