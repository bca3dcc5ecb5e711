//! NOTIFICATION (RFC 4271 sections 4.5 and 6, RFC 4486, RFC 9003, RFC 8538).

use std::fmt;

use bytes::{BufMut, Bytes};

use super::header::{self, HEADER, MAX_MESSAGE, MessageType};

/// A NOTIFICATION: why a session ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notification {
    /// The error code; 1 to 8 are defined.
    pub code: u8,
    /// The error subcode.
    pub subcode: u8,
    /// The data field.
    pub data: Bytes,
}

/// The code of Cease (RFC 4486).
pub const CEASE: u8 = 6;

/// The subcodes of Cease (RFC 4486, RFC 8538).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Cease {
    /// Too many prefixes.
    MaximumPrefixes = 1,
    /// The operator stopped the session.
    AdministrativeShutdown = 2,
    /// The neighbour is no longer configured.
    PeerDeconfigured = 3,
    /// The operator restarts the session.
    AdministrativeReset = 4,
    /// The connection is not wanted.
    ConnectionRejected = 5,
    /// Settings changed that need a new session.
    OtherConfigurationChange = 6,
    /// The other connection of the pair stays.
    ConnectionCollision = 7,
    /// No room.
    OutOfResources = 8,
    /// The routes go, too, whatever graceful restart says.
    HardReset = 9,
}

impl Notification {
    /// Of these parts.
    pub fn new(code: u8, subcode: u8, data: &[u8]) -> Notification {
        Notification {
            code,
            subcode,
            data: Bytes::copy_from_slice(data),
        }
    }

    /// Cease.
    pub fn cease(subcode: Cease) -> Notification {
        Notification::new(CEASE, subcode as u8, &[])
    }

    /// Cease, administrative shutdown, with a text for the other side (RFC 9003), cut to 255 octets.
    pub fn shutdown(text: &str) -> Notification {
        let mut end = text.len().min(255);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut data = Vec::with_capacity(end + 1);
        if end > 0 {
            data.push(end as u8);
            data.extend(text.bytes().take(end));
        }
        Notification {
            code: CEASE,
            subcode: Cease::AdministrativeShutdown as u8,
            data: data.into(),
        }
    }

    /// Hold timer expired.
    pub fn hold_timer_expired() -> Notification {
        Notification::new(4, 0, &[])
    }

    /// Send hold timer expired (RFC 9687).
    pub fn send_hold_timer_expired() -> Notification {
        Notification::new(8, 0, &[])
    }

    /// The same inside Cease, hard reset (RFC 8538 section 3.1): the receiver must not keep the routes.
    pub fn into_hard_reset(self) -> Notification {
        let mut data = vec![self.code, self.subcode];
        data.extend_from_slice(&self.data);
        data.truncate(MAX_MESSAGE - HEADER - 2);
        Notification {
            code: CEASE,
            subcode: Cease::HardReset as u8,
            data: data.into(),
        }
    }

    /// Whether it is Cease, hard reset.
    pub fn is_hard_reset(&self) -> bool {
        (self.code, self.subcode) == (CEASE, Cease::HardReset as u8)
    }

    /// What a hard reset carries inside; `None` for anything else.
    pub fn hard_reset_reason(&self) -> Option<Notification> {
        match (&self.data[..], self.is_hard_reset()) {
            ([code, subcode, ..], true) => Some(Notification {
                code: *code,
                subcode: *subcode,
                data: self.data.slice(2..),
            }),
            _ => None,
        }
    }

    /// The text of an administrative shutdown or reset (RFC 9003), also inside a hard reset. `None` where there is none
    /// or the field contradicts itself; octets that are not UTF-8 are replaced, control characters escaped.
    pub fn shutdown_text(&self) -> Option<String> {
        if let Some(inner) = self.hard_reset_reason() {
            // A hard reset inside a hard reset carries no text, and does not recurse.
            return (!inner.is_hard_reset()).then(|| inner.shutdown_text())?;
        }
        let told = self.code == CEASE
            && [
                Cease::AdministrativeShutdown as u8,
                Cease::AdministrativeReset as u8,
            ]
            .contains(&self.subcode);
        let (len, text) = self.data.split_first()?;
        let text = text.get(..usize::from(*len))?;
        if !told || text.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(text);
        Some(
            text.chars()
                .flat_map(|c| match c.is_control() {
                    true => c.escape_default().collect::<Vec<_>>(),
                    false => vec![c],
                })
                .collect(),
        )
    }

    /// Reads the body of a NOTIFICATION, which has at least two octets (the frame sees to it).
    pub fn decode(body: &Bytes) -> Notification {
        let octet = |i| body.get(i).copied().unwrap_or(0);
        Notification {
            code: octet(0),
            subcode: octet(1),
            data: body.slice(body.len().min(2)..),
        }
    }

