//! The control socket and the plugin's, with a world that answers from a table.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use selvage::api::{PeerQuestion, PeerView, Refusal, SOCKET, WaitFor, WaitView};
use selvage::control::client::{Client, ClientError};
use selvage::control::server::WaitQuestion;
use selvage::control::{Ask, Asker, LinkQuery, Query, cni, server};
use selvage_cni::link;

fn folder() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path =
        std::env::temp_dir().join(format!("selvage-control-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn world() -> Ask<Query> {
    Arc::new(|query| match query {
        Query::Peers(PeerQuestion { address: None }, reply) => drop(reply.send(Ok(Vec::new()))),
        Query::Peers(_, reply) => {
            drop(reply.send(Err(Refusal::hinted("no such neighbour", "look again"))))
        }
        Query::Wait(WaitFor::Synced, reply) => drop(reply.send(Ok(()))),
        // A world that stops drops what it was asked.
        _ => {}
    })
}

#[tokio::test]
async fn questions_are_answered_refused_or_lost() {
    let path = folder();
    let listener = server::bind(&path.join(SOCKET)).unwrap();
    tokio::spawn(server::serve(listener, Asker::new(world())));
    let client = Client::new(&path);
    let peers: Vec<PeerView> = client
        .post("/v1/peers", &PeerQuestion::default())
        .await
        .unwrap();
    assert!(peers.is_empty());
    let one = PeerQuestion {
        address: Some("10.0.0.1".parse().unwrap()),
    };
    let refused = client
        .post::<Vec<PeerView>>("/v1/peers", &one)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.to_string().as_str(), refused.hint()),
        ("no such neighbour", Some("look again"))
    );
    let question = WaitQuestion {
        what: WaitFor::Synced,
        timeout: 20_000,
    };
    assert!(
        client
            .post::<WaitView>("/v1/wait", &question)
            .await
            .unwrap()
            .done
    );
    let stopping = client
        .get::<serde_json::Value>("/v1/status")
        .await
        .unwrap_err();
    assert!(
        matches!(&stopping, ClientError::Refused(refusal) if refusal.error.contains("stopping")),
        "{stopping}"
    );
    assert!(
        client
            .get::<serde_json::Value>("/v1/nothing")
            .await
            .is_err()
    );
    std::fs::remove_dir_all(&path).unwrap();
}

#[tokio::test]
async fn without_a_daemon_the_client_says_what_to_do() {
    let path = folder();
    let client = Client::new(&path);
    let absent = client
        .get::<serde_json::Value>("/v1/status")
        .await
        .unwrap_err();
    assert!(
        absent.hint().unwrap_or_default().contains("selvage agent"),
        "{absent}"
    );
    drop(server::bind(&path.join(SOCKET)).unwrap());
    let ended = client
        .get::<serde_json::Value>("/v1/status")
        .await
        .unwrap_err();
    assert!(
        ended.to_string().contains("nobody listens there any more"),
        "{ended}"
    );
    std::fs::remove_dir_all(&path).unwrap();
}

#[tokio::test]
async fn the_plugin_is_answered_and_nonsense_is_refused() {
    let path = folder();
    let socket = path.join(link::SOCKET);
    let ask: Ask<LinkQuery> = Arc::new(|query| {
        if let LinkQuery::Detach { reply, .. } = query {
            let _ = reply.send(link::Reply::Ok);
        }
    });
    tokio::spawn(cni::serve(server::bind(&socket).unwrap(), ask));
    let answers = tokio::task::spawn_blocking(move || {
        let detach = link::Request::Detach {
            id: "c".into(),
            ifname: "eth0".into(),
        };
        let mut stream = UnixStream::connect(&socket).unwrap();
        link::send(&mut stream, &detach).unwrap();
        let detached: link::Reply = link::receive(&mut stream).unwrap();
        let mut stream = UnixStream::connect(&socket).unwrap();
        link::write_frame(&mut stream, b"nonsense").unwrap();
        (detached, link::receive::<link::Reply>(&mut stream).unwrap())
    });
    let (detached, refused) = answers.await.unwrap();
    assert_eq!(detached, link::Reply::Ok);
    assert!(matches!(refused, link::Reply::Error { .. }), "{refused:?}");
    std::fs::remove_dir_all(&path).unwrap();
}
