//! Malformed UPDATEs: what each leads to, from external and internal peers (RFC 4271 section 6.3, RFC 7606).

use super::*;
use crate::{ids::Family, wire::error::Action};

/// What became of an UPDATE that announces 10.0.0.0/8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Announced, nothing noted.
    Fine,
    /// Announced, without an attribute: subcode.
    Discard(u8),
    /// Withdrawn: subcode.
    Withdraw(u8),
    /// The session is reset: subcode.
    Reset(u8),
}
use Fate::{Discard, Fine, Reset, Withdraw};

fn fate(result: &Result<Update, Fault>) -> Fate {
    let update = match result {
        Err(fault) => {
            assert_eq!(fault.action, Action::SessionReset);
            assert_eq!(fault.notification().code, 3);
            return Reset(fault.error as u8);
        }
        Ok(update) => update,
    };
    let worst = update.faults.iter().map(|f| f.action).max();
    let first = update.faults.iter().find(|f| Some(f.action) == worst);
    let subcode = first.map_or(0, |f| f.error as u8);
    match worst {
        Some(Action::TreatAsWithdraw) => {
            assert!(update.reach.is_empty());
            assert!(!update.withdrawn.is_empty());
            Withdraw(subcode)
        }
        Some(_) => {
            assert!(!update.reach.is_empty());
            Discard(subcode)
        }
        None => {
            assert!(!update.reach.is_empty());
            Fine
        }
    }
}

/// The mandatory attributes with this one in place of, or after, them.
fn with(code: u8, attribute: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (c, a) in [(1, ORIGIN), (2, AS_PATH), (3, NEXT_HOP)] {
        all.extend_from_slice(if c == code { attribute } else { a });
    }
    if code == 0 || code > 3 {
        all.extend_from_slice(attribute);
    }
    all
}

