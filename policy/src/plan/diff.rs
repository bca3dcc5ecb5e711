//! The difference of two plans, in an order that holds within one transaction.

use super::{Elements, Name, Op, Plan, Set};

/// The operations that turn `old` into `new`: sets and chains before their users, removals after them.
#[must_use]
pub fn diff(old: &Plan, new: &Plan) -> Vec<Op> {
    let mut ops = Vec::new();
    let (kept, fresh): (Vec<_>, Vec<_>) = new
        .sets
        .iter()
        .partition(|(name, set)| old.sets.get(*name).is_some_and(|o| o.def == set.def));
    ops.extend(
        fresh
            .iter()
            .map(|(name, set)| Op::AddSet((*name).clone(), set.def)),
    );
    let chains = new
        .chains
        .iter()
        .filter(|(name, chain)| old.chains.get(*name) != Some(chain));
    ops.extend(chains.map(|(name, chain)| Op::AddChain(name.clone(), chain.clone())));
    for (name, set) in &kept {
        if let Some(before) = old.sets.get(*name) {
            elements(&mut ops, name, &before.elements, set);
        }
    }
    fresh
        .iter()
        .for_each(|(name, set)| elements(&mut ops, name, &Elements::default(), set));
    ops.extend(
        old.chains
            .keys()
            .filter(|n| !new.chains.contains_key(*n))
            .cloned()
            .map(Op::DelChain),
    );
    ops.extend(
        old.sets
            .keys()
            .filter(|n| !new.sets.contains_key(*n))
            .cloned()
            .map(Op::DelSet),
    );
    ops
}

fn elements(ops: &mut Vec<Op>, name: &Name, old: &Elements, new: &Set) {
    let gone = old
        .iter()
        .filter(|(key, verdict)| new.elements.get(key) != Some(*verdict));
    ops.extend(gone.map(|(key, _)| Op::DelElem(name.clone(), key)));
    let come = new
        .elements
        .iter()
        .filter(|(key, verdict)| old.get(key) != Some(*verdict));
    ops.extend(come.map(|(key, verdict)| Op::AddElem(name.clone(), key, verdict.cloned())));
}
