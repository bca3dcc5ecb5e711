//! One door to all decoders, for whoever throws bytes at them.

use crate::monitor::RouteEvent;
use crate::nft::NftEvent;
use crate::socket::{Message, answer, messages};
use crate::{conntrack, nft, qdisc};

/// Decodes a datagram with every decoder of this crate, whatever protocol it came from, and
/// returns how many of its messages made sense to one. No bytes make it panic.
pub fn decode_any(datagram: &[u8]) -> usize {
    messages(datagram).filter(makes_sense).count()
}

fn makes_sense(message: &Message<'_>) -> bool {
    let known = [
        RouteEvent::decode(message).is_some(),
        NftEvent::decode(message).is_some(),
        conntrack::decode(message).is_some(),
        qdisc::decode_any(message),
        nft::list::decode_any(message),
        answer(message),
    ];
    known.contains(&true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attr::NESTED;
    use crate::batch::Batch;

    /// Message types with a decoder.
    const KINDS: [u16; 27] = [
        2, 3, 16, 17, 20, 21, 24, 25, 28, 29, 36, 44, 80, 104, 105, 0x100, 0x102, 0xa00, 0xa03,
        0xa06, 0xa08, 0xa09, 0xa0c, 0xa0e, 0xa0f, 0xa12, 0xa16,
    ];

    /// Bytes that look like attributes: nested ones, some with a wrong length.
    fn attributes(depth: u32) -> BoxedStrategy<Vec<u8>> {
        let leaf = proptest::collection::vec(any::<u8>(), 0..24);
        if depth == 0 {
            return leaf.boxed();
        }
        let one = (
            0u16..35,
            prop_oneof![9 => Just(0i8), 1 => any::<i8>()],
            any::<bool>(),
            { prop_oneof![leaf.boxed(), attributes(depth - 1)] },
        );
        proptest::collection::vec(one, 0..6)
            .prop_map(|list| {
                let mut bytes = Vec::new();
                for (kind, error, nested, value) in list {
                    let length = (value.len() as u16 + 4).wrapping_add_signed(error.into());
                    bytes.extend_from_slice(&length.to_ne_bytes());
                    let mark = if nested { NESTED } else { 0 };
                    bytes.extend_from_slice(&(kind | mark).to_ne_bytes());
                    bytes.extend_from_slice(&value);
                    bytes.resize(bytes.len().next_multiple_of(4), 0);
                }
                bytes
            })
            .boxed()
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode_any(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(
            kind in proptest::sample::select(&KINDS[..]),
            flags in any::<u16>(),
            header in proptest::collection::vec(any::<u8>(), 0..17),
            attributes in attributes(3),
            cut in 0usize..64,
        ) {
            let mut batch = Batch::new();
            batch.push(kind, flags, |body| {
                body.raw(&header);
                body.raw(&attributes);
            });
            let bytes = batch.as_bytes();
            decode_any(bytes);
            decode_any(&bytes[..bytes.len().saturating_sub(cut)]);
        }
    }
}
