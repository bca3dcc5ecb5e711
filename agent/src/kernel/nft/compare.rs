//! Whether the kernel's table is the plan: every set, element, chain and rule, nothing more.

use std::collections::{HashMap, HashSet};

use selvage_netlink::{
    Error, Socket,
    nft::{self, list},
};
use selvage_policy::plan::{Chain, Plan, Set};

use super::translate;

/// Reads the table back, cheapest part first, and stops at the first difference.
pub(super) fn equal(socket: &mut Socket, plan: &Plan) -> Result<bool, Error> {
    let table = nft::Table::inet(plan.table.as_str());
    let family = nft::Family::Inet as u8;
    let there = list::tables(socket)?;
    if !there
        .iter()
        .any(|t| t.family == family && t.name == table.name)
    {
        return Ok(false);
    }
    Ok(equal_chains(socket, &table, plan)?
        && equal_rules(socket, &table, plan)?
        && equal_sets(socket, &table, plan)?)
}

fn equal_chains(socket: &mut Socket, table: &nft::Table<'_>, plan: &Plan) -> Result<bool, Error> {
    let listed = list::chains(socket, table)?;
    let wanted: HashMap<&str, &Chain> = plan
        .chains
        .iter()
        .map(|(name, chain)| (name.as_str(), chain))
        .collect();
    Ok(listed.len() == wanted.len()
        && listed.iter().all(|chain| {
            let wanted = wanted.get(chain.name.as_str());
            wanted.is_some_and(|wanted| wanted.base.as_ref().map(translate::base) == chain.base)
        }))
}

fn equal_rules(socket: &mut Socket, table: &nft::Table<'_>, plan: &Plan) -> Result<bool, Error> {
    let mut listed: HashMap<String, Vec<list::RuleInfo>> = HashMap::new();
    for rule in list::rules(socket, table, None)? {
        listed.entry(rule.chain.clone()).or_default().push(rule);
    }
    Ok(plan.chains.iter().all(|(name, chain)| {
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

fn equal_sets(socket: &mut Socket, table: &nft::Table<'_>, plan: &Plan) -> Result<bool, Error> {
    let listed = list::sets(socket, table)?;
    if listed.len() != plan.sets.len() {
        return Ok(false);
    }
    let wanted: HashMap<&str, &Set> = plan
        .sets
        .iter()
        .map(|(name, set)| (name.as_str(), set))
        .collect();
    for set in &listed {
        let Some(wanted) = wanted.get(set.name.as_str()) else {
            return Ok(false);
        };
        let types = translate::key_types(wanted.def.key);
        if !set.matches(&translate::set(&set.name, &wanted.def, &types)) {
            return Ok(false);
        }
        let elements = list::elements(socket, table, set)?;
        if !equal_elements(elements, wanted) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_elements(listed: Vec<list::ElementInfo>, wanted: &Set) -> bool {
    if listed.len() != wanted.elements.len() {
        return false;
    }
    let listed: HashSet<list::ElementInfo> = listed.into_iter().collect();
    wanted.elements.iter().all(|(key, verdict)| {
        let (first, last) = translate::span(key);
        let data = verdict.as_ref().map(|verdict| {
            let owned = match translate::verdict(verdict) {
                nft::Verdict::Jump(chain) => nft::Verdict::Jump(chain.to_owned()),
                nft::Verdict::Accept => nft::Verdict::Accept,
                nft::Verdict::Return => nft::Verdict::Return,
                _ => nft::Verdict::Drop,
            };
            list::ElementData::Verdict(owned)
        });
        let last = last.or_else(|| wanted.def.interval.then(|| first.clone()));
        let key = first;
        listed.contains(&list::ElementInfo { key, last, data })
    })
}
