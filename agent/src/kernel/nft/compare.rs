//! What the kernel's table lacks of the plan and has besides it: sets, elements, chains and rules.

use std::collections::{HashMap, HashSet};

use selvage_netlink::{
    Error, Socket,
    nft::{self, list},
};
use selvage_policy::plan::{Chain, Key, Name, Plan, Set, Verdict};

use super::translate;

/// What a table read back is, beside a plan.
#[derive(Debug)]
pub(super) enum Comparison<'p> {
    /// The same.
    Equal,
    /// The plan, but for sets, elements and chains that come or go. What stands in a packet's way meanwhile stays as
    /// it is: a base chain that is replaced loses packets that are in it (Linux 6.18: about one in six times at a
    /// thousand packets a second).
    Differs(Difference<'p>),
    /// Not there, or not made by this compiler.
    Strange,
}

/// The way from the kernel's table to the plan.
#[derive(Debug, Default)]
pub(super) struct Difference<'p> {
    /// Sets that are missing; all their elements are among `add_elements`.
    pub add_sets: Vec<(&'p Name, &'p Set)>,
    /// Chains that are missing.
    pub add_chains: Vec<(&'p Name, &'p Chain)>,
    /// Elements that are too many.
    pub del_elements: Vec<(&'p Name, &'p Set, Vec<list::ElementInfo>)>,
    /// Elements that are missing.
    pub add_elements: Vec<(&'p Name, Vec<(&'p Key, &'p Option<Verdict>)>)>,
    /// Chains that are too many.
    pub del_chains: Vec<String>,
    /// Sets that are too many.
    pub del_sets: Vec<String>,
}

impl Difference<'_> {
    fn is_nothing(&self) -> bool {
        self.is_of_elements() && self.del_elements.is_empty() && self.add_elements.is_empty()
    }

    /// Whether all sets and chains are those of the plan.
    fn is_of_elements(&self) -> bool {
        self.add_sets.is_empty()
            && self.add_chains.is_empty()
            && self.del_chains.is_empty()
            && self.del_sets.is_empty()
    }
}

/// How often a table is read that lacks or has nothing but elements.
const READINGS: usize = 3;

/// Reads the table back. While the kernel grows a set after many elements came at once, its listing may leave some out
/// (Linux 6.18, seen at 50,000): nothing but elements is believed to differ only when it does so again.
pub(super) fn compare<'p>(socket: &mut Socket, plan: &'p Plan) -> Result<Comparison<'p>, Error> {
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

/// Reads the table once, cheapest part first.
fn read<'p>(socket: &mut Socket, plan: &'p Plan) -> Result<Comparison<'p>, Error> {
    let table = nft::Table::inet(plan.table.as_str());
    let family = nft::Family::Inet as u8;
    let there = list::tables(socket)?;
    let ours = |t: &list::TableInfo| t.family == family && t.name == table.name;
    if !there.iter().any(ours) {
        return Ok(Comparison::Strange);
    }
    let mut difference = Difference::default();
    let known = chains(socket, &table, plan, &mut difference)?
        && rules(socket, &table, plan, &difference)?
        && sets(socket, &table, plan, &mut difference)?;
    Ok(match known {
        false => Comparison::Strange,
        true if difference.is_nothing() => Comparison::Equal,
        true => Comparison::Differs(difference),
    })
}

/// False if a base chain that is there is not as it should be, or is one too many.
fn chains<'p>(
    socket: &mut Socket,
    table: &nft::Table<'_>,
    plan: &'p Plan,
    difference: &mut Difference<'p>,
) -> Result<bool, Error> {
    let listed: HashMap<String, list::ChainInfo> = list::chains(socket, table)?
        .into_iter()
        .map(|chain| (chain.name.clone(), chain))
        .collect();
    for (name, chain) in &plan.chains {
        match listed.get(name.as_str()) {
            Some(there) if there.base == chain.base.as_ref().map(translate::base) => {}
            None => difference.add_chains.push((name, chain)),
            _ => return Ok(false),
        }
    }
    let wanted: HashSet<&str> = plan.chains.keys().map(Name::as_str).collect();
    for (name, chain) in listed {
        if wanted.contains(name.as_str()) {
            continue;
        }
        if chain.base.is_some() {
            return Ok(false);
        }
        difference.del_chains.push(name);
    }
    difference.del_chains.sort();
    Ok(true)
}

