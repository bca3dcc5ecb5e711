//! The writer: takes the newest wish, and writes what differs, one request after the other.

use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use super::event::{Regarding, Tone, event};
use super::job::{Jobs, Text};
use super::request::{REPORTS, apply, collection, condition, condition_of, create, get, reason};
use super::{Network, NodeRef, Refused, Trouble, Wanted};
use crate::desired::status::ACCEPTED;
use crate::desired::{StatusWrite, Verdict};
use crate::objects::bgp_node_status::{BgpNodeStatusStatus, NeighborStatus};
use crate::objects::node::NETWORK_UNAVAILABLE;
use crate::source::api::dice;

/// A request that takes longer is given up.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);
/// Events of one report that name a session each; more are told in one.
const MOST_EVENTS: usize = 4;

pub(super) struct Writer {
    client: Client,
    trouble: Trouble,
    in_trouble: bool,
    jobs: Jobs,
    wanted: Wanted,
    node: NodeRef,
    /// The neighbours of the last report, for events.
    neighbors: Option<Vec<NeighborStatus>>,
}

impl Writer {
    pub(super) fn new(client: Client, trouble: Trouble) -> Writer {
        Writer {
            client,
            trouble,
            in_trouble: false,
            jobs: Jobs::default(),
            wanted: Wanted::default(),
            node: NodeRef::default(),
            neighbors: None,
        }
    }

