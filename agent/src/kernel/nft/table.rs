//! The policy table: a whole plan, or the operations of a delta, each in one transaction.

use std::{collections::HashMap, fmt};

use selvage_netlink::{
    Error, Protocol, Socket,
    nft::{self, Transaction, list::ElementInfo},
};
use selvage_policy::plan::{Name, Op, Plan, SetDef};

use super::{
    compare,
    plan::{TablePlan, WholeTable},
    reconcile::{self, Loaded},
    translate,
};

/// A transaction of more bytes does not keep its memory.
const LARGE: usize = 1 << 20;

/// The policy table as far as its writer must know it.
#[derive(Debug)]
pub struct NftTable {
    pub(super) socket: Socket,
    pub(super) transaction: Transaction,
    /// The kinds of the sets that the kernel has: an element is encoded by its set.
    sets: HashMap<Name, SetDef>,
    /// What stands in a packet's way of the plan that was loaded last.
    skeleton: WholeTable,
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
            sets: HashMap::new(),
            skeleton: WholeTable::default(),
        })
    }

    /// The port of the writing socket: changes that carry it are ours.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// The name of the table; empty before the first plan.
    pub fn name(&self) -> &str {
        &self.skeleton.name
    }

    /// Makes the kernel's table equal to the plan.
    pub fn load(&mut self, plan: &Plan) -> Result<Loaded, Misapplied> {
        self.skeleton = WholeTable::skeleton(plan);
        let loaded = reconcile::reconcile(&mut self.socket, &mut self.transaction, plan)?;
        if self.transaction.size() > LARGE {
            // What it took to write all of a large cluster's elements at once is not needed again soon.
            self.transaction = Transaction::new();
        }
        let sets = plan.sets.iter();
        self.sets = sets.map(|(name, set)| (name.clone(), set.def)).collect();
        Ok(loaded)
    }

    /// Makes another table of ours equal to its plan, once.
    pub fn load_once(&mut self, plan: &dyn TablePlan) -> Result<Loaded, Error> {
        reconcile::reconcile(&mut self.socket, &mut self.transaction, plan)
    }

    /// Closes the table until its plan comes: base chains without any pod, so that no packet from or to a pod passes.
    /// Nothing is written before the first plan.
    pub fn close(&mut self) -> Result<(), Error> {
        if self.skeleton.name.is_empty() {
            return Ok(());
        }
        self.transaction.clear();
        reconcile::replace(&mut self.transaction, &self.skeleton);
        self.transaction.commit(&mut self.socket)
    }

    /// Whether base chains stand as the plan that was loaded last has them.
    pub fn has_base_chains(&mut self) -> Result<bool, Error> {
        compare::has_chains(&mut self.socket, &self.skeleton)
    }

    /// Carries out the operations of a delta.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), Misapplied> {
        self.transaction.clear();
        let starts = self.push_all(ops);
        self.commit(ops, &starts)
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
        let name = self.skeleton.name.clone();
        let table = nft::Table::inet(&name);
        match op {
            Op::AddSet(name, def) => {
                let kind = translate::kind(def);
                self.transaction.add_set(&table, &kind.named(name.as_str()));
                self.sets.insert(name.clone(), *def);
            }
            Op::AddChain(name, chain) => {
                let chain = translate::chain(chain);
                match &chain.base {
                    Some(base) => self.transaction.add_base_chain(&table, name.as_str(), base),
                    None => self.transaction.add_chain(&table, name.as_str()),
                }
                for rule in &chain.rules {
                    self.transaction.add_rule(&table, name.as_str(), rule, None);
                }
            }
            Op::DelChain(name) => {
                self.transaction.flush_chain(&table, name.as_str());
                self.transaction.delete_chain(&table, name.as_str());
            }
            Op::DelSet(name) => {
                self.transaction.delete_set(&table, name.as_str());
                self.sets.remove(name);
            }
            Op::AddElem(set, ..) => {
                let interval = self.interval(set);
                let same = |op: &Op| match op {
                    Op::AddElem(name, key, verdict) if name == set => {
                        Some(translate::element(key, verdict.as_ref(), interval))
                    }
                    _ => None,
                };
                let elements: Vec<_> = ops.iter().map_while(same).collect();
                self.push_elements(&table, set, &elements, true);
                return elements.len();
            }
            Op::DelElem(set, _) => {
                let interval = self.interval(set);
                let same = |op: &Op| match op {
                    Op::DelElem(name, key) if name == set => {
                        Some(translate::element(key, None, interval))
                    }
                    _ => None,
                };
                let elements: Vec<_> = ops.iter().map_while(same).collect();
                self.push_elements(&table, set, &elements, false);
                return elements.len();
            }
        }
        1
    }

    fn interval(&self, set: &Name) -> bool {
        self.sets.get(set).is_some_and(|def| def.interval)
    }

    fn push_elements(
        &mut self,
        table: &nft::Table<'_>,
        name: &Name,
        elements: &[ElementInfo],
        add: bool,
    ) {
        // A set that is not known cannot be in a delta that fits: the kernel will refuse it.
        let unknown = SetDef {
            key: selvage_policy::plan::KeyType::Port,
            verdicts: false,
            interval: false,
        };
        let kind = translate::kind(self.sets.get(name).unwrap_or(&unknown));
        let set = kind.named(name.as_str());
        if add {
            let elements = elements.iter().map(ElementInfo::element);
            self.transaction.add_elements(table, &set, elements);
        } else {
            let elements = elements.iter().map(ElementInfo::deletion);
            self.transaction.delete_elements(table, &set, elements);
        }
    }
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
