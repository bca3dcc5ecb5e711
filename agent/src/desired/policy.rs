//! What the policy compiler has to be told.

use std::sync::Arc;

use selvage_cni::link::Attachment;
use selvage_policy::Change;
use selvage_policy::model::{LocalPod, PodKey, PodRef};

use crate::store::{Dirty, Store};

/// What the compiler has to be told after a batch of facts. Told twice, a change costs a comparison.
pub fn policy(store: &Store, dirty: &Dirty) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in &dirty.nodes {
        changes.push(match store.node(name) {
            Some(node) => Change::Node(name.as_str().into(), node.addresses.clone()),
            None => Change::NodeGone(name.as_str().into()),
        });
    }
    for name in &dirty.namespaces {
        changes.push(match store.namespace(name) {
            Some(fact) => Change::Namespace((**fact).clone()),
            None => Change::NamespaceGone(name.as_str().into()),
        });
    }
    for key in &dirty.pods {
        changes.push(match store.pod(key) {
            Some(fact) => Change::Pod(Arc::clone(fact)),
            None => Change::PodGone(key.clone()),
        });
    }
    for key in &dirty.policies {
        changes.push(match store.policy(key) {
            Some(object) => Change::Policy(Arc::clone(&object.policy)),
            None => Change::PolicyGone(key.clone()),
        });
    }
    changes.extend(
        dirty
            .detached
            .iter()
            .filter_map(|name| name.parse().ok())
            .map(Change::LocalGone),
    );
    let attached = dirty
        .attachments
        .iter()
        .filter_map(|id| store.attachment(id));
    changes.extend(
        attached
            .filter_map(|attachment| local_pod(attachment))
            .map(Change::Local),
    );
    changes
}

/// A pod of this node as the plugin attached it. `None` for an attachment whose interface name no kernel would have given.
pub fn local_pod(attachment: &Attachment) -> Option<LocalPod> {
    let pod = attachment.pod.as_ref().map(|pod| PodRef {
        key: PodKey::new(pod.namespace.as_str(), pod.name.as_str()),
        uid: (!pod.uid.is_empty()).then(|| pod.uid.as_str().into()),
    });
    Some(LocalPod {
        ifname: attachment.host_if.parse().ok()?,
        ifindex: attachment.host_index,
        addresses: attachment.addresses.clone(),
        pod,
    })
}
