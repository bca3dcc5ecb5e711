//! Who changed which of our tables: changes and the generation that names their maker are brought together.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use selvage_netlink::nft::{Change, Family, NftEvent, Object};

/// The generation of a transaction follows its changes at once; changes without one are a stranger's after this time.
const NAMELESS: Duration = Duration::from_millis(50);

/// A table that another program of ours writes; changes by anybody else are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared {
    /// The table, of family inet.
    pub table: &'static str,
    /// The names of the programs and threads that may write it, as the kernel shows them.
    pub writers: &'static [&'static str],
}

/// What was heard and not yet told.
#[derive(Debug, Default)]
pub(super) struct Witness {
    shared: Vec<Shared>,
    /// Tables that the socket with this port has changed, in a transaction whose generation has not come.
    open: BTreeMap<u32, BTreeSet<String>>,
    open_since: Option<Instant>,
    /// Tables that others have changed, and their names.
    changed: BTreeMap<String, BTreeSet<String>>,
    /// Somebody else's table or base chain came, changed or went.
    hooks: bool,
    lost: bool,
}

/// What others did since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Notifications were lost: any table may have been changed.
    pub lost: bool,
    /// Base chains of others may have come, changed or gone.
    pub hooks: bool,
    /// Changed tables, and the programs that changed them, for people.
    pub changed: BTreeMap<String, String>,
}

impl Witness {
    pub(super) fn new(shared: Vec<Shared>) -> Self {
        Witness {
            shared,
            ..Witness::default()
        }
    }

    /// Tables that only are watched.
    pub(super) fn shared(&self) -> impl Iterator<Item = &'static str> {
        self.shared.iter().map(|shared| shared.table)
    }

    /// Takes a notification. `ours`: whether a table is written by this thread.
    pub(super) fn hear(&mut self, event: NftEvent, now: Instant, ours: impl Fn(&str) -> bool) {
        match event {
            NftEvent::Overrun => self.lost = true,
            NftEvent::Change(Change {
                object,
                gone,
                family,
                table,
                chain,
                port,
            }) => {
                // A base chain that goes need not say that it was one.
                let hooked = chain.is_some_and(|(_, hooked)| hooked || gone);
                self.hooks |= hooked || (object == Object::Table && gone);
                let known = ours(&table) || self.shared().any(|shared| shared == table);
                if family == Family::Inet as u8 && known {
                    self.open.entry(port).or_default().insert(table);
                    self.open_since.get_or_insert(now);
                }
            }
            NftEvent::Generation { name, port, .. } => {
                for table in self.open.remove(&port).unwrap_or_default() {
                    let may = |shared: &Shared| {
                        shared.table == table && shared.writers.contains(&name.as_str())
                    };
                    if !self.shared.iter().any(may) {
                        self.changed.entry(table).or_default().insert(name.clone());
                    }
                }
                if self.open.is_empty() {
                    self.open_since = None;
                }
            }
        }
    }

    /// The reading failed: what was heard is not all.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    /// When to look again though nothing may come.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open_since.map(|since| since + NAMELESS)
    }

    /// What was heard since the last call.
    pub(super) fn take(&mut self, now: Instant) -> Heard {
        if self.deadline().is_some_and(|at| at <= now) {
            self.open_since = None;
            for table in std::mem::take(&mut self.open).into_values().flatten() {
                self.changed.entry(table).or_default();
            }
        }
        let changed = std::mem::take(&mut self.changed).into_iter();
        let named = |names: BTreeSet<String>| match names.is_empty() {
            true => "a program that the kernel did not name".to_owned(),
            false => names.into_iter().collect::<Vec<_>>().join(", "),
        };
        Heard {
            lost: std::mem::take(&mut self.lost),
            hooks: std::mem::take(&mut self.hooks),
            changed: changed.map(|(table, by)| (table, named(by))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Shared = Shared {
        table: "selvage-cni",
        writers: &["selvage-cni", "host-ports"],
    };

    fn change(table: &str, family: Family, port: u32) -> NftEvent {
        NftEvent::Change(Change {
            object: Object::Rule,
            gone: true,
            family: family as u8,
            table: table.into(),
            chain: None,
            port,
        })
    }

    fn generation(name: &str, port: u32) -> NftEvent {
        NftEvent::Generation {
            id: 1,
            pid: 1,
            name: name.into(),
            port,
        }
    }

    fn heard(events: Vec<NftEvent>) -> Vec<(String, String)> {
        let now = Instant::now();
        let mut witness = Witness::new(vec![SHARED]);
        for event in events {
            witness.hear(event, now, |table| table.starts_with("selvage"));
        }
        witness.take(now).changed.into_iter().collect()
    }

    #[test]
    fn a_change_is_told_with_the_name_of_its_maker() {
        let told = heard(vec![
            change("selvage-nat", Family::Inet, 7),
            change("selvage", Family::Inet, 8),
            change("theirs", Family::Inet, 7),
            change("selvage", Family::Ipv4, 7),
            generation("nft", 7),
            generation("firewalld", 8),
        ]);
        let told: Vec<_> = told.iter().map(|(t, b)| (t.as_str(), b.as_str())).collect();
        assert_eq!(told, [("selvage", "firewalld"), ("selvage-nat", "nft")]);
    }

    #[test]
    fn the_writer_of_a_shared_table_is_no_stranger_there_but_elsewhere() {
        let own = vec![
            change("selvage-cni", Family::Inet, 7),
            change("selvage-nat", Family::Inet, 7),
            generation("selvage-cni", 7),
        ];
        assert_eq!(heard(own), [("selvage-nat".into(), "selvage-cni".into())]);
        let foreign = vec![change("selvage-cni", Family::Inet, 7), generation("nft", 7)];
        assert_eq!(heard(foreign), [("selvage-cni".into(), "nft".into())]);
    }

    #[test]
    fn a_change_without_a_generation_is_told_after_a_moment() {
        let now = Instant::now();
        let mut witness = Witness::new(Vec::new());
        witness.hear(change("selvage", Family::Inet, 7), now, |_| true);
        assert_eq!(witness.take(now), Heard::default());
        let later = witness.deadline().unwrap();
        assert_eq!(witness.take(later).changed.len(), 1);
        assert_eq!(witness.deadline(), None);
    }
}
