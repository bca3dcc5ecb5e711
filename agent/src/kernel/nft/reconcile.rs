//! One way to make the kernel's table equal to its plan, for every table of ours.

use std::collections::HashMap;

use selvage_netlink::{
    Error, Socket,
    nft::{self, Transaction},
};

use super::{
    compare::{self, Comparison, Difference},
    plan::{ChainPlan, SetKind, TablePlan},
};

/// So many elements are translated before they are encoded.
const AT_ONCE: usize = 4096;

/// What making a table equal to its plan took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loaded {
    /// The kernel had it already.
    Unchanged,
    /// It was not what it should have been, and was changed or written anew.
    Replaced,
}

/// Makes the kernel's table equal to the plan: by none, one or two transactions. The first of two adds what no rule and
/// no element leads to yet; the second leads there and takes away what is too many. A packet that is on its way through
/// the rules while a transaction is committed reads the maps as they are now and the chains as they were: it must not be
/// led to a chain that it finds empty.
///
/// # Errors
/// The kernel's refusal: then nothing that matters to a packet was changed. After any other error it is unknown whether
/// the plan is in effect.
pub(super) fn reconcile(
    socket: &mut Socket,
    transaction: &mut Transaction,
    plan: &dyn TablePlan,
) -> Result<Loaded, Error> {
    match compare::compare(socket, plan)? {
        Comparison::Equal => return Ok(Loaded::Unchanged),
        Comparison::Differs(difference) => match change(socket, transaction, plan, &difference) {
            Ok(()) => return Ok(Loaded::Replaced),
            Err(error) => {
                tracing::warn!(table = plan.name(), %error, "nft: the table cannot be changed, it is written anew");
            }
        },
        Comparison::Strange => {}
    }
    transaction.clear();
    replace(transaction, plan);
    transaction.commit(socket)?;
    Ok(Loaded::Replaced)
}

/// From what is there to the plan.
fn change(
    socket: &mut Socket,
    transaction: &mut Transaction,
    plan: &dyn TablePlan,
    difference: &Difference,
) -> Result<(), Error> {
    let table = nft::Table::inet(plan.name());
    let all = plan.sets();
    let kinds: HashMap<&str, &SetKind> = all.iter().map(|(name, kind)| (*name, kind)).collect();
    let named = |names: &[String], name: &str| names.iter().any(|other| other == name);
    let chains = plan.chains();
    // A base chain that is missing meets packets at once: it comes when all that its rules lead to is there.
    let (base, to_jump_to): (Vec<_>, Vec<_>) = chains
        .iter()
        .filter(|(name, _)| named(&difference.add_chains, name))
        .cloned()
        .partition(|(_, chain)| chain.base.is_some());
    let sets = all
        .iter()
        .filter(|(name, _)| named(&difference.add_sets, name));
    transaction.clear();
    add_frame(
        transaction,
        &table,
        &to_jump_to,
        sets.map(|(name, kind)| (*name, kind)),
    );
    for name in &difference.add_sets {
        if let Some(kind) = kinds.get(name.as_str()) {
            add_all(transaction, &table, plan, name, kind);
        }
    }
    if !transaction.is_empty() {
        transaction.commit(socket)?;
    }
    transaction.clear();
    add_frame(transaction, &table, &base, std::iter::empty());
    for (name, chain) in &chains {
        if named(&difference.rewrite, name) {
            transaction.flush_chain(&table, name);
            add_rules(transaction, &table, name, chain);
        }
    }
    for (name, surplus) in &difference.del_elements {
        if let Some(kind) = kinds.get(name.as_str()) {
            let surplus = surplus.iter().map(|element| element.deletion());
            transaction.delete_elements(&table, &kind.named(name), surplus);
        }
    }
    for name in &difference.refill {
        transaction.flush_set(&table, name);
        if let Some(kind) = kinds.get(name.as_str()) {
            add_all(transaction, &table, plan, name, kind);
        }
    }
    for (name, missing) in &difference.add_elements {
        if let Some(kind) = kinds.get(name.as_str()) {
            let missing = missing.iter().map(|element| element.element());
            transaction.add_elements(&table, &kind.named(name), missing);
        }
    }
    for chain in &difference.del_chains {
        transaction.flush_chain(&table, chain);
    }
    for chain in &difference.del_chains {
        transaction.delete_chain(&table, chain);
    }
    for set in &difference.del_sets {
        transaction.delete_set(&table, set);
    }
    if transaction.is_empty() {
        return Ok(());
    }
    transaction.commit(socket)
}

/// The whole plan, whatever was there under the table's name.
pub(super) fn replace(transaction: &mut Transaction, plan: &dyn TablePlan) {
    let table = nft::Table::inet(plan.name());
    transaction.reset_table(&table);
    let sets = plan.sets();
    let pairs = sets.iter().map(|(name, kind)| (*name, kind));
    add_frame(transaction, &table, &plan.chains(), pairs);
    for (name, kind) in &sets {
        add_all(transaction, &table, plan, name, kind);
    }
}

/// Chains and sets, then the rules, which may name any of them.
fn add_frame<'a>(
    transaction: &mut Transaction,
    table: &nft::Table<'_>,
    chains: &[(&str, ChainPlan)],
    sets: impl Iterator<Item = (&'a str, &'a SetKind)>,
) {
    for (name, chain) in chains {
        match &chain.base {
            Some(base) => transaction.add_base_chain(table, name, base),
            None => transaction.add_chain(table, name),
        }
    }
    for (name, kind) in sets {
        transaction.add_set(table, &kind.named(name));
    }
    for (name, chain) in chains {
        add_rules(transaction, table, name, chain);
    }
}

fn add_rules(transaction: &mut Transaction, table: &nft::Table<'_>, name: &str, chain: &ChainPlan) {
    for rule in &chain.rules {
        transaction.add_rule(table, name, rule, None);
    }
}

fn add_all(
    transaction: &mut Transaction,
    table: &nft::Table<'_>,
    plan: &dyn TablePlan,
    name: &str,
    kind: &SetKind,
) {
    let mut elements = plan.elements(name);
    loop {
        // A set may be as large as the cluster.
        let some: Vec<_> = elements.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        let some = some.iter().map(|element| element.element());
        transaction.add_elements(table, &kind.named(name), some);
    }
}
