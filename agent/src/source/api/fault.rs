//! What goes wrong when the API server is asked.

use http_body_util::BodyExt;
use hyper::{Response, StatusCode};
use kube::client::Body;

use super::connection::reason;
use super::read::Status;

/// More of an answer that refuses is not read.
const MOST: usize = 64 << 10;

/// Why a request has come to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not answered, or not as it should be; tried again.
    Away(String),
    /// The version that we know is too old: everything is read again.
    Gone,
    /// There is no such kind.
    Absent,
    /// We may not; in the API server's words, which name verb and resource.
    Forbidden(String),
    /// Lists do not come as streams from this server.
    NoStreams,
}

impl Fault {
    /// What an answer means that is no success.
    pub(super) async fn of(response: Response<Body>) -> Fault {
        let code = response.status();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if text.len() > MOST {
                break;
            }
        }
        let status = serde_json::from_slice::<Status>(&text).unwrap_or_default();
        Fault::from_status(code.as_u16(), &status)
    }

    /// What the `Status` of an `ERROR` event, or of an answer, means.
    pub(super) fn from_status(code: u16, status: &Status) -> Fault {
        let message = status.message.as_str();
        let unwanted = message.contains("sendInitialEvents");
        match code {
            400 | 403 | 422 if unwanted => Fault::NoStreams,
            410 => Fault::Gone,
            // Its history is not the one that we know.
            _ if message.contains("Too large resource version") => Fault::Gone,
            404 => Fault::Absent,
            403 => Fault::Forbidden(match message {
                "" => "forbidden".to_owned(),
                message => message.to_owned(),
            }),
            401 => Fault::Away("it does not accept our credentials".into()),
            code => {
                let name = StatusCode::from_u16(code).ok();
                let name = name
                    .and_then(|code| code.canonical_reason())
                    .unwrap_or("an error");
                let more = match (message, status.reason.as_str()) {
                    ("", "") => String::new(),
                    ("", reason) => format!(": {reason}"),
                    (message, _) => format!(": {message}"),
                };
                Fault::Away(format!("it answers {code} {name}{more}"))
            }
        }
    }

    /// A request that was not answered.
    pub(super) fn unanswered(error: &kube::Error) -> Fault {
        match error {
            kube::Error::Service(error) => Fault::Away(reason(error.as_ref())),
            error => Fault::Away(reason(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_mean() {
        let fault = |code, message: &str| {
            let message = message.to_owned();
            Fault::from_status(
                code,
                &Status {
                    code,
                    message,
                    ..Status::default()
                },
            )
        };
        let away = |text: &str| Fault::Away(text.to_owned());
        let refused = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        for (code, message, expected) in [
            (422, refused, Fault::NoStreams),
            (403, refused, Fault::NoStreams),
            (
                403,
                "pods is forbidden: User \"u\" cannot list resource \"pods\"",
                Fault::Forbidden(
                    "pods is forbidden: User \"u\" cannot list resource \"pods\"".into(),
                ),
            ),
            (410, "too old resource version: 1 (2)", Fault::Gone),
            (
                504,
                "Timeout: Too large resource version: 9, current: 3",
                Fault::Gone,
            ),
            (404, "", Fault::Absent),
            (
                401,
                "Unauthorized",
                away("it does not accept our credentials"),
            ),
            (
                503,
                "apiserver not ready",
                away("it answers 503 Service Unavailable: apiserver not ready"),
            ),
            (500, "", away("it answers 500 Internal Server Error")),
        ] {
            assert_eq!(fault(code, message), expected, "{code} {message}");
        }
    }
}
