//! The last few attribute fields of a session and what they meant.
//!
//! Senders announce many prefixes with the same attributes in a row of messages. Equal bytes then give the same value,
//! which saves decoding here and comparing in the RIB. What is kept is bounded: a few entries of bounded size.

use std::sync::Arc;

use super::attr::PathAttributes;

const ENTRIES: usize = 8;
const LONGEST: usize = 1024;

/// Recently decoded attributes of one session.
#[derive(Default, Debug)]
pub struct AttributeCache {
    entries: Vec<Entry>,
    next: usize,
}

#[derive(Debug)]
struct Entry {
    /// The start of MP_REACH_NLRI up to the prefixes, or nothing for IPv4 in the classic fields.
    mp_reach: Vec<u8>,
    /// All other attributes.
    rest: Vec<u8>,
    attrs: Arc<PathAttributes>,
}

impl AttributeCache {
    /// What these bytes meant, if they were seen lately.
    pub(crate) fn get(&self, mp_reach: &[u8], rest: &[u8]) -> Option<&Arc<PathAttributes>> {
        self.entries
            .iter()
            .find(|e| e.rest == rest && e.mp_reach == mp_reach)
            .map(|e| &e.attrs)
    }

    /// Notes what these bytes mean. They must be without fault.
    pub(crate) fn insert(&mut self, mp_reach: &[u8], rest: &[u8], attrs: &Arc<PathAttributes>) {
        if rest.len() > LONGEST {
            return;
        }
        match self.entries.get_mut(self.next) {
            Some(e) => {
                e.mp_reach.clear();
                e.mp_reach.extend_from_slice(mp_reach);
                e.rest.clear();
                e.rest.extend_from_slice(rest);
                e.attrs = attrs.clone();
            }
            None => self.entries.push(Entry {
                mp_reach: mp_reach.to_vec(),
                rest: rest.to_vec(),
                attrs: attrs.clone(),
            }),
        }
        self.next = (self.next + 1) % ENTRIES;
    }
}
