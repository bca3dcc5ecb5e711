//! A transaction: all of it takes effect at one moment, or none.

use super::element::Element;
use super::set::Set;
use super::{
    Base, DELCHAIN, DELRULE, DELSET, DELSETELEM, DELTABLE, Expr, NEWCHAIN, NEWRULE, NEWSET,
    NEWSETELEM, NEWTABLE, SUBSYSTEM, Table, comment, header,
};
use crate::attr::Body;
use crate::batch::{APPEND, Batch, CREATE, EXCL};
use crate::error::{Error, Failure, Result};
use crate::socket::{Report, Socket};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;

/// Elements of one message stop here: the attribute around them ends at 64 KiB.
const ELEMENTS_BYTES: usize = 60_000;

/// Changes to tables, to be made at once.
///
/// Failures carry the position of their message; an operation is one message, but many elements
/// are several. Note [`len`](Self::len) before each operation to map back.
#[derive(Debug, Clone)]
pub struct Transaction {
    batch: Batch,
    next_set: u32,
}

impl Default for Transaction {
    fn default() -> Self {
        Self::new()
    }
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Self {
        let mut batch = Batch::new();
        batch.push(BATCH_BEGIN, 0, |body| header(body, 0, SUBSYSTEM >> 8));
        Self { batch, next_set: 1 }
    }

