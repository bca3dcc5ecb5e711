//! A table that the thread keeps whole: it knows what the table should be, and heals it without asking anybody.

use std::sync::Arc;

use selvage_netlink::{
    Error, Socket,
    nft::{self, Transaction},
};

use super::{
    plan::WholeTable,
    reconcile::{self, Loaded},
};

/// A table and how far the kernel has it.
#[derive(Debug)]
pub(super) struct KeptTable {
    plan: WholeTable,
    /// The plan that the kernel took last; `None` when that is not known.
    in_kernel: Option<WholeTable>,
    /// The newest plan is not in the kernel, or may have been damaged there.
    due: bool,
}

impl KeptTable {
    /// A table that the kernel may have in any state.
    pub(super) fn new(plan: WholeTable) -> Self {
        KeptTable {
            plan,
            in_kernel: None,
            due: true,
        }
    }

    /// Another plan for the same table.
    pub(super) fn set(&mut self, plan: WholeTable) {
        self.plan = plan;
        self.due = true;
    }

    /// Somebody else may have changed the table.
    pub(super) fn doubt(&mut self) {
        self.in_kernel = None;
        self.due = true;
    }

    /// Whether [`KeptTable::apply`] has something to do.
    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// Makes it so: by the elements that differ from the last plan where only those do, else by a look at the table.
    pub(super) fn apply(
        &mut self,
        socket: &mut Socket,
        transaction: &mut Transaction,
    ) -> Result<Loaded, Error> {
        let known = self.in_kernel.take();
        if let Some(before) = known.filter(|before| before.has_the_frame_of(&self.plan)) {
            transaction.clear();
            difference(transaction, &before, &self.plan);
            // A refusal means that the kernel does not have what we believed.
            if transaction.commit(socket).is_ok() {
                self.taken();
                return Ok(Loaded::Unchanged);
            }
        }
        let loaded = reconcile::reconcile(socket, transaction, &self.plan)?;
        self.taken();
        Ok(loaded)
    }

    fn taken(&mut self) {
        self.in_kernel = Some(self.plan.clone());
        self.due = false;
    }
}

/// Elements only. A set of ranges is emptied and filled again: the kernel may refuse a range that overlaps one that
/// goes in the same transaction.
fn difference(transaction: &mut Transaction, from: &WholeTable, to: &WholeTable) {
    let table = nft::Table::inet(&to.name);
    for ((name, before), after) in from.sets.iter().zip(to.sets.values()) {
        if Arc::ptr_eq(&before.elements, &after.elements) || before.elements == after.elements {
            continue;
        }
        let set = after.kind.named(name);
        if after.kind.interval {
            transaction.flush_set(&table, name);
            transaction.add_elements(&table, &set, after.elements.iter().map(|e| e.element()));
            continue;
        }
        let gone = before.elements.difference(&after.elements);
        transaction.delete_elements(&table, &set, gone.map(|element| element.deletion()));
        let new = after.elements.difference(&before.elements);
        transaction.add_elements(&table, &set, new.map(|element| element.element()));
    }
}
