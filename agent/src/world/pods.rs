//! Pods of this node: attached by the plugin, opened when their policy is in the kernel.

use std::{collections::BTreeSet, net::IpAddr};

use rustix::io::Errno;
use selvage_cni::link;
use selvage_policy::plan::Gen;
use tracing::{debug, info, warn};

use super::{RETRY, Waiting, World};
use crate::{
    control::LinkQuery,
    kernel::open,
    store::{AttachmentId, Dirty, Observed},
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
                // The plugin does not depend on the answer.
                let _ = reply.send(link::Reply::Ok);
                self.detach(&id)
            }
        }
    }

    /// A new attachment, its interface still closed.
    pub(super) fn attach(&mut self, attachment: link::Attachment) -> Dirty {
        let id = AttachmentId::of(&attachment);
        // Under `none` the plugin has opened it already, and the flows may be the pod's own.
        if attachment.policy != link::PolicyMode::None {
            if let Some(number) = self.forget_former(&attachment.addresses) {
                self.forgetting.insert(id.clone(), number);
            }
            self.lives.made(id);
        }
        self.resume(attachment)
    }

    /// An attachment that was open before we started.
    pub(super) fn resume(&mut self, attachment: link::Attachment) -> Dirty {
        if attachment.policy == link::PolicyMode::Optional {
            self.to_open.insert(AttachmentId::of(&attachment), None);
        }
        self.store.attach(attachment)
    }

    fn detach(&mut self, id: &AttachmentId) -> Dirty {
        self.to_open.remove(id);
        self.forgetting.remove(id);
        self.lives.opened_or_gone(id);
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.id != *id {
                self.waiting.push(waiting);
                continue;
            }
            // Who hangs up is asked again; this one must not be.
            let message = "the attachment was ended meanwhile".into();
            let _ = waiting.reply.send(link::Reply::Error { message });
        }
        let gone = self.store.attachment(id).cloned();
        let dirty = self.store.detach(id);
        if let Some(gone) = gone {
            // The next owner of the addresses must not inherit what they had established; one that is there already
            // has been seen to.
            let others: BTreeSet<IpAddr> = self
                .store
                .attachments()
                .flat_map(|(_, other)| other.addresses.iter().copied())
                .collect();
            let addresses = gone.addresses.iter().copied();
            self.forget(addresses.filter(|addr| !others.contains(addr)).collect());
        }
        dirty
    }

    /// An interface that is gone has no pod behind it any more, whether or not the plugin could tell us.
    pub(super) fn links_gone(&mut self, observed: &Observed) -> Dirty {
        let known = self.store.links().keys();
        let gone: BTreeSet<u32> = match observed {
            Observed::LinkGone(index) => [*index].into(),
            Observed::Links(now) => known.filter(|i| !now.contains_key(i)).copied().collect(),
            _ => return Dirty::default(),
        };
        let attachments = self.store.attachments();
        let ended: Vec<AttachmentId> = attachments
            .filter(|(_, attachment)| gone.contains(&attachment.host_index))
            .map(|(id, _)| id.clone())
            .collect();
        let mut dirty = Dirty::default();
        for id in ended {
            info!(
                container = id.container,
                interface = id.ifname,
                "the interface of an attachment is gone"
            );
            dirty.merge(self.detach(&id));
        }
        dirty
    }

    /// The pod's policy is in the kernel, and nothing is left of whoever had its addresses before.
    fn may_open(&mut self, id: &AttachmentId, host_if: &str) -> Option<Gen> {
        self.is_enforced(host_if)
            .filter(|_| !self.forgetting.contains_key(id))
    }

    /// Answers plugins and opens interfaces whose pods have their policy in the kernel by now.
    pub(super) fn release(&mut self) {
        self.waiting.retain(|w| !w.reply.is_closed());
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(attachment) = self.store.attachment(&waiting.id).cloned() else {
                continue;
            };
            let host_if = &attachment.host_if;
            let Some(masquerade) = self.is_masqueraded(&attachment) else {
                self.waiting.push(waiting);
                continue;
            };
            let reply = if self.setup.features.policy {
                match self.may_open(&waiting.id, host_if) {
                    Some(generation) => link::Reply::Enforced {
                        generation: generation.0,
                        masquerade,
                    },
                    None => {
                        self.waiting.push(waiting);
                        continue;
                    }
                }
            } else {
                link::Reply::NotApplicable { masquerade }
            };
            if attachment.policy == link::PolicyMode::Required {
                self.lives.opened_or_gone(&waiting.id);
            }
            // A plugin that has hung up undoes what it did.
            let _ = waiting.reply.send(reply);
        }
        for (id, not_before) in std::mem::take(&mut self.to_open) {
            let Some(attachment) = self.store.attachment(&id).cloned() else {
                continue;
            };
            let early = not_before.is_some_and(|at| at > self.now);
            let closed =
                self.setup.features.policy && self.may_open(&id, &attachment.host_if).is_none();
            if early {
                self.to_open.insert(id, not_before);
                continue;
            }
            if closed {
                // The kernel's answer about its policy is what it waits for, not a time.
                self.to_open.insert(id, None);
                continue;
            }
            match open::open(attachment.host_index, &attachment.addresses) {
                Ok(()) => {
                    self.lives.opened_or_gone(&id);
                    debug!(interface = attachment.host_if, "opened");
                }
                Err(error) if error.is(Errno::NODEV) => {
                    debug!(interface = attachment.host_if, "gone before it was opened");
                }
                Err(error) => {
                    warn!(interface = attachment.host_if, %error, "cannot open a pod's interface, trying again");
                    self.to_open.insert(id, Some(self.now + RETRY));
                }
            }
        }
    }
}

/// The pod, or the container where the runtime named none.
pub(super) fn pod_name(attachment: &link::Attachment) -> String {
    match &attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => attachment.container_id.clone(),
    }
}
