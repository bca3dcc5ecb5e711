//! ROUTE-REFRESH (RFC 2918, RFC 7313).

use bytes::{BufMut, Bytes};

use super::header::{self, MessageType};

/// A ROUTE-REFRESH. Families and subtypes that we do not know keep their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RouteRefresh {
    /// The address family number.
    pub afi: u16,
    /// What is meant; see the constants. Others are ignored (RFC 7313 section 5).
    pub subtype: u8,
    /// The subsequent address family.
    pub safi: u8,
}

impl RouteRefresh {
    /// Announce everything again.
    pub const REQUEST: u8 = 0;
    /// A refresh begins (RFC 7313).
    pub const BEGIN: u8 = 1;
    /// A refresh is complete (RFC 7313).
    pub const END: u8 = 2;

    /// Reads the body; what follows the first four octets (ORF entries, which nobody negotiated) is ignored.
    /// `None` if it is shorter, which the frame excludes.
    pub fn decode(body: &[u8]) -> Option<RouteRefresh> {
        let ([a, b, subtype, safi], _) = body.split_first_chunk::<4>()?;
        Some(RouteRefresh {
            afi: u16::from_be_bytes([*a, *b]),
            subtype: *subtype,
            safi: *safi,
        })
    }

    /// The whole message.
    pub fn encode(&self) -> Bytes {
        header::message(MessageType::RouteRefresh, |out| {
            out.put_u16(self.afi);
            out.put_u8(self.subtype);
            out.put_u8(self.safi);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for subtype in [0, 1, 2, 255] {
            let r = RouteRefresh {
                afi: 2,
                subtype,
                safi: 1,
            };
            assert_eq!(RouteRefresh::decode(&r.encode()[19..]), Some(r));
        }
        assert_eq!(RouteRefresh::decode(&[0, 1, 0]), None);
        let orf = [0, 1, 0, 1, 1, 128, 0, 9];
        assert_eq!(RouteRefresh::decode(&orf).map(|r| r.afi), Some(1));
    }
}
