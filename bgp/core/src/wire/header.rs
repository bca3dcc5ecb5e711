//! The message header (RFC 4271 sections 4.1 and 6.1).

use bytes::{BufMut, BytesMut};

/// Marker, length, type.
pub const HEADER: usize = 19;
/// The largest message without the extended message capability.
pub const MAX_MESSAGE: usize = 4096;
/// The largest message with it (RFC 8654).
pub const MAX_EXTENDED_MESSAGE: usize = 65535;

/// The type of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum MessageType {
    /// OPEN.
    Open = 1,
    /// UPDATE.
    Update = 2,
    /// NOTIFICATION.
    Notification = 3,
    /// KEEPALIVE.
    Keepalive = 4,
    /// ROUTE-REFRESH (RFC 2918).
    RouteRefresh = 5,
}

/// Appends one message of `kind` whose body `body` appends.
pub(crate) fn put_message(out: &mut BytesMut, kind: MessageType, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0xff, 16);
    out.put_u16(0);
    out.put_u8(kind as u8);
    body(out);
    let len = out.len() - start;
    set_u16(out, start + 16, len);
}

/// Overwrites two octets at `at`, which exist.
pub(crate) fn set_u16(out: &mut BytesMut, at: usize, value: usize) {
    debug_assert!(value <= 0xffff);
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&(value as u16).to_be_bytes());
    }
}
