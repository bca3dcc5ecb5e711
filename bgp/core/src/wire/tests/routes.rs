//! Well-formed UPDATEs, as captured and as packed.

use std::net::{IpAddr, Ipv6Addr};

use super::*;
use crate::{
    ids::{Family, RouterId},
    prefix::Prefix,
    wire::{
        attr::{AsPath, NextHop, Origin, PathAttributes, UnknownAttribute},
        header,
        nlri::NlriBlock,
        pack::{EncodeOptions, Unencodable, write_end_of_rib, write_reach, write_unreach},
    },
};

fn p(s: &str) -> Prefix {
    s.parse().unwrap()
}

fn prefixes(block: &NlriBlock) -> Vec<String> {
    block.iter().map(|(_, p)| p.to_string()).collect()
}

/// The bodies of the messages in `bytes`.
fn bodies(bytes: &[u8], limit: usize) -> Vec<Bytes> {
    let mut stream = BytesMut::from(bytes);
    let mut all = Vec::new();
    while let Some(frame) = header::next_frame(&mut stream, limit).unwrap() {
        assert_eq!(frame.kind, header::MessageType::Update);
        all.push(frame.body);
    }
    assert!(stream.is_empty());
    all
}

fn rich(next_hop: NextHop) -> PathAttributes {
    PathAttributes {
        origin: Origin::Egp,
        as_path: AsPath::from_sequence(&[Asn(65001), Asn(70000), Asn(3)]),
        med: Some(5),
        local_pref: Some(200),
        atomic_aggregate: true,
        aggregator: Some((Asn(70000), Ipv4Addr::new(1, 2, 3, 4))),
        communities: [0xfde9_0001, 0xffff_ff01].into(),
        ext_communities: [[0, 2, 0, 1, 0, 0, 0, 9]].into(),
        large_communities: [[1, 2, 3], [4, 5, 6]].into(),
        originator_id: Some(RouterId(7)),
        cluster_list: [RouterId(8), RouterId(9)].into(),
        unknown: [
            UnknownAttribute {
                flags: 0xe0,
                code: 13,
                value: [1, 2].into(),
            },
            UnknownAttribute {
                flags: 0xe0,
                code: 99,
                value: [7; 300].into(),
            },
        ]
        .into(),
        ..PathAttributes::local(next_hop)
    }
}

#[test]
fn as_captured() {
    let update = decode(&body(&[16, 172, 16], &base(), NLRI), &context(false)).unwrap();
    assert_eq!(prefixes(&update.withdrawn[0]), ["172.16.0.0/16"]);
    let (attrs, nlri) = &update.reach[0];
    assert_eq!(prefixes(nlri), ["10.0.0.0/8"]);
    assert_eq!(
        **attrs,
        PathAttributes {
            as_path: AsPath::from_sequence(&[Asn(65001)]),
            ..PathAttributes::local(IpAddr::from([192, 0, 2, 1]).into())
        }
    );
    // Both families in one UPDATE: the same attributes, two next hops.
    let both = [&base()[..], MP_REACH].concat();
    let update = decode(&body(&[], &both, NLRI), &context(false)).unwrap();
    let hops: Vec<_> = update
        .reach
        .iter()
        .map(|(a, _)| a.next_hop.to_string())
        .collect();
    assert_eq!(hops, ["192.0.2.1", "fd00::1"]);
}

#[test]
fn end_of_rib() {
    let v6 = [0x80, 15, 3, 0, 2, 1];
    let v4 = [0x80, 15, 3, 0, 1, 1];
    let multicast = [0x80, 15, 3, 0, 2, 2];
    for (attributes, withdrawn, family) in [
        (&[][..], &[][..], Some(Family::Ipv4)),
        (&v6, &[], Some(Family::Ipv6)),
        (&v4, &[], Some(Family::Ipv4)),
        (&multicast, &[], None),
        (&v6, &[8, 10], None),
        (&[], &[8, 10], None),
        (&[0x80, 15, 5, 0, 2, 1, 8, 0xfd], &[], None),
    ] {
        let update = decode(&body(withdrawn, attributes, &[]), &context(false)).unwrap();
        assert_eq!(update.end_of_rib, family, "{attributes:?}");
    }
    for family in Family::ALL {
        let mut out = BytesMut::new();
        write_end_of_rib(&mut out, family);
        let update = decode(&bodies(&out, 4096)[0], &context(true)).unwrap();
        assert_eq!(update.end_of_rib, Some(family));
    }
}

