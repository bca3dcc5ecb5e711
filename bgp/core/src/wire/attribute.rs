//! The path attributes that we know: one table of code, name, flags, encoding, decoding and what a fault leads to.
//!
//! The table is ascending by code, which is the order in which attributes are sent (RFC 4271 section 5).
//! Decoding fills a `Draft` with what one UPDATE says; nothing is allocated before all of it was looked at.

use std::net::{IpAddr, Ipv4Addr};

use bytes::{BufMut, BytesMut};

use super::{
    attr::{
        AsPath, AsPathBuilder, Origin, PartialBits, PathAttributes, SegmentKind, UnknownAttribute,
    },
    error::{Action, UpdateError},
    header::set_u16,
    pack::EncodeOptions,
    update::Context,
};
use crate::ids::{Asn, Family, RouterId};

/// Flag: optional, as opposed to well-known.
pub const OPTIONAL: u8 = 0x80;
/// Flag: transitive.
pub const TRANSITIVE: u8 = 0x40;
/// Flag: somebody on the way did not understand it.
pub const PARTIAL: u8 = 0x20;
/// Flag: the length has two octets.
pub const EXTENDED: u8 = 0x10;

const WELL_KNOWN: u8 = TRANSITIVE;
const OPTIONAL_TRANSITIVE: u8 = OPTIONAL | TRANSITIVE;

/// Appends the value of an attribute; says whether there is one.
type Encode = fn(&PathAttributes, Family, &EncodeOptions, &mut BytesMut) -> bool;
/// Checks a value and notes it.
type Decode = for<'a> fn(&mut Draft<'a>, &'a [u8], &Context) -> Result<(), Invalid>;

/// What is wrong inside an attribute. What it leads to says the table.
pub(crate) type Invalid = (UpdateError, &'static str);

/// From whom an attribute is accepted; from others it is left out without a look (RFC 7606 section 7, RFC 6793 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sender {
    Anyone,
    Internal,
    TwoOctetSpeaker,
}

impl Sender {
    pub(crate) fn accepts(self, ctx: &Context) -> bool {
        match self {
            Sender::Anyone => true,
            Sender::Internal => ctx.internal,
            Sender::TwoOctetSpeaker => !ctx.four_octet_as,
        }
    }
}

/// A path attribute that we know.
pub(crate) struct AttributeType {
    /// Its number (IANA "BGP Path Attributes").
    pub code: u8,
    /// Its name in the standard.
    pub name: &'static str,
    /// Its category: the Optional and Transitive flags.
    pub flags: u8,
    /// From whom it is accepted.
    pub from: Sender,
    /// What a wrong value leads to (RFC 7606 section 7).
    pub action: Action,
    encode: Encode,
    pub decode: Decode,
}

use Action::{AttributeDiscard as Discard, SessionReset as Reset, TreatAsWithdraw as Withdraw};
use Sender::{Anyone, Internal, TwoOctetSpeaker};

