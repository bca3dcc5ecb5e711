//! The path attributes that we know: one table of code, name, flags, encoding, decoding and what a fault leads to.
//!
//! The table is ascending by code, which is the order in which attributes are sent (RFC 4271 section 5).

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};

use super::{
    attr::{AsPath, PathAttributes},
    header::set_u16,
    pack::EncodeOptions,
};
use crate::ids::{Asn, Family};

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

/// A path attribute that we know.
pub(crate) struct AttributeType {
    /// Its number (IANA "BGP Path Attributes").
    pub code: u8,
    /// Its name in the standard.
    pub name: &'static str,
    /// Its category: the Optional and Transitive flags.
    pub flags: u8,
    encode: Encode,
}

/// All of them. MP_REACH_NLRI and MP_UNREACH_NLRI are written where their prefixes are, in `pack`.
pub(crate) static TABLE: [AttributeType; 16] = [
    row(1, "ORIGIN", WELL_KNOWN, |a, _, _, out| {
        out.put_u8(a.origin as u8);
        true
    }),
    row(2, "AS_PATH", WELL_KNOWN, |a, _, opts, out| {
        put_as_path(out, &a.as_path, opts.four_octet_as);
        true
    }),
    row(3, "NEXT_HOP", WELL_KNOWN, |a, family, _, out| {
        match (family, a.next_hop.global) {
            (Family::Ipv4, IpAddr::V4(n)) => out.put_slice(&n.octets()),
            _ => return false,
        }
        true
    }),
    row(4, "MULTI_EXIT_DISC", OPTIONAL, |a, _, _, out| {
        a.med.map(|v| out.put_u32(v)).is_some()
    }),
    row(5, "LOCAL_PREF", WELL_KNOWN, |a, _, _, out| {
        a.local_pref.map(|v| out.put_u32(v)).is_some()
    }),
    row(6, "ATOMIC_AGGREGATE", WELL_KNOWN, |a, _, _, _| {
        a.atomic_aggregate
    }),
    row(7, "AGGREGATOR", OPTIONAL_TRANSITIVE, |a, _, opts, out| {
        let Some((asn, addr)) = a.aggregator else {
            return false;
        };
        match opts.four_octet_as {
            true => out.put_u32(asn.0),
            false => out.put_u16(asn.two_octet()),
        }
        out.put_slice(&addr.octets());
        true
    }),
    row(8, "COMMUNITIES", OPTIONAL_TRANSITIVE, |a, _, _, out| {
        a.communities.iter().for_each(|c| out.put_u32(*c));
        !a.communities.is_empty()
    }),
    row(9, "ORIGINATOR_ID", OPTIONAL, |a, _, _, out| {
        a.originator_id.map(|id| out.put_u32(id.0)).is_some()
    }),
    row(10, "CLUSTER_LIST", OPTIONAL, |a, _, _, out| {
        a.cluster_list.iter().for_each(|id| out.put_u32(id.0));
        !a.cluster_list.is_empty()
    }),
    row(14, "MP_REACH_NLRI", OPTIONAL, |_, _, _, _| false),
    row(15, "MP_UNREACH_NLRI", OPTIONAL, |_, _, _, _| false),
    row(
        16,
        "EXTENDED COMMUNITIES",
        OPTIONAL_TRANSITIVE,
        |a, _, _, out| {
            out.put_slice(a.ext_communities.as_flattened());
            !a.ext_communities.is_empty()
        },
    ),
    row(17, "AS4_PATH", OPTIONAL_TRANSITIVE, |a, _, opts, out| {
        !opts.four_octet_as && put_as4_path(out, &a.as_path)
    }),
    row(
        18,
        "AS4_AGGREGATOR",
        OPTIONAL_TRANSITIVE,
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
        |a, _, _, out| {
            let parts = a.large_communities.as_flattened();
            parts.iter().for_each(|v| out.put_u32(*v));
            !parts.is_empty()
        },
    ),
];

const fn row(code: u8, name: &'static str, flags: u8, encode: Encode) -> AttributeType {
    AttributeType {
        code,
        name,
        flags,
        encode,
    }
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
        put(out, kind.flags, kind.code, |out| {
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
