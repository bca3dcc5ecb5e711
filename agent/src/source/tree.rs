//! A YAML or JSON document that remembers where every node was.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A node and where it was.
pub type Located = Spanned<Tree>;

/// A node of a document.
#[derive(Debug)]
pub enum Tree {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Located>),
    /// A mapping, in the order written.
    Map(Vec<(Spanned<String>, Located)>),
}

impl Tree {
    /// The same without places.
    pub fn to_value(&self) -> Value {
        match self {
            Tree::Null => Value::Null,
            Tree::Bool(truth) => Value::Bool(*truth),
            Tree::Number(number) => Value::Number(number.clone()),
            Tree::Text(text) => Value::String(text.clone()),
            Tree::List(items) => {
                Value::Array(items.iter().map(|item| item.value.to_value()).collect())
            }
            Tree::Map(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, node)| (name.value.clone(), node.value.to_value()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    /// The field called `name`.
    pub fn field(&self, name: &str) -> Option<&Located> {
        match self {
            Tree::Map(fields) => fields
                .iter()
                .find(|(key, _)| key.value == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }
}

/// Line and column of the node at `path` (as in `spec.peers[1].asn`), or of the closest node above it that exists.
/// With `of_key` the place of the field's name is meant, else that of its value.
pub fn locate(root: &Located, path: &str, of_key: bool) -> (u32, u32) {
    let mut place = &root.referenced;
    let mut node = &root.value;
    let mut rest = path;
    'down: while !rest.is_empty() {
        match node {
            Tree::Map(fields) => {
                // Names may contain dots, so that the longest name that fits is the one that is meant.
                let mut fitting: Vec<_> = fields
                    .iter()
                    .filter_map(|(key, node)| Some((key, node, after(rest, &key.value)?)))
                    .collect();
                fitting.sort_by_key(|(key, ..)| std::cmp::Reverse(key.value.len()));
                let Some((key, next, tail)) = fitting.into_iter().next() else {
                    break 'down;
                };
                let last = tail.is_empty();
                place = if last && of_key {
                    &key.referenced
                } else {
                    &next.referenced
                };
                (node, rest) = (&next.value, tail);
            }
            Tree::List(items) => {
                let Some((index, tail)) =
                    rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
                else {
                    break;
                };
                let Some(next) = index.parse().ok().and_then(|index: usize| items.get(index))
                else {
                    break;
                };
                place = &next.referenced;
                (node, rest) = (&next.value, tail.strip_prefix('.').unwrap_or(tail));
            }
            _ => break,
        }
    }
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (small(place.line()), small(place.column()))
}

/// What follows `name` at the start of a path.
fn after<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(name)?;
    if rest.is_empty() || rest.starts_with('[') {
        return Some(rest);
    }
    rest.strip_prefix('.')
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nodes)
    }
}

struct Nodes;

impl<'de> Visitor<'de> for Nodes {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Number::from_f64(number).map_or_else(|| Tree::Text(number.to_string()), Tree::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Tree, E> {
        Ok(Tree::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = fields.next_key()? {
            map.push((key, fields.next_value()?));
        }
        Ok(Tree::Map(map))
    }
}
