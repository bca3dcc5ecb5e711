//! OPEN (RFC 4271 sections 4.2 and 6.2, RFC 5492, RFC 9072).
//!
//! Checked here: what an OPEN can be wrong in by itself. Whether it fits the configuration is for the session to say.

use bytes::{BufMut, Bytes};
use nom::{
    IResult, Parser,
    bytes::complete::take,
    combinator::all_consuming,
    multi::{length_data, many0},
    number::complete::{be_u8, be_u16, be_u32},
};

use super::{
    capability::{self, Capability},
    header::{self, MessageType},
    notification::Notification,
};
use crate::ids::{Asn, RouterId};

/// An OPEN of version 4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The two-octet AS field: the number, or AS_TRANS.
    pub my_as: u16,
    /// The hold time proposed, in seconds: 0, or 3 and more.
    pub hold_time: u16,
    /// The BGP identifier; not zero.
    pub router_id: RouterId,
    /// The capabilities, in the order received.
    pub capabilities: Vec<Capability>,
}

/// The optional parameter that holds capabilities.
const CAPABILITIES: u8 = 2;
/// In place of the first parameter's type: the lengths have two octets (RFC 9072).
const EXTENDED: u8 = 255;

impl Open {
    /// The sender's AS number: that of the capability, or the two-octet field.
    pub fn asn(&self) -> Asn {
        self.four_octet_as().unwrap_or(Asn(self.my_as.into()))
    }

    /// The number in the four-octet AS capability, if there is one.
    pub fn four_octet_as(&self) -> Option<Asn> {
        self.capabilities.iter().find_map(|c| match c {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        })
    }

    /// Whether the capability of this number is there.
    pub fn has(&self, code: u8) -> bool {
        self.capabilities.iter().any(|c| c.code() == code)
    }

    /// Reads the body of an OPEN.
    ///
    /// # Errors
    /// The NOTIFICATION of RFC 4271 section 6.2; 2/0 for optional parameters whose lengths contradict each other.
    pub fn decode(body: &Bytes) -> Result<Open, Notification> {
        let malformed = || Notification::new(2, 0, &[]);
        let (rest, (version, my_as, hold_time, id)) = fixed(body).map_err(|_| malformed())?;
        if version != 4 {
            return Err(Notification::new(2, 1, &[0, 4]));
        }
        if my_as == 0 {
            return Err(Notification::new(2, 2, &[]));
        }
        if id == 0 {
            return Err(Notification::new(2, 3, &[]));
        }
        if matches!(hold_time, 1 | 2) {
            return Err(Notification::new(2, 6, &[]));
        }
        let parameters = parameters(rest).ok_or_else(malformed)?;
        let mut capabilities = Vec::new();
        for (kind, value) in parameters {
            if kind != CAPABILITIES {
                return Err(Notification::new(2, 4, &[]));
            }
            capabilities.extend(capability::decode_all(value).ok_or_else(malformed)?);
        }
        let open = Open {
            my_as,
            hold_time,
            router_id: RouterId(id),
            capabilities,
        };
        // RFC 7607: zero is nobody's number.
        if open.asn() == Asn::ZERO {
            return Err(Notification::new(2, 2, &[]));
        }
        Ok(open)
    }

    /// The whole message. The extended form (RFC 9072) is used only where the short one has no room.
    pub fn encode(&self) -> Bytes {
        let mut capabilities = Vec::new();
        for c in &self.capabilities {
            c.put(&mut capabilities);
        }
        header::message(MessageType::Open, |out| {
            out.put_u8(4);
            out.put_u16(self.my_as);
            out.put_u16(self.hold_time);
            out.put_u32(self.router_id.0);
            match u8::try_from(capabilities.len()) {
                Ok(0) => out.put_u8(0),
                Ok(len) if len <= 253 => {
                    out.put_slice(&[len + 2, CAPABILITIES, len]);
                    out.put_slice(&capabilities);
                }
                _ => {
                    let len = capabilities.len();
                    out.put_slice(&[EXTENDED, EXTENDED]);
                    out.put_u16((len + 3) as u16);
                    out.put_u8(CAPABILITIES);
                    out.put_u16(len as u16);
                    out.put_slice(&capabilities);
                }
            }
        })
    }
}

fn fixed(i: &[u8]) -> IResult<&[u8], (u8, u16, u16, u32)> {
    (be_u8, be_u16, be_u16, be_u32).parse(i)
}

/// The optional parameters, whose length field comes first: pairs of type and value. `None`: lengths contradict each other.
fn parameters(i: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let (&len, rest) = i.split_first()?;
    if let [EXTENDED, rest @ ..] = rest
        && len != 0
    {
        return exactly(extended_parameters, rest);
    }
    let (after, rest) = take::<_, _, nom::error::Error<_>>(len)(rest).ok()?;
    if !after.is_empty() {
        return None;
    }
    exactly(|i| many0((be_u8, length_data(be_u8))).parse(i), rest)
}

fn extended_parameters(i: &[u8]) -> IResult<&[u8], Vec<(u8, &[u8])>> {
    let parameter = |i| -> IResult<&[u8], (u8, &[u8])> { (be_u8, length_data(be_u16)).parse(i) };
    let (after, list) = length_data(be_u16).parse(i)?;
    let (_, list) = all_consuming(many0(parameter)).parse(list)?;
    Ok((after, list))
}

