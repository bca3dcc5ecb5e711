//! Policies that the API server accepts and that this version does not enforce: found, and followed by their metadata.
//!
//! ```text
//!   discovery of the group ──► one follower per kind that is served: list, watch ──► hub ──► ObjectEvent::NotEnforced
//!        ▲   on a slow back-off                    │
//!        └──────────── 404: the kind is gone ◄─────┘
//! ```
//! Most clusters do not have these kinds. Whether they do is asked of the discovery document of their group, which every
//! client may read without a right of its own (the ClusterRole `system:discovery` of Kubernetes); a watch of
//! CustomResourceDefinitions would take a right on objects that are not ours, and a connection for each node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::backoff::Backoff;
use super::connection::reason;
use super::fault::Fault;
use super::fetch::{Fetch, via};
use super::hub::Hub;
use super::lines::Lines;
use super::read::{Line, Page, Status};
use super::resource::PAGE;
use super::watcher::{BRIEF, CALM, seconds};
use crate::objects::not_enforced::GROUP;
use crate::objects::{NotEnforced, PolicyKind};

/// Metadata is all that is read of an object; a server that cannot cut it out sends whole objects.
const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const JSON: &str = "application/json";
/// More versions of the group than this are not looked at.
const MOST_VERSIONS: usize = 8;

/// `v1 APIGroup`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ApiGroup {
    versions: Vec<GroupVersion>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct GroupVersion {
    group_version: String,
}

/// `v1 APIResourceList`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ResourceList {
    resources: Vec<ApiResource>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ApiResource {
    name: String,
}

/// What is read of an object.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    metadata: NamedMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NamedMeta {
    name: String,
    uid: String,
    generation: i64,
    resource_version: String,
}

impl Named {
    fn of(raw: &RawValue) -> Named {
        serde_json::from_str(raw.get()).unwrap_or_default()
    }
}

/// Looks for the kinds, and has those followed that are there. Runs until nobody listens any more.
pub(super) async fn look(
    fetch: Fetch,
    hub: Arc<Hub>,
    mut asked: watch::Receiver<u64>,
    mut revived: watch::Receiver<u64>,
) {
    let mut followers = JoinSet::new();
    let mut followed = BTreeSet::new();
    let patient = || {
        let mut backoff = Backoff::up_to(fetch.patience.discovery);
        backoff.at_least(CALM);
        backoff
    };
    let mut backoff = patient();
    while !hub.is_over() {
        asked.borrow_and_update();
        revived.borrow_and_update();
        if followed.len() < PolicyKind::ALL.len() {
            match discover(&fetch).await {
                Ok(found) => {
                    for (kind, api_version) in found {
                        if followed.insert(kind) {
                            let follower = Follower {
                                kind,
                                api_version,
                                fetch: fetch.clone(),
                                hub: Arc::clone(&hub),
                                revived: revived.clone(),
                            };
                            followers.spawn(follower.run());
                        }
                    }
                }
                // The watchers of the other kinds tell when the API server is away.
                Err(fault) => debug!(?fault, "the discovery of {GROUP}"),
            }
        }
        tokio::select! {
            () = sleep(backoff.next()) => {}
            changed = revived.changed() => {
                if changed.is_err() {
                    return;
                }
                backoff = patient();
            }
            // Who waits for all that the API server holds has perhaps just made such a kind.
            changed = asked.changed() => if changed.is_err() {
                return;
            },
            Some(Ok(gone)) = followers.join_next(), if !followers.is_empty() => {
                followed.remove(&gone);
                // It may be back soon: an API server that has just started does not know of it yet.
                backoff = patient();
            }
        }
    }
}

/// The kinds that the API server has, and a version of each.
async fn discover(fetch: &Fetch) -> Result<BTreeMap<PolicyKind, String>, Fault> {
    let mut found = BTreeMap::new();
    let response = match fetch.get(format!("/apis/{GROUP}"), JSON).await {
        Ok(response) => response,
        Err(Fault::Absent) => return Ok(found),
        Err(fault) => return Err(fault),
    };
    let body = fetch.body(response, "API versions").await?;
    let group: ApiGroup = serde_json::from_slice(&body).map_err(unreadable)?;
    for version in group.versions.into_iter().take(MOST_VERSIONS) {
        let api_version = version.group_version;
        // It becomes part of a path.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '/';
        if !api_version.starts_with(GROUP) || !api_version.chars().all(plain) {
            continue;
        }
        let response = match fetch.get(format!("/apis/{api_version}"), JSON).await {
            Ok(response) => response,
            Err(Fault::Absent) => continue,
            Err(fault) => return Err(fault),
        };
        let body = fetch.body(response, "API resources").await?;
        let list: ResourceList = serde_json::from_slice(&body).map_err(unreadable)?;
        for kind in PolicyKind::ALL {
            if list.resources.iter().any(|r| r.name == kind.plural()) {
                found.entry(kind).or_insert_with(|| api_version.clone());
            }
        }
    }
    Ok(found)
}

