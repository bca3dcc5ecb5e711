//! What the kernel's table lacks of its plan and has besides it: sets, elements, chains and rules.

use std::collections::{HashMap, HashSet};

use selvage_netlink::{
    Error, Socket,
    nft::{self, list},
};

use super::plan::{ChainPlan, SetKind, TablePlan};

/// What a table read back is, beside its plan.
#[derive(Debug)]
pub(super) enum Comparison {
    /// The same.
    Equal,
    /// The plan, but for sets, elements and chains that come or go, and for rules. Base chains stay: one that is
    /// replaced loses packets that are in it (Linux 6.18: about one in six times at a thousand packets a second).
    Differs(Difference),
    /// Not there, or not made by us, or changed by somebody while it was read.
    Strange,
}

/// The way from the kernel's table to the plan.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Sets that are missing; all their elements are, too.
    pub add_sets: Vec<String>,
    /// Chains that are missing.
    pub add_chains: Vec<String>,
    /// Chains that stay, with other rules than they should have: they are emptied and filled again.
    pub rewrite: Vec<String>,
    /// Sets of ranges with other ranges than they should have: they are emptied and filled again.
    pub refill: Vec<String>,
    /// Elements that are too many, by set.
    pub del_elements: Vec<(String, Vec<list::ElementInfo>)>,
    /// Elements that are missing, by set.
    pub add_elements: Vec<(String, Vec<list::ElementInfo>)>,
    /// Chains that are too many.
    pub del_chains: Vec<String>,
    /// Sets that are too many.
    pub del_sets: Vec<String>,
}

impl Difference {
    fn is_nothing(&self) -> bool {
        self.is_of_elements()
            && self.refill.is_empty()
            && self.del_elements.is_empty()
            && self.add_elements.is_empty()
    }

    /// Whether all sets and chains are those of the plan.
    fn is_of_elements(&self) -> bool {
        self.add_sets.is_empty()
            && self.add_chains.is_empty()
            && self.rewrite.is_empty()
            && self.del_chains.is_empty()
            && self.del_sets.is_empty()
    }
}

/// How often a table is read that lacks or has nothing but elements.
const READINGS: usize = 3;

/// Reads the table back. While the kernel grows a set after many elements came at once, its listing may leave some out
/// (Linux 6.18, seen at 50,000): nothing but elements is believed to differ only when it does so again.
///
/// A table that somebody else changes while it is read cannot be compared: it is [`Comparison::Strange`], because to
/// write it anew needs no look at it. Errors are those of the conversation with the kernel.
pub(super) fn compare(socket: &mut Socket, plan: &dyn TablePlan) -> Result<Comparison, Error> {
    let mut comparison = read(socket, plan)?;
    for _ in 1..READINGS {
        match &comparison {
            Comparison::Differs(difference) if difference.is_of_elements() => {
                comparison = read(socket, plan)?;
            }
            _ => break,
        }
    }
    Ok(comparison)
}

fn read(socket: &mut Socket, plan: &dyn TablePlan) -> Result<Comparison, Error> {
    match read_once(socket, plan) {
        Err(error) if changed_meanwhile(&error) => Ok(Comparison::Strange),
        other => other,
    }
}

/// A set was deleted between its listing and that of its elements, or a listing was begun again too often.
fn changed_meanwhile(error: &Error) -> bool {
    matches!(error, Error::Interrupted) || error.is(rustix::io::Errno::NOENT)
}

