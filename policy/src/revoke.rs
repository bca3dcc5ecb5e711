//! Which established flows are no longer allowed.
//!
//! The agent walks the kernel's flows after a delta that may have closed something and asks for each; what is not
//! allowed gets the revoked mark, what is allowed again loses it.

use crate::compiler::Compiler;
use crate::model::Direction;
use crate::plan::{Delta, Key, Op, Verdict};
use crate::verdict::Packet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A flow as conntrack knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Source of the original direction, before any translation.
    pub source: IpAddr,
    /// Whom it reaches: the source of the reply direction, so after translation of the destination.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of the destination after translation (the source port of the reply); 0 where there are none.
    pub port: u16,
}

impl Compiler {
    /// Whether the rules of this node's pods allow the flow, were it to start now, with all changes so far. The rules
    /// of a pod of another node are for that node.
    #[must_use]
    pub fn allowed(&self, flow: &Flow) -> bool {
        let packet = Packet {
            source: flow.source,
            destination: flow.destination,
            protocol: flow.protocol,
            port: Some(flow.port),
        };
        let here = |addr| {
            self.facts
                .owner(addr)
                .is_some_and(|owner| owner.local.is_some())
        };
        let judged = [
            (Direction::Egress, flow.source),
            (Direction::Ingress, flow.destination),
        ];
        judged
            .into_iter()
            .filter(|(_, own)| here(*own))
            .all(|(direction, _)| self.decide(direction, &packet).allows())
    }
}

impl Delta {
    /// The addresses whose flows may be judged differently now. A flow with neither end among them keeps its verdict,
    /// so only flows with one of these need a look after the delta: a pod that leaves somewhere costs its own flows.
    /// (An attachment that was closed all along has no part in this: it had no flows.)
    #[must_use]
    pub fn affected(&self) -> BTreeSet<IpAddr> {
        let new_sets: BTreeSet<_> = self
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::AddSet(name, _) => Some(name),
                _ => None,
            })
            .collect();
        // What a new set holds takes effect through the dispatch of a pod, which is among the operations, too.
        let keys = self.ops.iter().filter_map(|op| match op {
            Op::AddElem(set, key, _) if !new_sets.contains(set) => Some(key),
            Op::DelElem(_, key) => Some(key),
            _ => None,
        });
        keys.filter_map(Key::address).collect()
    }

    /// Whether it may close something that was open; if not, no established flow needs a look.
    #[must_use]
    pub fn may_revoke(&self) -> bool {
        self.ops.iter().any(|op| match op {
            Op::DelElem(..) => true,
            Op::AddElem(_, _, verdict) => matches!(verdict, Some(Verdict::Jump(_) | Verdict::Drop)),
            Op::AddSet(..) | Op::AddChain(..) | Op::DelChain(_) | Op::DelSet(_) => false,
        })
    }

    /// Whether it may open something that was closed; if not, no revoked flow needs a look.
    #[must_use]
    pub fn may_allow(&self) -> bool {
        self.ops
            .iter()
            .any(|op| matches!(op, Op::AddElem(..) | Op::DelElem(..)))
    }
}