#[test]
fn one_wrong_attribute_beside_right_ones() {
    let sequence = |asns: &[u32]| {
        let mut v = vec![2, asns.len() as u8];
        asns.iter().for_each(|a| v.extend(a.to_be_bytes()));
        v
    };
    // name, flags, code, value, fate from an external peer, fate from an internal one
    let cases: Vec<(&str, u8, u8, Vec<u8>, Fate, Fate)> = vec![
        ("as it should be", 0x40, 1, vec![2], Fine, Fine),
        ("extended length without need", 0x50, 1, vec![2], Fine, Fine),
        (
            "unused flag bits are ignored",
            0x4f & !0x10,
            1,
            vec![2],
            Fine,
            Fine,
        ),
        ("ORIGIN 3", 0x40, 1, vec![3], Withdraw(6), Withdraw(6)),
        (
            "ORIGIN without the transitive flag",
            0x00,
            1,
            vec![0],
            Withdraw(4),
            Withdraw(4),
        ),
        (
            "ORIGIN optional",
            0xc0,
            1,
            vec![0],
            Withdraw(4),
            Withdraw(4),
        ),
        (
            "ORIGIN partial is no conflict",
            0x60,
            1,
            vec![0],
            Fine,
            Fine,
        ),
        ("empty AS_PATH", 0x40, 2, vec![], Withdraw(11), Fine),
        (
            "first AS is another",
            0x40,
            2,
            sequence(&[65002, 65001]),
            Withdraw(11),
            Fine,
        ),
        (
            "AS 0 in AS_PATH",
            0x40,
            2,
            sequence(&[65001, 0]),
            Withdraw(11),
            Withdraw(11),
        ),
        (
            "segment type 0",
            0x40,
            2,
            vec![0, 1, 0, 0, 0xfd, 0xe9],
            Withdraw(11),
            Withdraw(11),
        ),
        (
            "segment type 5",
            0x40,
            2,
            vec![5, 1, 0, 0, 0xfd, 0xe9],
            Withdraw(11),
            Withdraw(11),
        ),
        (
            "empty segment",
            0x40,
            2,
            [sequence(&[65001]), vec![2, 0]].concat(),
            Withdraw(11),
            Withdraw(11),
        ),
        (
            "half a segment header",
            0x40,
            2,
            [sequence(&[65001]), vec![2]].concat(),
            Withdraw(11),
            Withdraw(11),
        ),
        (
            "segment overrun",
            0x40,
            2,
            vec![2, 2, 0, 0, 0xfd, 0xe9],
            Withdraw(11),
            Withdraw(11),
        ),
        (
            "confederation segment",
            0x40,
            2,
            [vec![3, 1, 0, 0, 0, 9], sequence(&[65001])].concat(),
            Withdraw(11),
            Fine,
        ),
        (
            "begins with a set",
            0x40,
            2,
            vec![1, 1, 0, 0, 0xfd, 0xe9],
            Withdraw(11),
            Fine,
        ),
        (
            "NEXT_HOP 0.0.0.0",
            0x40,
            3,
            vec![0, 0, 0, 0],
            Withdraw(8),
            Withdraw(8),
        ),
        (
            "NEXT_HOP 127.0.0.1",
            0x40,
            3,
            vec![127, 0, 0, 1],
            Withdraw(8),
            Withdraw(8),
        ),
        (
            "NEXT_HOP multicast",
            0x40,
            3,
            vec![224, 0, 0, 1],
            Withdraw(8),
            Withdraw(8),
        ),
        (
            "NEXT_HOP broadcast",
            0x40,
            3,
            vec![255; 4],
            Withdraw(8),
            Withdraw(8),
        ),
        (
            "NEXT_HOP is our address",
            0x40,
            3,
            vec![192, 0, 2, 254],
            Withdraw(8),
            Withdraw(8),
        ),
        (
            "NEXT_HOP of three octets",
            0x40,
            3,
            vec![192, 0, 2],
            Withdraw(5),
            Withdraw(5),
        ),
        (
            "MED of three octets",
            0x80,
            4,
            vec![0; 3],
            Withdraw(5),
            Withdraw(5),
        ),
        (
            "MED transitive",
            0xc0,
            4,
            vec![0; 4],
            Withdraw(4),
            Withdraw(4),
        ),
        ("LOCAL_PREF", 0x40, 5, vec![0; 4], Fine, Fine),
        (
            "LOCAL_PREF of three octets",
            0x40,
            5,
            vec![0; 3],
            Fine,
            Withdraw(5),
        ),
        (
            "LOCAL_PREF optional",
            0xc0,
            5,
            vec![0; 4],
            Fine,
            Withdraw(4),
        ),
        (
            "ATOMIC_AGGREGATE of one octet",
            0x40,
            6,
            vec![0],
            Discard(5),
            Discard(5),
        ),
        (
            "ATOMIC_AGGREGATE optional",
            0xc0,
            6,
            vec![],
            Withdraw(4),
            Withdraw(4),
        ),
        (
            "AGGREGATOR of six octets",
            0xc0,
            7,
            vec![1; 6],
            Discard(5),
            Discard(5),
        ),
        (
            "AGGREGATOR AS 0",
            0xc0,
            7,
            vec![0, 0, 0, 0, 1, 1, 1, 1],
            Discard(9),
            Discard(9),
        ),
        (
            "COMMUNITIES empty",
            0xc0,
            8,
            vec![],
            Withdraw(5),
            Withdraw(5),
        ),
        (
            "COMMUNITIES of five octets",
            0xc0,
            8,
            vec![1; 5],
            Withdraw(5),
            Withdraw(5),
        ),
        ("COMMUNITIES partial", 0xe0, 8, vec![1; 4], Fine, Fine),
        (
            "ORIGINATOR_ID of five octets",
            0x80,
            9,
            vec![1; 5],
            Fine,
            Withdraw(5),
        ),
        ("ORIGINATOR_ID", 0x80, 9, vec![1; 4], Fine, Fine),
        (
            "CLUSTER_LIST of six octets",
            0x80,
            10,
            vec![1; 6],
            Fine,
            Withdraw(5),
        ),
        ("CLUSTER_LIST empty", 0x80, 10, vec![], Fine, Withdraw(5)),
        (
            "EXTENDED COMMUNITIES of nine octets",
            0xc0,
            16,
            vec![1; 9],
            Withdraw(5),
            Withdraw(5),
        ),
        (
            "AS4_PATH from one who needs none",
            0xc0,
            17,
            vec![9],
            Fine,
            Fine,
        ),
        (
            "AS4_AGGREGATOR from one who needs none",
            0xc0,
            18,
            vec![9],
            Fine,
            Fine,
        ),
        (
            "LARGE_COMMUNITY of eleven octets",
            0xc0,
            32,
            vec![1; 11],
            Withdraw(5),
            Withdraw(5),
        ),
        ("unknown well-known", 0x40, 77, vec![], Reset(2), Reset(2)),
        ("unknown, no flags", 0x00, 0, vec![], Reset(2), Reset(2)),
        (
            "unknown optional transitive",
            0xc0,
            77,
            vec![1, 2],
            Fine,
            Fine,
        ),
        ("unknown optional", 0x80, 77, vec![1, 2], Fine, Fine),
        (
            "tunnel encapsulation, nonsense inside",
            0xc0,
            23,
            vec![0xff; 9],
            Fine,
            Fine,
        ),
        (
            "entropy label, nonsense inside",
            0xc0,
            28,
            vec![1, 2, 3],
            Fine,
            Fine,
        ),
        (
            "prefix SID, nonsense inside",
            0xc0,
            40,
            vec![1, 0, 99, 1],
            Fine,
            Fine,
        ),
        ("MP_REACH empty", 0x80, 14, vec![], Reset(9), Reset(9)),
        (
            "MP_REACH next hop longer than the attribute",
            0x80,
            14,
            vec![0, 2, 1, 16, 1],
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH next hop of no length",
            0x80,
            14,
            vec![0, 2, 1, 0, 0],
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH next hop of nine octets",
            0x80,
            14,
            [vec![0, 2, 1, 9], vec![1; 9], vec![0]].concat(),
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH next hop of 64 octets",
            0x80,
            14,
            [vec![0, 2, 1, 64], vec![1; 64], vec![0]].concat(),
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH IPv4 by an IPv6 next hop",
            0x80,
            14,
            [vec![0, 1, 1, 16], vec![1; 16], vec![0]].concat(),
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH prefix of 129 bits",
            0x80,
            14,
            [vec![0, 2, 1, 16], vec![1; 16], vec![0, 129], vec![0; 17]].concat(),
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH prefix cut",
            0x80,
            14,
            [vec![0, 2, 1, 16], vec![1; 16], vec![0, 64, 1]].concat(),
            Reset(9),
            Reset(9),
        ),
        (
            "MP_REACH of a family nobody agreed on",
            0x80,
            14,
            vec![0, 99, 9, 1, 1, 0, 255],
            Fine,
            Fine,
        ),
        (
            "MP_REACH flags",
            0xc0,
            14,
            MP_REACH[3..].to_vec(),
            Withdraw(4),
            Withdraw(4),
        ),
        (
            "MP_REACH by ::",
            0x80,
            14,
            [vec![0, 2, 1, 16], vec![0; 16], vec![0, 8, 0xfd]].concat(),
            Fine,
            Fine,
        ),
        (
            "MP_UNREACH of two octets",
            0x80,
            15,
            vec![0, 2],
            Reset(9),
            Reset(9),
        ),
        (
            "MP_UNREACH prefix cut",
            0x80,
            15,
            vec![0, 2, 1, 64, 1],
            Reset(9),
            Reset(9),
        ),
        (
            "MP_UNREACH beside announced routes",
            0x80,
            15,
            vec![0, 2, 1, 8, 0xfd],
            Fine,
            Fine,
        ),
    ];
    for (name, flags, code, value, external, internal) in cases {
        let attributes = with(code, &attribute(flags, code, &value));
        for (is_internal, expected) in [(false, external), (true, internal)] {
            let result = decode(&body(&[], &attributes, NLRI), &context(is_internal));
            if name == "MP_REACH by ::" {
                // The IPv4 routes stay, the IPv6 ones go.
                let update = result.unwrap();
                assert_eq!(update.reach[0].1.family(), Family::Ipv4);
                assert_eq!(update.withdrawn[0].family(), Family::Ipv6);
                assert_eq!(update.faults[0].action, Action::TreatAsWithdraw);
                continue;
            }
            assert_eq!(fate(&result), expected, "{name}, internal: {is_internal}");
        }
    }
}

