//! Which of two connections to one peer stays (RFC 4271 section 6.8, RFC 6286 section 2.3).

use crate::ids::{Asn, RouterId};

/// Whether of two connections that are not Established the one that we have opened stays: the one opened by the speaker
/// with the higher identifier, or the higher AS number where identifiers are equal. Both sides come to the same answer.
pub(crate) fn ours_stays(local: (RouterId, Asn), peer: (RouterId, Asn)) -> bool {
    local > peer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree() {
        for (id_a, as_a, id_b, as_b) in [(1, 9, 2, 8), (2, 8, 1, 9), (1, 8, 1, 9), (1, 9, 1, 8)] {
            let (a, b) = ((RouterId(id_a), Asn(as_a)), (RouterId(id_b), Asn(as_b)));
            assert_ne!(ours_stays(a, b), ours_stays(b, a));
        }
        let high_id = (RouterId(2), Asn(1));
        assert!(ours_stays(high_id, (RouterId(1), Asn(2))));
    }
}