/// All of them. The MP attributes are written where their prefixes are, in `pack`, and read in `update`.
pub(crate) static TABLE: [AttributeType; 16] = [
    row(
        1,
        "ORIGIN",
        WELL_KNOWN,
        Anyone,
        Withdraw,
        read_origin,
        |a, _, _, out| {
            out.put_u8(a.origin as u8);
            true
        },
    ),
    row(
        2,
        "AS_PATH",
        WELL_KNOWN,
        Anyone,
        Withdraw,
        read_as_path,
        |a, _, opts, out| {
            put_as_path(out, &a.as_path, opts.four_octet_as);
            true
        },
    ),
    row(
        3,
        "NEXT_HOP",
        WELL_KNOWN,
        Anyone,
        Withdraw,
        read_next_hop,
        |a, family, _, out| {
            match (family, a.next_hop.global) {
                (Family::Ipv4, IpAddr::V4(n)) => out.put_slice(&n.octets()),
                _ => return false,
            }
            true
        },
    ),
    row(
        4,
        "MULTI_EXIT_DISC",
        OPTIONAL,
        Anyone,
        Withdraw,
        read_med,
        |a, _, _, out| a.med.map(|v| out.put_u32(v)).is_some(),
    ),
    row(
        5,
        "LOCAL_PREF",
        WELL_KNOWN,
        Internal,
        Withdraw,
        read_local_pref,
        |a, _, _, out| a.local_pref.map(|v| out.put_u32(v)).is_some(),
    ),
    row(
        6,
        "ATOMIC_AGGREGATE",
        WELL_KNOWN,
        Anyone,
        Discard,
        read_atomic_aggregate,
        |a, _, _, _| a.atomic_aggregate,
    ),
    row(
        7,
        "AGGREGATOR",
        OPTIONAL_TRANSITIVE,
        Anyone,
        Discard,
        read_aggregator,
        |a, _, opts, out| {
            let Some((asn, addr)) = a.aggregator else {
                return false;
            };
            match opts.four_octet_as {
                true => out.put_u32(asn.0),
                false => out.put_u16(asn.two_octet()),
            }
            out.put_slice(&addr.octets());
            true
        },
    ),
    row(
        8,
        "COMMUNITIES",
        OPTIONAL_TRANSITIVE,
        Anyone,
        Withdraw,
        read_communities,
        |a, _, _, out| {
            a.communities.iter().for_each(|c| out.put_u32(*c));
            !a.communities.is_empty()
        },
    ),
    row(
        9,
        "ORIGINATOR_ID",
        OPTIONAL,
        Internal,
        Withdraw,
        read_originator_id,
        |a, _, _, out| a.originator_id.map(|id| out.put_u32(id.0)).is_some(),
    ),
    row(
        10,
        "CLUSTER_LIST",
        OPTIONAL,
        Internal,
        Withdraw,
        read_cluster_list,
        |a, _, _, out| {
            a.cluster_list.iter().for_each(|id| out.put_u32(id.0));
            !a.cluster_list.is_empty()
        },
    ),
    row(
        14,
        "MP_REACH_NLRI",
        OPTIONAL,
        Anyone,
        Reset,
        read_mp_reach,
        |_, _, _, _| false,
    ),
    row(
        15,
        "MP_UNREACH_NLRI",
        OPTIONAL,
        Anyone,
        Reset,
        read_mp_unreach,
        |_, _, _, _| false,
    ),
    row(
        16,
        "EXTENDED COMMUNITIES",
        OPTIONAL_TRANSITIVE,
        Anyone,
        Withdraw,
        read_ext_communities,
        |a, _, _, out| {
            out.put_slice(a.ext_communities.as_flattened());
            !a.ext_communities.is_empty()
        },
    ),
    row(
        17,
        "AS4_PATH",
        OPTIONAL_TRANSITIVE,
        TwoOctetSpeaker,
        Discard,
        read_as4_path,
        |a, _, opts, out| !opts.four_octet_as && put_as4_path(out, &a.as_path),
    ),
    row(
        18,
        "AS4_AGGREGATOR",
        OPTIONAL_TRANSITIVE,
        TwoOctetSpeaker,
        Discard,
        read_as4_aggregator,
        |a, _, opts, out| match a.aggregator {
            Some((asn, addr)) if !opts.four_octet_as && !fits_two_octets(asn) => {
                out.put_u32(asn.0);
                out.put_slice(&addr.octets());
                true
            }
            _ => false,
        },
    ),
    row(
        32,
        "LARGE_COMMUNITY",
        OPTIONAL_TRANSITIVE,
        Anyone,
        Withdraw,
        read_large_communities,
        |a, _, _, out| {
            let parts = a.large_communities.as_flattened();
            parts.iter().for_each(|v| out.put_u32(*v));
            !parts.is_empty()
        },
    ),
];

const fn row(
    code: u8,
    name: &'static str,
    flags: u8,
    from: Sender,
    action: Action,
    decode: Decode,
    encode: Encode,
) -> AttributeType {
    AttributeType {
        code,
        name,
        flags,
        from,
        action,
        encode,
        decode,
    }
}

/// The row of an attribute.
pub(crate) fn find(code: u8) -> Option<&'static AttributeType> {
    match code {
        1..=10 => TABLE.get(usize::from(code) - 1),
        14..=18 => TABLE.get(usize::from(code) - 4),
        32 => TABLE.get(15),
        _ => None,
    }
}

/// The name of an attribute in the standard, or its number.
pub fn name(code: u8) -> String {
    find(code).map_or_else(|| format!("attribute {code}"), |kind| kind.name.to_owned())
}

