//! Tests over several modules of the wire format.

mod faults;
mod properties;
mod routes;

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::update::{self, AttributeCache, Context, Update};
use crate::{
    ids::{Asn, FamilySet, IfIndex},
    wire::error::Fault,
};

/// A session with four-octet numbers and both families, with an internal or an external peer in AS 65001.
fn context(internal: bool) -> Context {
    Context {
        internal,
        four_octet_as: true,
        families: FamilySet::ALL,
        add_path: FamilySet::NONE,
        first_as: (!internal).then_some(Asn(65001)),
        local_addr: Ipv4Addr::new(192, 0, 2, 254).into(),
        interface: Some(IfIndex(7)),
    }
}

/// The body of an UPDATE.
fn body(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Bytes {
    let mut b = BytesMut::new();
    b.put_u16(withdrawn.len() as u16);
    b.put_slice(withdrawn);
    b.put_u16(attributes.len() as u16);
    b.put_slice(attributes);
    b.put_slice(nlri);
    b.freeze()
}

/// One attribute; the length takes two octets if the flags say so.
fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut b = vec![flags, code];
    match flags & 0x10 {
        0 => b.push(value.len() as u8),
        _ => b.extend((value.len() as u16).to_be_bytes()),
    }
    b.extend_from_slice(value);
    b
}

fn decode(body: &Bytes, ctx: &Context) -> Result<Update, Fault> {
    update::decode(body, ctx, &mut AttributeCache::default())
}

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
/// AS_SEQUENCE of 65001.
const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 1];
/// fd00:1::/32 by fd00::1.
const MP_REACH: &[u8] = &[
    0x80, 14, 26, 0, 2, 1, 16, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 32, 0xfd, 0,
    0, 1,
];
/// 10.0.0.0/8.
const NLRI: &[u8] = &[8, 10];

fn base() -> Vec<u8> {
    [ORIGIN, AS_PATH, NEXT_HOP].concat()
}
