//! A table of nf_tables as data: what it should be, in the kernel's own words.
//!
//! [`TablePlan`] is what the reconciler needs to know of any table of ours. A table whose owner keeps its own mirror
//! (policy) implements the trait beside that mirror; one that the thread `nft` keeps whole is a [`WholeTable`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use selvage_netlink::nft::{self, Base, DataType, Expr, MapData, Verdict, list::ElementInfo};

/// A table of family inet as it should be. Names of chains and of sets are unique among their kind.
pub trait TablePlan {
    /// The name of the table.
    fn name(&self) -> &str;
    /// All chains with their rules, each name once.
    fn chains(&self) -> Vec<(&str, ChainPlan)>;
    /// All sets and maps without their elements, each name once.
    fn sets(&self) -> Vec<(&str, SetKind)>;
    /// The elements of a set as the kernel lists them; none if the plan has no such set.
    fn elements(&self, set: &str) -> Box<dyn Iterator<Item = ElementInfo> + '_>;
    /// The same in little room, for a set of plain keys that may be as large as the cluster; else `None`.
    fn large(&self, _set: &str) -> Option<Box<dyn LargeSet>> {
        None
    }
}

/// A set of plain keys as it should be.
pub trait LargeSet {
    /// How many elements it has.
    fn count(&self) -> usize;
    /// A number of the element with this key, below the count and of no other element. `None`: there is no such element.
    fn place(&self, key: &[u8]) -> Option<usize>;
}

/// A chain as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChainPlan {
    /// Where it hooks in; `None`: a chain to jump to.
    pub base: Option<Base>,
    /// The expressions of its rules, in order.
    pub rules: Vec<Vec<Expr>>,
}

/// What a set or map is, without its name and its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetKind {
    /// The types of the key's fields.
    pub key: Vec<DataType>,
    /// Elements are ranges.
    pub interval: bool,
    /// What a map maps to; `None`: a set.
    pub data: Option<MapKind>,
}

/// What a map maps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Verdicts.
    Verdict,
    /// Values of these types.
    Value(Vec<DataType>),
}

impl SetKind {
    /// The set as the kernel is told of it.
    pub fn named<'a>(&'a self, name: &'a str) -> nft::Set<'a> {
        nft::Set {
            interval: self.interval,
            data: self.data.as_ref().map(|data| match data {
                MapKind::Verdict => MapData::Verdict,
                MapKind::Value(types) => MapData::Value(types),
            }),
            ..nft::Set::hash(name, &self.key)
        }
    }
}

/// A set or map with its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPlan {
    /// What it is.
    pub kind: SetKind,
    /// Its elements. Shared with the plan before where nothing changed.
    pub elements: Arc<BTreeSet<ElementInfo>>,
}

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct WholeTable {
    /// Its name.
    pub name: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, ChainPlan>,
    /// Its sets and maps by name.
    pub sets: BTreeMap<String, SetPlan>,
}

impl WholeTable {
    /// Whether both are equal but for elements.
    pub fn has_the_frame_of(&self, other: &WholeTable) -> bool {
        self.name == other.name
            && self.chains == other.chains
            && self.sets.len() == other.sets.len()
            && self
                .sets
                .iter()
                .zip(&other.sets)
                .all(|((a, one), (b, another))| a == b && one.kind == another.kind)
    }

    /// The base chains of a plan, what their rules lead to, and the sets that those ask, without any element: what
    /// the table does to a packet of which nothing is known.
    pub fn skeleton(plan: &dyn TablePlan) -> WholeTable {
        let (mut waiting, mut rest): (Vec<_>, Vec<_>) = plan
            .chains()
            .into_iter()
            .partition(|(_, chain)| chain.base.is_some());
        let kinds: BTreeMap<&str, SetKind> = plan.sets().into_iter().collect();
        let mut skeleton = WholeTable {
            name: plan.name().to_owned(),
            ..WholeTable::default()
        };
        while let Some((name, chain)) = waiting.pop() {
            for expression in chain.rules.iter().flatten() {
                match expression {
                    Expr::Lookup { set, .. } => {
                        if let Some(kind) = kinds.get(set.as_str()) {
                            let empty = SetPlan {
                                kind: kind.clone(),
                                elements: Arc::default(),
                            };
                            skeleton.sets.insert(set.clone(), empty);
                        }
                    }
                    Expr::Verdict(Verdict::Jump(to) | Verdict::Goto(to)) => {
                        if let Some(at) = rest.iter().position(|(name, _)| name == to) {
                            waiting.push(rest.swap_remove(at));
                        }
                    }
                    _ => {}
                }
            }
            skeleton.chains.insert(name.to_owned(), chain);
        }
        skeleton
    }
}

impl TablePlan for WholeTable {
    fn name(&self) -> &str {
        &self.name
    }

    fn chains(&self) -> Vec<(&str, ChainPlan)> {
        self.chains
            .iter()
            .map(|(name, chain)| (name.as_str(), chain.clone()))
            .collect()
    }

    fn sets(&self) -> Vec<(&str, SetKind)> {
        self.sets
            .iter()
            .map(|(name, set)| (name.as_str(), set.kind.clone()))
            .collect()
    }

    fn elements(&self, set: &str) -> Box<dyn Iterator<Item = ElementInfo> + '_> {
        let set = self.sets.get(set);
        Box::new(set.into_iter().flat_map(|set| set.elements.iter().cloned()))
    }
}