/// Appends all attributes but the MP ones, ascending by code.
pub(crate) fn put_all(
    out: &mut BytesMut,
    attrs: &PathAttributes,
    family: Family,
    opts: &EncodeOptions,
) {
    let mut unknown = attrs.unknown.iter().peekable();
    for kind in &TABLE {
        while let Some(u) = unknown.next_if(|u| u.code < kind.code) {
            put(out, u.flags, u.code, |out| out.put_slice(&u.value));
        }
        let start = out.len();
        let mut there = false;
        let partial = match attrs.partial.contains(kind.code) {
            true => PARTIAL,
            false => 0,
        };
        put(out, kind.flags | partial, kind.code, |out| {
            there = (kind.encode)(attrs, family, opts, out);
        });
        if !there {
            out.truncate(start);
        }
    }
    for u in unknown {
        put(out, u.flags, u.code, |out| out.put_slice(&u.value));
    }
}

/// Appends one attribute; the length takes two octets where it must.
fn put(out: &mut BytesMut, flags: u8, code: u8, value: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_slice(&[flags & !EXTENDED, code, 0]);
    value(out);
    let len = out.len() - start - 3;
    if let Ok(short) = u8::try_from(len) {
        out[start + 2] = short;
        return;
    }
    out.put_u8(0);
    out.copy_within(start + 3..start + 3 + len, start + 4);
    out[start] |= EXTENDED;
    set_u16(out, start + 2, len.min(0xffff));
}

fn fits_two_octets(asn: Asn) -> bool {
    asn.0 <= 0xffff
}

/// AS_PATH in either width (RFC 6793 section 4.2.2).
fn put_as_path(out: &mut BytesMut, path: &AsPath, four_octets: bool) {
    if four_octets {
        out.put_slice(path.as_bytes());
        return;
    }
    for segment in path.segments() {
        out.put_slice(&[segment.kind as u8, segment.count() as u8]);
        segment.asns().for_each(|a| out.put_u16(a.two_octet()));
    }
}

/// AS4_PATH, where a number of the path does not fit into two octets; confederation segments do not belong there
/// (RFC 6793 section 4.2.2).
fn put_as4_path(out: &mut BytesMut, path: &AsPath) -> bool {
    let needed = path
        .segments()
        .filter(|s| !s.kind.is_confed())
        .any(|s| s.asns().any(|a| !fits_two_octets(a)));
    if !needed {
        return false;
    }
    for segment in path.segments().filter(|s| !s.kind.is_confed()) {
        out.put_slice(&[segment.kind as u8, segment.count() as u8]);
        segment.asns().for_each(|a| out.put_u32(a.0));
    }
    true
}

/// What one UPDATE says of its routes: slices of the message, each checked by itself.
#[derive(Default)]
pub(crate) struct Draft<'a> {
    pub origin: Option<Origin>,
    as_path: Option<&'a [u8]>,
    pub next_hop: Option<Ipv4Addr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic_aggregate: bool,
    aggregator: Option<(Asn, Ipv4Addr)>,
    communities: &'a [u8],
    originator_id: Option<RouterId>,
    cluster_list: &'a [u8],
    pub mp_reach: Option<&'a [u8]>,
    pub mp_unreach: Option<&'a [u8]>,
    ext_communities: &'a [u8],
    as4_path: Option<&'a [u8]>,
    as4_aggregator: Option<(Asn, Ipv4Addr)>,
    large_communities: &'a [u8],
    pub unknown: Vec<UnknownAttribute>,
    pub partial: PartialBits,
}

const LENGTH: UpdateError = UpdateError::AttributeLength;

/// A value of exactly `N` octets.
fn exactly<const N: usize>(value: &[u8]) -> Result<&[u8; N], Invalid> {
    value
        .try_into()
        .map_err(|_| (LENGTH, "the length is not that of the attribute"))
}

/// A value of one or more elements of `size` octets.
fn elements(value: &[u8], size: usize) -> Result<&[u8], Invalid> {
    if value.is_empty() || !value.len().is_multiple_of(size) {
        return Err((LENGTH, "the length is no multiple of an element's"));
    }
    Ok(value)
}

fn number(value: &[u8]) -> Result<u32, Invalid> {
    exactly::<4>(value).map(|v| u32::from_be_bytes(*v))
}

fn read_origin(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    d.origin = Some(match exactly::<1>(value)? {
        [0] => Origin::Igp,
        [1] => Origin::Egp,
        [2] => Origin::Incomplete,
        _ => return Err((UpdateError::InvalidOrigin, "ORIGIN has no defined value")),
    });
    Ok(())
}

fn read_as_path<'a>(d: &mut Draft<'a>, value: &'a [u8], ctx: &Context) -> Result<(), Invalid> {
    check_path(value, ctx.asn_octets(), ctx.internal)?;
    d.as_path = Some(value);
    Ok(())
}

