//! Faults in UPDATE messages, as data: what is wrong, what to do about it, and what a NOTIFICATION would say.

use bytes::Bytes;

use super::{attribute, header::MAX_MESSAGE, notification::Notification};

/// What a fault in an UPDATE leads to (RFC 7606 section 2), the mildest first. Where RFC 7606 lets one choose between
/// resetting the session and disabling a family, the session is reset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// The attribute is left out, the routes stay.
    AttributeDiscard,
    /// The announced routes count as withdrawn.
    TreatAsWithdraw,
    /// The session ends with a NOTIFICATION.
    SessionReset,
}

/// The subcodes of UPDATE Message Error (RFC 4271 section 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum UpdateError {
    /// Lengths contradict each other, or an attribute appears twice that must not.
    MalformedAttributeList = 1,
    /// A well-known attribute that we do not know.
    UnrecognizedWellKnown = 2,
    /// A mandatory attribute is not there.
    MissingWellKnown = 3,
    /// Flags contradict the type.
    AttributeFlags = 4,
    /// A length contradicts the type.
    AttributeLength = 5,
    /// ORIGIN has no defined value.
    InvalidOrigin = 6,
    /// NEXT_HOP is no address of a host.
    InvalidNextHop = 8,
    /// An optional attribute is wrong inside.
    OptionalAttribute = 9,
    /// NLRI or withdrawn routes are no prefixes.
    InvalidNetwork = 10,
    /// AS_PATH is wrong inside.
    MalformedAsPath = 11,
}

/// A fault in an UPDATE.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}{}", .attribute.map_or(String::new(), |a| format!(" ({})", attribute::name(a))))]
pub struct Fault {
    /// What to do.
    pub action: Action,
    /// What it is called in a NOTIFICATION.
    pub error: UpdateError,
    /// The data of a NOTIFICATION: the attribute at fault as it was on the wire, or its code if it is missing.
    pub data: Bytes,
    /// The type code of the attribute at fault.
    pub attribute: Option<u8>,
    /// For people.
    pub what: &'static str,
}

impl Fault {
    /// A fault of the message as a whole.
    pub(crate) fn message(action: Action, error: UpdateError, what: &'static str) -> Fault {
        Fault {
            action,
            error,
            data: Bytes::new(),
            attribute: None,
            what,
        }
    }

    /// The NOTIFICATION for it, cut to the size of a message.
    pub fn notification(&self) -> Notification {
        let room = MAX_MESSAGE - super::header::HEADER - 2;
        Notification {
            code: 3,
            subcode: self.error as u8,
            data: self.data.slice(..self.data.len().min(room)),
        }
    }
}