#[test]
fn families_that_were_not_negotiated_mean_nothing() {
    let mut ctx = context(false);
    ctx.families = FamilySet::from_iter([Family::Ipv6]);
    let update = decode(&body(NLRI, &base(), NLRI), &ctx).unwrap();
    assert_eq!(update, Update::default());
    ctx.families = FamilySet::from_iter([Family::Ipv4]);
    let both = [&base()[..], MP_REACH].concat();
    let update = decode(&body(&[], &both, NLRI), &ctx).unwrap();
    assert_eq!(update.reach.len(), 1);
}

/// RFC 4271 section 5: once set by another AS, the Partial bit must not be cleared, of no optional transitive attribute.
#[test]
fn a_partial_bit_stays_set() {
    let values: [(u8, &[u8]); 5] = [
        (7, &[0, 0, 0xfd, 0xe9, 192, 0, 2, 7]),
        (8, &[0xfd, 0xe9, 0, 1]),
        (16, &[0, 2, 0, 1, 0, 0, 0, 9]),
        (32, &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]),
        (99, &[1, 2, 3]),
    ];
    for (code, value) in values {
        for flags in [0xc0, 0xe0] {
            let attributes = [base(), attribute(flags, code, value)].concat();
            let update = decode(&body(&[], &attributes, NLRI), &context(false)).unwrap();
            let mut out = BytesMut::new();
            let routes = &mut [(0, p("10.0.0.0/8"))].into_iter();
            let options = EncodeOptions::default();
            write_reach(&mut out, Family::Ipv4, &update.reach[0].0, &options, routes).unwrap();
            let sent = &bodies(&out, 4096)[0];
            // What we do not know is partial when we pass it on.
            let wanted = if code == 99 { 0xe0 } else { flags };
            let wanted = attribute(wanted, code, value);
            let found = sent.windows(wanted.len()).any(|w| w == wanted);
            assert!(found, "{code} with {flags:#x}: {sent:x?}");
        }
    }
    // The same of what a speaker of two octets passes on for those of four.
    let two = Context {
        four_octet_as: false,
        ..context(false)
    };
    let path = [0x40, 2, 6, 2, 2, 0xfd, 0xe9, 0x5b, 0xa0];
    let as4_path = attribute(0xe0, 17, &[2, 1, 0, 1, 0x11, 0x70]);
    let attributes = [ORIGIN, &path, NEXT_HOP, &as4_path].concat();
    let update = decode(&body(&[], &attributes, NLRI), &two).unwrap();
    let mut out = BytesMut::new();
    let options = EncodeOptions {
        four_octet_as: false,
        ..EncodeOptions::default()
    };
    let routes = &mut [(0, p("10.0.0.0/8"))].into_iter();
    write_reach(&mut out, Family::Ipv4, &update.reach[0].0, &options, routes).unwrap();
    assert!(out.windows(2).any(|w| w == [0xe0, 17]), "{out:x?}");
}

/// What is wrong with a next hop is said in words that lead to the cause.
#[test]
fn why_a_next_hop_is_refused() {
    let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
    let discard = "100::1".parse::<Ipv6Addr>().unwrap().octets();
    let link_local = "fe80::1".parse::<Ipv6Addr>().unwrap().octets();
    let none = Context {
        interface: None,
        ..context(false)
    };
    let v4 = |hop: [u8; 4]| [ORIGIN, AS_PATH, &attribute(0x40, 3, &hop)].concat();
    let v6 = |hop: [u8; 16]| {
        let value = [&[0, 2, 1, 16][..], &hop, &[0, 32, 0xfd, 0, 0, 1]].concat();
        [ORIGIN, AS_PATH, &attribute(0x80, 14, &value)].concat()
    };
    let host = "the next hop is no host's address";
    let own = "the next hop is our own address";
    let interface = "the next hop is link-local, and the session is not on a link-local address";
    for (attributes, nlri, why) in [
        (v4([192, 0, 2, 254]), NLRI, own),
        (v4([127, 0, 0, 1]), NLRI, host),
        (v4([169, 254, 1, 1]), NLRI, host),
        (v4([240, 0, 0, 1]), NLRI, host),
        (v6(mapped), &[], host),
        (v6(discard), &[], host),
        (v6(link_local), &[], interface),
    ] {
        let update = decode(&body(&[], &attributes, nlri), &none).unwrap();
        assert!(update.reach.is_empty() && update.withdrawn.len() == 1);
        assert_eq!(update.faults[0].what, why);
    }
}