#[test]
fn messages_that_contradict_themselves() {
    let raw = |b: &[u8]| Bytes::copy_from_slice(b);
    let unreach_v6: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    let bad_origin: &[u8] = &[0x40, 1, 1, 9];
    let cases: Vec<(&str, Bytes, Fate)> = vec![
        (
            "withdrawn routes longer than the message",
            raw(&[0, 9, 0, 0]),
            Reset(1),
        ),
        (
            "attributes longer than the message",
            raw(&[0, 0, 0, 9, 1]),
            Reset(1),
        ),
        (
            "no room for the second length",
            raw(&[0, 1, 0, 0]),
            Reset(1),
        ),
        (
            "NLRI of 33 bits",
            body(&[], &base(), &[33, 1, 2, 3, 4, 5]),
            Reset(10),
        ),
        ("NLRI cut", body(&[], &base(), &[24, 1]), Reset(10)),
        (
            "withdrawn of 33 bits",
            body(&[33, 1, 2, 3, 4, 5], &[], &[]),
            Reset(10),
        ),
        ("withdrawn cut", body(&[24, 1], &[], &[]), Reset(10)),
        ("NLRI without attributes", body(&[], &[], NLRI), Withdraw(3)),
        (
            "NLRI without ORIGIN",
            body(&[], &[AS_PATH, NEXT_HOP].concat(), NLRI),
            Withdraw(3),
        ),
        (
            "NLRI without AS_PATH",
            body(&[], &[ORIGIN, NEXT_HOP].concat(), NLRI),
            Withdraw(3),
        ),
        (
            "NLRI without NEXT_HOP",
            body(&[], &[ORIGIN, AS_PATH].concat(), NLRI),
            Withdraw(3),
        ),
        (
            "MP_REACH needs no NEXT_HOP",
            body(&[], &[ORIGIN, AS_PATH, MP_REACH].concat(), &[]),
            Fine,
        ),
        (
            "MP_REACH without AS_PATH",
            body(&[], &[ORIGIN, MP_REACH].concat(), &[]),
            Withdraw(3),
        ),
        (
            "MP_UNREACH and NLRI, nothing mandatory",
            body(&[], unreach_v6, NLRI),
            Withdraw(3),
        ),
        (
            "ORIGIN twice",
            body(&[], &[&base(), bad_origin].concat(), NLRI),
            Discard(1),
        ),
        (
            "MP_REACH twice",
            body(&[], &[ORIGIN, AS_PATH, MP_REACH, MP_REACH].concat(), &[]),
            Reset(1),
        ),
        (
            "MP_UNREACH twice",
            body(&[], &[unreach_v6, unreach_v6].concat(), &[]),
            Reset(1),
        ),
        (
            "unknown twice",
            body(
                &[],
                &[&base()[..], &[0xc0, 99, 0], &[0xc0, 99, 0]].concat(),
                NLRI,
            ),
            Discard(1),
        ),
        (
            "one octet after the attributes",
            body(&[], &[&base()[..], &[0x80]].concat(), NLRI),
            Withdraw(1),
        ),
        (
            "extended length cut",
            body(&[], &[&base()[..], &[0x90, 4, 0]].concat(), NLRI),
            Withdraw(1),
        ),
        (
            "attribute past the field",
            body(
                &[],
                &[&base()[..], &[0x80, 4, 5, 0, 0, 0, 0]].concat(),
                NLRI,
            ),
            Withdraw(5),
        ),
        (
            "length 65535",
            body(
                &[],
                &[&base()[..], &[0x90, 4, 0xff, 0xff, 0]].concat(),
                NLRI,
            ),
            Withdraw(5),
        ),
        (
            "MP_REACH past the field",
            body(&[], &[&base()[..], &[0x80, 14, 5, 0]].concat(), NLRI),
            Reset(5),
        ),
        (
            "wrong attribute, nothing announced",
            body(&[], bad_origin, &[]),
            Reset(6),
        ),
        (
            "wrong attribute beside MP_UNREACH only",
            body(&[], &[bad_origin, unreach_v6].concat(), &[]),
            Reset(6),
        ),
        (
            "wrong attribute beside withdrawn routes only",
            body(NLRI, bad_origin, &[]),
            Reset(6),
        ),
        (
            "withdraw and discard: withdraw",
            body(
                &[],
                &[&[0x40, 6, 1, 0][..], bad_origin, AS_PATH, NEXT_HOP].concat(),
                NLRI,
            ),
            Withdraw(6),
        ),
        (
            "withdraw and reset: reset",
            body(
                &[],
                &[bad_origin, &[0x40, 88, 0], AS_PATH, NEXT_HOP].concat(),
                NLRI,
            ),
            Reset(2),
        ),
    ];
    for (name, body, expected) in cases {
        for internal in [false, true] {
            assert_eq!(fate(&decode(&body, &context(internal))), expected, "{name}");
        }
    }
    // Nothing announced, and nothing that would matter to it: no fault.
    for attributes in [&[0xc0, 99, 0][..], &[0x40, 6, 1, 0], ORIGIN] {
        let update = decode(&body(&[], attributes, &[]), &context(false)).unwrap();
        assert!(update.reach.is_empty() && update.end_of_rib.is_none());
    }
}