fn exactly<'a, T>(parser: impl Fn(&'a [u8]) -> IResult<&'a [u8], T>, i: &'a [u8]) -> Option<T> {
    let (after, value) = parser(i).ok()?;
    after.is_empty().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Family;

    fn body(head: &[u8], parameters: &[u8]) -> Bytes {
        [head, parameters].concat().into()
    }

    const HEAD: &[u8] = &[4, 0xfd, 0xe8, 0, 90, 10, 0, 0, 1];

    #[test]
    fn as_captured() {
        let parameters = [&[10, 2, 8, 1, 4, 0, 1, 0, 1, 2, 0][..]].concat();
        let open = Open::decode(&body(HEAD, &parameters)).unwrap();
        assert_eq!(
            open,
            Open {
                my_as: 65000,
                hold_time: 90,
                router_id: RouterId(0x0a00_0001),
                capabilities: vec![Capability::family(Family::Ipv4), Capability::RouteRefresh],
            }
        );
        assert_eq!(open.encode()[19..], body(HEAD, &parameters));
        // The same, each capability in a parameter of its own.
        let apart = [12, 2, 6, 1, 4, 0, 1, 0, 1, 2, 2, 2, 0];
        assert_eq!(Open::decode(&body(HEAD, &apart)), Ok(open.clone()));
        // The same in the extended form, whatever the first length says.
        let extended = [255, 255, 0, 11, 2, 0, 8, 1, 4, 0, 1, 0, 1, 2, 0];
        assert_eq!(Open::decode(&body(HEAD, &extended)), Ok(open.clone()));
        let extended = [1, 255, 0, 11, 2, 0, 8, 1, 4, 0, 1, 0, 1, 2, 0];
        assert_eq!(Open::decode(&body(HEAD, &extended)), Ok(open));
    }

    #[test]
    fn many_capabilities_take_the_extended_form() {
        for n in [40, 50, 51, 60, 200] {
            let open = Open {
                my_as: 23456,
                hold_time: 9,
                router_id: RouterId(1),
                capabilities: vec![
                    Capability::Other {
                        code: 200,
                        value: vec![1, 2, 3]
                    };
                    n
                ],
            };
            let message = open.encode();
            assert_eq!(Open::decode(&message.slice(19..)), Ok(open));
            assert_eq!(message[28] == 255 && message[29] == 255, n > 50, "{n}");
        }
    }

    #[test]
    fn faults_of_open() {
        let notification = Notification::new;
        for (name, head, parameters, expected) in [
            (
                "version 3",
                &[3, 0xfd, 0xe8, 0, 90, 10, 0, 0, 1][..],
                &[0][..],
                notification(2, 1, &[0, 4]),
            ),
            (
                "AS 0",
                &[4, 0, 0, 0, 90, 10, 0, 0, 1],
                &[0],
                notification(2, 2, &[]),
            ),
            (
                "AS 0 in the capability",
                HEAD,
                &[8, 2, 6, 65, 4, 0, 0, 0, 0],
                notification(2, 2, &[]),
            ),
            (
                "identifier 0",
                &[4, 0xfd, 0xe8, 0, 90, 0, 0, 0, 0],
                &[0],
                notification(2, 3, &[]),
            ),
            (
                "hold time 1",
                &[4, 0xfd, 0xe8, 0, 1, 10, 0, 0, 1],
                &[0],
                notification(2, 6, &[]),
            ),
            (
                "hold time 2",
                &[4, 0xfd, 0xe8, 0, 2, 10, 0, 0, 1],
                &[0],
                notification(2, 6, &[]),
            ),
            (
                "authentication parameter",
                HEAD,
                &[3, 1, 1, 0],
                notification(2, 4, &[]),
            ),
            ("no length", HEAD, &[], notification(2, 0, &[])),
            (
                "more than the length",
                HEAD,
                &[0, 2, 0],
                notification(2, 0, &[]),
            ),
            (
                "less than the length",
                HEAD,
                &[4, 2, 0],
                notification(2, 0, &[]),
            ),
            (
                "ends at a parameter's length",
                HEAD,
                &[1, 2],
                notification(2, 0, &[]),
            ),
            (
                "parameter longer than the field",
                HEAD,
                &[2, 2, 4],
                notification(2, 0, &[]),
            ),
            (
                "capability longer than the parameter",
                HEAD,
                &[4, 2, 2, 64, 6],
                notification(2, 0, &[]),
            ),
            (
                "extended, no length",
                HEAD,
                &[255, 255],
                notification(2, 0, &[]),
            ),
            (
                "extended, half a length",
                HEAD,
                &[255, 255, 0],
                notification(2, 0, &[]),
            ),
            (
                "extended, too long",
                HEAD,
                &[255, 255, 0, 5, 2, 0, 1],
                notification(2, 0, &[]),
            ),
            (
                "extended, parameter cut",
                HEAD,
                &[255, 255, 0, 2, 2, 0],
                notification(2, 0, &[]),
            ),
            (
                "extended, too short",
                HEAD,
                &[255, 255, 0, 0, 2],
                notification(2, 0, &[]),
            ),
        ] {
            assert_eq!(
                Open::decode(&body(head, parameters)),
                Err(expected),
                "{name}"
            );
        }
    }
}