/// False if a chain that stays has other rules than the plan has.
fn rules(
    socket: &mut Socket,
    table: &nft::Table<'_>,
    plan: &Plan,
    difference: &Difference<'_>,
) -> Result<bool, Error> {
    let mut listed: HashMap<String, Vec<list::RuleInfo>> = HashMap::new();
    for rule in list::rules(socket, table, None)? {
        listed.entry(rule.chain.clone()).or_default().push(rule);
    }
    let missing: HashSet<&Name> = difference
        .add_chains
        .iter()
        .map(|(name, _)| *name)
        .collect();
    let mut stay = plan
        .chains
        .iter()
        .filter(|(name, _)| !missing.contains(name));
    Ok(stay.all(|(name, chain)| {
        let rules = listed
            .get(name.as_str())
            .map(Vec::as_slice)
            .unwrap_or_default();
        rules.len() == chain.rules.len()
            && rules
                .iter()
                .zip(&chain.rules)
                .all(|(rule, wanted)| rule.does(&translate::rule(wanted)))
    }))
}

/// False if a set is of another kind than it should be, or ranges differ: those are never edited in place.
fn sets<'p>(
    socket: &mut Socket,
    table: &nft::Table<'_>,
    plan: &'p Plan,
    difference: &mut Difference<'p>,
) -> Result<bool, Error> {
    let mut listed: HashMap<String, list::SetInfo> = list::sets(socket, table)?
        .into_iter()
        .map(|set| (set.name.clone(), set))
        .collect();
    for (name, set) in &plan.sets {
        let Some(there) = listed.remove(name.as_str()) else {
            difference.add_sets.push((name, set));
            if !set.elements.is_empty() {
                difference
                    .add_elements
                    .push((name, set.elements.iter().collect()));
            }
            continue;
        };
        let types = translate::key_types(set.def.key);
        if !there.matches(&translate::set(name.as_str(), &set.def, &types)) {
            return Ok(false);
        }
        let (missing, surplus) = elements(list::elements(socket, table, &there)?, set);
        if set.def.interval && !(missing.is_empty() && surplus.is_empty()) {
            return Ok(false);
        }
        if !missing.is_empty() {
            difference.add_elements.push((name, missing));
        }
        if !surplus.is_empty() {
            difference.del_elements.push((name, set, surplus));
        }
    }
    difference.del_sets = listed.into_keys().collect();
    difference.del_sets.sort();
    Ok(true)
}

type Wanted<'p> = (&'p Key, &'p Option<Verdict>);

/// What is missing, and what is too many.
fn elements(
    listed: Vec<list::ElementInfo>,
    set: &Set,
) -> (Vec<Wanted<'_>>, Vec<list::ElementInfo>) {
    let mut listed: HashSet<list::ElementInfo> = listed.into_iter().collect();
    let missing = set
        .elements
        .iter()
        .filter(|(key, verdict)| !listed.remove(&element(key, verdict, set.def.interval)))
        .collect();
    (missing, listed.into_iter().collect())
}

/// An element as the kernel lists it.
fn element(key: &Key, verdict: &Option<Verdict>, interval: bool) -> list::ElementInfo {
    let (first, last) = translate::span(key);
    let data = verdict.as_ref().map(|verdict| {
        list::ElementData::Verdict(match translate::verdict(verdict) {
            nft::Verdict::Jump(chain) => nft::Verdict::Jump(chain.to_owned()),
            nft::Verdict::Accept => nft::Verdict::Accept,
            nft::Verdict::Return => nft::Verdict::Return,
            _ => nft::Verdict::Drop,
        })
    });
    list::ElementInfo {
        last: last.or_else(|| interval.then(|| first.clone())),
        key: first,
        data,
    }
}