#[test]
fn everything_survives_the_way_to_an_internal_peer() {
    let v4 = NextHop::from(IpAddr::from([192, 0, 2, 1]));
    let v6 = NextHop {
        global: "fd00::1".parse().unwrap(),
        link_local: Some(("fe80::1".parse::<Ipv6Addr>().unwrap(), IfIndex(7))),
    };
    for (family, next_hop, prefix) in [
        (Family::Ipv4, v4, "10.1.0.0/16"),
        (Family::Ipv6, v6, "fd00:1::/64"),
        (Family::Ipv6, NextHop::from(v6.global), "::/0"),
    ] {
        for (four_octet_as, add_path) in [(true, false), (false, false), (true, true)] {
            let opts = EncodeOptions {
                four_octet_as,
                add_path,
                ..EncodeOptions::default()
            };
            let mut ctx = context(true);
            ctx.four_octet_as = four_octet_as;
            if add_path {
                ctx.add_path.insert(family);
            }
            let attrs = rich(next_hop);
            let id = if add_path { 17 } else { 0 };
            let mut out = BytesMut::new();
            write_reach(
                &mut out,
                family,
                &attrs,
                &opts,
                &mut [(id, p(prefix))].into_iter(),
            )
            .unwrap();
            let update = decode(&bodies(&out, 4096)[0], &ctx).unwrap();
            assert_eq!(*update.reach[0].0, attrs);
            assert_eq!(
                update.reach[0].1.iter().collect::<Vec<_>>(),
                [(id, p(prefix))]
            );
            assert!(update.faults.is_empty());
        }
    }
}

#[test]
fn link_local_next_hops() {
    let global: Ipv6Addr = "fd00::1".parse().unwrap();
    let local: Ipv6Addr = "fe80::1".parse().unwrap();
    let zero = Ipv6Addr::UNSPECIFIED;
    let on = Some(IfIndex(7));
    for (first, second, interface, expected) in [
        (global, Some(local), on, Some((global, Some(local)))),
        (global, Some(local), None, Some((global, None))),
        (global, Some(global), on, Some((global, None))),
        (local, None, on, Some((local, Some(local)))),
        (local, None, None, None),
        (zero, Some(local), on, Some((local, Some(local)))),
        (zero, None, on, None),
    ] {
        let mut value = vec![0, 2, 1, if second.is_some() { 32 } else { 16 }];
        value.extend(first.octets());
        second.iter().for_each(|a| value.extend(a.octets()));
        value.extend([0, 8, 0xfd]);
        let mp = attribute(0x80, 14, &value);
        let mut ctx = context(false);
        ctx.interface = interface;
        let update = decode(&body(&[], &[&mp, ORIGIN, AS_PATH].concat(), &[]), &ctx).unwrap();
        let got = update.reach.first().map(|(a, _)| a.next_hop);
        let expected = expected.map(|(g, l)| NextHop {
            global: g.into(),
            link_local: l.map(|l| (l, IfIndex(7))),
        });
        assert_eq!(got, expected, "{first} {second:?}");
    }
}

