//! Reading tables back: to compare with what should be, and for counters.

use super::set::{DataType, FLAG_CONCAT, FLAG_INTERVAL, FLAG_MAP, TYPE_VERDICT, UDATA_COMMENT};
use super::{
    Base, ChainType, DATA_VALUE, DATA_VERDICT, Data, Element, Expr, GETCHAIN, GETGEN, GETRULE,
    GETSET, GETSETELEM, GETTABLE, Hook, NEWCHAIN, NEWGEN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE,
    NFGENMSG, SUBSYSTEM, Span, Table, Verdict, find_comment, get_value, header,
};
use crate::attr::{Attr, Attrs, Body, get_u8};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::socket::{Message, Socket};

/// A table as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableInfo {
    /// Name.
    pub name: String,
    /// `NFPROTO_*`.
    pub family: u8,
    /// The kernel's number.
    pub handle: u64,
    /// Comment.
    pub comment: Option<String>,
}

/// A chain as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainInfo {
    /// Name.
    pub name: String,
    /// The kernel's number.
    pub handle: u64,
    /// Where it stands, if it is a base chain of the hooks and types known here.
    pub base: Option<Base>,
    /// How many rules are in it and jump to it, together.
    pub uses: u32,
}

/// A set or map as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetInfo {
    /// Name.
    pub name: String,
    /// The kernel's number.
    pub handle: u64,
    /// `NFT_SET_*`.
    pub flags: u32,
    /// `nft`'s number of the key's type.
    pub key_type: u32,
    /// Length of a key in bytes.
    pub key_len: u32,
    /// `nft`'s number of the data's type, in a map.
    pub data_type: Option<u32>,
    /// Comment.
    pub comment: Option<String>,
}

impl SetInfo {
    /// Whether its elements are ranges.
    pub fn is_interval(&self) -> bool {
        self.flags & FLAG_INTERVAL != 0
    }

    /// Whether it is a map to verdicts.
    pub fn is_verdict_map(&self) -> bool {
        self.flags & FLAG_MAP != 0 && self.data_type == Some(TYPE_VERDICT)
    }

    /// Whether it has the same kind and types as the definition.
    pub fn matches(&self, set: &super::Set<'_>) -> bool {
        let data_type = set.data.map(|data| match data {
            super::MapData::Verdict => TYPE_VERDICT,
            super::MapData::Value(types) => super::set::number(types),
        });
        self.name == set.name
            && self.flags & !FLAG_CONCAT == set.flags() & !FLAG_CONCAT
            && self.key_type == super::set::number(set.key)
            && self.key_len == set.key_len()
            && self.data_type == data_type
    }
}

/// What an element maps to, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementData {
    /// A verdict.
    Verdict(Verdict),
    /// A value.
    Value(Vec<u8>),
}

/// An element as listed, ranges put together again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ElementInfo {
    /// The key; of a range the first.
    pub key: Vec<u8>,
    /// The last key of a range, included.
    pub last: Option<Vec<u8>>,
    /// What it maps to.
    pub data: Option<ElementData>,
}

impl ElementInfo {
    /// The element as it is written.
    pub fn element(&self) -> Element<'_> {
        Element {
            span: match &self.last {
                Some(last) => Span::Range(&self.key, last),
                None => Span::One(&self.key),
            },
            data: self.data.as_ref().map(|data| match data {
                ElementData::Verdict(verdict) => Data::Verdict(verdict.as_ref()),
                ElementData::Value(value) => Data::Value(value),
            }),
        }
    }

    /// The element as it is deleted: without what it maps to.
    pub fn deletion(&self) -> Element<'_> {
        Element {
            data: None,
            ..self.element()
        }
    }
}

/// A rule as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleInfo {
    /// The chain that it is in.
    pub chain: String,
    /// The kernel's number.
    pub handle: u64,
    /// What it does.
    pub expressions: Vec<Expr>,
    /// Comment.
    pub comment: Option<String>,
}

impl RuleInfo {
    /// Packets and bytes of its first counter.
    pub fn counter(&self) -> Option<(u64, u64)> {
        self.expressions
            .iter()
            .find_map(|expression| match expression {
                Expr::Counter { packets, bytes } => Some((*packets, *bytes)),
                _ => None,
            })
    }

