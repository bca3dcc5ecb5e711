//! Pods of this node: attached by the plugin, opened when their policy is in the kernel.

use selvage_cni::link;
use tracing::{debug, info, warn};

use super::{Waiting, World};
use crate::{
    control::LinkQuery,
    kernel::{conntrack::FlowWork, open},
    store::{AttachmentId, Dirty},
};

impl World {
    pub(super) fn link(&mut self, query: LinkQuery) -> Dirty {
        match query {
            LinkQuery::Attach(attachment, reply) => {
                let id = AttachmentId::of(&attachment);
                info!(
                    pod = pod_name(&attachment),
                    interface = attachment.host_if,
                    "attached"
                );
                self.waiting.push(Waiting { id, reply });
                self.attach(*attachment)
            }
            LinkQuery::Detach { id, ifname, reply } => {
                let id = AttachmentId {
                    container: id,
                    ifname,
                };
                self.to_open.remove(&id);
                self.waiting.retain(|w| w.id != id);
                if let (Some(gone), Some(flows)) = (self.store.attachment(&id), &self.out.flows) {
                    // The next owner of the addresses must not inherit what they had established.
                    flows.send(FlowWork::Forget(gone.addresses.iter().copied().collect()));
                }
                // The plugin does not depend on the answer.
                let _ = reply.send(link::Reply::Ok);
                self.store.detach(&id)
            }
        }
    }

    pub(super) fn attach(&mut self, attachment: link::Attachment) -> Dirty {
        if attachment.policy == link::PolicyMode::Optional {
            self.to_open.insert(AttachmentId::of(&attachment));
        }
        self.store.attach(attachment)
    }

    /// Answers plugins and opens interfaces whose pods have their policy in the kernel by now.
    pub(super) fn release(&mut self) {
        self.waiting.retain(|w| !w.reply.is_closed());
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(host_if) = self
                .store
                .attachment(&waiting.id)
                .map(|a| a.host_if.clone())
            else {
                continue;
            };
            let reply = if self.setup.features.policy {
                match self.is_enforced(&host_if) {
                    Some(generation) => link::Reply::Enforced {
                        generation: generation.0,
                        masquerade: false,
                    },
                    None => {
                        self.waiting.push(waiting);
                        continue;
                    }
                }
            } else {
                link::Reply::NotApplicable { masquerade: false }
            };
            // A plugin that has hung up undoes what it did.
            let _ = waiting.reply.send(reply);
        }
        for id in std::mem::take(&mut self.to_open) {
            let Some(attachment) = self.store.attachment(&id).cloned() else {
                continue;
            };
            if self.setup.features.policy && self.is_enforced(&attachment.host_if).is_none() {
                self.to_open.insert(id);
                continue;
            }
            match open::open(attachment.host_index, &attachment.addresses) {
                Ok(()) => debug!(interface = attachment.host_if, "opened"),
                Err(error) => {
                    warn!(interface = attachment.host_if, %error, "cannot open a pod's interface")
                }
            }
        }
    }
}

fn pod_name(attachment: &link::Attachment) -> String {
    match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => attachment.container_id.clone(),
    }
}
