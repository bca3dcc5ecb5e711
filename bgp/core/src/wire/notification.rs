//! NOTIFICATION (RFC 4271 sections 4.5 and 6, RFC 4486, RFC 8203, RFC 8538).

use std::fmt;

use bytes::Bytes;

/// A NOTIFICATION: why a session ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    /// The error code; 1 to 7 are defined.
    pub code: u8,
    /// The error subcode.
    pub subcode: u8,
    /// The data field.
    pub data: Bytes,
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.code, self.subcode)
    }
}