    /// Whether it does what these expressions do, whatever its counters show.
    pub fn does(&self, expressions: &[Expr]) -> bool {
        self.expressions.len() == expressions.len()
            && self
                .expressions
                .iter()
                .zip(expressions)
                .all(|pair| match pair {
                    (Expr::Counter { .. }, Expr::Counter { .. }) => true,
                    (listed, wanted) => listed == wanted,
                })
    }
}

/// The number of the last transaction in the namespace, by whomever.
pub fn generation(socket: &mut Socket) -> Result<u32> {
    let build = |batch: &mut Batch| {
        batch.push(SUBSYSTEM | GETGEN, 0, |body| header(body, 0, 0));
    };
    socket.get(build, |message| {
        attrs(&message, NEWGEN)?
            .find(|attr| attr.kind == 1)
            .and_then(|attr| attr.be32())
    })
}

/// All tables of all families.
pub fn tables(socket: &mut Socket) -> Result<Vec<TableInfo>> {
    let build = |batch: &mut Batch| {
        batch.push(SUBSYSTEM | GETTABLE, 0, |body| header(body, 0, 0));
    };
    socket.list(build, |message| decode_table(&message))
}

/// The chains of a table; none if there is no such table.
pub fn chains(socket: &mut Socket, table: &Table<'_>) -> Result<Vec<ChainInfo>> {
    let build = |batch: &mut Batch| get(batch, table, GETCHAIN, |_| {});
    socket.list(build, |message| decode_chain(&message, table.name))
}

/// The base chains of all tables of all families: family (`NFPROTO_*`), table, chain.
pub fn base_chains(socket: &mut Socket) -> Result<Vec<(u8, String, ChainInfo)>> {
    let build = |batch: &mut Batch| {
        batch.push(SUBSYSTEM | GETCHAIN, 0, |body| header(body, 0, 0));
    };
    socket.list(build, |message| {
        let table = attrs(&message, NEWCHAIN)?.find(|attr| attr.kind == 1)?;
        let table = table.text();
        let chain = decode_chain(&message, &table).filter(|chain| chain.base.is_some())?;
        Some((get_u8(message.body, 0)?, table, chain))
    })
}

/// The sets and maps of a table, without elements.
pub fn sets(socket: &mut Socket, table: &Table<'_>) -> Result<Vec<SetInfo>> {
    let build = |batch: &mut Batch| get(batch, table, GETSET, |body| body.text(1, table.name));
    none_if_missing(socket.list(build, |message| decode_set(&message, table.name)))
}

/// The rules of a table, or of one chain of it, in their order.
pub fn rules(socket: &mut Socket, table: &Table<'_>, chain: Option<&str>) -> Result<Vec<RuleInfo>> {
    let build = |batch: &mut Batch| {
        get(batch, table, GETRULE, |body| {
            body.text(1, table.name);
            if let Some(chain) = chain {
                body.text(2, chain);
            }
        });
    };
    socket.list(build, |message| decode_rule(&message, table.name))
}

/// The elements of a set or map; `ENOENT` if it is not there. Order is the kernel's.
pub fn elements(socket: &mut Socket, table: &Table<'_>, set: &SetInfo) -> Result<Vec<ElementInfo>> {
    let build = |batch: &mut Batch| {
        get(batch, table, GETSETELEM, |body| {
            body.text(1, table.name);
            body.text(2, &set.name);
        });
    };
    let messages = socket.list(build, |message| Some(decode_elements(&message)))?;
    let raw = messages.into_iter().flatten();
    if set.is_interval() && set.flags & FLAG_CONCAT == 0 {
        return Ok(join(raw.collect()));
    }
    let whole = |raw: RawElement| ElementInfo {
        key: raw.key,
        last: raw.key_end,
        data: raw.data,
    };
    Ok(raw.map(whole).collect())
}

/// Takes each key of a set without ranges and without data into what `start` gives, in the kernel's order; `ENOENT` if the
/// set is not there. A set may be as large as a cluster: nothing is kept of its elements. A listing that the kernel has
/// interrupted begins anew, with another start.
pub fn fold_keys<T>(
    socket: &mut Socket,
    table: &Table<'_>,
    set: &SetInfo,
    start: impl Fn() -> T,
    mut take: impl FnMut(&mut T, &[u8]),
) -> Result<T> {
    let build = |batch: &mut Batch| {
        get(batch, table, GETSETELEM, |body| {
            body.text(1, table.name);
            body.text(2, &set.name);
        });
    };
    socket.fold(build, start, |all, message| {
        let list = attrs(&message, NEWSETELEM).and_then(|mut attrs| attrs.find(|a| a.kind == 3));
        for element in list.iter().flat_map(Attr::nested) {
            let key = element.nested().find(|attr| attr.kind == 1);
            let value = key.and_then(|key| key.nested().find(|inner| inner.kind == DATA_VALUE));
            if let Some(value) = value {
                take(all, value.value);
            }
        }
    })
}

