//! From one plan to another: the operations of one transaction.

use super::{Chain, Key, Name, Plan, Set, SetDef, Verdict};
use std::fmt;

/// A generation of the plan; 0 is the empty plan before the first delta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gen(pub u64);

impl fmt::Display for Gen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What turns the plan of one generation into that of another, in an order that one nft transaction accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The generation it applies to.
    pub from: Gen,
    /// The generation that it makes.
    pub to: Gen,
    /// What to do, in order.
    pub ops: Vec<Op>,
}

/// One message of a transaction (elements that follow each other in one set share one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new, empty set or map.
    AddSet(Name, SetDef),
    /// A new chain, still without rules, then its rules: all that it will ever have. Everything that the rules name
    /// was added before. Sent as one NEWCHAIN and a NEWRULE for each rule.
    AddChain(Name, Chain),
    /// A new element, with its verdict in a map.
    AddElem(Name, Key, Option<Verdict>),
    /// An element that goes. An element whose verdict changes is deleted and added.
    DelElem(Name, Key),
    /// The rules of a chain go, then the chain. Nothing jumps to it any more.
    DelChain(Name),
    /// A set that no rule uses any more, with all its elements.
    DelSet(Name),
}

impl Op {
    /// Whether it touches elements only.
    #[must_use]
    pub fn is_element(&self) -> bool {
        matches!(self, Op::AddElem(..) | Op::DelElem(..))
    }
}

/// An operation that does not fit the plan it was applied to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operation {index} does not fit the plan: {op:?}")]
pub struct Misfit {
    /// Its position in the delta.
    pub index: usize,
    /// The operation.
    pub op: Op,
}

impl Plan {
    /// The operations that build this plan in an empty table, in a valid order.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        super::diff::diff(
            &Plan {
                table: self.table.clone(),
                ..Plan::default()
            },
            self,
        )
    }

    /// Applies a delta as the kernel would: strictly, each operation on what the ones before it left.
    ///
    /// # Errors
    /// The first operation that does not fit: an addition of what is there, a removal of what is not, a name that
    /// nothing bears, a set or chain removed while in use.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), Misfit> {
        for (index, op) in ops.iter().enumerate() {
            if !self.apply_one(op) {
                return Err(Misfit {
                    index,
                    op: op.clone(),
                });
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, op: &Op) -> bool {
        match op {
            Op::AddSet(name, def) => self.sets.insert(name.clone(), Set::new(*def)).is_none(),
            Op::AddChain(name, chain) => {
                let known = chain
                    .names()
                    .all(|n| self.sets.contains_key(n) || self.chains.contains_key(n));
                known && self.chains.insert(name.clone(), chain.clone()).is_none()
            }
            Op::AddElem(name, key, verdict) => {
                let known = match verdict {
                    Some(Verdict::Jump(chain)) => self.chains.contains_key(chain),
                    _ => true,
                };
                let Some(set) = self.sets.get_mut(name) else {
                    return false;
                };
                known
                    && set.def.verdicts == verdict.is_some()
                    && set.elements.insert(key.clone(), verdict.clone()).is_none()
            }
            Op::DelElem(name, key) => self
                .sets
                .get_mut(name)
                .is_some_and(|s| s.elements.remove(key)),
            Op::DelChain(name) => !self.is_used(name) && self.chains.remove(name).is_some(),
            Op::DelSet(name) => !self.is_used(name) && self.sets.remove(name).is_some(),
        }
    }

    fn is_used(&self, name: &Name) -> bool {
        let by_rule = self.chains.values().any(|c| c.names().any(|n| n == name));
        let maps = self.sets.values().filter(|s| s.def.verdicts);
        by_rule
            || maps
                .flat_map(|s| s.elements.values())
                .any(|v| matches!(v, Some(Verdict::Jump(n)) if n == name))
    }
}
