//! Framing: marker, length, type (RFC 4271 sections 4.1 and 6.1, RFC 8654).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::notification::Notification;

/// Marker, length, type.
pub const HEADER: usize = 19;
/// The largest message without the extended message capability.
pub const MAX_MESSAGE: usize = 4096;
/// The largest message with it (RFC 8654).
pub const MAX_EXTENDED_MESSAGE: usize = 65535;

/// The type of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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

impl MessageType {
    /// All of them, ascending.
    pub const ALL: [MessageType; 5] = [
        MessageType::Open,
        MessageType::Update,
        MessageType::Notification,
        MessageType::Keepalive,
        MessageType::RouteRefresh,
    ];

    fn from_octet(octet: u8) -> Option<MessageType> {
        Self::ALL.into_iter().find(|t| *t as u8 == octet)
    }

    /// The shortest and the longest message of this type, in octets; `limit` holds for those that may be extended.
    fn lengths(self, limit: usize) -> (usize, usize) {
        match self {
            MessageType::Open => (29, MAX_MESSAGE),
            MessageType::Update => (23, limit),
            MessageType::Notification => (21, limit),
            MessageType::Keepalive => (HEADER, HEADER),
            MessageType::RouteRefresh => (23, limit),
        }
    }

    /// Its place in a table of counters.
    pub fn index(self) -> usize {
        self as usize - 1
    }
}

/// One message without its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Its type.
    pub kind: MessageType,
    /// All after the header.
    pub body: Bytes,
}

/// Takes the first complete message off `stream`; `None`: more bytes are needed. `limit` is the largest message that
/// we have agreed to, in octets.
///
/// # Errors
/// The NOTIFICATION of RFC 4271 section 6.1, as soon as the header is there.
pub fn next_frame(stream: &mut BytesMut, limit: usize) -> Result<Option<Frame>, Notification> {
    let Some((header, _)) = stream.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let (marker, rest) = header.split_at(16);
    if marker.iter().any(|b| *b != 0xff) {
        return Err(Notification::new(1, 1, &[]));
    }
    let &[high, low, kind] = rest else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([high, low]));
    let bad_length = Err(Notification::new(1, 2, &[high, low]));
    if !(HEADER..=limit).contains(&len) {
        return bad_length;
    }
    let Some(kind) = MessageType::from_octet(kind) else {
        return Err(Notification::new(1, 3, &[kind]));
    };
    let (min, max) = kind.lengths(limit);
    if !(min..=max).contains(&len) {
        return bad_length;
    }
    if stream.len() < len {
        stream.reserve(len - stream.len());
        return Ok(None);
    }
    let mut body = stream.split_to(len);
    body.advance(HEADER);
    Ok(Some(Frame {
        kind,
        body: body.freeze(),
    }))
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

/// One message on its own.
pub(crate) fn message(kind: MessageType, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_message(&mut out, kind, body);
    out.freeze()
}

/// A KEEPALIVE.
pub fn keepalive() -> Bytes {
    Bytes::from_static(&[
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 19, 4,
    ])
}

/// Overwrites two octets at `at`, which exist.
pub(crate) fn set_u16(out: &mut BytesMut, at: usize, value: usize) {
    debug_assert!(value <= 0xffff);
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&(value as u16).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(len: u16, kind: u8, body: &[u8]) -> BytesMut {
        let mut b = BytesMut::new();
        b.put_bytes(0xff, 16);
        b.put_u16(len);
        b.put_u8(kind);
        b.put_slice(body);
        b
    }

    #[test]
    fn faults_of_the_header() {
        let long = vec![0; 70000];
        for (name, len, kind, limit, subcode, data) in [
            ("shorter than a header", 18, 4, 4096, 2, &[0, 18][..]),
            ("zero", 0, 4, 4096, 2, &[0, 0]),
            ("too long", 4097, 2, 4096, 2, &[16, 1]),
            ("unknown type", 19, 0, 4096, 3, &[0]),
            ("unknown type", 19, 6, 4096, 3, &[6]),
            ("length before type", 18, 6, 4096, 2, &[0, 18]),
            ("OPEN too short", 28, 1, 4096, 2, &[0, 28]),
            (
                "OPEN is never extended",
                4097,
                1,
                MAX_EXTENDED_MESSAGE,
                2,
                &[16, 1],
            ),
            ("UPDATE too short", 22, 2, 4096, 2, &[0, 22]),
            ("NOTIFICATION too short", 20, 3, 4096, 2, &[0, 20]),
            ("KEEPALIVE with a body", 20, 4, 4096, 2, &[0, 20]),
            ("ROUTE-REFRESH too short", 22, 5, 4096, 2, &[0, 22]),
        ] {
            let mut stream = raw(len, kind, &long);
            let got = next_frame(&mut stream, limit);
            assert_eq!(got, Err(Notification::new(1, subcode, data)), "{name}");
        }
        let mut stream = raw(19, 4, &[]);
        stream[7] = 0xfe;
        assert_eq!(
            next_frame(&mut stream, 4096),
            Err(Notification::new(1, 1, &[]))
        );
    }

    #[test]
    fn frames_come_out_however_the_stream_is_cut() {
        let mut whole = keepalive().to_vec();
        whole.extend_from_slice(&raw(23, 2, &[0; 4]));
        whole.extend_from_slice(&raw(4096, 2, &vec![7; 4096 - HEADER]));
        for cut in [1, 2, 18, 19, 20, 1000] {
            let mut stream = BytesMut::new();
            let mut got = Vec::new();
            for piece in whole.chunks(cut) {
                stream.extend_from_slice(piece);
                while let Some(frame) = next_frame(&mut stream, 4096).unwrap() {
                    got.push((frame.kind, frame.body.len()));
                }
            }
            assert_eq!(
                got,
                [
                    (MessageType::Keepalive, 0),
                    (MessageType::Update, 4),
                    (MessageType::Update, 4096 - HEADER)
                ]
            );
            assert!(stream.is_empty());
        }
    }

    #[test]
    fn a_fault_is_found_before_the_body_is_there() {
        assert!(next_frame(&mut raw(5000, 2, &[]), 4096).is_err());
        assert_eq!(next_frame(&mut raw(4096, 2, &[]), 4096), Ok(None));
    }
}
