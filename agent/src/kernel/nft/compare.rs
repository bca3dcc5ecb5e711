//! What the kernel's table lacks of its plan and has besides it: sets, elements, chains and rules.

use std::collections::{HashMap, HashSet};

use selvage_netlink::{
    Error, Socket,
    nft::{self, list},
};

use super::plan::{ChainPlan, LargeSet, SetKind, TablePlan};

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
        if let Some(large) = plan.large(name) {
            let reading = Reading::of(socket, table, &there, &*large)?;
            reading.note(plan, name, &*large, difference);
            continue;
        }
        let listed = list::elements(socket, table, &there)?;
        elements(plan, name, &kind, listed, difference);
    }
    difference.del_sets = listed.into_keys().collect();
    difference.del_sets.sort();
    Ok(true)
}

/// What the kernel has of a large set. It may list an element twice while the set grows.
struct Reading {
    /// A bit for each element of the plan's set.
    seen: Vec<u64>,
    surplus: HashSet<Vec<u8>>,
}

impl Reading {
    fn of(
        socket: &mut Socket,
        table: &nft::Table<'_>,
        set: &list::SetInfo,
        wanted: &dyn LargeSet,
    ) -> Result<Reading, Error> {
        let start = || Reading {
            seen: vec![0; wanted.count().div_ceil(64)],
            surplus: HashSet::new(),
        };
        list::fold_keys(socket, table, set, start, |reading, key| {
            let place = wanted.place(key);
            let word = place.and_then(|place| Some((reading.seen.get_mut(place / 64)?, place)));
            match word {
                Some((word, place)) => *word |= 1 << (place % 64),
                None => drop(reading.surplus.insert(key.to_vec())),
            }
        })
    }

    fn has(&self, place: usize) -> bool {
        let word = self.seen.get(place / 64);
        word.is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    /// Notes what the set lacks and what it has besides.
    fn note(
        self,
        plan: &dyn TablePlan,
        name: &str,
        wanted: &dyn LargeSet,
        difference: &mut Difference,
    ) {
        let seen: u32 = self.seen.iter().map(|word| word.count_ones()).sum();
        if seen as usize != wanted.count() {
            let elements = plan.elements(name);
            let is_missing = |element: &list::ElementInfo| {
                !wanted
                    .place(&element.key)
                    .is_some_and(|place| self.has(place))
            };
            let missing = elements.filter(is_missing).collect();
            difference.add_elements.push((name.to_owned(), missing));
        }
        if !self.surplus.is_empty() {
            let plain = |key| list::ElementInfo {
                key,
                last: None,
                data: None,
            };
            let surplus = self.surplus.into_iter().map(plain).collect();
            difference.del_elements.push((name.to_owned(), surplus));
        }
    }
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