    pub(super) async fn run(mut self, mut told: watch::Receiver<Wanted>) {
        loop {
            let next = self.jobs.next();
            let wake = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = told.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.wanted = told.borrow_and_update().clone();
                    self.node = self.wanted.node.clone().unwrap_or_default();
                    self.jobs.want(&self.wanted, Instant::now(), dice);
                }
                () = wake => self.work().await,
            }
        }
    }

    async fn work(&mut self) {
        let Some((place, text)) = self.jobs.take(Instant::now()) else {
            return;
        };
        let written = timeout(PATIENCE, self.write(&text)).await;
        let error = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(reason(&error)),
            Err(_) => Some("the API server does not answer".to_owned()),
        };
        let now = Instant::now();
        match &error {
            None => self.jobs.succeeded(place, text, now),
            Some(_) => self.jobs.failed(&place, now, dice),
        }
        // Whether it stays is looked at later.
        self.jobs.want(&self.wanted, now, dice);
        if error.is_some() != self.in_trouble {
            self.in_trouble = error.is_some();
            match &error {
                Some(why) => warn!("statuses cannot be written to the API server: {why}"),
                None => info!("statuses are written to the API server again"),
            }
            (self.trouble)(
                error.map(|why| format!("statuses cannot be written to the API server: {why}")),
            );
        }
    }

    async fn write(&mut self, text: &Text) -> Result<(), Error> {
        match text {
            Text::Network(network) => self.network(network).await,
            Text::Report(report, ready) => self.report(report, ready).await,
            Text::Status(write) => self.status(write).await,
            Text::Refused(refused) => self.refused(refused).await,
        }
    }

    async fn network(&mut self, network: &Network) -> Result<(), Error> {
        let path = format!("/api/v1/nodes/{}", self.node.name);
        let Some(there) = get(&self.client, &path).await? else {
            return Ok(());
        };
        let conditions = there.pointer("/status/conditions");
        let now = now();
        let mut wanted = condition(
            conditions,
            NETWORK_UNAVAILABLE,
            !network.available,
            network.reason,
            &network.message,
            &now,
        );
        let before = condition_of(conditions, NETWORK_UNAVAILABLE);
        let same = |field: &str| before.and_then(|before| before.get(field)) == wanted.get(field);
        if ["status", "reason", "message"].into_iter().all(same) {
            return Ok(());
        }
        let turned = !same("status");
        if let Value::Object(fields) = &mut wanted {
            fields.insert("lastHeartbeatTime".into(), json!(now));
        }
        let value = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.node.name, "uid": self.node.uid},
            "status": {"conditions": [wanted]},
        });
        apply(&self.client, &format!("{path}/status"), &value).await?;
        info!(
            available = network.available,
            reason = network.reason,
            "the node's condition is written: {}",
            network.message
        );
        if turned {
            let tone = match network.available {
                true => Tone::Normal,
                false => Tone::Warning,
            };
            self.say_of_node(tone, network.reason, &network.message)
                .await;
        }
        Ok(())
    }

    async fn report(&mut self, report: &BgpNodeStatusStatus, ready: &Verdict) -> Result<(), Error> {
        let path = format!("{REPORTS}/{}", self.node.name);
        let mut there = get(&self.client, &path).await?;
        let owner = there
            .as_ref()
            .and_then(|there| there.pointer("/metadata/ownerReferences/0/uid"));
        if owner.and_then(Value::as_str) != Some(&self.node.uid) {
            // With its node it goes, too.
            let value = json!({
                "apiVersion": "selvage.io/v1alpha1",
                "kind": "BGPNodeStatus",
                "metadata": {"name": self.node.name, "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": self.node.name, "uid": self.node.uid},
                ]},
            });
            there = Some(apply(&self.client, &path, &value).await?);
        }
        let conditions = there
            .as_ref()
            .and_then(|there| there.pointer("/status/conditions"));
        let mut status = serde_json::to_value(report).map_err(Error::SerdeError)?;
        let ready = written(conditions, ready);
        if let Value::Object(fields) = &mut status {
            fields.insert("conditions".into(), json!([ready]));
        }
        let value = json!({
            "apiVersion": "selvage.io/v1alpha1",
            "kind": "BGPNodeStatus",
            "metadata": {"name": self.node.name},
            "status": status,
        });
        apply(&self.client, &format!("{path}/status"), &value).await?;
        self.say_of_sessions(&report.neighbors).await;
        self.neighbors = Some(report.neighbors.clone());
        Ok(())
    }

    async fn status(&mut self, write: &StatusWrite) -> Result<(), Error> {
        let Some(collection) = collection(write.kind) else {
            return Ok(());
        };
        let path = format!("{collection}/{}", write.key.name);
        let there = get(&self.client, &path).await?;
        let text = |pointer: &str| {
            there
                .as_ref()?
                .pointer(pointer)?
                .as_str()
                .map(str::to_owned)
        };
        let generation = there
            .as_ref()
            .and_then(|there| there.pointer("/metadata/generation")?.as_i64());
        if text("/metadata/uid").as_ref() != Some(&write.uid)
            || generation != Some(write.generation)
        {
            // It is another one by now; the watch will bring it.
            return Ok(());
        }
        let conditions = there
            .as_ref()
            .and_then(|there| there.pointer("/status/conditions"));
        let wanted: Vec<Value> = write
            .conditions
            .iter()
            .map(|verdict| written(conditions, verdict))
            .collect();
        let value = json!({
            "apiVersion": write.kind.api_version(),
            "kind": write.kind.name(),
            "metadata": {"name": write.key.name, "uid": write.uid},
            "status": {"observedGeneration": write.generation, "conditions": wanted},
        });
        apply(&self.client, &format!("{path}/status"), &value).await?;
        self.say_of_object(conditions, write).await;
        Ok(())
    }

    async fn refused(&mut self, refused: &Refused) -> Result<(), Error> {
        let about = Regarding {
            api_version: &refused.api_version,
            kind: refused.kind,
            namespace: &refused.key.namespace,
            name: &refused.key.name,
            uid: &refused.uid,
        };
        let once = (&*refused.version, &*now());
        let node = &self.node.name;
        let (path, value) = event(
            &about,
            Tone::Warning,
            refused.reason,
            &refused.message,
            node,
            once,
        );
        create(&self.client, &path, &value).await
    }

    async fn say_of_object(&self, before: Option<&Value>, write: &StatusWrite) {
        let Some(accepted) = write.conditions.iter().find(|c| c.name == ACCEPTED) else {
            return;
        };
        let before = condition_of(before, ACCEPTED)
            .map(|c| c.get("status").and_then(Value::as_str) == Some("True"));
        let (tone, word) = match (before, accepted.status) {
            (Some(true), true) | (Some(false), false) => return,
            (_, true) => (Tone::Normal, ACCEPTED),
            (_, false) => (Tone::Warning, "Refused"),
        };
        let about = Regarding {
            api_version: write.kind.api_version(),
            kind: write.kind.name(),
            namespace: "",
            name: &write.key.name,
            uid: &write.uid,
        };
        let generation = write.generation.to_string();
        self.say(&about, tone, word, &accepted.message, &generation)
            .await;
    }

    async fn say_of_sessions(&self, now: &[NeighborStatus]) {
        let Some(before) = &self.neighbors else {
            return;
        };
        let turned: Vec<&NeighborStatus> = now
            .iter()
            .filter(|n| {
                let before = before.iter().find(|b| b.address == n.address);
                before.is_some_and(|before| before.up != n.up)
            })
            .collect();
        for up in [false, true] {
            let of_these: Vec<_> = turned.iter().filter(|n| n.up == up).collect();
            let (tone, word, what) = match up {
                true => (Tone::Normal, "SessionUp", "Established"),
                false => (Tone::Warning, "SessionDown", "down"),
            };
            if of_these.len() > MOST_EVENTS {
                let note = format!("{} BGP sessions are {what}", of_these.len());
                self.say_of_node(tone, word, &note).await;
                continue;
            }
            for n in of_these {
                let note = format!(
                    "the BGP session with {} ({}) is {what}",
                    n.address, n.origin
                );
                self.say_of_node(tone, word, &note).await;
            }
        }
    }

    async fn say_of_node(&self, tone: Tone, word: &str, note: &str) {
        let about = Regarding {
            api_version: "v1",
            kind: "Node",
            namespace: "",
            name: &self.node.name,
            uid: &self.node.uid,
        };
        let once = now();
        self.say(&about, tone, word, note, &once).await;
    }

    /// Events are a courtesy: one that cannot be written is not tried again.
    async fn say(&self, about: &Regarding<'_>, tone: Tone, word: &str, note: &str, once: &str) {
        let (path, value) = event(about, tone, word, note, &self.node.name, (once, &now()));
        if let Err(error) = create(&self.client, &path, &value).await {
            warn!(
                reason = word,
                "an event cannot be written: {}",
                reason(&error)
            );
        }
    }
}

fn written(there: Option<&Value>, verdict: &Verdict) -> Value {
    let (name, status) = (verdict.name, verdict.status);
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    condition(there, name, status, verdict.reason, &verdict.message, &now)
}

/// With microseconds, as events need it; conditions take it, too.
fn now() -> String {
    Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        .to_string()
}