#[test]
fn what_a_notification_says() {
    let ctx = context(false);
    let unknown = attribute(0x40, 77, &[1, 2, 3]);
    let fault = decode(&body(&[], &with(77, &unknown), NLRI), &ctx).unwrap_err();
    assert_eq!(&fault.notification().data[..], unknown);
    assert_eq!(
        fault.to_string(),
        "a well-known attribute is unknown (attribute 77)"
    );
    let bad = attribute(0x40, 1, &[7]);
    let fault = decode(&body(&[], &bad, &[]), &ctx).unwrap_err();
    assert_eq!(&fault.notification().data[..], bad);
    let update = decode(&body(&[], &[ORIGIN, NEXT_HOP].concat(), NLRI), &ctx).unwrap();
    assert_eq!(&update.faults[0].data[..], [2]);
    // A huge attribute is cut to the message.
    let huge = attribute(0x50, 77, &[1; 9000]);
    let fault = decode(&body(&[], &huge, NLRI), &ctx).unwrap_err();
    assert_eq!(fault.notification().encode().len(), 4096);
}

/// What the standards say of one attribute with these flags and a value of this many octets, each of them 1: written
/// down once more, apart from the table that the decoder works by.
fn expected(code: u8, flags: u8, len: usize, internal: bool) -> Fate {
    let category = flags & 0xc0;
    let right_flags = match code {
        1 | 2 | 3 | 5 | 6 => 0x40,
        4 | 9 | 10 | 14 | 15 => 0x80,
        7 | 8 | 16 | 32 => 0xc0,
        // Discarded, whatever they are: four-octet numbers were agreed on.
        17 | 18 => return Fine,
        _ if category & 0x80 == 0 => return Reset(2),
        _ => return Fine,
    };
    if matches!(code, 5 | 9 | 10) && !internal {
        return Fine;
    }
    // All ones: MP attributes of family 257, which nobody agreed on, once the fixed part is there.
    let framed = match code {
        14 => len >= 6,
        15 => len >= 3,
        _ => true,
    };
    match code {
        _ if category != right_flags && framed => Withdraw(4),
        14 | 15 if !framed => Reset(9),
        14 | 15 => Fine,
        1 if len == 1 => Fine,
        // Two ones and then half a number, or a set that is no neighbour.
        2 if len == 0 && internal => Fine,
        2 if len.is_multiple_of(6) && internal => Fine,
        2 => Withdraw(11),
        3 if len == 4 => Fine,
        4 | 5 | 9 if len == 4 => Fine,
        6 if len == 0 => Fine,
        7 if len == 8 => Fine,
        6 | 7 => Discard(5),
        8 | 10 if len > 0 && len.is_multiple_of(4) => Fine,
        16 if len > 0 && len.is_multiple_of(8) => Fine,
        32 if len > 0 && len.is_multiple_of(12) => Fine,
        _ => Withdraw(5),
    }
}

#[test]
fn every_code_with_all_flags_and_lengths() {
    for code in 0..=255u8 {
        for flags in [0xc0, 0xe0, 0x80, 0x40, 0x00, 0xd0, 0x90, 0x50, 0x60, 0xff] {
            for len in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 24, 255] {
                for internal in [false, true] {
                    let attributes = with(code, &attribute(flags, code, &vec![1; len]));
                    let result = decode(&body(&[], &attributes, NLRI), &context(internal));
                    assert_eq!(
                        fate(&result),
                        expected(code, flags, len, internal),
                        "code {code}, flags {flags:#x}, {len} octets, internal: {internal}"
                    );
                }
            }
            // A length past the field: the routes go, or the session where it hides routes.
            let long = [&base()[..], &[flags | 0x10, code, 0xff, 0xff, 1]].concat();
            let fate = fate(&decode(&body(&[], &long, NLRI), &context(true)));
            let expected = if matches!(code, 14 | 15) {
                Reset(5)
            } else {
                Withdraw(5)
            };
            assert_eq!(
                fate, expected,
                "code {code}, flags {flags:#x}, 65535 octets"
            );
        }
    }
}