/// Whether the chains of a plan are there with their rules, whatever else the table has.
pub(super) fn has_chains(socket: &mut Socket, plan: &dyn TablePlan) -> Result<bool, Error> {
    let table = nft::Table::inet(plan.name());
    let mut difference = Difference::default();
    let wanted = plan.chains();
    match chains(socket, &table, &wanted, &mut difference) {
        Ok(true) if difference.add_chains.is_empty() => {}
        Ok(_) => return Ok(false),
        Err(error) if changed_meanwhile(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    match rules(socket, &table, &wanted, &mut difference) {
        Ok(()) => Ok(difference.rewrite.is_empty()),
        Err(error) if changed_meanwhile(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the table once, cheapest part first.
fn read_once(socket: &mut Socket, plan: &dyn TablePlan) -> Result<Comparison, Error> {
    let table = nft::Table::inet(plan.name());
    let family = nft::Family::Inet as u8;
    let there = list::tables(socket)?;
    let ours = |t: &list::TableInfo| t.family == family && t.name == table.name;
    if !there.iter().any(ours) {
        return Ok(Comparison::Strange);
    }
    let mut difference = Difference::default();
    let wanted = plan.chains();
    let known = chains(socket, &table, &wanted, &mut difference)?;
    if known {
        rules(socket, &table, &wanted, &mut difference)?;
    }
    let known = known && sets(socket, &table, plan, &mut difference)?;
    Ok(if !known {
        Comparison::Strange
    } else if difference.is_nothing() {
        Comparison::Equal
    } else {
        Comparison::Differs(difference)
    })
}

/// False if a chain that is there hooks in elsewhere than it should.
fn chains(
    socket: &mut Socket,
    table: &nft::Table<'_>,
    wanted: &[(&str, ChainPlan)],
    difference: &mut Difference,
) -> Result<bool, Error> {
    let mut listed: HashMap<String, list::ChainInfo> = list::chains(socket, table)?
        .into_iter()
        .map(|chain| (chain.name.clone(), chain))
        .collect();
    for (name, chain) in wanted {
        match listed.remove(*name) {
            Some(there) if there.base == chain.base => {}
            None => difference.add_chains.push((*name).to_owned()),
            _ => return Ok(false),
        }
    }
    difference.del_chains = listed.into_keys().collect();
    difference.del_chains.sort();
    Ok(true)
}

/// Notes the chains that stay and have other rules than the plan has.
fn rules(
    socket: &mut Socket,
    table: &nft::Table<'_>,
    wanted: &[(&str, ChainPlan)],
    difference: &mut Difference,
) -> Result<(), Error> {
    let mut listed: HashMap<String, Vec<list::RuleInfo>> = HashMap::new();
    for rule in list::rules(socket, table, None)? {
        listed.entry(rule.chain.clone()).or_default().push(rule);
    }
    let missing: HashSet<&str> = difference.add_chains.iter().map(String::as_str).collect();
    let stay = wanted.iter().filter(|(name, _)| !missing.contains(name));
    let same = |name: &str, chain: &ChainPlan| {
        let rules = listed.get(name).map(Vec::as_slice).unwrap_or_default();
        rules.len() == chain.rules.len()
            && rules
                .iter()
                .zip(&chain.rules)
                .all(|(rule, wanted)| rule.does(wanted))
    };
    difference.rewrite = stay
        .filter(|(name, chain)| !same(name, chain))
        .map(|(name, _)| (*name).to_owned())
        .collect();
    Ok(())
}

/// False if a set is of another kind than it should be.
fn sets(
    socket: &mut Socket,
    table: &nft::Table<'_>,
    plan: &dyn TablePlan,
    difference: &mut Difference,
) -> Result<bool, Error> {
    let mut listed: HashMap<String, list::SetInfo> = list::sets(socket, table)?
        .into_iter()
        .map(|set| (set.name.clone(), set))
        .collect();
    for (name, kind) in plan.sets() {
        let Some(there) = listed.remove(name) else {
            difference.add_sets.push(name.to_owned());
            continue;
        };
        if !there.matches(&kind.named(name)) {
            return Ok(false);
        }
        let listed = list::elements(socket, table, &there)?;
        elements(plan, name, &kind, listed, difference);
    }
    difference.del_sets = listed.into_keys().collect();
    difference.del_sets.sort();
    Ok(true)
}

/// Notes what a set lacks and what it has besides.
fn elements(
    plan: &dyn TablePlan,
    name: &str,
    kind: &SetKind,
    listed: Vec<list::ElementInfo>,
    difference: &mut Difference,
) {
    let mut listed: HashSet<list::ElementInfo> = listed.into_iter().collect();
    let missing: Vec<_> = plan
        .elements(name)
        .filter(|element| !listed.remove(element))
        .collect();
    let surplus: Vec<_> = listed.into_iter().collect();
    if kind.interval {
        if !(missing.is_empty() && surplus.is_empty()) {
            difference.refill.push(name.to_owned());
        }
        return;
    }
    if !missing.is_empty() {
        difference.add_elements.push((name.to_owned(), missing));
    }
    if !surplus.is_empty() {
        difference.del_elements.push((name.to_owned(), surplus));
    }
}
