//! Writing the table: a whole plan, or the operations of a delta, each in one transaction.

use std::{collections::HashMap, fmt};

use selvage_netlink::{
    Error, Protocol, Socket,
    nft::{self, Data, Element, Span, Transaction},
};
use selvage_policy::plan::{Chain, Key, Name, Op, Plan, SetDef, Verdict};

use super::{
    compare::{self, Comparison, Difference},
    translate,
};

/// The table as far as its writer must know it.
#[derive(Debug)]
pub struct NftTable {
    socket: Socket,
    transaction: Transaction,
    name: Name,
    /// The kinds of the sets that the kernel has: an element is encoded by its set.
    sets: HashMap<Name, SetDef>,
}

/// What loading a plan took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loaded {
    /// The kernel had it already.
    Unchanged,
    /// It was not what it should have been, and was changed or written anew.
    Replaced,
}

/// A transaction that the kernel did not take. Nothing of it is in effect, unless the
/// conversation itself failed: then it is unknown.
#[derive(Debug)]
pub struct Misapplied {
    /// Position of the operation that was refused, and what it was; none if it was the whole.
    pub op: Option<(usize, String)>,
    /// What went wrong.
    pub error: Error,
}

impl fmt::Display for Misapplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.op {
            Some((_, op)) => write!(f, "{op}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl std::error::Error for Misapplied {}

impl From<Error> for Misapplied {
    fn from(error: Error) -> Self {
        Misapplied { op: None, error }
    }
}

impl NftTable {
    /// A writer in the calling thread's network namespace, which knows nothing of the table yet.
    pub fn open() -> Result<Self, Error> {
        Ok(NftTable {
            socket: Socket::open(Protocol::Netfilter)?,
            transaction: Transaction::new(),
            name: Name::default(),
            sets: HashMap::new(),
        })
    }

    /// The port of the writing socket: changes that carry it are ours.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// The name of the table; empty before the first plan.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Makes the kernel's table equal to the plan: by one transaction, or by none if it is.
    pub fn load(&mut self, plan: &Plan) -> Result<Loaded, Misapplied> {
        self.name = plan.table.clone();
        let loaded = match compare::compare(&mut self.socket, plan)? {
            Comparison::Equal => Loaded::Unchanged,
            Comparison::Differs(difference) => {
                if let Err(error) = self.change(plan, difference) {
                    tracing::warn!(%error, "nft: the table cannot be changed, it is written anew");
                    self.replace(plan)?;
                }
                Loaded::Replaced
            }
            Comparison::Strange => {
                self.replace(plan)?;
                Loaded::Replaced
            }
        };
        self.sets = definitions(plan);
        Ok(loaded)
    }

    /// From what is there to the plan, with what both have left alone.
    fn change(&mut self, plan: &Plan, difference: Difference<'_>) -> Result<(), Misapplied> {
        self.transaction.clear();
        self.sets = definitions(plan);
        let sets = difference.add_sets.into_iter();
        let chains = difference.add_chains.into_iter();
        let new: Vec<Op> = sets
            .map(|(name, set)| Op::AddSet(name.clone(), set.def))
            .chain(chains.map(|(name, chain)| Op::AddChain(name.clone(), chain.clone())))
            .collect();
        self.push_all(&new);
        for (name, set, surplus) in &difference.del_elements {
            let types = translate::key_types(set.def.key);
            let elements = surplus.iter().map(|element| Element {
                span: match &element.last {
                    Some(last) => Span::Range(&element.key, last),
                    None => Span::One(&element.key),
                },
                data: None,
            });
            let table = nft::Table::inet(plan.table.as_str());
            let set = translate::set(name.as_str(), &set.def, &types);
            self.transaction.delete_elements(&table, &set, elements);
        }
        let elements = difference.add_elements.into_iter().flat_map(|(name, all)| {
            all.into_iter()
                .map(|(key, verdict)| Op::AddElem(name.clone(), key.clone(), verdict.clone()))
        });
        let elements: Vec<Op> = elements.collect();
        self.push_all(&elements);
        let table = nft::Table::inet(plan.table.as_str());
        for chain in &difference.del_chains {
            self.transaction.flush_chain(&table, chain);
        }
        for chain in &difference.del_chains {
            self.transaction.delete_chain(&table, chain);
        }
        for set in &difference.del_sets {
            self.transaction.delete_set(&table, set);
        }
        self.commit(&[], &[])
    }

    /// Carries out the operations of a delta.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), Misapplied> {
        self.transaction.clear();
        let starts = self.push_all(ops);
        self.commit(ops, &starts)
    }

    fn replace(&mut self, plan: &Plan) -> Result<(), Misapplied> {
        self.transaction.clear();
        self.sets.clear();
        let name = self.name.clone();
        self.transaction
            .reset_table(&nft::Table::inet(name.as_str()));
        let ops = plan.ops();
        let starts = self.push_all(&ops);
        self.commit(&ops, &starts)
    }

    /// Appends operations; where each message of the transaction begins, and with which of them.
    fn push_all(&mut self, ops: &[Op]) -> Vec<(usize, usize)> {
        let mut starts = Vec::new();
        let mut index = 0;
        while let Some(op) = ops.get(index) {
            starts.push((self.transaction.len(), index));
            index += self.push(op, ops.get(index..).unwrap_or_default());
        }
        starts
    }

    fn commit(&mut self, ops: &[Op], starts: &[(usize, usize)]) -> Result<(), Misapplied> {
        let report = self.transaction.try_commit(&mut self.socket)?;
        let Some(failure) = report.failures.into_iter().next() else {
            return Ok(());
        };
        let before = starts.partition_point(|(message, _)| *message <= failure.index);
        let start = before.checked_sub(1).and_then(|at| starts.get(at));
        let op = start
            .filter(|_| failure.index < self.transaction.len())
            .and_then(|(_, index)| Some((*index, describe(ops.get(*index)?))));
        Err(Misapplied {
            op,
            error: failure.into(),
        })
    }

    /// Appends the first of `ops` to the transaction, with those after it that can share its
    /// message. Returns how many those are.
    fn push(&mut self, op: &Op, ops: &[Op]) -> usize {
        let name = self.name.clone();
        let table = nft::Table::inet(name.as_str());
        match op {
            Op::AddSet(name, def) => {
                let key = translate::key_types(def.key);
                self.transaction
                    .add_set(&table, &translate::set(name.as_str(), def, &key));
                self.sets.insert(name.clone(), *def);
            }
            Op::AddChain(name, chain) => self.push_chain(&table, name, chain),
            Op::DelChain(name) => {
                self.transaction.flush_chain(&table, name.as_str());
                self.transaction.delete_chain(&table, name.as_str());
            }
            Op::DelSet(name) => {
                self.transaction.delete_set(&table, name.as_str());
                self.sets.remove(name);
            }
            Op::AddElem(set, ..) => {
                let same = |op: &Op| match op {
                    Op::AddElem(name, key, verdict) if name == set => {
                        Some((key.clone(), verdict.clone()))
                    }
                    _ => None,
                };
                let elements: Vec<_> = ops.iter().map_while(same).collect();
                self.push_elements(&table, set, &elements, true);
                return elements.len();
            }
            Op::DelElem(set, _) => {
                let same = |op: &Op| match op {
                    Op::DelElem(name, key) if name == set => Some((key.clone(), None)),
                    _ => None,
                };
                let elements: Vec<_> = ops.iter().map_while(same).collect();
                self.push_elements(&table, set, &elements, false);
                return elements.len();
            }
        }
        1
    }

    fn push_chain(&mut self, table: &nft::Table<'_>, name: &Name, chain: &Chain) {
        match &chain.base {
            Some(base) => {
                self.transaction
                    .add_base_chain(table, name.as_str(), &translate::base(base));
            }
            None => self.transaction.add_chain(table, name.as_str()),
        }
        for rule in &chain.rules {
            self.transaction
                .add_rule(table, name.as_str(), &translate::rule(rule), None);
        }
    }

    fn push_elements(
        &mut self,
        table: &nft::Table<'_>,
        name: &Name,
        elements: &[(Key, Option<Verdict>)],
        add: bool,
    ) {
        // A set that is not known cannot be in a delta that fits: the kernel will refuse it.
        let unknown = SetDef {
            key: selvage_policy::plan::KeyType::Port,
            verdicts: false,
            interval: false,
        };
        let def = self.sets.get(name).copied().unwrap_or(unknown);
        let types = translate::key_types(def.key);
        let set = translate::set(name.as_str(), &def, &types);
        let spans: Vec<_> = elements
            .iter()
            .map(|(key, _)| translate::span(key))
            .collect();
        let encoded = spans
            .iter()
            .zip(elements)
            .map(|((first, last), (_, verdict))| Element {
                span: match last {
                    Some(last) => Span::Range(first, last),
                    None => Span::One(first),
                },
                data: verdict
                    .as_ref()
                    .map(|v| Data::Verdict(translate::verdict(v))),
            });
        match add {
            true => self.transaction.add_elements(table, &set, encoded),
            false => self.transaction.delete_elements(table, &set, encoded),
        }
    }
}

fn definitions(plan: &Plan) -> HashMap<Name, SetDef> {
    let sets = plan.sets.iter();
    sets.map(|(name, set)| (name.clone(), set.def)).collect()
}

/// An operation for people: sets and chains by name, no long lists.
fn describe(op: &Op) -> String {
    match op {
        Op::AddSet(name, _) => format!("add set {name}"),
        Op::AddChain(name, _) => format!("add chain {name}"),
        Op::AddElem(name, key, _) => format!("add element {key:?} (or one after it) to {name}"),
        Op::DelElem(name, key) => format!("delete element {key:?} (or one after it) from {name}"),
        Op::DelChain(name) => format!("delete chain {name}"),
        Op::DelSet(name) => format!("delete set {name}"),
    }
}