    /// The whole message.
    pub fn encode(&self) -> Bytes {
        header::message(MessageType::Notification, |out| {
            out.put_slice(&[self.code, self.subcode]);
            let room = MAX_MESSAGE - HEADER - 2;
            out.put_slice(self.data.get(..room).unwrap_or(&self.data));
        })
    }

    /// Its name in the standard; empty where none is defined.
    pub fn name(&self) -> &'static str {
        match (self.code, self.subcode) {
            (1, 1) => "connection not synchronized",
            (1, 2) => "bad message length",
            (1, 3) => "bad message type",
            (1, _) => "message header error",
            (2, 1) => "unsupported version number",
            (2, 2) => "bad peer AS",
            (2, 3) => "bad BGP identifier",
            (2, 4) => "unsupported optional parameter",
            (2, 6) => "unacceptable hold time",
            (2, 7) => "unsupported capability",
            (2, 11) => "role mismatch",
            (2, _) => "OPEN message error",
            (3, 1) => "malformed attribute list",
            (3, 2) => "unrecognized well-known attribute",
            (3, 3) => "missing well-known attribute",
            (3, 4) => "attribute flags error",
            (3, 5) => "attribute length error",
            (3, 6) => "invalid ORIGIN attribute",
            (3, 8) => "invalid NEXT_HOP attribute",
            (3, 9) => "optional attribute error",
            (3, 10) => "invalid network field",
            (3, 11) => "malformed AS_PATH",
            (3, _) => "UPDATE message error",
            (4, _) => "hold timer expired",
            (5, 1) => "unexpected message in OpenSent",
            (5, 2) => "unexpected message in OpenConfirm",
            (5, 3) => "unexpected message in Established",
            (5, _) => "finite state machine error",
            (CEASE, 1) => "maximum number of prefixes reached",
            (CEASE, 2) => "administrative shutdown",
            (CEASE, 3) => "peer de-configured",
            (CEASE, 4) => "administrative reset",
            (CEASE, 5) => "connection rejected",
            (CEASE, 6) => "other configuration change",
            (CEASE, 7) => "connection collision resolution",
            (CEASE, 8) => "out of resources",
            (CEASE, 9) => "hard reset",
            (CEASE, 10) => "BFD down",
            (CEASE, _) => "cease",
            (7, 1) => "invalid ROUTE-REFRESH length",
            (7, _) => "ROUTE-REFRESH message error",
            (8, _) => "send hold timer expired",
            _ => "",
        }
    }
}

impl fmt::Display for Notification {
    /// `6/2 administrative shutdown "maintenance"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.code, self.subcode)?;
        if !self.name().is_empty() {
            write!(f, " {}", self.name())?;
        }
        if let Some(inner) = self.hard_reset_reason() {
            write!(f, " ({}/{} {})", inner.code, inner.subcode, inner.name())?;
        }
        match self.shutdown_text() {
            Some(text) => write!(f, " \"{text}\""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for n in [
            Notification::new(1, 2, &[0, 18]),
            Notification::cease(Cease::ConnectionCollision),
            Notification::shutdown("maintenance until nine"),
            Notification::shutdown("").into_hard_reset(),
            Notification::new(3, 5, &[9; 4096 - 21]),
        ] {
            let mut stream = BytesMut::from(&n.encode()[..]);
            let frame = header::next_frame(&mut stream, 4096).unwrap().unwrap();
            assert_eq!(frame.kind, MessageType::Notification);
            assert_eq!(Notification::decode(&frame.body), n);
        }
    }

    #[test]
    fn texts() {
        for (n, text, display) in [
            (
                Notification::shutdown("back at 9"),
                Some("back at 9"),
                "6/2 administrative shutdown \"back at 9\"",
            ),
            (
                Notification::shutdown("x").into_hard_reset(),
                Some("x"),
                "6/9 hard reset (6/2 administrative shutdown) \"x\"",
            ),
            (
                Notification::new(6, 2, &[5, b'a']),
                None,
                "6/2 administrative shutdown",
            ),
            (
                Notification::new(6, 4, &[2, b'a', b'\n']),
                Some("a\\n"),
                "6/4 administrative reset \"a\\n\"",
            ),
            (
                Notification::new(6, 9, &[6, 9, 6, 9, 6, 2, 1, b'x']),
                None,
                "6/9 hard reset (6/9 hard reset)",
            ),
            (
                Notification::new(4, 0, &[1, b'a']),
                None,
                "4/0 hold timer expired",
            ),
            (Notification::new(99, 1, &[]), None, "99/1"),
        ] {
            assert_eq!(n.shutdown_text().as_deref(), text);
            assert_eq!(n.to_string(), display);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let n = Notification::shutdown(&"ä".repeat(200));
        assert_eq!(n.data[0], 254);
        assert_eq!(n.shutdown_text(), Some("ä".repeat(127)));
    }
}