/// The element with this one key, of a set that is no set of ranges; `None` if it, the set or the table is not there.
pub fn element(
    socket: &mut Socket,
    table: &Table<'_>,
    set: &super::Set<'_>,
    key: &[u8],
) -> Result<Option<ElementInfo>> {
    let build = |batch: &mut Batch| {
        get(batch, table, GETSETELEM, |body| {
            body.text(1, table.name);
            body.text(2, set.name);
            body.nest(3, |body| super::Element::one(key).encode(body, set));
        });
    };
    let found = socket.get(build, |message| {
        decode_elements(&message).into_iter().find(|e| e.key == key)
    });
    match found {
        Ok(raw) => Ok(Some(ElementInfo {
            key: raw.key,
            last: None,
            data: raw.data,
        })),
        Err(error) if error.is(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the request for a listing of one table.
fn get(batch: &mut Batch, table: &Table<'_>, kind: u16, fill: impl FnOnce(&mut Body<'_>)) {
    batch.push(SUBSYSTEM | kind, 0, |body| {
        header(body, table.family as u8, 0);
        fill(body);
    });
}

fn none_if_missing<T>(result: Result<Vec<T>>) -> Result<Vec<T>> {
    match result {
        Err(error @ Error::Refused(_)) if error.is(rustix::io::Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}

/// The attributes of a message of this type; `None` for anything else.
pub(crate) fn attrs<'a>(message: &Message<'a>, kind: u16) -> Option<Attrs<'a>> {
    (message.kind == SUBSYSTEM | kind).then(|| Attrs::after(message.body, NFGENMSG))
}

pub(crate) fn decode_table(message: &Message<'_>) -> Option<TableInfo> {
    let mut table = TableInfo {
        family: get_u8(message.body, 0)?,
        ..TableInfo::default()
    };
    for attr in attrs(message, NEWTABLE)? {
        match attr.kind {
            1 => table.name = attr.text(),
            4 => table.handle = attr.be64()?,
            6 => table.comment = find_comment(attr.value, 0),
            _ => {}
        }
    }
    Some(table)
}

pub(crate) fn decode_chain(message: &Message<'_>, table: &str) -> Option<ChainInfo> {
    let mut chain = ChainInfo::default();
    let (mut hook, mut policy, mut kind) = (None, 1, None);
    for attr in attrs(message, NEWCHAIN)? {
        match attr.kind {
            1 if !attr.is_text(table) => return None,
            2 => chain.handle = attr.be64()?,
            3 => chain.name = attr.text(),
            4 => hook = decode_hook(&attr),
            5 => policy = attr.be32()?,
            6 => chain.uses = attr.be32()?,
            7 => kind = ChainType::from_name(&attr.text()),
            _ => {}
        }
    }
    chain.base = hook.zip(kind).map(|((hook, priority), kind)| Base {
        hook,
        priority,
        kind,
        drop: policy == 0,
    });
    Some(chain)
}

fn decode_hook(attr: &Attr<'_>) -> Option<(Hook, i32)> {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    let (mut number, mut priority) = (None, None);
    for attr in attr.nested() {
        match attr.kind {
            1 => number = attr.be32(),
            2 => priority = attr.be32(),
            _ => {}
        }
    }
    let number = number?;
    let hooks = [Prerouting, Input, Forward, Output, Postrouting];
    let hook = hooks.into_iter().find(|&hook| hook as u32 == number)?;
    Some((hook, priority?.cast_signed()))
}

pub(crate) fn decode_set(message: &Message<'_>, table: &str) -> Option<SetInfo> {
    let mut set = SetInfo::default();
    for attr in attrs(message, NEWSET)? {
        match attr.kind {
            1 if !attr.is_text(table) => return None,
            2 => set.name = attr.text(),
            3 => set.flags = attr.be32()?,
            4 => set.key_type = attr.be32()?,
            5 => set.key_len = attr.be32()?,
            6 => set.data_type = attr.be32(),
            13 => set.comment = find_comment(attr.value, UDATA_COMMENT),
            16 => set.handle = attr.be64()?,
            _ => {}
        }
    }
    Some(set)
}

pub(crate) fn decode_rule(message: &Message<'_>, table: &str) -> Option<RuleInfo> {
    let mut rule = RuleInfo::default();
    for attr in attrs(message, NEWRULE)? {
        match attr.kind {
            1 if !attr.is_text(table) => return None,
            2 => rule.chain = attr.text(),
            3 => rule.handle = attr.be64()?,
            4 => rule.expressions = Expr::decode_list(&attr),
            7 => rule.comment = find_comment(attr.value, 0),
            _ => {}
        }
    }
    Some(rule)
}

/// An element as it is on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawElement {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    data: Option<ElementData>,
    is_end: bool,
}

pub(crate) fn decode_elements(message: &Message<'_>) -> Vec<RawElement> {
    let Some(mut attrs) = attrs(message, NEWSETELEM) else {
        return Vec::new();
    };
    let Some(list) = attrs.find(|attr| attr.kind == 3) else {
        return Vec::new();
    };
    list.nested()
        .filter_map(|attr| decode_element(&attr))
        .collect()
}

fn decode_element(attr: &Attr<'_>) -> Option<RawElement> {
    let (mut key, mut key_end, mut data, mut is_end) = (None, None, None, false);
    for attr in attr.nested() {
        match attr.kind {
            1 => key = get_value(&attr),
            2 => data = decode_data(&attr),
            3 => is_end = attr.be32()? & 1 != 0,
            10 => key_end = get_value(&attr),
            _ => {}
        }
    }
    Some(RawElement {
        key: key?,
        key_end,
        data,
        is_end,
    })
}

fn decode_data(attr: &Attr<'_>) -> Option<ElementData> {
    if let Some(value) = get_value(attr) {
        return Some(ElementData::Value(value));
    }
    let verdict = attr.nested().find(|inner| inner.kind == DATA_VERDICT)?;
    Verdict::decode(&verdict).map(ElementData::Verdict)
}

/// Whether a message is one of a listing.
pub(crate) fn decode_any(message: &Message<'_>) -> bool {
    let elements = decode_elements(message);
    let listed = !elements.is_empty() && !join(elements).is_empty();
    let table = decode_table(message)
        .map(|table| table.name)
        .unwrap_or_default();
    listed
        || !table.is_empty()
        || decode_chain(message, &table).is_some()
        || decode_set(message, &table).is_some()
        || decode_rule(message, &table).is_some()
}

/// Puts the ranges of a tree together: each start with the end that follows it. Two ranges that
/// touch share a key: the end of the first and the start of the second.
fn join(mut raw: Vec<RawElement>) -> Vec<ElementInfo> {
    raw.sort_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
    let mut found = Vec::with_capacity(raw.len() / 2);
    let mut open: Option<RawElement> = None;
    let close = |open: Option<RawElement>, end: Option<&[u8]>| {
        let start = open?;
        let last = match end {
            Some(end) => predecessor(end),
            None => vec![0xff; start.key.len()],
        };
        Some(ElementInfo {
            key: start.key,
            last: Some(last),
            data: start.data,
        })
    };
    for element in raw {
        found.extend(close(open.take(), Some(&element.key)));
        if !element.is_end {
            open = Some(element);
        }
    }
    found.extend(close(open, None));
    found
}

fn predecessor(key: &[u8]) -> Vec<u8> {
    let mut last = key.to_vec();
    for byte in last.iter_mut().rev() {
        let borrow = *byte == 0;
        *byte = byte.wrapping_sub(1);
        if !borrow {
            break;
        }
    }
    last
}

/// The type with this number among those known here; for printing.
pub fn data_type(number: u32) -> Option<DataType> {
    let known = [
        DataType::IPV4_ADDR,
        DataType::IPV6_ADDR,
        DataType::ETHER_ADDR,
        DataType::INET_PROTO,
        DataType::INET_SERVICE,
        DataType::MARK,
        DataType::IFACE_INDEX,
        DataType::DEVGROUP,
        DataType::IFNAME,
    ];
    known.into_iter().find(|known| known.number == number)
}
