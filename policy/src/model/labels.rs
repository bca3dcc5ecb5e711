//! Labels of an object: sorted, immutable, shared.

use super::Shared;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Labels, sorted by key; a clone costs a reference count.
///
/// All of them lie in one piece of memory: for each pair the lengths of key and value, four bytes each, then both. A
/// box for each would take several times the room, and a cluster has as many as it has pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(Shared<[u8]>);

impl Labels {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = Pairs(&self.0);
        let (_, value) = pairs.find(|(own, _)| *own == key.as_bytes())?;
        std::str::from_utf8(value).ok()
    }

    /// Whether somebody else has a clone of them.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    /// All pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        // What was put in were strings.
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        Pairs(&self.0).map(move |(key, value)| (text(key), text(value)))
    }
}

/// Walks over the pairs.
struct Pairs<'a>(&'a [u8]);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, rest) = self.0.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value) as usize)?;
        self.0 = rest;
        Some((key, value))
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(map: BTreeMap<String, String>) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in map {
            // No object is as large as that.
            let (Ok(key_len), Ok(value_len)) =
                (u32::try_from(key.len()), u32::try_from(value.len()))
            else {
                continue;
            };
            bytes.extend(key_len.to_le_bytes());
            bytes.extend(value_len.to_le_bytes());
            bytes.extend(key.as_bytes());
            bytes.extend(value.as_bytes());
        }
        Labels(bytes.into())
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Labels {
    fn from(pairs: [(&str, &str); N]) -> Self {
        pairs
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect::<BTreeMap<_, _>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_what_was_put_in() {
        let none = Labels::default();
        assert_eq!((none.get("a"), none.iter().count()), (None, 0));
        assert_eq!(none, Labels::from(BTreeMap::new()));
        // Whatever bytes they have, no pair reads as another.
        let pairs = [
            ("a", "b\u{0}\u{1}c"),
            ("", "empty"),
            ("k\u{0}", ""),
            ("z", "ü"),
        ];
        let labels = Labels::from(pairs);
        for (key, value) in pairs {
            assert_eq!(labels.get(key), Some(value), "{key:?}");
        }
        assert_eq!(labels.get("b"), None);
        let mut sorted = pairs;
        sorted.sort_unstable();
        assert!(labels.iter().eq(sorted));
        assert_eq!(Labels::from(BTreeMap::from(labels.clone())), labels);
    }
}