fn unreadable(error: serde_json::Error) -> Fault {
    Fault::Away(format!("an answer about {GROUP} is not readable: {error}"))
}

/// Follows one kind as long as it is there.
struct Follower {
    kind: PolicyKind,
    api_version: String,
    fetch: Fetch,
    hub: Arc<Hub>,
    revived: watch::Receiver<u64>,
}

impl Follower {
    /// Ends with the kind that is no longer served, and says before that it has no objects.
    async fn run(mut self) -> PolicyKind {
        let mut backoff = Backoff::default();
        while !self.hub.is_over() {
            let began = Instant::now();
            let fault = self.list_and_watch().await.err();
            debug!(kind = %self.kind, ?fault, "the end of a watch");
            match fault {
                Some(Fault::Absent) => {
                    self.hub.not_enforced(self.kind, Vec::new());
                    return self.kind;
                }
                Some(Fault::Forbidden(message)) => {
                    self.hub.not_enforced_forbidden(self.kind, message);
                    backoff.at_least(CALM);
                }
                _ if began.elapsed() > BRIEF => backoff.reset(),
                _ => {}
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                // A sender that is gone is an end: the loop looks.
                _ = self.revived.changed() => {}
            }
        }
        self.kind
    }

    /// `Ok` when a watch has ended without a fault.
    async fn list_and_watch(&self) -> Result<(), Fault> {
        let path = format!("/apis/{}/{}", self.api_version, self.kind.plural());
        let mut policies = BTreeMap::new();
        let mut query = format!("{path}?limit={PAGE}");
        let mut version = loop {
            let response = self.fetch.get(query, METADATA_LIST).await?;
            let body = self.fetch.body(response, self.kind.plural()).await?;
            let page: Page<'_> = serde_json::from_slice(&body).map_err(unreadable)?;
            for item in page.items.into_iter().flatten() {
                self.set(&mut policies, Named::of(item));
            }
            match page.metadata.next.filter(|next| !next.is_empty()) {
                Some(next) => {
                    query = format!(
                        "{path}?limit={PAGE}&continue={}",
                        super::resource::escape(&next)
                    )
                }
                None => break page.metadata.resource_version,
            }
        };
        self.tell(&policies);
        // A watch that the server has ended goes on where it was.
        loop {
            let began = Instant::now();
            self.watch(&path, &mut version, &mut policies).await?;
            if began.elapsed() < BRIEF || self.hub.is_over() {
                return Ok(());
            }
        }
    }

    async fn watch(
        &self,
        path: &str,
        version: &mut String,
        policies: &mut BTreeMap<String, NotEnforced>,
    ) -> Result<(), Fault> {
        let query = format!(
            "{path}?watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            super::resource::escape(version),
            seconds()
        );
        let response = self.fetch.get(query, METADATA).await?;
        let server = via(&response);
        let mut body = response.into_body();
        let mut lines = Lines::default();
        loop {
            let frame = match timeout(self.fetch.patience.silence, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(()),
                Ok(Some(Err(error))) => return Err(Fault::Away(reason(&error))),
                Err(_) => {
                    self.fetch.leave(server);
                    return Err(Fault::Away("a watch is silent".into()));
                }
            };
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            lines
                .push(&piece)
                .map_err(|_| Fault::Away("a line without end".into()))?;
            let mut changed = false;
            while let Some(line) = lines.next() {
                changed |= self.line(line, version, policies)?;
            }
            if changed {
                self.tell(policies);
            }
        }
    }

    /// Takes in a line of a watch; true if it changes what is there.
    fn line(
        &self,
        line: &[u8],
        version: &mut String,
        policies: &mut BTreeMap<String, NotEnforced>,
    ) -> Result<bool, Fault> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(unreadable)?;
        if line.kind == "ERROR" {
            let status = serde_json::from_str::<Status>(line.object.get()).unwrap_or_default();
            return Err(Fault::from_status(status.code, &status));
        }
        let named = Named::of(line.object);
        if !named.metadata.resource_version.is_empty() {
            version.clone_from(&named.metadata.resource_version);
        }
        Ok(match line.kind.as_ref() {
            "ADDED" | "MODIFIED" => self.set(policies, named),
            "DELETED" => policies.remove(&named.metadata.name).is_some(),
            _ => false,
        })
    }

    fn set(&self, policies: &mut BTreeMap<String, NotEnforced>, named: Named) -> bool {
        let policy = NotEnforced {
            kind: self.kind,
            name: named.metadata.name,
            api_version: self.api_version.clone(),
            uid: named.metadata.uid,
            generation: named.metadata.generation,
        };
        let before = policies.insert(policy.name.clone(), policy.clone());
        before.as_ref() != Some(&policy)
    }

    fn tell(&self, policies: &BTreeMap<String, NotEnforced>) {
        self.hub
            .not_enforced(self.kind, policies.values().cloned().collect());
    }
}