#[test]
fn four_octet_numbers_through_a_two_octet_speaker() {
    // RFC 6793 section 4.2.3: AS_PATH, AS4_PATH, AGGREGATOR, AS4_AGGREGATOR → path, aggregator.
    let two = |asns: &[u16]| {
        let mut v = vec![2, asns.len() as u8];
        asns.iter().for_each(|a| v.extend(a.to_be_bytes()));
        v
    };
    let four = |asns: &[u32]| {
        let mut v = vec![2, asns.len() as u8];
        asns.iter().for_each(|a| v.extend(a.to_be_bytes()));
        v
    };
    let cases: Vec<(
        &str,
        Vec<u8>,
        Option<Vec<u8>>,
        Option<u16>,
        Option<u32>,
        &str,
        Option<u32>,
    )> = vec![
        (
            "no AS4_PATH",
            two(&[65001, 23456]),
            None,
            None,
            None,
            "65001 23456",
            None,
        ),
        (
            "same length",
            two(&[65001, 23456]),
            Some(four(&[65001, 70000])),
            None,
            None,
            "65001 70000",
            None,
        ),
        (
            "AS_PATH is longer",
            two(&[65001, 23456, 23456]),
            Some(four(&[70000, 70001])),
            None,
            None,
            "65001 70000 70001",
            None,
        ),
        (
            "AS4_PATH is longer: ignored",
            two(&[65001]),
            Some(four(&[70000, 70001])),
            None,
            None,
            "65001",
            None,
        ),
        (
            "AS4_PATH is malformed: discarded",
            two(&[65001, 23456]),
            Some(vec![2, 9, 0, 1]),
            None,
            None,
            "65001 23456",
            None,
        ),
        (
            "AS4_PATH with AS 0: discarded",
            two(&[65001, 23456]),
            Some(four(&[65001, 0])),
            None,
            None,
            "65001 23456",
            None,
        ),
        (
            "AS4_PATH of odd length: discarded",
            two(&[65001, 23456]),
            Some(vec![1]),
            None,
            None,
            "65001 23456",
            None,
        ),
        (
            "confederation in AS4_PATH is left out",
            two(&[65001, 23456]),
            Some([vec![3, 1, 0, 0, 0, 9], four(&[70000])].concat()),
            None,
            None,
            "65001 70000",
            None,
        ),
        (
            "a set counts one",
            [two(&[65001]), vec![1, 2, 0, 5, 0, 6], two(&[23456])].concat(),
            Some(four(&[70000])),
            None,
            None,
            "65001 {5,6} 70000",
            None,
        ),
        (
            "AS4_AGGREGATOR for AS_TRANS",
            two(&[65001, 23456]),
            Some(four(&[70000])),
            Some(23456),
            Some(70000),
            "65001 70000",
            Some(70000),
        ),
        (
            "AS4_AGGREGATOR is stale",
            two(&[65001, 23456]),
            Some(four(&[70000])),
            Some(65001),
            Some(70000),
            "65001 23456",
            Some(65001),
        ),
        (
            "AGGREGATOR without AS4_AGGREGATOR",
            two(&[65001, 23456]),
            Some(four(&[70000])),
            Some(65001),
            None,
            "65001 70000",
            Some(65001),
        ),
        (
            "AS4_AGGREGATOR alone",
            two(&[65001]),
            None,
            None,
            Some(70000),
            "65001",
            None,
        ),
    ];
    for (name, path, path4, aggregator, aggregator4, expected, expected_aggregator) in cases {
        let mut attributes = [ORIGIN, &attribute(0x40, 2, &path), NEXT_HOP].concat();
        if let Some(a) = aggregator {
            let value = [&a.to_be_bytes()[..], &[1, 1, 1, 1]].concat();
            attributes.extend(attribute(0xc0, 7, &value));
        }
        if let Some(v) = path4 {
            attributes.extend(attribute(0xc0, 17, &v));
        }
        if let Some(a) = aggregator4 {
            let value = [&a.to_be_bytes()[..], &[1, 1, 1, 1]].concat();
            attributes.extend(attribute(0xc0, 18, &value));
        }
        let mut ctx = context(false);
        ctx.four_octet_as = false;
        let update = decode(&body(&[], &attributes, NLRI), &ctx).unwrap();
        let attrs = &update.reach[0].0;
        assert_eq!(attrs.as_path.to_string(), expected, "{name}");
        assert_eq!(
            attrs.aggregator.map(|a| a.0.0),
            expected_aggregator,
            "{name}"
        );
        assert!(attrs.unknown.is_empty());
    }
}