/// Checks the segments of a path with numbers of `width` octets (RFC 7606 section 7.2, RFC 7607). Confederation segments
/// come from nobody outside the AS, since we are in no confederation (RFC 5065 section 5).
fn check_path(value: &[u8], width: usize, confed: bool) -> Result<(), Invalid> {
    let malformed = |what| Err((UpdateError::MalformedAsPath, what));
    let mut rest = value;
    while let [kind, tail @ ..] = rest {
        let Some(kind) = SegmentKind::from_octet(*kind) else {
            return malformed("a segment has an undefined type");
        };
        if kind.is_confed() && !confed {
            return malformed("a confederation segment comes from outside");
        }
        let Some((&count, tail)) = tail.split_first() else {
            return malformed("the path ends inside a segment");
        };
        if count == 0 {
            return malformed("a segment is empty");
        }
        let Some((numbers, tail)) = tail.split_at_checked(usize::from(count) * width) else {
            return malformed("the path ends inside a segment");
        };
        if numbers
            .chunks_exact(width)
            .any(|n| n.iter().all(|b| *b == 0))
        {
            return malformed("AS 0 is in the path");
        }
        rest = tail;
    }
    Ok(())
}

fn read_next_hop(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    d.next_hop = Some(Ipv4Addr::from(*exactly::<4>(value)?));
    Ok(())
}

fn read_med(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    d.med = Some(number(value)?);
    Ok(())
}

fn read_local_pref(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    d.local_pref = Some(number(value)?);
    Ok(())
}

fn read_atomic_aggregate(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    exactly::<0>(value)?;
    d.atomic_aggregate = true;
    Ok(())
}

fn read_aggregator(d: &mut Draft<'_>, value: &[u8], ctx: &Context) -> Result<(), Invalid> {
    let (asn, addr) = match ctx.four_octet_as {
        true => aggregator(exactly::<8>(value)?),
        false => {
            let [a, b, addr @ ..] = *exactly::<6>(value)?;
            (Asn(u16::from_be_bytes([a, b]).into()), addr.into())
        }
    };
    d.aggregator = Some((not_zero(asn)?, addr));
    Ok(())
}

fn aggregator(value: &[u8; 8]) -> (Asn, Ipv4Addr) {
    let [a, b, c, d, addr @ ..] = *value;
    (Asn(u32::from_be_bytes([a, b, c, d])), addr.into())
}

fn not_zero(asn: Asn) -> Result<Asn, Invalid> {
    if asn == Asn::ZERO {
        return Err((UpdateError::OptionalAttribute, "the aggregator is AS 0"));
    }
    Ok(asn)
}

fn read_communities<'a>(d: &mut Draft<'a>, value: &'a [u8], _: &Context) -> Result<(), Invalid> {
    d.communities = elements(value, 4)?;
    Ok(())
}

fn read_originator_id(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    d.originator_id = Some(RouterId(number(value)?));
    Ok(())
}

fn read_cluster_list<'a>(d: &mut Draft<'a>, value: &'a [u8], _: &Context) -> Result<(), Invalid> {
    d.cluster_list = elements(value, 4)?;
    Ok(())
}

fn read_mp_reach<'a>(d: &mut Draft<'a>, value: &'a [u8], _: &Context) -> Result<(), Invalid> {
    d.mp_reach = Some(value);
    Ok(())
}

fn read_mp_unreach<'a>(d: &mut Draft<'a>, value: &'a [u8], _: &Context) -> Result<(), Invalid> {
    d.mp_unreach = Some(value);
    Ok(())
}

fn read_ext_communities<'a>(
    d: &mut Draft<'a>,
    value: &'a [u8],
    _: &Context,
) -> Result<(), Invalid> {
    d.ext_communities = elements(value, 8)?;
    Ok(())
}

fn read_as4_path<'a>(d: &mut Draft<'a>, value: &'a [u8], _: &Context) -> Result<(), Invalid> {
    check_path(value, 4, true)?;
    d.as4_path = Some(value);
    Ok(())
}

fn read_as4_aggregator(d: &mut Draft<'_>, value: &[u8], _: &Context) -> Result<(), Invalid> {
    let (asn, addr) = aggregator(exactly::<8>(value)?);
    d.as4_aggregator = Some((not_zero(asn)?, addr));
    Ok(())
}

fn read_large_communities<'a>(
    d: &mut Draft<'a>,
    value: &'a [u8],
    _: &Context,
) -> Result<(), Invalid> {
    d.large_communities = elements(value, 12)?;
    Ok(())
}