    /// Forgets the changes and keeps the memory.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.batch
            .push(BATCH_BEGIN, 0, |body| header(body, 0, SUBSYSTEM >> 8));
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.batch.len() - 1
    }

    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.batch.size()
    }

    /// Adds a table if it is not there.
    pub fn add_table(&mut self, table: &Table<'_>) {
        self.push(table, NEWTABLE, CREATE, |body| {
            body.text(TABLE_NAME, table.name)
        });
    }

    /// Adds a table with a comment if it is not there.
    pub fn add_table_with(&mut self, table: &Table<'_>, text: &str) {
        self.push(table, NEWTABLE, CREATE, |body| {
            body.text(TABLE_NAME, table.name);
            user_comment(body, TABLE_USERDATA, text);
        });
    }

    /// Deletes a table with all that is in it; `ENOENT` if it is not there.
    pub fn delete_table(&mut self, table: &Table<'_>) {
        self.push(table, DELTABLE, 0, |body| body.text(TABLE_NAME, table.name));
    }

    /// Makes the table empty, whether it was there or not.
    pub fn reset_table(&mut self, table: &Table<'_>) {
        self.add_table(table);
        self.delete_table(table);
        self.add_table(table);
    }

    /// Adds a chain to jump to, if it is not there.
    pub fn add_chain(&mut self, table: &Table<'_>, name: &str) {
        self.push(table, NEWCHAIN, CREATE, |body| chain(body, table, name));
    }

    /// Adds a base chain; if it is there, its policy is set, and anything else that differs is
    /// refused (`EEXIST`).
    pub fn add_base_chain(&mut self, table: &Table<'_>, name: &str, base: &Base) {
        self.push(table, NEWCHAIN, CREATE, |body| {
            chain(body, table, name);
            body.nest(CHAIN_HOOK, |body| {
                body.be32(1, base.hook as u32);
                body.be32(2, base.priority.cast_unsigned());
            });
            body.be32(CHAIN_POLICY, u32::from(!base.drop));
            body.text(CHAIN_TYPE, base.kind.name());
        });
    }

    /// Deletes a chain with its rules; `EBUSY` while something jumps to it.
    pub fn delete_chain(&mut self, table: &Table<'_>, name: &str) {
        self.push(table, DELCHAIN, 0, |body| chain(body, table, name));
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(
        &mut self,
        table: &Table<'_>,
        chain: &str,
        expressions: &[Expr],
        text: Option<&str>,
    ) {
        self.push(table, NEWRULE, CREATE | APPEND, |body| {
            body.text(RULE_TABLE, table.name);
            body.text(RULE_CHAIN, chain);
            body.nest(RULE_EXPRESSIONS, |body| {
                expressions
                    .iter()
                    .for_each(|expression| expression.encode(body));
            });
            if let Some(text) = text {
                user_comment(body, RULE_USERDATA, text);
            }
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table<'_>, chain: &str) {
        self.push(table, DELRULE, 0, |body| {
            body.text(RULE_TABLE, table.name);
            body.text(RULE_CHAIN, chain);
        });
    }

    /// Deletes one rule by its handle.
    pub fn delete_rule(&mut self, table: &Table<'_>, chain: &str, handle: u64) {
        self.push(table, DELRULE, 0, |body| {
            body.text(RULE_TABLE, table.name);
            body.text(RULE_CHAIN, chain);
            body.be64(RULE_HANDLE, handle);
        });
    }

    /// Adds a set or map; `EEXIST` if one of this name is there.
    pub fn add_set(&mut self, table: &Table<'_>, set: &Set<'_>) {
        let id = self.next_set;
        self.next_set = id.wrapping_add(1).max(1);
        self.push(table, NEWSET, CREATE | EXCL, |body| {
            set.encode(body, table.name, id)
        });
    }

    /// Deletes a set with its elements; `EBUSY` while a rule uses it.
    pub fn delete_set(&mut self, table: &Table<'_>, name: &str) {
        self.push(table, DELSET, 0, |body| {
            body.text(SET_TABLE, table.name);
            body.text(SET_NAME, name);
        });
    }

    /// Adds elements; one that is there already is refused (`EEXIST`). Of `set` only name, key
    /// and kind matter. In as few messages as fit; none for no elements.
    pub fn add_elements<'e>(
        &mut self,
        table: &Table<'_>,
        set: &Set<'_>,
        elements: impl IntoIterator<Item = Element<'e>>,
    ) {
        self.elements(table, set, NEWSETELEM, CREATE | EXCL, elements);
    }

    /// Adds those elements that are not there yet; one of a map that leads elsewhere is refused (`EBUSY`), as is a
    /// range that overlaps another one. A transaction that is refused takes the kernel a grace period, this does not.
    pub fn ensure_elements<'e>(
        &mut self,
        table: &Table<'_>,
        set: &Set<'_>,
        elements: impl IntoIterator<Item = Element<'e>>,
    ) {
        self.elements(table, set, NEWSETELEM, CREATE, elements);
    }

    /// Deletes elements; one that is not there is refused (`ENOENT`).
    pub fn delete_elements<'e>(
        &mut self,
        table: &Table<'_>,
        set: &Set<'_>,
        elements: impl IntoIterator<Item = Element<'e>>,
    ) {
        self.elements(table, set, DELSETELEM, 0, elements);
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, table: &Table<'_>, name: &str) {
        self.push(table, DELSETELEM, 0, |body| {
            body.text(LIST_TABLE, table.name);
            body.text(LIST_SET, name);
        });
    }

    /// Makes all changes; the first refusal is the error, and then nothing was changed.
    pub fn commit(&mut self, socket: &mut Socket) -> Result<()> {
        self.try_commit(socket)?.into_result()
    }

    /// Makes all changes. A report with failures means that nothing was changed; each failure
    /// has the position of its message, and a position of [`len`](Self::len) means the
    /// transaction as a whole. The socket must not be subscribed to notifications.
    pub fn try_commit(&mut self, socket: &mut Socket) -> Result<Report> {
        if self.is_empty() {
            return Ok(Report::default());
        }
        if self.batch.overflow {
            return Err(Error::TooLong);
        }
        let (size, last) = (self.batch.size(), self.batch.len() - 1);
        self.batch
            .push(BATCH_END, 0, |body| header(body, 0, SUBSYSTEM >> 8));
        // On BATCH_END the acknowledgement never comes before Linux 6.10.
        self.batch.set_ack(last, true);
        let result = self.exchange(socket, last);
        self.batch.set_ack(last, false);
        self.batch.truncate(last + 1, size);
        result
    }

    fn exchange(&mut self, socket: &mut Socket, last: usize) -> Result<Report> {
        socket.reserve_send(self.batch.size())?;
        let first_seq = socket.take_seqs(self.batch.len());
        self.batch.number(first_seq);
        socket.send_range(&self.batch, 0, self.batch.len())?;
        let mut report = Report::default();
        let acknowledged = socket.collect_all(first_seq, last + 1, &mut report)?;
        if report.failures.is_empty() && !acknowledged {
            return Err(Error::NoReply);
        }
        let whole = self.len() - 1;
        for Failure { index, .. } in &mut report.failures {
            // Message 0 is BATCH_BEGIN: the kernel answers to it when the commit fails.
            *index = index.checked_sub(1).unwrap_or(whole);
        }
        Ok(report)
    }

    fn push(&mut self, table: &Table<'_>, kind: u16, flags: u16, fill: impl FnOnce(&mut Body<'_>)) {
        self.batch.push(SUBSYSTEM | kind, flags, |body| {
            header(body, table.family as u8, 0);
            fill(body);
        });
    }

    fn elements<'e>(
        &mut self,
        table: &Table<'_>,
        set: &Set<'_>,
        kind: u16,
        flags: u16,
        elements: impl IntoIterator<Item = Element<'e>>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.push(table, kind, flags, |body| {
                body.text(LIST_TABLE, table.name);
                body.text(LIST_SET, set.name);
                body.nest(LIST_ELEMENTS, |body| {
                    let start = body.position();
                    while body.position() - start < ELEMENTS_BYTES {
                        let Some(element) = elements.next() else {
                            return;
                        };
                        element.encode(body, set);
                    }
                });
            });
        }
    }
}

fn chain(body: &mut Body<'_>, table: &Table<'_>, name: &str) {
    body.text(CHAIN_TABLE, table.name);
    body.text(CHAIN_NAME, name);
}

fn user_comment(body: &mut Body<'_>, kind: u16, text: &str) {
    let mut user_data = Vec::new();
    comment(&mut user_data, 0, text);
    body.bytes(kind, &user_data);
}