#[test]
fn messages_are_filled_to_the_limit_and_not_over() {
    let attrs = rich(IpAddr::from([192, 0, 2, 1]).into());
    let attrs6 = rich(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]).into());
    for max_message in [4096, 65535] {
        for (family, attrs) in [(Family::Ipv4, &attrs), (Family::Ipv6, &attrs6)] {
            let all: Vec<(u32, Prefix)> = (0..30000u32)
                .map(|i| match family {
                    Family::Ipv4 => (
                        0,
                        Prefix::V4 {
                            addr: i << 8,
                            len: 24,
                        },
                    ),
                    Family::Ipv6 => (
                        0,
                        Prefix::V6 {
                            addr: u128::from(i) << 64,
                            len: 64,
                        },
                    ),
                })
                .collect();
            let opts = EncodeOptions {
                max_message,
                ..EncodeOptions::default()
            };
            for withdraw in [false, true] {
                let mut out = BytesMut::new();
                let mut iter = all.iter().copied();
                if withdraw {
                    write_unreach(&mut out, family, &opts, &mut iter);
                } else {
                    write_reach(&mut out, family, attrs, &opts, &mut iter).unwrap();
                }
                let messages = bodies(&out, max_message);
                let mut got = Vec::new();
                for (i, body) in messages.iter().enumerate() {
                    let size = body.len() + header::HEADER;
                    assert!(size <= max_message);
                    assert!(i + 1 == messages.len() || size + 21 > max_message, "{size}");
                    let update = decode(body, &context(true)).unwrap();
                    match withdraw {
                        true => got.extend(update.withdrawn[0].iter()),
                        false => got.extend(update.reach[0].1.iter()),
                    }
                }
                assert!(got == all);
            }
        }
    }
}

#[test]
fn what_cannot_be_encoded_leaves_nothing_behind() {
    let mut out = BytesMut::new();
    let mut attrs = rich(IpAddr::from([192, 0, 2, 1]).into());
    let opts = EncodeOptions::default();
    let one = || [(0, p("10.0.0.0/8"))].into_iter();
    assert_eq!(
        write_reach(&mut out, Family::Ipv6, &attrs, &opts, &mut one()),
        Err(Unencodable::NextHop)
    );
    attrs.communities = vec![1; 1000].into();
    assert_eq!(
        write_reach(&mut out, Family::Ipv4, &attrs, &opts, &mut one()),
        Err(Unencodable::TooLarge)
    );
    write_reach(
        &mut out,
        Family::Ipv4,
        &rich(attrs.next_hop),
        &opts,
        &mut std::iter::empty(),
    )
    .unwrap();
    write_unreach(&mut out, Family::Ipv4, &opts, &mut std::iter::empty());
    assert!(out.is_empty());
}

#[test]
fn the_cache_returns_the_same_value_and_only_for_the_same_bytes() {
    let mut cache = AttributeCache::default();
    let ctx = context(false);
    let mut read = |body: &Bytes| update::decode(body, &ctx, &mut cache).unwrap();
    let v4 = body(&[], &base(), NLRI);
    let first = read(&v4);
    let again = read(&body(&[], &base(), &[8, 11]));
    assert!(std::sync::Arc::ptr_eq(&first.reach[0].0, &again.reach[0].0));
    assert_eq!(prefixes(&again.reach[0].1), ["11.0.0.0/8"]);
    // IPv6: other prefixes and the same next hop are a hit, another next hop is none.
    let v6 = |next_hop: u8, prefix: u8| {
        let mut mp = MP_REACH.to_vec();
        mp[22] = next_hop;
        mp[28] = prefix;
        body(&[], &[&mp, ORIGIN, AS_PATH].concat(), &[])
    };
    let first = read(&v6(1, 1));
    let again = read(&v6(1, 2));
    let other = read(&v6(2, 2));
    assert!(std::sync::Arc::ptr_eq(&first.reach[0].0, &again.reach[0].0));
    assert_eq!(prefixes(&again.reach[0].1), ["fd00:2::/32"]);
    assert_eq!(other.reach[0].0.next_hop.to_string(), "fd00::2");
    // The same attributes without NEXT_HOP's family: IPv4 prefixes still miss it.
    let without = body(&[], &[ORIGIN, AS_PATH].concat(), NLRI);
    assert!(read(&without).reach.is_empty());
    // A fault is a fault each time.
    let bad = body(
        &[],
        &[&[0x40, 1, 1, 9][..], AS_PATH, NEXT_HOP].concat(),
        NLRI,
    );
    assert_eq!(read(&bad).faults.len(), 1);
    assert_eq!(read(&bad).faults.len(), 1);
    assert!(std::sync::Arc::ptr_eq(
        &first.reach[0].0,
        &read(&v6(1, 9)).reach[0].0
    ));
}