impl Draft<'_> {
    /// The first mandatory attribute that is not there, for routes outside MP_REACH_NLRI (`classic`) or inside.
    pub(crate) fn missing(&self, classic: bool) -> Option<u8> {
        match () {
            () if self.origin.is_none() => Some(1),
            () if self.as_path.is_none() => Some(2),
            () if classic && self.next_hop.is_none() => Some(3),
            () => None,
        }
    }

    /// AS_PATH, with AS4_PATH merged into it.
    pub(crate) fn path(&self, ctx: &Context) -> AsPath {
        let raw = self.as_path.unwrap_or_default();
        if ctx.four_octet_as {
            return AsPath(raw.into());
        }
        let path = widen(raw);
        match self.as4_path {
            Some(as4) if self.as4_counts() => merge(&path, &without_confed(as4)),
            _ => path,
        }
    }

    /// Whether AS4_PATH and AS4_AGGREGATOR count: not if somebody who knows two octets only has aggregated since
    /// (RFC 6793 section 4.2.3).
    fn as4_counts(&self) -> bool {
        !matches!((self.aggregator, self.as4_aggregator), (Some((asn, _)), Some(_)) if asn != Asn::TRANS)
    }

    /// The attributes as a value, for routes with this path and next hop.
    pub(crate) fn attributes(
        &self,
        as_path: AsPath,
        next_hop: super::attr::NextHop,
        ctx: &Context,
    ) -> PathAttributes {
        let aggregator = match self.as4_aggregator {
            Some(four) if self.aggregator.is_some() && self.as4_counts() => Some(four),
            _ => self.aggregator,
        };
        PathAttributes {
            origin: self.origin.unwrap_or(Origin::Incomplete),
            as_path,
            next_hop,
            med: self.med,
            local_pref: self.local_pref.filter(|_| ctx.internal),
            atomic_aggregate: self.atomic_aggregate,
            aggregator,
            communities: numbers(self.communities).collect(),
            ext_communities: self.ext_communities.as_chunks::<8>().0.into(),
            large_communities: numbers(self.large_communities)
                .collect::<Vec<_>>()
                .as_chunks::<3>()
                .0
                .into(),
            originator_id: self.originator_id,
            cluster_list: numbers(self.cluster_list).map(RouterId).collect(),
            unknown: self.unknown.as_slice().into(),
            partial: self.partial,
        }
    }
}

fn numbers(value: &[u8]) -> impl Iterator<Item = u32> {
    value
        .as_chunks::<4>()
        .0
        .iter()
        .map(|v| u32::from_be_bytes(*v))
}

/// A checked path of two-octet numbers with four octets each.
fn widen(raw: &[u8]) -> AsPath {
    let mut out = Vec::with_capacity(raw.len() * 2);
    let mut rest = raw;
    while let [kind, count, tail @ ..] = rest {
        let Some((numbers, tail)) = tail.split_at_checked(usize::from(*count) * 2) else {
            break;
        };
        out.extend_from_slice(&[*kind, *count]);
        for n in numbers.as_chunks::<2>().0 {
            out.extend_from_slice(&u32::from(u16::from_be_bytes(*n)).to_be_bytes());
        }
        rest = tail;
    }
    AsPath(out.into())
}

/// AS4_PATH without what does not belong there (RFC 6793 section 6).
fn without_confed(as4: &[u8]) -> AsPath {
    let mut path = AsPathBuilder::default();
    let all = AsPath(as4.into());
    for segment in all.segments().filter(|s| !s.kind.is_confed()) {
        path.segment(segment.kind, segment.asns());
    }
    path.finish()
}

/// Puts what `path` has in front of the part that `as4` describes before `as4` (RFC 6793 section 4.2.3).
fn merge(path: &AsPath, as4: &AsPath) -> AsPath {
    let Some(mut lead) = path.path_length().checked_sub(as4.path_length()) else {
        return path.clone();
    };
    let mut merged = AsPathBuilder::default();
    for segment in path.segments() {
        match segment.kind {
            SegmentKind::Sequence if lead > 0 => {
                merged.segment(segment.kind, segment.asns().take(lead as usize));
                lead = lead.saturating_sub(segment.count() as u32);
            }
            SegmentKind::Set if lead > 0 => {
                merged.segment(segment.kind, segment.asns());
                lead -= 1;
            }
            // Confederation segments count nothing: they stay if they lead, or follow what stays.
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => {
                merged.segment(segment.kind, segment.asns());
            }
            _ => break,
        }
    }
    merged.join(as4)
}
